"""What tests of run commands share: models of the echo backend, gates that hold a run, and a look at the run queues."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from conftest import echo_model
from servers import wait_until
from wire import OK, QUEUED, Wire

WRONGTYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
NO_MODEL = "ERR model key is empty"
NO_SCRIPT = "ERR script key is empty"
NO_TENSOR = "ERR tensor key is empty or in a different shard"
WRONG_INPUTS = "Number of keys given as INPUTS here does not match model definition"
WRONG_OUTPUTS = "Number of keys given as OUTPUTS here does not match model definition"
NOT_HERE = "ERR Cannot run RedisAI command within a transaction or a LUA script"

#: For what Redis 6.2 cannot show: rights by kind of access, flags of keys, functions.
since_7 = pytest.mark.skipif("redis-6.2" in os.environ.get("REDISAI_TEST_SERVER", ""), reason="Redis 7.0 is the first to have it")

#: What is no strict integer.
NO_INTS = ("", "x", "1.0", "1e1", " 1", "1 ", "+1", "01", "-0", "0x1", "1\0", 2**63, -(2**63) - 1)


def store(
    wire: Wire, key: str, op: str = "echo", inputs: int = 1, outputs: int = 1, device: str = "CPU", *words: Any, **options: Any
) -> None:
    """Stores a model of the echo backend; `words` are arguments of AI.MODELSTORE, `options` keys of the model."""
    assert wire("AI.MODELSTORE", key, "ONNX", device, *words, "BLOB", echo_model(op, inputs, outputs, **options)) == OK


def put(wire: Wire, key: str, *values: float) -> None:
    """Stores a tensor of shape [1, n]."""
    assert wire("AI.TENSORSET", key, "DOUBLE", 1, len(values), "VALUES", *values) == OK


def get(wire: Wire, key: str) -> list[float] | None:
    """The values of a tensor of doubles, None when there is none."""
    reply = wire("AI.TENSORGET", key, "VALUES")
    return [float(value) for value in reply] if isinstance(reply, list) else None


def put_script(
    wire: Wire, key: str, source: str = "def f(tensors: List[Tensor], keys: List[str], args: List[str]):\n    return tensors[0]\n"
) -> None:
    """Stores a script as a transaction does, which asks no library."""
    assert wire("MULTI") == OK
    assert wire("AI.SCRIPTSTORE", key, "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", source) == QUEUED
    assert wire("EXEC") == [OK]


class Gate:
    """A model that runs until the gate is opened. A run that is over lets go of its inputs, nothing else ends it."""

    def __init__(self, wire: Wire, path: Path, key: str, device: str = "CPU", inputs: int = 1, outputs: int = 1) -> None:
        self.path, self.device = path, device
        store(wire, key, "gate", inputs, outputs, device, path=str(path))

    def open(self) -> None:
        self.path.touch()


def info(wire: Wire, field: str) -> int | None:
    """A number from INFO's sections of the module, None when there is none."""
    for line in wire("INFO", "modules").decode().splitlines():
        name, _, value = line.rpartition(":")
        if name == f"ai_{field}":
            return int(value)
    return None


def running(wire: Wire, device: str = "CPU") -> int:
    """Workers of the device that run something now."""
    workers, idle = info(wire, f"queue_{device}_workers"), info(wire, f"queue_{device}_idle_workers")
    return 0 if workers is None or idle is None else workers - idle


def wait_running(wire: Wire, device: str = "CPU", n: int = 1) -> None:
    wait_until(lambda: running(wire, device) == n, f"{n} runs on {device}")


def wait_queued(wire: Wire, n: int, device: str = "CPU") -> None:
    wait_until(lambda: info(wire, f"queue_{device}_length") == n, f"{n} requests in the queue of {device}")


def wait_gone(wire: Wire, n: int = 0) -> None:
    """Until no more than `n` requests are in flight."""
    wait_until(lambda: (info(wire, "jobs_in_flight") or 0) <= n, "requests that ended")


def calls(wire: Wire, key: str) -> tuple[int, int]:
    """Runs and failed runs of a model or script."""
    reply = wire("AI.INFO", key)
    fields = dict(zip(reply[::2], reply[1::2], strict=True))
    return fields[b"calls"], fields[b"errors"]
