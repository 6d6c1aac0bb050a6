"""SANDBOX yes: what runs a model reads and writes no file, starts no program and connects nowhere; the server does all it ever did."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import echo_model
from servers import MODELS, Server, running, wait_until
from wire import OK, Error, Wire

from redisai_py import sandbox

try:
    sandbox.abi()
except sandbox.Unsupported as error:
    pytest.skip(f"this kernel: {error}", allow_module_level=True)

MODES = {"none": ("SANDBOX", "yes"), "process": ("ISOLATION", "process", "SANDBOX", "yes")}
DENIED = "ERR PermissionError: [Errno 13] Permission denied"


@pytest.fixture(scope="module", params=MODES)
def boxed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("server")
    (directory / "redis.conf").write_text("maxclients 200\n")
    args = MODES[request.param]
    with running(module_args=args, directory=directory, conf=directory / "redis.conf") as server:
        with Wire(server.port) as wire:
            wire("AI.TENSORSET", "x", "FLOAT", 2, "VALUES", 1, 2)
        yield server


@pytest.fixture
def wire(boxed: Server) -> Iterator[Wire]:
    with Wire(boxed.port) as wire:
        yield wire


def attempt(wire: Wire, op: str, **model: Any) -> Any:
    assert wire("AI.MODELSTORE", "tries", "ONNX", "CPU", "BLOB", echo_model(op, **model)) == OK
    return wire("AI.MODELEXECUTE", "tries", "INPUTS", 1, "x", "OUTPUTS", 1, "y")


@pytest.mark.parametrize("mode", ["rb", "ab", "r+b"])
def test_files_of_the_server_are_out_of_reach(boxed: Server, wire: Wire, mode: str) -> None:
    canary = boxed.directory / "canary"
    canary.write_text("secret")
    assert attempt(wire, "open", path=str(canary), mode=mode) == Error(f"{DENIED}: '{canary}'")
    assert canary.read_text() == "secret"


@pytest.mark.parametrize("path", ["/etc/shadow", "/proc/self/environ", "/proc/1/cmdline", "redis.conf", "/var/log"])
def test_nor_is_what_tells_of_the_system(wire: Wire, path: str) -> None:
    assert attempt(wire, "open", path=path, mode="rb").text.startswith("ERR ")


@pytest.mark.parametrize("place", ["directory", "tmp", "package"])
def test_nothing_is_written_anywhere(boxed: Server, wire: Wire, tmp_path: Path, place: str) -> None:
    where = {"directory": boxed.directory, "tmp": tmp_path, "package": Path(sandbox.__file__).parent}[place] / "written"
    assert attempt(wire, "open", path=str(where), mode="wb") == Error(f"{DENIED}: '{where}'")
    assert not where.exists()


def test_no_connection_is_made(boxed: Server, wire: Wire) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert attempt(wire, "connect", port=listening.getsockname()[1]) == Error(DENIED)
    assert attempt(wire, "connect", port=boxed.port) == Error(DENIED)


def test_no_program_is_started(wire: Wire) -> None:
    assert attempt(wire, "spawn", path="/bin/sh").text.startswith(DENIED)


def test_models_are_opened_and_run(wire: Wire) -> None:
    assert attempt(wire, "add") == OK
    assert wire("AI.TENSORGET", "y", "VALUES") == [b"1", b"2"]


def test_the_server_saves_reloads_and_rewrites_its_configuration(boxed: Server, wire: Wire) -> None:
    assert attempt(wire, "echo") == OK
    assert wire("CONFIG", "SET", "maxclients", 201) == OK
    assert wire("CONFIG", "REWRITE") == OK
    assert "maxclients 201" in (boxed.directory / "redis.conf").read_text()
    (boxed.directory / "dump.rdb").unlink(missing_ok=True)
    wire("BGSAVE")
    wait_until(lambda: not boxed.client().info("persistence")["rdb_bgsave_in_progress"])
    assert (boxed.directory / "dump.rdb").exists()
    assert wire("DEBUG", "RELOAD") == OK
    wire("BGREWRITEAOF")
    wait_until(lambda: not boxed.client().info("persistence")["aof_rewrite_in_progress"])
    assert boxed.client().info("persistence")["aof_last_bgrewrite_status"] == "ok"
    assert wire("AI.MODELEXECUTE", "tries", "INPUTS", 1, "x", "OUTPUTS", 1, "y") == OK


def test_what_models_say_reaches_the_log_also_a_new_one(boxed: Server, wire: Wire) -> None:
    """The server opens its log for each line, and logs are rotated."""
    rotated = boxed.log_path.with_suffix(".1")
    boxed.log_path.rename(rotated)
    assert attempt(wire, "say", text="hear me") == OK
    wait_until(lambda: "hear me" in boxed.log())
    rotated.unlink()


def test_it_is_shown(boxed: Server, wire: Wire) -> None:
    assert wire("AI.CONFIG", "GET", "SANDBOX") == b"yes"
    assert boxed.client().info("ai_isolation")["ai_sandbox"].startswith("on:_Landlock_ABI_")


def test_auto_gives_way_to_file_operations_that_are_allowed(start_server: Callable[..., Server]) -> None:
    server = start_server(module_args=("SANDBOX", "auto", "ALLOW_FILE_OPS", "yes"))
    assert server.client().info("ai_isolation")["ai_sandbox"] == "off:_ALLOW_FILE_OPS"
    with Wire(server.port) as wire:
        wire("AI.TENSORSET", "x", "FLOAT", 1, "VALUES", 1)
        assert attempt(wire, "open", path=str(server.log_path), mode="rb") == OK


def test_a_kernel_that_cannot_is_an_error_only_of_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_call(number: int, *arguments: object) -> int:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(sandbox, "_call", no_such_call)
    found, state = sandbox.wanted("auto", False)
    assert found is None and state == "off:_Function_not_implemented_(the_kernel_offers_no_Landlock)"
    assert sandbox.wanted("no", False) == (None, "no")
    with pytest.raises(ImportError, match="SANDBOX yes: off:"):
        sandbox.wanted("yes", False)


# ---- libraries --------------------------------------------------------------------------------------------------------------------------

SCRIPT = """
def count(tensors: List[Tensor], keys: List[str], args: List[str]):
    redis.execute("INCR", keys[0])
    return tensors[0]
