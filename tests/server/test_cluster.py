"""A cluster of three masters and three replicas: routing, slots that move while a run waits, migration of values, failover under load."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import echo_model
from redis.exceptions import ClusterCrossSlotError, MovedError
from servers import Server, wait_until

OK = b"OK"
SLOTS = 16384


def is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as s:
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def cluster_port() -> int:
    """A port whose bus, 10000 above it, is free as well; both below the range that outgoing connections take theirs from."""
    return next(port for port in iter(lambda: random.randrange(11_000, 22_000), None) if is_free(port) and is_free(port + 10_000))


class Cluster:
    """Six servers; `masters[i]` serves the i-th third of the slots and `replicas[i]` follows it."""

    def __init__(self) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no")
        self.servers = [Server(*options, port=cluster_port()) for _ in range(6)]
        self.masters, self.replicas = self.servers[:3], self.servers[3:]
        self._join()

    def _join(self) -> None:
        first = self.servers[0]
        for i, master in enumerate(self.masters):
            with master.client() as c:
                c.execute_command("CLUSTER", "ADDSLOTSRANGE", *self.range_of(i))
                c.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        for server in self.servers[1:]:
            with server.client() as c:
                c.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port)
        for server in self.servers:
            wait_until(lambda s=server: self.known_nodes(s) == 6, "six nodes known to each other")
        for master, replica in zip(self.masters, self.replicas, strict=True):
            with replica.client() as c:
                wait_until(lambda c=c, m=master: self.id_of(m) in str(c.execute_command("CLUSTER NODES")), "the master's name")
                c.execute_command("CLUSTER", "REPLICATE", self.id_of(master))
                wait_until(lambda c=c: c.info("replication").get("master_link_status") == "up", "the link")
        for server in self.servers:
            wait_until(lambda s=server: self.state(s) == "ok", "the cluster's state")

    @staticmethod
    def range_of(i: int) -> tuple[int, int]:
        bounds = [0, SLOTS // 3, 2 * SLOTS // 3, SLOTS]
        return bounds[i], bounds[i + 1] - 1

    @staticmethod
    def ask(server: Server, *command: object) -> Any:
        """A command as it is, its reply unparsed (redis-py dresses up some of CLUSTER's)."""
        with server.client() as c:
            c.response_callbacks = {}
            return c.execute_command(*command)

    def known_nodes(self, server: Server) -> int:
        return len(self.ask(server, "CLUSTER", "NODES").split(b"\n")) - 1

    def state(self, server: Server) -> str:
        lines = self.ask(server, "CLUSTER", "INFO").decode().split()
        return next(line.split(":")[1] for line in lines if line.startswith("cluster_state"))

    def id_of(self, server: Server) -> str:
        return str(self.ask(server, "CLUSTER", "MYID").decode())

    def client(self) -> redis.RedisCluster:
        return redis.RedisCluster(host="127.0.0.1", port=self.servers[0].port, socket_timeout=60)

    def slot(self, key: str) -> int:
        return int(self.ask(self.servers[0], "CLUSTER", "KEYSLOT", key))

    def key_of(self, i: int, prefix: str) -> str:
        """A key whose slot the i-th master serves from the start."""
        low, high = self.range_of(i)
        return next(key for n in range(1000) if low <= self.slot(key := f"{prefix}{n}") <= high)

    def close(self) -> None:
        for server in self.servers:
            server.close()


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


def migrate_slot(cluster: Cluster, slot: int, source: Server, target: Server) -> None:
    """Moves a slot with its keys the way resharding does."""
    cluster.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
    cluster.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
    while keys := cluster.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 10):
        cluster.ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
    for server in (target, source, *cluster.masters):
        cluster.ask(server, "CLUSTER", "SETSLOT", slot, "NODE", cluster.id_of(target))


def test_values_of_all_three_types_migrate(cluster: Cluster, c: redis.RedisCluster) -> None:
    tag = cluster.key_of(1, "moving")
    store(c, tag)
    big = bytes(range(256)) * 4000
    c.execute_command("AI.TENSORSET", f"big{{{tag}}}", "UINT8", len(big), "BLOB", big)
    c.execute_command("AI.TENSORSET", f"words{{{tag}}}", "STRING", 2, "VALUES", "a", "bc")
    dumps = {key: c.dump(key) for key in (f"m{{{tag}}}", f"big{{{tag}}}", f"words{{{tag}}}")}
    migrate_slot(cluster, cluster.slot(tag), cluster.masters[1], cluster.masters[2])
    with cluster.masters[2].client() as target:
        assert {key: target.dump(key) for key in dumps} == dumps
        assert target.execute_command(*run(tag)) == OK
        assert target.execute_command("AI.TENSORGET", f"big{{{tag}}}", "BLOB") == big
    with cluster.masters[1].client() as source, pytest.raises(MovedError):
        source.execute_command(*run(tag))


def keys_on(server: Server) -> set[bytes]:
    with server.client() as c:
        return set(c.keys("*"))


def test_a_slot_that_moves_while_a_run_waits_leaves_no_orphan(cluster: Cluster, c: redis.RedisCluster, tmp_path: Path) -> None:
    tag = cluster.key_of(0, "leaving")
    gate = tmp_path / "gate"
    store(c, tag, echo_model("gate", path=str(gate)))
    source, target = cluster.masters[0], cluster.masters[2]
    connection = source.client().connection_pool.get_connection()
    connection.send_command(*run(tag, "orphan"))
    with source.client() as s:
        wait_until(lambda: s.info("everything")["ai_queue_CPU_idle_workers"] == 0, "the start of the run")
    migrate_slot(cluster, cluster.slot(tag), source, target)
    gate.touch()
    with pytest.raises(redis.ResponseError):
        connection.read_response()
    assert f"orphan{{{tag}}}".encode() not in keys_on(source) | keys_on(target)


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
