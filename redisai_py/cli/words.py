"""A typed line as arguments, with redis-cli's quoting: "..." knows escapes (\\n, \\x41), '...' only \\'."""

from __future__ import annotations

import re

ESCAPED = {"n": b"\n", "r": b"\r", "t": b"\t", "b": b"\b", "a": b"\a"}
WORD = re.compile(r"""\s*(?:"(?P<double>(?:\\.|[^"\\])*)"|'(?P<single>(?:\\'|[^'])*)'|(?P<bare>[^\s"']+))""", re.DOTALL)
ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})|\\(.)", re.DOTALL)


def split(line: str) -> list[bytes]:
    """Raises ValueError for quotes that do not close, or that close in the middle of a word."""
    words, at = [], 0
    line = line.strip()
    while at < len(line):
        found = WORD.match(line, at)
        if not found or (found.end() < len(line) and not line[found.end()].isspace()):
            raise ValueError("Invalid argument(s)")
        words.append(value(found))
        at = found.end()
    return words


def value(found: re.Match[str]) -> bytes:
    if (text := found["double"]) is not None:
        return unescaped(text)
    if (text := found["single"]) is not None:
        return text.replace("\\'", "'").encode()
    return found["bare"].encode()


def unescaped(text: str) -> bytes:
    parts, at = [], 0
    for escape in ESCAPE.finditer(text):
        parts.append(text[at : escape.start()].encode())
        parts.append(bytes.fromhex(escape[1]) if escape[1] else ESCAPED.get(escape[2], escape[2].encode()))
        at = escape.end()
    return b"".join([*parts, text[at:].encode()])
