"""The wire protocol (RESP2 and RESP3) with nothing taken away: `redisai cli` must tell +OK from $2 OK, which client libraries do not.

Values come back as Python's own where those say it all (int, bytes, None, bool, list), and as the small types below where they do not.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Argument = bytes | str | int | float


@dataclass(frozen=True)
class Status:
    text: bytes


@dataclass(frozen=True)
class Failure:
    """An error reply: a value like any other, because it may stand inside an array."""

    text: bytes


@dataclass(frozen=True)
class Number:
    """A RESP3 double or big number, as written by the server."""

    kind: str  # "double" or "big"
    text: bytes


@dataclass(frozen=True)
class Verbatim:
    text: bytes


@dataclass(frozen=True)
class Collection:
    """A RESP3 map (keys and values in turn), set or push message."""

    kind: str  # "hash", "set" or "push"
    items: list[Any]


class ProtocolError(ConnectionError):
    """The other side does not speak the protocol."""


def encode(arguments: Sequence[Argument]) -> bytes:
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


class Connection:
    """A socket that speaks the protocol. Methods raise OSError (ConnectionError, TimeoutError) when the connection is gone."""

    def __init__(self, host: str = "127.0.0.1", port: int = 6379, unix: str | None = None, timeout: float | None = None):
        if unix is not None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(timeout)
            self._socket.connect(unix)
        else:
            self._socket = socket.create_connection((host, port), timeout)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def call(self, *arguments: Argument) -> Any:
        """Sends one command and reads one reply."""
        self._socket.sendall(encode(arguments))
        return self.read()

    def read(self) -> Any:
        """The next reply, whole. Attributes (RESP3 |) are read and dropped."""
        line = self._line()
        try:
            reader = READERS[line[:1]]
        except KeyError:
            raise ProtocolError(f"protocol error, got {line[:1]!r} as reply type byte") from None
        return reader(self, line[1:])

    def _line(self) -> bytes:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("Server closed the connection")
        return line[:-2]

    def _bytes(self, size: int) -> bytes:
        data = self._file.read(size + 2)
        if len(data) < size + 2:
            raise ConnectionResetError("Server closed the connection")
        return data[:-2]

    def _bulk(self, size: bytes) -> bytes | None:
        return None if size == b"-1" else self._bytes(int(size))

    def _items(self, count: int) -> list[Any]:
        return [self.read() for _ in range(count)]

    def _array(self, count: bytes) -> list[Any] | None:
        return None if count == b"-1" else self._items(int(count))

    def _attribute(self, count: bytes) -> Any:
        self._items(2 * int(count))
        return self.read()


READERS: dict[bytes, Callable[[Connection, bytes], Any]] = {
    b"+": lambda _, rest: Status(rest),
    b"-": lambda _, rest: Failure(rest),
    b":": lambda _, rest: int(rest),
    b"$": Connection._bulk,
    b"*": Connection._array,
    b"_": lambda _, rest: None,
    b"#": lambda _, rest: rest == b"t",
    b",": lambda _, rest: Number("double", rest),
    b"(": lambda _, rest: Number("big", rest),
    b"!": lambda connection, rest: Failure(connection._bytes(int(rest))),
    b"=": lambda connection, rest: Verbatim(connection._bytes(int(rest))[4:]),
    b"%": lambda connection, rest: Collection("hash", connection._items(2 * int(rest))),
    b"~": lambda connection, rest: Collection("set", connection._items(int(rest))),
    b">": lambda connection, rest: Collection("push", connection._items(int(rest))),
    b"|": Connection._attribute,
}