"""


BACKENDS = {"ONNX": ("onnx", ""), "TFLITE": ("tflite", ""), "TORCH": ("pt", ""), "TF": ("pb", "INPUTS 1 x OUTPUTS 1 y")}


def every_backend_runs(wire: Wire, names: str) -> None:
    wire("AI.TENSORSET", "x", "FLOAT", 1, 2, "VALUES", 1, 2)
    for backend in names.split():
        suffix, named = BACKENDS[backend]
        blob = (MODELS / f"minimal.{suffix}").read_bytes()
        assert wire("AI.MODELSTORE", backend, backend, "CPU", *named.split(), "BLOB", blob) == OK
        assert wire("AI.MODELEXECUTE", backend, "INPUTS", 1, "x", "OUTPUTS", 1, "y") == OK
        assert wire("AI.TENSORGET", "y", "VALUES") == [b"2", b"4"]


def test_the_libraries_work_in_a_helper(start_server: Callable[..., Server]) -> None:
    """The others run there in test_isolation.py. TensorFlow behaves otherwise where the program is called python."""
    with Wire(start_server(module_args=MODES["process"], echo=False).port, timeout=150) as wire:
        every_backend_runs(wire, "TFLITE TF")


@pytest.mark.needs_torch
def test_every_backend_works_in_the_server(start_server: Callable[..., Server]) -> None:
    """There scripts take the Redis lock on a sandboxed thread."""
    server = start_server("--appendonly", "yes", "--appendfsync", "always", module_args=MODES["none"], echo=False)
    with Wire(server.port, timeout=150) as wire:
        every_backend_runs(wire, "ONNX TFLITE TORCH TF")
        assert wire("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "count", "SOURCE", SCRIPT) == OK
        assert wire("AI.SCRIPTEXECUTE", "s", "count", "KEYS", 1, "n", "INPUTS", 1, "x", "OUTPUTS", 1, "y") == OK
        assert wire("GET", "n") == b"1"
        zipped = (MODELS / "saved_model.zip").read_bytes()
        refused = wire("AI.MODELSTORE", "zip", "TF", "CPU", "BLOB", zipped)
        assert refused.text.startswith("ERR a SavedModel has to be unpacked into files: ")
