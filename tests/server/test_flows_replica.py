"""Flows on a master and its replica: what reaches the replica, what it runs (nothing), promotion and demotion, writes that are paused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from registered import command, forget_all, in_flight, on_key, registrations, triggers, waits_for
from servers import Server, default_binary, wait_until

FLOWS = ["FLOWS", "yes"]
OK = b"OK"


def replica_of(master: Server, **options: object) -> Server:
    server = Server("--replicaof", "127.0.0.1", str(master.port), "--repl-diskless-sync-delay", "0", **{"binary": master.binary, **options})  # type: ignore[arg-type]
    with server.client() as c:
        linked(c)
    return server


def linked(replica: redis.Redis) -> None:
    wait_until(lambda: replica.info("replication").get("master_link_status") == "up", "the link")


@pytest.fixture(scope="module")
def _pair() -> Iterator[tuple[Server, Server]]:
    master = Server("--repl-diskless-sync-delay", "0", binary=default_binary(), module_args=FLOWS)
    replica = replica_of(master, module_args=FLOWS)
    yield master, replica
    replica.close()
    master.close()


@pytest.fixture
def pair(_pair: tuple[Server, Server]) -> Iterator[tuple[redis.Redis, redis.Redis]]:
    """A master and its replica; they are so again at the end of each test."""
    with _pair[0].client() as master, _pair[1].client() as replica:
        yield master, replica
        master.replicaof("NO", "ONE")
        replica.replicaof("127.0.0.1", _pair[0].port)
        forget_all(master)
        master.flushall()
        linked(replica)
        in_step(master, replica)
    assert _pair[0].alive() and _pair[1].alive()


def in_step(master: redis.Redis, replica: redis.Redis) -> None:
    def offsets() -> bool:
        mine, its = (int(c.info("replication")["master_repl_offset"]) for c in (master, replica))
        return mine == its

    wait_until(offsets, "the replica has what the master sent")


def statuses(r: redis.Redis) -> set[bytes]:
    return {row["status"] for row in registrations(r)}


def ids(r: redis.Redis) -> list[bytes]:
    return [row["id"] for row in registrations(r)]


def test_registrations_reach_the_replica_which_runs_nothing(pair: tuple[redis.Redis, redis.Redis]) -> None:
    master, replica = pair
    master.execute_command("RG.PYEXECUTE", command("t") + "\n" + on_key("k*", "execute('INCR', 'n')", eventTypes=["set"]))
    master.execute_command("RG.PYEXECUTE", command("gone"))
    in_step(master, replica)
    assert ids(replica) == ids(master)
    assert statuses(replica) == {b"asleep"}
    with pytest.raises(redis.ReadOnlyError):
        replica.execute_command("RG.TRIGGER", "t")
    master.set("k", 1)
    wait_until(lambda: in_flight(master) == 0 and master.get("n"), "the event")
    master.execute_command("RG.UNREGISTER", triggers(master)["gone"]["id"])
    in_step(master, replica)
    assert ids(replica) == ids(master)
    assert (master.get("n"), replica.get("n")) == (b"1", b"1")
    assert registrations(replica)[1]["numTriggered"] == 0


def test_a_promoted_replica_runs_them_and_a_demoted_master_does_not(
    pair: tuple[redis.Redis, redis.Redis], _pair: tuple[Server, Server]
) -> None:
    master, replica = pair
    master.execute_command("RG.PYEXECUTE", command("t") + "\n" + on_key("k*", "execute('INCR', 'n')", eventTypes=["set"]))
    in_step(master, replica)
    before = ids(master)
    replica.replicaof("NO", "ONE")
    master.replicaof("127.0.0.1", _pair[1].port)
    linked(master)
    assert replica.execute_command("RG.TRIGGER", "t", "here") == [b"t here"]
    replica.set("k", 1)
    wait_until(lambda: replica.get("n") == b"1" and in_flight(replica) == 0, "the event")
    in_step(replica, master)
    assert (ids(master), statuses(master), master.get("n")) == (before, {b"asleep"}, b"1")
    with pytest.raises(redis.ReadOnlyError):
        master.execute_command("RG.TRIGGER", "t")


def test_what_a_flow_writes_on_a_server_that_was_demoted_meanwhile_is_refused(
    pair: tuple[redis.Redis, redis.Redis], _pair: tuple[Server, Server], tmp_path: Path
) -> None:
    master, _ = pair
    master.execute_command("RG.PYEXECUTE", f"def f(record):\n    {waits_for(tmp_path / 'go').replace(chr(10), chr(10) + '    ')}\n"
                           "    execute('SET', 'late', 1)\nGB('CommandReader').map(f).register(trigger='t')")  # fmt: skip
    with _pair[0].client() as other:
        connection = other.connection_pool.get_connection()
        connection.send_command("RG.TRIGGER", "t")
        wait_until(lambda: in_flight(master) == 1, "the flow")
        number = master.execute_command("RG.PYEXECUTE", waits_for(tmp_path / "go") + command("late"), "UNBLOCKING").decode()
        pair[1].replicaof("NO", "ONE")
        master.replicaof("127.0.0.1", _pair[1].port)
        linked(master)
        (tmp_path / "go").touch()
        with pytest.raises((redis.ResponseError, redis.ConnectionError)):  # a demoted server ends blocked clients with an error
            connection.read_response()
    wait_until(lambda: f"source {number} failed: READONLY" in _pair[0].log(), "the refusal")
    wait_until(lambda: in_flight(master) == 0, "the end of the flow")
    assert master.get("late") is None


def test_a_source_is_not_entered_while_writes_are_paused(
    pair: tuple[redis.Redis, redis.Redis], _pair: tuple[Server, Server], tmp_path: Path
) -> None:
    """Replicating then would abort the server."""
    master, replica = pair
    with _pair[0].client() as other:
        connection = other.connection_pool.get_connection()
        connection.send_command("RG.PYEXECUTE", waits_for(tmp_path / "go") + command("t"))
        wait_until(lambda: in_flight(master) == 1, "the source")
        master.execute_command("CLIENT", "PAUSE", 60000, "WRITE")
        (tmp_path / "go").touch()
        assert registrations(master) == []
        master.execute_command("CLIENT", "UNPAUSE")
        assert connection.read_response() == OK
    in_step(master, replica)
    assert list(triggers(replica)) == ["t"]


def test_what_atomic_collects_reaches_the_replica_as_one_transaction(pair: tuple[redis.Redis, redis.Redis]) -> None:
    master, replica = pair
    source = "def both(record):\n    with atomic():\n        execute('SET', 'a', 1)\n        execute('SET', 'b', 2)\n"
    master.execute_command("RG.PYEXECUTE", source + "GB('CommandReader').foreach(both).register(trigger='both')")
    in_step(master, replica)
    with replica.monitor() as monitor:
        master.execute_command("RG.TRIGGER", "both")
        seen: list[str] = []
        while len(seen) < 4:
            name = monitor.next_command()["command"].split(" ")
            if name[0] in ("MULTI", "SET", "EXEC"):
                seen.append(" ".join(name[:2]))
    assert seen == ["MULTI", "SET a", "SET b", "EXEC"]


def test_a_replica_with_flows_no_keeps_them_for_its_own_replica(start_server: Callable[..., Server], _pair: tuple[Server, Server]) -> None:
    """It has no RG.*, and what comes over the link disturbs nothing."""
    master = _pair[0]
    with master.client() as m:
        m.execute_command("RG.PYEXECUTE", command("before"))
        off = replica_of(master)
        below = Server(
            "--replicaof", "127.0.0.1", str(off.port), "--repl-diskless-sync-delay", "0", binary=master.binary, module_args=FLOWS
        )
        try:
            with off.client() as middle, below.client() as last:
                linked(last)
                m.execute_command("RG.PYEXECUTE", command("after"))
                in_step(m, middle)
                in_step(m, last)
                with pytest.raises(redis.ResponseError, match="unknown command"):
                    middle.execute_command("RG.DUMPREGISTRATIONS")
                assert "after" in triggers(last)
                last.replicaof("NO", "ONE")
                assert last.execute_command("RG.TRIGGER", "after") == [b"after"]
        finally:
            below.close()
            off.close()
            forget_all(m)


def test_a_replica_that_rewrites_a_plain_aof_keeps_flows_and_its_place_on_the_link(
    start_server: Callable[..., Server], _pair: tuple[Server, Server], tmp_path: Path
) -> None:
    plain = ("--appendonly", "yes", "--aof-use-rdb-preamble", "no")
    with _pair[0].client() as m:
        m.execute_command("RG.PYEXECUTE", command("t"))
        replica = start_server("--replicaof", "127.0.0.1", str(_pair[0].port), *plain, module_args=FLOWS, directory=tmp_path)
        with replica.client() as c:
            linked(c)
            wait_until(lambda: not c.info("persistence")["aof_rewrite_in_progress"], "the first rewrite")
            c.bgrewriteaof()
            wait_until(lambda: not c.info("persistence")["aof_rewrite_in_progress"], "the rewrite")
            m.set("k", 1)
            in_step(m, c)
            assert c.get("k") == b"1"
        replica.stop()
        with start_server(*plain, module_args=FLOWS, directory=tmp_path).client() as c:
            assert c.execute_command("RG.TRIGGER", "t") == [b"t"]
        forget_all(m)


def test_on_every_server_a_promoted_replica_runs_what_its_master_registered(every_flows_server: Server) -> None:
    with every_flows_server.client() as m:
        m.execute_command("RG.PYEXECUTE", command("before"))
        replica = replica_of(every_flows_server, module_args=FLOWS)
        with replica.client() as c:
            m.execute_command("RG.PYEXECUTE", command("after"))
            in_step(m, c)
            assert statuses(c) == {b"asleep"}
            c.replicaof("NO", "ONE")
            assert [c.execute_command("RG.TRIGGER", t) for t in ("before", "after")] == [[b"before"], [b"after"]]
        replica.close()
        forget_all(m)
