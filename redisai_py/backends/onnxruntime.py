"""ONNX: runs ONNX models, classic machine-learning operators included, with ONNX Runtime.

1. Models arrive as bytes and stay in memory: a model that keeps data in files is refused before the library sees it (onnx_wire.py).
2. Runs can be ended. Each run has its RunOptions in a table by thread; `terminate()` takes them out of it and sets their flag. Whoever
   takes the entry owns it: a run that finds its entry gone throws the options away, so that a late flag never ends the next run. No lock:
   taking an entry out of a dict is one step.
3. Sessions run through `_sess.run`, the call behind the public `run`, which checks again what the library itself checks; the public
   one is the fallback.
4. Every node allocates its outputs and gives them back (arena off): ONNX Runtime's arena keeps its peak for ever, at the same speed.
5. BACKEND_MEMORY_LIMIT turns that round: only an arena can refuse, so one arena of that size serves all sessions and shrinks after each
   run. Weights lie outside it and are checked when a model is opened, so weights and working memory may each take up the limit.
6. Graphs are optimised as far as the library can; a model that its optimiser refuses is opened with the basic rewrites alone.
7. A light model runs on the worker's own thread: a session's second thread costs a small convolutional network half as much again, and
   saves no time. Whether it is light shows in the warm-up, where a thread's CPU time says it, whatever else the machine does.

What INFO shows as memory is an estimate, because the library does not say what it allocates. Counted as one block each, with the 63 bytes
of alignment and the pointer that a counting allocator adds, rounded up to 16: every weight in the model and the name of every input and
output, from open to close; per run and given back before it ends, the names again and every value a node computes. On a GPU only names:
weights and values are in its own memory.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any, ClassVar

import numpy as np

from ..device import Device, parse_device
from ..errors import BackendError, Terminated
from . import formats, onnx_wire
from .base import Meter, ModelSpec, Settings, TensorView
from .threads import LIGHT_SECONDS, LIGHT_WEIGHTS, threads_per_run

#: element types that have a name on the wire; the others a model may compute with, but not return
_WIRE_TYPES = frozenset(
    f"tensor({name})" for name in ("float", "double", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool", "string")
)
_STRING = "tensor(string)"

_WRAPPER = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_UNPARSED = "Failed to load model because protobuf parsing failed."
_NON_TENSOR = "non-tensor output from ONNX models, ignoring (currently unsupported)"
_TERMINATED = "Exiting due to terminate flag being set to true"
_NOT_UTF8 = "ERR ONNX strings are UTF-8, and an input or output is not"

_LIMIT = "Onnxruntime memory limit exceeded, memory allocation failed."
_LIMIT_AT_OPEN = f"Exception during initialization: {_LIMIT}"
_ARENA_FULL = re.compile(r"\S*bfc_arena\.cc:\d+ .*?Available memory of \d+ is smaller than requested bytes of \d+\s*", re.DOTALL)

_ARENA = {
    "arena_extend_strategy": 1,  # ask for what is needed, not for the next power of two
    "initial_chunk_size_bytes": 1 << 16,
    "max_dead_bytes_per_chunk": -1,  # the library's default; 0 aborts the process ("Could not find Region")
}
_SHRINK = ("memory.enable_memory_arena_shrinkage", "cpu:0")

_WARM_UP_BYTES = 64 << 20
_WARM_UP_SECONDS = 1.0
_WARM_UP_RUNS = 3
#: Operators that draw from a generator the session owns: a run of ours would change what the first client sees.
_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"})

_NO_CUDA = "ERR GPU requested but ONNX couldn't find CUDA"

_log = logging.getLogger(__name__)


def import_library() -> Any:
    """The package onnxruntime. Raises ImportError.

    Its published builds report what is opened and run to their maker, and keep a database for that in the user's home: both from the
    import on, so that only the environment can say no. An operator who sets the variable to something else has the last word."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


