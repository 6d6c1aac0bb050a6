"""The operators behind `redis` and `redisAI`, the half written in Python: a call from a running script reaches the host of its run.

1. They are registered once per process and know no script. Which run a call belongs to is a matter of the thread: TorchScript calls back on
   the thread that runs it (scripts cannot fork), so `enter()` keeps the host there. Runs may nest, when a model that a script runs is
   itself served by this process.
2. They are declared CONSERVATIVE: without it the compiler takes them for pure functions and removes a call whose result nobody uses.
3. An exception ends the script. TorchScript has no `try`, so nothing has to be undone here.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch

from .replies import CommandError, Leaves, scalar, word, words
from .tensors import from_array, to_array

if TYPE_CHECKING:
    from .session import ScriptHost


#: the host of a run and the device of its script, None for the CPU
Run = tuple["ScriptHost", "torch.device | None"]


class _Thread(threading.local):
    """What a thread is doing for a script."""

    run: Run | None = None
    array: Leaves | None = None  # an array reply on its way into the script


_thread = _Thread()
_set_optimize = torch._C._set_graph_executor_optimize


def enter(run: Run) -> Run | None:
    """From here on the calls of scripts on this thread go to the host of `run`. Returns what `leave()` needs.

    Until then torch runs graphs as they are written. Optimising one costs a first run of up to 35 ms and gains a script nothing
    measurable; models that a script runs keep their own setting.
    """
    before = _thread.run
    _thread.run = run
    _set_optimize(False)
    return before


def leave(before: Run | None) -> None:
    """Ends what `enter()` began."""
    _thread.run = before
    _set_optimize(before is None)


def _current() -> Run:
    if _thread.run is None:
        raise CommandError("redis and redisAI are only available while a script runs")
    return _thread.run


def _call(command: list[Any]) -> tuple[bool, Any]:
    """A Redis command: (False, reply), or (True, None) for an array, which `_array` then hands out."""
    reply = _current()[0].execute(words(command))
    if isinstance(reply, (list, tuple)):
        _thread.array = Leaves(reply)
        return True, None
    return False, scalar(reply)


def _array() -> tuple[list[Any], list[int]]:
    """The array reply of the last `_call`: its leaves and its program."""
    leaves, _thread.array = _thread.array, None
    if leaves is None:
        raise CommandError("Unexpected internal error")
    return leaves.values, leaves.program


def _run_model(key: Any, inputs: list[torch.Tensor], n_outputs: int) -> list[torch.Tensor]:
    host, device = _current()
    name = word(key)
    _set_optimize(True)
    try:
        outputs = host.model_execute(name, [to_array(tensor, "redisAI.model_execute") for tensor in inputs], n_outputs)
    finally:
        _set_optimize(False)
    return [from_array(output, device, name.decode("utf-8", "replace")) for output in outputs]


#: library -> rows of (schema, function)
_OPERATORS: dict[str, tuple[tuple[str, Any], ...]] = {
    "redis": (("_call(Any[] command) -> (bool, Any?)", _call), ("_array() -> (Any?[], int[])", _array)),
    "redisAI": (("_run(Any key, Tensor[] inputs, int num_outputs) -> Tensor[]", _run_model),),
}


def _register() -> list[torch.library.Library]:
    libraries = []
    for name, rows in _OPERATORS.items():
        library = torch.library.Library(name, "DEF")
        for schema, function in rows:
            library.define(schema, "CONSERVATIVE")
            library.impl(schema.partition("(")[0], function, "CompositeExplicitAutograd")
        libraries.append(library)
    return libraries


_LIBRARIES = _register()  # an operator lives as long as its library
