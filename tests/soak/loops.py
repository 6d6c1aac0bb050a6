"""Loops that look for what happens once in a thousand times: kill -9, cut links, forks, stops under load, clients that leave.

Each loop is a function of a seed and a count; it raises AssertionError with the seed when something is wrong, and returns what it counted.
`make test` runs each a few times (tests/server/test_soak_short.py); `make soak` runs them long and appends seed, commit and counts to
results.jsonl, so that runs add up:

    python -m soak.loops kill 1000        (from tests/)
"""

from __future__ import annotations

import json
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis
from conftest import echo_model
from servers import ROOT, Server, running, wait_until

from .aof import corrupt, truncate
from .nodes import fail_over, lose_a_node, reshard, with_cluster
from .sync import sync

RESULTS = Path(__file__).parent / "results.jsonl"
Counts = dict[str, int]


def store_models(client: redis.Redis) -> None:
    client.execute_command("AI.MODELSTORE", "echo", "TORCH", "CPU", "BLOB", echo_model())
    client.execute_command("AI.MODELSTORE", "batched", "ONNX", "CPU", "BATCHSIZE", 8, "BLOB", echo_model())
    client.execute_command("AI.TENSORSET", "x", "INT64", 1, "VALUES", 1)


class Writer(threading.Thread):
    """One client that writes numbered tensors, by command and as outputs of runs, and remembers what was acknowledged."""

    def __init__(self, server: Server, name: str) -> None:
        super().__init__(daemon=True)
        self.server, self.prefix = server, name
        self.acknowledged: dict[str, int] = {}
        self.attempted: dict[str, int] = {}
        self.history: dict[str, list[tuple[float, int]]] = {}  # when each number was acknowledged
        self.stop = threading.Event()

    def run(self) -> None:
        try:
            with self.server.client(retry=None) as client:
                for i in range(1 << 30):
                    if self.stop.is_set():
                        return
                    self._write(client, i)
        except (redis.ConnectionError, redis.TimeoutError, ConnectionError, OSError):
            return  # the server was killed

    def _write(self, client: redis.Redis, i: int) -> None:
        source, output = f"{self.prefix}:in:{i % 20}", f"{self.prefix}:out:{i % 20}"
        self.attempted[source] = i
        client.execute_command("AI.TENSORSET", source, "INT64", 1, "VALUES", i)
        self._acknowledge(source, i)
        self.attempted[output] = i
        client.execute_command("AI.MODELEXECUTE", "batched" if i % 2 else "echo", "INPUTS", 1, source, "OUTPUTS", 1, output)
        self._acknowledge(output, i)

    def _acknowledge(self, key: str, i: int) -> None:
        self.acknowledged[key] = i
        self.history.setdefault(key, []).append((time.monotonic(), i))


class Storer(Writer):
    """One client that stores models, which open in the background of whatever else happens."""

    def _write(self, client: redis.Redis, i: int) -> None:
        client.execute_command(
            "AI.MODELSTORE", f"{self.prefix}:{i % 5}", "ONNX", "CPU", "BLOB", echo_model(open_sleep=0.002), " " * (i % 999)
        )


def value(client: redis.Redis, key: str) -> int:
    blob = client.execute_command("AI.TENSORGET", key, "BLOB")
    return int.from_bytes(blob, "little", signed=True)


def kill(seed: int, count: int) -> Counts:
    """kill -9 while clients write, appendfsync always: what was acknowledged is there after the restart."""
    rng = random.Random(seed)
    writes = 0
    with running("--appendonly", "yes", "--appendfsync", "always") as server:
        with server.client() as client:
            store_models(client)
        for _ in range(count):
            writers = [Writer(server, f"w{n}") for n in range(3)]
            for writer in writers:
                writer.start()
            time.sleep(rng.uniform(0.02, 0.3))
            server.restart(signal.SIGKILL)
            with server.client() as client:
                for writer in writers:
                    writer.join(30)
                    for key, acknowledged in writer.acknowledged.items():
                        found = value(client, key)
                        assert found in {acknowledged, writer.attempted[key]}, f"seed {seed}: {key} is {found}, acknowledged {acknowledged}"
                    writes += len(writer.acknowledged)
                assert client.exists("echo", "batched") == 2, f"seed {seed}: a model is lost"
    return {"kills": count, "keys_checked": writes}


#: Seconds that `appendfsync everysec` may lose: the file is synced once a second, and a slow sync holds writes back for as long again.
EVERYSEC = 2.0


def everysec(seed: int, count: int) -> Counts:
    """kill -9 while clients write, appendfsync everysec: what was acknowledged longer ago than that is there after the restart."""
    rng = random.Random(seed)
    checked = 0
    with running("--appendonly", "yes", "--appendfsync", "everysec") as server:
        with server.client() as client:
            store_models(client)
        for _ in range(count):
            writers = [Writer(server, f"w{n}") for n in range(3)]
            for writer in writers:
                writer.start()
            time.sleep(rng.uniform(0.1, 3.5))
            killed = time.monotonic()
            server.restart(signal.SIGKILL)
            with server.client() as client:
                for writer in writers:
                    writer.join(30)
                    for key, history in writer.history.items():
                        old = [i for when, i in history if when < killed - EVERYSEC]
                        if old:
                            found = value(client, key)
                            assert found >= old[-1], f"seed {seed}: {key} is {found}, acknowledged {old[-1]} before the last two seconds"
                            checked += 1
                client.flushall()
                store_models(client)
    return {"kills": count, "keys_checked": checked}


