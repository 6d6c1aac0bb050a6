"""Stand-ins for what C gives the Python half, so that backends can be driven without a server.

They behave like the real ones where a backend could tell the difference: tensors are read-only to Python, share their memory through
DLPack, and STRING tensors have neither a buffer nor a capsule.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np

from .tensor import DTYPES

_WIRE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class FakeTensor:
    """A numeric tensor: `numpy.asarray(t)` is a read-only view, `t.__dlpack__()` a capsule over the same memory.

    `value` is anything numpy reads; `dtype` a name of `redisai_py.tensor.DTYPES`, taken from the array when it is not given.
    The memory is a private copy, reachable as `memory` (an array of the same shape) for a test that wants to see it change.
    Raises KeyError for a dtype that has no name.
    """

    __slots__ = ("_view", "dtype", "memory", "nbytes", "shape")

    def __init__(self, value: Any, dtype: str | None = None) -> None:
        self.memory = np.array(value, dtype=DTYPES[dtype] if dtype else None, order="C")
        self.dtype = dtype or _WIRE_NAMES[self.memory.dtype]
        self.shape: tuple[int, ...] = self.memory.shape
        self.nbytes = self.memory.nbytes
        self._view = self.memory.view()
        self._view.flags.writeable = False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return self._view if dtype is None and not copy else np.array(self._view, dtype=dtype, copy=copy)

    def __dlpack__(self) -> Any:
        return self.memory.__dlpack__()

    def strings(self) -> list[bytes]:
        raise TypeError("only a STRING tensor has strings")


class FakeStrings:
    """A STRING tensor: `elements` in row-major order, each without its closing NUL; `shape` defaults to one dimension."""

    __slots__ = ("_elements", "nbytes", "shape")
    dtype = "STRING"

    def __init__(self, elements: Sequence[bytes], shape: tuple[int, ...] | None = None) -> None:
        self._elements = list(elements)
        self.shape = (len(self._elements),) if shape is None else shape
        self.nbytes = sum(len(element) + 1 for element in self._elements)

    def strings(self) -> list[bytes]:
        return list(self._elements)

    def __dlpack__(self) -> Any:
        raise BufferError("a STRING tensor has no DLPack form")


class FakeMeter:
    """Adds up what a backend reports: `memory` in bytes, `accesses` as a count, `calls` as the list of both."""

    def __init__(self) -> None:
        self.memory = 0
        self.accesses = 0
        self.calls: list[tuple[int, int]] = []

    def record(self, delta_bytes: int, accesses: int) -> None:
        self.memory += delta_bytes
        self.accesses += accesses
        self.calls.append((delta_bytes, accesses))


class ManualClock:
    """A clock turned by hand; called, it says what time it is. Microseconds."""

    def __init__(self, start_us: int = 0) -> None:
        self._now_us = start_us

    def __call__(self) -> int:
        return self._now_us

    def advance(self, us: int) -> None:
        """Moves the clock forward. Raises ValueError for a step back: the real one never goes there."""
        if us < 0:
            raise ValueError("time does not run backwards")
        self._now_us += us


# ---- flows ------------------------------------------------------------------------------------------------------------------------------


class FakeError:
    """An error reply, as the shim hands it over."""

    def __init__(self, error_text: str) -> None:
        self.error_text = error_text


WRONGTYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"


class FakeRedis:
    """A few commands over a dictionary, with the replies that the shim gives: bytes, int, lists, None, FakeError.

    A value is bytes, a dict (hash), a list, a list of (id, fields) in a Stream, a FakeTensorKey, or a callable (a model: arrays -> arrays).
    """

    def __init__(self) -> None:
        self.keys: dict[bytes, Any] = {}
        self.groups: dict[tuple[bytes, bytes], bytes] = {}

    def __call__(self, argv: Sequence[bytes]) -> Any:
        command = getattr(self, "_" + argv[0].decode().lower().replace(".", "_"), None)
        return FakeError("No such file or directory") if command is None else command(*argv[1:])

    def _get(self, key: bytes) -> Any:
        value = self.keys.get(key)
        return value if value is None or isinstance(value, bytes) else FakeError(WRONGTYPE)

    def _set(self, key: bytes, value: bytes) -> bytes:
        self.keys[key] = value
        return b"OK"

    def _incr(self, key: bytes) -> Any:
        if not self.keys.get(key, b"0").isdigit():
            return FakeError("ERR value is not an integer or out of range")
        self.keys[key] = b"%d" % (int(self.keys.get(key, b"0")) + 1)
        return int(self.keys[key])

    def _del(self, *keys: bytes) -> int:
        return sum(self.keys.pop(key, None) is not None for key in keys)

    def _rpush(self, key: bytes, *values: bytes) -> int:
        self.keys.setdefault(key, []).extend(values)
        return len(self.keys[key])

    def _lrange(self, key: bytes, start: bytes, stop: bytes) -> Any:
        return list(self.keys.get(key, []))

    def _hset(self, key: bytes, *pairs: bytes) -> int:
        self.keys.setdefault(key, {}).update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(pairs) // 2

    def _hgetall(self, key: bytes) -> Any:
        return list(itertools.chain.from_iterable(self.keys.get(key, {}).items()))

    def _type(self, key: bytes) -> bytes:
        names = {bytes: b"string", dict: b"hash", list: b"list", FakeStream: b"stream", FakeTensorKey: b"AI_TENSOR", type(None): b"none"}
        return names.get(type(self.keys.get(key)), b"AI__MODEL")

    def _scan(self, cursor: bytes, *options: bytes) -> Any:
        wanted = dict(zip(options[::2], options[1::2], strict=True))
        begin = wanted[b"MATCH"].replace(b"\\", b"").removesuffix(b"*")
        return [b"0", [key for key in self.keys if key.startswith(begin) and wanted.get(b"TYPE") in (None, self._type(key))]]

    # streams

    def _xadd(self, key: bytes, *pairs: bytes) -> bytes:
        stream = self.keys.setdefault(key, FakeStream())
        stream.last += 1
        stream.append((b"%d-0" % stream.last, list(pairs)))
        return b"%d-0" % stream.last

    def _xrange(self, key: bytes, start: bytes, end: bytes, *count: bytes) -> Any:
        after = 0 if start == b"-" else int(start[1:].split(b"-")[0])
        rows = [[number, fields] for number, fields in self.keys.get(key, ()) if int(number.split(b"-")[0]) > after]
        return rows[: int(count[1])] if count else rows

    def _xdel(self, key: bytes, *ids: bytes) -> int:
        self.keys[key][:] = [entry for entry in self.keys[key] if entry[0] not in ids]
        return len(ids)

    def _xinfo(self, groups: bytes, key: bytes) -> Any:
        return [[b"name", name, b"last-delivered-id", last] for (of, name), last in self.groups.items() if of == key]

    def _xgroup(self, verb: bytes, key: bytes, group: bytes, last: bytes) -> bytes:
        self.groups[key, group] = last
        return b"OK"

    # tensors and models

    def _ai_tensorset(self, key: bytes, dtype: bytes, *rest: bytes) -> Any:
        if not isinstance(self.keys.get(key), FakeTensorKey | None):
            return FakeError(WRONGTYPE)
        *dims, _, blob = rest
        self.keys[key] = FakeTensorKey(dtype, tuple(map(int, dims)), blob)
        return b"OK"

    def _ai_tensorget(self, key: bytes, *options: bytes) -> Any:
        found = self.keys.get(key)
        if found is None:
            return FakeError("ERR tensor key is empty or in a different shard")
        if not isinstance(found, FakeTensorKey):
            return FakeError(WRONGTYPE)
        return [b"dtype", found.dtype, b"shape", list(found.shape), b"blob", found.blob]

    def _ai_modelget(self, key: bytes, meta: bytes) -> Any:
        if key not in self.keys:
            return FakeError("ERR model key is empty")
        return [b"inputs", [b"a", b"b"], b"outputs", [b"c"]] if callable(self.keys[key]) else FakeError(WRONGTYPE)

    def _ai_scriptget(self, key: bytes, meta: bytes) -> Any:
        return [b"device", b"CPU"] if key in self.keys else FakeError("ERR script key is empty")

    def plan(self, argv: Sequence[bytes], tensors: Sequence[Any]) -> list[FakeTensor]:
        """Runs a plan in the grammar of AI.DAGEXECUTE. Raises what a model raises."""
        head, *ops = (list(op) for part, op in itertools.groupby(argv, lambda word: word == b"|>") if not part)
        local: dict[bytes, Any] = dict(zip(head[3:], tensors, strict=True))
        outputs = []
        for command, key, *rest in ops:
            if command == b"AI.TENSORGET":
                outputs.append(FakeTensor(local[key]))
            elif command == b"AI.TENSORSET":
                dtype, *dims, _, blob = rest
                local[key] = np.frombuffer(blob, DTYPES[dtype.decode()]).reshape(tuple(map(int, dims)))
            else:
                at = rest.index(b"OUTPUTS")
                given = [local[name] for name in rest[rest.index(b"INPUTS") + 2 : at]]
                local.update(zip(rest[at + 2 :], self.keys[key](*given), strict=True))
        return outputs


class FakeStream(list[Any]):
    """Entries of a stream: (id, [field, value, ...]). `last` is the number of the newest id."""

    last = 0


class FakeTensorKey(SimpleNamespace):
    """What AI.TENSORSET wrote."""

    def __init__(self, dtype: bytes, shape: tuple[int, ...], blob: bytes) -> None:
        super().__init__(dtype=dtype, shape=shape, blob=blob)


class FakeFlowCall:
    """A FlowCall or FlowEvent; `answers` grows by ("reply", value), ("fail", text) or ("done", error)."""

    def __init__(self, kind: str, number: str, **fields: Any) -> None:
        self.kind = kind
        self.id = number
        self.answers: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        defaults = {"source": b"", "restoring": False, "unblocking": False, "argv": [], "user": "default", "db": 0, "key": b"", "event": ""}
        for name, value in {**defaults, **fields}.items():
            setattr(self, name, value)

    def reply(self, value: Any) -> bool:
        self._answer("reply", value)
        return True

    def fail(self, text: str) -> None:
        self._answer("fail", text)

    def done(self, error: str | None) -> None:
        self._answer("done", error)

    def _answer(self, how: str, what: Any) -> None:
        del self.kind, self.id  # what was answered is gone, and cannot be asked or answered again
        self.answers.put((how, what))


class FakeFlowShim:
    """What flows ask of the shim. A test posts with `post`; a run is over at once."""

    def __init__(self, redis: Callable[[Sequence[bytes]], Any] | None = None) -> None:
        self.redis: Any = redis or FakeRedis()
        self.things: SimpleQueue[Any] = SimpleQueue()
        self.lines: list[str] = []
        self.specs: dict[str, dict[str, Any]] = {}
        self.counted: list[tuple[str, bool, str | None]] = []
        self.asked: list[tuple[Any, int, list[bytes], str | None]] = []
        self.transactions: list[list[list[bytes]]] = []
        self._numbers = itertools.count(1)

    def post(self, thing: Any) -> Any:
        self.things.put(thing)
        return thing

    def next_flow(self) -> Any:
        return self.things.get()

    def log(self, level: str, line: str) -> None:
        self.lines.append(f"{level} {line}")

    def flow_register(self, call: Any, spec: dict[str, Any]) -> str:
        if spec.get("trigger") in {other.get("trigger", "") for other in self.specs.values()}:
            raise ValueError("trigger already registered")
        number = f"r-{next(self._numbers)}"
        self.specs[number] = spec
        return number

    def flow_execute(self, user: Any, db: int, argv: list[bytes], origin: str | None) -> Any:
        self.asked.append((user, db, argv, origin))
        return self.redis(argv)

    def flow_transaction(self, user: Any, db: int, commands: list[list[bytes]], origin: str | None) -> list[Any]:
        self.transactions.append(commands)
        return [self.flow_execute(user, db, argv, origin) for argv in commands]

    def flow_start(self, user: Any, db: int, argv: list[bytes], tensors: list[Any], origin: str | None) -> int:
        token = next(self._numbers)
        self.asked.append((user, db, argv, origin))
        key = argv[argv.index(b"AI.MODELEXECUTE") + 1] if b"AI.MODELEXECUTE" in argv else b""
        if key and key not in self.redis.keys:
            raise ValueError("ERR model key is empty")
        try:
            outputs, error = self.redis.plan(argv, tensors), None
        except Exception as raised:
            outputs, error = [], str(raised)
        self.things.put(SimpleNamespace(token=token, outputs=outputs, error=error))
        return token

    def flow_count(self, flow: str, ok: bool, error: str | None) -> None:
        self.counted.append((flow, ok, error))
