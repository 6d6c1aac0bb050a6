"""A master made of a socket: it sends a replica any dataset and then any commands, also such as no server or client may send."""

from __future__ import annotations

import contextlib
import socket
import threading

from wire import encode

EMPTY_RDB = b"REDIS0009\xff" + bytes(8)  # a checksum of zero is not checked


class FakeMaster:
    """Listens on `port`; `accept()` returns when a replica has been sent the dataset, an empty one unless it is given."""

    def __init__(self, dataset: bytes = EMPTY_RDB) -> None:
        self._dataset = dataset
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(30)
        self._stop = threading.Event()
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> FakeMaster:
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._listener.close()
        with contextlib.suppress(AttributeError):
            self._link.close()

    def accept(self) -> None:
        self._link, _ = self._listener.accept()
        self._link.settimeout(30)
        reader = self._link.makefile("rb")
        while True:
            count = int(reader.readline()[1:])
            words = [reader.read(int(reader.readline()[1:]) + 2)[:-2] for _ in range(count)]
            if words[0].upper() == b"PSYNC":
                break
            self._link.sendall(b"+PONG\r\n" if words[0].upper() == b"PING" else b"+OK\r\n")
        self._link.sendall(b"+FULLRESYNC " + b"0" * 40 + b" 0\r\n$%d\r\n" % len(self._dataset) + self._dataset)
        self._link.settimeout(None)
        threading.Thread(target=self._swallow, daemon=True).start()
        self.send("SELECT", 0)

    def _swallow(self) -> None:
        """Reads the replica's acknowledgements, which nobody needs."""
        with contextlib.suppress(OSError):
            while self._link.recv(4096):
                pass

    def send(self, *arguments: bytes | str | int) -> None:
        self._link.sendall(b"*%d\r\n" % len(arguments) + b"".join(map(encode, arguments)))