def digest(client: redis.Redis) -> bytes:
    result: bytes = client.execute_command("DEBUG DIGEST")
    return result


def cut(seed: int, count: int) -> Counts:
    """The replica's link is cut, again and again, while clients write: in the end both hold the same."""
    rng = random.Random(seed)
    follow = ("--repl-backlog-size", "1mb")
    with (
        running(*follow) as master,
        running("--replicaof", "127.0.0.1", str(master.port)) as replica,
        master.client() as m,
        replica.client() as r,
    ):
        store_models(m)
        writers = [Writer(master, f"w{n}") for n in range(2)]
        for writer in writers:
            writer.start()
        for _ in range(count):
            time.sleep(rng.uniform(0.005, 0.05))
            if rng.random() < 0.2:
                r.execute_command("REPLICAOF", "NO", "ONE")
                r.execute_command("REPLICAOF", "127.0.0.1", master.port)
            else:
                m.execute_command("CLIENT", "KILL", "TYPE", "replica")
        for writer in writers:
            writer.stop.set()
            writer.join(30)
        wait_until(lambda: r.info("replication")["master_link_status"] == "up" and digest(m) == digest(r), f"seed {seed}: equal digests")
        return {"cuts": count, "writes": sum(max(w.attempted.values()) for w in writers)}


def fork(seed: int, count: int) -> Counts:
    """BGSAVE and BGREWRITEAOF while workers run and models open: every child finishes."""
    rng = random.Random(seed)
    with running("--appendonly", "yes", "--appendfsync", "no") as server, server.client() as client:
        store_models(client)
        writers = [*(Writer(server, f"w{n}") for n in range(3)), Storer(server, "s")]
        for writer in writers:
            writer.start()
        for _ in range(count):
            client.execute_command(rng.choice(("BGSAVE", "BGREWRITEAOF")))
            wait_until(lambda: not _child_runs(client), f"seed {seed}: the end of a child")
        info = client.info("persistence")
        assert info["rdb_last_bgsave_status"] == info["aof_last_bgrewrite_status"] == "ok", f"seed {seed}"
        for writer in writers:
            writer.stop.set()
            writer.join(30)
    return {"forks": count}


def _child_runs(client: redis.Redis) -> bool:
    info = client.info("persistence")
    return bool(info["rdb_bgsave_in_progress"] or info["aof_rewrite_in_progress"] or info.get("aof_rewrite_scheduled"))


def stop(seed: int, count: int) -> Counts:
    """SHUTDOWN and SIGTERM with busy workers: status 0, no crash report."""
    rng = random.Random(seed)
    for _ in range(count):
        with running() as server:
            with server.client() as client:
                store_models(client)
            writers = [Writer(server, f"w{n}") for n in range(3)]
            for writer in writers:
                writer.start()
            time.sleep(rng.uniform(0.01, 0.1))
            status = server.stop(signal.SIGTERM) if rng.random() < 0.5 else _shutdown(server)
            assert status == 0 and "CRASHED" not in server.log().upper(), f"seed {seed}: status {status}\n{server.log()[-3000:]}"
            for writer in writers:
                writer.join(30)
    return {"stops": count}


def _shutdown(server: Server) -> int:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"SHUTDOWN NOSAVE\r\n")
        assert server.process is not None
        return server.process.wait(60)


#: What a client sends before it leaves; OUT is a key of its own, and "never" before it says that it must not be written.
REQUESTS = [
    "AI.MODELEXECUTE echo INPUTS 1 x OUTPUTS 1 OUT",
    "AI.MODELEXECUTE slow INPUTS 1 x OUTPUTS 1 OUT",
    "AI.MODELEXECUTE lonely INPUTS 1 x OUTPUTS 1 never:OUT",
    "AI.MODELEXECUTE echo INPUTS 1 x OUTPUTS 1 OUT TIMEOUT 1",
    "AI.DAGEXECUTE LOAD 1 x PERSIST 1 OUT |> AI.MODELEXECUTE slow INPUTS 1 x OUTPUTS 1 y |> AI.MODELEXECUTE echo INPUTS 1 y OUTPUTS 1 OUT",
    "AI.DAGEXECUTE LOAD 1 x PERSIST 1 never:OUT |> AI.MODELEXECUTE slow INPUTS 1 x OUTPUTS 1 y |> "
    "AI.MODELEXECUTE lonely INPUTS 1 y OUTPUTS 1 never:OUT",
    "AI.MODELSTORE OUT TORCH CPU BLOB " + echo_model(open_sleep=0.002).replace(" ", ""),
    "AI.TENSORGET big VALUES",
]


