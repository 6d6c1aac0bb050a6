"""Random commands on tensors, models and DAGs, each reply compared with what numpy says it must be.

Each of some connections has keys of its own and a model of them in Python (`Keyspace`): which key holds what. A step makes a command and,
from the model alone, its reply; the model is then what the keyspace must be. Commands travel in pipelines on all connections at once, so
that runs of different clients meet in batches, and in between the server is reloaded and every key is compared.

The models are those of the echo backend: they hand their inputs back, or add them up.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import rdb_payload as rdb
from servers import Server, running

from .findings import Counts, Finding

CONNECTIONS = 4
PIPELINE = 100  # commands of one connection between two looks at the replies
RELOAD_EVERY = 50  # rounds of pipelines
NAMES = [f"t{i}" for i in range(8)]
DTYPES = {name: np.dtype(form) for name, (_, _, form) in rdb.DTYPES.items() if form}
MODELS = {
    "echo": {"op": "echo"},
    "batch": {"op": "echo"},
    "pair": {"op": "echo", "inputs": 2, "outputs": 2},
    "add": {"op": "add", "inputs": 2},
    "three": {"op": "add", "inputs": 3},
}
BATCHED = {"batch": ("BATCHSIZE", 16)}

Words = list[Any]
Check = Callable[[Any], bool]


class ReplyError(str):
    """An error reply."""


class Strings:
    """The value of a key that holds no tensor."""


NO_TENSOR = ReplyError("ERR tensor key is empty or in a different shard")
WRONG_TYPE = ReplyError("WRONGTYPE Operation against a key holding the wrong kind of value")
ERR_SHAPE = ReplyError("ERR invalid or negative value found in tensor shape")
ERR_COUNT = ReplyError("ERR wrong number of values was given in 'AI.TENSORSET' command")
ERR_LENGTH = ReplyError("ERR data length does not match tensor shape and type")
ERR_VALUE = ReplyError("ERR invalid value")
ERR_DTYPE = ReplyError("ERR invalid data type")
WRONG_INPUTS = ReplyError("Number of keys given as INPUTS here does not match model definition")
NO_MODEL = ReplyError("ERR model key is empty")
NOT_IN_DAG = ReplyError("ERR INPUT key cannot be found in DAG")
NOT_PERSISTED = ReplyError("ERR PERSIST key cannot be found in DAG")
NO_FORMAT = ReplyError("ERR unsupported data format")
TWO_FORMATS = ReplyError("ERR both BLOB and VALUES specified")
OK = b"OK"


def equals(expected: Any) -> Check:
    return lambda reply: reply == expected and isinstance(reply, ReplyError) == isinstance(expected, ReplyError)


def is_error(reply: Any) -> bool:
    return isinstance(reply, ReplyError)


# ---- tensors -----------------------------------------------------------------------------------------------------------------------

Array = np.ndarray[Any, Any]


def dtype_of(tensor: Array) -> str:
    return next((name for name, dtype in DTYPES.items() if dtype == tensor.dtype), "STRING")


def to_blob(tensor: Array) -> bytes:
    return b"".join(item + b"\0" for item in tensor.ravel()) if tensor.dtype == object else tensor.tobytes()


def same_number(reply: bytes, number: Any) -> bool:
    found = float(reply)
    return found == float(number) or (np.isnan(found) and np.isnan(number))


def same_values(reply: Any, tensor: Array) -> bool:
    values = tensor.ravel().tolist()
    if not isinstance(reply, list) or len(reply) != len(values):
        return False
    if tensor.dtype.kind == "f":
        return all(map(same_number, reply, values))
    return reply == [int(value) if tensor.dtype != object else value for value in values]


def shown(tensor: Array, options: set[str]) -> Check:
    """What AI.TENSORGET with these options must reply."""
    if {"BLOB", "VALUES"} <= options:
        return equals(TWO_FORMATS)
    options = options or {"META", "BLOB"}
    data: Check | None = equals(to_blob(tensor)) if "BLOB" in options else None
    if "VALUES" in options:
        data = lambda reply: same_values(reply, tensor)  # noqa: E731
    if "META" not in options:
        assert data
        return data
    head = [b"dtype", dtype_of(tensor).encode(), b"shape", list(tensor.shape)]
    if data is None:
        return equals(head)
    head.append(b"blob" if "BLOB" in options else b"values")
    return lambda reply: isinstance(reply, list) and reply[:5] == head and len(reply) == 6 and data(reply[5])


def added(inputs: list[Array]) -> Array | None:
    """What the echo backend's `add` computes; None when numpy refuses."""
    try:
        with np.errstate(all="ignore"):
            return np.asarray(np.sum(np.stack(inputs), axis=0, dtype=inputs[0].dtype))
    except (ValueError, TypeError):
        return None


