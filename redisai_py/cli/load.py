"""Load for `redisai bench`: N connections in a closed loop, driven by one thread.

One thread with a selector needs a few tens of microseconds per request, a thread per connection several times that, which would be most of
what is measured. Each connection sends its request again as soon as the reply is whole; a reply is one line.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .address import Address
from .resp import encode

REPLY_SECONDS = 60.0


@dataclass
class Outcome:
    seconds: float = 0.0
    latencies_us: list[float] = field(default_factory=list)  # sorted
    errors: int = 0
    error: str = ""  # the first

    @property
    def rate(self) -> float:
        return len(self.latencies_us) / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        return self.latencies_us[min(int(share * len(self.latencies_us)), len(self.latencies_us) - 1)]

    @property
    def mean_us(self) -> float:
        return sum(self.latencies_us) / len(self.latencies_us)


class Caller:
    """One connection with at most one request under way."""

    def __init__(self, where: Address, request: bytes):
        self._connection = where.connect(timeout=REPLY_SECONDS)
        self.socket: socket.socket = self._connection._socket
        self.request = request
        self.received = b""
        self.sent_at = 0.0

    def send(self) -> None:
        self.sent_at = time.perf_counter()
        self.socket.sendall(self.request)

    def receive(self) -> bytes | None:
        """The reply's line when it is whole. Raises ConnectionResetError."""
        data = self.socket.recv(4096)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self.received += data
        if not self.received.endswith(b"\r\n"):
            return None
        line, self.received = self.received[:-2], b""
        return line

    def close(self) -> None:
        self._connection.close()


def drive(where: Address, request: Sequence[Any], clients: int, seconds: float) -> Outcome:
    """Sends `request` for `seconds` over `clients` connections. Raises OSError, address.RefusedError."""
    line = encode(request)
    callers: list[Caller] = []
    try:
        for _ in range(clients):
            callers.append(Caller(where, line))
        return loop(callers, seconds)
    finally:
        for caller in callers:
            caller.close()


def loop(callers: Sequence[Caller], seconds: float) -> Outcome:
    outcome = Outcome()
    with selectors.DefaultSelector() as selector:
        for caller in callers:
            selector.register(caller.socket, selectors.EVENT_READ, caller)
            caller.send()
        start = time.perf_counter()
        end, under_way = start + seconds, len(callers)
        while under_way:
            ready = selector.select(REPLY_SECONDS)
            if not ready:
                raise TimeoutError(f"no reply within {REPLY_SECONDS:.0f} s")
            for key, _ in ready:
                reply = key.data.receive()
                if reply is None:
                    continue
                now = time.perf_counter()
                outcome.latencies_us.append((now - key.data.sent_at) * 1e6)
                if reply.startswith(b"-"):
                    outcome.errors += 1
                    outcome.error = outcome.error or reply[1:].decode(errors="replace")
                if now < end:
                    key.data.send()
                else:
                    under_way -= 1
        outcome.seconds = time.perf_counter() - start
    outcome.latencies_us.sort()
    return outcome
