"""The TF backend: frozen GraphDefs, and zipped SavedModels, through a TensorFlow 1 session.

1. A run is one call of a *callable* made at open (`Session._make_callable_from_options`): feeds and fetches are bound once, so a run passes
   arrays and nothing else. 4 us for a multiplication, where `Session.run` needs 275 and a ConcreteFunction 685.
2. Operators run on the worker that asked (`inter_op_thread_pool=-1`), which saves two context switches per run. With
   INTER_OP_PARALLELISM above 1 they go to the session's own pool instead, because that is what the setting is for.
3. TensorFlow checks the dtype of what it is fed and not its shape. Neither did 1.2.7, and graphs frozen with a batch of 1 that are fed
   batches rely on it.
4. A graph may not touch files (tf_ops.py). The check comes before the import, which already evaluates constant parts.
5. Warm-up is one run on zeros of the placeholders' shapes. It may fail, because a graph of unknown shapes cannot be guessed. It may not
   last, and TensorFlow cannot be relied on to stop a run (closing the session of `while True` hangs too): a graph with loops, queues
   or data sets (ENDLESS) opens cold.
6. Elements of STRING tensors go in without their closing NUL, so that operators that hash or compare see the text and nothing else.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..device import parse_device
from ..errors import BackendError
from ..tensor import DTYPES, to_array
from . import tf_ops, tf_saved_model
from .base import Meter, ModelSpec, Settings, TensorView
from .formats import refusal
from .quiet import quiet
from .threads import threads_per_run

#: operators that may wait or go on for ever when they are fed made-up values
ENDLESS = re.compile(r"While|NextIteration|Dataset|Iterator|Queue|[Ss]tage|Peek|Barrier|Mutex|^Batch$|^BatchFunction$|^Unbatch$")
Array = np.ndarray[Any, Any]
Ends = list[tuple[str, Any]]


@dataclass(frozen=True)
class Library:
    """The parts of TensorFlow that are used here, looked up once."""

    tf1: Any  # tensorflow.compat.v1
    error: type[Exception]  # what a failed run raises
    callable_options: Any  # CallableOptions, a protobuf message class
    saved_model: Any  # SavedModel, a protobuf message class
    refused: Mapping[str, str]  # operator -> why a graph may not contain it
    gpus: int


@dataclass(frozen=True)
class Loaded:
    """A graph in a session, and what is fed and fetched: a tensor with the name the client knows it by, in the client's order."""

    session: Any
    feeds: Ends
    fetches: Ends
    operators: frozenset[str]  # in the graph and in the functions it calls


STRING_DIMS = 32
#: A graph may declare any shape; one so large is no reason to allocate it, and TensorFlow does not survive a lack of memory.
WARM_UP_ELEMENTS = 1 << 24


