"""Tensors that stay in a GPU's memory from one op of a DAG to the next.

The shim knows such a tensor by a number, its dtype and its shape; the data is here. Only slots that ops of one GPU's queue alone read
are kept (plan.c), so nobody ever asks for their bytes. When the shim drops the last reference, at the latest when the command ends, it
notes the number, and the next tensor that is kept lets go of it.
"""

from __future__ import annotations

import itertools
from typing import Any

from .._shim import Shim


class Residents:
    """The table; see `backends.base.ResidentTable`. Used by workers of several devices at once: each operation is atomic under the GIL."""

    def __init__(self, shim: Shim) -> None:
        self._released = shim.released
        self._tensors: dict[int, Any] = {}
        self._numbers = itertools.count(1)

    def __getitem__(self, number: int) -> Any:
        return self._tensors[number]

    def __len__(self) -> int:
        return len(self._tensors)

    def put(self, tensor: Any, dtype: str, shape: tuple[int, ...]) -> tuple[int, str, tuple[int, ...]]:
        self.sweep()
        number = next(self._numbers)
        self._tensors[number] = tensor
        return number, dtype, shape

    def sweep(self) -> None:
        """Lets go of what nobody refers to any more."""
        for number in self._released():
            self._tensors.pop(number, None)
