"""RESTORE with broken values: what a client, a slot migration or a damaged file can put before the decoders of persist.c.

A payload is a list of fields (rdb_payload.py writes them). Mutations know that: they forge numbers, lengths and counts, drop, repeat and
swap fields, change type and encoding; the rest flip bits and cut bytes. The checksum is made right again, or RESTORE would look at nothing.

The server runs under AddressSanitizer where the machine can (a C compiler that brings libasan, and Debian's redis-server, which takes its
memory from malloc), else as it is. Payloads travel in batches and the next batch is made while the server works on the last: the sanitized
server is the slow side. After each batch every key that was accepted is read by all that reads values, and must survive a dump.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rdb_payload as rdb
import redis
from servers import ROOT, Server, running

from .findings import Counts, Finding, corpus

BATCH = 1000
KEYS = 50
LOG_BYTES = 1 << 24  # the server writes a line for each payload that it refuses

# ---- payloads ----------------------------------------------------------------------------------------------------------------------

Fields = list[bytes]
Seed = tuple[str, int, Fields]  #: type, encoding, fields

STRING = 5  # the opcode
_NUMBERS = [0, 1, 2, 7, 8, 32, 63, 64, 65, 255, 16383, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**61, 2**62, 2**63 - 1,
            2**63, 2**64 - 1]  # fmt: skip
FORGED = [rdb.length(n) for n in _NUMBERS]
#: what a string can begin with: a length, or that it is a small number or compressed
STRING_HEADS = [
    *FORGED,
    b"\xc0\x07",
    b"\xc1\x07\x01",
    b"\xc2\x07\x01\x00\x00",
    b"\xc3\x04\x40\x40\x03abc",
    b"\xc3\x03\x81\0\0\0\x7f\xff\xff\xff\xff\x01ab",
]


def _size_of_length(first: int) -> int:
    """Bytes of a length that begins with this one: 6 or 14 bits of its own, or 32 or 64 behind it."""
    return (1, 2)[first >> 6] if first < 0x80 else 5 if first == 0x80 else 9


def split(payload: bytes) -> Fields:
    """The fields of a payload, each with its opcode."""
    body, at, fields = rdb.fields_of(payload), 0, []
    while at < len(body):
        size = _size_of_length(body[at + 1])
        end = at + 1 + size
        if body[at] == STRING:
            end += int.from_bytes(body[at + 1 : end], "big") & (1 << 8 * size - (2 if size < 3 else 8)) - 1
        fields.append(body[at:end])
        at = end
    return fields


def seeds() -> list[Seed]:
    """One value of every kind that a decoder treats differently, in every encoding."""
    source = "def bar(a, b):\n    return a + b\n"
    made: list[tuple[str, int, bytes]] = []
    for name, (_, bits, _) in rdb.DTYPES.items():
        for version in range(5):
            if name == "STRING" and version < 4:
                continue
            data = b"ab\0c\0\0d\0\0\0" if name == "STRING" else b"\0\1\0\0\1\1" * (bits // 8)
            made.append(("AI_TENSOR", version, rdb.tensor(name, [3, 2], data, version)))
    for version in range(5):
        made.append(("AI_TENSOR", version, rdb.tensor("FLOAT", [], b"abcd", version)))
        made.append(("AI_TENSOR", version, rdb.tensor("INT8", [1] * 64, b"a", version)))
        made.append(("AI_TENSOR", version, rdb.tensor("FLOAT", [0, 3], b"", version)))
        for backend in rdb.BACKENDS:
            blob = f'{{"op": "echo", "inputs": {version}, "outputs": 1}}'.encode()
            cut = [blob[:7], blob[7:20], b"", blob[20:]]
            made.append(
                (
                    "AI__MODEL",
                    version,
                    rdb.model(backend, blob, version, tag="v1", batching=(8, 2, 10), inputs=("a", "b"), outputs=("c",), cut=cut),
                )
            )
        made.append(("AI__MODEL", version, rdb.model("TF", b"", version, device="CPU:1")))
        made.append(("AI_SCRIPT", version, rdb.script(source, version, tag="t", entry_points=("bar", "baz"))))
        made.append(("AI_SCRIPT", version, rdb.script("", version)))
    return [(name, version, split(payload)) for name, version, payload in made]


def _forge(rng: random.Random, field: bytes) -> bytes:
    """The same field with another number, or another length before the same bytes."""
    if field[0] != STRING:
        return field[:1] + rng.choice(FORGED)
    return field[:1] + rng.choice(STRING_HEADS) + field[1 + _size_of_length(field[1]) :]


def _change_fields(rng: random.Random, fields: Fields, other: Fields) -> None:
    at = rng.randrange(len(fields))
    match rng.randrange(8):
        case 0 | 1 | 2:
            fields[at] = _forge(rng, fields[at])
        case 3:
            del fields[at]
        case 4:
            fields.insert(at, fields[rng.randrange(len(fields))])
        case 5:
            fields[at] = rng.choice(other) if other else b""
        case 6:
            fields[at:] = other[rng.randrange(len(other) + 1) :]
        case _:
            fields[at] = bytes((rng.randrange(9),)) + fields[at][1:]


def _change_bytes(rng: random.Random, body: bytearray) -> None:
    at = rng.randrange(len(body))
    match rng.randrange(5):
        case 0 | 1:
            body[at] ^= 1 << rng.randrange(8)
        case 2:
            body[at] = rng.randrange(256)
        case 3:
            del body[at : at + rng.randrange(1, 9)]
        case _:
            body[at:at] = rng.choice(FORGED)


def mutated(rng: random.Random, known: list[Seed]) -> bytes:
    """A payload with a right checksum and up to five things wrong."""
    name, version, fields = rng.choice(known)
    fields = fields.copy()
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        if fields:
            _change_fields(rng, fields, rng.choice(known)[2])
    if rng.random() < 0.1:
        version = rng.randrange(6)
    if rng.random() < 0.05:
        name = rng.choice(list(rdb.IDS))
    body = bytearray(b"".join(fields))
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        if body:
            _change_bytes(rng, body)
    return rdb.payload(name, version, bytes(body))


# ---- the server --------------------------------------------------------------------------------------------------------------------


def sanitized() -> bool:
    """Whether a server can run under AddressSanitizer here."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    found = (
        compiler and subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False).stdout.strip()
    )
    server = shutil.which("redis-server")
    if sys.platform != "linux" or not found or not Path(found).is_absolute() or not server:
        return False
    return (
        "libjemalloc" in subprocess.run(["ldd", server], capture_output=True, text=True, check=False).stdout
    )  # a library: malloc can be replaced


