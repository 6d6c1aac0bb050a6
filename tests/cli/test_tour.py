"""What `make run` shows is true: every backend classifies its digit, and the printed lines do the same when typed."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from servers import ROOT, Server

from redisai_py.install import BACKEND_PACKAGES

pytestmark = [pytest.mark.slow, pytest.mark.needs_torch, pytest.mark.needs_tf, pytest.mark.needs_onnx, pytest.mark.needs_tflite]


def test_every_backend_finds_its_digit_and_the_printed_lines_can_be_typed(real_server: Server) -> None:
    line = [sys.executable, "examples/tour.py", "--port", str(real_server.port)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    installed = [package.name for package in BACKEND_PACKAGES if package.installed()]
    assert re.findall(r"^(\w+): digits\.", done.stdout, re.MULTILINE) == installed
    answers = re.findall(r"Digit (\d); the label says (\d)\.", done.stdout)
    assert len(answers) == len(installed)
    assert all(found == label for found, label in answers)

    typed = re.findall(r"^  \$ (.*)$", done.stdout, re.MULTILINE)
    assert len(typed) == 4 * len(installed)
    with real_server.client() as client:
        client.flushall()
    for command in typed:
        shown = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
        if "TENSORGET" in command:
            assert len(shown.split()) == 10
        else:
            assert shown == "OK\n", command


def test_a_server_that_is_not_there_is_said_and_ends_with_1() -> None:
    done = subprocess.run(
        [sys.executable, "examples/tour.py", "--port", "1"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "Connection refused" in done.stderr
