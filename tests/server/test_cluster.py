"""A cluster of three masters and three replicas: routing, slots that move while a run waits, migration of values, failover under load."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rdb_payload as rdb
import redis
from cluster import Cluster, keys_on
from conftest import echo_model
from redis.exceptions import AskError, ClusterCrossSlotError, MovedError, TryAgainError
from servers import wait_until
from soak.nodes import fail_over, lose_a_node, reshard

OK = b"OK"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture(autouse=True)
def everybody_lives(cluster: Cluster) -> Iterator[None]:
    yield
    for server in cluster.servers:
        assert server.alive() or getattr(server, "ended_on_purpose", False), server.log()[-4000:]


@pytest.fixture
def c(cluster: Cluster) -> Iterator[redis.RedisCluster]:
    client = cluster.client()
    yield client
    client.close()


def store(c: Any, tag: str, model: str = echo_model()) -> None:
    c.execute_command("AI.MODELSTORE", f"m{{{tag}}}", "TORCH", "CPU", "BLOB", model)
    c.execute_command("AI.TENSORSET", f"x{{{tag}}}", "FLOAT", 1, "VALUES", 3)


def run(tag: str, out: str = "y") -> list[str]:
    return f"AI.MODELEXECUTE m{{{tag}}} INPUTS 1 x{{{tag}}} OUTPUTS 1 {out}{{{tag}}}".split()


@pytest.mark.parametrize("i", range(3))
def test_keys_of_one_slot_run_on_whichever_master_serves_it(cluster: Cluster, c: redis.RedisCluster, i: int) -> None:
    tag = cluster.key_of(i, "tag")
    store(c, tag)
    assert c.execute_command(*run(tag), target_nodes=c.get_node_from_key(tag)) == OK
    with cluster.masters[i].client() as master:
        assert master.execute_command("AI.TENSORGET", f"y{{{tag}}}", "BLOB") == struct.pack("<f", 3)
    with cluster.replicas[i].client() as replica:
        replica.execute_command("READONLY")
        wait_until(lambda: replica.exists(f"y{{{tag}}}"), "the output on the replica")


def test_a_key_of_another_node_is_moved_and_of_another_slot_refused(cluster: Cluster, c: redis.RedisCluster) -> None:
    tag, foreign = cluster.key_of(0, "a"), cluster.key_of(1, "b")
    store(c, tag)
    with cluster.masters[0].client() as master:
        with pytest.raises(ClusterCrossSlotError):
            master.execute_command("AI.MODELEXECUTE", f"m{{{tag}}}", "INPUTS", 1, f"x{{{tag}}}", "OUTPUTS", 1, foreign)
        with pytest.raises(MovedError):
            master.execute_command(*run(foreign))
        with pytest.raises(MovedError):
            master.execute_command("AI.TENSORSET", foreign, "FLOAT", 1, "VALUES", 1)


def test_routing_and_every_key_of_a_dag_count(cluster: Cluster, c: redis.RedisCluster) -> None:
    tag, foreign = cluster.key_of(0, "a"), cluster.key_of(1, "b")
    store(c, tag)
    dag = ["|>", "AI.MODELEXECUTE", f"m{{{tag}}}", "INPUTS", 1, f"x{{{tag}}}", "OUTPUTS", 1, "y"]
    with cluster.masters[0].client() as master:
        assert master.execute_command("AI.DAGEXECUTE", "LOAD", 1, f"x{{{tag}}}", "ROUTING", f"any{{{tag}}}", *dag) == [OK]
        for head in (
            ["ROUTING", foreign, "LOAD", 1, f"x{{{tag}}}"],
            ["LOAD", 1, foreign],
            ["LOAD", 1, f"x{{{tag}}}", "PERSIST", 1, foreign],
        ):
            with pytest.raises(ClusterCrossSlotError):
                master.execute_command("AI.DAGEXECUTE", *head, *dag)
        assert master.execute_command("AI.DAGRUN", "|>", "AI.TENSORSET", foreign, "FLOAT", 1) == [OK]  # a local name, no key


def test_values_of_all_three_types_migrate(cluster: Cluster, c: redis.RedisCluster) -> None:
    tag = cluster.key_of(1, "moving")
    store(c, tag)
    big = bytes(range(256)) * 4000
    c.execute_command("AI.TENSORSET", f"big{{{tag}}}", "UINT8", len(big), "BLOB", big)
    c.execute_command("AI.TENSORSET", f"words{{{tag}}}", "STRING", 2, "VALUES", "a", "bc")
    dumps = {key: c.dump(key) for key in (f"m{{{tag}}}", f"big{{{tag}}}", f"words{{{tag}}}")}
    cluster.migrate_slot(cluster.slot(tag), cluster.masters[1], cluster.masters[2])
    with cluster.masters[2].client() as target:
        assert {key: target.dump(key) for key in dumps} == dumps
        assert target.execute_command(*run(tag)) == OK
        assert target.execute_command("AI.TENSORGET", f"big{{{tag}}}", "BLOB") == big
    with cluster.masters[1].client() as source, pytest.raises(MovedError):
        source.execute_command(*run(tag))


def test_a_slot_that_moves_while_a_run_waits_leaves_no_orphan(cluster: Cluster, c: redis.RedisCluster, tmp_path: Path) -> None:
    tag = cluster.key_of(0, "leaving")
    gate = tmp_path / "gate"
    store(c, tag, echo_model("gate", path=str(gate)))
    source, target = cluster.masters[0], cluster.masters[2]
    connection, queued = (source.client().connection_pool.get_connection() for _ in range(2))
    connection.send_command(*run(tag, "orphan"))
    with source.client() as s:
        wait_until(lambda: s.info("everything")["ai_queue_CPU_idle_workers"] == 0, "the start of the run")
        queued.send_command(*run(tag, "queued-orphan"))
        wait_until(lambda: s.info("everything")["ai_queue_CPU_length"] == 1, "the second run in the queue")
    cluster.migrate_slot(cluster.slot(tag), source, target)
    gate.touch()
    for waiting in (connection, queued):
        with pytest.raises(redis.ResponseError):
            waiting.read_response()
    assert not {key for key in keys_on(source) | keys_on(target) if b"orphan" in key}
    assert cluster.orphans() == []


def test_failover_under_load_answers_every_request_once(cluster: Cluster, c: redis.RedisCluster) -> None:
    tag = cluster.key_of(2, "load")
    store(c, tag, echo_model("add", 1))
    replica = cluster.replicas[2]
    with replica.client() as r:
        r.execute_command("READONLY")
        wait_until(lambda: r.exists(f"m{{{tag}}}"), "the model on the replica")
    stop, done, wrong = threading.Event(), [0], []

    def worker(n: int) -> None:
        client = cluster.client()
        while not stop.is_set():
            try:
                if client.execute_command(*run(tag, f"y{n}"), target_nodes=client.get_node_from_key(tag)) != OK:
                    wrong.append("reply")
                if client.execute_command("AI.TENSORGET", f"y{n}{{{tag}}}", "BLOB") != struct.pack("<f", 3):
                    wrong.append("value")
                done[0] += 1
            except (redis.RedisError, OSError):
                continue  # within the window of the failover
        client.close()

    threads = [threading.Thread(target=worker, args=(n,)) for n in range(3)]
    for t in threads:
        t.start()
    wait_until(lambda: done[0] > 20, "some load")
    cluster.ask(replica, "CLUSTER", "FAILOVER")
    with replica.client() as r:
        wait_until(lambda: r.info("replication")["role"] == "master", "the failover")
    before = done[0]
    wait_until(lambda: done[0] > before + 20 or not any(t.is_alive() for t in threads), "load after the failover")
    stop.set()
    for t in threads:
        t.join()
    assert not wrong
    assert done[0] > before


def test_dags_that_only_read_run_on_a_replica(cluster: Cluster, c: redis.RedisCluster) -> None:
    tag = cluster.key_of(0, "reading")
    store(c, tag)
    dag = f"AI.DAGEXECUTE_RO LOAD 1 x{{{tag}}} |> AI.MODELEXECUTE m{{{tag}}} INPUTS 1 x{{{tag}}} OUTPUTS 1 y |> AI.TENSORGET y BLOB"
    with cluster.replicas[0].client() as replica:
        replica.execute_command("READONLY")
        wait_until(lambda: replica.exists(f"x{{{tag}}}"), "the tensor on the replica")
        assert replica.execute_command(*dag.split()) == [OK, struct.pack("<f", 3)]
        with pytest.raises(MovedError):
            replica.execute_command(*run(tag))


@pytest.mark.needs_torch
def test_a_script_reaches_no_key_of_another_node(cluster: Cluster, c: redis.RedisCluster) -> None:
    tag, foreign = cluster.key_of(1, "script"), cluster.key_of(2, "far")
    source = "def get(tensors: List[Tensor], keys: List[str], args: List[str]):\n    redis.execute('INCR', args[0])\n    return tensors\n"
    c.execute_command("AI.SCRIPTSTORE", f"s{{{tag}}}", "CPU", "ENTRY_POINTS", 1, "get", "SOURCE", source)
    c.execute_command("AI.TENSORSET", f"x{{{tag}}}", "FLOAT", 1, "VALUES", 3)
    call = ["AI.SCRIPTEXECUTE", f"s{{{tag}}}", "get", "INPUTS", 1, f"x{{{tag}}}", "ARGS", 1]
    with cluster.masters[1].client() as master:
        master.execute_command(*call, f"n{{{tag}}}")
        assert master.get(f"n{{{tag}}}") == b"1"
        with pytest.raises(redis.ResponseError, match="a slot that this node does not serve"):
            master.execute_command(*call, foreign)
        with pytest.raises(ClusterCrossSlotError):
            master.execute_command("AI.SCRIPTEXECUTE", f"s{{{tag}}}", "get", "KEYS", 1, foreign, "ARGS", 1, foreign)
    assert foreign.encode() not in keys_on(cluster.masters[1]) | keys_on(cluster.masters[2])


def every_kind(tag: str) -> dict[str, bytes]:
    """Payloads of all three types that are small, large, empty, old or of every field."""
    rng = random.Random(tag)
    source = "def f(tensors: List[Tensor], keys: List[str], args: List[str]):\n    return tensors\n"
    return {
        f"{{{tag}}}big": rdb.tensor("FLOAT", [500_000], rng.randbytes(2_000_000)),
        f"{{{tag}}}words": rdb.tensor("STRING", [2, 2], b"a\0bc\0\0d\0"),
        f"{{{tag}}}empty": rdb.tensor("FLOAT", [0, 3], b""),
        f"{{{tag}}}scalar": rdb.tensor("BOOL", [], b"\1"),
        f"{{{tag}}}model": rdb.model("TF", rng.randbytes(3_000_000), tag="v", batching=(8, 2, 5), inputs=("a", "b"), outputs=("c",)),
        f"{{{tag}}}unopenable": rdb.model("ONNX", b"no model"),
        f"{{{tag}}}script": rdb.script(source + "#" * 300_000, tag="s", entry_points=("f",)),
        f"{{{tag}}}old script": rdb.script(source, 0),
    }


def digests(node: redis.Redis, keys: list[str]) -> list[bytes]:
    return list(node.execute_command("DEBUG", "DIGEST-VALUE", *keys))


def test_big_values_of_all_types_migrate_with_equal_digests(cluster: Cluster, c: redis.RedisCluster) -> None:
    tag = cluster.key_of(1, "large")
    values = every_kind(tag)
    slot = cluster.slot(tag)
    source = cluster.master_of(slot)
    target = next(server for server in cluster.masters_now() if server is not source)
    with source.client() as s, target.client() as t:
        for key, payload in values.items():
            s.restore(key, 0, payload)
        before = digests(s, list(values))
        assert len(set(before)) == len(values)
        cluster.migrate_slot(slot, source, target)
        assert digests(t, list(values)) == before
        cluster.migrate_slot(slot, target, source)
        assert digests(s, list(values)) == before
    assert cluster.orphans() == []


def test_half_a_slot_is_asked_for_where_it_went(cluster: Cluster, c: redis.RedisCluster) -> None:
    """ASK and TRYAGAIN of the server's own, for commands of one key and of several; ASKING lets them in."""
    tag = cluster.key_of(1, "half")
    slot = cluster.slot(tag)
    source = cluster.master_of(slot)
    target = next(server for server in cluster.masters_now() if server is not source)
    store(c, tag)
    cluster.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
    cluster.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
    with source.client(retry=None) as s, target.client(retry=None, single_connection_client=True) as t:
        cluster.ask(source, "MIGRATE", "127.0.0.1", target.port, f"x{{{tag}}}", 0, 60_000)
        with pytest.raises(AskError):
            s.execute_command("AI.TENSORGET", f"x{{{tag}}}", "BLOB")
        with pytest.raises(TryAgainError):
            s.execute_command(*run(tag))
        with pytest.raises(MovedError):
            t.execute_command("AI.TENSORGET", f"x{{{tag}}}", "BLOB")
        t.execute_command("ASKING")
        assert t.execute_command("AI.TENSORGET", f"x{{{tag}}}", "BLOB") == struct.pack("<f", 3)
        t.execute_command("ASKING")
        with pytest.raises(TryAgainError):
            t.execute_command(*run(tag))
        cluster.ask(source, "MIGRATE", "127.0.0.1", target.port, f"m{{{tag}}}", 0, 60_000)
        with pytest.raises(AskError):
            s.execute_command(*run(tag, f"x{{{tag}}}".split("{")[0]))
        t.execute_command("ASKING")
        assert t.execute_command(*run(tag, "x")) == OK  # over its own input: every key is there
    cluster.migrate_slot(slot, source, target)
    assert cluster.orphans() == []


def test_slots_that_move_under_load_give_right_answers_and_leave_no_orphan(cluster: Cluster) -> None:
    assert reshard(cluster, random.Random(1), 8)["answers"] > 20


def test_failovers_under_load_give_right_answers(cluster: Cluster) -> None:
    assert fail_over(cluster, random.Random(1), 2)["answers"] > 20


def test_the_loss_of_a_node_costs_errors_and_no_wrong_answer(cluster: Cluster) -> None:
    assert lose_a_node(cluster, random.Random(1))["answers"] > 20
