"""Looks over a TFLite flatbuffer before the library does: what its verifier lets through and its interpreter then stumbles over.

The verifier only proves that every offset lies inside the blob. A model without a graph, an output that is tensor -1 or that no operator
writes, a dense layer without weights, a zero point that its type cannot hold pass it, and the interpreter reads through a null pointer or
out of bounds: the server is gone. Found by flipping bits and overwriting words of small models: 1 mutation in 500 crashed without these
checks (tests/fuzz/results.jsonl counts those that were tried with them). Only the few tables below are read, by their place in TFLite's
schema.
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
TENSOR_SHAPE, TENSOR_TYPE, TENSOR_BUFFER, TENSOR_QUANTIZATION = 0, 1, 2, 4
QUANTIZATION_SCALE, QUANTIZATION_ZERO_POINT, QUANTIZATION_DIMENSION = 2, 3, 6
BUFFER_DATA, BUFFER_OFFSET = 0, 1
OPERATOR_CODE, OPERATOR_INPUTS, OPERATOR_OUTPUTS = 0, 1, 2
CODE_OLD, CODE = 0, 3  # an int8 before there were more than 127 operators

ABSENT = -1  # an operator's optional input; never one of the first two or of those in NEEDS, but in an LSTM without an input gate
LSTMS = {16, 44, 52}
#: how many inputs an operator reads at least: 1 where no row has it
NEEDS = {
    0: {32, 129, 136, 142},  # CUSTOM, CALL_ONCE, HASHTABLE, VAR_HANDLE
    2: {0, 3, 4, 7, 9, 15, 18, 23, 34, 36, 39, 40, 41, 42, 48, 49, 54, 55, 56, 57, 58, 61, 62, 63, 69, 70, 71, 72, 74, 78, 79, 81, 82, 84,
        86, 89, 90, 91, 94, 95, 97, 99, 100, 105, 107, 112, 115, 126, 128, 130},
    3: {10, 27, 37, 38, 60, 64, 65, 67, 96, 102, 123},
    4: {45, 68, 85},
    5: {24, 35},
}  # fmt: skip
LEAST_INPUTS = {code: least for least, codes in NEEDS.items() for code in codes}
#: LOGISTIC, RELU, RELU_N1_TO_1, RELU6, SOFTMAX, TANH, LOG_SOFTMAX: they choose a kernel by their input and write what it computes
ACTIVATIONS = {14, 19, 20, 21, 25, 28, 50}
FLOAT32 = 0
WHILE, ASSIGN_VARIABLE = 119, 144
SIZES = {0: 4, 1: 2, 2: 4, 4: 8, 7: 2, 8: 8, 10: 8, 11: 16, 12: 8, 15: 4, 16: 2}  # bytes of an element by TensorType; others 1 or less
#: what a quantized tensor of a TensorType can hold: UINT8, INT16, INT8, INT4
RANGES = {3: (0, 255), 7: (-32768, 32767), 9: (-128, 127), 17: (-8, 7)}
#: kernels divide scales by each other and shift by the exponent: 1e-38 crashed, 1e-30 did not; models have 1e-6 to 1e3
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-60, 2.0**60


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

    def ints(self, number: int, letter: str = "i") -> tuple[int, ...]:
        """A vector of numbers; `letter` is their type in the struct module."""
        start, length = self._vector(number)
        return struct.unpack_from(f"<{length}{letter}", self.blob, start)

    def table(self, number: int) -> Table | None:
        field = self._field(number)
        return None if field is None else Table(self.blob, field + struct.unpack_from("<I", self.blob, field)[0])

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
    if not all(_fits(tensor, filled) for tensor in tensors) or not all(_refers(one, codes, tensors) for one in operators):
        return False
    constants = (index for index, tensor in enumerate(tensors) if filled and filled[tensor.uint(TENSOR_BUFFER)])
    written = chain.from_iterable(operator.ints(OPERATOR_OUTPUTS) for operator in operators)
    inputs = subgraph.ints(SUBGRAPH_INPUTS)
    return all(0 <= index < len(tensors) for index in inputs) and {*inputs, *constants, *written}.issuperset(
        subgraph.ints(SUBGRAPH_OUTPUTS)
    )


def _fits(tensor: Table, filled: list[bool]) -> bool:
    elements = prod(size for size in tensor.ints(TENSOR_SHAPE) if size > 0)
    buffer = tensor.uint(TENSOR_BUFFER)
    if buffer >= max(1, len(filled)) or elements * SIZES.get(tensor.byte(TENSOR_TYPE), 1) > memory():
        return False
    return _quantized_soundly(tensor, bool(filled) and filled[buffer])


def _quantized_soundly(tensor: Table, constant: bool) -> bool:
    """Kernels make tables and shifts of these numbers and look at none of them. A scale of 0 is that of weights which are all 0."""
    quantization, low_high = tensor.table(TENSOR_QUANTIZATION), RANGES.get(tensor.byte(TENSOR_TYPE))
    if quantization is None or low_high is None:
        return True
    scales, zeros = quantization.ints(QUANTIZATION_SCALE, "f"), quantization.ints(QUANTIZATION_ZERO_POINT, "q")
    if not all(SMALLEST_SCALE < scale < LARGEST_SCALE or (constant and scale == 0) for scale in scales):
        return False
    if not all(low_high[0] <= zero <= low_high[1] for zero in zeros):
        return False
    shape, dimension = tensor.ints(TENSOR_SHAPE), quantization.uint(QUANTIZATION_DIMENSION)
    return len(scales) < 2 or (dimension < len(shape) and len(scales) == shape[dimension] and len(zeros) in (0, 1, len(scales)))


def _refers(operator: Table, codes: list[int], tensors: list[Table]) -> bool:
    index, inputs, outputs = operator.uint(OPERATOR_CODE), operator.ints(OPERATOR_INPUTS), operator.ints(OPERATOR_OUTPUTS)
    least = LEAST_INPUTS.get(codes[index], 1) if index < len(codes) else 0
    if index >= len(codes) or len(inputs) < least:
        return False
    required = inputs[:1] if codes[index] in LSTMS else inputs[: max(2, least)]
    if ABSENT in required or not all(ABSENT <= i < len(tensors) for i in inputs) or not all(0 <= i < len(tensors) for i in outputs):
        return False
    if codes[index] not in ACTIVATIONS or not outputs:
        return True
    return len({tensors[i].byte(TENSOR_TYPE) == FLOAT32 for i in (inputs[0], outputs[0])}) == 1


def memory() -> int:
    """Bytes of memory in this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
