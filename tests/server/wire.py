"""A client that hides nothing: it sends arguments as they are and returns replies as they came.

redis-py takes `ERR ` off an error, decodes fields and retries; tests that compare exact text or count replies use this instead.
"""

from __future__ import annotations

import re
import socket
from typing import Any, NamedTuple


class Error(NamedTuple):
    """An error reply: the whole line, without its `-`."""

    text: str


class Status(NamedTuple):
    """A simple string: `+OK`."""

    text: str


class Double(float):
    """A RESP3 double (`,0.1`); in RESP2 the server sends a bulk string instead."""


class Push(list[Any]):
    """A message nobody asked for (`>`)."""


OK = Status("OK")
QUEUED = Status("QUEUED")


def encode(argument: bytes | str | int | float) -> bytes:
    data = argument if isinstance(argument, bytes) else str(argument).encode()
    return b"$%d\r\n%s\r\n" % (len(data), data)


class Wire:
    """One connection. Use as a context manager, or `close()` it."""

    def __init__(self, port: int, host: str = "127.0.0.1", resp: int = 2, timeout: float = 60) -> None:
        self.socket = socket.create_connection((host, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = self.socket.makefile("rb")
        if resp != 2:
            self("HELLO", resp)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        self.reader.close()
        self.socket.close()

    def send(self, *arguments: bytes | str | int | float) -> None:
        self.socket.sendall(b"*%d\r\n" % len(arguments) + b"".join(map(encode, arguments)))

    def read(self) -> Any:
        line = self.reader.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b"+":
                return Status(rest.decode())
            case b"-":
                return Error(rest.decode(errors="surrogateescape"))  # some errors quote what was sent
            case b":":
                return int(rest)
            case b",":
                return Double(rest.decode())
            case b"_":
                return None
            case b"#":
                return rest == b"t"
            case b"$":
                return None if rest == b"-1" else self.reader.read(int(rest) + 2)[:-2]
            case b"*" | b"~":
                return None if rest == b"-1" else [self.read() for _ in range(int(rest))]
            case b">":
                return Push(self.read() for _ in range(int(rest)))
            case b"%":
                return {self.read(): self.read() for _ in range(int(rest))}
        raise ValueError(f"not a reply: {line!r}")

    def __call__(self, *arguments: bytes | str | int | float) -> Any:
        """Sends one command and returns its one reply."""
        self.send(*arguments)
        return self.read()

    def arity(self, command: str) -> Error:
        """What the server says to a wrong number of arguments: from 7.0 with the name as registered, before with the client's spelling."""
        version = re.search(rb"redis_version:(\d+)", self("INFO", "server"))
        major = int(version[1]) if version else 0
        return Error(f"ERR wrong number of arguments for '{command.lower() if major >= 7 else command}' command")

    def only_reply(self, *arguments: bytes | str | int | float) -> Any:
        """The same, and fails when the command sends more than one reply."""
        self.send(*arguments)
        self.send("PING", "last")
        reply = self.read()
        assert self.read() == b"last", "a command sent more than one reply"
        return reply
