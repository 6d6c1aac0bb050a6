"""What travels between the server and a helper, and the checks that make it safe to read.

A message is one datagram: a byte that says its kind, then JSON of [header, rows]. Each row describes a tensor in the sender's shared
memory: null for none, or [dtype, dims, offset, bytes]. Numeric tensors lie there C-contiguous; STRING tensors as their elements, each
closed by a zero byte. A datagram that would be too long travels in the shared memory as well, and its place in its stead.

Everything here is a pure function of bytes. The reader trusts nothing: not the JSON, no number, no name. JSON, because its reader is a
library that has been attacked for decades, and costs 2 us for a small message.

A reply of redis.execute is JSON with byte strings as text of the code points 0 to 255, and {"error": text} for an error.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from ..tensor import DTYPES

# From the server.
LOAD, OPEN, CLOSE, RUN, CALL, RETURN, TERMINATE = b"L", b"O", b"C", b"R", b"S", b"r", b"T"
# From the helper: answers, and what a run asks of the server.
DONE, FAILED, EXECUTE, MODEL, GROW = b"D", b"F", b"E", b"M", b"G"
# From the server, followed by a datagram that carries a descriptor.
CHANNEL, DOWN, UP = b"c", b"d", b"u"

SPILLED: Final = b"\0"  # before the kind: the rest is the place of the JSON in the shared memory
_PLACE = struct.Struct("<QQ")
INLINE = 32 << 10  # bytes of JSON that a datagram carries
DATAGRAM = INLINE + 64

MAX_DIMS = 64
MAX_TENSORS = 1 << 16
_MOST_ELEMENTS = 1 << 56
_ITEMSIZES = {name: dtype.itemsize for name, dtype in DTYPES.items()}


class Garbage(Exception):
    """The other side sent what makes no sense. `str()` says what, for the log."""


class Row(NamedTuple):
    """A tensor in shared memory, checked: it lies inside, and its bytes are those of its shape."""

    dtype: str
    dims: tuple[int, ...]
    offset: int
    nbytes: int


class Message(NamedTuple):
    kind: bytes
    header: list[Any]
    rows: list[Row | None]


_dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def encode(header: Sequence[Any], rows: Sequence[Row | None] = ()) -> bytes:
    """The JSON of a message."""
    return _dump([header, rows]).encode("utf-8", "surrogatepass")


def place(offset: int, length: int) -> bytes:
    """What stands for JSON that lies in the shared memory."""
    return _PLACE.pack(offset, length)


def parse_place(data: bytes, size: int) -> tuple[int, int]:
    """Offset and length inside `size` bytes. Raises Garbage."""
    if len(data) != _PLACE.size:
        raise Garbage("a place of another length")
    offset, length = _PLACE.unpack(data)
    if offset > size or length > size - offset:
        raise Garbage("a place outside the shared memory")
    return offset, length


def decode(kind: bytes, body: bytes | bytearray, size: int) -> Message:
    """A message whose tensors lie in `size` bytes. Raises Garbage for everything else."""
    try:
        content = json.loads(body.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise Garbage(f"no JSON: {error}") from None
    if not isinstance(content, list) or len(content) != 2 or not all(isinstance(part, list) for part in content):
        raise Garbage("not a header and rows")
    header, rows = content
    if len(rows) > MAX_TENSORS:
        raise Garbage("more tensors than there can be")
    return Message(kind, header, [_row(row, size) for row in rows])


def _row(row: Any, size: int) -> Row | None:
    if row is None:
        return None
    if not isinstance(row, list) or len(row) != 4:
        raise Garbage("not a tensor")
    dtype, dims, offset, nbytes = row
    if not isinstance(dims, list) or len(dims) > MAX_DIMS:
        raise Garbage("not the dims of a tensor")
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in (*dims, offset, nbytes)):
        raise Garbage("a number of a tensor that is none")
    if not isinstance(dtype, str) or (dtype not in _ITEMSIZES and dtype != "STRING"):
        raise Garbage("an unknown dtype")
    if math.prod(dim or 1 for dim in dims) > _MOST_ELEMENTS:  # numpy multiplies before it sees the zero
        raise Garbage("a shape beyond all memory")
    length = math.prod(dims)
    if dtype == "STRING":
        if nbytes < length:
            raise Garbage("fewer bytes than strings")
    elif length * _ITEMSIZES[dtype] != nbytes:
        raise Garbage("bytes that do not fit the shape")
    if offset > size or nbytes > size - offset:
        raise Garbage("a tensor outside the shared memory")
    return Row(dtype, tuple(dims), offset, nbytes)


def strings_from(data: bytes, row: Row) -> np.ndarray[Any, Any]:
    """The object array of a STRING tensor. Raises Garbage when `data` is not exactly its elements."""
    length = math.prod(row.dims)
    parts = data.split(b"\0")
    if len(parts) != length + 1 or parts[-1]:
        raise Garbage("not as many strings as the shape says")
    array = np.empty(length, dtype=object)
    array[:] = parts[:-1]
    return array.reshape(row.dims)


def strings_to(elements: Sequence[Any]) -> bytes:
    """The bytes of a STRING tensor. A zero byte ends an element: what is behind it could never be read back."""
    joined = bytearray()
    for element in elements:
        joined += (element if isinstance(element, bytes) else str(element).encode()).partition(b"\0")[0]
        joined.append(0)
    return bytes(joined)


# ---- words and replies of redis.execute -----------------------------------------------------------------------------------------


class ErrorReply:
    """An error in a reply."""

    __slots__ = ("error_text",)

    def __init__(self, error_text: str) -> None:
        self.error_text = error_text


def words_to(words: Sequence[bytes]) -> list[str]:
    return [word.decode("latin-1") for word in words]


def words_from(words: Any) -> list[bytes]:
    """Byte strings. Raises Garbage."""
    try:
        return [word.encode("latin-1") for word in words]
    except (AttributeError, TypeError, UnicodeEncodeError):
        raise Garbage("not a list of words") from None


def reply_to(reply: Any) -> Any:
    """A reply as JSON."""
    if isinstance(reply, bytes):
        return reply.decode("latin-1")
    if isinstance(reply, list):
        return [reply_to(item) for item in reply]
    if (text := getattr(reply, "error_text", None)) is not None:
        return {"error": text}
    return reply


def reply_from(reply: Any) -> Any:
    """A reply out of JSON, as `scripts.session.ScriptHost.execute` returns it."""
    if isinstance(reply, str):
        return reply.encode("latin-1")
    if isinstance(reply, list):
        return [reply_from(item) for item in reply]
    if isinstance(reply, dict):
        return ErrorReply(reply["error"])
    return reply


def text_of(value: Any) -> str:
    """A text for a client or the log. Raises Garbage."""
    if not isinstance(value, str):
        raise Garbage("not a text")
    return value


def number_of(value: Any) -> int:
    """A number that C can hold. Raises Garbage."""
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise Garbage("not a number")
    return value


def names_of(value: Any) -> tuple[str, ...]:
    """A list of names. Raises Garbage."""
    if not isinstance(value, list):
        raise Garbage("not a list of names")
    return tuple(text_of(name) for name in value)