class OnnxBackend:
    """Opens ONNX models."""

    name: ClassVar[str] = "ONNX"
    package: ClassVar[str] = "onnxruntime"
    batch_mismatch: ClassVar[str] = "ERR Model did not generate the expected batch size"

    def __init__(self, library: Any, meter: Meter) -> None:
        self.ort = library
        self.meter = meter
        self.version: str = library.__version__
        self._lock = threading.Lock()
        self._weights = 0  # bytes of the weights of all open sessions
        self._arena_bytes = 0  # of the arena that sessions opened from now on share; 0 = there is none

    @classmethod
    def load(cls, settings: Settings, meter: Meter) -> OnnxBackend:
        """Imports ONNX Runtime. Raises ImportError."""
        onnxruntime = import_library()
        onnxruntime.set_default_logger_severity(4)
        return cls(onnxruntime, meter)

    def open(self, blob: bytes, spec: ModelSpec, settings: Settings) -> OnnxSession:
        """Opens and warms up an ONNX model. Raises BackendError."""
        device = parse_device(spec.device)
        # An empty blob and a GraphDef are protobuf without a graph: the library's own line for them is one that clients know.
        complaint = formats.refusal(blob, self.name)
        if complaint and formats.identify(blob) not in ("empty", "graphdef"):
            raise BackendError(complaint)
        providers = self._providers(device)
        survey = _survey(blob)
        limited = bool(settings.memory_limit) and device.kind == "cpu"
        weights = sum(survey.weights)
        self._take(weights, settings.memory_limit if limited else 0)
        threads = threads_per_run(settings)
        warms_up = _RANDOM.isdisjoint(survey.operators)
        tries_one = threads > 1 and not settings.intra_op and device.kind == "cpu" and warms_up and weights <= LIGHT_WEIGHTS
        try:
            session = self._session(blob, self._options(settings, limited, 1 if tries_one else threads), providers)
            opened = OnnxSession(self, session, survey, device, limited)
        except Exception as error:
            self.give_back(weights)
            raise _explained(error, at_open=True) from error
        if warms_up:
            seconds = opened.warm_up(min(_WARM_UP_SECONDS, settings.execution_timeout_ms / 1000))
            if tries_one and not (seconds is not None and opened.rows_are_fixed and seconds * max(1, spec.batchsize) < LIGHT_SECONDS):
                opened.adopt(self._session(blob, self._options(settings, limited, threads), providers))
        return opened

    def _session(self, blob: bytes, options: Any, providers: list[Any]) -> Any:
        try:
            session = self.ort.InferenceSession(blob, options, providers=providers)
        except Exception:
            options.graph_optimization_level = self.ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            session = self.ort.InferenceSession(blob, options, providers=providers)
        if len(providers) > 1 and "CUDAExecutionProvider" not in session.get_providers():
            raise BackendError(_NO_CUDA)  # CUDA's own libraries could not be loaded: the session would run on the CPU
        return session

    def run_options(self, limited: bool) -> Any:
        """Options of one run, silent like the session's."""
        options = self.ort.RunOptions()
        options.log_severity_level = 4
        if limited:
            options.add_run_config_entry(*_SHRINK)
        return options

    def give_back(self, weights: int) -> None:
        """The other half of `_take()`: a session is gone, or was never opened."""
        with self._lock:
            self._weights -= weights

    def _take(self, weights: int, limit: int) -> None:
        """Counts a new session's weights against the limit (0 = none). Raises BackendError when they do not fit."""
        with self._lock:
            if limit and self._weights + weights > limit:
                raise BackendError(_LIMIT_AT_OPEN)
            self._weights += weights

    def _providers(self, device: Device) -> list[Any]:
        if device.kind == "cpu":
            return ["CPUExecutionProvider"]
        # Asked for a provider it lacks, the library warns and uses the CPU.
        if "CUDAExecutionProvider" not in self.ort.get_available_providers():
            raise BackendError(_NO_CUDA)
        return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]

    def _options(self, settings: Settings, limited: bool, threads: int) -> Any:
        ort = self.ort
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = settings.inter_op or 1
        if settings.inter_op > 1:
            options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        options.enable_cpu_mem_arena = limited
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.add_session_config_entry("session.load_model_format", "ONNX")  # or it would guess, and read its other format too
        if limited:
            self._register_arena(settings.memory_limit)
            options.add_session_config_entry("session.use_env_allocators", "1")
        return options

    def _register_arena(self, limit: int) -> None:
        if self._arena_bytes == limit:
            return
        ort = self.ort
        place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(place, ort.OrtArenaCfg({"max_mem": limit, **_ARENA}))
        self._arena_bytes = limit


