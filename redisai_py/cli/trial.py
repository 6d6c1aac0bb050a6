"""`redisai doctor --start`: the one check that shows everything. A server of its own loads the module and every backend, and is ended.

It listens on a socket in a directory of its own, keeps no data, and is gone at the end, whatever happened.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..install import BACKEND_PACKAGES, BackendPackage, Server, module_path
from .address import Address, RefusedError
from .finding import Finding
from .resp import Connection, Failure
from .serve import arguments

START_SECONDS, IMPORT_SECONDS = 60.0, 300.0
#: backend -> the name that AI.CONFIG LOADBACKEND wants
LOADS = {
    "TORCH": "redisai_torch/redisai_torch.so",
    "TF": "redisai_tensorflow/redisai_tensorflow.so",
    "ONNX": "redisai_onnxruntime/redisai_onnxruntime.so",
    "TFLITE": "redisai_tflite/redisai_tflite.so",
}


class DiedError(Exception):
    """The server did not come up; the text is why."""


def trial(server: Server, backends: Sequence[BackendPackage] = BACKEND_PACKAGES) -> Iterator[Finding]:
    """What the module and each installed backend say in a real server."""
    with tempfile.TemporaryDirectory(prefix="redisai-") as name:
        directory = Path(name)
        log = directory / "log"
        rest = ["--unixsocket", str(directory / "s"), "--dir", name, "--save", "", "--appendonly", "no", "--daemonize", "no"]
        line = arguments(server, str(module_path()), 0, "", [*rest, "--logfile", str(log)])
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process:
            try:
                start = time.monotonic()
                connection = connected(process, Address(unix=str(directory / "s")), log)
                took = time.monotonic() - start
                python = info(connection).get("ai_python_version", "?")
                yield Finding("start", "ok", f"{server} loads the module and answers after {took * 1000:.0f} ms; its Python is {python}")
                for package in backends:
                    if package.installed():
                        yield loaded(connection, package, log)
                connection.close()
            except DiedError as error:
                yield Finding("start", "problem", str(error))
            except OSError:  # it answered and was gone
                yield Finding("start", "problem", f"the server ended with status {process.wait()}: {complaint(log)}")
            finally:
                process.kill()  # it has nothing to save


def connected(process: subprocess.Popen[bytes], address: Address, log: Path) -> Connection:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DiedError(f"the server ended with status {process.returncode}: {complaint(log)}")
        try:
            return address.connect(timeout=IMPORT_SECONDS)
        except (OSError, RefusedError):
            time.sleep(0.02)
    raise DiedError(f"no answer within {START_SECONDS:.0f} s: {complaint(log)}")


def loaded(connection: Connection, package: BackendPackage, log: Path) -> Finding:
    start = time.monotonic()
    try:
        reply = connection.call("AI.CONFIG", "LOADBACKEND", package.name, LOADS[package.name])
    except OSError:
        raise DiedError(f"the server did not live through importing {package.name}: {complaint(log)}") from None
    if isinstance(reply, Failure):
        return Finding(package.name, "problem", f"a server cannot load it: {complaint(log)}", package.command)
    return Finding(package.name, "ok", f"the server imports it in {time.monotonic() - start:.1f} s")


def info(connection: Connection) -> dict[str, str]:
    text = connection.call("INFO", "ai")
    return dict(line.split(":", 1) for line in bytes(text).decode().splitlines() if ":" in line)


def complaint(log: Path) -> str:
    """The module's last warning, else the server's about the module, else the last line of the log."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    warnings = [line.partition(" # ")[2] for line in lines if " # " in line]
    for telling in ("<ai>", "failed to load"):
        if found := [warning for warning in warnings if telling in warning]:
            return found[-1]
    return (lines or ["its log is empty"])[-1]
