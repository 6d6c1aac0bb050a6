"""Puts load on a server and reads what it cost: requests, latencies, and CPU by thread from the kernel's own accounting.

`redis-benchmark` drives where it is installed; it is a compiled program and leaves the most CPU to the server. Where it is not, a client of
our own sends the same bytes over the same number of connections. Rates of the two are not comparable, so every result names its driver.
"""

from __future__ import annotations

import itertools
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

Command = Sequence[str | bytes]


@dataclass(frozen=True)
class Measured:
    """One round of one row. CPU in microseconds per request, latencies in milliseconds."""

    rate: float
    p50_ms: float
    p99_ms: float
    main_us: float
    others_us: float
    driver: str

    @property
    def cpu_us(self) -> float:
        return self.main_us + self.others_us


def cpu_seconds(pid: int) -> tuple[float, float]:
    """CPU time so far of a process's main thread and of its other threads, in seconds (schedstat: nanosecond resolution)."""
    main = others = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            seconds = int((task / "schedstat").read_text().split()[0]) / 1e9
        except FileNotFoundError:  # a thread that just ended
            continue
        if int(task.name) == pid:
            main += seconds
        else:
            others += seconds
    return main, others


@dataclass(frozen=True)
class Work:
    """What is sent: the same command again and again, or `wire` in turn: requests as bytes whose replies all have the same length."""

    command: Command = ()
    wire: Sequence[bytes] = ()

    @property
    def fits_redis_benchmark(self) -> bool:
        """Its arguments are C strings: a command with binary words is sent by our own client."""
        return not self.wire and not any(isinstance(word, bytes) for word in self.command)


def measure(pids: Sequence[int], port: int, work: Work, clients: int, requests: int, pipeline: int = 1) -> Measured:
    """Sends `requests` requests over `clients` connections, `pipeline` at a time on each. The CPU of all processes counts; "main" is the
    main thread of the first."""
    drive = _redis_benchmark if shutil.which("redis-benchmark") and work.fits_redis_benchmark else _own_client
    before = [cpu_seconds(pid) for pid in pids]
    rate, p50, p99 = drive(port, work, clients, requests, pipeline)
    spent = [(main - m, others - o) for (main, others), (m, o) in zip([cpu_seconds(pid) for pid in pids], before, strict=True)]
    per_request = 1e6 / requests
    main = spent[0][0] * per_request
    total = sum(main + others for main, others in spent) * per_request
    return Measured(rate, p50, p99, main, total - main, drive.__name__.strip("_"))


# ---- redis-benchmark ---------------------------------------------------------------------------------------------------------


def _redis_benchmark(port: int, work: Work, clients: int, requests: int, pipeline: int) -> tuple[float, float, float]:
    line = ["redis-benchmark", "-p", str(port), "-c", str(clients), "-n", str(requests), "-P", str(pipeline), "--csv"]
    done = subprocess.run([*line, *map(str, work.command)], capture_output=True, check=True)
    rate, _, _, p50, _, p99, _ = (
        float(field.strip('"')) for field in done.stdout.decode(errors="replace").splitlines()[-1].rsplit(",", 7)[1:]
    )
    return rate, p50, p99


# ---- our own client ----------------------------------------------------------------------------------------------------------


def encode(command: Command) -> bytes:
    """A command as it goes over the wire."""
    words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
    return b"".join([b"*%d\r\n" % len(words), *(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)])


def reply_length(port: int, request: bytes) -> int:
    """Bytes of the reply to a request. All replies have the same length, so counting bytes counts replies."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        connection.settimeout(60)
        got = connection.recv(1 << 20)
        connection.settimeout(0.3)
        while True:
            try:
                got += connection.recv(1 << 20)
            except TimeoutError:
                return len(got)


@dataclass
class _Connection:
    socket: socket.socket
    sent_at: float = 0.0
    outgoing: memoryview = field(default_factory=lambda: memoryview(b""))
    expected: int = 0  # bytes of replies still to come


def _own_client(port: int, work: Work, clients: int, requests: int, pipeline: int) -> tuple[float, float, float]:
    wire = list(work.wire) or [encode(work.command)]
    size = reply_length(port, wire[0])
    next_request = itertools.cycle(
        [b"".join(wire[i : i + pipeline]) for i in range(0, len(wire), pipeline)] if len(wire) > 1 else [wire[0] * pipeline]
    )
    rounds = max(1, requests // pipeline)
    latencies: list[float] = []
    with selectors.DefaultSelector() as selector:
        started = time.perf_counter()
        begun = 0
        for _ in range(min(clients, rounds)):
            connection = _Connection(socket.create_connection(("127.0.0.1", port)))
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.socket.setblocking(False)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            _send(selector, connection, next(next_request), size * pipeline)
            begun += 1
        while len(latencies) < rounds:
            for key, events in selector.select():
                connection = key.data
                if events & selectors.EVENT_WRITE:
                    _write(selector, connection)
                if not events & selectors.EVENT_READ:
                    continue
                connection.expected -= len(connection.socket.recv(1 << 20))
                if connection.expected:
                    continue
                latencies.append(time.perf_counter() - connection.sent_at)
                if begun < rounds:
                    begun += 1
                    _send(selector, connection, next(next_request), size * pipeline)
        elapsed = time.perf_counter() - started
        for key in list(selector.get_map().values()):
            key.data.socket.close()
    latencies.sort()
    return rounds * pipeline / elapsed, latencies[len(latencies) // 2] * 1e3, latencies[int(len(latencies) * 0.99)] * 1e3


def _send(selector: selectors.BaseSelector, connection: _Connection, data: bytes, expected: int) -> None:
    connection.sent_at = time.perf_counter()
    connection.outgoing = memoryview(data)
    connection.expected = expected
    _write(selector, connection)


def _write(selector: selectors.BaseSelector, connection: _Connection) -> None:
    try:
        while connection.outgoing:
            connection.outgoing = connection.outgoing[connection.socket.send(connection.outgoing) :]
    except BlockingIOError:
        selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
        return
    selector.modify(connection.socket, selectors.EVENT_READ, connection)
