"""What happens around a run: who may name which key, keys that change meanwhile, batches against single runs, clocks that jump, crowds of
clients and of clients that leave. All of it with the echo backend, whose answers are known."""

from __future__ import annotations

import math
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import echo_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import Gate, calls, get, info, put, put_script, since_7, store, wait_gone, wait_queued, wait_running
from servers import Server, wait_until
from wire import OK, Error, Status, Wire, encode

WRONGTYPE = Error("WRONGTYPE Operation against a key holding the wrong kind of value")
TIMEDOUT = Status("TIMEDOUT")


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    with Wire(server.port) as wire:
        yield wire


@pytest.fixture
def other(server: Server) -> Iterator[Wire]:
    with Wire(server.port) as wire:
        yield wire


def execute(key: str, source: str, target: str, *words: Any) -> tuple[Any, ...]:
    return ("AI.MODELEXECUTE", key, "INPUTS", 1, source, "OUTPUTS", 1, target, *words)


def used_memory(wire: Wire) -> int:
    return int(dict(line.split(":") for line in wire("INFO", "memory").decode().splitlines() if ":" in line)["used_memory"])


# ---- rights to keys in every position ------------------------------------------------------------------------------------------------

#: No two of them match one pattern of `pattern()`.
NAMES = [
    "LOAD",
    "PERSIST",
    "ROUTING",
    "TIMEOUT",
    "KEYS",
    "ARGS",
    "AI.MODELEXECUTE",
    "1",
    "|>x",
    "a\r\nb",
    "\0name",
    "a b c",
    "%R~x",
    "plain",
]
#: What ends a list of keys in the older commands.
WORDS_OF_OLD_COMMANDS = {"TIMEOUT", "INPUTS", "OUTPUTS"}
Named = tuple[list[Any], dict[str, str]]


def pattern(name: str) -> str:
    """Matches this name and no other of NAMES: a pattern cannot hold blanks and zero bytes."""
    return "".join(c if c.isalnum() else "?" for c in name)


@st.composite
def commands(draw: st.DrawFn) -> tuple[str, list[str], str, list[Any], dict[str, set[str]]]:
    """A model's name, its inputs' names, a script's name, a command that uses them, and the kinds of access it needs to each key."""
    names = draw(st.permutations(NAMES))
    model, script, tensors, outputs = names[0], names[1], names[2:5], names[5:8]
    kind = draw(
        st.sampled_from(["execute", "run", "dag", "dag_ro", "dagrun", "script", "scriptrun", "get", "set", "modelget", "del", "info"])
    )
    inputs = draw(st.lists(st.sampled_from(tensors), min_size=2, max_size=2))
    output = draw(st.sampled_from([*outputs, *inputs]))
    needs: dict[str, set[str]] = {}

    def need(key: str, access: str) -> str:
        needs.setdefault(key, set()).update(access)
        return key

    old = kind in ("run", "scriptrun", "dagrun")
    if old:
        plain = [name for name in tensors if name not in WORDS_OF_OLD_COMMANDS]
        inputs = [name if name in plain else plain[0] for name in inputs]
        output = output if output not in WORDS_OF_OLD_COMMANDS else plain[0]
    local = draw(st.sampled_from(["LOAD", "INPUTS", "local", "PERSIST"])) if kind != "dagrun" else "local"
    line: list[Any]
    match kind:
        case "execute":
            line = ["AI.MODELEXECUTE", need(model, "R"), "INPUTS", 2, *inputs, "OUTPUTS", 1, need(output, "W")]
            [need(name, "R") for name in inputs]
        case "run":
            line = ["AI.MODELRUN", need(model, "R"), "INPUTS", *inputs, "OUTPUTS", need(output, "W")]
            [need(name, "R") for name in inputs]
        case "dag":
            line = [
                "AI.DAGEXECUTE",
                "LOAD",
                1,
                need(inputs[0], "R"),
                "PERSIST",
                1,
                need(output, "W"),
                "|>",
                "AI.TENSORSET",
                local,
                "DOUBLE",
            ]
            line += [1, 1, "|>", "AI.MODELEXECUTE", need(model, "R"), "INPUTS", 2, inputs[0], local, "OUTPUTS", 1, output]
        case "dag_ro":
            line = ["AI.DAGEXECUTE_RO", "LOAD", 2, *(need(name, "R") for name in inputs), "|>", "AI.MODELEXECUTE", need(model, "R")]
            line += ["INPUTS", 2, *inputs, "OUTPUTS", 1, local, "|>", "AI.TENSORGET", local]
        case "dagrun":
            line = ["AI.DAGRUN", "PERSIST", 1, need(output, "W"), "LOAD", 1, need(inputs[0], "R"), "|>", "AI.MODELRUN", need(model, "R")]
            line += ["INPUTS", inputs[0], inputs[0], "OUTPUTS", output]
        case "script":
            line = ["AI.SCRIPTEXECUTE", need(script, "R"), "f", "KEYS", 1, need(output, "RW"), "INPUTS", 1, need(inputs[0], "R")]
            line += ["ARGS", 1, "OUTPUTS", "OUTPUTS", 1, need(outputs[0], "W")]
        case "scriptrun":
            line = ["AI.SCRIPTRUN", need(script, "R"), "f", "INPUTS", need(inputs[0], "R"), "$", need(inputs[1], "R"), "OUTPUTS"]
            line += [need(output, "W")]
        case "get":
            line = ["AI.TENSORGET", need(inputs[0], "R"), "VALUES"]
        case "set":
            line = ["AI.TENSORSET", need(output, "W"), "DOUBLE", 1]
        case "modelget":
            line = ["AI.MODELGET", need(model, "R")]
        case "del":
            line = ["AI.MODELDEL", need(model, "W")]
        case _:
            line = ["AI.INFO", need(model, "R")]
    return model, tensors, script, line, needs


