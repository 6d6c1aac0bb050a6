"""Tensors between C and the libraries: the dtype table and the two conversions every backend needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .backends.base import TensorView
from .errors import BackendError

#: wire name -> numpy dtype. STRING has no fixed-width numpy form and is absent on purpose.
DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "DOUBLE": np.dtype(np.float64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "BOOL": np.dtype(np.bool_),
}
#: numpy dtype -> wire name
WIRE_NAMES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items()}
_KNOWN = frozenset(WIRE_NAMES)


def to_array(tensor: TensorView) -> np.ndarray[Any, Any]:
    """A tensor as a numpy array: a view for numeric dtypes, an object array of bytes for STRING."""
    if tensor.dtype == "STRING":
        array = np.empty(int(np.prod(tensor.shape, dtype=np.int64)), dtype=object)
        array[:] = tensor.strings()
        return array.reshape(tensor.shape)
    return np.asarray(tensor)


def check_outputs(outputs: Sequence[Any], where: str) -> Sequence[Any]:
    """Refuses outputs whose dtype has no name on the wire (half, complex, uint32 ...); returns them otherwise."""
    for output in outputs:
        if output is not None and output.dtype not in _KNOWN and output.dtype != object:
            raise BackendError(f"ERR {where} returned a tensor of type {output.dtype}, which has no RedisAI dtype")
    return outputs


class ArrayTensor:
    """A numpy array dressed as a `TensorView`: what a script hands to a model.

    Numeric arrays must be C-contiguous; an object array of bytes is a STRING tensor.
    """

    __slots__ = ("array", "dtype", "nbytes", "shape")

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.dtype = "STRING" if array.dtype == object else WIRE_NAMES[array.dtype]
        self.shape: tuple[int, ...] = array.shape
        self.nbytes: int = array.nbytes

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return self.array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def strings(self) -> list[bytes]:
        return [item if isinstance(item, bytes) else str(item).encode() for item in self.array.ravel()]
