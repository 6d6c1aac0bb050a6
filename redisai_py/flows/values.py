"""Values between Python and Redis: arguments of commands, replies, what a flow returns, and what an exception looks like to a client.

Text is UTF-8. A byte that is none becomes a surrogate (PEP 383), so a value is always `str` and nothing is lost:
`text.encode("utf-8", "surrogateescape")` gives the bytes back, and so does sending it in a command.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: file name of a source in tracebacks begins so
FILE = "<flow "
_PACKAGE = str(Path(__file__).parents[1])


class GearsError(Exception):
    """What the functions of flows raise: `gears.error`."""


GearsError.__name__ = GearsError.__qualname__ = "error"
GearsError.__module__ = "gears"


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def bytes_of(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that never were bytes
        return text.encode("utf-8", "backslashreplace")


def word(value: Any) -> bytes:
    """One argument of a command. Raises GearsError for None, which has no form as one."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if value is None:
        raise GearsError("None cannot be sent to Redis")
    return bytes_of(str(value))


def words(values: Iterable[Any]) -> list[bytes]:
    """The arguments of a command; a list or tuple among them stands for its items."""
    flat: list[bytes] = []
    for value in values:
        flat.extend(map(word, value) if isinstance(value, list | tuple) else (word(value),))
    return flat


def reply_value(reply: Any) -> Any:
    """A reply as a flow sees it: str, int, float, None, lists. Raises GearsError for an error; one inside a list becomes an item."""
    value = _reply_item(reply)
    if isinstance(value, GearsError):
        raise value
    return value


def _reply_item(reply: Any) -> Any:
    if isinstance(reply, bytes):
        return text_of(reply)
    if isinstance(reply, list):
        return [_reply_item(item) for item in reply]
    text = getattr(reply, "error_text", None)
    return reply if text is None else GearsError(text)


# ---- what a flow returns ----------------------------------------------------------------------------------------------------------------


def answer(value: Any, as_text: bool) -> Any:
    """One result as a client reads it. `as_text` (convertToStr): `str(value)`; else numbers stay numbers and lists become arrays.

    A str that begins with `+` or `-` is a status or an error. An exception that was returned is its text.
    """
    if isinstance(value, str):
        return (value[0], value[1:]) if value[:1] in ("+", "-") else bytes_of(value)
    if not as_text:
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        if isinstance(value, bytes | bytearray):
            return bytes(value)
        if isinstance(value, list | tuple):
            return [answer(item, False) for item in value]
    return bytes_of(str(value))


def failure(error: BaseException) -> str:
    """The line that a client reads: Python's traceback, without the frames of this package, and the message."""
    told = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = told
    while part is not None:
        part.stack[:] = [frame for frame in part.stack if not frame.filename.startswith(_PACKAGE)]
        part = part.__cause__ or part.__context__
    return "ERR " + "".join(told.format()).strip()


def safe_failure(error: BaseException) -> str:
    """The same for an exception whose own text raises."""
    try:
        return failure(error)
    except Exception:
        return f"ERR {type(error).__name__}"
