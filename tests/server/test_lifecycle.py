"""From loading to the end: what the module leaves alone, what it survives, and how it stops.

Loops under load are counted, not timed: 20 of 20.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import echo_model
from environments import NUMPY, SITE, make_environment
from runs import Gate, get, info, put, store, wait_queued, wait_running
from servers import EXAMPLE_MODELS, Server, default_binary, module_path, running, wait_until
from wire import OK, QUEUED, Error, Status, Wire

import redisai_py

ALLOW_MODULE_COMMAND = [] if "redis-6.2" in str(default_binary()) else ["--enable-module-command", "yes"]


def execute(key: str, source: str = "in", target: str = "out", *words: Any) -> tuple[Any, ...]:
    return ("AI.MODELEXECUTE", key, "INPUTS", 1, source, "OUTPUTS", 1, target, *words)


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    with Wire(server.port) as connection:
        yield connection


class Load:
    """Clients that send the same commands again and again until they are told to stop, or the server goes."""

    def __init__(self, server: Server, commands: Sequence[tuple[Any, ...]], clients: int = 6) -> None:
        self.server, self.commands = server, commands
        self.replies: list[Any] = []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(clients)]
        for thread in self.threads:
            thread.start()
        wait_until(lambda: len(self.replies) >= 2 * clients, "a first few replies")

    def _run(self, n: int) -> None:
        try:
            with Wire(self.server.port) as client:
                while not self.over.is_set():
                    self.replies.append(client(*self.commands[n % len(self.commands)]))
                    n += 1
        except (ConnectionError, OSError):
            return  # the server has stopped

    def stop(self) -> list[Any]:
        self.over.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive(), "a client got no reply"
        return self.replies


def assert_clean_exit(server: Server, status: int) -> None:
    log = server.log()
    assert status == 0, f"status {status}\n{log[-4000:]}"
    assert "crashed by signal" not in log and "BUG REPORT" not in log, log[-8000:]


def end(server: Server, how: str) -> int:
    """Stops the server by a signal or a command and returns its status."""
    assert server.process is not None
    if how in ("SIGTERM", "SIGINT"):
        return server.stop(getattr(signal, how))
    with Wire(server.port) as client:
        client.send("SHUTDOWN", how)
        return server.process.wait(60)


# ---- the end ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(20))
def test_stopping_under_load(start_server: Callable[..., Server], turn: int) -> None:
    """Workers run, sleep, hold the interpreter and wait for company, the loader opens, clients write."""
    server = start_server(module_args=("THREADS_PER_QUEUE", "2"))
    with Wire(server.port) as wire:
        put(wire, "in", 1)
        store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 4)
        store(wire, "waits", "echo", 1, 1, "CPU", "BATCHSIZE", 100, "MINBATCHSIZE", 100)
        store(wire, "sleep", "sleep", 1, 1, "CPU:1", seconds=60)
        store(wire, "spin", "spin", seconds=0.02)
        slow = Wire(server.port)
        slow.send(*execute("sleep"))
        waiting = Wire(server.port)
        waiting.send(*execute("waits"))
        opening = ("AI.MODELSTORE", "n", "TORCH", "CPU", "BLOB", echo_model(open_sleep=0.01))
        load = Load(server, [execute("m"), execute("spin"), execute("m"), opening, ("AI.TENSORSET", "t", "FLOAT", 1, "VALUES", 1)])
    status = end(server, ("SIGTERM", "NOSAVE", "SAVE", "SIGINT")[turn % 4])
    load.stop()
    assert_clean_exit(server, status)


#: backend -> extension of the digits network, how often; the libraries whose threads and destructors an exit could trip over
STOPS = [
    pytest.param("ONNX", "onnx", 5, marks=pytest.mark.needs_onnx),
    pytest.param("TFLITE", "tflite", 3, marks=pytest.mark.needs_tflite),
    pytest.param("TORCH", "pt", 2, marks=pytest.mark.needs_torch),
]


@pytest.mark.parametrize(("backend", "extension", "turns"), STOPS)
def test_stopping_while_a_library_runs(start_server: Callable[..., Server], backend: str, extension: str, turns: int) -> None:
    blob = (EXAMPLE_MODELS / f"digits.{extension}").read_bytes()
    for turn in range(turns):
        server = start_server(module_args=("THREADS_PER_QUEUE", "2"), echo=False)
        with Wire(server.port, timeout=120) as wire:
            assert wire("AI.MODELSTORE", "m", backend, "CPU", "BLOB", blob) == OK
            assert wire("AI.TENSORSET", "in", "FLOAT", 400, 64) == OK
            load = Load(server, [execute("m")])
        status = end(server, ("SIGTERM", "NOSAVE")[turn % 2])
        load.stop()
        assert_clean_exit(server, status)


@pytest.mark.needs_onnx
def test_saves_complete_while_workers_are_busy(real_server: Server) -> None:
    with Wire(real_server.port) as wire:
        assert wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", (EXAMPLE_MODELS / "digits.onnx").read_bytes()) == OK
        assert wire("AI.TENSORSET", "in", "FLOAT", 400, 64) == OK
        load = Load(real_server, [execute("m")], 3)
        for command in ["BGSAVE", "BGREWRITEAOF"] * 10:
            assert isinstance(wire(command), Status)
            wait_until(lambda: re.search(rb"rdb_bgsave_in_progress:0\b.*aof_rewrite_in_progress:0\b", wire("INFO", "persistence"), re.S))
        persistence = wire("INFO", "persistence")
        assert b"rdb_last_bgsave_status:ok" in persistence and b"aof_last_bgrewrite_status:ok" in persistence
        assert set(load.stop()) == {OK}


def test_a_shutdown_that_fails_leaves_everything_working(start_server: Callable[..., Server]) -> None:
    """The directory for the dump is gone, so the server refuses to stop; workers, loader and timeouts go on."""
    server = start_server("--save", "3600 1")
    with Wire(server.port) as wire:
        put(wire, "in", 1)
        store(wire, "m")
        shutil.rmtree(server.directory)
        assert isinstance(wire("SHUTDOWN", "SAVE"), Error)
        assert wire(*execute("m")) == OK
        store(wire, "waits", "echo", 1, 1, "CPU:1", "BATCHSIZE", 9, "MINBATCHSIZE", 9)
        assert wire(*execute("waits", "in", "out", "TIMEOUT", 5)) == Status("TIMEDOUT")
    assert end(server, "NOSAVE") == 0


def test_after_a_pause_of_the_process_nothing_starts_that_is_late(server: Server, wire: Wire, tmp_path: Path) -> None:
    """Worker and timer wake at the same moment, long after the TIMEOUT; whoever is first, the request is not run."""
    gate = Gate(wire, tmp_path / "gate", "gate")
    store(wire, "m")
    put(wire, "in", 1)
    with Wire(server.port) as runs, Wire(server.port) as late, Wire(server.port) as patient:
        runs.send(*execute("gate", "in", "a"))
        wait_running(wire)
        late.send(*execute("m", "in", "b", "TIMEOUT", 2000))
        patient.send(*execute("m", "in", "c"))
        wait_queued(wire, 2)
        os.kill(server.pid, signal.SIGSTOP)
        gate.open()
        time.sleep(2.1)
        os.kill(server.pid, signal.SIGCONT)
        assert (runs.read(), late.read(), patient.read()) == (OK, Status("TIMEDOUT"), OK)
    assert (get(wire, "b"), get(wire, "c")) == (None, [1])


# ---- models that change while they run --------------------------------------------------------------------------------------------------

CHANGES = [
    ("DEL", "m"),
    ("UNLINK", "m"),
    ("AI.MODELDEL", "m"),
    ("FLUSHALL", "ASYNC"),
    ("FLUSHALL", "SYNC"),
    ("RENAME", "m", "n"),
    ("SWAPDB", 0, 1),
    ("MOVE", "m", 1),
    ("SET", "m", "x"),
    ("COPY", "other", "m", "REPLACE"),
    ("PEXPIREAT", "m", 1),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(map(str, change)))
def test_a_run_finishes_with_the_model_it_began_with(server: Server, wire: Wire, tmp_path: Path, change: tuple[Any, ...]) -> None:
    """The session is closed when the run is over, not before."""
    gate = Gate(wire, tmp_path / "gate", "m")
    store(wire, "other", "nan")
    put(wire, "in", 7)
    with Wire(server.port) as client, Wire(server.port) as queued:
        client.send(*execute("m"))
        wait_running(wire)
        queued.send(*execute("m", "in", "second"))
        wait_queued(wire, 1)
        assert not isinstance(wire(*change), Error)
        gate.open()
        assert (client.read(), queued.read()) == (OK, OK)
        assert (get(wire, "out"), get(wire, "second")) == ([7], [7])
    wire("FLUSHALL")
    wait_until(lambda: info(wire, "ONNX_sessions") == 0, "every session closed")


def test_a_model_may_be_renamed_while_it_is_opened_and_run(server: Server, wire: Wire) -> None:
    """The loader and the workers read its name for their log lines, and a rename frees the name: a sanitizer sees how."""
    put(wire, "in", 1)
    store(wire, "m", "raise", text="ERR no")
    names = ["m", "a name of another length"]
    with Wire(server.port) as opens, Wire(server.port) as runs:
        for _ in range(100):
            runs.send(*execute(names[0]))
            opens.send("COPY", names[0], "copy", "REPLACE")
            assert wire("RENAME", *names) == OK
            opens.read()
            wire("RENAME", "copy", "copied under a longer name")
            assert runs.read() in (Error("ERR no"), Error("ERR model key is empty"))
            names.reverse()


def test_models_come_and_go_under_load(start_server: Callable[..., Server]) -> None:
    """Every command has one reply of the expected kind, and in the end no session, job or queued request is left."""
    server = start_server(module_args=("THREADS_PER_QUEUE", "2"))
    allowed = {OK, Error("ERR model key is empty"), Error("ERR tensor key is empty or in a different shard")}
    allowed.add(Error("WRONGTYPE Operation against a key holding the wrong kind of value"))
    with Wire(server.port) as wire:
        put(wire, "in", 1)
        store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 8)
        load = Load(server, [execute("m"), execute("n"), execute("m", "in", "in")], 8)
        for turn in range(60):
            wire(*CHANGES[turn % len(CHANGES)])
            if wire("TYPE", "m") != Status("AI__MODEL"):
                wire("DEL", "m")
            store(wire, "m", ("echo", "nan")[turn % 2], 1, 1, ("CPU", "CPU:1")[turn % 3 == 0], "BATCHSIZE", turn % 5)
            store(wire, "other", "echo", 1, 1, "CPU", "BATCHSIZE", 3, "MINBATCHSIZE", 2, "MINBATCHTIMEOUT", 1)
            wire("MULTI")
            assert wire("COPY", "m", "n", "REPLACE") == QUEUED
            assert wire("AI.MODELSTORE", "other", "TORCH", "CPU", "BLOB", echo_model()) == QUEUED
            assert wire("EXEC")[1] == OK
            put(wire, "in", 1)
        assert set(load.stop()) <= allowed
        assert OK in load.replies
        wire("FLUSHALL")
        for field in ("ONNX_sessions", "TORCH_sessions", "jobs_in_flight", "queue_CPU_length", "queue_CPU:1_length", "loads_in_progress"):
            wait_until(lambda: info(wire, field) == 0, field)  # noqa: B023


# ---- what belongs to the server ---------------------------------------------------------------------------------------------------------


def status_of(path: Path, field: str) -> int:
    """A mask of signals out of /proc."""
    found = re.search(rf"^{field}:\s*([0-9a-f]+)$", path.read_text(), re.M)
    assert found
    return int(found[1], 16)


def store_every_backend(wire: Wire) -> None:
    wire.socket.settimeout(120)
    for backend, extension in (("ONNX", "onnx"), ("TORCH", "pt"), ("TFLITE", "tflite"), ("TF", "pb")):
        names = ("INPUTS", 1, "x", "OUTPUTS", 1, "probabilities") if backend == "TF" else ()
        assert wire("AI.MODELSTORE", backend, backend, "CPU", *names, "BLOB", (EXAMPLE_MODELS / f"digits.{extension}").read_bytes()) == OK
        assert wire("AI.TENSORSET", "in", "FLOAT", 2, 64) == OK
        assert wire(*execute(backend)) == OK


@pytest.fixture
def with_every_backend(real_server: Server) -> Iterator[tuple[Server, Wire]]:
    with Wire(real_server.port) as wire:
        store_every_backend(wire)
        yield real_server, wire


every_backend = [pytest.mark.needs_onnx, pytest.mark.needs_torch, pytest.mark.needs_tf, pytest.mark.needs_tflite]


class TestEveryBackendIsAGoodGuest:
    pytestmark = every_backend

    def test_signal_handlers_stay_those_of_the_server(self, with_every_backend: tuple[Server, Wire]) -> None:
        server, _ = with_every_backend
        with running(load_module=False) as bare:
            for field in ("SigCgt", "SigIgn"):
                ours, theirs = (status_of(Path(f"/proc/{s.pid}/status"), field) for s in (server, bare))
                assert ours == theirs, f"{field}: {ours ^ theirs:x}"

    def test_threads_of_ours_take_no_signals_but_report_faults(self, with_every_backend: tuple[Server, Wire]) -> None:
        server, _ = with_every_backend
        asynchronous = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM, signal.SIGCHLD, signal.SIGPIPE)
        seen = set()
        for task in Path(f"/proc/{server.pid}/task").iterdir():
            name = (task / "comm").read_text().strip()
            if not name.startswith("ai-"):
                continue
            seen.add(name)
            blocked = status_of(task / "status", "SigBlk")
            assert all(blocked >> number - 1 & 1 for number in asynchronous), name
            assert not any(blocked >> number - 1 & 1 for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)), name
        assert seen == {"ai-python", "ai-timer", "ai-worker", "ai-loader", "ai-watchdog"}

    def test_no_file_connection_or_process_is_left_open(self, with_every_backend: tuple[Server, Wire]) -> None:
        """What libraries open they close again, also what they keep for those who made them; and nothing would outlive an exec."""
        server, _ = with_every_backend
        opened = {}
        for link in Path(f"/proc/{server.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # a connection that ends meanwhile
                opened[int(link.name)] = str(link.readlink())
        files = {number: target for number, target in opened.items() if not target.startswith(("socket:", "pipe:", "anon_inode:"))}
        assert {target for number, target in files.items() if number > 2} <= {str(server.log_path)}
        for number in opened.keys() - {0, 1, 2}:
            flags = re.search(r"^flags:\s*(\d+)", Path(f"/proc/{server.pid}/fdinfo/{number}").read_text(), re.M)
            assert flags and int(flags[1], 8) & os.O_CLOEXEC, opened[number]
        inodes = {target[8:-1] for target in opened.values() if target.startswith("socket:")}
        for kind in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path(f"/proc/{server.pid}/net/{kind}").read_text().splitlines()[1:]:
                words = line.split()
                if words[9] in inodes:
                    assert kind == "tcp" and words[2].partition(":")[0] in ("00000000", "0100007F"), f"a connection to {words[2]}"
        assert server.children() == []

    def test_numbers_of_the_server_stay_exact(self, with_every_backend: tuple[Server, Wire]) -> None:
        """A library built with -ffast-math makes denormal numbers zero on the thread that loads it."""
        _, wire = with_every_backend
        for backend in ("ONNX", "TORCH", "TFLITE", "TF"):
            assert wire(*execute(backend)) == OK
            wire("DEL", "z", "f")
            wire("ZADD", "z", "1e-310", "m")
            assert float(wire("ZINCRBY", "z", "1e-310", "m")) == 2e-310
            wire("SET", "f", "4.9e-324")
            assert wire("ZRANGEBYSCORE", "z", "1e-310", "3e-310") == [b"m"]
            assert float(wire("EVAL", "return tostring(tonumber(ARGV[1]) * 2)", 0, "1e-310")) == 2e-310

    def test_threads_are_few(self, with_every_backend: tuple[Server, Wire]) -> None:
        """Each run uses its share of the cores; pools of a library's own choosing (one thread per core each) would show here."""
        server, _ = with_every_backend
        cores = len(os.sched_getaffinity(0))
        threads = len(list(Path(f"/proc/{server.pid}/task").iterdir()))
        assert threads <= 24 + 4 * cores, threads