#: Freed memory is kept back less long and reports are not resolved to names: RESTORE is then 30 times as fast as with the defaults.
FAST = "detect_odr_violation=0:symbolize=0:quarantine_size_mb=16:max_allocation_size_mb=64"


@contextlib.contextmanager
def fuzzed_server() -> Iterator[Server]:
    """A server of the echo backend, sanitized where that can be, unless the environment says which server and module to use."""
    options: dict[str, Any] = {"env": {"ASAN_OPTIONS": FAST}}
    if sanitized() and not os.environ.get("REDISAI_MODULE"):
        subprocess.run(["make", "-o", "prepare", "build", "BUILD_TYPE=ASAN"], cwd=ROOT, check=True, capture_output=True)
        options |= {"binary": ROOT / "tools/sanitized-server", "module": ROOT / "build/asan/env/redisai.so"}
    with running(**options) as server:
        yield server


def report(server: Server) -> str:
    """What the sanitizer found in this server. That an allocation failed is no finding: lengths are forged."""
    path = ROOT / "build" / "asan" / f"report.{server.pid}"
    text = path.read_text(errors="replace") if path.exists() else ""
    return text if re.search("ERROR: AddressSanitizer|runtime error:", text) else ""


# ---- the loop ----------------------------------------------------------------------------------------------------------------------


def commands(payloads: list[bytes]) -> bytes:
    line = b"*5\r\n$7\r\nRESTORE\r\n$3\r\nk%02d\r\n$1\r\n0\r\n$%d\r\n%b\r\n$7\r\nREPLACE\r\n"
    return b"".join([line % (i % KEYS, len(payload), payload) for i, payload in enumerate(payloads)])


