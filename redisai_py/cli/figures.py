"""What a server says of itself, read once into records: `models`, `top`, `bench` and `exporter` all show these.

Sources: AI._MODELSCAN and AI._SCRIPTSCAN (which keys), AI.INFO and AI.INFO ... STATS (per key), INFO (the whole server), LATENCY HISTOGRAM
(per command, Redis 7 and later). Nothing here opens a model or waits for one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import redis

#: The commands whose latency is shown, in the server's spelling.
RUN_COMMANDS = (
    "ai.modelexecute",
    "ai.scriptexecute",
    "ai.dagexecute",
    "ai.dagexecute_ro",
    "ai.modelrun",
    "ai.scriptrun",
    "ai.dagrun",
    "ai.dagrun_ro",
)
STORE_COMMANDS = ("ai.modelstore", "ai.scriptstore", "ai.modelset", "ai.scriptset")
TENSOR_COMMANDS = ("ai.tensorset", "ai.tensorget")

#: Upper bounds of the buckets of LATENCY HISTOGRAM in microseconds: powers of two of 1.024 us, each widened by the server's precision of
#: two digits. The server names only those that hold something.
BOUNDS_US: tuple[int, ...] = tuple((2**k + 2 ** (k - 7) - 1) // 1000 for k in range(10, 36))


# ---- models and scripts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A model or script: AI.INFO and AI.INFO STATS of its key, and MEMORY USAGE where the user may ask for it. Times in microseconds."""

    key: str
    type: str  # "MODEL" or "SCRIPT"
    backend: str
    device: str
    tag: str
    duration_us: int
    samples: int | None  # rows; None for scripts
    calls: int
    errors: int
    batches: int = 0
    batched_requests: int = 0
    wait_us: int = 0
    batch_sizes: Mapping[int, int] = field(default_factory=dict)  # least number of requests (a power of two) -> batches
    memory: int | None = None  # bytes

    @property
    def mean_us(self) -> float | None:
        """Of a run; requests of one batch each count the whole run."""
        return self.duration_us / self.calls if self.calls else None

    @property
    def mean_batch(self) -> float | None:
        return self.batched_requests / self.batches if self.batches else None

    @property
    def mean_wait_us(self) -> float | None:
        return self.wait_us / self.batched_requests if self.batched_requests else None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "mean_us": self.mean_us, "mean_batch": self.mean_batch, "mean_wait_us": self.mean_wait_us}


