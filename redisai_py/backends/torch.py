"""TORCH: runs TorchScript archives with libtorch, through the torch package.

1. An archive is opened with the C++ reader behind `torch.jit.load`, never with `torch.load`: its unpickler builds tensors and TorchScript
   objects and nothing else. The reader is called directly, because it fills a compilation unit in which every function of the archive
   can then be examined, also those that only an interface leads to. It holds the GIL, one reason why opening has its own thread.
2. Code in an archive runs while it is loaded and may use files, so the archive is examined first (torch_archive.py) and the graphs after.
3. Inputs alias keyspace values. TorchScript may write to its arguments or keep them in the module; the inputs that a graph could do that
   to (torch_graph.py) are copied before each run.
4. Inference mode belongs to a thread and entering it costs more than a small model, so each worker enters it at its first run and never
   leaves.
5. On a machine without CUDA the profiling executor is off. It measured the first two runs of every model and of every new batch size
   (3 to 60 ms each) to feed compilers that are only there for CUDA; the runs after that were not faster (perceptron 8.8 µs against 9.0,
   small CNN 24.2 against 24.5).
6. There is nothing to warm up: TorchScript declares no shapes, and running a model on made-up ones would run its side effects too.
7. Light runs get one thread, long ones all (torch_threads.py).
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..device import Device, parse_device
from ..errors import BackendError
from ..tensor import DTYPES, WIRE_NAMES
from . import formats, torch_archive, torch_graph, torch_ops, torch_threads
from .base import Meter, ModelSpec, ResidentTable, Settings, TensorView
from .threads import on_large_stack, quiet_openmp, threads_per_run
from .torch_threads import Pace, Threads

#: dtypes torch itself could take, but TORCH never did: clients know these lines
_REFUSED_INPUTS = {"UINT16": "Unsupported kUInt bits 16", "STRING": "Unsupported code 7"}

#: output dtypes without a name on the wire, as libtorch calls them
_NOT_IN_DLPACK = {
    "bfloat16": "BFloat16",
    "complex32": "ComplexHalf",
    "complex64": "ComplexFloat",
    "complex128": "ComplexDouble",
    "qint8": "QInt8",
    "quint8": "QUInt8",
    "qint32": "QInt32",
}

# "(sic)": existing clients compare the line.
_UNKNOWN_OUTPUTS = "Erorr while trying to retrive model outputs number: std::exception"


class _Thread(threading.local):
    """What the calling thread is prepared for: "" or a torch device string."""

    place = ""
    inference: Any = None


_thread = _Thread()


class TorchBackend:
    """Opens TorchScript archives. One per process: thread settings and the executor are global to libtorch."""

    name: ClassVar[str] = "TORCH"
    package: ClassVar[str] = "torch"
    batch_mismatch: ClassVar[str] = "ERR Model did not generate the expected batch size"
    version = "NA"

    def __init__(self, torch: Any, threads: Threads) -> None:
        self.torch = torch
        self.threads = threads
        self.wire_dtypes = frozenset(getattr(torch, dtype.name) for dtype in DTYPES.values())

    @classmethod
    def load(cls, settings: Settings, meter: Meter) -> TorchBackend:
        """Imports torch and sets its threads. Raises ImportError. `meter` is not used: torch does not say what it allocates."""
        quiet_openmp()
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.jit")
        import torch

        _set_interop_threads(torch, settings.inter_op or 1)
        if not torch.cuda.is_available() and hasattr(torch._C, "_jit_set_profiling_mode"):
            torch._C._jit_set_profiling_mode(False)
        return cls(torch, torch_threads.of_process(torch, threads_per_run(settings)))

    def open(self, blob: bytes, spec: ModelSpec, settings: Settings) -> TorchSession:
        """Opens an archive whose module has a `forward`. Raises BackendError."""
        place = _place(parse_device(spec.device))
        self._apply_threads(settings)
        if formats.identify(blob) != "torchscript":
            raise BackendError(formats.refusal(blob, self.name) or "PytorchStreamReader failed reading zip archive: not a ZIP archive")
        if place != "cpu" and not self.torch.cuda.is_available():
            raise BackendError("GPU requested but Torch couldn't find CUDA")
        try:
            torch_archive.check(self.torch._C.PyTorchFileReader(io.BytesIO(blob)), blob, settings.allow_file_ops)
            pace = Pace(self.threads, len(blob), fixed=bool(settings.intra_op) or place != "cpu")
            return on_large_stack(lambda: TorchSession(self, self._load(torch_archive.without_debug(blob), place, settings), place, pace))
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(str(error)) from error

    def enter_thread(self, place: str) -> None:
        """Prepares the calling thread for runs on `place`: inference mode for good, and on a GPU a stream of its own."""
        if _thread.inference is None:
            _thread.inference = self.torch.inference_mode()
            _thread.inference.__enter__()
        if place != "cpu":
            cuda, device = self.torch.cuda, self.torch.device(place)
            if device.index is not None:
                cuda.set_device(device)
            cuda.set_stream(cuda.Stream(device))
        _thread.place = place

    def to_array(self, output: Any) -> Any:
        """A tensor as a C-contiguous numpy array that shares its memory where it can. Raises BackendError for a dtype without a wire
        name."""
        if output.dtype not in self.wire_dtypes:
            name = str(output.dtype).removeprefix("torch.")
            if name in _NOT_IN_DLPACK:
                raise BackendError(f"{_NOT_IN_DLPACK[name]} is not supported by dlpack")
            raise BackendError(f"ERR the model returned a tensor of type {name}, which has no RedisAI dtype")
        if output.layout is not self.torch.strided:
            output = output.to_dense()
        return output.detach().cpu().resolve_neg().contiguous().numpy()

    def _apply_threads(self, settings: Settings) -> None:
        """Settings may differ from those of `load()`; only configured ones are worth an error."""
        try:
            if settings.intra_op and self.threads.most != settings.intra_op:
                self.threads.allow(settings.intra_op)
        except RuntimeError:
            raise BackendError("Cannot set number of intra-op threads after parallel work has started") from None
        if settings.inter_op and not _set_interop_threads(self.torch, settings.inter_op):
            raise BackendError("Cannot set number of inter-op threads after parallel work has started")

    def _load(self, blob: bytes, place: str, settings: Settings) -> Any:
        """The archive's `forward`. Raises whatever torch raises, and BackendError for forbidden operators."""
        unit = self.torch._C.CompilationUnit()
        module = self.torch._C.import_ir_module_from_buffer(unit, blob, self.torch.device(place), {}, False)
        functions = unit.get_functions()
        torch_ops.check_graphs((function.graph for function in functions), allow_file_ops=settings.allow_file_ops)
        torch_graph.check_size(functions)
        forward = module._get_method("forward")
        torch_graph.check_chains(forward.inlined_graph)
        return forward