def outputs_of(model: str, inputs: list[Array]) -> list[Array] | None:
    if MODELS[model]["op"] == "echo":
        return [inputs[i % len(inputs)] for i in range(int(str(MODELS[model].get("outputs", 1))))]
    result = added(inputs)
    return None if result is None else [result]


# ---- the model of a keyspace ---------------------------------------------------------------------------------------------------------


class Keyspace:
    """The keys of one connection. `step()` gives a command and the check of its reply, and changes the model as the command must."""

    def __init__(self, rng: random.Random, number: int) -> None:
        self.rng = rng
        self.numbers = np.random.default_rng(rng.randrange(1 << 30))
        self.prefix = f"c{number}:"
        self.keys: dict[str, Array | Strings] = {}
        self.steps = [
            *[self.set] * 5, self.set_wrongly, *[self.get] * 4, self.delete, self.copy, self.rename, self.string, self.restore,
            *[self.execute] * 5, self.execute_wrongly, *[self.dag] * 4, self.dag_wrongly,
        ]  # fmt: skip

    def step(self) -> tuple[Words, Check]:
        return self.rng.choice(self.steps)()

    def key(self, name: str) -> str:
        return self.prefix + name

    def name(self) -> str:
        return self.rng.choice(NAMES)

    def tensor(self, name: str) -> Array | ReplyError:
        """What a command that reads the key finds."""
        value = self.keys.get(name)
        return NO_TENSOR if value is None else WRONG_TYPE if isinstance(value, Strings) else value

    def holding(self, *, strings: bool = False) -> list[str]:
        """Names of keys with tensors."""
        return [name for name, value in self.keys.items() if not isinstance(value, Strings) and (strings or value.dtype != object)]

    def free(self) -> list[str]:
        """Names of keys that may hold a tensor."""
        return [name for name in NAMES if not isinstance(self.keys.get(name), Strings)]

    # ---- tensors

    def made(self) -> Array:
        shape = tuple(self.rng.randrange(1, 4) for _ in range(self.rng.choice((0, 1, 1, 2, 2, 3))))
        if self.rng.random() < 0.15:
            items = np.empty(int(np.prod(shape)), dtype=object)
            items[:] = [bytes(self.rng.choices(range(1, 256), k=self.rng.randrange(1, 5))) for _ in items]
            return items.reshape(shape)
        dtype = DTYPES[self.rng.choice(list(DTYPES))]
        if dtype.kind == "b":
            return np.asarray(self.numbers.integers(0, 2, shape).astype(dtype))
        if dtype.kind == "f":
            special = self.rng.choice((0.0, -0.0, 1e30, -1e-30, np.inf, 0.1))
            return np.asarray(np.where(self.numbers.random(shape) < 0.1, special, self.numbers.standard_normal(shape)).astype(dtype))
        edges = np.iinfo(dtype)
        return np.asarray(self.numbers.integers(edges.min, edges.max, shape, dtype=dtype, endpoint=True))

    def spelt(self, tensor: Array) -> Words:
        """The words after the key that make this tensor."""
        words: Words = [dtype_of(tensor), *tensor.shape]
        if self.rng.random() < 0.5:
            return [*words, "BLOB", to_blob(tensor)]
        if tensor.dtype == object:
            return [*words, "VALUES", *tensor.ravel()]
        if tensor.dtype.kind == "f":
            return [*words, "VALUES", *map(repr, map(float, tensor.ravel()))]
        return [*words, "VALUES", *map(int, tensor.ravel())]

    def set(self) -> tuple[Words, Check]:
        name, tensor = self.name(), self.made()
        words = self.spelt(tensor)
        if self.rng.random() < 0.05 and tensor.dtype != object:
            tensor = np.zeros_like(tensor)
            words = [dtype_of(tensor), *(tensor.shape or (1,))]
            tensor = tensor.reshape(tensor.shape or (1,))
        if isinstance(self.keys.get(name), Strings):
            return ["AI.TENSORSET", self.key(name), *words], equals(WRONG_TYPE)
        self.keys[name] = tensor
        return ["AI.TENSORSET", self.key(name), *words], equals(OK)

    def set_wrongly(self) -> tuple[Words, Check]:
        name = self.name()
        words, error = self.rng.choice(
            [
                (["FLOAT", 2, "VALUES", 1], ERR_COUNT),
                (["FLOAT", 2, "BLOB", b"1234567"], ERR_LENGTH),
                (["FLOAT", 0, "VALUES"], ERR_SHAPE),
                (["FLOAT", -1], ERR_SHAPE),
                (["INT64", 2**31, 2**31, 2**31], ERR_SHAPE),
                (["INT8", 1, "VALUES", 128], ERR_VALUE),
                (["UINT8", 1, "VALUES", -1], ERR_VALUE),
                (["INT64", 1, "VALUES", 2**63], ERR_VALUE),
                (["BOOL", 1, "VALUES", 2], ERR_VALUE),
                (["FLOAT", 1, "VALUES", "x"], ERR_VALUE),
                (["COMPLEX", 1], ERR_DTYPE),
            ]
        )
        wrong_key = isinstance(self.keys.get(name), Strings)
        return ["AI.TENSORSET", self.key(name), *words], equals(WRONG_TYPE if wrong_key else error)

    def options(self) -> list[str]:
        return self.rng.choice([[], ["META"], ["BLOB"], ["VALUES"], ["META", "BLOB"], ["VALUES", "META"], ["BLOB", "VALUES"]])

    def get(self) -> tuple[Words, Check]:
        name, options = self.name(), self.options()
        found = self.tensor(name)
        if isinstance(found, ReplyError):
            return ["AI.TENSORGET", self.key(name), *options], equals(found)
        if self.rng.random() < 0.03:
            return ["AI.TENSORGET", self.key(name), "FORMAT"], equals(NO_FORMAT)
        return ["AI.TENSORGET", self.key(name), *options], shown(found, set(options))

    # ---- keys

    def delete(self) -> tuple[Words, Check]:
        name = self.name()
        return [self.rng.choice(("DEL", "UNLINK")), self.key(name)], equals(int(self.keys.pop(name, None) is not None))

    def copy(self) -> tuple[Words, Check]:
        one, other = self.rng.sample(NAMES, 2)
        if one not in self.keys:
            return ["COPY", self.key(one), self.key(other), "REPLACE"], equals(0)
        self.keys[other] = self.keys[one]
        return ["COPY", self.key(one), self.key(other), "REPLACE"], equals(1)

    def rename(self) -> tuple[Words, Check]:
        one, other = self.rng.sample(NAMES, 2)
        if one not in self.keys:
            return ["RENAME", self.key(one), self.key(other)], equals(ReplyError("ERR no such key"))
        self.keys[other] = self.keys.pop(one)
        return ["RENAME", self.key(one), self.key(other)], equals(OK)

    def string(self) -> tuple[Words, Check]:
        name = self.name()
        self.keys[name] = Strings()
        return ["SET", self.key(name), "text"], equals(OK)

    def restore(self) -> tuple[Words, Check]:
        name, tensor = self.name(), self.made()
        self.keys[name] = tensor
        payload = rdb.tensor(dtype_of(tensor), list(tensor.shape), to_blob(tensor))
        return ["RESTORE", self.key(name), 0, payload, "REPLACE"], equals(OK)

    # ---- runs

    def run(self, known: list[str], read: Callable[[str], Array]) -> tuple[str, list[str], list[Array] | None]:
        """A model, names of inputs for it, its outputs (None: it fails). `known` are names of tensors, not of strings."""
        model = self.rng.choice(list(MODELS))
        first = self.rng.choice(known)
        alike = [name for name in known if read(name).shape == read(first).shape and read(name).dtype == read(first).dtype]
        pool = alike if self.rng.random() < 0.8 else known
        names = [first, *self.rng.choices(pool, k=int(str(MODELS[model].get("inputs", 1))) - 1)]
        return model, names, outputs_of(model, [read(name) for name in names])

    def execute(self) -> tuple[Words, Check]:
        known, free = self.holding(), self.free()
        if not known or len(free) < 2:
            return self.set()
        model, names, results = self.run(known, lambda name: self.keys[name])  # type: ignore[arg-type, return-value]
        count = int(str(MODELS[model].get("outputs", 1)))
        outputs = self.rng.sample(free, count)
        words = ["AI.MODELEXECUTE", model, "INPUTS", len(names), *map(self.key, names), "OUTPUTS", count, *map(self.key, outputs)]
        if results is None:
            return words, is_error
        self.keys.update(zip(outputs, results, strict=True))
        return words, equals(OK)

    def execute_wrongly(self) -> tuple[Words, Check]:
        name, output = self.name(), self.name()
        found = self.tensor(name)
        tail = [self.key(name), "OUTPUTS", 1, self.key(output)]
        match self.rng.randrange(3):
            case 0:
                return ["AI.MODELEXECUTE", "none", "INPUTS", 1, *tail], equals(NO_MODEL)
            case 1:
                return ["AI.MODELEXECUTE", "echo", "INPUTS", 2, self.key(name), *tail], equals(WRONG_INPUTS)
            case _:
                if isinstance(found, ReplyError):
                    return ["AI.MODELEXECUTE", "echo", "INPUTS", 1, *tail], equals(found)
                if isinstance(self.keys.get(output), Strings):
                    return ["AI.MODELEXECUTE", "echo", "INPUTS", 1, *tail], equals(WRONG_TYPE)
                self.keys[output] = found
                return ["AI.MODELEXECUTE", "echo", "INPUTS", 1, *tail], equals(OK)

    def dag(self) -> tuple[Words, Check]:
        """Some operations that cannot fail; names of operations are those of keys or local ones."""
        loads = self.rng.sample(known, min(len(known), self.rng.randrange(1, 4))) if (known := self.holding(strings=True)) else []
        local: dict[str, Array] = {self.key(name): self.keys[name] for name in loads}  # type: ignore[misc]
        words: Words = []
        checks: list[Check] = []
        for _ in range(self.rng.randrange(1, 5)):
            self._op(local, words, checks)
        free = [self.key(name) for name in self.free()]
        persists = [name for name in local if name in free and self.rng.random() < 0.5]
        for name in persists:
            self.keys[name.removeprefix(self.prefix)] = local[name]
        head: Words = ["LOAD", len(loads), *map(self.key, loads)] if loads else []
        head += ["PERSIST", len(persists), *persists] if persists else []
        command = "AI.DAGEXECUTE" if persists or self.rng.random() < 0.7 else "AI.DAGEXECUTE_RO"
        return (
            [command, "ROUTING", self.prefix, *head, *words],
            lambda reply: (
                isinstance(reply, list) and len(reply) == len(checks) and all(check(one) for check, one in zip(checks, reply, strict=True))
            ),
        )

    def _op(self, local: dict[str, Array], words: Words, checks: list[Check]) -> None:
        numeric = [name for name, tensor in local.items() if tensor.dtype != object]
        kind = self.rng.randrange(4)
        to = self.rng.choice([*map(self.key, NAMES), "local", "other"])
        if kind == 0 or not numeric:
            tensor = self.made()
            words += ["|>", "AI.TENSORSET", to, *self.spelt(tensor)]
            local[to] = tensor
            checks.append(equals(OK))
        elif kind == 1:
            name, options = self.rng.choice(list(local)), self.options()
            options = options if options != ["BLOB", "VALUES"] else ["VALUES"]
            words += ["|>", "AI.TENSORGET", name, *options]
            checks.append(shown(local[name], set(options)))
        else:
            model, names, results = self.run(numeric, local.__getitem__)
            if results is None:
                model, names, results = "echo", names[:1], [local[names[0]]]
            outputs = [to, f"{to}'"][: len(results)]
            words += ["|>", "AI.MODELEXECUTE", model, "INPUTS", len(names), *names, "OUTPUTS", len(outputs), *outputs]
            local.update(zip(outputs, results, strict=True))
            checks.append(equals(OK))

    def dag_wrongly(self) -> tuple[Words, Check]:
        name, key = self.name(), self.key
        found = self.tensor(name)
        match self.rng.randrange(3):
            case 0:
                words: Words = ["LOAD", 1, key(name), "|>", "AI.TENSORGET", "nothing", "META"]
                error = found if isinstance(found, ReplyError) else NOT_IN_DAG
            case 1:
                words = ["PERSIST", 1, key(name), "|>", "AI.TENSORSET", "local", "INT8", 1, "VALUES", 1]
                error = NOT_PERSISTED
            case _:
                words = ["ROUTING", key(name), "|>", "AI.MODELEXECUTE", "none", "INPUTS", 1, "x", "OUTPUTS", 1, "y"]
                error = NO_MODEL
        return ["AI.DAGEXECUTE", *words], equals(error)

    def everything(self) -> list[tuple[Words, Check]]:
        """A look at every key."""
        looks: list[tuple[Words, Check]] = []
        for name in NAMES:
            found = self.tensor(name)
            check = equals(found) if isinstance(found, ReplyError) else shown(found, {"META", "BLOB"})
            looks.append((["AI.TENSORGET", self.key(name)], check))
        return looks


