"""Puts load on a server and reads what it cost: requests, latencies, and CPU by thread from the kernel's own accounting.

`redis-benchmark` drives where it is installed; it is a compiled program and leaves the most CPU to the server. Where it is not, a client of
our own sends the same bytes over the same number of connections. Rates of the two are not comparable, so every result names its driver.
"""

from __future__ import annotations

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


def measure(pid: int, port: int, command: Command, clients: int, requests: int, pipeline: int = 1) -> Measured:
    """Sends `requests` copies of a command over `clients` connections, `pipeline` at a time on each."""
    drive = _redis_benchmark if shutil.which("redis-benchmark") and _fits_redis_benchmark(command) else _own_client
    main, others = cpu_seconds(pid)
    rate, p50, p99 = drive(port, command, clients, requests, pipeline)
    main_after, others_after = cpu_seconds(pid)
    per_request = 1e6 / requests
    return Measured(rate, p50, p99, (main_after - main) * per_request, (others_after - others) * per_request, drive.__name__.strip("_"))


# ---- redis-benchmark ---------------------------------------------------------------------------------------------------------


def _fits_redis_benchmark(command: Command) -> bool:
    """Its arguments are C strings: a command with binary words is sent by our own client."""
    return not any(isinstance(word, bytes) for word in command)


def _redis_benchmark(port: int, command: Command, clients: int, requests: int, pipeline: int) -> tuple[float, float, float]:
    line = ["redis-benchmark", "-p", str(port), "-c", str(clients), "-n", str(requests), "-P", str(pipeline), "--csv"]
    done = subprocess.run([*line, *map(str, command)], capture_output=True, check=True)
    rate, _, _, p50, _, p99, _ = (
        float(field.strip('"')) for field in done.stdout.decode(errors="replace").splitlines()[-1].rsplit(",", 7)[1:]
    )
    return rate, p50, p99


# ---- our own client ----------------------------------------------------------------------------------------------------------


def encode(command: Command) -> bytes:
    """A command as it goes over the wire."""
    words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
    return b"".join([b"*%d\r\n" % len(words), *(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)])


def reply_length(port: int, command: Command) -> int:
    """Bytes of the reply to a command. All replies to the same request have the same length, so counting bytes counts replies."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(encode(command))
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


def _own_client(port: int, command: Command, clients: int, requests: int, pipeline: int) -> tuple[float, float, float]:
    size, once = reply_length(port, command), encode(command)
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
            _send(selector, connection, once * pipeline, size * pipeline)
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
                    _send(selector, connection, once * pipeline, size * pipeline)
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
