"""Leaks: what a server still holds after many turns of every command, of every way a command can fail, and of every backend.

A case is a turn that leaves the keyspace as it found it. Turns are sent in rounds of equal length; after each round the server is left to
settle and its memory is read, three times over:

* `used`: what the server's allocator gave out (used_memory), exact to the byte. Everything that the C half allocates is in it.
* `heap`: what malloc gave out in the whole process: Python's larger objects, numpy, the libraries. Only where the server uses its
  allocator for everything, as Debian's does; None elsewhere.
* `rss`: resident pages, after the allocator was told to give free ones back.
* `blocks`: objects of the interpreter (sys.getallocatedblocks, asked of the echo backend); None with real backends.

What is judged is the slope over the rounds, by a median: of the steps between neighbours where the number is exact, of the slopes between
all pairs of rounds (Theil and Sen) where it is counted in pages. A cache that fills or a table that doubles is one step, of which a median
knows nothing; a leak is in all of them. What is not settled is measured twice (`measure`).

At the end FLUSHALL must bring `used` back to what it was after a first turn of everything, within 64 KiB.

`make test` runs a short form (tests/server/test_leaks_short.py), `make leaks` the long one, which appends to results.jsonl.
"""

from __future__ import annotations

import itertools
import random
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import redis
from conftest import echo_model
from rdb_payload import seal
from servers import MODELS, PATIENCE, Server, running, wait_until
from wire import OK, Wire, encode

from .loops import record

Command = tuple[Any, ...]
Turn = Sequence[Command]

#: Bytes, or objects, that one turn may leave. The smallest allocation there is takes 8 bytes of the heap and is in every turn.
LIMITS = {"used": 4.0, "heap": 16.0, "rss": 16.0, "blocks": 0.25}
#: The same for one cycle of storing, running and deleting a model: a session takes tens of kilobytes at least.
CYCLE_LIMITS = {"used": 64.0, "heap": 16384.0, "rss": 16384.0}
FLUSHED = 64 * 1024


# ---- cases -------------------------------------------------------------------------------------------------------------------------

BIG = bytes(64 * 1024)  # kept as the client's own argument
ECHO, RAISE = echo_model(), echo_model("raise", text="ERR no")
RUN = ("INPUTS", 1, "x", "OUTPUTS", 1, "y")
DAG = ("LOAD", 1, "x", "PERSIST", 1, "y", "|>", "AI.MODELEXECUTE", "echo", "INPUTS", 1, "x", "OUTPUTS", 1, "a")


def world(client: redis.Redis) -> None:
    """What every turn finds and leaves behind."""
    do = client.execute_command
    for key, blob, words in (
        ("echo", ECHO, ()),
        ("raise", RAISE, ()),
        ("batched", ECHO, ("BATCHSIZE", 16)),
        ("batched-raise", echo_model("raise", text="ERR no", when=1), ("BATCHSIZE", 16)),
        ("rows", echo_model("wrong_rows"), ("BATCHSIZE", 16)),
        ("count", echo_model("wrong_count"), ()),
        ("none", echo_model("none"), ()),
        ("half", echo_model("half"), ()),
        ("exit", echo_model("system_exit"), ()),
        ("blocks", echo_model("blocks"), ()),
    ):
        do("AI.MODELSTORE", key, "ONNX", "CPU", *words, "BLOB", blob)
    do("AI.TENSORSET", "x", "INT64", 1, "VALUES", 1)
    do("AI.TENSORSET", "big", "UINT8", len(BIG), "BLOB", BIG)
    do("AI.TENSORSET", "words", "STRING", 2, "VALUES", "a", "bc")
    do("SET", "string", "value")


