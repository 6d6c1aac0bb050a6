"""The C files that know neither Redis nor Python under valgrind: reads of what was never written, which no sanitizer of gcc sees.

MEMCHECK_STEPS says how many commands are planned and how many steps the queues take; `make valgrind` asks for many.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from compiled import HERE, SHIM

STEPS = os.environ.get("MEMCHECK_STEPS", "400")
SEED = str(random.randrange(1 << 30)) if "MEMCHECK_STEPS" in os.environ else "20261122"

pytestmark = [
    pytest.mark.skipif(bool(os.environ.get("UNIT_SANITIZE")), reason="the sanitized run is another tool"),
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed"),
]


def memcheck(folder: Path, main: str, sources: Sequence[str]) -> str:
    """What the program said under valgrind. Raises AssertionError with valgrind's report."""
    program = folder / "program"
    flags = ["-O1", "-g", "-std=gnu11", "-Wall", "-Wno-unused-function", f"-I{SHIM}", f"-I{HERE}"]
    files = [HERE / main, *(SHIM / source for source in sources)]
    subprocess.run([os.environ.get("CC", "cc"), *flags, "-o", program, *files, "-lpthread", "-lm"], check=True)
    line = ["valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite", program, SEED, STEPS]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"status {done.returncode}, seed {SEED}\n{done.stdout}{done.stderr[-4000:]}"
    return done.stdout


def test_plans(tmp_path: Path) -> None:
    assert "commands planned" in memcheck(tmp_path, "plan_memcheck.c", ["plan.c", "mem.c", "tensor.c", "redis_api.c"])


def test_queues(tmp_path: Path) -> None:
    sources = ["plan.c", "mem.c", "tensor.c", "runqueue.c", "timer.c", "job.c", "loader.c", "redis_api.c"]
    assert "jobs answered" in memcheck(tmp_path, "queues_memcheck.c", sources)
