"""A cluster of three masters and three replicas on this machine, and what moves slots between them."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Any

import redis
from redis.crc import key_slot
from servers import Server, wait_until

SLOTS = 16384


def keys_on(server: Server) -> set[bytes]:
    with server.client() as c:
        return set(c.keys("*"))


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
        return redis.RedisCluster(host="127.0.0.1", port=next(server.port for server in self.servers if server.alive()), socket_timeout=60)

    def slot(self, key: str) -> int:
        return int(self.ask(self.servers[0], "CLUSTER", "KEYSLOT", key))

    def key_of(self, i: int, prefix: str) -> str:
        """A key whose slot the i-th master serves from the start."""
        low, high = self.range_of(i)
        return next(key for n in range(1000) if low <= self.slot(key := f"{prefix}{n}") <= high)

    def migrate_slot(self, slot: int, source: Server, target: Server) -> None:
        """Moves a slot with its keys the way resharding does."""
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))
        while keys := self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 10):
            self.ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 60_000, "KEYS", *keys)
        for server in (target, source, *self.masters_now()):
            self.ask(server, "CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    def owned(self, server: Server) -> set[int]:
        """The slots that this server says it serves."""
        mine = self.id_of(server).encode()
        ranges = [(first, last) for first, last, master, *_ in self.ask(server, "CLUSTER", "SLOTS") if master[2] == mine]
        return {slot for first, last in ranges for slot in range(first, last + 1)}

    def orphans(self) -> list[tuple[int, bytes]]:
        """Keys on masters that do not serve their slots."""
        found = []
        for server in self.masters_now():
            slots = self.owned(server)
            found += [(server.port, key) for key in keys_on(server) if key_slot(key) not in slots]
        return found

    def masters_now(self) -> list[Server]:
        return [server for server in self.servers if server.alive() and self.ask(server, "ROLE")[0] == b"master"]

    def master_of(self, slot: int) -> Server:
        """The one master that says it serves the slot."""
        serving = [server for server in self.masters_now() if slot in self.owned(server)]
        assert len(serving) == 1, [s.port for s in serving]
        return serving[0]

    def close(self) -> None:
        for server in self.servers:
            server.close()
