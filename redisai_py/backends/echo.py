"""Two backends for tests: one does what its model blob says, also what no library should do; the other cannot be loaded.

They take the place of the real ones when the server is started with REDISAI_TEST_BACKEND=echo or =fault, and are never loaded otherwise.
A model is a small JSON object. `op` says what a run does, the other keys what the op needs; a key that the op does not know is refused,
so that a typing error in a test is not a test that passes.

    {"inputs": 2, "outputs": 1, "op": "add"}

`inputs` and `outputs` count (1 and 1). `open_sleep` (seconds, the GIL free), `open_gate` (until the file is there), `open_spin` (seconds,
the GIL held), `open_raise` (text) and `open_exit` (status of the process) say what storing the model does. `terminable`: the session has
`terminate()`, which ends a sleep or a gate.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, get_ident
from typing import Any, ClassVar

import numpy as np

from ..device import parse_device
from ..errors import BackendError, Terminated
from ..tensor import WIRE_NAMES, to_array
from .base import Meter, ModelSpec, ResidentTable, Settings, TensorView

Arrays = list[np.ndarray[Any, Any]]
_GATE_SECONDS = 0.005
_COMMON = {"op", "inputs", "outputs", "open_sleep", "open_gate", "open_spin", "open_raise", "open_exit", "terminable"}


@dataclass
class Call:
    """One run in progress: the model's JSON, the inputs as arrays, the outputs an echo would give, and the flag that ends it."""

    model: dict[str, Any]
    inputs: Arrays
    outputs: Arrays
    resident: int = 0
    ended: Event = field(default_factory=Event)

    def wait(self, seconds: float) -> None:
        """Sleeps with the GIL free. Raises Terminated when the run is ended meanwhile."""
        if self.ended.wait(seconds):
            raise Terminated("Exiting due to terminate flag being set to true.")


def _hold_gil(seconds: float) -> None:
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # PyDLL, unlike CDLL, keeps the GIL during the call


def _add(call: Call) -> Any:
    return [np.sum(np.stack(call.inputs), axis=0, dtype=call.inputs[0].dtype)] * len(call.outputs)


def _sleep(call: Call) -> Any:
    call.wait(call.model["seconds"])
    return call.outputs


def _spin(call: Call) -> Any:
    _hold_gil(call.model["seconds"])
    return call.outputs


def _gate(call: Call) -> Any:
    while not Path(call.model["path"]).exists():
        call.wait(_GATE_SECONDS)
    return call.outputs


def _raise(call: Call) -> Any:
    """Without `when` always; with it when a row of the first input starts with that number, wherever a batch put the row."""
    first = call.inputs[0]
    if "when" not in call.model or (first.reshape(len(first), -1)[:, 0] == call.model["when"]).any():
        raise BackendError(call.model["text"])
    return call.outputs


def _say(call: Call) -> Any:
    """Says its text in every way that a library has."""
    text = call.model["text"]
    logging.getLogger("library").error(text)
    warnings.warn(f"warned: {text}", UserWarning, stacklevel=1)
    sys.stdout.write(f"printed: {text}\n")
    sys.stderr.write(f"complained: {text}\n")
    return call.outputs


def _out_of_memory(call: Call) -> Any:
    raise MemoryError("out of memory")


def _overflow(call: Call) -> Any:
    """Runs out of C stack: no limit of Python's stops the hash of a tuple."""
    nested: tuple[Any, ...] = ()
    for _ in range(1 << 20):
        nested = (nested,)
    return hash(nested)


def _nonsense(call: Call) -> Any:
    """Says its text to whoever listens at the other end of this helper process's sockets; then it answers as usual."""
    if not sys.argv[0].endswith("helper.py"):
        raise BackendError("ERR only a helper process may talk nonsense")
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as sock:
            sock.send(call.model["text"].encode("latin-1"))
    return call.outputs


def _open(call: Call) -> Any:
    with Path(call.model["path"]).open(call.model["mode"]):
        return call.outputs


def _connect(call: Call) -> Any:
    with socket.create_connection(("127.0.0.1", call.model["port"]), 5):
        return call.outputs


def _spawn(call: Call) -> Any:
    os.waitpid(os.posix_spawn(call.model["path"], ["program"], {}), 0)
    return call.outputs


def _system_exit(call: Call) -> Any:
    raise SystemExit(1)


class Unspeakable(Exception):
    """An exception that raises when it is asked what it is, as those do whose text is no UTF-8."""

    def __str__(self) -> str:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


def _unspeakable(call: Call) -> Any:
    raise Unspeakable


def _blocks(call: Call) -> Any:
    gc.collect()
    return [np.array([sys.getallocatedblocks()], np.int64)] * len(call.outputs)


def _address(call: Call) -> Any:
    return [np.array([array.ctypes.data % 4096 for array in call.inputs], np.int64)] * len(call.outputs)


@dataclass(frozen=True)
class Op:
    """What a run does, and the keys beside the common ones: those it needs and those it may have."""

    run: Callable[[Call], Any]
    needs: frozenset[str] = frozenset()
    may: frozenset[str] = frozenset()


