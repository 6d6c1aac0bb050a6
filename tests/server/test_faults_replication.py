"""What masters and replicas do to each other: datasets that cannot be read, random results, roles that change, saves in motion."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import rdb_payload as rdb
from conftest import echo_model
from fake_master import FakeMaster
from servers import Server, wait_until
from wire import OK, Error, Wire

SWAPDB = ("--repl-diskless-load", "swapdb")

#: A value that the module refuses -> what the log says of it. Redis takes the dataset for corrupt and ends the replica, as it does for a
#: broken value of its own; a link that breaks off is another matter (soak/sync.py).
UNREADABLE = {
    "tensor of a later release": (
        rdb.payload("AI_TENSOR", 5, rdb.number(0)),
        "Failed loading tensor, RedisAI version (10207) is not forward compatible.",
    ),
    "model of a later release": (
        rdb.payload("AI__MODEL", 7, rdb.number(0)),
        "Failed loading model, RedisAI version (10207) is not forward compatible.",
    ),
    "script of a later release": (
        rdb.payload("AI_SCRIPT", 5, rdb.number(0)),
        "Failed loading script, RedisAI version (10207) is not forward compatible.",
    ),
    "tensor without its data": (rdb.tensor("FLOAT", [100], b"1234"), "its data does not fit its shape"),
    "model of no backend": (rdb.payload("AI__MODEL", 4, rdb.number(9), rdb.number(0)), "unknown backend"),
}


def dataset(value: bytes) -> bytes:
    return rdb.file_of({"a": rdb.tensor("INT8", [1], b"a"), "m": rdb.model("ONNX", b"model"), "k": value})


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_dataset_that_cannot_be_read_ends_a_replica_with_the_reason_and_without_a_crash(
    start_server: Callable[..., Server], what: str
) -> None:
    """What it had before is still in its own file."""
    value, reason = UNREADABLE[what]
    server = start_server(*SWAPDB)
    with FakeMaster(dataset(value)) as master, Wire(server.port) as wire:
        assert wire("AI.TENSORSET", "old", "INT8", 1, "VALUES", 7) == OK
        before = wire("DEBUG", "DIGEST")
        assert wire("SAVE") == OK
        wire("REPLICAOF", "127.0.0.1", master.port)
        master.accept()
        assert server.process is not None
        assert server.process.wait(60) == 1
    assert reason in server.log()
    assert "crashed by signal" not in server.log()
    server.start()
    with Wire(server.port) as wire:
        assert wire("DEBUG", "DIGEST") == before


def test_a_dataset_without_such_a_value_loads(start_server: Callable[..., Server]) -> None:
    server = start_server(*SWAPDB)
    with FakeMaster(dataset(rdb.tensor("FLOAT", [1], b"1234"))) as master, Wire(server.port) as wire:
        wire("REPLICAOF", "127.0.0.1", master.port)
        master.accept()
        wait_until(lambda: wire("EXISTS", "a", "m", "k") == 3, "the dataset")


RANDOM = """
def draw(tensors: List[Tensor], keys: List[str], args: List[str]):
    n = torch.rand(1000)
    redis.execute('SET', keys[0], str(float(n[0])))
    return n
"""


@pytest.mark.needs_torch
def test_random_results_are_the_same_on_a_replica(start_server: Callable[..., Server]) -> None:
    """What was drawn is replicated, never the drawing."""
    master = start_server("--repl-diskless-sync-delay", "0", echo=False)
    replica = start_server()  # without a library that could draw
    with Wire(master.port, timeout=120) as m, Wire(replica.port) as r:
        r("REPLICAOF", "127.0.0.1", master.port)
        assert m("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "draw", "SOURCE", RANDOM) == OK
        assert m("AI.TENSORSET", "x", "FLOAT", 1) == OK
        for turn in range(20):
            assert m("AI.SCRIPTEXECUTE", "s", "draw", "KEYS", 1, f"k{turn}", "OUTPUTS", 1, f"y{turn}") == OK
        dag = "AI.DAGEXECUTE PERSIST 1 z |> AI.SCRIPTEXECUTE s draw KEYS 1 k OUTPUTS 1 y |> AI.SCRIPTEXECUTE s draw KEYS 1 l OUTPUTS 1 z"
        assert m(*dag.split()) == [OK, OK]
        assert len({m("AI.TENSORGET", f"y{turn}", "BLOB") for turn in range(20)}) == 20
        wait_until(lambda: r("EXISTS", "z") == 1, "the last result on the replica")
        assert r("DEBUG", "DIGEST") == m("DEBUG", "DIGEST")


COUNT = """
def count(tensors: List[Tensor], keys: List[str], args: List[str]):
    for i in range(1000000000):
        redis.execute('INCR', keys[0])