def leave(seed: int, count: int) -> Counts:
    """Clients that leave at any moment of a request, in order or by a reset: what can never finish is never written, and nothing of them is
    left when they are gone."""
    with running() as server, server.client() as client:
        store_models(client)
        client.execute_command("AI.MODELSTORE", "slow", "ONNX", "CPU", "BLOB", echo_model("sleep", seconds=0.001))
        words = ("CPU", "BATCHSIZE", 10**6, "MINBATCHSIZE", 10**6)
        client.execute_command("AI.MODELSTORE", "lonely", "ONNX", *words, "BLOB", echo_model())
        client.execute_command("AI.TENSORSET", "big", "INT8", 50_000)

        def leaver(rng: random.Random, names: range) -> None:
            for i in names:
                words = rng.choice(REQUESTS).split()
                words = [word.replace("OUT", f"out:{i}") if word in ("OUT", "never:OUT") else word for word in words]
                with socket.create_connection(("127.0.0.1", server.port)) as own:
                    own.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words))
                    time.sleep(rng.choice((0, rng.uniform(0, 0.004))))
                    if rng.random() < 0.5:
                        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        def used() -> int:
            return int(client.info("memory")["used_memory"])

        def crowd(names: range) -> None:
            """These come and go."""
            with ThreadPoolExecutor(4) as pool:
                for left in [pool.submit(leaver, random.Random(f"{seed}/{names}/{n}"), names[n::4]) for n in range(4)]:
                    left.result()
            wait_until(lambda: client.info("clients")["connected_clients"] <= 2, f"seed {seed}: every client to be gone")
            wait_until(lambda: client.info("everything")["ai_jobs_in_flight"] == 0, f"seed {seed}: every request to be gone")
            assert client.info("clients")["blocked_clients"] == 0
            assert not client.keys("never:*"), f"seed {seed}: a request that cannot have finished was written"
            keys = client.keys("out:*")
            if keys:
                client.delete(*keys)

        crowd(range(-200, 0))
        before = used()
        crowd(range(count))
        wait_until(lambda: used() - before < 64 << 10, f"seed {seed}: the memory to be given back, by and by")
        assert client.execute_command("AI.MODELEXECUTE", "echo", "INPUTS", 1, "x", "OUTPUTS", 1, "y") == b"OK"
    return {"leavers": count}


def huge(seed: int, count: int) -> Counts:
    """A model of more than 2 GiB in chunks of nearly the longest argument: stored, saved, loaded and returned byte by byte. Needs 6 GB of
    memory and 3 of disk. On a replica that may write, in a transaction, because there nothing is opened."""
    chunk = random.Random(seed).randbytes(1 << 20) * 511
    for _ in range(count):
        with running("--client-query-buffer-limit", "6gb", "--rdbcompression", "no") as server, server.client(socket_timeout=600) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", 1)
            client.config_set("replica-read-only", "no")
            with client.pipeline(transaction=True) as both:
                both.execute_command("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", *[chunk] * 4, b"", chunk[:-7])
                assert both.execute() == [b"OK"], f"seed {seed}"
            size = 5 * len(chunk) - 7
            assert size > 1 << 31
            assert client.memory_usage("m") > size
            before = digest(client)
            client.execute_command("DEBUG", "RELOAD")
            assert digest(client) == before, f"seed {seed}"
            found = client.execute_command("AI.MODELGET", "m", "BLOB")
            assert len(found) == 5 and [len(part) for part in found] == [len(chunk)] * 4 + [len(chunk) - 7], f"seed {seed}"
            assert all(part == chunk for part in found[:4]) and found[4] == chunk[:-7], f"seed {seed}"
            found.clear()
            client.delete("m")
            wait_until(lambda: client.info("memory")["used_memory"] < 1 << 30, f"seed {seed}: the memory to be given back")
    return {"models": count, "bytes": count * size}


LOOPS: dict[str, Callable[[int, int], Counts]] = {
    "kill": kill,
    "everysec": everysec,
    "cut": cut,
    "fork": fork,
    "stop": stop,
    "sync": sync,
    "truncate": truncate,
    "corrupt": corrupt,
    "reshard": with_cluster(reshard),
    "failover": with_cluster(fail_over),
    "loss": with_cluster(lose_a_node),
    "leave": leave,
    "huge": huge,
}


def record(name: str, seed: int, counts: Counts, seconds: float) -> None:
    """Appends a run to the results."""
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    row: dict[str, Any] = {"loop": name, "seed": seed, "commit": commit, "when": datetime.now(UTC).date().isoformat(), **counts}
    with RESULTS.open("a") as file:
        file.write(json.dumps({**row, "seconds": round(seconds)}) + "\n")


def main(arguments: list[str]) -> None:
    name, count = arguments[0], int(arguments[1])
    seed = int(arguments[2]) if len(arguments) > 2 else random.randrange(1 << 30)
    started = time.monotonic()
    counts = LOOPS[name](seed, count)
    record(name, seed, counts, time.monotonic() - started)
    sys.stdout.write(f"{name}: {counts}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
