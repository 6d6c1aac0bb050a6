"""Writes are paused (CLIENT PAUSE WRITE, FAILOVER, SHUTDOWN with a lagging replica) while runs end: nothing aborts, nothing is lost.

Replicating during a pause aborts a server, and only where there is something to replicate to: every server here has an AOF or a replica.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import echo_model
from servers import Server, server_binaries, wait_until

OK = b"OK"
BINARIES = {name: path for name, path in server_binaries().items() if name != "redis-6.2"}  # which tells of a pause only 10 times a second
AOF = ("--appendonly", "yes", "--appendfsync", "no", "--aof-use-rdb-preamble", "no")


@pytest.fixture(params=BINARIES, ids=str)
def master(request: pytest.FixtureRequest, start_server: Callable[..., Server]) -> Iterator[Server]:
    server = start_server(*AOF, binary=BINARIES[request.param])
    with server.client() as c:
        c.execute_command("AI.TENSORSET", "x", "FLOAT", 1, "VALUES", 2)
    yield server
    assert server.alive(), server.log()[-4000:]


class Waiting:
    """A command sent on a connection of its own, its reply read later."""

    def __init__(self, server: Server, *command: object) -> None:
        self._connection = server.client().connection_pool.get_connection()
        self._connection.send_command(*command)

    def answered(self, seconds: float = 0) -> bool:
        return self._connection.can_read(seconds)

    def reply(self) -> Any:
        return self._connection.read_response()


def gated_run(server: Server, gate: Path, out: str = "y") -> Waiting:
    """A run that ends when `gate` exists; returns once it has started."""
    with server.client() as c:
        c.execute_command("AI.MODELSTORE", f"m:{out}", "TORCH", "CPU", "BLOB", echo_model("gate", path=str(gate)))
        waiting = Waiting(server, "AI.MODELEXECUTE", f"m:{out}", "INPUTS", 1, "x", "OUTPUTS", 1, out)
        wait_until(lambda: c.info("everything")["ai_queue_CPU_idle_workers"] == 0, "the start of the run")
    return waiting


def ran(server: Server) -> bool:
    """The worker is idle again: the run has ended, whatever became of its reply."""
    with server.client() as c:
        return bool(c.info("everything")["ai_queue_CPU_idle_workers"] == 1)


def test_a_run_that_ends_in_a_pause_is_stored_when_the_pause_ends(master: Server, tmp_path: Path) -> None:
    waiting = gated_run(master, tmp_path / "gate")
    with master.client() as c:
        c.execute_command("CLIENT", "PAUSE", 100_000, "WRITE")
        (tmp_path / "gate").touch()
        wait_until(lambda: ran(master), "the end of the run")
        assert c.ping()
        assert not waiting.answered(0.2)
        assert c.exists("y") == 0
        c.execute_command("CLIENT", "UNPAUSE")
        assert waiting.reply() == OK
        assert c.execute_command("AI.TENSORGET", "y", "BLOB") == struct.pack("<f", 2)
    master.restart()
    with master.client() as c:
        assert c.execute_command("AI.TENSORGET", "y", "BLOB") == struct.pack("<f", 2)


def test_a_store_that_ends_in_a_pause_is_written_when_the_pause_ends(master: Server, tmp_path: Path) -> None:
    with master.client() as c:
        waiting = Waiting(master, "AI.MODELSTORE", "slow", "TORCH", "CPU", "BLOB", echo_model(open_sleep=0.3))
        wait_until(lambda: c.info("clients")["blocked_clients"] == 1, "the store to wait")
        c.execute_command("CLIENT", "PAUSE", 100_000, "WRITE")
        wait_until(lambda: c.info("everything")["ai_loads_done"] == 1, "the opening")
        assert not waiting.answered(0.2)
        assert c.exists("slow") == 0
        c.execute_command("CLIENT", "UNPAUSE")
        assert waiting.reply() == OK
        assert c.exists("slow") == 1


def test_a_pause_that_runs_out_by_itself_releases_what_it_held(master: Server, tmp_path: Path) -> None:
    waiting = gated_run(master, tmp_path / "gate")
    with master.client() as c:
        c.execute_command("CLIENT", "PAUSE", 700, "WRITE")
        (tmp_path / "gate").touch()
        assert waiting.reply() == OK
        assert c.exists("y") == 1


def test_a_client_that_leaves_in_a_pause_leaves_nothing_behind(master: Server, tmp_path: Path) -> None:
    waiting = gated_run(master, tmp_path / "gate")
    with master.client() as c:
        c.execute_command("CLIENT", "PAUSE", 100_000, "WRITE")
        (tmp_path / "gate").touch()
        wait_until(lambda: ran(master), "the end of the run")
        waiting._connection.disconnect()
        wait_until(lambda: c.info("clients")["blocked_clients"] == 0, "the disconnect")
        c.execute_command("CLIENT", "UNPAUSE")
        wait_until(lambda: c.info("everything")["ai_jobs_in_flight"] == 0, "the end of the job")
        assert c.exists("y") == 0


def test_pauses_under_load_lose_no_acknowledged_output(master: Server) -> None:
    """Runs end at every moment of pauses that begin and end; a reply is OK and the output is there, or it is the one clear error."""
    with master.client() as c:
        c.execute_command("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model())
    stop, refused, stored = threading.Event(), [0], [0]

    def run(name: str) -> None:
        with master.client(retry=None) as c:  # a reply that is lost must not be asked for again
            i = 0
            while not stop.is_set():
                key = f"{name}:{i}"
                try:
                    assert c.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 1, "x", "OUTPUTS", 1, key) == OK
                except redis.ResponseError as error:
                    assert "writes are paused" in str(error)
                    refused[0] += 1
                else:
                    assert c.exists(key) == 1
                    stored[0] += 1
                i += 1

    with ThreadPoolExecutor(6) as pool, master.client() as c:
        runs = [pool.submit(run, f"k{n}") for n in range(6)]
        for _ in range(40):
            c.execute_command("CLIENT", "PAUSE", 100_000, "WRITE")
            time.sleep(0.004)
            c.execute_command("CLIENT", "UNPAUSE")
            time.sleep(0.01)
        stop.set()
    for finished in runs:
        finished.result()  # raises what its thread raised: a wrong reply, or none
    assert stored[0] > 0
    assert master.alive(), master.log()[-3000:]


@pytest.fixture
def pair(master: Server, start_server: Callable[..., Server]) -> tuple[Server, Server]:
    """A master and a replica that follows it."""
    replica = start_server(*AOF, "--replicaof", "127.0.0.1", str(master.port), binary=master.binary)
    with replica.client() as c:
        wait_until(lambda: c.info("replication")["master_link_status"] == "up", "the link")
    return master, replica


def test_failover_while_a_run_is_in_progress(pair: tuple[Server, Server], tmp_path: Path) -> None:
    master, replica = pair
    waiting = gated_run(master, tmp_path / "gate")
    with master.client() as m, replica.client() as r:
        m.execute_command("FAILOVER")
        wait_until(lambda: r.info("replication")["role"] == "master", "the failover")
        (tmp_path / "gate").touch()
        with pytest.raises((redis.ResponseError, redis.ConnectionError)):
            waiting.reply()  # UNBLOCKED: the old master is a replica now
        wait_until(lambda: m.info("replication").get("master_link_status") == "up", "the link of the old master")
        assert m.exists("y") == r.exists("y") == 0
        assert r.execute_command("AI.MODELEXECUTE", "m:y", "INPUTS", 1, "x", "OUTPUTS", 1, "z") == OK  # promoted: opened here
        wait_until(lambda: m.exists("z") == 1, "the output on the new replica")


def test_shutdown_waits_for_a_lagging_replica_while_a_run_ends(pair: tuple[Server, Server], tmp_path: Path) -> None:
    master, replica = pair
    with master.client() as c:
        c.config_set("shutdown-timeout", 2)
    waiting = gated_run(master, tmp_path / "gate")
    assert replica.process is not None
    replica.process.send_signal(19)  # SIGSTOP: it lags
    try:
        with master.client() as c:
            c.set("more", "data")
        Waiting(master, "SHUTDOWN")
        (tmp_path / "gate").touch()
        assert master.process is not None
        assert master.process.wait(30) == 0
        assert "crashed" not in master.log()
    finally:
        replica.process.send_signal(18)
    del waiting
    master.start()
