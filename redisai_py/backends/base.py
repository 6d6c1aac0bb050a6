"""What a backend owes the rest of the server: two protocols, two records, nothing else.

A backend turns the bytes of a model into a *session* and runs it. The rules every one keeps:

1. It imports its library inside `load()`, on the loader thread, never when its file is imported.
2. `open()` raises `BackendError` with the exact text a client reads; a session that opened has been warmed up, so that the first
   request is not slower than the second.
3. `run()` may be called by several worker threads at once and must not keep state of one call that another can see.
4. Inputs are read-only views of keyspace values. A session that could write to them copies them first.
5. Outputs are C-contiguous CPU arrays. A dtype without a name in `redisai_py.tensor.DTYPES` is a `BackendError`, never a cast.

Adding a backend is one file here and one row in `redisai_py.backends.BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable


@dataclass(frozen=True)
class Settings:
    """The load-time configuration in force when a session opens (C owns it; this is a snapshot)."""

    intra_op: int = 0  # threads inside one operator; 0 = max(1, cores // workers)
    inter_op: int = 0  # operators of one run at a time; 0 = 1
    workers: int = 1  # threads per run queue
    execution_timeout_ms: int = 5000  # ONNX only: a longer run is terminated
    memory_limit: int = 0  # ONNX only: bytes, 0 = none
    allow_file_ops: bool = False  # TF: open graphs that read or write files


@dataclass(frozen=True)
class ModelSpec:
    """What the client said about a model, beside its bytes."""

    key: str
    device: str  # as given: "CPU", "cpu:1", "GPU:0" ...
    inputs: tuple[str, ...] = ()  # TF only; empty elsewhere
    outputs: tuple[str, ...] = ()
    batchsize: int = 0  # rows that run together at most; 0 = no batching


@runtime_checkable
class TensorView(Protocol):
    """A tensor as a session sees it: read-only, alive while the batch lives.

    Numeric tensors offer the buffer protocol (`numpy.asarray(t)` is a view) and `__dlpack__` (`torch._C._from_dlpack(t.__dlpack__())`).
    STRING tensors offer neither, only `strings()`.
    """

    dtype: str  # FLOAT, DOUBLE, INT8, ... BOOL, STRING
    shape: tuple[int, ...]
    nbytes: int

    def strings(self) -> list[bytes]:
        """The elements of a STRING tensor in row-major order, each without its closing NUL."""

    def __dlpack__(self) -> Any: ...


class ResidentTable(Protocol):
    """Tensors that stay in a device's memory between the ops of a DAG."""

    def __getitem__(self, number: int) -> Any: ...

    def put(self, tensor: Any, dtype: str, shape: tuple[int, ...]) -> tuple[int, str, tuple[int, ...]]:
        """Keeps a tensor and returns what stands for it among the outputs. It is dropped once no op of the DAG can read it."""


class Meter(Protocol):
    """Counts what a library allocates, for INFO (`ai_onnxruntime_memory` and its access counter)."""

    def record(self, delta_bytes: int, accesses: int) -> None: ...


class Session(Protocol):
    """One opened model."""

    inputs: Sequence[str]  # names, in the order of the inputs
    outputs: Sequence[str]

    def run(self, inputs: Sequence[TensorView], n_outputs: int) -> Sequence[Any]:
        """Runs the model once.

        Returns one item per output: a C-contiguous numpy array; for STRING a numpy object array of bytes; `None` for an output that
        has no tensor form (the key stays untouched). Raises `BackendError`.
        """

    def close(self) -> None: ...

    # Optional: `run_resident(inputs, n_outputs, keep, table)` runs an op of a DAG whose neighbours run on the same GPU. An input whose
    # `resident` is not 0 is in `table` under that number; an output whose `keep` is true may be `table.put(its tensor, dtype, shape)` in
    # place of an array, and then never leaves the device.

    # Optional: `terminate(thread_id: int)` ends the run in progress on that Python thread (ONNX). The watchdog looks it up by name.


class Backend(Protocol):
    """One inference library."""

    name: ClassVar[str]  # as in AI.MODELSTORE: TF, TFLITE, TORCH, ONNX
    package: ClassVar[str]  # what to `pip install` when it is missing
    batch_mismatch: ClassVar[str]  # error when an output's rows do not match the batch's
    version: str  # as INFO shows it

    @classmethod
    def load(cls, settings: Settings, meter: Meter) -> Backend:
        """Imports the library. Raises ImportError when it is not there."""

    def open(self, blob: bytes, spec: ModelSpec, settings: Settings) -> Session: ...
