"""The TFLITE backend: TensorFlow Lite flatbuffers through ai-edge-litert, or what else of its family is installed.

1. An interpreter holds the inputs and outputs of one run, so it serves one run at a time. Idle ones lie on a stack: a run takes one, or
   builds one when the stack is empty, and puts it back. There are never more than runs at once, and the one used last, whose memory is
   warm and whose shapes most likely fit, is used next.
2. An interpreter that failed is dropped: the library appends to its error text for ever and may be left half resized.
3. Inputs of another shape than the last ones are resized, each by its own tensor index, and memory is planned again (4 us for a small
   model).
4. No run sees another's state: variables are reset before each run, and an interpreter that assigned to a resource is not used again.
5. The error texts are 1.2.7's, word for word. They carry no detail, since clients compare whole lines.
"""

from __future__ import annotations

import base64
import importlib
import math
import os
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np

from ..device import parse_device
from ..errors import BackendError
from ..tensor import DTYPES, to_array
from . import tflite_check
from .base import Meter, ModelSpec, Settings, TensorView
from .formats import refusal
from .quiet import quiet

Array = np.ndarray[Any, Any]

#: where an Interpreter may come from, best first. The last takes seconds to import and is to be removed from TensorFlow.
LIBRARIES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite.python.interpreter")

#: x + x over FLOAT [1]. tflite_runtime with numpy 2 imports without complaint and fails at the first interpreter.
PROBE = zlib.decompress(
    base64.b85decode(
        "c-oU-U|<Mw^D$;%;A0SB5Mbb8-~fuS0C@~R9s`2}5I+E7W*}w+%P=r#{Qv)-5h~9E*Tn)PAz}d_Gl4h)sz-zY1o*%-NG&&#`9Q!8)7Jns7lfG@5P%U0GeG4Gpl*2r)"
        "WZRG2c~)+sBajcZo{RH5h}+5h71e<7Ell4"
    )
)

#: numpy type of a tensor's details -> wire name
WIRE_NAMES: dict[Any, str] = {dtype.type: name for name, dtype in DTYPES.items()} | {np.bytes_: "STRING"}
WARM_UP_ELEMENTS = 1 << 24  # a model whose inputs are larger opens cold: its first run is long anyway
UNSUPPORTED = frozenset({"DOUBLE", "UINT16"})  # TFLite has them, 1.2.7 refuses them


class TfliteBackend:
    name: ClassVar[str] = "TFLITE"
    package: ClassVar[str] = "ai-edge-litert"
    batch_mismatch: ClassVar[str] = "ERR Model did not generate the expected batch size"
    version: str = "NA"

    def __init__(self, interpreter: Callable[..., Any]) -> None:
        self._interpreter = interpreter
        self.origin = interpreter.__module__  # for the log: which of LIBRARIES it is

    @classmethod
    def load(cls, settings: Settings, meter: Meter) -> TfliteBackend:
        """Imports the first library that works. Raises ImportError with the reason for each when none does."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
        reasons = []
        for name in LIBRARIES:
            try:
                with quiet():
                    return cls(working_interpreter(name))
            except Exception as error:  # SystemError, when the library was built for another numpy
                reasons.append(f"{name}: {error.__cause__ or error}")
        raise ImportError("; ".join(reasons))

    def open(self, blob: bytes, spec: ModelSpec, settings: Settings) -> TfliteSession:
        """Builds the first interpreter and warms it up. Raises BackendError.

        Every GPU device runs on the CPU, like 1.2.7 built for CPUs: the Python package has no GPU delegate for Linux.
        """
        parse_device(spec.device, "ERR Unsupported device")
        try:
            used = tflite_check.operators(blob)
        except tflite_check.MalformedError:
            raise BackendError(refusal(blob, self.name) or "Failed to load model from buffer") from None
        threads = settings.intra_op or 1  # two threads, which spin, made a CNN twice as slow as one
        session = TfliteSession(lambda: self._interpreter(model_content=blob, num_threads=threads), tflite_check.ASSIGN_VARIABLE in used)
        if tflite_check.WHILE not in used:  # a loop may go on for ever on made-up values, and a run cannot be stopped
            session.warm_up()
        return session


def working_interpreter(name: str) -> Callable[..., Any]:
    """The class Interpreter of a library, after it has run a model. Raises whatever the library does."""
    interpreter: Callable[..., Any] = importlib.import_module(name).Interpreter
    probe = Interpreter(interpreter(model_content=PROBE))
    probe.fit([(1,)])
    probe.run([np.ones(1, np.float32)])
    return interpreter


class Interpreter:
    """One TFLite interpreter, its tensors' places and their current shapes.

    The methods of the extension object are bound directly: the Python ones around them cost more than the call of a small model.
    """

    def __init__(self, library: Any) -> None:
        inner = library._interpreter
        self._set, self._invoke, self._get = inner.SetTensor, inner.Invoke, inner.GetTensor
        self._resize, self._allocate, self._reset = inner.ResizeInputTensor, inner.AllocateTensors, inner.ResetVariableTensors
        self.inputs, self.outputs = library.get_input_details(), library.get_output_details()
        self._into = [details["index"] for details in self.inputs]
        self._out_of = [details["index"] for details in self.outputs]
        self.shapes: list[tuple[int, ...]] = []

    def fit(self, shapes: list[tuple[int, ...]]) -> None:
        """Gives the inputs these shapes and plans memory. Raises BackendError."""
        if any(size < 0 for shape in shapes for size in shape):  # which the library minds in numbers only, not in strings
            raise BackendError("Failed to resize input tensors")
        try:
            for index, shape in zip(self._into, shapes, strict=True):
                self._resize(index, np.array(shape, np.int32), False)
        except Exception:
            raise BackendError("Failed to resize input tensors") from None
        try:
            self._allocate()
        except Exception:
            raise BackendError("Failed to allocate tensors") from None
        self.shapes = shapes

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Runs on arrays of the fitted shapes and dtypes; the outputs are copies. Raises BackendError."""
        try:
            self._reset()
            for index, array in zip(self._into, arrays, strict=True):
                self._set(index, array)
            self._invoke()
            return [np.asarray(self._get(index, 0)) for index in self._out_of]  # without dimensions they come as numpy scalars
        except Exception:
            raise BackendError("Failed to invoke TfLite") from None


