"""Ways to break bytes, and to break what they hold: protobuf messages, zip archives, words of a program.

A change to random bytes of a model is caught by the first check of its container, so the code behind it is never reached. Here the
container is made right again: the length of each protobuf field around the changed one, the directory and checksums of an archive.
"""

from __future__ import annotations

import io
import random
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

Rng = random.Random
EDGES = [0, 1, 2, 3, 7, 8, 63, 64, 127, 128, 255, 256, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62,
         2**63 - 1, 2**63, 2**64 - 1]  # fmt: skip

# ---- bytes -------------------------------------------------------------------------------------------------------------------------


def _cut(rng: Rng, data: bytearray, other: bytes) -> None:
    del data[rng.randrange(len(data)) :]


def _flip(rng: Rng, data: bytearray, other: bytes) -> None:
    for _ in range(rng.randrange(1, 9)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _drop(rng: Rng, data: bytearray, other: bytes) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 4, 8, 64, 1024))]


def _repeat(rng: Rng, data: bytearray, other: bytes) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.choice((1, 4, 8, 64))] * rng.choice((1, 2, 100))


def _splice(rng: Rng, data: bytearray, other: bytes) -> None:
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other) or 1) :]


def _number(rng: Rng, data: bytearray, other: bytes) -> None:
    """An edge number in 1, 2, 4 or 8 bytes, where numbers of that size stand in files that align them."""
    size = rng.choice((1, 2, 4, 4, 4, 8))
    at = rng.randrange(len(data)) // size * size
    data[at : at + size] = struct.pack("<Q", rng.choice(EDGES))[:size]


def _step(rng: Rng, data: bytearray, other: bytes) -> None:
    at = rng.randrange(len(data))
    data[at] = (data[at] + rng.choice((-4, -1, 1, 4))) & 255


_BYTE_CHANGES = (_cut, _flip, _flip, _drop, _repeat, _splice, _number, _number, _number, _step)


def change_bytes(rng: Rng, data: bytes, other: bytes, changes: Sequence[Callable[[Rng, bytearray, bytes], None]] = _BYTE_CHANGES) -> bytes:
    """One to three changes anywhere."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if changed:
            rng.choice(changes)(rng, changed, other)
    return bytes(changed)


def change_numbers(rng: Rng, data: bytes, other: bytes) -> bytes:
    """Changes that leave everything in its place, for files full of offsets."""
    return change_bytes(rng, data, other, (_number, _number, _step, _step, _flip))


# ---- protobuf ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """`head` is tag and length, `body` what follows; `kids` are the fields of a message, empty for any other field."""

    tag: int
    head: bytes
    body: bytes
    kids: tuple[Field, ...]


Path = tuple[int, ...]


def varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    n = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        n |= (byte & 127) << shift
        if byte < 128:
            return n, at
        shift += 7
    raise ValueError


def fields(data: bytes, depth: int = 0) -> tuple[Field, ...]:
    """The fields of a message. What has a length and reads as a message is taken for one. Raises ValueError or IndexError."""
    found, at = [], 0
    while at < len(data):
        start = at
        tag, at = _read_varint(data, at)
        body_at = at
        match tag & 7:
            case 0:
                _, at = _read_varint(data, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                size, body_at = _read_varint(data, at)
                at = body_at + size
            case _:
                raise ValueError
        if at > len(data) or not 0 < tag >> 3 < 1 << 14:
            raise ValueError
        body, kids = data[body_at:at], ()
        if tag & 7 == 2 and depth < 16:
            try:
                kids = fields(body, depth + 1)
            except (ValueError, IndexError):
                kids = ()
        found.append(Field(tag, data[start:body_at], body, kids))
    return tuple(found)


def _paths(kids: tuple[Field, ...], above: Path = ()) -> list[Path]:
    return [path for i, kid in enumerate(kids) for path in [(*above, i), *_paths(kid.kids, (*above, i))]]


@cache
def tree(data: bytes) -> tuple[tuple[Field, ...], list[Path]]:
    """A message and the way to each of its fields."""
    kids = fields(data)
    return kids, _paths(kids)


def _edited(kids: tuple[Field, ...], path: Path, change: Callable[[Field], bytes]) -> bytes:
    parts = [kid.head + kid.body for kid in kids]
    kid = kids[path[0]]
    if len(path) == 1:
        parts[path[0]] = change(kid)
    else:
        body = _edited(kid.kids, path[1:], change)
        parts[path[0]] = varint(kid.tag) + varint(len(body)) + body
    return b"".join(parts)


def _field_at(kids: tuple[Field, ...], path: Path) -> Field:
    kid = kids[path[0]]
    return _field_at(kid.kids, path[1:]) if path[1:] else kid


def _written(tag: int, body: bytes) -> bytes:
    return varint(tag) + (varint(len(body)) if tag & 7 == 2 else b"") + body


def change_protobuf(rng: Rng, data: bytes, other: bytes) -> bytes:
    """One field of a message, at any depth, forged, dropped, repeated, renumbered or replaced by one of `other`. The lengths are right."""
    kids, paths = tree(data)
    strange, ways = tree(other)
    stranger = _field_at(strange, rng.choice(ways))

    def change(field: Field) -> bytes:
        whole = field.head + field.body
        match rng.randrange(9):
            case 0:
                return b""
            case 1:
                return whole * rng.choice((2, 3, 50))
            case 2:
                return stranger.head + stranger.body
            case 3:
                return _written(field.tag, stranger.body) if stranger.tag & 7 == field.tag & 7 else whole + stranger.head + stranger.body
            case 4:
                return _written(rng.randrange(1, 32) << 3 | field.tag & 7, field.body)
            case _ if field.tag & 7 == 0:
                return _written(field.tag, varint(rng.choice(EDGES)))
            case _:
                return _written(field.tag, change_bytes(rng, field.body, stranger.body)) if field.body else whole

    return _edited(kids, rng.choice(paths), change)


# ---- words -------------------------------------------------------------------------------------------------------------------------

_WORDS = re.compile(rb"\w+|[ \t]+|\n|[^\w\s]+")
STRANGE_WORDS = [b"0", b"-1", b"1e400", b"9223372036854775807", b"9223372036854775808", b"None", b"True", b"[]", b"()", b"{}", b"self",
                 b"torch", b"*", b"**", b"//", b"%", b"@", b"if", b"else", b"for", b"while", b"return", b"break", b"continue", b"pass",
                 b"assert", b"with", b"del", b"raise", b"lambda", b"print", b"int", b"float", b"str", b"List[int]", b"Dict[str, Tensor]",
                 b"Optional[Tensor]", b"Any",
                 b"torch.zeros([2])", b"len", b"range(3)", b"'\\xff'", b'"""', b"#", b":", b"\n    ", b"\n", b"\0", b"\xff"]  # fmt: skip


