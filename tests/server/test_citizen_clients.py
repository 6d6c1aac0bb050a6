"""What an operator does to clients and keys works with our commands: events, WATCH, caching, CLIENT, times, memory, replicas."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import echo_model
from servers import Server, server_binaries, wait_until
from wire import OK, Error, Push, Wire

OOM = "OOM command not allowed when used memory > 'maxmemory'."


@pytest.fixture
def w(every_server: Server) -> Iterator[Wire]:
    with Wire(every_server.port) as wire:
        yield wire
        wire("CONFIG", "RESETSTAT")


@pytest.fixture
def connect(every_server: Server) -> Iterator[Callable[..., Wire]]:
    """Opens further connections; closes them at the end."""
    opened: list[Wire] = []

    def new(**options: Any) -> Wire:
        opened.append(Wire(every_server.port, **options))
        return opened[-1]

    yield new
    for wire in opened:
        wire.close()


@pytest.fixture
def configure(w: Wire) -> Iterator[Callable[[str, object], None]]:
    """CONFIG SET, undone at the end."""
    before: dict[str, bytes] = {}

    def put(name: str, value: object) -> None:
        before.setdefault(name, w("CONFIG", "GET", name)[1])
        assert w("CONFIG", "SET", name, str(value)) == OK

    yield put
    for name, value in before.items():
        w("CONFIG", "SET", name, value)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def model(w: Wire, gate: Path) -> None:
    """A model `m` that gives its input back, one `gated` that waits for the gate, and a tensor `x`."""
    assert w("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model()) == OK
    assert w("AI.MODELSTORE", "gated", "TORCH", "CPU", "BLOB", echo_model("gate", path=str(gate))) == OK
    assert w("AI.TENSORSET", "x", "FLOAT", 1, "VALUES", 2) == OK


def field(w: Wire, name: str) -> str:
    """One field of INFO."""
    found = re.search(rb"^" + name.encode() + rb":(.*?)\r$", w("INFO", "everything"), re.M)
    assert found, f"no {name} in INFO"
    return found[1].decode()


def execute(model: str, out: str, source: str = "x") -> list[Any]:
    return ["AI.MODELEXECUTE", model, "INPUTS", 1, source, "OUTPUTS", 1, out]


def start_run(w: Wire, wire: Wire, out: str = "y") -> None:
    """Sends a run of `gated` and waits until a worker has it."""
    wire.send(*execute("gated", out))
    wait_until(lambda: field(w, "ai_queue_CPU_idle_workers") == "0", "the start of the run")


def major(w: Wire) -> int:
    return int(field(w, "redis_version").split(".")[0])


# ---- keyspace events, WATCH, caching in clients -----------------------------------------------------------------------


class Events:
    """Collects keyspace events."""

    def __init__(self, w: Wire, wire: Wire) -> None:
        self._w, self._wire = w, wire
        wire("PSUBSCRIBE", "__keyevent@*__:*")

    def __call__(self) -> list[str]:
        """Those since the last call, as "event key"; in another database than 0 "db:event key"."""
        self._w("PUBLISH", "__keyevent@0__:end", "")
        found = []
        while (message := self._wire.read())[2] != b"__keyevent@0__:end":
            database, event = re.fullmatch(r"__keyevent@(\d+)__:(.*)", message[2].decode()).groups()  # type: ignore[union-attr]
            found.append(f"{database + ':' if database != '0' else ''}{event} {message[3].decode()}")
        return found


@pytest.mark.usefixtures("model")
def test_every_write_is_announced_once(w: Wire, connect: Callable[..., Wire], configure: Callable[[str, object], None]) -> None:
    configure("notify-keyspace-events", "KEA")
    events = Events(w, connect())
    w("AI.TENSORSET", "t", "INT8", 1)
    assert events() == ["ai.tensorset t"]
    assert w(*execute("m", "y")) == OK
    assert events() == ["ai.tensorset y"]
    assert w("AI.MODELRUN", "m", "INPUTS", "x", "OUTPUTS", "y") == OK
    assert events() == ["ai.tensorset y"]
    dag = "AI.DAGEXECUTE LOAD 1 x PERSIST 2 a b |> AI.MODELEXECUTE m INPUTS 1 x OUTPUTS 1 a |> AI.TENSORSET b INT8 1"
    assert w(*dag.split()) == [OK, OK]
    assert events() == ["ai.tensorset a", "ai.tensorset b"]
    w("AI.MODELSTORE", "n", "ONNX", "CPU", "BLOB", echo_model())
    w("AI.MODELSET", "n", "ONNX", "CPU", "BLOB", echo_model())
    assert events() == ["ai.modelstore n", "ai.modelstore n"]
    w("AI.MODELDEL", "n")
    assert events() == ["ai.modeldel n", "del n"]
    w("SELECT", 1)
    w("AI.TENSORSET", "t", "INT8", 1)
    assert events() == ["1:ai.tensorset t"]
    w("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model())
    w(*execute("m", "y", "t"))
    assert events() == ["1:ai.modelstore m", "1:ai.tensorset y"]
    w("SELECT", 0)


@pytest.mark.usefixtures("model")
def test_what_writes_nothing_announces_nothing(w: Wire, connect: Callable[..., Wire], configure: Callable[[str, object], None]) -> None:
    configure("notify-keyspace-events", "KEA")
    w("SET", "string", "s")
    w("AI.MODELSTORE", "bad", "TORCH", "CPU", "BLOB", echo_model("raise", text="no"))
    events = Events(w, connect())
    refused = [
        ["AI.TENSORSET", "string", "INT8", 1],
        ["AI.TENSORSET", "t", "INT8", 0],
        ["AI.MODELSTORE", "string", "TORCH", "CPU", "BLOB", echo_model()],
        ["AI.MODELSTORE", "n", "TORCH", "CPU", "BLOB", "{not json"],
        ["AI.MODELDEL", "string"],
        execute("m", "string"),
        execute("bad", "y"),
        execute("m", "y", "missing"),
    ]
    for command in refused:
        assert isinstance(w(*command), Error), command
    for command in (["AI.TENSORGET", "x"], ["AI.MODELGET", "m"], ["AI.INFO", "m"], ["AI._MODELSCAN"]):
        assert not isinstance(w(*command), Error)
    assert events() == []


def test_scripts_are_announced_where_they_are_written(
    w: Wire, connect: Callable[..., Wire], configure: Callable[[str, object], None]
) -> None:
    configure("notify-keyspace-events", "KEA")
    configure("replica-read-only", "no")
    w("REPLICAOF", "127.0.0.1", 1)  # where a script is opened when it is first run, not now: no library is needed
    try:
        events = Events(w, connect())
        w("MULTI")
        w("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", "def f(tensors, keys, args):\n    return tensors\n")
        w("AI.SCRIPTSET", "s", "CPU", "SOURCE", "def f(a):\n    return a\n")
        w("AI.SCRIPTDEL", "s")
        assert w("EXEC") == [OK, OK, OK]
        assert events() == ["ai.scriptstore s", "ai.scriptstore s", "ai.scriptdel s", "del s"]
    finally:
        w("REPLICAOF", "NO", "ONE")


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("writes", "command"),
    [
        (True, ["AI.TENSORSET", "k", "INT8", 1]),
        (True, execute("m", "k")),
        (True, "AI.DAGEXECUTE LOAD 1 x PERSIST 1 k |> AI.MODELEXECUTE m INPUTS 1 x OUTPUTS 1 k".split()),
        (True, ["AI.MODELSTORE", "k", "TORCH", "CPU", "BLOB", echo_model()]),
        (False, ["AI.TENSORSET", "k", "INT8", 0]),
        (False, ["AI.MODELSTORE", "k", "TORCH", "CPU", "BLOB", "{"]),
        (False, execute("m", "k", "missing")),
    ],
    ids=str,
)
def test_watch_sees_what_is_written_and_nothing_else(w: Wire, connect: Callable[..., Wire], writes: bool, command: list[Any]) -> None:
    watcher = connect()
    watcher("WATCH", "k")
    assert isinstance(w(*command), Error) is not writes
    watcher("MULTI")
    watcher("PING")
    assert (watcher("EXEC") is None) is writes


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    "command",
    [["AI.TENSORSET", "k", "INT8", 1], execute("m", "k"), ["AI.MODELSTORE", "k", "TORCH", "CPU", "BLOB", "{}"], ["AI.MODELDEL", "k"]],
    ids=str,
)
def test_a_write_that_is_refused_for_its_type_breaks_no_watch(w: Wire, connect: Callable[..., Wire], command: list[Any]) -> None:
    w("SET", "k", "string")
    watcher = connect()
    watcher("WATCH", "k")
    assert w(*command).text.startswith("WRONGTYPE")
    watcher("MULTI")
    watcher("GET", "k")
    assert watcher("EXEC") == [b"string"]


@pytest.mark.usefixtures("model")
def test_a_deleted_model_breaks_a_watch(w: Wire, connect: Callable[..., Wire]) -> None:
    watcher = connect()
    watcher("WATCH", "m")
    w("AI.MODELDEL", "m")
    watcher("MULTI")
    assert watcher("EXEC") is None


@pytest.mark.usefixtures("model")
def test_a_client_that_caches_is_told_when_a_tensor_changes(w: Wire, connect: Callable[..., Wire]) -> None:
    cache = connect(resp=3)
    assert cache("CLIENT", "TRACKING", "ON") == OK
    w(*execute("m", "y"))
    for write, key in (
        (["AI.TENSORSET", "y", "FLOAT", 1, "VALUES", 3], b"y"),
        (execute("m", "y"), b"y"),
        (["AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model()], b"m"),
        (["AI.MODELDEL", "m"], b"m"),
    ):
        assert not isinstance(cache("AI.TENSORGET", "y", "META"), Error)
        assert not isinstance(cache("AI.MODELGET", "m", "META"), Error)
        assert w(*write) == OK
        assert cache.read() == Push([b"invalidate", [key]])
    assert cache("PING") == ("PONG",), "one message for each change"


@pytest.mark.usefixtures("model")
def test_a_read_only_dag_is_cached_by_the_keys_it_loads(w: Wire, connect: Callable[..., Wire]) -> None:
    cache = connect(resp=3)
    assert cache("CLIENT", "TRACKING", "ON") == OK
    assert cache(*"AI.DAGEXECUTE_RO LOAD 1 x |> AI.TENSORGET x VALUES".split()) == [[2.0]]
    w("AI.TENSORSET", "x", "FLOAT", 1, "VALUES", 3)
    assert cache.read() == Push([b"invalidate", [b"x"]])


# ---- CLIENT ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("how", ["TIMEOUT", "ERROR"])
def test_client_unblock_does_not_touch_a_run(w: Wire, connect: Callable[..., Wire], gate: Path, how: str) -> None:
    runner = connect()
    client = runner("CLIENT", "ID")
    start_run(w, runner)
    assert w("CLIENT", "UNBLOCK", client, how) == 0
    gate.touch()
    assert runner.read() == OK
    assert w("EXISTS", "y") == 1


@pytest.mark.usefixtures("model")
def test_a_client_that_is_killed_writes_nothing(w: Wire, connect: Callable[..., Wire], gate: Path) -> None:
    runner = connect()
    client = runner("CLIENT", "ID")
    start_run(w, runner)
    assert w("CLIENT", "KILL", "ID", client) == 1
    gate.touch()
    wait_until(lambda: field(w, "ai_jobs_in_flight") == "0", "the end of the job")
    assert w("EXISTS", "y") == 0
    assert field(w, "blocked_clients") == "0"


@pytest.mark.usefixtures("model")
def test_a_client_that_is_killed_while_its_model_opens_stores_nothing(w: Wire, connect: Callable[..., Wire]) -> None:
    storer = connect()
    client = storer("CLIENT", "ID")
    storer.send("AI.MODELSTORE", "slow", "TORCH", "CPU", "BLOB", echo_model(open_sleep=0.2))
    wait_until(lambda: field(w, "ai_loads_in_progress") == "1", "the opening")
    assert w("CLIENT", "KILL", "ID", client) == 1
    wait_until(lambda: field(w, "ai_loads_in_progress") == "0", "the end of the opening")
    assert w("EXISTS", "slow") == 0


@pytest.mark.usefixtures("model")
def test_client_pause_holds_commands_back_and_answers_them_afterwards(w: Wire, connect: Callable[..., Wire]) -> None:
    runner = connect()
    assert w("CLIENT", "PAUSE", 300) == OK
    started = time.monotonic()
    assert runner(*execute("m", "y")) == OK
    assert time.monotonic() - started > 0.2


@pytest.mark.usefixtures("model")
def test_client_no_evict_and_no_touch_are_no_different(w: Wire, connect: Callable[..., Wire]) -> None:
    if major(w) < 7:
        pytest.skip("CLIENT NO-EVICT came with 7.0")
    runner = connect()
    assert runner("CLIENT", "NO-EVICT", "ON") == OK
    runner("CLIENT", "NO-TOUCH", "ON")  # 7.2
    assert runner(*execute("m", "y")) == OK


@pytest.mark.usefixtures("model")
def test_the_client_list_shows_a_run_as_a_blocked_client(w: Wire, connect: Callable[..., Wire], gate: Path) -> None:
    runner = connect()
    client = runner("CLIENT", "ID")
    start_run(w, runner)
    line = w("CLIENT", "LIST", "ID", client).decode()
    assert " flags=b " in line and re.search(r" cmd=ai\.modelexecute ", line)
    gate.touch()
    assert runner.read() == OK


# ---- times -------------------------------------------------------------------------------------------------------------


def command_stats(w: Wire, name: str) -> dict[str, str]:
    return dict(item.split("=") for item in field(w, f"cmdstat_{name}").split(","))


def test_time_in_the_background_counts_as_the_time_of_the_command(w: Wire, configure: Callable[[str, object], None]) -> None:
    configure("slowlog-log-slower-than", 50_000)
    w("SLOWLOG", "RESET")
    w("AI.TENSORSET", "x", "FLOAT", 1)
    w("AI.MODELSTORE", "slow", "TORCH", "CPU", "BLOB", echo_model("sleep", seconds=0.1))
    w("CONFIG", "RESETSTAT")
    assert w(*execute("slow", "y")) == OK
    dag = "AI.DAGEXECUTE LOAD 1 x PERSIST 1 y |> AI.MODELEXECUTE slow INPUTS 1 x OUTPUTS 1 y"
    assert w(*dag.split()) == [OK]
    for name in ("ai.modelexecute", "ai.dagexecute"):
        stats = command_stats(w, name)
        assert stats["calls"] == "1" and int(stats["usec"]) > 95_000 and stats["failed_calls"] == "0"
    logged = {entry[3][0].decode().lower(): entry[2] for entry in w("SLOWLOG", "GET", 10)}
    assert logged["ai.modelexecute"] > 95_000 and logged["ai.dagexecute"] > 95_000
    if major(w) >= 7:
        histogram = w("LATENCY", "HISTOGRAM", "ai.modelexecute")[1]
        assert histogram[1] == 1 and all(bucket > 95_000 for bucket in histogram[3][::2])


def test_the_slow_log_cuts_blobs_short(w: Wire, configure: Callable[[str, object], None]) -> None:
    configure("slowlog-log-slower-than", 0)
    w("SLOWLOG", "RESET")
    w("AI.TENSORSET", "secret", "UINT8", 100_000, "BLOB", b"s" * 100_000)
    entries = [entry for entry in w("SLOWLOG", "GET", 10) if entry[3][0].lower() == b"ai.tensorset"]
    assert entries and all(len(word) < 300 for entry in entries for word in entry[3])


def test_latency_monitor_charges_no_run_to_the_main_thread(w: Wire, configure: Callable[[str, object], None]) -> None:
    configure("latency-monitor-threshold", 50)
    w("LATENCY", "RESET")
    w("AI.TENSORSET", "x", "FLOAT", 1)
    w("AI.MODELSTORE", "slow", "TORCH", "CPU", "BLOB", echo_model("sleep", seconds=0.1))
    assert w(*execute("slow", "y")) == OK
    assert b"command" not in [event[0] for event in w("LATENCY", "LATEST")]


@pytest.mark.usefixtures("model")
def test_command_stats_tell_failed_calls_from_refused_ones(w: Wire) -> None:
    w("AI.MODELSTORE", "bad", "TORCH", "CPU", "BLOB", echo_model("raise", text="ERR no"))
    w("CONFIG", "RESETSTAT")
    assert w(*execute("bad", "y")) == Error("ERR no")
    assert w(*execute("missing", "y")) == Error("ERR model key is empty")
    stats = command_stats(w, "ai.modelexecute")
    assert stats["calls"] == "2" and stats["rejected_calls"] == "0"
    assert stats["failed_calls"] == ("2" if major(w) >= 7 else "1"), "6.2 counts no failure of a client that waited"
    assert field(w, "errorstat_ERR") == "count=2"


# ---- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("model")
def test_out_of_memory_refuses_work_before_it_begins(w: Wire, configure: Callable[[str, object], None]) -> None:
    calls = w("AI.INFO", "m")[15]
    configure("maxmemory-policy", "noeviction")
    configure("maxmemory", 1)
    for command in (
        ["AI.TENSORSET", "t", "INT8", 1],
        ["AI.MODELSTORE", "n", "TORCH", "CPU", "BLOB", "{}"],
        execute("m", "y"),
        ["AI.MODELRUN", "m", "INPUTS", "x", "OUTPUTS", "y"],
        "AI.DAGEXECUTE LOAD 1 x PERSIST 1 y |> AI.MODELEXECUTE m INPUTS 1 x OUTPUTS 1 y".split(),
        "AI.SCRIPTEXECUTE s f INPUTS 1 x OUTPUTS 1 y".split(),
        "AI.SCRIPTSTORE s CPU ENTRY_POINTS 1 f SOURCE x".split(),
    ):
        assert w(*command) == Error(OOM), command
    assert w("AI.TENSORGET", "x", "VALUES") == [b"2"]
    assert w(*"AI.DAGEXECUTE_RO LOAD 1 x |> AI.MODELEXECUTE m INPUTS 1 x OUTPUTS 1 y |> AI.TENSORGET y VALUES".split()) == [OK, [b"2"]]
    assert w("AI.INFO", "m")[15] == calls + 1
    assert w("AI.MODELDEL", "m") == OK, "what frees memory is allowed"


@pytest.mark.usefixtures("model")
def test_out_of_memory_at_the_end_of_a_run_stores_nothing(
    w: Wire, connect: Callable[..., Wire], configure: Callable[[str, object], None], gate: Path
) -> None:
    runner, storer = connect(), connect()
    start_run(w, runner)
    storer.send("AI.MODELSTORE", "slow", "TORCH", "CPU", "BLOB", echo_model(open_sleep=0.2))
    wait_until(lambda: field(w, "ai_loads_in_progress") == "1", "the opening")
    configure("maxmemory-policy", "noeviction")
    configure("maxmemory", 1)
    gate.touch()
    assert runner.read() == Error(OOM)
    assert storer.read() == Error(OOM)
    assert w("EXISTS", "y", "slow") == 0
    assert field(w, "ai_jobs_in_flight") == "0"


def test_tensors_and_models_count_as_used_memory(w: Wire) -> None:
    before = int(field(w, "used_memory"))
    w("AI.TENSORSET", "big", "UINT8", 4_000_000)
    w("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model(), b" " * 4_000_000)
    wait_until(lambda: int(field(w, "used_memory")) - before > 7_900_000, "the growth")
    w("DEL", "big", "m")
    wait_until(lambda: int(field(w, "used_memory")) - before < 1_000_000, "the release")


# ---- threads of the server ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.environ.get("SANITIZER") == "tsan", reason="the server's own I/O threads are full of races that are none")
@pytest.mark.parametrize("name", server_binaries())
def test_threads_that_read_and_write_for_the_server_disturb_nothing(start_server: Callable[..., Server], name: str) -> None:
    """Big arguments are kept, small ones copied; with I/O threads another thread reads them and sends the replies."""
    server = start_server(
        "--io-threads", "4", *(["--io-threads-do-reads", "yes"] if name == "redis-6.2" else []), binary=server_binaries()[name]
    )
    with Wire(server.port) as w:
        assert w("AI.MODELSTORE", "m", "TORCH", "CPU", "BATCHSIZE", 4, "BLOB", echo_model()) == OK
    wrong: list[Any] = []

    def work(who: int) -> None:
        with Wire(server.port) as wire:
            for i, size in enumerate((10, 50_000, 200_000, 40_000) * 4):
                blob = bytes([who, i]) * (size // 2)
                wire.send("AI.TENSORSET", f"in{who}", "UINT8", 1, size, "BLOB", blob)
                wire.send(*execute("m", f"out{who}", f"in{who}"))
                wire.send("AI.TENSORGET", f"out{who}", "BLOB")
                if [wire.read(), wire.read(), wire.read()] != [OK, OK, blob]:
                    wrong.append((who, i))

    threads = [threading.Thread(target=work, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and server.alive(), server.log()[-3000:]


# ---- replicas ------------------------------------------------------------------------------------------------------------

WRITING = [
    ["AI.TENSORSET", "t", "INT8", 1],
    ["AI.MODELSTORE", "n", "TORCH", "CPU", "BLOB", "{}"],
    ["AI.MODELDEL", "m"],
    execute("m", "y"),
    "AI.DAGEXECUTE LOAD 1 x PERSIST 1 y |> AI.MODELEXECUTE m INPUTS 1 x OUTPUTS 1 y".split(),
    "AI.SCRIPTEXECUTE s f INPUTS 1 x OUTPUTS 1 y".split(),
    ["AI.CONFIG", "MODEL_CHUNK_SIZE", 1000],
]
READING = [
    ["AI.TENSORGET", "x", "VALUES"],
    ["AI.MODELGET", "m", "META"],
    ["AI.INFO", "m"],
    ["AI.INFO", "m", "RESETSTAT"],
    ["AI._MODELSCAN"],
    "AI.DAGEXECUTE_RO LOAD 1 x |> AI.MODELEXECUTE m INPUTS 1 x OUTPUTS 1 y |> AI.TENSORGET y VALUES".split(),
    "AI.DAGRUN_RO LOAD 1 x |> AI.MODELRUN m INPUTS x OUTPUTS y |> AI.TENSORGET y VALUES".split(),
]


def codes(w: Wire, commands: list[list[Any]]) -> set[str]:
    """First words of the errors, or "ok"."""
    return {reply.text.split()[0] if isinstance(reply, Error) else "ok" for reply in (w(*command) for command in commands)}


@pytest.mark.usefixtures("model")
def test_too_few_replicas_refuse_writes_alone(w: Wire, configure: Callable[[str, object], None]) -> None:
    configure("min-replicas-to-write", 1)
    assert codes(w, WRITING) == {"NOREPLICAS"}
    assert codes(w, READING) == {"ok"}


@pytest.mark.usefixtures("model")
def test_replicas_refuse_writes_and_stale_ones_everything(w: Wire, configure: Callable[[str, object], None]) -> None:
    w("REPLICAOF", "127.0.0.1", 1)
    try:
        assert codes(w, WRITING) == {"READONLY"}
        assert codes(w, READING) == {"ok"}
        configure("replica-serve-stale-data", "no")
        assert codes(w, READING) == {"MASTERDOWN"}
        assert codes(w, WRITING) == {"READONLY"}, "the server looks at this first"
    finally:
        w("REPLICAOF", "NO", "ONE")
    assert w("AI.TENSORGET", "x", "VALUES") == [b"2"]


@pytest.mark.usefixtures("model")
def test_who_becomes_a_replica_ends_what_its_clients_wait_for(w: Wire, connect: Callable[..., Wire], gate: Path) -> None:
    runner = connect()
    start_run(w, runner)
    w("REPLICAOF", "127.0.0.1", 1)
    try:
        assert runner.read().text.startswith("UNBLOCKED")
        gate.touch()
        wait_until(lambda: field(w, "ai_jobs_in_flight") == "0", "the end of the job")
        assert w("EXISTS", "y") == 0
    finally:
        w("REPLICAOF", "NO", "ONE")


def test_a_replica_announces_what_its_master_sends(
    every_server: Server, w: Wire, configure: Callable[[str, object], None], start_server: Callable[..., Server]
) -> None:
    configure("repl-diskless-sync-delay", 0)
    follow = ("--replicaof", "127.0.0.1", str(every_server.port), "--notify-keyspace-events", "KEA")
    replica = start_server(*follow, binary=every_server.binary)
    with closing(Wire(replica.port)) as r, closing(Wire(replica.port)) as subscriber:
        wait_until(lambda: field(r, "master_link_status") == "up", "the link")
        events = Events(r, subscriber)
        w("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model())
        w("AI.TENSORSET", "x", "INT8", 1)
        w(*execute("m", "y"))
        w("AI.MODELDEL", "m")
        wait_until(lambda: r("EXISTS", "y") == 1 and r("EXISTS", "m") == 0, "the replica's copy")
        assert events() == ["ai.modelstore m", "ai.tensorset x", "ai.tensorset y", "ai.modeldel m", "del m"]
