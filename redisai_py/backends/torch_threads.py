"""How many threads one TorchScript run gets.

libtorch asks for all its threads for every convolution and matrix product, however small, and waking a thread costs more than such a piece
of work: a small CNN took 133 us of a worker's CPU per run with two threads, 66 with one, and was answered later. So a run starts with one
thread, and its model is given more only where that pays: for sizes of input whose runs are long.

The number of threads is global to the process, and setting it costs a tenth of a microsecond. Two workers that run models of
both kinds at once may get each other's number, which costs speed and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .threads import LIGHT_SECONDS, LIGHT_WEIGHTS

#: Runs of a size that are timed before it is decided: the first ones choose kernels and allocate.
_TRIALS = 3
#: A run so long is no accident of the first ones.
_SURELY_LONG = 10 * LIGHT_SECONDS


class Threads:
    """libtorch's number of threads, remembered so that it is set only when it changes. One per process."""

    def __init__(self, set_number: Callable[[int], None], most: int) -> None:
        self._set_number = set_number
        self.allow(most)

    def allow(self, most: int) -> None:
        """The number that long runs get. Raises RuntimeError when libtorch refuses it."""
        self._set_number(most)
        self.most = self._now = most

    def use(self, number: int) -> None:
        """The runs that start from now on use `number` threads."""
        if number != self._now:
            self._now = number
            self._set_number(number)


_process: Threads | None = None


def of_process(torch: Any, most: int) -> Threads:
    """The one Threads there is, with `most` for long runs."""
    global _process
    _process = Threads(torch.set_num_threads, most)
    return _process


def use_all() -> None:
    """For scripts: nothing says what their runs are like."""
    if _process is not None:
        _process.use(_process.most)


class Pace:
    """One model's threads, by the size of its inputs to the power of two.

    `fixed`: the number is configured, or the model is so large that a first run on one thread would be felt.
    """

    def __init__(self, threads: Threads, model_bytes: int, fixed: bool) -> None:
        self._threads = threads
        self._fixed = fixed or threads.most == 1 or model_bytes > LIGHT_WEIGHTS
        self._decided: dict[int, int] = {}
        self._trials: dict[int, list[float]] = {}

    def run(self, call: Callable[..., Any], arguments: list[Any], nbytes: int) -> Any:
        """Calls `call(*arguments)` with the threads that inputs of `nbytes` deserve. Raises what it raises."""
        size = nbytes.bit_length()
        number = self._threads.most if self._fixed else self._decided.get(size)
        if number is None:
            return self._trial(call, arguments, size)
        self._threads.use(number)
        return call(*arguments)

    def _trial(self, call: Callable[..., Any], arguments: list[Any], size: int) -> Any:
        self._threads.use(1)
        started = time.thread_time()
        result = call(*arguments)
        seconds = time.thread_time() - started
        trials = self._trials.setdefault(size, [])
        trials.append(seconds)
        if seconds > _SURELY_LONG:
            self._decided[size] = self._threads.most
        elif len(trials) >= _TRIALS:
            self._decided[size] = 1 if min(trials) < LIGHT_SECONDS else self._threads.most
        return result
