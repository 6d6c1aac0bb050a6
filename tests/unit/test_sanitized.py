"""The tests of this folder once more, in a process whose C half is checked by the address and undefined behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def libasan() -> str:
    """The path of the sanitizer's library as the compiler knows it; skips where it has none."""
    compiler = os.environ.get("CC", "cc")
    path = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"{compiler} comes without libasan")
    return path


@pytest.mark.skipif(bool(os.environ.get("UNIT_SANITIZE")), reason="this is the sanitized run")
def test_no_sanitizer_has_anything_to_say() -> None:
    environment = {
        **os.environ,
        "UNIT_SANITIZE": "1",
        "UNIT_EXAMPLES": "25",
        "LD_PRELOAD": libasan(),
        # What the interpreter keeps until it ends is no leak of ours; the tests count our own allocations.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