# ---- the connections -----------------------------------------------------------------------------------------------------------------


def encoded(words: Words) -> bytes:
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


def read_reply(stream: io.BufferedReader) -> Any:
    line = stream.readline()
    kind, rest = line[:1], line[1:-2]
    if kind == b"*":
        return [read_reply(stream) for _ in range(int(rest))]
    if kind == b"$":
        return stream.read(int(rest) + 2)[:-2] if int(rest) >= 0 else None
    if kind == b":":
        return int(rest)
    if kind == b"-":
        return ReplyError(rest.decode())
    if kind != b"+":
        raise ConnectionError(f"the server said {line!r}")
    return rest


class Client:
    def __init__(self, server: Server, keyspace: Keyspace) -> None:
        self.keyspace = keyspace
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=300)
        self.stream = self.socket.makefile("rb")
        self.sent: list[tuple[Words, Check]] = []

    def send(self, commands: list[tuple[Words, Check]]) -> None:
        self.sent = commands
        self.socket.sendall(b"".join([encoded(words) for words, _ in commands]))

    def receive(self) -> None:
        """Raises Finding for a reply that is not what it must be."""
        for at, (words, check) in enumerate(self.sent):
            reply = read_reply(self.stream)
            if not check(reply):
                before = [repr(sent) for sent, _ in self.sent[max(0, at - 30) : at]]
                raise Finding("oracle", repr(words).encode(), f"replied {reply!r}; before it:\n" + "\n".join(before))

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


def oracle(seed: int, count: int) -> Counts:
    """random commands on tensors, models and DAGs, each reply compared with numpy's"""
    rng = random.Random(seed)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running())
        admin = stack.enter_context(server.client())
        for name, model in MODELS.items():
            admin.execute_command("AI.MODELSTORE", name, "ONNX", "CPU", *BATCHED.get(name, ()), "BLOB", json.dumps(model))
        clients = [Client(server, Keyspace(random.Random(rng.randrange(1 << 62)), n)) for n in range(CONNECTIONS)]
        steps = reloads = 0
        while steps < count:
            for client in clients:
                client.send([client.keyspace.step() for _ in range(PIPELINE)])
            for client in clients:
                client.receive()
            steps += CONNECTIONS * PIPELINE
            if steps // (CONNECTIONS * PIPELINE) % RELOAD_EVERY == 0:
                reloads += 1
                admin.execute_command("DEBUG", "RELOAD")
                for client in clients:
                    client.send(client.keyspace.everything())
                    client.receive()
                os.truncate(server.log_path, 0)
        for client in clients:
            client.send(client.keyspace.everything())
            client.receive()
            client.close()
        assert server.alive()
    return {"count": steps, "reloads": reloads}