class TorchSession:
    """One `forward`. `inputs` are its parameter names; `outputs` one empty name per tensor it declares to return."""

    def __init__(self, backend: TorchBackend, forward: Any, place: str, pace: Pace) -> None:
        self.inputs = tuple(argument.name for argument in forward.schema.arguments[1:])
        self.outputs = ("",) * _declared_outputs(forward.schema.returns[0].type)
        self._backend = backend
        self._forward = forward
        self._place = place
        self._pace = pace
        self._copied = torch_graph.written_inputs(forward.inlined_graph)
        self._plain = place == "cpu" and not any(self._copied)
        self._tensor = backend.torch.Tensor
        self._wire_dtypes = backend.wire_dtypes
        self._from_dlpack = backend.torch._C._from_dlpack

    def run(self, inputs: Sequence[TensorView], n_outputs: int) -> Sequence[Any]:
        """Runs `forward` on the calling thread. Returns `n_outputs` numpy arrays, which may share memory with the inputs.

        Raises BackendError with libtorch's text.
        """
        if _thread.place != self._place:
            self._backend.enter_thread(self._place)
        try:
            arguments = []
            for tensor in inputs:
                if tensor.dtype in _REFUSED_INPUTS:
                    raise BackendError(_REFUSED_INPUTS[tensor.dtype])
                arguments.append(self._from_dlpack(tensor.__dlpack__()))
            result = self._paced(arguments, inputs) if self._plain else self._run_moved(arguments, inputs)
            if n_outputs == 1 and type(result) is self._tensor and result.dtype in self._wire_dtypes and result.is_contiguous():
                try:
                    return (result.numpy(),)
                except (RuntimeError, TypeError):  # on a GPU, with gradients, or a negated view: the longer way
                    pass
            return [self._backend.to_array(tensor) for tensor in _flatten(result, n_outputs, self._tensor)]
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(str(error)) from error

    def run_resident(self, inputs: Sequence[TensorView], n_outputs: int, keep: Sequence[bool], table: ResidentTable) -> Sequence[Any]:
        """The same between neighbours on one GPU: inputs may be in `table`, outputs that nobody else reads stay there."""
        if _thread.place != self._place:
            self._backend.enter_thread(self._place)
        try:
            arguments = [self._argument(tensor, table) for tensor in inputs]
            tensors = _flatten(self._run_moved(arguments, inputs), n_outputs, self._tensor)
            return [self._resident(t, table) if stays else self._backend.to_array(t) for t, stays in zip(tensors, keep, strict=False)]
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(str(error)) from error

    def _argument(self, tensor: TensorView, table: ResidentTable) -> Any:
        number = getattr(tensor, "resident", 0)
        if number:
            return table[number]
        if tensor.dtype in _REFUSED_INPUTS:
            raise BackendError(_REFUSED_INPUTS[tensor.dtype])
        return self._from_dlpack(tensor.__dlpack__())

    def _resident(self, tensor: Any, table: ResidentTable) -> Any:
        if tensor.dtype not in self._wire_dtypes:
            return self._backend.to_array(tensor)  # raises: such a dtype has no name on the wire
        name = WIRE_NAMES[np.dtype(str(tensor.dtype).removeprefix("torch."))]
        return table.put(tensor, name, tuple(tensor.shape))

    def close(self) -> None:
        """Lets go of the model. A run in progress on another thread keeps it alive until it returns."""
        self._forward = _closed

    def _paced(self, arguments: list[Any], inputs: Sequence[TensorView]) -> Any:
        return self._pace.run(self._forward, arguments, sum([tensor.nbytes for tensor in inputs]))

    def _run_moved(self, arguments: list[Any], inputs: Sequence[TensorView]) -> Any:
        """A run that needs its inputs elsewhere: on the GPU, or in memory it may write to.

        A GPU that is out of memory gets a second try once torch has given back what it keeps for later.
        """
        torch = self._backend.torch
        try:
            return self._paced(self._moved(arguments), inputs)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return self._paced(self._moved(arguments), inputs)

    def _moved(self, arguments: list[Any]) -> list[Any]:
        # More arguments than parameters: forward() says so itself.
        flags = self._copied + (False,) * len(arguments)
        if self._place != "cpu":  # what is on the device already is not moved, so it may be another op's input as well
            return [argument.to(self._place, copy=written) for argument, written in zip(arguments, flags, strict=False)]
        return [argument.clone() if written else argument for argument, written in zip(arguments, flags, strict=False)]


