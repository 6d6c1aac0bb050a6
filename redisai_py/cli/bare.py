"""The library without a server: what `redisai bench` compares with, and where it learns the shapes of a model's inputs.

The model's bytes are opened in this process by the same backend that the server uses, with one thread, and run in a closed loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backends import backend_class
from ..backends.base import ModelSpec, Session, Settings
from ..install import BACKEND_PACKAGES
from ..tensor import WIRE_NAMES, ArrayTensor
from .arrays import Array

UNKNOWN = 1  # stands for a dimension that a model leaves open
LIBRARY_THREADS = Settings(intra_op=1, inter_op=1)


class NoMeter:
    def record(self, delta_bytes: int, accesses: int) -> None:
        """Nobody asks."""


def installed(backend: str) -> bool:
    return any(package.name == backend and package.installed() for package in BACKEND_PACKAGES)


def opened(backend: str, blob: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> Session:
    """Raises ImportError, errors.BackendError."""
    library = backend_class(backend).load(LIBRARY_THREADS, NoMeter())
    names = (tuple(inputs), tuple(outputs)) if backend == "TF" else ((), ())
    return library.open(blob, ModelSpec("bench", "CPU", *names), LIBRARY_THREADS)


def latencies(session: Session, inputs: Sequence[Array], outputs: int, seconds: float) -> list[float]:
    """Microseconds of each run, sorted; the first runs are left out. Raises errors.BackendError."""
    tensors = [ArrayTensor(array) for array in inputs]
    for _ in range(10):
        session.run(tensors, outputs)
    found, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        session.run(tensors, outputs)
        found.append((time.perf_counter() - start) * 1e6)
    return sorted(found)


# ---- shapes ------------------------------------------------------------------------------------------------------------------------


def onnx_inputs(blob: bytes) -> list[tuple[Any, Sequence[Any]]]:
    from ..backends.onnxruntime import import_library

    onnxruntime = import_library()
    kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(bool)": np.bool_}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    found = onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"]).get_inputs()
    return [(kinds.get(item.type) or np.dtype(item.type[7:-1]), item.shape) for item in found]


def tflite_inputs(blob: bytes) -> list[tuple[Any, Sequence[Any]]]:
    from ai_edge_litert.interpreter import Interpreter

    return [(item["dtype"], item["shape"].tolist()) for item in Interpreter(model_content=blob).get_input_details()]


#: backend -> what its models say of their inputs. TorchScript says nothing, and a graph's placeholders seldom do.
DESCRIBED: dict[str, Callable[[bytes], list[tuple[Any, Sequence[Any]]]]] = {"ONNX": onnx_inputs, "TFLITE": tflite_inputs}


def described(backend: str, blob: bytes) -> list[str] | None:
    """The inputs in the spelling of --input (FLOAT:1x64), open dimensions as 1; None when the model or this machine cannot tell."""
    if backend not in DESCRIBED or not installed(backend):
        return None
    try:
        found = DESCRIBED[backend](blob)
        return [f"{WIRE_NAMES[np.dtype(dtype)]}:{'x'.join(map(str, map(dimension, shape))) or '1'}" for dtype, shape in found]
    except (ImportError, KeyError, TypeError, ValueError, RuntimeError):
        return None


def dimension(given: Any) -> int:
    return given if isinstance(given, int) and given > 0 else UNKNOWN
