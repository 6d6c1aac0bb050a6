"""Memory and threads that the system does not give: every allocation of a size from outside fails in turn, threads do not start."""

from __future__ import annotations

import mmap
import os
import resource
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rdb_payload as rdb
from conftest import echo_model
from runs import info, put, store, wait_gone
from servers import Server, wait_until
from wire import OK, QUEUED, Error, Wire

pytestmark = pytest.mark.skipif("SANITIZER" in os.environ, reason="sanitizers have an allocator of their own")

SOURCE = Path(__file__).with_name("fault_points.c")
WATCH, CALLS, FAIL_AT, NO_THREADS, WORDS = range(5)


class Points:
    """The file that a server and its test share."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(4 * WORDS))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4 * WORDS)

    def __getitem__(self, at: int) -> int:
        return int(struct.unpack_from("i", self._map, 4 * at)[0])

    def __setitem__(self, at: int, value: int) -> None:
        struct.pack_into("i", self._map, 4 * at, value)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Points]]:
    folder = tmp_path_factory.mktemp("points")
    library, path = folder / "fault_points.so", folder / "points"
    subprocess.run(["cc", "-O1", "-fno-optimize-sibling-calls", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    points = Points(path)
    server = Server(env={"LD_PRELOAD": str(library), "FAULT_POINTS": str(path)}, module_args=("THREADS_PER_QUEUE", "1"))
    yield server, points
    points[WATCH] = points[NO_THREADS] = 0
    server.close()


@pytest.fixture
def points(faulty: tuple[Server, Points]) -> Iterator[Points]:
    _, points = faulty
    yield points
    for at in range(WORDS):
        points[at] = 0


@pytest.fixture
def wire(faulty: tuple[Server, Points], points: Points) -> Iterator[Wire]:
    server, _ = faulty
    with Wire(server.port) as connection:
        assert connection("FLUSHALL") == OK
        yield connection
    assert server.alive(), server.log()[-4000:]


def in_transaction(wire: Wire, *command: Any) -> Any:
    assert wire("MULTI") == OK
    assert wire(*command) == QUEUED
    return wire("EXEC")[0]


BLOB = b"\1" * 100_000
MODEL = ("AI.MODELSTORE", "k", "ONNX", "CPU", "BLOB", echo_model())
SCRIPT = ("AI.SCRIPTSTORE", "k", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", "def f(a, b, c):\n    return a\n")
DAG = "AI.DAGEXECUTE LOAD 1 x PERSIST 2 k l |> AI.MODELEXECUTE m INPUTS 1 x OUTPUTS 1 k |> AI.TENSORSET l INT8 2 VALUES 1 2"


def whole(replies: Any) -> Any:
    """The reply of a DAG: OK when those of all its ops are."""
    return OK if replies == [OK, OK] else replies if isinstance(replies, Error) else next(r for r in replies if isinstance(r, Error))


#: what is done -> a call that gives one reply; each writes `k`
CASES: dict[str, Callable[[Wire], Any]] = {
    "tensor of zeros": lambda w: w("AI.TENSORSET", "k", "FLOAT", 1000),
    "values": lambda w: w("AI.TENSORSET", "k", "FLOAT", 3, "VALUES", 1, 2, 3),
    "strings": lambda w: w("AI.TENSORSET", "k", "STRING", 2, "VALUES", "a", "bc"),
    "small blob": lambda w: w("AI.TENSORSET", "k", "INT8", 4, "BLOB", b"abcd"),
    "string blob": lambda w: w("AI.TENSORSET", "k", "STRING", 2, "BLOB", b"a\0bc\0"),
    "restored tensor": lambda w: w("RESTORE", "k", 0, rdb.tensor("INT32", [2, 1], b"12345678")),
    "restored strings": lambda w: w("RESTORE", "k", 0, rdb.tensor("STRING", [2], b"a\0b\0")),
    "restored model": lambda w: w("RESTORE", "k", 0, rdb.model("ONNX", b"model" * 100, cut=[b"model" * 50, b"model" * 50])),
    "restored model of old": lambda w: w("RESTORE", "k", 0, rdb.model("ONNX", b"model" * 100, 0)),
    "restored script": lambda w: w("RESTORE", "k", 0, rdb.script("def f(): pass")),
    "model": lambda w: w(*MODEL),
    "model in a transaction": lambda w: in_transaction(w, *MODEL),
    "script in a transaction": lambda w: in_transaction(w, *SCRIPT),
    "run": lambda w: w("AI.MODELEXECUTE", "m", "INPUTS", 1, "x", "OUTPUTS", 1, "k"),
    "run on a large input": lambda w: w("AI.MODELEXECUTE", "m", "INPUTS", 1, "big", "OUTPUTS", 1, "k"),
    "batched run": lambda w: w("AI.MODELEXECUTE", "batched", "INPUTS", 1, "x", "OUTPUTS", 1, "k"),
    "sum": lambda w: w("AI.MODELEXECUTE", "add", "INPUTS", 2, "x", "x", "OUTPUTS", 1, "k"),
    "DAG": lambda w: whole(w(*DAG.split())),
}


@pytest.mark.parametrize("what", CASES)
def test_each_allocation_fails_in_turn(wire: Wire, points: Points, what: str) -> None:
    """One error, nothing written, and the next try is as if nothing had happened."""
    store(wire, "m")
    store(wire, "batched", "echo", 1, 1, "CPU", "BATCHSIZE", 4)
    store(wire, "add", "add", 2)
    put(wire, "x", 1, 2)
    assert wire("AI.TENSORSET", "big", "UINT8", 1, len(BLOB), "BLOB", BLOB) == OK
    points[WATCH] = 1
    assert CASES[what](wire) == OK
    calls = points[CALLS]
    assert calls > 0, "this allocates nothing of a size from outside"
    for n in range(1, calls + 1):
        wire("DEL", "k", "l")
        if what == "run on a large input":  # whose aligned copy a worker makes once
            assert wire("AI.TENSORSET", "big", "UINT8", 1, len(BLOB), "BLOB", BLOB) == OK
        points[CALLS], points[FAIL_AT] = 0, n
        reply = CASES[what](wire)
        points[FAIL_AT] = 0
        assert isinstance(reply, Error), (what, n, calls, reply)
        assert wire("EXISTS", "k", "l") == 0
        assert wire("PING").text == "PONG"
        wait_gone(wire)
    assert CASES[what](wire) == OK
    assert wire("EXISTS", "k") == 1


def test_a_batch_that_finds_no_memory_is_run_member_by_member(
    faulty: tuple[Server, Points], wire: Wire, points: Points, tmp_path: Path
) -> None:
    """Whichever allocation fails while four requests are gathered, run and scattered: each has one reply, an OK is stored."""
    server, _ = faulty
    store(wire, "gate", "gate", path=str(tmp_path / "gate"))
    store(wire, "batched", "echo", 1, 1, "CPU", "BATCHSIZE", 8)
    for n in range(4):
        put(wire, f"x{n}", n)

    def four() -> list[Any]:
        (tmp_path / "gate").unlink(missing_ok=True)
        wire("DEL", *(f"y{n}" for n in range(4)))
        waiting = [Wire(server.port) for _ in range(5)]
        waiting[4].send("AI.MODELEXECUTE", "gate", "INPUTS", 1, "x0", "OUTPUTS", 1, "g")
        wait_until(lambda: info(wire, "queue_CPU_idle_workers") == 0)
        for n in range(4):
            waiting[n].send("AI.MODELEXECUTE", "batched", "INPUTS", 1, f"x{n}", "OUTPUTS", 1, f"y{n}")
        wait_until(lambda: info(wire, "queue_CPU_length") == 4)
        points[CALLS] = 0
        (tmp_path / "gate").touch()
        waiting[4].read()
        replies = [connection.read() for connection in waiting[:4]]
        for connection in waiting:
            connection.close()
        return replies

    points[WATCH] = 1
    assert four() == [OK] * 4
    for n in range(1, points[CALLS] + 1):
        points[FAIL_AT] = n
        replies = four()
        assert all(reply == OK or isinstance(reply, Error) for reply in replies)
        assert [wire("EXISTS", f"y{i}") for i in range(4)] == [int(reply == OK) for reply in replies]
        points[FAIL_AT] = 0
    assert four() == [OK] * 4


def test_failures_leave_no_memory_behind(wire: Wire, points: Points) -> None:
    store(wire, "m")
    assert wire("AI.TENSORSET", "x", "FLOAT", 1, 50_000) == OK
    points[WATCH] = 1

    def fail(times: int) -> int:
        for _ in range(times):
            for n in (1, 2, 3):
                points[CALLS], points[FAIL_AT] = 0, n
                wire("AI.MODELEXECUTE", "m", "INPUTS", 1, "x", "OUTPUTS", 1, "x2")
                points[CALLS], points[FAIL_AT] = 0, n
                wire("RESTORE", "r", 0, rdb.tensor("UINT8", [100_000], BLOB), "REPLACE")
        points[FAIL_AT] = 0
        wire("DEL", "x2", "r")
        wait_gone(wire)
        return info_memory(wire)

    before = fail(10)
    assert fail(60) < before + 400_000


def info_memory(wire: Wire) -> int:
    return int(next(line for line in wire("INFO", "memory").decode().splitlines() if line.startswith("used_memory:")).split(":")[1])


# ---- threads ---------------------------------------------------------------------------------------------------------------


def test_a_device_whose_workers_do_not_start_serves_when_they_do(wire: Wire, points: Points) -> None:
    """The store that needed a thread says so; who has threads goes on; and the next store for the device starts its worker."""
    store(wire, "m")
    put(wire, "x", 5)
    points[NO_THREADS] = 1
    for _ in range(2):
        reply = wire("AI.MODELSTORE", "second", "ONNX", "CPU:7", "BLOB", echo_model())
        assert reply == Error("ERR RuntimeError: can't start new thread")
        assert wire("AI.MODELEXECUTE", "m", "INPUTS", 1, "x", "OUTPUTS", 1, "y") == OK
    assert wire("EXISTS", "second") == 0
    points[NO_THREADS] = 0
    store(wire, "second", "echo", 1, 1, "CPU:7")
    assert wire("AI.MODELEXECUTE", "second", "INPUTS", 1, "x", "OUTPUTS", 1, "z") == OK


# ---- limits of the process -------------------------------------------------------------------------------------------------


def test_without_file_descriptors_clients_are_refused_and_the_rest_goes_on(start_server: Callable[..., Server]) -> None:
    server = start_server("--maxclients", "50")
    with Wire(server.port) as wire:
        store(wire, "m")
        put(wire, "x", 1)
        files = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
        limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (files, limits[1]))
        run = ("AI.MODELEXECUTE", "m", "INPUTS", 1, "x", "OUTPUTS", 1, "y")
        assert wire(*run) == OK
        store(wire, "n", "echo", 1, 1, "CPU:1")  # a model and a worker need none
        assert isinstance(wire("SAVE"), Error)
        assert wire(*run) == OK
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
        assert wire("SAVE") == OK
        with Wire(server.port) as another:
            assert another(*run) == OK


def test_an_address_space_that_is_used_up_is_an_error_of_the_command(start_server: Callable[..., Server]) -> None:
    server = start_server(module_args=("MAX_TENSOR_BYTES", str(2**40)))
    with Wire(server.port) as wire:
        store(wire, "m")
        put(wire, "x", 1)
        size = int(Path(f"/proc/{server.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(server.pid, resource.RLIMIT_AS, (size + 200_000_000, -1))
        for _ in range(3):
            assert isinstance(wire("AI.TENSORSET", "big", "DOUBLE", 1000, 1_000_000), Error)
        assert wire("EXISTS", "big") == 0
        assert wire("AI.MODELEXECUTE", "m", "INPUTS", 1, "x", "OUTPUTS", 1, "y") == OK