@since_7
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=commands(), data=st.data())
def test_a_command_is_refused_exactly_when_a_right_to_one_of_its_keys_is_missing(wire: Wire, other: Wire, made: Any, data: Any) -> None:
    model, tensors, script, line, needs = made
    wire("FLUSHALL")
    store(wire, model, "add", 2)
    put_script(wire, script)
    for name in tensors:
        put(wire, name, 1)
    granted = {name: set(data.draw(st.sampled_from(["RW", *([""] if name in needs else []), "R", "W"]))) for name in NAMES}
    if data.draw(st.booleans()):
        granted |= needs
    patterns = [f"%{''.join(sorted(kinds))}~{pattern(name)}" for name, kinds in granted.items() if kinds]
    assert wire("ACL", "SETUSER", "u", "reset", "on", "nopass", "+@all", *patterns) == OK
    assert other("AUTH", "u", "x") == OK
    before = wire("DEBUG", "DIGEST")
    reply = other.only_reply(*line)
    denied = isinstance(reply, Error) and reply.text.startswith("NOPERM")
    missing = [name for name, kinds in needs.items() if not kinds <= granted[name]]
    assert denied == bool(missing), (line, missing, reply)
    if denied:
        assert wire("DEBUG", "DIGEST") == before
        assert calls(wire, model) == (0, 0)
    elif "SCRIPT" not in line[0]:
        assert not isinstance(reply, Error) and not (isinstance(reply, list) and any(isinstance(item, Error) for item in reply)), reply


