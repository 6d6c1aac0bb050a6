"""Replies as text, the way redis-cli prints them: for a terminal, raw for a pipe, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isfinite
from typing import Any

from .resp import Collection, Failure, Number, Status, Verbatim

ESCAPES = {ord("\\"): b"\\\\", ord('"'): b'\\"', ord("\n"): b"\\n", ord("\r"): b"\\r", ord("\t"): b"\\t", 7: b"\\a", 8: b"\\b"}
#: The bytes redis-cli shows as they are.
PRINTABLE = range(0x20, 0x7F)
#: collection -> sign after the index of each item
SIGNS = {"array": b") ", "hash": b"# ", "set": b"~ ", "push": b") "}


def quoted(data: bytes) -> bytes:
    """Bytes as a quoted string that can be typed back."""
    escaped = b"".join(ESCAPES.get(byte) or (bytes([byte]) if byte in PRINTABLE else b"\\x%02x" % byte) for byte in data)
    return b'"%b"' % escaped


# ---- for a terminal ----------------------------------------------------------------------------------------------------------------


def for_terminal(reply: Any, prefix: bytes = b"") -> bytes:
    """One reply with its closing newline. `prefix` is the indentation of the second and following lines."""
    if isinstance(reply, list):
        return indexed("array", reply, prefix)
    if isinstance(reply, Collection):
        return indexed(reply.kind, reply.items, prefix)
    return scalar(reply) + b"\n"


def scalar(reply: Any) -> bytes:
    match reply:
        case None:
            return b"(nil)"
        case bool():
            return b"(true)" if reply else b"(false)"
        case int():
            return b"(integer) %d" % reply
        case bytes():
            return quoted(reply)
        case Failure(text):
            return b"(error) " + text
        case Number("double", text):
            return b"(double) " + text
        case Number(_, text) | Status(text) | Verbatim(text):
            return text
    raise TypeError(type(reply))


def indexed(kind: str, items: list[Any], prefix: bytes) -> bytes:
    """Numbered lines; an item that is itself a collection starts on its own number's line and is indented below it."""
    if not items:
        return b"(empty %b)\n" % kind.encode()
    step = 2 if kind == "hash" else 1
    width = len(str(len(items) // step))
    inner = prefix + b" " * (width + 2)
    lines = []
    for number, at in enumerate(range(0, len(items), step), 1):
        line = (b"" if number == 1 else prefix) + b"%*d" % (width, number) + SIGNS[kind]
        line += for_terminal(items[at], inner)
        if kind == "hash":
            line = line[:-1] + b" => " + map_value(items[at + 1], inner)
        lines.append(line)
    return b"".join(lines)


def map_value(value: Any, prefix: bytes) -> bytes:
    """A collection of several items under a map's key begins on a line of its own."""
    match value:
        case list() as items:
            count = len(items)
        case Collection(kind, items):
            count = len(items) // (2 if kind == "hash" else 1)
        case _:
            count = 0
    return (b"\n" + prefix if count > 1 else b"") + for_terminal(value, prefix)


# ---- for a pipe --------------------------------------------------------------------------------------------------------------------


def raw(reply: Any) -> bytes:
    """One reply without its closing newline. An error brings a newline of its own, as redis-cli's does."""
    match reply:
        case None:
            return b""
        case bool() | Status() | Verbatim() | Number():
            return scalar(reply) if isinstance(reply, bool) else reply.text
        case int():
            return b"%d" % reply
        case bytes():
            return reply
        case Failure(text):
            return text + b"\n"
        case list():
            return b"\n".join(map(raw, reply))
        case Collection("hash", items):
            return b"\n".join(raw(key) + b" " + raw(value) for key, value in zip(items[::2], items[1::2], strict=True))
        case Collection(_, items):
            return b"\n".join(map(raw, items))
    raise TypeError(type(reply))


# ---- as JSON -----------------------------------------------------------------------------------------------------------------------


def plain(reply: Any) -> Any:
    """A reply as JSON's own types. Bytes that are not UTF-8 keep their values as \\u0080 to \\u00ff; an error is {"error": text}."""
    match reply:
        case bytes() | Status() | Verbatim():
            return as_text(reply if isinstance(reply, bytes) else reply.text)
        case Failure(text):
            return {"error": as_text(text)}
        case Number("double", text):
            return float(text) if isfinite(float(text)) else as_text(text)  # JSON has no inf and no nan
        case Number(_, text):
            return int(text)
        case list():
            return [plain(item) for item in reply]
        case Collection("hash", items):
            return {str(plain(key)): plain(value) for key, value in zip(items[::2], items[1::2], strict=True)}
        case Collection(_, items):
            return [plain(item) for item in items]
    return reply


def as_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def as_json(reply: Any) -> bytes:
    return json.dumps(plain(reply), ensure_ascii=False).encode() + b"\n"


FORMATS: dict[str, Callable[[Any], bytes]] = {
    "terminal": for_terminal,
    "raw": lambda reply: raw(reply) + b"\n",
    "json": as_json,
}