def replies(connection: socket.socket, n: int) -> list[bytes]:
    """The first lines of `n` replies that have one line each. Raises ConnectionError when the server leaves."""
    data = b""
    while data.count(b"\n") < n:
        more = connection.recv(1 << 20)
        if not more:
            raise ConnectionError("the server closed the connection")
        data += more
    lines = data.split(b"\r\n")
    assert len(lines) == n + 1 and not lines[-1], "not one reply per command"
    return lines[:-1]


def read_all(client: redis.Redis) -> None:
    """Every command that reads a value reads every key; what is there can be dumped and restored without a change."""
    pipe = client.pipeline(transaction=False)
    keys = sorted(client.keys())
    before = client.execute_command("DEBUG DIGEST")
    for key in keys:
        pipe.dump(key)
        pipe.memory_usage(key)
        for line in ("AI.TENSORGET {} META VALUES", "AI.TENSORGET {} BLOB", "AI.MODELGET {}", "AI.SCRIPTGET {}"):
            pipe.execute_command(*[key if word == "{}" else word for word in line.split()])
    answers = pipe.execute(raise_on_error=False)
    for key, dump, size in zip(keys, answers[::6], answers[1::6], strict=True):
        assert size > 0
        client.restore(key, 0, dump, replace=True)
    client.execute_command("AI._MODELSCAN")
    client.execute_command("AI._SCRIPTSCAN")
    assert client.execute_command("DEBUG DIGEST") == before, "a value changed on its way through DUMP and RESTORE"


#: how harm shows
HARM = (AssertionError, ConnectionError, redis.ConnectionError, TimeoutError, redis.TimeoutError)


def check(server: Server, client: redis.Redis) -> None:
    read_all(client)
    assert not report(server), report(server)[:3000]


def guilty(payloads: list[bytes]) -> list[bytes]:
    """The one that does harm alone, on a new server; all of them where none does."""
    with fuzzed_server() as server, server.client() as client:
        for payload in payloads:
            try:
                with contextlib.suppress(redis.ResponseError):
                    client.restore("k", 0, payload, replace=True)
                check(server, client)
            except HARM:
                return [payload]
    return payloads


class Fuzzer:
    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.rng = random.Random(seed)
        self.known = seeds()
        self.client = server.client()
        self.connection = socket.create_connection(("127.0.0.1", server.port), timeout=120)
        self.accepted = 0

    def batch(self, n: int) -> list[bytes]:
        return [mutated(self.rng, self.known) for _ in range(n)]

    def count(self, lines: list[bytes]) -> None:
        strange = [line for line in lines if line != b"+OK" and not line.startswith(b"-ERR Bad data format")]
        assert not strange, f"RESTORE replied {strange[0]!r}"
        self.accepted += lines.count(b"+OK")

    def run(self, count: int) -> None:
        """Sends `count` payloads. Raises Finding when the server or what it stored does not survive."""
        left = count - BATCH
        now = self.batch(min(count, BATCH))
        while now:
            self.connection.sendall(commands(now))
            following = self.batch(min(left, BATCH)) if left > 0 else []
            left -= BATCH
            try:
                self.count(replies(self.connection, len(now)))
                check(self.server, self.client)
            except HARM as error:
                raise Finding(
                    "restore", commands(guilty(now)), f"{error}\n{report(self.server)[:3000]}\n{self.server.log()[-3000:]}"
                ) from error
            if self.server.log_path.stat().st_size > LOG_BYTES:
                os.truncate(self.server.log_path, 0)
            now = following


def again(server: Server) -> int:
    """Sends everything that once did harm; how many files that were."""
    paths = corpus("restore")
    with server.client() as client, socket.create_connection(("127.0.0.1", server.port), timeout=120) as connection:
        for path in paths:
            data = path.read_bytes()
            connection.sendall(data)
            replies(connection, len(re.findall(rb"\*5\r\n\$7\r\nRESTORE\r\n", data)))
            check(server, client)
    return len(paths)


def restore(seed: int, count: int) -> Counts:
    """payloads of RESTORE with forged fields, to a real server"""
    with fuzzed_server() as server:
        again(server)
        fuzzer = Fuzzer(server, seed)
        fuzzer.run(count)
        share = fuzzer.accepted / count
        assert 0.05 < share < 0.95, f"{share:.0%} were accepted: the mutations are too rough or too gentle to mean anything"
        return {"accepted": fuzzer.accepted, "sanitized": int(server.binary.name == "sanitized-server")}
