"""Where records come from: keys, streams, what a function yields. And what a registration may say about it.

A stream's entries stay in the stream until they have been dealt with, so what a stop left over is dealt with after the restart: at least
once, in order, one batch at a time per stream. With trimStream=False the position is kept in a consumer group of the flow's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .server import Server
from .values import GearsError, bytes_of, reply_value, text_of

Record = Any

# ---- keys -------------------------------------------------------------------------------------------------------------------------------


def _pairs(items: list[str]) -> dict[str, str]:
    return dict(zip(items[::2], items[1::2], strict=True))


#: type of a key -> (the command that reads its value, after the name; what makes a record's value of the reply)
_VALUES: dict[str, tuple[Callable[[bytes], tuple[Any, ...]], Callable[[Any], Any]]] = {
    "string": (lambda key: ("GET", key), lambda reply: reply),
    "hash": (lambda key: ("HGETALL", key), _pairs),
    "list": (lambda key: ("LRANGE", key, 0, -1), list),
    "set": (lambda key: ("SMEMBERS", key), list),
    "zset": (lambda key: ("ZRANGE", key, 0, -1, "WITHSCORES"), _pairs),
}
_CORE = {*_VALUES, "stream"}


def key_records(server: Server, keys: Iterable[bytes], event: str | None, types: tuple[str, ...], values: bool) -> Iterator[Record]:
    """{"key", "event", "type", "value"} per key of a wanted type. No value for streams, keys of modules, and with `values` off."""
    for key in keys:
        kind = reply_value(server.read("TYPE", key)) if values or types else None
        kind = kind if kind is None or kind in _CORE else "empty" if kind == "none" else "module"
        if types and kind not in types:
            continue
        value = None
        if values and kind in _VALUES:
            command, make = _VALUES[kind]
            value = make(reply_value(server.read(*command(key))))
        yield {"key": text_of(key), "event": event, "type": kind, "value": value}


def scanned(server: Server, pattern: str, *options: str) -> Iterator[bytes]:
    """Names of keys. A key may come twice, as SCAN has it."""
    cursor: Any = b"0"
    while True:
        reply = server.read("SCAN", cursor, "MATCH", pattern, "COUNT", 1000, *options)
        reply_value(reply)  # raises for an error
        cursor, keys = reply
        yield from keys
        if cursor in (b"0", 0):
            return


# ---- streams ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    id: bytes
    fields: dict[str, str]

    def record(self, key: bytes) -> Record:
        return {"key": text_of(key), "id": text_of(self.id), "value": self.fields}


def entries(server: Server, key: bytes, after: bytes, count: int | None) -> list[Entry]:
    limit = () if count is None else ("COUNT", count)
    rows = server.read("XRANGE", key, b"(" + after if after else b"-", "+", *limit)
    reply_value(rows)
    return [Entry(row_id, _pairs([text_of(part) for part in row])) for row_id, row in rows or ()]


class Position:
    """How far a stream has been dealt with: what is dealt with leaves it, or a consumer group remembers."""

    def __init__(self, server: Server, key: bytes, flow: str, trims: bool) -> None:
        self._server = server
        self._key = key
        self._group = f"ai-flow:{flow}"
        self._trims = trims
        self._after: bytes | None = b"" if trims else None

    def after(self) -> bytes:
        """The id that the next entry comes after; b"" for the first."""
        if self._after is None:
            self._after = self._remembered()
        return self._after

    def _remembered(self) -> bytes:
        if reply_value(self._server.read("TYPE", self._key)) != "stream":
            return b""
        for group in reply_value(self._server.read("XINFO", "GROUPS", self._key)):
            fields = dict(zip(group[::2], group[1::2], strict=True))
            if fields["name"] == self._group:
                return bytes_of(fields["last-delivered-id"])
        self._server.execute("XGROUP", "CREATE", self._key, self._group, "0")
        return b"0-0"

    def done(self, batch: list[Entry]) -> None:
        if self._trims:
            self._server.execute("XDEL", self._key, *(entry.id for entry in batch))
        else:
            self._server.execute("XGROUP", "SETID", self._key, self._group, batch[-1].id)
            self._after = batch[-1].id


class Waiting:
    """Says when entries that are too few for a batch have waited for `duration` seconds (0: for ever)."""

    def __init__(self, batch: int, duration: float) -> None:
        self._batch = batch
        self._duration = duration
        self._first: tuple[bytes, float] | None = None

    def wait(self, batch: list[Entry], now: float) -> float | None:
        """Seconds until they are due: 0 for at once, None for not before others have come."""
        if len(batch) >= self._batch:
            return 0.0
        if not self._duration or not batch:
            return None
        if self._first is None or self._first[0] != batch[0].id:
            self._first = (batch[0].id, now)
        return max(0.0, self._first[1] + self._duration - now)


# ---- readers of run() -------------------------------------------------------------------------------------------------------------------


def _run_keys(server: Server, argument: Any, options: dict[str, Any]) -> Iterator[Record]:
    keys: Iterable[bytes] = [bytes_of(str(argument))] if options.get("noScan") else scanned(server, str(argument))
    return key_records(server, keys, None, (), options.get("readValue", True))


def _run_key_names(server: Server, argument: Any, options: dict[str, Any]) -> Iterator[Record]:
    keys: Iterable[bytes] = [bytes_of(str(argument))] if options.get("noScan") else scanned(server, str(argument))
    return map(text_of, keys)


def _run_streams(server: Server, argument: Any, options: dict[str, Any]) -> Iterator[Record]:
    start = bytes_of(str(options.get("fromId", "0-0")))
    for key in scanned(server, str(argument), "TYPE", "stream"):
        for entry in entries(server, key, start, None):
            yield entry.record(key)


def _run_function(server: Server, argument: Any, options: dict[str, Any]) -> Iterator[Record]:
    if not callable(argument):
        raise GearsError("PythonReader: pass a function that yields records")
    return iter(argument())


@dataclass(frozen=True, slots=True)
class Reader:
    """A reader's options: name -> default. `run` and its options where it can be run, `register` where it can be registered."""

    run: Callable[[Server, Any, dict[str, Any]], Iterator[Record]] | None
    run_options: frozenset[str]
    register: dict[str, Any] | None


#: the readers, by the name that a client gives
READERS: dict[str, Reader] = {
    "CommandReader": Reader(None, frozenset(), {"trigger": None}),
    "KeysReader": Reader(
        _run_keys, frozenset({"noScan", "readValue"}), {"prefix": "*", "eventTypes": None, "keyTypes": None, "readValue": True}
    ),
    "KeysOnlyReader": Reader(_run_key_names, frozenset({"noScan"}), None),
    "StreamReader": Reader(
        _run_streams,
        frozenset({"fromId"}),
        {"prefix": "*", "batch": 1, "duration": 0, "onFailedPolicy": "continue", "onFailedRetryInterval": 1, "trimStream": True},
    ),
    "PythonReader": Reader(_run_function, frozenset(), None),
}
