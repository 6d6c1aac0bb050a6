"""Existing clients, unchanged, each in an environment of its own with the versions it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import MODELS, ROOT, Server

HERE = Path(__file__).parent
CACHE = ROOT / ".cache" / "clients"

CLIENTS = {
    "redisai": ["redisai==1.3.0", "redis==4.6.0", "numpy==2.4.6"],
    "smartredis": ["smartredis==0.6.1", "numpy==1.26.4"],
}


#: packages of Node.js; with_node.js takes the name of one
NODE = {"redis": "redis@6.3.1", "ioredis": "ioredis@6.0.0"}


def environment(name: str) -> Path:
    """The Python of the client's environment, made once. Skips the test where the packages cannot be had."""
    python = CACHE / name / "bin" / "python"
    stamp = CACHE / name / "installed"
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", str(CACHE / name)], check=True)
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", *CLIENTS[name]], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"{CLIENTS[name][0]} cannot be installed here: {done.stderr[-300:]}")
        stamp.touch()
    return python


@pytest.mark.needs_torch
@pytest.mark.needs_onnx
@pytest.mark.parametrize("name", CLIENTS)
def test_client(name: str, real_server: Server) -> None:
    command = [environment(name), HERE / f"with_{name}.py", str(real_server.port), str(MODELS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def node_modules() -> Path:
    """The folder of the packages, filled once. Skips the test where there is no Node.js or they cannot be had."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node.js is not installed")
    folder = CACHE / "node"
    stamp = folder / "installed"
    if not (stamp.exists() and stamp.read_text() == repr(NODE)):
        folder.mkdir(parents=True, exist_ok=True)
        line = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, *NODE.values()]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"the packages cannot be installed here: {done.stderr[-300:]}")
        stamp.write_text(repr(NODE))
    return folder / "node_modules"


@pytest.mark.needs_onnx
@pytest.mark.parametrize("name", NODE)
def test_plain_clients_of_node(name: str, real_server: Server) -> None:
    command = ["node", HERE / "with_node.js", name, str(real_server.port), MODELS]
    environment = {**os.environ, "NODE_PATH": str(node_modules())}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0 and done.stdout == "ok\n", f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
