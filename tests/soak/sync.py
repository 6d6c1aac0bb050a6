"""Full syncs that break off: a link that ends at any byte of the dump, for every way in which a replica takes one in.

What must hold: the replica lives; where Redis promises it, it serves its old values meanwhile; of half a dump nothing stays, no value, no
place in a scan, no memory; and the sync that comes through at last makes both equal.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import redis
from conftest import echo_model
from servers import running, wait_until

MODES = ("swapdb", "on-empty-db", "disabled")

#: The replica answers clients after so many bytes of a dump: often, for one that is small.
OFTEN = ("--loading-process-events-interval-bytes", "1024")


class Link:
    """A proxy before a master. Each sync it passes ends after as many bytes of the dump as `cuts` says next; without a cut it passes on."""

    def __init__(self, port: int) -> None:
        self._master = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cuts: list[int] = []
        self.made = 0
        self.last_dump = 0  # bytes after the answer to PSYNC of the last connection
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        self.drop()

    def drop(self) -> None:
        """Ends every connection."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                replica, _ = self._listener.accept()
                master = socket.create_connection(("127.0.0.1", self._master))
                self._open += [replica, master]
                threading.Thread(target=self._up, args=(replica, master), daemon=True).start()
                threading.Thread(target=self._down, args=(master, replica), daemon=True).start()

    @staticmethod
    def _up(replica: socket.socket, master: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := replica.recv(65536):
                master.sendall(data)
        with contextlib.suppress(OSError):
            master.shutdown(socket.SHUT_RDWR)

    def _down(self, master: socket.socket, replica: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._pass(master, replica)
        for end in (master, replica):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pass(self, master: socket.socket, replica: socket.socket) -> None:
        head = b""
        while b"FULLRESYNC" not in head or not head.endswith(b"\n"):  # the handshake, an answer at a time
            data = master.recv(1)
            if not data:
                return
            head = (head + data)[-200:]
            replica.sendall(data)
            if b"+CONTINUE" in head:
                break
        passed, cut = 0, self.cuts.pop(0) if self.cuts and b"FULLRESYNC" in head else None
        while data := master.recv(16384):
            if cut is not None and passed + len(data) > cut:
                replica.sendall(data[: cut - passed])
                self.made += 1
                return
            replica.sendall(data)
            passed += len(data)
            self.last_dump = passed


class Reader(threading.Thread):
    """Asks the replica for one value again and again: it is that value, or a refusal to answer. Counts answers during a load."""

    def __init__(self, client: redis.Redis, value: bytes) -> None:
        super().__init__(daemon=True)
        self.client, self.value = client, value
        self.wrong: list[Any] = []
        self.while_loading = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            try:
                loading = self.client.info("persistence")["async_loading"]
                got = self.client.execute_command("AI.TENSORGET", "constant", "BLOB")
                self.while_loading += loading
            except redis.BusyLoadingError:
                continue
            if got != self.value:
                self.wrong.append(got)


def fill(client: redis.Redis, rng: random.Random) -> bytes:
    """Values of all three types, small and large; returns the bytes of the tensor `constant`, which is never written again."""
    constant = rng.randbytes(3000)
    client.execute_command("AI.TENSORSET", "constant", "UINT8", 3000, "BLOB", constant)
    client.execute_command("AI.TENSORSET", "words", "STRING", 2, "VALUES", "a", "bc" * 500)
    client.execute_command("AI.TENSORSET", "flags", "BOOL", 3, "VALUES", 1, 0, 1)
    for i in range(20):
        client.execute_command("AI.TENSORSET", f"t{i}", "FLOAT", 1000 * i + 1, "BLOB", np.arange(1000 * i + 1, dtype="<f4").tobytes())
        client.execute_command("AI.MODELSTORE", f"m{i}", "ONNX", "CPU", "TAG", "t", "BLOB", echo_model(), " " * 3000 * i)
    if "SANITIZER" in os.environ:  # whose allocator hangs a child that is forked while another thread allocates, as an import of torch does
        return constant
    with client.pipeline(transaction=True) as transaction:  # which asks no library
        for i in range(5):
            words = ("ENTRY_POINTS", 1, "f", "SOURCE", f"def f(a):\n    return a + {i}\n" + "#" * 5000)
            transaction.execute_command("AI.SCRIPTSTORE", f"s{i}", "CPU", *words)
        transaction.execute()
    return constant


def digest(client: redis.Redis) -> bytes:
    result: bytes = client.execute_command("DEBUG DIGEST")
    return result


def in_step(master: redis.Redis, replica: redis.Redis) -> bool:
    try:
        return replica.info("replication")["master_link_status"] == "up" and digest(master) == digest(replica)
    except (redis.BusyLoadingError, redis.ConnectionError):
        return False


def break_off(seed: int, mode: str, count: int) -> dict[str, int]:
    """`count` syncs that end early and one that does not, into a replica whose `repl-diskless-load` is `mode`."""
    rng = random.Random(f"{seed} {mode}")
    sending = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--repl-backlog-size", "16kb")
    with (
        running(*sending) as master,
        running("--repl-diskless-load", mode, *OFTEN) as replica,
        contextlib.closing(Link(master.port)) as link,
        master.client() as m,
        replica.client() as r,
    ):
        constant = fill(m, rng)
        m.save()
        size = (master.directory / "dump.rdb").stat().st_size  # what a sync sends, give or take
        pid, answered = replica.pid, 0
        if mode != "on-empty-db":
            r.replicaof("127.0.0.1", link.port)
            wait_until(lambda: in_step(m, r), f"seed {seed}: the first sync")
        before = r.info("memory")["used_memory"]
        with _reading(r, constant) if mode == "swapdb" else contextlib.nullcontext() as reader:
            link.cuts = [rng.randrange(size) for _ in range(count)]
            r.replicaof("127.0.0.1", link.port)
            link.drop()
            m.execute_command("AI.TENSORSET", "news", "UINT8", 40_000, "BLOB", rng.randbytes(40_000))  # more than the backlog holds
            wait_until(lambda: link.made == count, f"seed {seed}: {count} cuts, {link.made} made", 60 + count)
            wait_until(lambda: in_step(m, r), f"seed {seed}: equal digests")
            if reader:
                wait_until(lambda: reader.while_loading or reader.wrong, "an answer during a load") if count >= 50 else None
                answered = reader.while_loading
        assert replica.alive() and replica.pid == pid, f"seed {seed}: {replica.log()[-4000:]}"
        for scan in ("AI._MODELSCAN", "AI._SCRIPTSCAN"):
            assert sorted(r.execute_command(scan)) == sorted(m.execute_command(scan)), f"seed {seed}"
        held = m.info("memory")["used_memory"] if mode == "on-empty-db" else before
        wait_until(lambda: r.info("memory")["used_memory"] < held + 1_500_000, f"seed {seed}: half values leave no memory behind")
    return {"cuts": count, "answers_while_loading": answered}


@contextlib.contextmanager
def _reading(client: redis.Redis, value: bytes) -> Iterator[Reader]:
    reader = Reader(client, value)
    reader.start()
    yield reader
    reader.over.set()
    reader.join(30)
    assert not reader.wrong, f"{len(reader.wrong)} wrong values"


def sync(seed: int, count: int) -> dict[str, int]:
    """A third of the cuts in each mode, side by side: a sync is mostly waiting."""
    with ThreadPoolExecutor(len(MODES)) as pool:
        done = list(pool.map(lambda mode: break_off(seed, mode, -(-count // len(MODES))), MODES))
    return {name: sum(counts[name] for counts in done) for name in done[0]}