def text(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def pairs(reply: Sequence[Any]) -> dict[str, Any]:
    """A flat reply of names and values."""
    return {text(name): value for name, value in zip(reply[::2], reply[1::2], strict=True)}


def names(client: redis.Redis) -> list[bytes]:
    """The keys of all models and scripts of the selected database that the user may read, models first, each kind sorted."""
    found = []
    for command in ("AI._MODELSCAN", "AI._SCRIPTSCAN"):
        found += sorted(entry[0] for entry in client.execute_command(command))
    return found


class Names:
    """`names()` for those who ask again and again.

    The server logs a line at each scan, so it is asked only when loads or sessions changed, and once a minute for what they do not show
    (RENAME, a value that is not open).
    """

    SECONDS = 60.0
    SIGNS = ("ai_loads_done", "ai_loads_failed", *(f"ai_{kind}_sessions" for kind in ("TF", "TFLITE", "TORCH", "ONNX", "SCRIPT")))

    def __init__(self) -> None:
        self.found: list[bytes] = []
        self.signs: list[str | None] = []
        self.until = 0.0

    def read(self, client: redis.Redis, info: Mapping[str, str]) -> list[bytes]:
        """Raises redis.RedisError."""
        signs = [info.get("run_id"), *map(info.get, self.SIGNS)]
        if signs != self.signs or time.monotonic() > self.until:
            self.found = names(client)
            self.signs, self.until = signs, time.monotonic() + self.SECONDS
        return self.found


def read_programs(client: redis.Redis, keys: Sequence[bytes]) -> list[Program]:
    """Keys that are gone are left out. Raises redis.RedisError."""
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.execute_command("AI.INFO", key)
        pipeline.execute_command("AI.INFO", key, "STATS")
        pipeline.execute_command("MEMORY", "USAGE", key)
    replies = iter(pipeline.execute(raise_on_error=False))
    return [program for triple in zip(replies, replies, replies, strict=True) if (program := read_program(*triple)) is not None]


def read_one(client: redis.Redis, key: str) -> Program:
    """Raises redis.ResponseError when the key holds no model or script."""
    counters = client.execute_command("AI.INFO", key)
    found = read_program(counters, client.execute_command("AI.INFO", key, "STATS"), None)
    assert found is not None
    return found


def read_program(counters: Any, batches: Any, memory: Any) -> Program | None:
    if isinstance(counters, Exception) or isinstance(batches, Exception):
        return None
    told, batched = pairs(counters), pairs(batches)
    sizes = batched["batch_sizes"]
    return Program(
        key=text(told["key"]),
        type=text(told["type"]),
        backend=text(told["backend"]),
        device=text(told["device"]),
        tag=text(told["tag"]),
        duration_us=told["duration"],
        samples=told["samples"] if told["samples"] >= 0 else None,
        calls=told["calls"],
        errors=told["errors"],
        batches=batched["batches"],
        batched_requests=batched["batched_requests"],
        wait_us=batched["wait_us"],
        batch_sizes=dict(zip(sizes[::2], sizes[1::2], strict=True)),
        memory=memory if isinstance(memory, int) else None,
    )


# ---- the server --------------------------------------------------------------------------------------------------------------------


def read_info(client: redis.Redis) -> dict[str, str]:
    """INFO everything, field by field. Raises redis.RedisError."""
    return dict(info_fields(text(client.execute_command("INFO", "everything"))))


def info_fields(lines: str) -> Iterator[tuple[str, str]]:
    for line in lines.splitlines():
        # The name of a queue may hold a colon itself (CPU:1); no value of its fields does.
        name, colon, value = line.rpartition(":") if line.startswith("ai_queue_") else line.partition(":")
        if colon and not line.startswith("#"):
            yield name, value


def queues(info: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Device -> length (requests), waiting (requests beside those, until their model is open), workers, idle_workers."""
    found: dict[str, dict[str, int]] = {}
    for name, value in info.items():
        for what in ("idle_workers", "workers", "waiting", "length"):
            if name.startswith("ai_queue_") and name.endswith(f"_{what}"):
                found.setdefault(name.removeprefix("ai_queue_").removesuffix(f"_{what}"), {})[what] = int(value)
                break
    return found


@dataclass(frozen=True)
class Command:
    """The server's figures of one command since its start (or CONFIG RESETSTAT)."""

    name: str
    calls: int
    usec: int
    failed: int
    within: tuple[int, ...] = ()  # calls that took at most BOUNDS_US[i]; empty where the server keeps no histogram

    def since(self, before: Command | None) -> Command:
        """What happened between two readings."""
        if before is None or before.calls > self.calls:
            return self
        within = tuple(now - then for now, then in zip(self.within, before.within or (0,) * len(self.within), strict=True))
        return Command(self.name, self.calls - before.calls, self.usec - before.usec, self.failed - before.failed, within)

    def percentile(self, share: float) -> float | None:
        """Microseconds that `share` of the calls did not exceed, read off the buckets along a straight line within one."""
        if not self.within or not self.calls:
            return None
        wanted, below, bound_below = share * self.calls, 0, 0
        for bound, count in zip(BOUNDS_US, self.within, strict=True):
            if count >= wanted:
                return bound_below + (bound - bound_below) * (wanted - below) / max(count - below, 1)
            below, bound_below = count, bound
        return float(BOUNDS_US[-1])


def read_commands(client: redis.Redis, info: Mapping[str, str], wanted: Sequence[str]) -> dict[str, Command]:
    """The `wanted` commands that have been called. Raises redis.RedisError."""
    histograms = read_histograms(client, wanted)
    found = {}
    for name in wanted:
        if stats := info.get(f"cmdstat_{name}"):
            told = dict(part.split("=", 1) for part in stats.split(","))
            failed = int(told.get("failed_calls", 0)) + int(told.get("rejected_calls", 0))
            found[name] = Command(name, int(told["calls"]), int(told["usec"]), failed, histograms.get(name, ()))
    return found


def read_histograms(client: redis.Redis, wanted: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Empty on a server without LATENCY HISTOGRAM, or for a user who may not call it."""
    try:
        reply = client.execute_command("LATENCY", "HISTOGRAM", *wanted)
    except redis.ResponseError:
        return {}
    return {name: filled(pairs(told)["histogram_usec"]) for name, told in pairs(reply).items()}


def filled(sparse: Sequence[int]) -> tuple[int, ...]:
    """Cumulative counts at every one of BOUNDS_US, from those at the bounds the server named."""
    counts = dict(zip(sparse[::2], sparse[1::2], strict=True))
    return tuple(max((count for bound, count in counts.items() if bound <= limit), default=0) for limit in BOUNDS_US)
