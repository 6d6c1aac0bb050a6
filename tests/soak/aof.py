"""Append-only files that end early or hold a wrong byte, anywhere in their last 4 KB: a server starts on each.

An early end: `aof-load-truncated` promises the commands before it, whole, and nothing of the one it falls into; outputs of one run, which
are written as a transaction, are all there or none of them. A wrong byte: the server refuses the file with a reason, or every value is one
that a client could have stored.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import redis
from conftest import echo_model
from servers import Server, running

LAST = 4096
AOF = ("--appendonly", "yes", "--appendfsync", "no", "--auto-aof-rewrite-percentage", "0")
ITEM_SIZE = {"FLOAT": 4, "DOUBLE": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8, "UINT8": 1, "UINT16": 2, "BOOL": 1}


def commands(log: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """The commands of a log and where each ends."""
    at = 0
    while at < len(log):
        head = log.index(b"\r\n", at)
        count, at = int(log[at + 1 : head]), head + 2
        words = []
        for _ in range(count):
            head = log.index(b"\r\n", at)
            size = int(log[at + 1 : head])
            words.append(log[head + 2 : head + 2 + size])
            at = head + 2 + size + 2
        yield at, words


@dataclass
class Log:
    """A directory with an append-only file, its bytes, and after each whole command or transaction: where it ends, the digest then."""

    directory: Path
    content: bytes
    ends: list[int]
    digests: list[bytes]

    def digest_at(self, cut: int) -> bytes:
        return self.digests[sum(end <= cut for end in self.ends)]


def write_log(directory: Path, turns: int = 12) -> Log:
    """Lets a server write every kind of command that the module replicates."""
    with running(*AOF, directory=directory) as server, server.client() as c:
        c.execute_command("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model())
        c.execute_command("AI.MODELSTORE", "two", "ONNX", "CPU", "BLOB", echo_model(inputs=1, outputs=2))
        for i in range(turns):
            c.execute_command("AI.TENSORSET", "f", "FLOAT", 2, 2, "VALUES", i, 1, 2, 3)
            c.execute_command("AI.TENSORSET", "b", "BOOL", 5, "VALUES", 1, 0, 1, i % 2, 1)
            c.execute_command("AI.TENSORSET", "s", "STRING", 2, "VALUES", f"turn {i}", "word")
            c.execute_command("AI.MODELEXECUTE", "two", "INPUTS", 1, "f", "OUTPUTS", 2, f"y{i % 3}", f"z{i % 3}")
            c.execute_command("AI.MODELSTORE", "n", "ONNX", "CPU", "TAG", i, "BLOB", echo_model()[:9], echo_model()[9:])
            with c.pipeline(transaction=True) as transaction:
                transaction.execute_command("AI.SCRIPTSTORE", "p", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", f"def f(a):\n    return {i}\n")
                transaction.execute_command("AI.MODELDEL", "n") if i % 2 else transaction.execute_command("SET", "plain", i)
                transaction.execute()
        server.stop()
    content = incremental(directory).read_bytes()
    with running() as server, server.client() as c:
        ends, digests = [], [c.execute_command("DEBUG DIGEST")]
        inside = False
        for end, words in commands(content):
            if words[0] not in (b"MULTI", b"EXEC"):
                c.pipeline().execute_command(*words).execute()  # in a transaction, where stores ask no library
            inside = words == [b"MULTI"] or (inside and words != [b"EXEC"])
            if not inside:
                ends.append(end)
                digests.append(c.execute_command("DEBUG DIGEST"))
    return Log(directory, content, ends, digests)


def incremental(directory: Path) -> Path:
    return next(directory.glob("appendonlydir/*.incr.aof"))


def started_on(log: Log, content: bytes, check: Callable[[Server, redis.Redis], None]) -> bool:
    """Starts a server on a copy of the log's directory with this content. False when it refused to start, in Redis's own words."""
    with tempfile.TemporaryDirectory(prefix="redisai-test-") as name:
        directory = Path(name)
        shutil.copytree(log.directory / "appendonlydir", directory / "appendonlydir")
        incremental(directory).write_bytes(content)
        try:
            server = Server(*AOF, directory=directory)
        except AssertionError as error:
            text = "".join(path.read_text(errors="replace") for path in directory.glob("*.log"))
            assert "reading the append only file" in text, error
            assert "crashed by signal" not in text, error
            return False
        try:
            with server.client() as client:
                check(server, client)
        finally:
            server.close()
        return True


def check_values(client: redis.Redis) -> None:
    """Every value can be read, dumped and restored, and a tensor has as much data as its shape says."""
    for key in client.keys("*"):
        kind = client.type(key)
        if kind == b"AI_TENSOR":
            _, dtype, _, shape, _, blob = client.execute_command("AI.TENSORGET", key, "META", "BLOB")
            count = 1
            for dim in shape:
                count *= dim
            wanted = blob.count(b"\0") if dtype == b"STRING" else len(blob) // ITEM_SIZE[dtype.decode()]
            assert wanted == count, (key, dtype, shape, blob)
        client.restore(key, 0, client.dump(key), replace=True)
    client.execute_command("AI._MODELSCAN")
    client.execute_command("AI._SCRIPTSCAN")


def offsets(log: Log, rng: random.Random, count: int) -> list[int]:
    """All of the last 4 KB when there are as many, else a sample."""
    everything = range(max(0, len(log.content) - LAST), len(log.content))
    return list(everything) if count >= LAST else rng.sample(everything, count)


def truncate(seed: int, count: int) -> dict[str, int]:
    """The log ends after each of `count` offsets."""
    with tempfile.TemporaryDirectory(prefix="redisai-test-") as name:
        log = write_log(Path(name))

        def end_at(cut: int) -> bool:
            def check(server: Server, client: redis.Redis) -> None:
                assert client.execute_command("DEBUG DIGEST") == log.digest_at(cut), f"seed {seed}: another dataset after a cut at {cut}"

            return started_on(log, log.content[:cut], check)

        with ThreadPoolExecutor(3) as pool:
            done = list(pool.map(end_at, offsets(log, random.Random(seed), count)))
        assert all(done), f"seed {seed}: a cut kept a server from starting"
    return {"cuts": len(done)}


def corrupt(seed: int, count: int) -> dict[str, int]:
    """One byte of the log is another, at each of `count` offsets."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="redisai-test-") as name:
        log = write_log(Path(name))
        flips = [(at, rng.randrange(1, 256)) for at in offsets(log, rng, count)]

        def flip(change: tuple[int, int]) -> bool:
            at, bits = change

            def check(server: Server, client: redis.Redis) -> None:
                check_values(client)
                assert server.alive(), f"seed {seed}: a change by {bits} at {at} ended the server: {server.log()[-3000:]}"

            return started_on(log, log.content[:at] + bytes([log.content[at] ^ bits]) + log.content[at + 1 :], check)

        with ThreadPoolExecutor(3) as pool:
            done = list(pool.map(flip, flips))
    return {"changes": len(done), "started": sum(done)}
