"""One end of a channel: a thread here speaks to a thread there, in turns, and never two threads at one end.

`out` is the memory that this end writes and the other reads, `into` the other way round. Arrays that `receive()` returns look into `into`:
they are good until this end sends again, and whoever keeps them longer copies them.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..tensor import DTYPES, WIRE_NAMES
from . import wire
from .memory import SharedMemory, aligned
from .wire import Garbage, Message, Row

Array = np.ndarray[Any, Any]


class Closed(Exception):
    """The other end is gone."""


class Channel:
    """`grow(channel, bytes)` replaces `out` by larger memory: the two sides differ there."""

    def __init__(self, sock: socket.socket, out: SharedMemory, into: SharedMemory, grow: Callable[[Channel, int], None]) -> None:
        self.socket = sock
        self.out = out
        self.into = into
        self.number = 0  # names it to the helper, set by who opens it
        self.base = 0  # where the next message may write: behind what the other end still reads
        self.end = 0  # where the last message ended
        self._grow = grow
        self._buffer = bytearray(wire.DATAGRAM)

    def send(self, kind: bytes, header: Sequence[Any], tensors: Sequence[Any] = ()) -> None:
        """Sends a message with tensors: arrays, `TensorView`s, buffers of bytes, None.

        Raises Closed, MemoryError, and ValueError for an array whose dtype has no name. Sets nothing when it raises ValueError.
        """
        parts = [_part(tensor) for tensor in tensors]
        while True:
            rows, end = _layout(parts, self.base)
            body = wire.encode(header, rows)
            spilled = len(body) > wire.INLINE
            need = end + len(body) if spilled else end
            if need <= self.out.size:
                break
            self._grow(self, need - self.base)
        for row, part in zip(rows, parts, strict=True):
            if row is not None and part is not None:
                self._write(row, part.source)
        if spilled:
            self.out.map[end : end + len(body)] = body
            kind, body = wire.SPILLED + kind, wire.place(end, len(body))
        self.end = end
        self.post(kind + body)

    def post(self, datagram: bytes, descriptors: Sequence[int] = ()) -> None:
        """Sends a datagram as it is. Raises Closed."""
        try:
            if descriptors:
                socket.send_fds(self.socket, [datagram], descriptors)
            else:
                self.socket.send(datagram)
        except OSError:
            raise Closed from None

    def receive(self) -> Message:
        """Waits for a message. Raises Closed, and Garbage for what is none."""
        buffer = self._buffer
        try:
            length = self.socket.recv_into(buffer)
        except OSError:
            raise Closed from None
        if not length:
            raise Closed
        if buffer[0]:
            return wire.decode(bytes(buffer[:1]), buffer[1:length], self.into.size)
        if length < 2:
            raise Garbage("an empty message")
        offset, size = wire.parse_place(bytes(buffer[2:length]), self.into.size)
        return wire.decode(bytes(buffer[1:2]), bytearray(self.into.map[offset : offset + size]), self.into.size)

    def array(self, row: Row | None) -> Array | None:
        """The array of a row of the last message; numeric ones look into the shared memory. Raises Garbage."""
        if row is None:
            return None
        if row.dtype == "STRING":
            return wire.strings_from(self.into.map[row.offset : row.offset + row.nbytes], row)
        return np.ndarray(row.dims, DTYPES[row.dtype], self.into.map, row.offset)

    def bytes_of(self, row: Row | None) -> bytes:
        """A copy of the bytes of a row. Raises Garbage when there is none."""
        if row is None:
            raise Garbage("no bytes")
        return self.into.map[row.offset : row.offset + row.nbytes]

    def close(self) -> None:
        """Ends the other end's wait as well as this one's. Any thread."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def _write(self, row: Row, source: Any) -> None:
        if isinstance(source, np.ndarray):
            np.ndarray(row.dims, source.dtype, self.out.map, row.offset)[...] = source
        else:
            self.out.map[row.offset : row.offset + row.nbytes] = source


class _Part(NamedTuple):
    """A tensor to be sent: an array, or bytes."""

    dtype: str
    dims: tuple[int, ...]
    nbytes: int
    source: Any


def _part(tensor: Any) -> _Part | None:
    if tensor is None:
        return None
    if getattr(tensor, "dtype", "") == "STRING":  # a TensorView
        data = wire.strings_to(tensor.strings())
        return _Part("STRING", tuple(tensor.shape), len(data), data)
    if isinstance(tensor, (bytes, memoryview)):
        return _Part("UINT8", (len(tensor),), len(tensor), tensor)
    array = np.asarray(tensor)
    if array.dtype == object:
        data = wire.strings_to(array.ravel().tolist())
        return _Part("STRING", array.shape, len(data), data)
    name = WIRE_NAMES.get(array.dtype)
    if name is None:
        raise ValueError(f"ERR a tensor of type {array.dtype.char} has no RedisAI dtype")
    return _Part(name, array.shape, array.nbytes, array)


def _layout(parts: Sequence[_Part | None], start: int) -> tuple[list[Row | None], int]:
    """Where each part goes, one behind the other, and where they end."""
    rows: list[Row | None] = []
    for part in parts:
        if part is None:
            rows.append(None)
            continue
        rows.append(Row(part.dtype, part.dims, start, part.nbytes))
        start = aligned(start + part.nbytes)
    return rows, start
