"""Redis never waits for Python: everything that needs no model answers while a thread of ours holds the interpreter and does not let go.

The interpreter is held for longer than any test lasts (by a run, and by a store), and at the end it is still held: what was answered was
answered without it. No test measures how fast.
"""

from __future__ import annotations

import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import echo_model
from runs import get, info, put, store, wait_queued, wait_running
from servers import Server, running, wait_until
from wire import OK, QUEUED, Error, Status, Wire

#: Seconds for which the interpreter is held: nobody waits for the end, the server is stopped long before.
FOR_EVER = 3600


def execute(key: str, source: str, target: str, *words: Any) -> tuple[Any, ...]:
    return ("AI.MODELEXECUTE", key, "INPUTS", 1, source, "OUTPUTS", 1, target, *words)


def waits(client: Wire, seconds: float = 0) -> bool:
    """The client gets no reply within that time."""
    return not select.select([client.socket], [], [], seconds)[0]


class Frozen:
    """A server whose interpreter is held. `wire` is a client that looks around, `stuck` one whose command holds the interpreter."""

    def __init__(self, server: Server, by_store: bool) -> None:
        self.server, self.wire, self.stuck = server, Wire(server.port), Wire(server.port)
        put(self.wire, "in", 1)
        store(self.wire, "m", "echo", 1, 1, "CPU", "TAG", "v1")
        store(self.wire, "elsewhere", "echo", 1, 1, "CPU:1")
        assert self.wire(*execute("m", "in", "out")) == OK
        if by_store:
            self.stuck.send("AI.MODELSTORE", "spin", "ONNX", "CPU", "BLOB", echo_model(open_spin=FOR_EVER))
            wait_until(lambda: info(self.wire, "loads_in_progress") == 1)
        else:
            store(self.wire, "spin", "spin", seconds=FOR_EVER)
            self.stuck.send(*execute("spin", "in", "never"))
            wait_running(self.wire)
        self.canaries: list[Wire] = []
        while not self.is_held():
            pass

    def is_held(self) -> bool:
        """A run on another device, whose worker needs the interpreter for it, gets no answer."""
        self.canaries.append(Wire(self.server.port))
        self.canaries[-1].send(*execute("elsewhere", "in", "canary"))
        return waits(self.canaries[-1], 0.3)

    def check(self) -> None:
        """Everything since was answered by a server whose interpreter was held all the time."""
        assert waits(self.stuck)
        assert waits(self.canaries[-1])


@pytest.fixture(scope="module", params=["run", "store"])
def frozen_server(request: pytest.FixtureRequest) -> Iterator[Frozen]:
    with running() as server:
        yield Frozen(server, request.param == "store")


@pytest.fixture
def frozen(frozen_server: Frozen) -> Iterator[Frozen]:
    yield frozen_server
    frozen_server.check()
    assert frozen_server.server.alive()


@pytest.fixture
def wire(frozen: Frozen) -> Wire:
    return frozen.wire


# ---- what needs no Python ---------------------------------------------------------------------------------------------------------------

COMMANDS: list[tuple[tuple[Any, ...], Any]] = [
    (("PING",), Status("PONG")),
    (("SET", "k", "v"), OK),
    (("GET", "k"), b"v"),
    (("AI.TENSORSET", "t", "FLOAT", 2, "VALUES", 1, 2), OK),
    (("AI.TENSORGET", "t", "VALUES"), [b"1", b"2"]),
    (("AI.TENSORSET", "big", "UINT8", 300_000, "BLOB", bytes(300_000)), OK),
    (("AI.TENSORGET", "big", "BLOB"), bytes(300_000)),
    (("INFO",), bytes),
    (("INFO", "everything"), bytes),
    (("INFO", "ai_queues"), bytes),
    (("AI.INFO", "m"), list),
    (("AI.INFO", "m", "STATS"), list),
    (("AI.INFO", "m", "RESETSTAT"), OK),
    (("AI.CONFIG", "GET", "MODEL_CHUNK_SIZE"), 535822336),
    (("AI.CONFIG", "MODEL_CHUNK_SIZE", 1000), OK),
    (("AI.CONFIG", "BACKENDSPATH", "/x"), OK),
    (("AI.MODELGET", "m"), list),
    (("AI.MODELGET", "m", "META"), list),
    (("AI.MODELGET", "m", "BLOB"), bytes),
    (("AI._MODELSCAN",), list),
    (("COPY", "m", "copy"), 1),
    (("COPY", "m", "victim"), 1),
    (("RENAME", "copy", "renamed"), OK),
    (("DUMP", "m"), bytes),
    (("MEMORY", "USAGE", "m"), int),
    (("TYPE", "m"), Status("AI__MODEL")),
    (("AI.MODELDEL", "victim"), OK),
    (("DEL", "renamed"), 1),
    (("UNLINK", "t"), 1),
    (("SWAPDB", 8, 9), OK),
    (("COMMAND", "GETKEYS", *execute("m", "a", "b")), [b"m", b"a", b"b"]),
    (execute("nothing", "in", "out"), Error("ERR model key is empty")),
    (execute("m", "nothing", "out"), Error("ERR tensor key is empty or in a different shard")),
    (("AI.MODELSTORE", "x", "NOPE", "CPU", "BLOB", "x"), Error("ERR unsupported backend")),
    (("AI.CONFIG", "LOADBACKEND", "NOPE", "x"), Error("ERR unsupported backend")),
    (("AI.DAGEXECUTE", "LOAD", 1, "in", "|>", "AI.TENSORGET", "in", "VALUES"), [[b"1"]]),
    (("DEBUG", "DIGEST"), Status),
    (("CLIENT", "LIST"), bytes),
    (("SLOWLOG", "GET"), list),
]


