"""Stand-ins for what C gives the Python half, so that backends can be driven without a server.

They behave like the real ones where a backend could tell the difference: tensors are read-only to Python, share their memory through
DLPack, and STRING tensors have neither a buffer nor a capsule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .tensor import DTYPES

_WIRE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class FakeTensor:
    """A numeric tensor: `numpy.asarray(t)` is a read-only view, `t.__dlpack__()` a capsule over the same memory.

    `value` is anything numpy reads; `dtype` a name of `redisai_py.tensor.DTYPES`, taken from the array when it is not given.
    The memory is a private copy, reachable as `memory` (an array of the same shape) for a test that wants to see it change.
    Raises KeyError for a dtype that has no name.
    """

    __slots__ = ("_view", "dtype", "memory", "nbytes", "shape")

    def __init__(self, value: Any, dtype: str | None = None) -> None:
        self.memory = np.array(value, dtype=DTYPES[dtype] if dtype else None, order="C")
        self.dtype = dtype or _WIRE_NAMES[self.memory.dtype]
        self.shape: tuple[int, ...] = self.memory.shape
        self.nbytes = self.memory.nbytes
        self._view = self.memory.view()
        self._view.flags.writeable = False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return self._view if dtype is None and not copy else np.array(self._view, dtype=dtype, copy=copy)

    def __dlpack__(self) -> Any:
        return self.memory.__dlpack__()

    def strings(self) -> list[bytes]:
        raise TypeError("only a STRING tensor has strings")


class FakeStrings:
    """A STRING tensor: `elements` in row-major order, each without its closing NUL; `shape` defaults to one dimension."""

    __slots__ = ("_elements", "nbytes", "shape")
    dtype = "STRING"

    def __init__(self, elements: Sequence[bytes], shape: tuple[int, ...] | None = None) -> None:
        self._elements = list(elements)
        self.shape = (len(self._elements),) if shape is None else shape
        self.nbytes = sum(len(element) + 1 for element in self._elements)

    def strings(self) -> list[bytes]:
        return list(self._elements)

    def __dlpack__(self) -> Any:
        raise BufferError("a STRING tensor has no DLPack form")


class FakeMeter:
    """Adds up what a backend reports: `memory` in bytes, `accesses` as a count, `calls` as the list of both."""

    def __init__(self) -> None:
        self.memory = 0
        self.accesses = 0
        self.calls: list[tuple[int, int]] = []

    def record(self, delta_bytes: int, accesses: int) -> None:
        self.memory += delta_bytes
        self.accesses += accesses
        self.calls.append((delta_bytes, accesses))


class ManualClock:
    """A clock turned by hand; called, it says what time it is. Microseconds."""

    def __init__(self, start_us: int = 0) -> None:
        self._now_us = start_us

    def __call__(self) -> int:
        return self._now_us

    def advance(self, us: int) -> None:
        """Moves the clock forward. Raises ValueError for a step back: the real one never goes there."""
        if us < 0:
            raise ValueError("time does not run backwards")
        self._now_us += us
