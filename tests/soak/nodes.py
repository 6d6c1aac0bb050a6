"""A cluster under load whose slots move, whose masters change and whose nodes die.

What must hold: each answer carries the number that was asked for; keys are only where their slots are served; what rests in a slot has the
digest it had; replicas end equal to their masters; and errors end with what caused them.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable

import redis
from cluster import Cluster
from conftest import echo_model
from redis.crc import key_slot
from redis.exceptions import ClusterError, RedisClusterException
from servers import Server, wait_until

TAGS = [f"load{n}" for n in range(3)]

#: What a client may be told while slots or masters change.
PASSING = (
    "MOVED",
    "ASK",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "UNBLOCKED",
    "READONLY",
    "LOADING",
    "MASTERDOWN",
    "slot",
    "key is empty",
    "writes are paused",
)


#: What a client meets when the node it spoke to is gone, and when nobody tells it yet who took over.
GONE = (redis.ConnectionError, redis.TimeoutError, RedisClusterException, ClusterError, OSError, KeyError)


class Asker(threading.Thread):
    """One client that stores a number, runs the model on it and reads the answer, which is that number.

    `lossy`: a master dies, and what it acknowledged last may be gone: then the answer may be an earlier number, never one not asked for."""

    def __init__(self, cluster: Cluster, tag: str, lossy: bool = False) -> None:
        super().__init__(daemon=True)
        self.cluster, self.tag, self.lossy = cluster, tag, lossy
        self.answers = self.errors = 0
        self.wrong: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        client: redis.RedisCluster | None = None
        i = 0
        while not self.over.wait(0.005):
            i += 1
            try:
                client = client or self.cluster.client()
                self._ask(client, i)
            except GONE:
                self.errors += 1
                client = None
            except redis.ResponseError as error:
                self._note(error)
        if client:
            client.close()

    def _ask(self, client: redis.RedisCluster, i: int) -> None:
        source, output = f"in{{{self.tag}}}", f"out{{{self.tag}}}"
        client.execute_command("AI.TENSORSET", source, "INT64", 1, "VALUES", i)
        node = client.get_node_from_key(source)
        client.execute_command("AI.MODELEXECUTE", f"m{{{self.tag}}}", "INPUTS", 1, source, "OUTPUTS", 1, output, target_nodes=node)
        got = int.from_bytes(client.execute_command("AI.TENSORGET", output, "BLOB"), "little")
        self.answers += 1
        if got != i and not (self.lossy and 0 < got < i):
            self.wrong.append(f"{got} for {i}")

    def _note(self, error: redis.ResponseError) -> None:
        self.errors += 1
        if not any(text in f"{type(error).__name__.upper()} {error}" for text in PASSING):
            self.wrong.append(str(error))


@contextlib.contextmanager
def load(cluster: Cluster, lossy: bool = False):  # type: ignore[no-untyped-def]
    """Clients on every tag; at the end, answers go on and none was wrong."""
    client = cluster.client()
    for tag in TAGS:
        client.execute_command("AI.MODELSTORE", f"m{{{tag}}}", "TORCH", "CPU", "BATCHSIZE", 4, "BLOB", echo_model("add", 1))
    client.close()
    askers = [Asker(cluster, tag, lossy) for tag in TAGS]
    for asker in askers:
        asker.start()
    flowing(askers)
    yield askers
    flowing(askers)
    for asker in askers:
        asker.over.set()
    for asker in askers:
        asker.join(60)
        assert not asker.wrong, asker.wrong[:5]


def flowing(askers: list[Asker]) -> None:
    """Waits until each client had more answers, so that errors have an end."""
    before = [asker.answers for asker in askers]
    wait_until(lambda: all(a.answers > n + 5 for a, n in zip(askers, before, strict=True)), "answers for every client")


def answers(askers: list[Asker]) -> dict[str, int]:
    return {"answers": sum(a.answers for a in askers), "errors": sum(a.errors for a in askers)}


def replicas_agree(cluster: Cluster) -> bool:
    """Each replica holds what its master holds."""
    for server in cluster.servers:
        role = cluster.ask(server, "ROLE")
        if role[0] == b"slave":
            master = next(s for s in cluster.servers if s.port == role[2])
            if role[3] != b"connected" or cluster.ask(server, "DEBUG", "DIGEST") != cluster.ask(master, "DEBUG", "DIGEST"):
                return False
    return True


def at_rest(cluster: Cluster) -> None:
    wait_until(lambda: replicas_agree(cluster), "replicas equal to their masters")
    assert cluster.orphans() == []


def reshard(cluster: Cluster, rng: random.Random, count: int) -> dict[str, int]:
    """`count` moves of slots that are in use."""
    masters = cluster.masters_now()
    with load(cluster) as askers:
        for _ in range(count):
            slot = key_slot(rng.choice(TAGS).encode())
            source = cluster.master_of(slot)
            cluster.migrate_slot(slot, source, rng.choice([m for m in masters if m is not source]))
    at_rest(cluster)
    return {"moves": count, **answers(askers)}


def fail_over(cluster: Cluster, rng: random.Random, count: int) -> dict[str, int]:
    """`count` orderly failovers, which lose nothing."""
    with load(cluster) as askers:
        for _ in range(count):
            replica = rng.choice([s for s in cluster.servers if cluster.ask(s, "ROLE")[0] == b"slave"])
            wait_until(lambda r=replica: cluster.ask(r, "ROLE")[3] == b"connected", "the replica's link")
            become_master(cluster, replica)
            flowing(askers)
    at_rest(cluster)
    return {"failovers": count, **answers(askers)}


def become_master(cluster: Cluster, replica: Server) -> None:
    """Asks again when an attempt was given up, which a busy machine may cause."""

    def done() -> bool:
        with contextlib.suppress(redis.ResponseError):
            cluster.ask(replica, "CLUSTER", "FAILOVER")
        with contextlib.suppress(AssertionError):
            wait_until(lambda: cluster.ask(replica, "ROLE")[0] == b"master", "the failover", 8)
        return bool(cluster.ask(replica, "ROLE")[0] == b"master")

    wait_until(done, "the failover")


def lose_a_node(cluster: Cluster, rng: random.Random, count: int = 1) -> dict[str, int]:
    """`count` times a master with a replica is killed and, when that has taken over, comes back."""
    with load(cluster, lossy=True) as askers:
        for _ in range(count):
            slot = key_slot(rng.choice(TAGS).encode())
            victim = cluster.master_of(slot)
            wait_until(lambda v=victim: cluster.ask(v, "ROLE")[2], "a replica to take over")
            victim.stop(signal.SIGKILL)
            wait_until(lambda s=slot: _served(cluster, s), "another master")
            flowing(askers)
            victim.start()
            wait_until(lambda v=victim: cluster.ask(v, "ROLE")[0] == b"slave", "the return as a replica")
    at_rest(cluster)
    return {"losses": count, **answers(askers)}


def _served(cluster: Cluster, slot: int) -> bool:
    try:
        return cluster.master_of(slot).alive()
    except AssertionError:
        return False


def with_cluster(loop: Callable[[Cluster, random.Random, int], dict[str, int]]) -> Callable[[int, int], dict[str, int]]:
    """The loop on a cluster of its own."""

    def run(seed: int, count: int) -> dict[str, int]:
        with contextlib.closing(Cluster()) as cluster:
            return loop(cluster, random.Random(seed), count)

    return run