@pytest.mark.parametrize(
    ("command", "reply"), COMMANDS, ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, tuple) else ""
)
def test_command(wire: Wire, command: tuple[Any, ...], reply: Any) -> None:
    found = wire(*command)
    assert isinstance(found, reply) if isinstance(reply, type) else found == reply


def test_transaction_that_stores_a_model(wire: Wire) -> None:
    wire("MULTI")
    assert wire("AI.MODELSTORE", "in a transaction", "ONNX", "CPU", "BLOB", echo_model()) == QUEUED
    assert wire("AI.MODELGET", "in a transaction", "BLOB") == QUEUED
    assert wire("DEL", "in a transaction") == QUEUED
    assert wire("EXEC") == [OK, echo_model().encode(), 1]


def test_restore_and_delete_a_model(wire: Wire) -> None:
    wire("AI.CONFIG", "MODEL_CHUNK_SIZE", 511 * 2**20)
    payload = wire("DUMP", "m")
    assert wire("RESTORE", "restored", 0, payload) == OK
    assert wire("DUMP", "restored") == payload
    assert wire("UNLINK", "restored") == 1


def test_bgsave_completes(wire: Wire) -> None:
    assert isinstance(wire("BGSAVE"), Status)
    wait_until(lambda: b"rdb_bgsave_in_progress:0" in wire("INFO", "persistence"))
    assert b"rdb_last_bgsave_status:ok" in wire("INFO", "persistence")


def test_bgrewriteaof_completes(wire: Wire) -> None:
    assert isinstance(wire("BGREWRITEAOF"), Status)
    wait_until(lambda: all(line in wire("INFO", "persistence") for line in (b"aof_rewrite_in_progress:0", b"aof_rewrite_scheduled:0")))
    assert b"aof_last_bgrewrite_status:ok" in wire("INFO", "persistence")


def test_save_completes(wire: Wire) -> None:
    assert wire("SAVE") == OK


def test_timeouts_pass(frozen: Frozen) -> None:
    with Wire(frozen.server.port) as client:
        assert client(*execute("m", "in", "out", "TIMEOUT", 5)) == Status("TIMEDOUT")


def test_clients_may_leave(frozen: Frozen, wire: Wire) -> None:
    before = info(wire, "queue_CPU:1_length") or 0
    client = Wire(frozen.server.port)
    client.send(*execute("elsewhere", "in", "out"))
    wait_queued(wire, before + 1, "CPU:1")
    client.close()
    wait_queued(wire, before, "CPU:1")


def test_a_client_may_be_killed(frozen: Frozen, wire: Wire) -> None:
    before = info(wire, "queue_CPU:1_length") or 0
    with Wire(frozen.server.port) as client:
        number = client("CLIENT", "ID")
        client.send(*execute("elsewhere", "in", "out"))
        wait_queued(wire, before + 1, "CPU:1")
        assert wire("CLIENT", "KILL", "ID", number) == 1
        wait_queued(wire, before, "CPU:1")


def test_flushall(frozen: Frozen, wire: Wire) -> None:
    dump, tensor = wire("DUMP", "m"), wire("DUMP", "in")
    for how in ("ASYNC", "SYNC"):
        assert wire("FLUSHALL", how) == OK
        assert wire("RESTORE", "m", 0, dump) == OK
        assert wire("RESTORE", "in", 0, tensor) == OK


@pytest.mark.parametrize("by_store", [False, True], ids=["run", "store"])
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_the_server_stops(start_server: Callable[..., Server], by_store: bool, sig: int) -> None:
    frozen = Frozen(start_server(), by_store)
    frozen.check()
    assert frozen.server.stop(sig) == 0


