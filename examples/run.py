"""What `make run` runs: starts a server with the module, gives the tour, and leaves the server in the foreground until Ctrl-C.

    python examples/run.py --port 6379 [--once]

The server keeps nothing on disk; its log goes to a file that is shown when something fails.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import redis
from tour import tour

from redisai_py.cli.serve import arguments
from redisai_py.install import Server, ServerNotFoundError, find_server, module_path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from port import check

START_SECONDS = 120.0


@contextmanager
def running(server: Server, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers, and that is gone at the end. Exits with the last lines of its log when it does not start."""
    with tempfile.TemporaryDirectory(prefix="redisai-") as directory:
        log = Path(directory) / "server.log"
        settings = ["--save", "", "--appendonly", "no", "--dir", directory, "--daemonize", "no"]
        with log.open("wb") as file:
            process = subprocess.Popen(arguments(server, str(module_path()), port, "", settings), stdout=file, stderr=file)
        try:
            wait_until_it_answers(process, port, log)
            yield process
        except redis.RedisError as error:
            fail(f"  (error) {error}", "", "The end of the server's log:", *last_lines(log))
        finally:
            process.terminate()
            process.wait()


def wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    client = redis.Redis(port=port)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            fail(
                f"The server ended with status {process.returncode}. The end of its log:",
                *last_lines(log),
            )
        try:
            client.ping()
            return
        except redis.RedisError:
            time.sleep(0.02)
    fail(f"The server did not answer within {START_SECONDS:.0f} s. The end of its log:", *last_lines(log))


def last_lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-20:]


def fail(*lines: str) -> NoReturn:
    sys.exit("\n".join(lines))


def stay(process: subprocess.Popen[bytes], port: int) -> None:
    print(f"\nThe server goes on listening on port {port}. Ctrl-C stops it.", flush=True)
    process.wait()


def stop(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Start a server and show what it does.")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--once", action="store_true", help="stop after the tour")
    options = parser.parse_args(argv)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, stop)
    check(options.port)
    try:
        server = find_server()
        print(f"{server} ({server.path}) with {module_path()}", flush=True)
        with running(server, options.port) as process:
            tour(redis.Redis(port=options.port), options.port)
            if not options.once:
                stay(process, options.port)
    except (ServerNotFoundError, FileNotFoundError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