class TensorFlowBackend:
    name: ClassVar[str] = "TF"
    package: ClassVar[str] = "tensorflow-cpu"
    batch_mismatch: ClassVar[str] = "ERR Tensorflow batching error: model did not generate the expected batch size"

    def __init__(self, library: Library, version: str, origin: str) -> None:
        self.version, self.origin = version, origin
        self._library = library

    @classmethod
    def load(cls, settings: Settings, meter: Meter) -> TensorFlowBackend:
        """Imports TensorFlow (6 to 14 seconds). Raises ImportError when it is not there or does not load."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with quiet():
            import tensorflow as tf
            from tensorflow.core.framework.op_def_pb2 import OpList
            from tensorflow.core.protobuf.config_pb2 import CallableOptions
            from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
            from tensorflow.python.client import pywrap_tf_session

            logging.getLogger("tensorflow").setLevel(logging.ERROR)
            registry = OpList.FromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
            gpus = len(tf.config.list_physical_devices("GPU"))
        refused = tf_ops.verdicts(registry.op)
        return cls(
            Library(tf.compat.v1, tf.errors.OpError, CallableOptions, SavedModel, refused, gpus),
            tf.__version__,
            str(Path(tf.__file__).parent),
        )

    def open(self, blob: bytes, spec: ModelSpec, settings: Settings) -> TensorFlowSession:
        """Imports a graph and warms it up. Raises BackendError."""
        loaded = Loader(self._library, blob, spec, settings).load()
        session = TensorFlowSession(self._library, loaded, settings)
        if not any(ENDLESS.search(operator) for operator in loaded.operators):
            session.warm_up()
        return session


# ---- from a blob to a session ----------------------------------------------------------------------------------------------------------


class Loader:
    """Makes sessions of one blob. The order of the checks is 1.2.7's: device, graph, inputs, outputs, GPU."""

    def __init__(self, library: Library, blob: bytes, spec: ModelSpec, settings: Settings) -> None:
        self._library, self._tf1 = library, library.tf1
        self._blob, self._spec, self._settings = blob, spec, settings
        self._device = parse_device(spec.device)

    def load(self) -> Loaded:
        return self._saved_model() if tf_saved_model.is_saved_model(self._blob) else self._graph_def()

    def _graph_def(self) -> Loaded:
        definition = self._parsed()
        self._check_operators(definition)
        graph = self._imported(definition)
        feeds, fetches = self._bound(graph)
        self._check_gpu()
        return Loaded(self._session(graph), feeds, fetches, tf_ops.operators(definition))

    def _saved_model(self) -> Loaded:
        with tf_saved_model.unpacked(self._blob) as folder:
            bundle = tf_saved_model.read(self._library.saved_model, folder)
            definition, confined = tf_saved_model.confined(bundle, folder, [*self._spec.inputs, *self._spec.outputs])
            self._check_operators(definition, confined)
            self._check_gpu()
            graph = self._imported(definition)
            loaded = Loaded(self._session(graph), *self._bound(graph, bundle), tf_ops.operators(definition))
            self._fill(loaded.session, bundle, folder)
        return loaded if bundle.initialiser else self._frozen(loaded, bundle)

    def _frozen(self, loaded: Loaded, bundle: tf_saved_model.Bundle) -> Loaded:
        ends = [tensor.name for _, tensor in (*loaded.feeds, *loaded.fetches)]
        definition = tf_saved_model.frozen(self._tf1, loaded.session, ends)
        if definition is None:
            return loaded
        loaded.session.close()
        graph = self._imported(definition)
        return Loaded(self._session(graph), *self._bound(graph, bundle), loaded.operators)

    def _parsed(self) -> Any:
        """A blob of another format can be a valid GraphDef of unknown fields and no node; whoever reads the error wants to know."""
        definition = self._tf1.GraphDef()
        try:
            definition.ParseFromString(self._blob)
        except Exception:  # protobuf's DecodeError has had several homes
            raise BackendError(invalid(self._blob)) from None
        if not definition.node and refusal(self._blob, "TF"):
            raise BackendError(invalid(self._blob))
        return definition

    def _check_operators(self, definition: Any, confined: frozenset[str] = frozenset()) -> None:
        found = tf_ops.refused(definition, self._library.refused, confined=confined, files=self._settings.allow_file_ops)
        if found:
            raise BackendError("ERR op {} is not allowed: {}".format(*found))

    def _imported(self, definition: Any) -> Any:
        for node in tf_ops.nodes(definition):
            if tf_ops.lies(node):
                raise BackendError(f"ERR the values of constant {node.name} are of another type than it says")
        if self._device.index is not None:
            for node in tf_ops.nodes(definition):
                node.device = node.device or f"/device:GPU:{self._device.index}"
        graph = self._tf1.Graph()
        try:
            with graph.as_default():
                self._tf1.import_graph_def(definition, name="")
        except Exception as error:  # ValueError, KeyError, TypeError and OpError, by the part that noticed
            raise BackendError(sentence(error)) from None
        return graph

    def _bound(self, graph: Any, bundle: tf_saved_model.Bundle | None = None) -> tuple[Ends, Ends]:
        """The tensors to feed and to fetch. Names of a bundle's signature come first, then those of operations."""
        operations = {operation.name: operation for operation in graph.get_operations()}
        signature = (bundle.inputs, bundle.outputs) if bundle else ({}, {})
        feeds, fetches = (
            [(name, graph.get_tensor_by_name(named[name]) if name in named else find(operations, name)) for name in wanted or named]
            for find, named, wanted in zip((placeholder, output), signature, (self._spec.inputs, self._spec.outputs), strict=True)
        )
        return feeds, fetches

    def _check_gpu(self) -> None:
        if self._device.kind == "gpu" and (self._device.index or 0) >= self._library.gpus:
            raise BackendError("ERR GPU requested but TF couldn't find CUDA")

    def _session(self, graph: Any) -> Any:
        config = self._tf1.ConfigProto(
            intra_op_parallelism_threads=threads_per_run(self._settings),
            inter_op_parallelism_threads=self._settings.inter_op or 1,
            use_per_session_threads=True,
            allow_soft_placement=True,  # STRING operators have no GPU form; whether there is a GPU was asked before
        )
        if self._device.kind == "cpu":
            config.device_count["GPU"] = 0
        config.gpu_options.allow_growth = True
        return self._tf1.Session(graph=graph, config=config)

    def _fill(self, session: Any, bundle: tf_saved_model.Bundle, folder: Path) -> None:
        try:
            tf_saved_model.fill(session, bundle, folder)
        except Exception as error:
            raise BackendError(sentence(error)) from None


def placeholder(operations: Mapping[str, Any], name: str) -> Any:
    if name not in operations or operations[name].type != "Placeholder":
        raise BackendError(f'ERR Input node named "{name}" not found in TF graph.')
    return operations[name].outputs[0]