def test_shutdown_with_a_save(start_server: Callable[..., Server]) -> None:
    frozen = Frozen(start_server("--save", "3600 1"), False)
    frozen.wire.send("SHUTDOWN", "SAVE")
    assert frozen.server.stop() == 0
    assert (frozen.server.directory / "dump.rdb").stat().st_size > 0


# ---- a busy loader ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def loading(server: Server, tmp_path: Path) -> Iterator[tuple[Wire, Wire, Path]]:
    """A client that looks around, one whose store does not end before the file is there, and the file."""
    gate = tmp_path / "open"
    with Wire(server.port) as looking, Wire(server.port) as storing:
        put(looking, "in", 1)
        store(looking, "m")
        storing.send("AI.MODELSTORE", "slow", "TORCH", "CPU", "BLOB", echo_model(open_gate=str(gate)))
        wait_until(lambda: info(looking, "loads_in_progress") == 1)
        yield looking, storing, gate
        gate.touch()


def test_a_client_that_stores_waits_alone(loading: tuple[Wire, Wire, Path]) -> None:
    wire, storing, gate = loading
    for _ in range(20):
        assert wire("PING") == Status("PONG")
        assert wire(*execute("m", "in", "out")) == OK
    assert get(wire, "out") == [1]
    assert wire("EXISTS", "slow") == 0
    assert wire(*execute("slow", "in", "out")) == Error("ERR model key is empty")
    assert waits(storing)
    gate.touch()
    assert storing.read() == OK
    assert wire(*execute("slow", "in", "out")) == OK


def test_stores_end_in_the_order_in_which_they_came(loading: tuple[Wire, Wire, Path], server: Server) -> None:
    wire, storing, gate = loading
    with Wire(server.port) as second, Wire(server.port) as third:
        second.send("AI.MODELSTORE", "slow", "ONNX", "CPU", "TAG", "second", "BLOB", echo_model())
        wait_until(lambda: info(wire, "loads_in_progress") == 2)
        third.send("AI.MODELSTORE", "slow", "ONNX", "CPU", "TAG", "third", "BLOB", echo_model())
        wait_until(lambda: info(wire, "loads_in_progress") == 3)
        assert waits(second) and waits(third)
        gate.touch()
        assert (storing.read(), second.read(), third.read()) == (OK, OK, OK)
    assert wire("AI.MODELGET", "slow", "META")[5] == b"third"


def test_a_hundred_stores_at_once(loading: tuple[Wire, Wire, Path], server: Server) -> None:
    wire, storing, gate = loading
    clients = [Wire(server.port) for _ in range(100)]
    for n, client in enumerate(clients):
        client.send("AI.MODELSTORE", f"m{n % 10}", "ONNX", "CPU", "TAG", n, "BLOB", echo_model())
    wait_until(lambda: info(wire, "loads_in_progress") == 101)
    assert wire(*execute("m", "in", "out")) == OK
    gate.touch()
    assert [client.read() for client in (storing, *clients)] == [OK] * 101
    assert len(wire("AI._MODELSCAN")) == 12
    for client in clients:
        client.close()


def test_a_store_whose_client_left_writes_nothing(loading: tuple[Wire, Wire, Path]) -> None:
    wire, storing, gate = loading
    storing.close()
    wait_until(lambda: b"blocked_clients:0" in wire("INFO", "clients"))
    gate.touch()
    wait_until(lambda: info(wire, "loads_in_progress") == 0)
    assert wire("EXISTS", "slow") == 0


def test_a_key_that_changes_type_while_its_model_opens(loading: tuple[Wire, Wire, Path]) -> None:
    wire, storing, gate = loading
    wire("SET", "slow", "taken")
    gate.touch()
    assert storing.read() == Error("WRONGTYPE Operation against a key holding the wrong kind of value")
    assert wire("GET", "slow") == b"taken"


def test_requests_for_a_model_that_opens_wait_or_time_out(loading: tuple[Wire, Wire, Path], server: Server) -> None:
    """A model written by a transaction is there at once and opened later, after those before it."""
    wire, storing, gate = loading
    wire("MULTI")
    wire("AI.MODELSTORE", "later", "ONNX", "CPU", "BLOB", echo_model())
    assert wire("EXEC") == [OK]
    assert wire(*execute("later", "in", "out", "TIMEOUT", 5)) == Status("TIMEDOUT")
    with Wire(server.port) as patient, Wire(server.port) as curious:
        patient.send(*execute("later", "in", "out"))
        curious.send("AI.MODELGET", "later", "META")
        wait_until(lambda: info(wire, "queue_CPU_waiting") == 2)
        gate.touch()
        assert patient.read() == OK
        assert curious.read()[11] == [b"input_0"]
        assert storing.read() == OK
