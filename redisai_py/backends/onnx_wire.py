"""Reads an ONNX model's protobuf without ONNX: to refuse external data before ONNX Runtime sees the model, and to know its sizes.

A tensor of an ONNX model may live in another file. Given a model as bytes, ONNX Runtime looks for that file below the working directory of
the process, which is where Redis keeps dump.rdb: a stored model could read it. So `survey()` walks every message that can hold a tensor
(initializers, sparse ones, attributes, subgraphs, function bodies, training graphs) and refuses any mark of external data.

1. Protobuf merges repeated occurrences of one field and the last of two scalars wins, so every occurrence counts, in any order.
2. What this reader cannot follow is refused, never skipped: bad lengths, groups, nesting deeper than protobuf allows. It may refuse what
   ONNX Runtime would read; never the other way round.
3. The generated classes of the onnx package would do the walk in three lines, but copy every weight and are not needed otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod

EXTERNAL_DATA = "Initializer tensors with external data is not allowed."

#: message -> field number -> the message in that field. Only what can lead to a tensor.
_INNER: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_DEPTH = 100  # protobuf's own limit

#: TensorProto.DataType -> bytes per element in memory. Four-bit types are rounded up; a string is an empty std::string.
_ELEMENT = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 8: 32, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 16, 16: 2}

# Lists of numbers in attributes are not packed, and a tree ensemble has millions of them: leap over a run in one step.
_RUNS = {
    0x3D: re.compile(rb"(?s:\x3d.{4})++"),  # AttributeProto.floats
    0x40: re.compile(rb"(?:\x40[\x80-\xff]{0,9}[\x00-\x7f])++"),  # AttributeProto.ints
}


class WireError(ValueError):
    """The bytes are not a protobuf message this reader follows."""


class ExternalDataError(ValueError):
    """A tensor of the model lives outside the model."""


@dataclass
class Survey:
    """What an ONNX model is made of, as far as memory is concerned."""

    weights: list[int] = field(default_factory=list)  # bytes of each tensor stored in the model, at any depth
    values: int = 0  # outputs of the nodes of the main graph and of function bodies
    operators: set[str] = field(default_factory=set)  # of all nodes, at any depth


def survey(blob: bytes) -> Survey:
    """Walks the model. Raises ExternalDataError for external data anywhere, WireError for bytes that are no protobuf."""
    found = Survey()
    _walk(blob, 0, len(blob), "model", found, 0)
    return found


def top_level(blob: bytes, limit: int = 64) -> list[tuple[int, int, int, int]]:
    """The first `limit` fields of a message as (field, wire type, start, end of its value). Raises WireError."""
    found: list[tuple[int, int, int, int]] = []
    at = 0
    while at < len(blob) and len(found) < limit:
        tag, at = _varint(blob, at, len(blob))
        start, after = _value(blob, at, len(blob), tag)
        found.append((tag >> 3, tag & 7, start, after))
        at = after
    return found


def _walk(blob: bytes, at: int, end: int, message: str, found: Survey, depth: int) -> None:
    if depth > _DEPTH:
        raise WireError("nested too deeply")
    if message == "tensor":
        found.weights.append(_tensor_bytes(blob, at, end))
        return
    inner = _INNER[message]
    while at < end:
        run = _RUNS.get(blob[at]) if message == "attribute" else None
        leap = run.match(blob, at, end) if run else None
        if leap:
            at = leap.end()
            continue
        tag, at = _varint(blob, at, end)
        start, after = _value(blob, at, end, tag)
        number = tag >> 3
        if tag & 7 == 2:
            if number in inner:
                _walk(blob, start, after, inner[number], found, depth + 1)
            elif message == "node" and number == 2:
                found.values += depth == 2  # model, graph or function, node
            elif message == "node" and number == 4:
                found.operators.add(blob[start:after].decode(errors="replace"))
        at = after


def _tensor_bytes(blob: bytes, at: int, end: int) -> int:
    """Bytes of one tensor in memory, from its shape and type. Raises ExternalDataError when the data is elsewhere."""
    sizes: list[int] = []
    element = 0
    while at < end:
        tag, at = _varint(blob, at, end)
        start, after = _value(blob, at, end, tag)
        number, wire = tag >> 3, tag & 7
        if (number == 13 and wire == 2) or (number == 14 and wire == 0 and _varint(blob, at, end)[0]):
            raise ExternalDataError(EXTERNAL_DATA)
        if number == 1:
            sizes += _varints(blob, start, after)
        elif number == 2 and wire == 0:
            element = _ELEMENT.get(_varint(blob, at, end)[0], 1)
        at = after
    return prod(sizes) * element if all(size < 1 << 63 for size in sizes) else 0


def _varints(blob: bytes, at: int, end: int) -> list[int]:
    found: list[int] = []
    while at < end:
        value, at = _varint(blob, at, end)
        found.append(value)
    return found


def _varint(blob: bytes, at: int, end: int) -> tuple[int, int]:
    """A base-128 number and the position after it; ten bytes at most, cut to 64 bits like protobuf's."""
    value = shift = 0
    for position in range(at, min(end, at + 10)):
        byte = blob[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position + 1
        shift += 7
    raise WireError("a number runs past the end")


def _value(blob: bytes, at: int, end: int, tag: int) -> tuple[int, int]:
    """Where the value of a field starts and ends. Raises WireError for field 0, for groups and for values that do not fit."""
    wire = tag & 7
    if tag >> 3 == 0 or tag >> 32:
        raise WireError("no such field")
    if wire == 0:
        return at, _varint(blob, at, end)[1]
    if wire == 2:
        length, at = _varint(blob, at, end)
        after = at + length
    elif wire in (1, 5):
        after = at + (8 if wire == 1 else 4)
    else:
        raise WireError("groups are not used by ONNX")
    if after > end:
        raise WireError("a value runs past the end")
    return at, after