def _place(device: Device) -> str:
    """A torch device string; "cuda" is the thread's current GPU."""
    if device.kind == "cpu":
        return "cpu"
    return "cuda" if device.index is None else f"cuda:{device.index}"


def _set_interop_threads(torch: Any, count: int) -> bool:
    """Whether torch runs `count` operators of one graph at a time; it can be told only once, before its first parallel work."""
    try:
        if torch.get_num_interop_threads() != count:
            torch.set_num_interop_threads(count)
    except RuntimeError:
        return False
    return True


def _declared_outputs(returned: Any) -> int:
    """How many tensors a return type holds at its first level. Raises BackendError for a list of tensors, whose length nobody knows."""
    kind = returned.kind()
    if kind == "ListType" and returned.getElementType().kind() == "TensorType":
        raise BackendError(_UNKNOWN_OUTPUTS)
    if kind == "TupleType":
        return sum(element.kind() == "TensorType" for element in returned.elements())
    return int(kind == "TensorType")


def _flatten(result: Any, n_outputs: int, tensor: type) -> Sequence[Any]:
    """The tensors of a result, one level deep. Raises BackendError for anything else in it, and for another number of them."""
    if n_outputs == 0:
        return ()
    tensors = result if isinstance(result, (tuple, list)) else (result,)
    if not all(isinstance(item, tensor) for item in tensors):
        raise BackendError("Function returned non-tensor valuesforward")  # no blank: so since the first version
    if len(tensors) != n_outputs:
        raise BackendError("Function returned unexpected number of outputs - forward")
    return tensors


def _closed(*arguments: Any) -> Any:
    raise BackendError("ERR the model is closed")