OPS: dict[str, Op] = {
    "echo": Op(lambda call: call.outputs),  # the inputs in turn
    "resident": Op(lambda call: [np.array([call.resident], np.int64)] * len(call.outputs)),  # inputs that came from a device's memory
    "add": Op(_add),  # the elementwise sum of all inputs
    "sleep": Op(_sleep, frozenset({"seconds"})),
    "spin": Op(_spin, frozenset({"seconds"})),  # holds the GIL
    "gate": Op(_gate, frozenset({"path"})),  # waits until the file is there
    "raise": Op(_raise, frozenset({"text"}), frozenset({"when"})),
    "wrong_count": Op(lambda call: [*call.outputs, *call.outputs[:1]]),  # one output more
    "wrong_rows": Op(lambda call: [np.concatenate([output, output[:1]]) for output in call.outputs]),  # one row more
    "nan": Op(lambda call: [np.full(output.shape, np.nan, np.float32) for output in call.outputs]),
    "none": Op(lambda call: [None for _ in call.outputs]),
    "bools": Op(lambda call: [np.full(output.shape, 7, np.uint8).view(np.bool_) for output in call.outputs]),  # bytes that are none
    "half": Op(lambda call: [output.astype(np.float16) for output in call.outputs]),  # a dtype without a name
    "say": Op(_say, frozenset({"text"})),
    "oom": Op(_out_of_memory),
    "abort": Op(lambda call: os.abort()),
    "segfault": Op(lambda call: ctypes.string_at(1)),
    "blocks": Op(_blocks),  # how many objects the interpreter holds
    "address": Op(_address),  # where in a page of memory the inputs begin
    "exit": Op(lambda call: os._exit(call.model.get("status", 1)), may=frozenset({"status"})),
    "kill": Op(lambda call: os.kill(os.getpid(), signal.SIGKILL)),  # what the system does when memory runs out
    "overflow": Op(_overflow),
    "nonsense": Op(_nonsense, frozenset({"text"})),
    "open": Op(_open, frozenset({"path", "mode"})),
    "connect": Op(_connect, frozenset({"port"})),
    "spawn": Op(_spawn, frozenset({"path"})),
    "unspeakable": Op(_unspeakable),
    "system_exit": Op(_system_exit),  # an exception that `except Exception` does not catch
}


class EchoBackend:
    """Opens JSON models. Stands in for any backend."""

    name: ClassVar[str] = "ECHO"
    package: ClassVar[str] = "redisai-server"
    batch_mismatch: ClassVar[str] = "ERR Model did not generate the expected batch size"
    version = "1"

    @classmethod
    def load(cls, settings: Settings, meter: Meter) -> EchoBackend:
        return cls()

    def open(self, blob: bytes, spec: ModelSpec, settings: Settings) -> EchoSession:
        """Raises BackendError for a blob that is no model of this kind, and what `open_raise` says."""
        parse_device(spec.device)
        model = _read(blob)
        time.sleep(model.get("open_sleep", 0))
        while "open_gate" in model and not Path(model["open_gate"]).exists():
            time.sleep(_GATE_SECONDS)
        if "open_exit" in model:
            os._exit(model["open_exit"])
        if "open_spin" in model:
            _hold_gil(model["open_spin"])
        if "open_raise" in model:
            raise BackendError(model["open_raise"])
        return EchoSession(model, spec)


class FaultBackend(EchoBackend):
    """A backend whose library is not installed."""

    name: ClassVar[str] = "FAULT"
    package: ClassVar[str] = "no-such-package"

    @classmethod
    def load(cls, settings: Settings, meter: Meter) -> EchoBackend:
        raise ImportError("No module named 'no_such_package'")


class EchoSession:
    """One model. Names are those of the command where it gave any, else `input_0`, `output_0` and so on."""

    terminate: Callable[[int], None]  # only on sessions of terminable models

    def __init__(self, model: dict[str, Any], spec: ModelSpec) -> None:
        self.inputs = spec.inputs or tuple(f"input_{i}" for i in range(model.get("inputs", 1)))
        self.outputs = spec.outputs or tuple(f"output_{i}" for i in range(model.get("outputs", 1)))
        self._model = model
        self._op = OPS[model["op"]]
        self._running: dict[int, Event] = {}
        if model.get("terminable"):
            self.terminate = self._terminate

    def run(self, inputs: Sequence[TensorView], n_outputs: int) -> Sequence[Any]:
        """Does what the model says; outputs may be the inputs' own memory. Raises what the model says."""
        return self._run([to_array(tensor) for tensor in inputs], n_outputs)

    def run_resident(self, inputs: Sequence[TensorView], n_outputs: int, keep: Sequence[bool], table: ResidentTable) -> Sequence[Any]:
        """The same on a device that is none: what it keeps are numpy arrays."""
        numbers = [getattr(tensor, "resident", 0) for tensor in inputs]
        arrays = [table[number] if number else to_array(tensor) for number, tensor in zip(numbers, inputs, strict=True)]
        outputs = self._run(arrays, n_outputs, sum(map(bool, numbers)))
        return [table.put(o, WIRE_NAMES[o.dtype], o.shape) if stays else o for o, stays in zip(outputs, keep, strict=False)]

    def _run(self, arrays: Arrays, n_outputs: int, resident: int = 0) -> Sequence[Any]:
        call = Call(self._model, arrays, [arrays[i % len(arrays)] for i in range(n_outputs)] if arrays else [], resident)
        self._running[get_ident()] = call.ended
        try:
            found: Sequence[Any] = self._op.run(call)
            return found
        finally:
            del self._running[get_ident()]

    def close(self) -> None:
        pass

    def _terminate(self, thread_id: int) -> None:
        ended = self._running.get(thread_id)
        if ended is not None:
            ended.set()


def _read(blob: bytes) -> dict[str, Any]:
    """The JSON of a model whose keys fit its op. Raises BackendError."""
    try:
        model = json.loads(blob)
        op = OPS[model["op"]]
    except (ValueError, TypeError, KeyError) as error:
        raise BackendError(f"ERR not an echo model: {error}") from error
    unknown = sorted(model.keys() - _COMMON - op.needs - op.may)
    missing = sorted(op.needs - model.keys())
    if unknown or missing:
        raise BackendError(f"ERR echo model {model['op']}: unknown keys {unknown}, missing keys {missing}")
    return dict(model)
