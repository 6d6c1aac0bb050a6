"""How many processor threads one run may use, and how they wait.

Workers run side by side, so each run gets its share of the cores and no more: with every library's own default (all cores for every run)
the threads of two workers and of Redis itself fight over the same cores. Idle threads sleep: spinning ones made small models 5 to 29
times slower on a busy machine.
"""

from __future__ import annotations

import os

from .base import Settings

#: read by OpenMP when the library that uses it is first loaded
_QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def threads_per_run(settings: Settings) -> int:
    """Threads inside one operator: as configured, else the cores this process may use divided by the workers of a run queue."""
    return settings.intra_op or max(1, len(os.sched_getaffinity(0)) // max(1, settings.workers))


def quiet_openmp() -> None:
    """Lets OpenMP threads sleep between runs. Call before the library is imported; what the environment already says stays."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
