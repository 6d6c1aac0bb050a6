"""A host for scripts under test: a small Redis in Python, with the replies that the module's C code hands to scripts.

Commands are rows of a table and keep to what Redis answers, so that the same script gives the same result on a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from redisai_py.backends.base import Settings
from redisai_py.errors import BackendError
from redisai_py.scripts import ReplyError, ScriptSession
from redisai_py.testing import FakeStrings, FakeTensor

WRONGTYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
ENTRY = "def {}(tensors: List[Tensor], keys: List[str], args: List[str]):\n"


class FakeHost:
    """Keys, commands and models. `calls` records every command; `replies` answers a command with a fixed reply."""

    def __init__(self, **replies: Any) -> None:
        self.keys: dict[bytes, Any] = {}
        self.models: dict[bytes, Callable[..., list[Any]]] = {}
        self.calls: list[list[bytes]] = []
        self.replies = {name.upper().encode(): reply for name, reply in replies.items()}

    def execute(self, argv: list[bytes]) -> Any:
        assert all(type(word) is bytes for word in argv)
        self.calls.append(argv)
        name = argv[0].upper()
        if name in self.replies:
            reply = self.replies[name]
            return reply(argv) if callable(reply) else reply
        command = _COMMANDS.get(name)
        if command is None:
            return ReplyError("No such file or directory")
        least, function = command
        if len(argv) < least:
            return ReplyError("Invalid argument")
        try:
            return function(self.keys, *argv[1:])
        except TypeError:
            return ReplyError(WRONGTYPE)

    def model_execute(self, key: bytes, inputs: list[Any], n_outputs: int) -> list[Any]:
        if key not in self.models:
            raise BackendError("ERR model key is empty")
        return self.models[key](*inputs)


def _typed(keys: dict[bytes, Any], key: bytes, kind: type) -> Any:
    """The value of a key, or an empty one that is not stored. Raises TypeError for another kind of value."""
    value = keys.get(key, kind())
    if not isinstance(value, kind):
        raise TypeError
    return value


def _set(keys: dict[bytes, Any], key: bytes, value: bytes) -> Any:
    keys[key] = value
    return b"OK"


def _get(keys: dict[bytes, Any], key: bytes) -> Any:
    return _typed(keys, key, bytes) if key in keys else None


def _incr(keys: dict[bytes, Any], key: bytes, by: bytes = b"1") -> int:
    keys[key] = b"%d" % (int(_typed(keys, key, bytes) or b"0") + int(by))
    return int(keys[key])


def _del(keys: dict[bytes, Any], *names: bytes) -> int:
    return sum(keys.pop(name, None) is not None for name in names)


def _hset(keys: dict[bytes, Any], key: bytes, *pairs: bytes) -> int:
    value = keys.setdefault(key, _typed(keys, key, dict))
    before = len(value)
    value.update(zip(pairs[::2], pairs[1::2], strict=True))
    return len(value) - before


def _rpush(keys: dict[bytes, Any], key: bytes, *items: bytes) -> int:
    value = keys.setdefault(key, _typed(keys, key, list))
    value.extend(items)
    return len(value)


def _lrange(keys: dict[bytes, Any], key: bytes, start: bytes, stop: bytes) -> list[bytes]:
    value: list[bytes] = _typed(keys, key, list)
    return value[int(start) : (int(stop) + 1) or None]


#: name -> (least number of words, function of the keyspace and the arguments)
_COMMANDS: dict[bytes, tuple[int, Callable[..., Any]]] = {
    b"PING": (1, lambda keys: b"PONG"),
    b"ECHO": (2, lambda keys, text: text),
    b"SET": (3, _set),
    b"GET": (2, _get),
    b"MGET": (2, lambda keys, *names: [_get(keys, name) for name in names]),
    b"DEL": (2, _del),
    b"INCR": (2, _incr),
    b"INCRBY": (3, _incr),
    b"HSET": (4, _hset),
    b"HGET": (3, lambda keys, key, field: _typed(keys, key, dict).get(field)),
    b"HMGET": (3, lambda keys, key, *fields: [_typed(keys, key, dict).get(field) for field in fields]),
    b"HVALS": (2, lambda keys, key: list(_typed(keys, key, dict).values())),
    b"HGETALL": (2, lambda keys, key: [word for pair in _typed(keys, key, dict).items() for word in pair]),
    b"RPUSH": (3, _rpush),
    b"LRANGE": (4, _lrange),
    b"LLEN": (2, lambda keys, key: len(_typed(keys, key, list))),
}


@pytest.fixture(autouse=True)
def thread_as_before() -> Iterator[None]:
    """Scripts turn gradients off on their thread for good; here it is the thread of all tests. Works where it is imported."""
    yield
    from redisai_py.scripts.compile import _thread

    _thread.inference = None


def tensor(value: Any, dtype: str = "FLOAT") -> FakeTensor:
    return FakeTensor(value, dtype)


def strings(*elements: bytes) -> FakeStrings:
    return FakeStrings(elements)


def open_script(source: bytes | str, entry_points: Sequence[str] = (), device: str = "CPU", **settings: Any) -> ScriptSession:
    return ScriptSession(source, entry_points, device, Settings(**settings))


def run(
    source: str, function: str = "f", inputs: Sequence[Any] = (), n_outputs: int = 1, host: Any = None, entry: bool = True,
    keys: Sequence[bytes] = (), args: Sequence[bytes] = (),
) -> list[np.ndarray[Any, Any]]:  # fmt: skip
    """Compiles a script, calls one function of it once, returns the outputs. A bare body becomes the function `f`."""
    if not source.lstrip().startswith(("def ", "#")):
        source = ENTRY.format("f") + source
    session = open_script(source, [function] if entry else [])
    return list(session.run(function, inputs, keys, args, n_outputs, host or FakeHost()))


def error_of(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    """The text of the BackendError that a call must raise."""
    try:
        call(*args, **options)
    except BackendError as error:
        return str(error)
    raise AssertionError("no error was raised")