# ---- keys that change while a DAG runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "during", "kind"),
    [
        ([], ["SET o x"], "string"),
        ([], ["RPUSH o x"], "list"),
        (["AI.TENSORSET o DOUBLE 1 VALUES 5"], ["DEL o", "SET o y"], "string"),
        (["SET o x"], [], "string"),
        (["SET o x"], ["DEL o"], "AI_TENSOR"),
        (["SET o x"], ["RENAME o p"], "AI_TENSOR"),
        ([], ["AI.TENSORSET o DOUBLE 1 VALUES 5", "EXPIRE o 100"], "AI_TENSOR"),
        (["AI.TENSORSET o DOUBLE 1 VALUES 5", "EXPIRE o 100"], ["EXPIRE o 200"], "AI_TENSOR"),
        (["AI.TENSORSET o DOUBLE 1 VALUES 5"], ["PEXPIRE o 1"], "AI_TENSOR"),
    ],
)
def test_a_dag_persists_by_what_its_keys_are_at_the_end(
    wire: Wire, other: Wire, tmp_path: Path, before: list[str], during: list[str], kind: str
) -> None:
    """Where a key is of another type then: one element more, and nothing stored. A time to live is gone."""
    gate = Gate(wire, tmp_path / "gate", "gate")
    put(wire, "a", 1, 2)
    for line in before:
        wire(*line.split())
    other.send(*"AI.DAGEXECUTE LOAD 1 a PERSIST 1 o |> AI.MODELEXECUTE gate INPUTS 1 a OUTPUTS 1 o".split())
    wait_running(wire)
    for line in during:
        wire(*line.split())
    dump = wire("DUMP", "o")
    gate.open()
    assert other.read() == ([OK] if kind == "AI_TENSOR" else [OK, WRONGTYPE])
    assert other("PING") == Status("PONG"), "one reply and no more"
    assert wire("TYPE", "o") == Status(kind)
    assert (get(wire, "o") == [1, 2]) if kind == "AI_TENSOR" else (wire("DUMP", "o") == dump)
    assert wire("TTL", "o") == -1