def test_a_fault_inside_a_library_is_reported_as_a_crash(start_server: Callable[..., Server]) -> None:
    """On a worker, too, the server's report of a crash is written: a blocked signal would end the process without a word."""
    server = start_server("--crash-memcheck-enabled", "no")
    with Wire(server.port) as wire:
        store(wire, "m", "segfault")
        put(wire, "in", 1)
        wire.send(*execute("m"))
        assert server.process is not None
        assert server.process.wait(60) != 0
    assert "crashed by signal: 11" in server.log()


# ---- isolation --------------------------------------------------------------------------------------------------------------------------


def test_nothing_of_the_environment_reaches_the_interpreter(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """Modules that would write a canary lie where an ordinary Python looks: the server's directory, PYTHONPATH, the user's site."""
    canary, folder = tmp_path / "canary", tmp_path / "hostile"
    user_site = folder / SITE
    user_site.mkdir(parents=True)
    code = f"open({str(canary)!r}, 'a').write(__name__ + '\\n')\n"
    for name in ("sitecustomize", "usercustomize", "numpy", "json", "redisai_py", "_redisai", "startup", "ctypes", "threading"):
        for where in (folder, user_site):
            (where / f"{name}.py").write_text(code)
    (user_site / "canary.pth").write_text(f"import sys; exec({code!r})\n")
    environment = {
        "PYTHONPATH": str(folder),
        "PYTHONHOME": str(folder),
        "PYTHONSTARTUP": str(folder / "startup.py"),
        "PYTHONUSERBASE": str(folder),
        "PYTHONPLATLIBDIR": "elsewhere",
        "PYTHONINSPECT": "1",
        "PYTHONVERBOSE": "1",
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONMALLOC": "debug",
        "PYTHONWARNINGS": "error",
        "HOME": str(folder),
    }
    server = start_server(env=environment, directory=folder)
    with Wire(server.port) as wire:
        store(wire, "m")
        put(wire, "in", 1)
        assert wire(*execute("m")) == OK
    assert not canary.exists(), canary.read_text()
    assert server.stop() == 0


def test_the_module_leaves_no_files_behind(start_server: Callable[..., Server], tmp_path: Path) -> None:
    before = set(Path(redisai_py.__file__).parent.rglob("*"))
    server = start_server(directory=tmp_path)
    with Wire(server.port) as wire:
        store(wire, "m")
    assert server.stop() == 0
    assert [path.name for path in tmp_path.iterdir()] == [server.log_path.name]
    assert set(Path(redisai_py.__file__).parent.rglob("*")) - before == set()


# ---- a Python that is not there ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare() -> Iterator[Server]:
    with running(*ALLOW_MODULE_COMMAND, load_module=False) as server:
        yield server


def refused(bare: Server, *arguments: str, module: Path | None = None) -> str:
    """What the server logs when it must refuse to load the module; it lives on."""
    already = len(bare.log())
    with Wire(bare.port) as wire:
        assert isinstance(wire("MODULE", "LOAD", str(module or module_path()), *arguments), Error)
        assert wire("PING") == Status("PONG")
        assert isinstance(wire("AI.TENSORSET", "t", "FLOAT", 1), Error)
    return bare.log()[already:]


def test_a_python_that_is_not_there(bare: Server) -> None:
    for _ in range(2):  # nothing has been started, so the next try is as good as the first
        assert "load argument PYTHON: there is no file /nowhere/python" in refused(bare, "PYTHON", "/nowhere/python")


def test_a_module_without_an_installation(bare: Server, tmp_path: Path) -> None:
    copy = Path(shutil.copy(module_path(), tmp_path / "redisai.so"))
    log = refused(bare, module=copy)
    assert f"no Python found for {tmp_path}/redisai.so: install the package with pip in a virtual environment" in log
    assert "or give the load argument PYTHON" in log


def test_an_environment_without_the_package(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env")
    text = "cannot import redisai_py (is it installed in this Python?): No module named 'redisai_py'"
    with pytest.raises(AssertionError, match=re.escape(text)), running(module_args=("PYTHON", str(python))):
        pass


def test_an_environment_without_numpy(start_server: Callable[..., Server], tmp_path: Path) -> None:
    server = start_server(module_args=("PYTHON", str(make_environment(tmp_path / "env", "redisai_py"))), echo=False)
    with Wire(server.port) as wire:
        put(wire, "in", 1)
        assert wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", "x") == Error("ERR Could not load backend")
    assert "Could not load ONNX backend: No module named 'numpy'. Install it with: pip install numpy" in server.log()


def test_what_is_no_python_at_all(tmp_path: Path) -> None:
    impostor = tmp_path / "bin" / "python"
    impostor.parent.mkdir()
    impostor.write_text("no program\n")
    with (
        pytest.raises(AssertionError, match=r"cannot import redisai_py|Python did not start"),
        running(module_args=("PYTHON", str(impostor))),
    ):
        pass


def test_python_named_by_the_load_argument(start_server: Callable[..., Server], tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env", "redisai_py", *NUMPY)
    server = start_server(module_args=("PYTHON", str(python)))
    with Wire(server.port) as wire:
        store(wire, "m")
        put(wire, "in", 1)
        assert wire(*execute("m")) == OK
    assert f"runs from {python}" in server.log()


def test_backends_that_are_not_installed(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """Tensors work, stores say so, and the log names the cure."""
    python = make_environment(tmp_path / "env", "redisai_py", *NUMPY)
    server = start_server(module_args=("PYTHON", str(python)), echo=False)
    with Wire(server.port) as wire:
        put(wire, "in", 1)
        for backend in ("ONNX", "TORCH", "TFLITE"):
            assert wire("AI.MODELSTORE", "m", backend, "CPU", "BLOB", "x") == Error("ERR Could not load backend")
        assert wire("AI.MODELSTORE", "m", "TF", "CPU", "INPUTS", 1, "a", "OUTPUTS", 1, "b", "BLOB", "x") == Error(
            "ERR Could not load backend"
        )
        script = ("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", "def f(): pass")
        assert isinstance(wire(*script), Error)
        assert wire("AI.CONFIG", "LOADBACKEND", "ONNX", "redisai_onnxruntime/redisai_onnxruntime.so") == Error("ERR error loading backend")
        wire("MULTI")
        assert wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", "x") == QUEUED
        assert wire("EXEC") == [OK]
        assert wire(*execute("m")) == Error("ERR Could not load backend")
        assert wire("EXISTS", "m", "s") == 1
    log = server.log()
    for backend, module, package in (
        ("ONNX", "onnxruntime", "onnxruntime"),
        ("TORCH", "torch", "torch"),
        ("TF", "tensorflow", "tensorflow"),
    ):
        assert re.search(rf"Could not load {backend} backend: .*{module}.*pip install .*{package}", log), backend


def test_a_backend_that_is_named_at_load_time_and_missing_ends_the_start(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env", "redisai_py", *NUMPY)
    arguments = ("PYTHON", str(python), "ONNX", "redisai_onnxruntime/redisai_onnxruntime.so")
    with pytest.raises(AssertionError, match="Could not load ONNX backend"), running(module_args=arguments, echo=False):
        pass


@pytest.mark.needs_onnx
def test_a_backend_that_is_named_at_load_time_is_there_at_once(start_server: Callable[..., Server]) -> None:
    server = start_server(module_args=("ONNX", "redisai_onnxruntime/redisai_onnxruntime.so"), echo=False)
    with Wire(server.port) as wire:
        assert b"ai_onnxruntime_version:" in wire("INFO", "ai_backends_info")
        assert wire("AI.CONFIG", "LOADBACKEND", "ONNX", "redisai_onnxruntime.so") == Error("ERR error loading backend")
    assert "ONNX backend loaded from" in server.log()