class TfliteSession:
    """An open model. run() may be called by any number of threads at once."""

    def __init__(self, build: Callable[[], Any], keeps_state: bool) -> None:
        self._build, self._keeps_state = build, keeps_state
        self._idle: deque[Interpreter] = deque()
        first = self._new()
        self.inputs: Sequence[str] = tuple(details["name"] for details in first.inputs)
        self.outputs: Sequence[str] = tuple(details["name"] for details in first.outputs)
        self._dtypes = [WIRE_NAMES.get(details["dtype"], "") for details in first.inputs]
        self._refusal = refused_input(self._dtypes) or refused_output(details["dtype"] for details in first.outputs)
        first.fit([tuple(map(int, details["shape"])) for details in first.inputs])
        self._idle.append(first)

    def _new(self) -> Interpreter:
        try:
            return Interpreter(self._build())
        except Exception:
            raise BackendError("Failed to construct interpreter") from None

    def run(self, inputs: Sequence[TensorView], n_outputs: int) -> Sequence[Array]:
        """One run of the model. Raises BackendError with the texts of 1.2.7, checked in its order."""
        if len(inputs) != len(self.inputs):
            raise BackendError("Inconsistent number of inputs")
        if n_outputs != len(self.outputs):
            raise BackendError("Inconsistent number of outputs")
        try:
            interpreter = self._idle.pop()
        except IndexError:
            interpreter = self._new()
        if (shapes := [tensor.shape for tensor in inputs]) != interpreter.shapes:
            interpreter.fit(shapes)
        if complaint := self._complaint(inputs):
            self._idle.append(interpreter)
            raise BackendError(complaint)
        outputs = interpreter.run([to_array(tensor) for tensor in inputs])
        if not self._keeps_state:
            self._idle.append(interpreter)
        return outputs

    def _complaint(self, inputs: Sequence[TensorView]) -> str | None:
        if [tensor.dtype for tensor in inputs] != self._dtypes:
            return "Input tensor type doesn't match the type expected by the model definition"
        return self._refusal

    def warm_up(self) -> None:
        """Runs once on zeros of the shapes in the model. They may be placeholders for others, so a failure means nothing."""
        interpreter = self._idle.pop()
        if sum(map(math.prod, interpreter.shapes)) > WARM_UP_ELEMENTS:
            self._idle.append(interpreter)
            return
        with suppress(BackendError):
            interpreter.run([zeros(details["dtype"], shape) for details, shape in zip(interpreter.inputs, interpreter.shapes, strict=True)])
            self._idle.append(interpreter)

    def close(self) -> None:
        self._idle.clear()


def refused_input(dtypes: Sequence[str]) -> str | None:
    return "Unsupported input data type" if UNSUPPORTED.intersection(dtypes) else None


def refused_output(dtypes: Any) -> str | None:
    for dtype in dtypes:
        if dtype is np.float16:
            return "Float16 not currently supported as output tensor data type"
        if WIRE_NAMES.get(dtype, "DOUBLE") in UNSUPPORTED:
            return "Unsupported output data type"
    return None


def zeros(dtype: Any, shape: tuple[int, ...]) -> Array:
    return np.full(shape, b"", dtype=object) if dtype is np.bytes_ else np.zeros(shape, dtype)