# ---- one value or the other --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 1 << 20], ids=["copied", "kept"])
def test_a_reader_sees_a_tensor_as_it_was_or_as_it_is(server: Server, wire: Wire, size: int) -> None:
    """It is overwritten by commands and by runs that read it, and read as bytes, as numbers and with its shape."""
    values = range(1, 5)
    for n in values:
        assert wire("AI.TENSORSET", f"source{n}", "UINT8", n, size // n, "BLOB", bytes([n]) * (n * (size // n))) == OK
    store(wire, "m")
    whole = {n: (n, size // n, bytes([n]) * (n * (size // n))) for n in values}
    over, wrong = threading.Event(), []

    def overwrite() -> None:
        with Wire(server.port) as own:
            while not over.is_set():
                for n in values:
                    assert own(*execute("m", f"source{n}", "t")) == OK
                    assert own("AI.TENSORSET", "t", "UINT8", n, size // n, "BLOB", whole[n][2]) == OK

    def read(resp: int) -> None:
        with Wire(server.port, resp=resp) as own:
            for _ in range(40):
                meta = own("AI.TENSORGET", "t", "META", "BLOB")
                found = (*meta[3], meta[5])
                dag = own("AI.DAGRUN_RO", "LOAD", 1, "t", "|>", "AI.TENSORGET", "t", "META", "|>", "AI.TENSORGET", "t", "BLOB")
                if found != whole[meta[3][0]] or (*dag[0][3], dag[1]) != whole[dag[0][3][0]]:
                    wrong.append(meta[3])
                if size < 100 and len(set(own("AI.TENSORGET", "t", "VALUES"))) != 1:
                    wrong.append("values")

    assert wire(*execute("m", "source1", "t")) == OK
    threads = [threading.Thread(target=overwrite), *(threading.Thread(target=read, args=(resp,)) for resp in (2, 2, 3))]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    over.set()
    threads[0].join()
    assert wrong == []


# ---- a batch gives what single runs give -------------------------------------------------------------------------------------------------

WIDTHS = [(), (1,), (2,), (2, 1), (3, 2)]
DTYPES = {"FLOAT": "<f4", "DOUBLE": "<f8", "INT8": "i1", "INT32": "<i4", "INT64": "<i8", "UINT8": "u1", "UINT16": "<u2", "BOOL": "?"}


@st.composite
def tensors(draw: st.DrawFn, rows: int | None = None) -> tuple[str, tuple[int, ...], bytes]:
    """A dtype, a shape and bytes, from few enough of each that some tensors may share a batch."""
    width = draw(st.sampled_from(WIDTHS))
    shape = (rows or draw(st.integers(1, 4)), *width) if draw(st.integers(0, 7)) else ()
    n = math.prod(shape)
    dtype = draw(st.sampled_from([*DTYPES, "FLOAT", "FLOAT", "STRING"]))
    if dtype == "STRING":
        return dtype, shape, b"".join(draw(st.binary(max_size=3)).replace(b"\0", b"") + b"\0" for _ in range(n))
    data = np.frombuffer(draw(st.binary(min_size=8 * n, max_size=8 * n)), "u1")
    if dtype == "BOOL":
        return dtype, shape, bytes(data[:n] & 1)
    return dtype, shape, data[: n * np.dtype(DTYPES[dtype]).itemsize].tobytes()


requests = st.lists(
    st.one_of(
        st.tuples(tensors()),
        st.integers(1, 4).flatmap(lambda rows: st.tuples(tensors(rows), tensors(rows))),
        st.tuples(tensors(), tensors()),
    ),
    min_size=2,
    max_size=9,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=requests, batchsize=st.integers(2, 12))
def test_a_batch_gives_every_request_to_the_bit_what_a_run_alone_gives(
    wire: Wire, server: Server, tmp_path_factory: pytest.TempPathFactory, made: list[Any], batchsize: int
) -> None:
    wire("FLUSHALL")
    gate = Gate(wire, tmp_path_factory.mktemp("batch") / "gate", "gate")
    put(wire, "ticket", 1)
    for n in (1, 2):
        store(wire, f"alone{n}", "echo", n, n)
        store(wire, f"batched{n}", "echo", n, n, "CPU", "BATCHSIZE", batchsize)
    groups: dict[int, set[Any]] = {1: set(), 2: set()}
    for i, inputs in enumerate(made):
        for j, (dtype, shape, data) in enumerate(inputs):
            assert wire("AI.TENSORSET", f"in{i}:{j}", dtype, *shape, "BLOB", data) == OK
        groups[len(inputs)].add(tuple((dtype, shape[1:]) for dtype, shape, _ in inputs))

    def run(kind: str, i: int) -> list[Any]:
        n = len(made[i])
        names = [f"in{i}:{j}" for j in range(n)]
        return ["AI.MODELEXECUTE", f"{kind}{n}", "INPUTS", n, *names, "OUTPUTS", n, *(f"{kind}{i}:{j}" for j in range(n))]

    clients = [Wire(server.port) for _ in made]
    with Wire(server.port) as holder:
        holder.send(*execute("gate", "ticket", "passed"))
        wait_running(wire)
        for i, client in enumerate(clients):
            client.send(*run("batched", i))
        wait_queued(wire, len(made))
        gate.open()
        assert holder.read() == OK
    assert [client.read() for client in clients] == [OK] * len(made)
    for i, (client, inputs) in enumerate(zip(clients, made, strict=True)):
        assert wire(*run("alone", i)) == OK
        for j, (dtype, shape, data) in enumerate(inputs):
            found = [wire("AI.TENSORGET", f"{kind}{i}:{j}") for kind in ("alone", "batched")]
            assert found[0] == found[1] == [b"dtype", dtype.encode(), b"shape", list(shape), b"blob", data]
        client.close()
    for n, kinds in groups.items():
        if kinds:
            reply = dict(zip(*[iter(wire("AI.INFO", f"batched{n}", "STATS"))] * 2, strict=True))
            assert len(kinds) <= reply[b"batches"] <= reply[b"batched_requests"] == sum(len(inputs) == n for inputs in made)


# ---- clocks ------------------------------------------------------------------------------------------------------------------------------

#: The clock of the day, moved by as many seconds as stand in a file; the clock that only goes forward is left alone.
CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long *moved;
__attribute__((constructor)) static void start(void) {
    int fd = open(getenv("CLOCK_FILE"), O_RDONLY);
    moved = mmap(NULL, sizeof *moved, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
}
int clock_gettime(clockid_t clock, struct timespec *t) {
    int status = (int)syscall(SYS_clock_gettime, clock, t);
    if (moved && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) t->tv_sec += *moved;
    return status;
}
int gettimeofday(struct timeval *t, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return zone ? 0 : 0;
}
time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
"""
HOUR = 3600


def test_a_clock_that_jumps_by_an_hour_ends_no_wait_and_prolongs_none(start_server: Callable[..., Server], tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the module itself needs a C compiler"
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", tmp_path / "clock.so", tmp_path / "clock.c"], check=True)
    clock = tmp_path / "clock"
    clock.write_bytes(bytes(8))
    server = start_server(
        module_args=("MODEL_EXECUTION_TIMEOUT", "1000"), env={"LD_PRELOAD": str(tmp_path / "clock.so"), "CLOCK_FILE": str(clock)}
    )

    def move(seconds: int) -> None:
        before = int(wire("TIME")[0])
        with clock.open("r+b") as file:
            was = struct.unpack("<q", file.read())[0]
            file.seek(0)
            file.write(struct.pack("<q", seconds))
        wait_until(lambda: abs(int(wire("TIME")[0]) - before - (seconds - was)) < 60, "the server to see the clock that was moved")

    with Wire(server.port) as wire, Wire(server.port) as one, Wire(server.port) as two, Wire(server.port) as three:
        put(wire, "in", 1)
        gate = Gate(wire, tmp_path / "gate", "gate")
        store(wire, "m")
        store(wire, "ended", "gate", 1, 1, "CPU:1", path=str(tmp_path / "never"), terminable=True)
        store(wire, "short", "gate", 1, 1, "CPU:2", path=str(tmp_path / "short"), terminable=True)
        store(wire, "company", "echo", 1, 1, "CPU:3", "BATCHSIZE", 9, "MINBATCHSIZE", 9)
        store(wire, "soon", "echo", 1, 1, "CPU:3", "BATCHSIZE", 9, "MINBATCHSIZE", 9, "MINBATCHTIMEOUT", 30)
        one.send(*execute("gate", "in", "a"))
        wait_running(wire)
        two.send(*execute("m", "in", "b", "TIMEOUT", 600_000))
        three.send(*execute("company", "in", "c", "TIMEOUT", 600_000))
        wait_queued(wire, 1)
        wait_queued(wire, 1, "CPU:3")
        for moved in (HOUR, -HOUR, 0):
            move(moved)
            assert wire(*execute("m", "in", "d", "TIMEOUT", 30)) == TIMEDOUT  # behind the gate
            assert wire(*execute("soon", "in", "e")) == OK
            assert (info(wire, "queue_CPU_length"), info(wire, "queue_CPU:3_length")) == (1, 1), "nobody was released by the jump"
        with Wire(server.port) as four, Wire(server.port) as five:
            four.send(*execute("short", "in", "f"))
            wait_running(wire, "CPU:2")
            five.send(*execute("ended", "in", "g"))
            wait_running(wire, "CPU:1")
            move(HOUR)
            (tmp_path / "short").touch()
            assert four.read() == OK
            move(-HOUR)
            assert five.read() == Error("Exiting due to terminate flag being set to true.")
        fields = dict(zip(*[iter(wire("AI.INFO", "short"))] * 2, strict=True))
        assert 0 <= fields[b"duration"] < 60_000_000
        gate.open()
        assert (one.read(), two.read()) == (OK, OK)
        three.close()


# ---- a model that opens ------------------------------------------------------------------------------------------------------------------

WAITING = {
    "run": execute("m", "in", "out"),
    "run with a timeout": execute("m", "in", "out", "TIMEOUT", 600_000),
    "dag": ("AI.DAGEXECUTE", "LOAD", 1, "in", "PERSIST", 1, "out", "|>", *execute("m", "in", "out")),
    "show": ("AI.MODELGET", "m", "META"),
    "store": ("AI.MODELSTORE", "out", "ONNX", "CPU", "BLOB", echo_model()),
}


@pytest.mark.parametrize("leave", [True, False], ids=["leaves", "stays"])
@pytest.mark.parametrize("what", WAITING)
@pytest.mark.parametrize("change", ["nothing", "DEL m", "FLUSHALL", "SET m x", "AI.MODELSTORE"])
def test_who_waits_for_a_model_to_open_is_answered_once_or_not_at_all(
    wire: Wire, server: Server, tmp_path: Path, what: str, change: str, leave: bool
) -> None:
    """A model that a transaction stored is opened afterwards; meanwhile its key may go, or be another model's."""
    put(wire, "in", 1)
    wire("MULTI")
    wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model(open_gate=str(tmp_path / "open")))
    assert wire("EXEC") == [OK]
    before = info(wire, "jobs_in_flight") or 0
    with Wire(server.port) as waiting, Wire(server.port) as storing:
        waiting.send(*WAITING[what])
        wait_until(lambda: info(wire, "jobs_in_flight") == before + 1, "the request to wait")
        if change == "AI.MODELSTORE":
            storing.send("AI.MODELSTORE", "m", "ONNX", "CPU", "TAG", "new", "BLOB", echo_model("nan"))
            wait_until(lambda: info(wire, "jobs_in_flight") == before + 2, "the other store to wait")
        elif change != "nothing":
            wire(*change.split())
        if leave:
            waiting.close()
            wait_until(lambda: info(wire, "jobs_in_flight") == before + (change == "AI.MODELSTORE"), "the request to be gone")
        (tmp_path / "open").touch()
        if change == "AI.MODELSTORE":
            assert storing.read() == OK
            assert wire("AI.MODELGET", "m", "META")[5] == b"new"
        if leave:
            assert wire("EXISTS", "out") == 0
        else:
            reply = waiting.read()
            assert waiting("PING") == Status("PONG"), "one reply and no more"
            assert reply == ([OK] if what == "dag" else OK) if what != "show" else reply[11] == [b"input_0"]
            if what.startswith(("run", "dag")):
                assert get(wire, "out") == [1], "by the model that it found"
    wait_gone(wire)
    wire("FLUSHALL")
    wait_until(lambda: info(wire, "ONNX_sessions") == 0, "every session to be closed")


def test_stores_that_nobody_waits_for_are_not_begun_and_give_their_memory_back(wire: Wire, server: Server, tmp_path: Path) -> None:
    """While the loader is busy: the bytes of twenty models, and the place in the loader's queue."""
    padding = " " * (1 << 20)
    with Wire(server.port) as busy:
        busy.send("AI.MODELSTORE", "slow", "ONNX", "CPU", "BLOB", echo_model(open_gate=str(tmp_path / "open")))
        wait_until(lambda: info(wire, "loads_in_progress") == 1, "the loader to be busy")
        before = used_memory(wire)
        leavers = [Wire(server.port) for _ in range(20)]
        for n, leaver in enumerate(leavers):
            leaver.send("AI.MODELSTORE", f"m{n}", "ONNX", "CPU", "BLOB", echo_model(), padding)
        wait_until(lambda: info(wire, "loads_in_progress") == 21, "every store to wait")
        with Wire(server.port) as patient:
            patient.send("AI.MODELSTORE", "last", "ONNX", "CPU", "BLOB", echo_model())
            wait_until(lambda: info(wire, "loads_in_progress") == 22, "one more")
            for leaver in leavers:
                leaver.close()
            wait_until(lambda: info(wire, "loads_in_progress") == 2, "the stores to be taken back")
            wait_until(lambda: used_memory(wire) - before < 2 << 20, "the memory to be given back")
            (tmp_path / "open").touch()
            assert (busy.read(), patient.read()) == (OK, OK)
    assert wire("DBSIZE") == 2
    assert wire("AI._MODELSCAN") == [[b"last", b""], [b"slow", b""]]


# ---- crowds ------------------------------------------------------------------------------------------------------------------------------


def test_a_hundred_thousand_requests_of_five_hundred_clients(server: Server, wire: Wire) -> None:
    """Each client sends all of its requests at once: one of them waits in the queue, the others in its connection."""
    n, each = 500, 200
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 64)
    put(wire, "in", 1)
    line = b"*8\r\n" + b"".join(map(encode, execute("m", "in", "out")))
    before = used_memory(wire)
    clients = [Wire(server.port) for _ in range(n)]
    for client in clients:
        client.socket.sendall(line * each)
    most = 0
    for client in clients:
        assert client.reader.read(5 * each) == b"+OK\r\n" * each
        most = max(most, used_memory(wire))
        client.close()
    assert most - before < n * (2 * len(line) * each + 100_000), "what clients sent and a bounded share for each"
    wait_gone(wire)
    assert calls(wire, "m") == (n * each, 0)
    wait_until(lambda: used_memory(wire) - before < 2 << 20, "the memory to be given back")