"""


@pytest.mark.needs_torch
def test_a_running_script_writes_nothing_more_once_its_server_is_a_replica(start_server: Callable[..., Server]) -> None:
    server, master = start_server(echo=False), start_server("--repl-diskless-sync-delay", "0")
    with Wire(server.port, timeout=120) as wire, Wire(server.port) as runner, Wire(master.port) as m:
        assert m("SET", "n", "master's") == OK
        assert wire("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "count", "SOURCE", COUNT) == OK
        runner.send("AI.SCRIPTEXECUTE", "s", "count", "KEYS", 1, "n")
        wait_until(lambda: int(wire("GET", "n") or 0) > 10, "the script to count")
        assert wire("REPLICAOF", "127.0.0.1", master.port) == OK
        assert runner.read().text.startswith("UNBLOCKED")
        wait_until(lambda: b"ai_jobs_in_flight:0\r" in wire("INFO", "ai_runtime"), "the end of the script")
        wait_until(lambda: b"master_link_status:up" in wire("INFO", "replication"), "the link")
        assert wire("GET", "n") == b"master's"
        assert wire("DEBUG", "DIGEST") == m("DEBUG", "DIGEST")


class Traffic:
    """Clients that run, store, restore and delete until they are told to stop."""

    COMMANDS = (
        "AI.MODELEXECUTE m INPUTS 1 x OUTPUTS 1 y",
        "AI.TENSORSET t BOOL 3 VALUES 1 0 1",
        "AI.TENSORSET t STRING 2 VALUES a bc",
        "AI.TENSORSET scalar DOUBLE VALUES 1.5",
        "AI.DAGEXECUTE LOAD 1 x PERSIST 2 p q |> AI.MODELEXECUTE m INPUTS 1 x OUTPUTS 1 p |> AI.TENSORSET q INT8 2 VALUES 1 2",
        "AI.MODELDEL n",
        "RENAME t u",
        "COPY m c REPLACE",
        "UNLINK u c",
        "PEXPIRE y 1",
    )

    def __init__(self, port: int, clients: int = 3) -> None:
        self.port, self.over, self.sent = port, threading.Event(), 0
        self.unexpected: list[Any] = []
        self.threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]
        for thread in self.threads:
            thread.start()

    def _run(self, n: int) -> None:
        with Wire(self.port, timeout=60) as wire:
            while not self.over.is_set():
                n += 1
                if n % 7 == 0:
                    reply = wire("AI.MODELSTORE", "n", "ONNX", "CPU", "TAG", n, "BLOB", echo_model(), " " * (n % 300))
                elif n % 11 == 0:
                    reply = wire("RESTORE", "e", 0, rdb.tensor("FLOAT", [0, n], b""), "REPLACE")
                else:
                    reply = wire(*self.COMMANDS[n % len(self.COMMANDS)].split())
                self.sent += 1
                if isinstance(reply, Error) and not reply.text.startswith(("ERR no such key", "ERR model key is empty")):
                    self.unexpected.append(reply)

    def stop(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(60)
        assert not self.unexpected, self.unexpected[:3]


@pytest.mark.parametrize("preamble", ["yes", "no"])
def test_rewrites_while_everything_moves_lose_nothing(start_server: Callable[..., Server], preamble: str) -> None:
    """Runs, stores, renames and restores go on during rewrites; what is there in the end comes back, and the replica has the same."""
    aof = ("--appendonly", "yes", "--appendfsync", "no", "--aof-use-rdb-preamble", preamble, "--repl-diskless-sync-delay", "0")
    server = start_server(*aof, module_args=("MODEL_CHUNK_SIZE", "50"))
    replica = start_server("--replicaof", "127.0.0.1", str(server.port))
    with Wire(server.port) as wire, Wire(replica.port) as r:
        assert wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BATCHSIZE", 4, "BLOB", echo_model()) == OK
        assert wire("AI.TENSORSET", "x", "FLOAT", 2, 3, "VALUES", 1, 2, 3, 4, 5, 6) == OK
        wait_until(lambda: b"master_link_status:up" in r("INFO", "replication"), "the link")
        traffic = Traffic(server.port)
        for _ in range(6):
            assert not isinstance(wire("BGREWRITEAOF"), Error)
            wait_until(lambda: b"aof_rewrite_in_progress:0\r" in wire("INFO", "persistence"), "the end of the rewrite")
            assert b"aof_last_bgrewrite_status:ok" in wire("INFO", "persistence")
        traffic.stop()
        assert traffic.sent > 200
        wait_until(lambda: b"ai_jobs_in_flight:0\r" in wire("INFO", "ai_runtime"), "the last run")
        wait_until(lambda: wire("PTTL", "y") < 0, "no key on its way out")
        before = wire("DEBUG", "DIGEST")
        wait_until(lambda: r("DEBUG", "DIGEST") == before, "the same on the replica")
        assert wire("DEBUG", "LOADAOF") == OK
        assert wire("DEBUG", "DIGEST") == before
    server.restart()
    with Wire(server.port) as wire:
        assert wire("DEBUG", "DIGEST") == before