def output(operations: Mapping[str, Any], name: str) -> Any:
    if name not in operations:
        raise BackendError(f'ERR Output node named "{name}" not found in TF graph')
    if not operations[name].outputs:
        raise BackendError(f'ERR Output node named "{name}" has no outputs')
    return operations[name].outputs[0]


def invalid(blob: bytes) -> str:
    return refusal(blob, "TF") or "Invalid GraphDef"


def sentence(error: Exception) -> str:
    """TensorFlow's own words on one line, without the name of this machine or advice to the programmer."""
    text = getattr(error, "message", None) or str(error.args[0] if error.args else error)
    return re.sub(r"\s+", " ", text.split(" in binary running on ")[0]).strip()


# ---- runs --------------------------------------------------------------------------------------------------------------------------------


class TensorFlowSession:
    """An open graph. run() may be called by any number of threads at once."""

    def __init__(self, library: Library, loaded: Loaded, settings: Settings) -> None:
        self.inputs: Sequence[str] = [name for name, _ in loaded.feeds]
        self.outputs: Sequence[str] = [name for name, _ in loaded.fetches]
        self._session, self._error = loaded.session, library.error
        self._feeds = [tensor for _, tensor in loaded.feeds]
        fetches = [tensor for _, tensor in loaded.fetches]
        self._refusal = next(filter(None, map(unnamed_dtype, fetches)), None)
        options = library.callable_options(feed=[tensor.name for tensor in self._feeds], fetch=[tensor.name for tensor in fetches])
        options.run_options.inter_op_thread_pool = 0 if settings.inter_op > 1 else -1
        try:
            self._call = self._session._make_callable_from_options(options)
        except library.error as error:
            raise BackendError(sentence(error)) from None

    def run(self, inputs: Sequence[TensorView], n_outputs: int) -> Sequence[Array]:
        """One run of the graph. Raises BackendError with TensorFlow's own text."""
        if len(inputs) != len(self._feeds) or n_outputs == 0 or self._refusal:
            raise BackendError(self._why_not(inputs, n_outputs))
        try:
            outputs = self._call(*[fed(to_array(tensor)) for tensor in inputs])
        except self._error as error:
            raise BackendError(sentence(error)) from None
        return [one if type(one) is np.ndarray else scalar(one) for one in outputs[:n_outputs]]

    def _why_not(self, inputs: Sequence[TensorView], n_outputs: int) -> str:
        if n_outputs == 0:
            return "Must specify at least one target to fetch or execute."
        if len(inputs) < len(self._feeds):
            missing = self._feeds[len(inputs)]
            return f"You must feed a value for placeholder tensor '{missing.op.name}' with dtype {missing.dtype.name}"
        return self._refusal or f"ERR Expected {len(self._feeds)} inputs but got {len(inputs)}"

    def warm_up(self) -> None:
        """Runs once on zeros. The shapes are guessed, so a failure means nothing; what is wrong with the graph shows at the first run."""
        with suppress(Exception):
            if sum(elements(tensor) for tensor in self._feeds) <= WARM_UP_ELEMENTS:
                self._call(*[fed(zeros(tensor)) for tensor in self._feeds])

    def close(self) -> None:
        self._session.close()


def fed(array: Array) -> Array:
    """The array. Strings are walked through by the library with an iterator that has room for 32 dims and writes past it."""
    if array.dtype == object and array.ndim > STRING_DIMS:
        raise BackendError(f"ERR TF takes STRING tensors of at most {STRING_DIMS} dimensions")
    return array


def scalar(value: Any) -> Array:
    """TensorFlow hands out tensors without dimensions as numpy scalars, and a string as bytes."""
    array = np.empty((), dtype=object if isinstance(value, bytes) else value.dtype)
    array[()] = value
    return array


def unnamed_dtype(tensor: Any) -> str | None:
    """Why an output cannot be stored; None when it can. A graph's dtypes are fixed, so this is asked once."""
    dtype = tensor.dtype.base_dtype
    if dtype.name == "string" or (dtype.name not in ("resource", "variant") and np.dtype(dtype.as_numpy_dtype) in DTYPES.values()):
        return None
    return f"ERR TF returned a tensor of type {dtype.name}, which has no RedisAI dtype"


def guessed_shape(tensor: Any) -> list[int]:
    """The tensor's shape, with 1 for what the graph leaves open."""
    sizes = tensor.shape.as_list() if tensor.shape.rank is not None else [1]
    return [1 if size is None else size for size in sizes]


def elements(tensor: Any) -> int:
    return math.prod(guessed_shape(tensor))


def zeros(tensor: Any) -> Array:
    """An array of the tensor's dtype and guessed shape."""
    shape = guessed_shape(tensor)
    return np.full(shape, b"", dtype=object) if tensor.dtype.name == "string" else np.zeros(shape, tensor.dtype.as_numpy_dtype)