TENSORS: dict[str, Turn] = {
    "tensorset values": [("AI.TENSORSET", "t", "DOUBLE", 2, "VALUES", 1, 2)],
    "tensorset many values": [("AI.TENSORSET", "t", "INT8", 40, "VALUES", *range(40))],
    "tensorset blob": [("AI.TENSORSET", "t", "FLOAT", 2, "BLOB", b"12345678")],
    "tensorset big blob": [("AI.TENSORSET", "t", "UINT8", len(BIG), "BLOB", BIG)],
    "tensorset big strings": [("AI.TENSORSET", "t", "STRING", len(BIG), "BLOB", BIG)],
    "tensorset strings": [("AI.TENSORSET", "t", "STRING", 2, "VALUES", "a", "b\0")],
    "tensorset nothing": [("AI.TENSORSET", "t", "FLOAT", 2, 2)],
    "tensorset and expire": [("AI.TENSORSET", "t", "FLOAT", 1, "VALUES", 1), ("PEXPIRE", "t", 100000)],
    "tensorset and delete": [("AI.TENSORSET", "t", "STRING", 1, "VALUES", "a"), ("DEL", "t")],
    "tensorset in a transaction": [("MULTI",), ("AI.TENSORSET", "t", "FLOAT", 1, "VALUES", 1), ("EXEC",)],
    "tensorset refused: dtype": [("AI.TENSORSET", "t", "FLOUT", 1)],
    "tensorset refused: shape": [("AI.TENSORSET", "t", "FLOAT", -1), ("AI.TENSORSET", "t", "FLOAT", 2**62, 2**62)],
    "tensorset refused: value": [("AI.TENSORSET", "t", "INT8", 1, "VALUES", 300), ("AI.TENSORSET", "t", "FLOAT", 1, "VALUES", "x")],
    "tensorset refused: length": [("AI.TENSORSET", "t", "FLOAT", 3, "BLOB", b"1234"), ("AI.TENSORSET", "t", "FLOAT", 3, "VALUES", 1)],
    "tensorset refused: strings": [("AI.TENSORSET", "t", "STRING", 2, "BLOB", b"ab"), ("AI.TENSORSET", "t", "STRING", 1, "VALUES", "")],
    "tensorset refused: big strings": [("AI.TENSORSET", "t", "STRING", 2, "BLOB", BIG)],
    "tensorset refused: type": [("AI.TENSORSET", "string", "FLOAT", 1)],
    "tensorget": [("AI.TENSORGET", "x"), ("AI.TENSORGET", "x", "META", "VALUES"), ("AI.TENSORGET", "words", "VALUES")],
    "tensorget big": [("AI.TENSORGET", "big", "BLOB")],
    "tensorget refused": [("AI.TENSORGET", "nothing"), ("AI.TENSORGET", "string"), ("AI.TENSORGET", "x", "BLOB", "VALUES")],
    "dump and restore": [("COPY", "words", "copy", "REPLACE"), ("DUMP", "words"), ("DEL", "copy")],
}
RUNS: dict[str, Turn] = {
    "modelexecute": [("AI.MODELEXECUTE", "echo", *RUN)],
    "modelexecute with a timeout": [("AI.MODELEXECUTE", "echo", *RUN, "TIMEOUT", 60000)],
    "modelexecute big": [
        ("AI.TENSORSET", "t", "UINT8", len(BIG), "BLOB", BIG),
        ("AI.MODELEXECUTE", "echo", "INPUTS", 1, "t", "OUTPUTS", 1, "y"),
    ],
    "modelexecute strings": [("AI.MODELEXECUTE", "echo", "INPUTS", 1, "words", "OUTPUTS", 1, "y")],
    "modelexecute batched": [("AI.MODELEXECUTE", "batched", *RUN)],
    "modelexecute raises": [("AI.MODELEXECUTE", "raise", *RUN)],
    "modelexecute raises in a batch": [("AI.MODELEXECUTE", "batched-raise", *RUN)],
    "modelexecute gives other rows": [("AI.MODELEXECUTE", "rows", *RUN)],
    "modelexecute gives another count": [("AI.MODELEXECUTE", "count", *RUN)],
    "modelexecute gives nothing": [("AI.MODELEXECUTE", "none", *RUN)],
    "modelexecute gives another dtype": [("AI.MODELEXECUTE", "half", *RUN)],
    "modelexecute ends its thread": [("AI.MODELEXECUTE", "exit", *RUN)],
    "modelexecute refused: words": [
        ("AI.MODELEXECUTE", "echo", *RUN, "WORD"),
        ("AI.MODELEXECUTE", "echo", "INPUTS", 2, "x", "OUTPUTS", 1, "y"),
    ],
    "modelexecute refused: keys": [
        ("AI.MODELEXECUTE", "nothing", *RUN),
        ("AI.MODELEXECUTE", "string", *RUN),
        ("AI.MODELEXECUTE", "echo", "INPUTS", 1, "nothing", "OUTPUTS", 1, "y"),
    ],
    "modelexecute refused: output": [("AI.MODELEXECUTE", "echo", "INPUTS", 1, "x", "OUTPUTS", 1, "string")],
    "modelexecute refused: transaction": [("MULTI",), ("AI.MODELEXECUTE", "echo", *RUN), ("EXEC",)],
    "modelrun": [("AI.MODELRUN", "echo", "INPUTS", "x", "OUTPUTS", "y")],
    "modelrun refused": [("AI.MODELRUN", "echo", "INPUTS", "x", "x", "OUTPUTS", "y"), ("AI.MODELRUN", "echo", "INPUTS", "x", "OUTPUTS")],
    "dagexecute": [("AI.DAGEXECUTE", *DAG, "|>", "AI.TENSORSET", "y", "STRING", 1, "VALUES", "a", "|>", "AI.TENSORGET", "a")],
    "dagexecute without a run": [("AI.DAGEXECUTE", "PERSIST", 1, "y", "|>", "AI.TENSORSET", "y", "FLOAT", 1, "VALUES", 1)],
    "dagexecute fails": [("AI.DAGEXECUTE", *DAG, "|>", "AI.MODELEXECUTE", "raise", "INPUTS", 1, "a", "OUTPUTS", 1, "y")],
    "dagexecute refused": [
        ("AI.DAGEXECUTE", *DAG),
        ("AI.DAGEXECUTE", *DAG, "|>", "AI.TENSORSET", "y", "FLOAT", 1, "|>", "AI.TENSORSET", "y", "FLOAT", "x"),
        ("AI.DAGEXECUTE", "LOAD", 2, "x", "nothing", "|>", "AI.TENSORGET", "x"),
        ("AI.DAGEXECUTE", "LOAD", 1, "x", "|>", "AI.TENSORGET", "unknown"),
    ],
    "dagexecute_ro": [("AI.DAGEXECUTE_RO", "LOAD", 1, "x", "|>", "AI.TENSORGET", "x", "VALUES")],
    "dagrun": [("AI.DAGRUN", *DAG, "|>", "AI.MODELRUN", "echo", "INPUTS", "a", "OUTPUTS", "y")],
    "dagrun_ro": [("AI.DAGRUN_RO", "LOAD", 1, "x", "|>", "AI.TENSORGET", "x"), ("AI.DAGRUN_RO", *DAG)],
    "scripts that are not there": [
        ("AI.SCRIPTEXECUTE", "nothing", "f", "INPUTS", 1, "x", "OUTPUTS", 1, "y"),
        ("AI.SCRIPTRUN", "nothing", "f", "INPUTS", "x", "OUTPUTS", "y"),
        ("AI.SCRIPTGET", "nothing"),
        ("AI.SCRIPTDEL", "string"),
    ],
    "keys of commands": [
        ("COMMAND", "GETKEYS", "AI.MODELEXECUTE", "echo", *RUN),
        ("COMMAND", "GETKEYS", "AI.DAGEXECUTE", *DAG, "|>", "AI.TENSORGET", "a"),
    ],
}
PROGRAMS: dict[str, Turn] = {
    "modelstore": [("AI.MODELSTORE", "m", "TF", "CPU", "TAG", "v", "INPUTS", 1, "a", "OUTPUTS", 1, "b", "BLOB", ECHO)],
    "modelstore in chunks": [("AI.MODELSTORE", "m", "ONNX", "CPU", "BATCHSIZE", 2, "BLOB", ECHO[:9], ECHO[9:])],
    "modelstore in a transaction": [("MULTI",), ("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", ECHO), ("EXEC",)],
    "modelstore that fails": [
        ("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", "junk"),
        ("AI.MODELSTORE", "m", "ONNX", "GPU:7", "BLOB", ECHO),
        ("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model(open_raise="no\nno")),
    ],
    "modelstore refused": [
        ("AI.MODELSTORE", "m", "CAFFE", "CPU", "BLOB", ECHO),
        ("AI.MODELSTORE", "string", "ONNX", "CPU", "BLOB", ECHO),
        ("AI.MODELSTORE", "m", "TF", "CPU", "INPUTS", 2, "a", "BLOB", ECHO),
    ],
    "modelset": [("AI.MODELSET", "m", "TF", "CPU", "INPUTS", "a", "OUTPUTS", "b", "BLOB", ECHO)],
    "modelset refused": [("AI.MODELSET", "m", "TF", "CPU", "INPUTS", "a"), ("AI.MODELSET", "m", "TF", "INPUTS", "a")],
    "modelget": [("AI.MODELGET", "echo"), ("AI.MODELGET", "echo", "META"), ("AI.MODELGET", "nothing")],
    "store, run, delete": [
        ("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", ECHO),
        ("AI.MODELEXECUTE", "m", *RUN),
        ("AI.MODELDEL", "m"),
        ("AI.MODELDEL", "m"),
    ],
    "store, rename, copy, unlink": [
        ("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", ECHO),
        ("COPY", "m", "n"),
        ("RENAME", "m", "o"),
        ("DUMP", "n"),
        ("UNLINK", "n", "o"),
    ],
    "lists and figures": [
        ("AI._MODELSCAN",),
        ("AI._SCRIPTSCAN",),
        ("AI.INFO",),
        ("AI.INFO", "echo"),
        ("AI.INFO", "nothing"),
        ("INFO", "modules"),
    ],
    "statistics": [("AI.MODELEXECUTE", "echo", *RUN), ("AI.INFO", "echo", "RESETSTAT")],
    "configuration": [
        ("AI.CONFIG", "GET", "MODEL_CHUNK_SIZE"),
        ("AI.CONFIG", "MODEL_CHUNK_SIZE", 1 << 29),
        ("AI.CONFIG", "BACKENDSPATH", "/nowhere"),
        ("AI.CONFIG", "LOADBACKEND", "NONE", "x.so"),
        ("AI.CONFIG", "WORD"),
    ],
    "wrong number of arguments": [
        (f"AI.{name}",) for name in ("TENSORSET", "MODELSTORE", "MODELEXECUTE", "DAGEXECUTE", "SCRIPTSTORE", "INFO", "CONFIG")
    ],
}
CASES: dict[str, Turn] = TENSORS | RUNS | PROGRAMS


def restored(client: redis.Redis, rng: random.Random, count: int = 60) -> Turn:
    """RESTORE of payloads with some bytes changed and a checksum that fits: how the decoders give up, or do not."""
    commands: list[Command] = []
    for key in ("x", "words", "echo") * (count // 3):
        body = bytearray(client.dump(key)[:-8])
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(10, len(body) - 2)] = rng.randrange(256)
        commands.append(("RESTORE", "restored", 0, seal(bytes(body)), "REPLACE"))
    return [*commands, ("DEL", "restored")]


# ---- sending -----------------------------------------------------------------------------------------------------------------------

CONNECTIONS = 4  # requests of several clients meet in batches; those of one never do
AT_ONCE = 25  # turns sent before replies are read


def _send(server: Server, turn: Turn, turns: int) -> None:
    with Wire(server.port, timeout=PATIENCE) as wire:
        for done in range(0, turns, AT_ONCE):
            n = min(AT_ONCE, turns - done)
            one = b"".join(b"*%d\r\n" % len(command) + b"".join(map(encode, command)) for command in turn)
            wire.socket.sendall(one * n)
            for _ in range(n * len(turn)):
                wire.read()


def send(server: Server, turn: Turn, turns: int) -> None:
    """`turns` in all, over several new connections at once."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(lambda n: _send(server, turn, n), [turns // CONNECTIONS] * CONNECTIONS))


# ---- measuring -----------------------------------------------------------------------------------------------------------------------

Reading = dict[str, float]
#: What grows by itself until it is full, a little with every command.
GROWING = {"slowlog-max-len": 0, "latency-tracking": "no"}


class Memory:
    """Reads the memory of a server over a connection of its own."""

    def __init__(self, server: Server, *, blocks: bool, pages: bool) -> None:
        self.wire = Wire(server.port, timeout=PATIENCE)
        self._pid, self._blocks, self._pages = server.pid, blocks, pages
        self._before: dict[bytes, bytes] = {}

    def __enter__(self) -> Memory:
        for parameter, value in GROWING.items():
            self._before |= _pairs(self.wire("CONFIG", "GET", parameter))
            self.wire("CONFIG", "SET", parameter, value)
        self.wire("SLOWLOG", "RESET")
        return self

    def __exit__(self, *unused: object) -> None:
        for parameter, value in self._before.items():
            self.wire("CONFIG", "SET", parameter, value)
        self.wire.close()

    def used(self) -> int:
        return _number(rb"used_memory:(\d+)", self.wire("INFO", "memory")) or 0

    def heap(self) -> int | None:
        return _number(rb"\nAllocated: (\d+)", self.wire("MEMORY", "MALLOC-STATS"))

    def objects(self) -> int:
        self.wire("AI.MODELEXECUTE", "blocks", "INPUTS", 1, "x", "OUTPUTS", 1, "objects")
        count: int = self.wire("AI.TENSORGET", "objects", "VALUES")[0]
        return count

    def rss(self) -> int:
        return int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def settle(self) -> None:
        """Sessions are opened and closed by the loader, in order, after the replies that ask for it: a store that fails comes behind them
        all. What other threads gave up is freed by the next command; two readings in a row agree, or ten did not."""
        wait_until(lambda: not _number(rb"ai_jobs_in_flight:(\d+)", self.wire("INFO", "modules")), "the end of what was begun")
        self.wire("AI.MODELSTORE", "barrier", "ONNX", "CPU", "BLOB", "no model")
        last = 0
        for _ in range(10):
            self.wire("AI.INFO")
            if last == (last := self.used()):
                return
            time.sleep(0.002)

    def read(self) -> Reading:
        """What is in use once the server has settled."""
        self.settle()
        reading: Reading = {"used": self.used(), **({"blocks": self.objects()} if self._blocks else {})}
        if self._pages:
            self.wire("MEMORY", "PURGE")
            heap = self.heap()
            reading |= {"rss": self.rss()} if heap is None else {"heap": heap, "rss": self.rss()}
        return reading


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _number(pattern: bytes, text: Any) -> int | None:
    found = re.search(pattern, text) if isinstance(text, bytes) else None
    return int(found[1]) if found else None


def steps(readings: Sequence[float]) -> float:
    """Growth per round, by the median over neighbours: for what is exact. A leak is in every step, a table that doubles in one."""
    return statistics.median(b - a for a, b in itertools.pairwise(readings))


def trend(readings: Sequence[float]) -> float:
    """Growth per round, by the median over all pairs (Theil and Sen): for what comes in pages, and not in every round."""
    return statistics.median((b - a) / (j - i) for (i, a), (j, b) in itertools.combinations(enumerate(readings), 2))


SLOPE = {"used": steps, "blocks": steps, "heap": trend, "rss": trend}


def slopes(readings: Sequence[Reading], turns: int) -> Reading:
    """What each turn left, by metric."""
    return {metric: SLOPE[metric]([reading[metric] for reading in readings]) / turns for metric in readings[0]}


@dataclass
class Survey:
    """What was measured, by case."""

    limits: Reading
    found: dict[str, Reading] = field(default_factory=dict)
    turns: int = 0
    left: int = 0  # bytes of the server's allocator, after FLUSHALL

    def leaks(self) -> dict[str, Reading]:
        """Cases with a slope beyond a limit, and these slopes; and what FLUSHALL did not give back."""
        over = {name: {m: round(s, 2) for m, s in found.items() if s > self.limits[m]} for name, found in self.found.items()}
        if self.left > FLUSHED:
            over["FLUSHALL"] = {"used": self.left}
        return {name: metrics for name, metrics in over.items() if metrics}

    def worst(self) -> Reading:
        """The steepest slope of each metric."""
        return {m: round(max(found[m] for found in self.found.values()), 2) for m in next(iter(self.found.values()))}


def measure(survey: Survey, memory: Memory, name: str, send_round: Callable[[], None], rounds: int, turns: int) -> None:
    """One case: a round to warm up, then rounds that count. A slope beyond its limit, up or down, is measured once more, twice as long: a
    cache that goes on growing through the first measurement, or shrinks and would hide a leak, has come to its end, and a leak has not."""
    for attempt in (1, 2):
        for _ in range(attempt):
            send_round()
        readings = [memory.read()]
        for _ in range(rounds * attempt):
            send_round()
            readings.append(memory.read())
        survey.found[name] = slopes(readings, turns)
        survey.turns += turns * (len(readings) - 1)
        if all(abs(slope) <= survey.limits[metric] for metric, slope in survey.found[name].items()):
            return


# ---- commands ------------------------------------------------------------------------------------------------------------------------


def flushed(memory: Memory) -> int:
    """Memory in use by an empty server that has settled."""
    memory.wire("FLUSHALL", "SYNC")
    memory.settle()
    return memory.used()


def left_after(memory: Memory, baseline: int) -> int:
    """How much more than `baseline` an empty server uses. The server's own buffers shrink some seconds after their last use."""
    deadline = time.monotonic() + 10
    while (left := flushed(memory) - baseline) > FLUSHED and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def commands(seed: int, turns: int, rounds: int = 6, pages: bool = False, only: str = "") -> Survey:
    """Every case, `turns` in each round, and FLUSHALL in the end."""
    survey = Survey(LIMITS)
    with running() as server, server.client() as client, Memory(server, blocks=True, pages=pages) as memory:
        world(client)
        cases = {**CASES, "restore of changed payloads": restored(client, random.Random(seed))}
        for turn in cases.values():
            send(server, turn, CONNECTIONS)
        baseline = flushed(memory)
        world(client)
        for name, turn in cases.items():
            if only in name:
                n = max(CONNECTIONS, turns // len(turn)) if name.startswith("restore") else turns
                measure(survey, memory, name, partial(send, server, turn, n), rounds, n)
        survey.left = left_after(memory, baseline)
    return survey


# ---- backends ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A model or script of a real backend: how it is stored, run and deleted."""

    store: Command
    run: Command
    delete: Command


ONE = ("INPUTS", 1, "x", "OUTPUTS", 1, "y")
SCRIPT = """
def f(tensors: List[Tensor], keys: List[str], args: List[str]):
    redis.execute("SET", keys[0], args[0])
    return tensors[0] * 2
"""


def _model(backend: str, file: str, *words: Any) -> Stored:
    blob = (MODELS / file).read_bytes()
    return Stored(("AI.MODELSTORE", "m", backend, "CPU", *words, "BLOB", blob), ("AI.MODELEXECUTE", "m", *ONE), ("AI.MODELDEL", "m"))


STORED: dict[str, Stored] = {
    "TF": _model("TF", "minimal.pb", "INPUTS", 1, "x", "OUTPUTS", 1, "y"),
    "TFLITE": _model("TFLITE", "minimal.tflite"),
    "TORCH": _model("TORCH", "minimal.pt"),
    "ONNX": _model("ONNX", "minimal.onnx"),
    "SCRIPT": Stored(
        ("AI.SCRIPTSTORE", "m", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", SCRIPT),
        ("AI.SCRIPTEXECUTE", "m", "f", "KEYS", 1, "written", "INPUTS", 1, "x", "ARGS", 1, "v", "OUTPUTS", 1, "y"),
        ("AI.SCRIPTDEL", "m"),
    ),
}


def _do(server: Server, commands: Turn, n: int) -> None:
    with Wire(server.port, timeout=PATIENCE) as wire:
        for command in [*commands] * n:
            assert (reply := wire(*command)) == OK, f"{command[0]}: {reply}"


X = ("AI.TENSORSET", "x", "FLOAT", 1, 2, "VALUES", 1, 2)


def cycles(server: Server, names: Sequence[str], turns: int, rounds: int = 6) -> Survey:
    """Storing, running and deleting, `turns` times in each round, for each of the backends."""
    survey = Survey(CYCLE_LIMITS)
    _do(server, [X], 1)
    with Memory(server, blocks=False, pages=True) as memory:
        for name in names:
            turn = (STORED[name].store, STORED[name].run, STORED[name].delete)
            measure(survey, memory, f"{name}: store, run, delete", partial(_do, server, turn, turns), rounds, turns)
    return survey


def runs(server: Server, names: Sequence[str], turns: int, rounds: int = 6) -> Survey:
    """Runs of one stored model or script, `turns` in each round, for each of the backends."""
    survey = Survey(LIMITS)
    _do(server, [X], 1)
    with Memory(server, blocks=False, pages=True) as memory:
        for name in names:
            _do(server, [STORED[name].store], 1)
            measure(survey, memory, f"{name}: run", partial(_do, server, [STORED[name].run], turns), rounds, turns)
            _do(server, [STORED[name].delete], 1)
    return survey


# ---- the long run -------------------------------------------------------------------------------------------------------------------


def _row(survey: Survey, seed: int, started: float, what: str) -> None:
    """Writes a row of results, or raises AssertionError with what leaks."""
    assert not survey.leaks(), f"seed {seed}: bytes or objects that a turn leaves behind: {survey.leaks()}"
    worst: dict[str, Any] = {f"worst_{metric}": value for metric, value in survey.worst().items()}
    record(f"leaks {what}", seed, {"cases": len(survey.found), "turns": survey.turns, **worst}, time.monotonic() - started)
    sys.stdout.write(f"{what}: {survey.turns} turns of {len(survey.found)} cases; the steepest slopes per turn: {survey.worst()}\n")


def main(arguments: list[str]) -> None:
    """`python -m soak.leaks [turns of each command] [cycles of each backend] [seed]`"""
    turns, stored, seed = [int(a) for a in [*arguments, *("100000", "1000", "20261122")[len(arguments) :]]]
    rounds = 10
    started = time.monotonic()
    _row(commands(seed, turns // rounds, rounds, pages=True), seed, started, "commands")
    with running(echo=False) as server:
        started = time.monotonic()
        _row(cycles(server, list(STORED), stored // rounds, rounds), seed, started, "cycles")
        started = time.monotonic()
        _row(runs(server, list(STORED), turns // rounds, rounds), seed, started, "runs")


if __name__ == "__main__":
    main(sys.argv[1:])