class OnnxSession:
    """One model. `inputs` and `outputs` are the names in the model, also of outputs that are no tensors."""

    def __init__(self, backend: OnnxBackend, session: Any, survey: onnx_wire.Survey, device: Device, limited: bool) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        self.inputs = tuple(value.name for value in inputs)
        self.outputs = tuple(value.name for value in outputs)
        self._backend = backend
        self._session = session
        self._shapes = tuple((value.type, tuple(value.shape)) for value in inputs)
        self.rows_are_fixed = all(isinstance(size, int) for value in inputs for size in value.shape[1:])
        self._limited = limited
        self._weights = sum(survey.weights)

        tensors = [value.name for value in outputs if value.type.startswith("tensor(")]
        self._fetched = tensors or list(self.outputs)  # the library wants to be asked for something
        self._logs_non_tensors = len(tensors) < len(outputs)
        self._positions = [tensors.index(name) if name in tensors else None for name in self.outputs]
        self._texts = [value.type == _STRING for value in outputs]
        self._plain_outputs = not self._logs_non_tensors and not any(self._texts)
        self._feed = _feeder(self.inputs, [_utf8 if value.type == _STRING else np.asarray for value in inputs])
        self._refusal = _unnamed_dtype(outputs)

        self._run = _call_of(session)
        self._running: dict[int, Any] = {}  # Python thread id -> RunOptions of the run in progress
        self._spare: list[Any] = []  # RunOptions whose flag is not set and never will be

        on_cpu = device.kind == "cpu"
        names = self.inputs + self.outputs
        blocks = [len(name.encode()) + 1 for name in names] + (survey.weights if on_cpu else [])
        self._held = sum(map(_block, blocks)), len(blocks)
        self._accesses = 2 * (len(names) + (survey.values if on_cpu else 0))
        self._record = backend.meter.record
        self._record(*self._held)

    def run(self, inputs: Sequence[TensorView], n_outputs: int) -> Sequence[Any]:
        """Runs the model on the calling thread. Returns one item per output of the model, None for one that is no tensor.

        Raises BackendError with the library's text, Terminated when `terminate()` ended the run or it hit the memory limit.
        """
        if n_outputs != len(self.outputs) or len(inputs) != len(self.inputs) or self._refusal:
            raise BackendError(self._complaint(len(inputs), n_outputs))
        self._record(0, self._accesses)
        thread = get_ident()
        options = self._running[thread] = self._spare.pop() if self._spare else self._backend.run_options(self._limited)
        try:
            found = self._run(self._fetched, self._feed(inputs), options)
        except Exception as error:
            found = self._recover(error, inputs, options)
        finally:
            if self._running.pop(thread, None) is not None:
                self._spare.append(options)
        return found if self._plain_outputs else self._arranged(found)

    def terminate(self, thread_id: int) -> None:
        """Ends the run in progress on the Python thread `thread_id`, if there is one. Any thread; returns at once."""
        options = self._running.pop(thread_id, None)
        if options is not None:
            options.terminate = True

    def close(self) -> None:
        """Lets go of the model. A run in progress on another thread keeps it alive until it returns. A second call does nothing."""
        if self._session is None:
            return
        self._session = None
        self._run = _closed
        self._backend.give_back(self._weights)
        held, blocks = self._held
        self._record(-held, blocks)

    def adopt(self, session: Any) -> None:
        """Goes on with another session of the same model. Before the first run of a client."""
        self._session = session
        self._run = _call_of(session)

    def warm_up(self, seconds: float) -> float | None:
        """Runs on made-up inputs, for `seconds` at most: later runs find kernels chosen and pages touched. Errors mean nothing here.

        Returns the CPU seconds that the last run took of this thread, None when there was no run or it failed.
        """
        feed = _made_up(self.inputs, self._shapes)
        if feed is None:
            return None
        options = self._backend.run_options(self._limited)
        timer = threading.Timer(seconds, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            for _ in range(_WARM_UP_RUNS):
                started = time.thread_time()
                self._run(self._fetched, feed, options)
                if (took := time.thread_time() - started) > LIGHT_SECONDS:
                    break
        except Exception as error:
            _log.debug("warm-up run: %s", error)
            return None
        finally:
            timer.cancel()
        return took

    def _recover(self, error: Exception, inputs: Sequence[TensorView], options: Any) -> Any:
        """What can be done about a failed run: its outputs after all, or the exception to send."""
        public = self._session.run if self._session is not None else self._run
        # TypeError: the private call has changed. A full arena: the first try has given back what the outputs of earlier runs held.
        retry = public if isinstance(error, TypeError) else self._run if _ARENA_FULL.search(str(error)) else None
        if retry is None:
            raise _explained(error) from error
        try:
            return retry(self._fetched, self._feed(inputs), options)
        except Exception as again:
            raise _explained(again) from again

    def _complaint(self, n_inputs: int, n_outputs: int) -> str:
        if n_inputs != len(self.inputs):
            return f"ERR Expected {len(self.inputs)} inputs but got {n_inputs}"
        if n_outputs != len(self.outputs):
            return f"ERR Expected {len(self.outputs)} outputs but got {n_outputs}"
        return self._refusal

    def _arranged(self, found: Sequence[Any]) -> list[Any]:
        """The library's outputs in the model's order: strings as bytes, None where there is no tensor."""
        if self._logs_non_tensors:
            self._logs_non_tensors = False  # once per model: the model will not change
            _log.warning(_NON_TENSOR)
        return [
            None if position is None else _bytes(found[position]) if text else found[position]
            for position, text in zip(self._positions, self._texts, strict=True)
        ]


def _survey(blob: bytes) -> onnx_wire.Survey:
    try:
        return onnx_wire.survey(blob)
    except onnx_wire.ExternalDataError as error:
        raise BackendError(str(error)) from error
    except onnx_wire.WireError as error:
        raise BackendError(_UNPARSED) from error


def _explained(error: Exception, at_open: bool = False) -> BackendError:
    """The exception a client's line is made of: the library's own sentence, without what Python wraps around it."""
    if isinstance(error, BackendError):
        return error
    if isinstance(error, UnicodeError):
        return BackendError(_NOT_UTF8)
    text = _WRAPPER.sub("", str(error))
    if _ARENA_FULL.search(text):
        return BackendError(_LIMIT_AT_OPEN) if at_open else Terminated(_ARENA_FULL.sub(_LIMIT, text))
    if _TERMINATED in text:
        return Terminated(text)
    # A TypeError of the binding quotes its arguments, tensors and all.
    return BackendError(f"ERR ONNX Runtime {text.partition(chr(10))[0]}" if isinstance(error, TypeError) else text.strip())


def _feeder(names: Sequence[str], converters: Sequence[Callable[[TensorView], Any]]) -> Callable[[Sequence[TensorView]], dict[str, Any]]:
    """A function from a run's inputs to the library's name -> array, as short as the model allows: a fifth of a small model's time."""
    if len(names) == 1:
        (name,), (convert,) = names, converters
        return lambda inputs: {name: convert(inputs[0])}
    return lambda inputs: {name: convert(tensor) for name, convert, tensor in zip(names, converters, inputs, strict=True)}


def _unnamed_dtype(outputs: Sequence[Any]) -> str:
    """The error of a model that returns an element type without a name on the wire, "" when there is none."""
    for value in outputs:
        if value.type.startswith("tensor(") and value.type not in _WIRE_TYPES:
            return f"ERR the model returned a tensor of type {value.type[7:-1]}, which has no RedisAI dtype"
    return ""


def _made_up(names: Sequence[str], declared: Sequence[tuple[str, tuple[Any, ...]]]) -> dict[str, Any] | None:
    """An input for every name: free dimensions 1, zeros, but ones for integers, which some model will divide by.

    None when a type is not ours to make or the inputs would be too large.
    """
    feed: dict[str, Any] = {}
    for name, (kind, dimensions) in zip(names, declared, strict=True):
        if kind not in _WIRE_TYPES:
            return None
        shape = tuple(size if isinstance(size, int) and size >= 0 else 1 for size in dimensions)
        if float(np.prod(shape, dtype=np.float64)) * 8 > _WARM_UP_BYTES:
            return None
        if kind == _STRING:
            feed[name] = np.full(shape, "", dtype=object)
        else:
            dtype = np.dtype({"float": "float32", "double": "float64"}.get(kind[7:-1], kind[7:-1]))
            feed[name] = np.full(shape, dtype.kind in "iu", dtype=dtype)
    return feed


def _utf8(tensor: TensorView) -> Any:
    """A STRING tensor as the library takes it; other dtypes as they are, for its own complaint. Raises UnicodeDecodeError."""
    if tensor.dtype != "STRING":
        return np.asarray(tensor)
    array = np.empty(len(texts := [element.decode() for element in tensor.strings()]), dtype=object)
    array[:] = texts
    return array.reshape(tensor.shape)


def _bytes(array: Any) -> Any:
    """A string output as an object array of bytes."""
    texts = [text.encode() for text in array.ravel().tolist()]
    found = np.empty(len(texts), dtype=object)
    found[:] = texts
    return found.reshape(array.shape)


def _block(size: int) -> int:
    """Bytes the allocator sets aside for `size`: see the head of this file."""
    return (size + 63 + 8 + 15) // 16 * 16


def _call_of(session: Any) -> Callable[..., Any]:
    """The quick way to run a session: see the head of this file."""
    call: Callable[..., Any] = getattr(getattr(session, "_sess", None), "run", session.run)
    return call


def _closed(*arguments: Any) -> Any:
    raise BackendError("ERR ONNXRuntime session was not allocated")
