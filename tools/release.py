"""`make dist`: builds what a release publishes into dist/, and tries it as its first user will.

1. A source distribution, and from it a wheel: what is missing from the one cannot be in the other.
2. twine reads both, as the package index will.
3. The wheel goes into a fresh environment outside the checkout, with one backend, and `redisai doctor --start` loads it into a server.
4. A server of that environment runs a model.

Everything but dist/ is in a directory that is removed. Ends with the status of the step that failed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
MODEL = ROOT / "examples" / "models" / "digits.onnx"
TOOLS = ("build", "twine")
EXTRAS = "onnx,cli,server"
PATIENCE = 60.0


def run(*line: str | Path, cwd: Path = ROOT) -> None:
    """Shows the line and runs it. Ends the program when it fails."""
    print(f"$ {' '.join(map(str, line))}", flush=True)
    status = subprocess.run(line, cwd=cwd, check=False).returncode
    if status:
        sys.exit(status)


def environment(directory: Path, *requirements: str) -> Path:
    """The `bin` of a new environment with `requirements` in it."""
    venv.create(directory, with_pip=True, symlinks=True)
    programs = directory / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
    return programs


def built(tools: Path) -> Path:
    """The wheel."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(tools / "python", "-m", "build", "--outdir", DIST, ROOT)
    run(tools / "python", "-m", "twine", "check", "--strict", *sorted(DIST.iterdir()))
    return next(DIST.glob("*.whl"))


def serve_once(programs: Path, directory: Path) -> None:
    socket = directory / "socket"
    server = ["--unixsocket", str(socket), "--dir", str(directory), "--save", "", "--loglevel", "warning"]
    with subprocess.Popen([programs / "redisai", "serve", "--port", "0", "--", *server], cwd=directory) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not socket.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            run(programs / "redisai", "doctor", "--health", "-s", socket, cwd=directory)
            run(programs / "redisai", "store", "-s", socket, MODEL, cwd=directory)
            run(programs / "redisai", "run", "-s", socket, "digits", "--input", "FLOAT:1x64", cwd=directory)
        finally:
            process.terminate()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="redisai-dist-") as name:
        directory = Path(name)
        wheel = built(environment(directory / "tools", *TOOLS))
        programs = environment(directory / "env", f"{wheel}[{EXTRAS}]")
        run(programs / "redisai", "doctor", "--start", cwd=directory)
        serve_once(programs, directory)
    print(f"{wheel.name} works; both files are in {DIST.relative_to(ROOT)}/")


if __name__ == "__main__":
    main()
