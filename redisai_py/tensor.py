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
_KNOWN = frozenset(DTYPES.values())


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
