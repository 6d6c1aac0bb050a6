"""Redis replies and command arguments as TorchScript can carry them, exact to the byte.

Two facts shape this file. Strings cross from TorchScript to Python through a strict UTF-8 decoder, while the way back accepts bytes. And a
nested list of mixed types crosses in neither direction. So arguments arrive with every string that is not plain printable ASCII as a
tuple of byte values (`prelude.py` does that), and a nested array leaves as its leaves and a program from which `prelude.py` builds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

LEAF = -1
"""In a program: the next leaf. Any other number n stands for a list of the last n values."""


class ReplyError:
    """An error reply. The module's own error objects look the same: `error_text` is all that is asked of them."""

    __slots__ = ("error_text",)

    def __init__(self, error_text: str) -> None:
        self.error_text = error_text


class CommandError(RuntimeError):
    """Ends the script that called; the text reaches the client inside TorchScript's traceback."""


class Leaves:
    """An array reply taken apart, in the order in which `prelude.py` puts it together. A flat array needs no program."""

    __slots__ = ("program", "values")

    def __init__(self, reply: Sequence[Any]) -> None:
        self.values: list[Any] = []
        self.program: list[int] = []
        if any(isinstance(item, (list, tuple)) for item in reply):
            self._add(reply)
            self.values.reverse()
        else:
            self.values.extend(map(scalar, reply))

    def _add(self, reply: Any) -> None:
        if isinstance(reply, (list, tuple)):
            for item in reply:
                self._add(item)
            self.program.append(len(reply))
        else:
            self.values.append(scalar(reply))
            self.program.append(LEAF)


_SCALARS = (bytes, int, float, type(None))


def scalar(reply: Any) -> Any:
    """A reply that is no array, as TorchScript takes it. Raises CommandError for an error reply, also inside an array."""
    if isinstance(reply, _SCALARS):
        return reply
    text = getattr(reply, "error_text", None)
    if text is not None:
        raise CommandError(f"Redis command returned an error: {text}")
    raise CommandError("Unexpected internal error")


def _tensor_word(value: Any) -> bytes:
    if value.numel() != 1:
        raise CommandError(f"redis.execute: a tensor argument must have one element, not {value.numel()}")
    return word(value.item())


_WORDS: dict[str, Callable[[Any], bytes]] = {
    "str": lambda value: bytes(value, "utf-8"),
    "tuple": lambda value: bytes(value[0]),  # what the prelude packed: ([byte, byte, ...],)
    "bool": lambda value: b"1" if value else b"0",
    "int": lambda value: b"%d" % value,
    "float": lambda value: bytes(repr(value), "ascii"),
    "Tensor": _tensor_word,
}


def word(value: Any) -> bytes:
    """One argument of a command. Raises CommandError for what has no form as one (None, dictionaries, nested lists)."""
    convert = _WORDS.get(type(value).__name__)
    if convert is None:
        raise CommandError(f"redis.execute: an argument of type {type(value).__name__} cannot be sent to Redis")
    return convert(value)


def words(values: Sequence[Any]) -> list[bytes]:
    """The arguments of a command; a list among them stands for its items."""
    flat: list[bytes] = []
    for value in values:
        if type(value) is list:
            flat.extend(map(word, value))
        else:
            flat.append(word(value))
    return flat
