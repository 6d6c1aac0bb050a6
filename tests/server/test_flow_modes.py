"""Runs tests/flow under RLTest in each mode of deployment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import ROOT, default_binary, module_path

MODES = {
    "standalone": [],
    "aof": ["--use-aof"],
    "replica": ["--use-slaves"],
}


@pytest.mark.parametrize("mode", MODES)
def test_flows(mode: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "RLTest", "--module", str(module_path()), "--test", str(ROOT / "tests/flow/test_flow.py")]
    command += [
        "--oss-redis-path",
        str(default_binary()),
        "--log-dir",
        str(tmp_path),
        "--enable-debug-command",
        "--clear-logs",
        "--no-progress",
    ]
    env = {**os.environ, "REDISAI_TEST_BACKEND": "echo"}
    done = subprocess.run([*command, *MODES[mode]], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert "7 passed" in done.stdout.lower() or "Total Tests Run: 7" in done.stdout, done.stdout[-3000:]
