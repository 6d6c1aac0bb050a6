"""Says that a port is taken before `make run` installs for minutes, not after; and once more before it starts a server, because another
server on that port would answer in its place.

python3 tools/port.py 6379
"""

from __future__ import annotations

import socket
import sys


def check(port: int) -> None:
    """Ends the program with a word when nobody can listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            sys.exit(f"Port {port} cannot be used ({error.strerror}); name another, as in: make run PORT={port + 1000}")


if __name__ == "__main__":
    check(int(sys.argv[1]))
