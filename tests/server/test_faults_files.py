"""What is on disk and what may go wrong with it: values without their backend, hostile values by another door, deaths in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rdb_payload as rdb
from conftest import echo_model
from environments import NUMPY, SITE, make_environment
from runs import store
from servers import MODELS, Server, wait_until
from wire import OK, Error, Wire

BACKENDS = ("TF", "TFLITE", "TORCH", "ONNX")
SOURCE = "def f(tensors: List[Tensor], keys: List[str], args: List[str]):\n    return tensors\n"


def digest(wire: Wire) -> bytes:
    result: bytes = wire("DEBUG", "DIGEST")
    return result


# ---- values that cannot be opened here ---------------------------------------------------------------------------------


@pytest.mark.parametrize("persistence", ["rdb", "aof of commands", "aof with preamble"])
def test_a_server_without_its_backends_starts_and_keeps_every_byte(start_server: Callable[..., Server], persistence: str) -> None:
    """Keys are listed, bytes come back, a run names the cause; and when the backend has returned everything runs."""
    aof = ("--appendonly", "yes", "--aof-use-rdb-preamble", "yes" if "preamble" in persistence else "no")
    server = start_server(*(() if persistence == "rdb" else aof))
    with Wire(server.port) as wire:
        for backend in BACKENDS:
            names = ("INPUTS", 1, "a", "OUTPUTS", 1, "b") if backend == "TF" else ()
            assert wire("AI.MODELSTORE", backend, backend, "CPU", "TAG", "t", *names, "BLOB", echo_model(), " " * 1000) == OK
        assert wire("RESTORE", "s", 0, rdb.script(SOURCE, entry_points=("f",))) == OK
        assert wire("AI.TENSORSET", "x", "FLOAT", 1, "VALUES", 3) == OK
        keys = [*BACKENDS, "s", "x"]
        before, dumps = digest(wire), {key: wire("DUMP", key) for key in keys}
        if persistence == "aof with preamble":
            wire("BGREWRITEAOF")
            wait_until(lambda: b"aof_rewrite_in_progress:0\r" in wire("INFO", "persistence"), "the rewrite")
        assert persistence != "rdb" or wire("SAVE") == OK
    server.env["REDISAI_TEST_BACKEND"] = "fault"
    server.restart()
    with Wire(server.port) as wire:
        assert digest(wire) == before
        assert len(wire("AI._MODELSCAN")) == 4 and len(wire("AI._SCRIPTSCAN")) == 1
        for backend in BACKENDS:
            assert wire("AI.MODELGET", backend, "BLOB") == (echo_model() + " " * 1000).encode()
            assert wire("AI.MODELEXECUTE", backend, "INPUTS", 1, "x", "OUTPUTS", 1, "y") == Error("ERR Could not load backend")
        assert wire("AI.SCRIPTGET", "s", "SOURCE") == SOURCE.encode()
        assert isinstance(wire("AI.SCRIPTEXECUTE", "s", "f", "INPUTS", 1, "x", "OUTPUTS", 1, "y"), Error)
        assert wire("EXISTS", "y") == 0
        found = {key: wire("DUMP", key) for key in keys}
        if persistence == "aof of commands":  # which holds no names that are found by opening a model
            for backend in ("TFLITE", "TORCH", "ONNX"):
                del found[backend], dumps[backend]
        assert found == dumps
        assert persistence != "rdb" or wire("SAVE") == OK
    server.env["REDISAI_TEST_BACKEND"] = "echo"
    server.restart()
    with Wire(server.port) as wire:
        assert digest(wire) == before
        for backend in BACKENDS:
            assert wire("AI.MODELEXECUTE", backend, "INPUTS", 1, "x", "OUTPUTS", 1, "y") == OK


# ---- hostile values by another door ------------------------------------------------------------------------------------


def torch_model_that_saves(path: Path) -> bytes:
    torch = pytest.importorskip("torch")
    script = torch.jit._recursive.create_script_module(torch.nn.Module(), lambda _: (), share_types=False)
    script.define(f"def forward(self, x):\n    torch.save(x, '{path}')\n    return x\n")
    return bytes(script.save_to_buffer())


def hostile_values(canary: Path) -> dict[str, tuple[bytes, list[Any], str]]:
    """Payload, what follows INPUTS 1 x in a run of it, and a word of the refusal."""

    def model(backend: str, file: str, *names: str) -> bytes:
        ends: dict[str, Any] = {"inputs": names[:1], "outputs": names[1:]} if names else {}
        return rdb.model(backend, (MODELS / file).read_bytes(), **ends)

    save = SOURCE.replace("    return", f"    torch.save(tensors[0], '{canary}')\n    return")
    return {
        "ReadFile": (model("TF", "evil_read_file.pb", "path", "content"), [], "ReadFile"),
        "WriteFile": (model("TF", "evil_write_file.pb", "content", "done"), [], "WriteFile"),
        "external data": (model("ONNX", "external_data.onnx"), [], "external data"),
        "torch.save": (rdb.model("TORCH", torch_model_that_saves(canary)), [], "save"),
        "script": (rdb.script(save, entry_points=("f",)), ["f"], "save"),
        "script of old": (rdb.script(save, 0), ["f"], "save"),
    }


@pytest.mark.needs_torch
@pytest.mark.needs_tf
@pytest.mark.needs_onnx
def test_restore_is_no_back_door(real_server: Server, start_server: Callable[..., Server], tmp_path: Path) -> None:
    """Who may restore and run, and not store, brings only bytes: they are opened by the same rules, whichever way they came."""
    canary = tmp_path / "canary"
    values = hostile_values(canary)

    def refused(wire: Wire, key: str, where: str) -> None:
        _, function, word = values[key.removesuffix(" copy")]
        command = "AI.SCRIPTEXECUTE" if function else "AI.MODELEXECUTE"
        reply = wire(command, key, *function, "INPUTS", 1, "x", "OUTPUTS", 1, "y")
        assert isinstance(reply, Error) and word in reply.text, (where, key, reply)

    with Wire(real_server.port, timeout=120) as admin, Wire(real_server.port, timeout=120) as guest:
        rights = "on nopass ~* -@all +restore +copy +ai.modelexecute +ai.scriptexecute +ai.tensorset".split()
        assert admin("ACL", "SETUSER", "guest", "reset", *rights) == OK
        assert guest("AUTH", "guest", "any") == OK
        assert guest("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", "x").text.startswith("NOPERM")
        assert guest("AI.TENSORSET", "x", "FLOAT", 1, "VALUES", 1) == OK
        for key, (payload, _, _) in values.items():
            assert guest("RESTORE", key, 0, payload) == OK
            assert guest("COPY", key, f"{key} copy") == 1
        for key in values:
            refused(guest, key, "restored")
            refused(guest, f"{key} copy", "copied")
        assert admin("DEBUG", "RELOAD") == OK
        for key in values:
            refused(guest, key, "loaded from a file")
        assert admin("ACL", "DELUSER", "guest") == 1
        assert admin("DEL", *(key for key in values if key != "external data")) == len(values) - 1  # one library is enough for what follows
        replica = start_server("--replicaof", "127.0.0.1", str(real_server.port), echo=False)
        with Wire(replica.port, timeout=120) as second:
            wait_until(lambda: b"master_link_status:up" in second("INFO", "replication"), "the link")
            assert second("REPLICAOF", "NO", "ONE") == OK
            refused(second, "external data", "replicated")
        assert admin("EXISTS", "y") == 0
    assert not canary.exists()


# ---- deaths in the middle ------------------------------------------------------------------------------------------------


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


AOF = ("--appendonly", "yes", "--appendfsync", "always", "--aof-use-rdb-preamble", "no")


@pytest.mark.parametrize("doing", ["opening a model", "a run", "BGSAVE", "BGREWRITEAOF"])
def test_after_kill_9_nothing_is_left_and_everything_is_there(start_server: Callable[..., Server], tmp_path: Path, doing: str) -> None:
    """No process, no shared memory, no file of ours; what was acknowledged comes back, what was not is whole or absent."""
    server = start_server(*AOF, "--rdb-key-save-delay", "20000")  # microseconds per key: the child is alive when its server dies
    with Wire(server.port) as wire, Wire(server.port) as other:
        assert wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model()) == OK
        for i in range(30):
            assert wire("AI.TENSORSET", f"t{i}", "INT64", 1, "VALUES", i) == OK
        before, child = digest(wire), []
        if doing == "opening a model":
            other.send("AI.MODELSTORE", "n", "ONNX", "CPU", "BLOB", echo_model(open_gate=str(tmp_path / "never")))
            wait_until(lambda: b"ai_loads_in_progress:1\r" in wire("INFO", "ai_runtime"), "the opening")
        elif doing == "a run":
            store(wire, "g", "gate", path=str(tmp_path / "never"))
            before = digest(wire)
            other.send("AI.MODELEXECUTE", "g", "INPUTS", 1, "t0", "OUTPUTS", 1, "y")
            wait_until(lambda: b"ai_jobs_in_flight:1\r" in wire("INFO", "ai_runtime"), "the run")
        else:
            wire(doing)
            child = wait_until(server.children, "the child")
        assert "/dev/shm" not in Path(f"/proc/{server.pid}/maps").read_text()
        os.kill(server.pid, signal.SIGKILL)
        assert server.process is not None
        server.process.wait()
    server.start()
    with Wire(server.port) as wire:
        assert digest(wire) == before
        assert wire("AI.MODELEXECUTE", "m", "INPUTS", 1, "t7", "OUTPUTS", 1, "y") == OK
        assert wire("EXISTS", "n") == 0
    for pid in child:
        wait_until(lambda p=pid: not Path(f"/proc/{p}").exists() or "Z" in Path(f"/proc/{p}/status").read_text(), "the end of the child")
    theirs = {"appendonlydir", "dump.rdb", server.log_path.name}
    ours = {name for name in names_in(server.directory) - theirs if not name.startswith("temp-")}  # which Redis leaves itself
    assert ours == set()


def test_a_copy_of_the_directory_at_any_moment_starts(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """What a power cut leaves: files as they were at one moment. All that was acknowledged before it is in them."""
    server = start_server(*AOF)
    with Wire(server.port) as wire:
        assert wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model()) == OK
        for turn in range(2):
            acknowledged = 0
            with Wire(server.port) as writer:
                for i in range(100 * turn + 20):
                    assert writer("AI.TENSORSET", "n", "INT64", 1, "VALUES", i) == OK
                    assert writer("AI.MODELEXECUTE", "m", "INPUTS", 1, "n", "OUTPUTS", 1, "y") == OK
                    acknowledged = i
                for _ in range(300):  # in the air while the copy is made
                    writer.send("AI.TENSORSET", "n", "INT64", 1, "VALUES", acknowledged + 1)
                copy = tmp_path / f"copy{turn}"
                shutil.copytree(server.directory, copy)
                for _ in range(300):
                    assert writer.read() == OK
            again = start_server(*AOF, directory=copy)
            with Wire(again.port) as restored:
                found = restored("AI.TENSORGET", "n", "VALUES")[0]
                assert found in (acknowledged, acknowledged + 1)
                assert restored("AI.TENSORGET", "y", "VALUES") == [acknowledged]
                assert restored("AI.MODELEXECUTE", "m", "INPUTS", 1, "n", "OUTPUTS", 1, "z") == OK
            again.close()


# ---- disks that are full -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """4 MB. Needs the right to mount."""
    directory = tmp_path / "disk"
    directory.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", directory], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


def test_a_full_disk_refuses_writes_as_redis_does_and_runs_go_on_without(start_server: Callable[..., Server], small_disk: Path) -> None:
    """A dump that fails: MISCONF for every command that writes, ours among them; what only reads is served; room brings all back."""
    server = start_server("--save", "3600 1", "--rdbcompression", "no", "--stop-writes-on-bgsave-error", "yes", directory=small_disk)
    with Wire(server.port) as wire:
        assert wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model()) == OK
        assert wire("AI.TENSORSET", "x", "FLOAT", 1, "VALUES", 2) == OK
        assert wire("AI.TENSORSET", "big", "UINT8", 5_000_000) == OK
        before = digest(wire)
        wire("BGSAVE")
        wait_until(lambda: b"rdb_last_bgsave_status:err" in wire("INFO", "persistence"), "the failure")
        run = ("AI.MODELEXECUTE", "m", "INPUTS", 1, "x", "OUTPUTS", 1, "y")
        for command in (
            run,
            ("AI.TENSORSET", "y", "INT8", 1),
            ("AI.MODELSTORE", "n", "ONNX", "CPU", "BLOB", echo_model()),
            ("AI.MODELDEL", "m"),
            "AI.DAGEXECUTE LOAD 1 x PERSIST 1 y |> AI.MODELEXECUTE m INPUTS 1 x OUTPUTS 1 y".split(),
        ):
            assert wire(*command).text.startswith("MISCONF"), command
        dag = "AI.DAGEXECUTE_RO LOAD 1 x |> AI.MODELEXECUTE m INPUTS 1 x OUTPUTS 1 y |> AI.TENSORGET y VALUES"
        assert wire(*dag.split()) == [OK, [b"2"]]
        assert digest(wire) == before
        wire("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
        assert wire("DEL", "big") == 1
        assert wire(*run) == OK
        wire("CONFIG", "SET", "stop-writes-on-bgsave-error", "yes")
        assert wire("BGSAVE").text.startswith("Background saving")
        wait_until(lambda: b"rdb_last_bgsave_status:ok" in wire("INFO", "persistence"), "a save that has room")
        assert wire(*run) == OK


def test_an_aof_without_room_acknowledges_nothing_that_it_does_not_hold(start_server: Callable[..., Server], small_disk: Path) -> None:
    server = start_server("--appendonly", "yes", "--appendfsync", "everysec", directory=small_disk)
    with Wire(server.port) as wire:
        assert wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model()) == OK
        acknowledged = []
        for i in range(60):
            reply = wire("AI.TENSORSET", f"t{i}", "UINT8", 100_000, "BLOB", bytes([i]) * 100_000)
            if isinstance(reply, Error):
                assert reply.text.startswith("MISCONF"), reply
                break
            acknowledged.append(i)
        else:
            raise AssertionError("the disk never filled up")
        reply = wire("AI.MODELEXECUTE", "m", "INPUTS", 1, "t0", "OUTPUTS", 1, "y")
        assert isinstance(reply, Error) and reply.text.startswith("MISCONF")
        assert wire("AI.TENSORGET", "t0", "BLOB") == bytes(100_000)
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    (small_disk / server.log_path.name).unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    server.start()
    with Wire(server.port) as wire:
        for i in acknowledged[:-1]:  # the last one was acknowledged before the write that found no room for it
            assert wire("AI.TENSORGET", f"t{i}", "BLOB") == bytes([i]) * 100_000


# ---- a Python whose files go away or are wrong --------------------------------------------------------------------------

#: what importing a package does -> what the log says of it
BROKEN = {
    "ONNX": ("onnxruntime", "raise ImportError('_core.so: undefined symbol: PyUnicode_Unknown')", "undefined symbol: PyUnicode_Unknown"),
    "TORCH": ("torch", "raise OSError('libtorch.so: cannot open shared object file')", "cannot open shared object file"),
    "TF": ("tensorflow", "import sys; sys.exit(3)", "SystemExit"),
    "TFLITE": ("ai_edge_litert", "def :", "SystemExit"),  # TensorFlow has it as well, and is asked last
}


def store_words(backend: str) -> list[Any]:
    names = ("INPUTS", 1, "a", "OUTPUTS", 1, "b") if backend == "TF" else ()
    return ["AI.MODELSTORE", "m", backend, "CPU", *names, "BLOB", "x"]


def test_libraries_that_break_when_they_are_imported_are_absent_and_nothing_else(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    python = make_environment(tmp_path / "env", "redisai_py", *NUMPY)
    for name, code, _ in BROKEN.values():
        (tmp_path / "env" / SITE / name).mkdir()
        (tmp_path / "env" / SITE / name / "__init__.py").write_text(code)
    server = start_server(module_args=("PYTHON", str(python)), echo=False)
    with Wire(server.port) as wire:
        for backend in BROKEN:
            for _ in range(2):  # the second time as the first
                assert wire(*store_words(backend)) == Error("ERR Could not load backend"), backend
            assert wire("AI.TENSORSET", "x", "FLOAT", 1) == OK
        for backend, (_, _, said) in BROKEN.items():
            assert any(said in line and backend in line for line in server.log().splitlines()), (backend, server.log()[-3000:])
    assert server.stop() == 0


def test_an_environment_that_vanishes_takes_only_what_was_not_loaded_yet(start_server: Callable[..., Server], tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env", "redisai_py", *NUMPY)
    server = start_server(module_args=("PYTHON", str(python)))
    with Wire(server.port) as wire:
        assert wire("AI.TENSORSET", "x", "FLOAT", 1, "VALUES", 2) == OK
        store(wire, "before")
        shutil.rmtree(tmp_path / "env")
        assert wire("AI.MODELEXECUTE", "before", "INPUTS", 1, "x", "OUTPUTS", 1, "y") == OK
        store(wire, "after", "say", text="still here")  # warns and logs, for which Python may want its files
        assert wire("AI.MODELEXECUTE", "after", "INPUTS", 1, "x", "OUTPUTS", 1, "y") == OK
        assert isinstance(wire("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", SOURCE), Error)
        assert wire("BGSAVE").text.startswith("Background saving")
    assert server.stop() == 0
