"""How many processor threads one run may use, how they wait, and a thread with room for deep recursion.

Workers run side by side, so each run gets its share of the cores and no more: with every library's own default (all cores for every run)
the threads of two workers and of Redis itself fight over the same cores. Idle threads sleep: spinning ones made small models 5 to 29
times slower on a busy machine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from .base import Settings

#: A model that runs on the worker's own thread alone: so few bytes of weights, and a run that takes so little of one thread (seconds). More
#: threads would cost it more than they save.
LIGHT_WEIGHTS = 8 << 20
LIGHT_SECONDS = 0.002

#: read by OpenMP when the library that uses it is first loaded
_QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def threads_per_run(settings: Settings) -> int:
    """Threads inside one operator: as configured, else the cores this process may use divided by the workers of a run queue."""
    return settings.intra_op or max(1, len(os.sched_getaffinity(0)) // max(1, settings.workers))


def quiet_openmp() -> None:
    """Lets OpenMP threads sleep between runs. Call before the library is imported; what the environment already says stays."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


Result = TypeVar("Result")
LARGE_STACK = 128 << 20  # bytes of address space; memory is used as far as the recursion goes
_stack_size = threading.Lock()


def on_large_stack(work: Callable[[], Result]) -> Result:
    """Calls `work` on a thread of its own and waits: compilers recurse, and a stack that overflows ends the process.

    Raises what `work` raises, and RuntimeError when there is no room for the thread.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name="large-stack")
    with _stack_size:
        usual = threading.stack_size(LARGE_STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
