"""Tensors between the server and a script."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..backends.base import ResidentTable, TensorView
from ..errors import BackendError
from ..tensor import DTYPES, WIRE_NAMES

#: inputs refused with the texts of the original, which clients compare
_REFUSED = {"UINT16": "Unsupported kUInt bits 16", "STRING": "Unsupported code 7"}

#: dtypes with a name on the wire
_PLAIN = frozenset(getattr(torch, dtype.name) for dtype in DTYPES.values())

#: dtypes without one and without a numpy form, as libtorch calls them
_NOT_IN_DLPACK = {
    torch.bfloat16: "BFloat16",
    torch.complex32: "ComplexHalf",
    torch.complex64: "ComplexFloat",
    torch.complex128: "ComplexDouble",
    torch.qint8: "QInt8",
    torch.quint8: "QUInt8",
    torch.qint32: "QInt32",
}

_from_dlpack = torch._C._from_dlpack


def to_tensor(view: TensorView, device: torch.device | None, copy: bool, table: ResidentTable | None = None) -> torch.Tensor:
    """An input as a tensor on `device` (None: the CPU), with memory of its own when `copy` is set. It may lie in `table` already.

    Raises BackendError.
    """
    number = getattr(view, "resident", 0) if table is not None else 0
    if table is not None and number:
        resident: torch.Tensor = table[number]
        return resident.clone() if copy else resident
    if view.dtype in _REFUSED:
        raise BackendError(_REFUSED[view.dtype])
    tensor: torch.Tensor = _from_dlpack(view.__dlpack__())
    if device is not None:
        return tensor.to(device)
    return tensor.clone() if copy else tensor


def to_array(tensor: torch.Tensor, where: str) -> np.ndarray[Any, Any]:
    """A tensor as a C-contiguous array on the CPU, sharing memory where it can. Raises BackendError for a dtype without a wire name."""
    if tensor.dtype not in _PLAIN:
        raise BackendError(_refusal(tensor.dtype, where))
    try:
        array: np.ndarray[Any, Any] = tensor.contiguous().numpy()
    except (RuntimeError, TypeError):  # on a GPU, sparse, or a negated view: the longer way
        array = tensor.to_dense().contiguous().numpy(force=True)
    return array


def to_resident(tensor: torch.Tensor, where: str, table: ResidentTable) -> Any:
    """A tensor left on its device for the next op of a DAG. Raises BackendError for a dtype without a wire name."""
    if tensor.dtype not in _PLAIN or tensor.layout is not torch.strided:
        return to_array(tensor, where)
    name = WIRE_NAMES[np.dtype(str(tensor.dtype).removeprefix("torch."))]
    return table.put(tensor, name, tuple(tensor.shape))


def _refusal(dtype: torch.dtype, where: str) -> str:
    if dtype in _NOT_IN_DLPACK:
        return f"{_NOT_IN_DLPACK[dtype]} is not supported by dlpack"
    return f"ERR {where} returned a tensor of type {str(dtype).removeprefix('torch.')}, which has no RedisAI dtype"


def from_array(array: Any, device: torch.device | None, model: str) -> torch.Tensor:
    """An output of a model as a tensor on `device`. Raises BackendError for one that torch has no tensor for."""
    if array is None:
        raise BackendError(f"ERR model {model} has an output that is no tensor")
    if array.dtype == object:
        raise BackendError(f"ERR model {model} returned strings, which TorchScript has no tensors for")
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor if device is None else tensor.to(device)