def change_words(rng: Rng, text: bytes, other: bytes) -> bytes:
    """One to four words or lines of a program dropped, repeated, or replaced by words of another."""
    words, others = _WORDS.findall(text), _WORDS.findall(other) or [b""]
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not words:
            break
        at, n = rng.randrange(len(words)), rng.choice((1, 1, 1, 3, 10))
        match rng.randrange(6):
            case 0:
                del words[at : at + n]
            case 1:
                words[at:at] = words[at : at + n] * rng.choice((1, 1, 2, 50))
            case 2:
                words[at : at + n] = [rng.choice(STRANGE_WORDS)]
            case 3:
                words[at] = rng.choice(others)
            case 4:
                start = rng.randrange(len(others))
                words[at:at] = others[start : start + n]
            case _:
                to = rng.randrange(len(words))
                words[at], words[to] = words[to], words[at]
    return b"".join(words)


# ---- archives ----------------------------------------------------------------------------------------------------------------------


@cache
def members(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as z:
        return {name: z.read(name) for name in z.namelist()}


def change_archive(rng: Rng, archive: bytes, other: bytes, protobuf: str = "") -> bytes:
    """One member changed as what it is, dropped, renamed or replaced; the archive is right. `protobuf` ends the names of messages."""
    parts, strange = dict(members(archive)), members(other)
    name, stranger = rng.choice(list(parts)), rng.choice(list(strange))
    match rng.randrange(12):
        case 0:
            del parts[name]
        case 1:
            parts[name + rng.choice(("x", "/", "/x", "\\", ".py"))] = parts.pop(name)
        case 2:
            parts[name] = strange[stranger]
        case 3:
            parts[stranger] = strange[stranger]
        case _:
            body, foreign = parts[name], strange.get(name, parts[rng.choice(list(parts))])
            change = change_words if name.endswith(".py") else change_protobuf if protobuf and name.endswith(protobuf) else change_bytes
            if body:
                foreign = body if change is change_protobuf else foreign
                parts[name] = change(rng, body, foreign)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for part, body in parts.items():
            z.writestr(zipfile.ZipInfo(part), body)
    return out.getvalue()
