"""What every command that talks to a server says when it cannot, and what it keeps to."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from redisai_command import Redisai, call
from servers import ROOT, Server

from redisai_py.cli import COMMANDS

FILE = str(ROOT / "examples" / "models" / "digits.onnx")
#: command -> a call that needs a server
CALLS: dict[str, list[str]] = {
    "quickstart": [],
    "store": [FILE],
    "models": [],
    "run": ["nokey", "--input", "1"],
    "top": ["--once"],
    "bench": ["nokey"],
    "export": ["nokey", "-"],
    "exporter": ["--once"],
}
LOCAL = {"serve", "cli", "doctor", "module-path"}  # tested elsewhere


@pytest.fixture
def redisai(capfd: pytest.CaptureFixture[str]) -> Redisai:
    """redisai("models", "-p", 6379) -> Done(status, out, err)"""
    return partial(call, capfd)


def test_every_command_is_looked_at_here() -> None:
    assert set(COMMANDS) == set(CALLS) | LOCAL


@pytest.mark.parametrize("name", CALLS)
def test_without_a_server_the_error_says_how_to_start_one(name: str, redisai: Redisai) -> None:
    done = redisai(name, *CALLS[name], "-p", 1)
    assert done.status == 1
    assert "127.0.0.1:1: Connection refused" in done.err
    assert "redisai serve" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("name", CALLS)
def test_without_the_module_the_error_says_how_to_load_it(name: str, redisai: Redisai, bare_server: Server) -> None:
    done = redisai(name, *CALLS[name], "-p", bare_server.port)
    assert done.status == 1
    assert "does not have the module" in done.err
    assert "redisai module-path" in done.err


@pytest.fixture(scope="module")
def bare_server() -> Iterator[Server]:
    server = Server(load_module=False)
    yield server
    server.close()


def test_a_wrong_password_is_named(redisai: Redisai, start_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_server()
    with server.client() as client:
        client.config_set("requirepass", "secret")
    done = redisai("models", "-p", server.port)
    assert (done.status, "REDISCLI_AUTH" in done.err) == (1, True)
    monkeypatch.setenv("REDISCLI_AUTH", "secret")
    assert redisai("models", "-p", server.port).status == 0


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_option_ends_with_2(name: str, redisai: Redisai) -> None:
    assert redisai(name, "--no-such-option").status == 2


def test_no_command_imports_an_inference_library(server: Server, tmp_path: Path) -> None:
    """In a process of its own, where nothing else has."""
    program = """
import sys
from redisai_py.cli import main
port = sys.argv[1]
for line in (["models"], ["top", "--once", "-i", "0.05"], ["store", sys.argv[2], "--key", "m", "--backend", "ONNX"],
             ["run", "m", "-i", "1,2"], ["export", "m", "-f", sys.argv[3]], ["exporter", "--once"], ["quickstart"]):
    main([*line, "-p", port])
print([name for name in ("torch", "tensorflow", "onnxruntime", "ai_edge_litert", "matplotlib") if name in sys.modules])
"""
    model = tmp_path / "echo.json"
    model.write_text(json.dumps({"op": "echo", "inputs": 1, "outputs": 1}))
    line = [sys.executable, "-c", program, str(server.port), str(model), str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    assert (tmp_path / "out").read_bytes() == model.read_bytes()


def test_piped_output_has_no_colours_and_terminal_output_keeps_to_no_color(server: Server) -> None:
    line = [sys.executable, "-m", "redisai_py", "quickstart", "-p", str(server.port)]
    env = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    env.pop("NO_COLOR", None)

    def on_terminal(**environment: str) -> bytes:
        ours, theirs = pty.openpty()
        subprocess.run(line, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, check=False, env={**env, **environment}, cwd=ROOT)
        shown = os.read(ours, 65536)
        os.close(ours)
        os.close(theirs)
        return shown

    cyan = b"\x1b[36m"
    assert cyan in on_terminal()
    assert cyan not in on_terminal(NO_COLOR="1")
    piped = subprocess.run(line, capture_output=True, check=False, env=env, cwd=ROOT).stdout
    assert b"AI.MODELSTORE" in piped
    assert b"\x1b" not in piped
