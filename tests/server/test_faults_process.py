"""What is done to the server as a whole while runs go on: keys that change in every way, loads, sleeps, TLS, stops that are called off."""

from __future__ import annotations

import random
import shutil
import signal
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from conftest import echo_model
from environments import NUMPY, SITE, make_environment
from runs import Gate, get, info, put, since_7, store, wait_gone, wait_queued, wait_running
from servers import EXAMPLE_MODELS, Server, default_binary, free_port, wait_until
from wire import OK, Error, Status, Wire


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    with Wire(server.port) as connection:
        yield connection


def execute(model: str, source: str, target: str, *words: Any) -> tuple[Any, ...]:
    return ("AI.MODELEXECUTE", model, "INPUTS", 1, source, "OUTPUTS", 1, target, *words)


# ---- keys in every way ------------------------------------------------------------------------------------------------------

#: done to the keys of runs in progress; {k} is any of them
DEEDS = (
    "DEL {k}",
    "UNLINK {k}",
    "RENAME {k} {l}",
    "COPY {k} {l} REPLACE",
    "PEXPIRE {k} 1",
    "PERSIST {k}",
    "SET {k} x",
    "AI.TENSORSET {k} INT64 1 VALUES {n}",
    "AI.MODELDEL {m}",
    "AI.MODELSTORE {m} ONNX CPU BATCHSIZE {b} BLOB {model}",
    "RENAME {m} {o}",
    "COPY {m} {o} REPLACE",
    "MOVE {k} 1",
    "SWAPDB 0 1",
    "SWAPDB 0 1",
    "FLUSHDB ASYNC",
    "FLUSHALL ASYNC",
    "DEBUG RELOAD",
    "CLIENT PAUSE 20 WRITE",
)


def test_whatever_is_done_to_keys_during_runs_every_copy_agrees(start_server: Callable[..., Server]) -> None:
    """Runs, alone and in DAGs, while keys are deleted, renamed, moved, expired, flushed and reloaded: each command has one reply, and in
    the end the replica and the AOF hold what the server holds."""
    server = start_server("--appendonly", "yes", "--appendfsync", "no", "--repl-diskless-sync-delay", "0", "--databases", "2")
    replica = start_server("--replicaof", "127.0.0.1", str(server.port), "--databases", "2")
    rng = random.Random(7)
    over, unexpected, done = threading.Event(), [], [0]
    model = echo_model(open_sleep=0)

    def words(line: str) -> list[str]:
        names = {"k": rng.choice("abcd"), "l": rng.choice("abcd"), "m": rng.choice("pq"), "o": rng.choice("pq")}
        return [model if w == "{model}" else w.format(**names, n=rng.randrange(100), b=rng.randrange(3)) for w in line.split()]

    def runs(n: int) -> None:
        with Wire(server.port, timeout=60) as client:
            while not over.is_set():
                m, a, b, c = rng.choice("pq"), *rng.sample("abcd", 3)
                dag = f"AI.DAGEXECUTE LOAD 1 {a} PERSIST 1 {c} |> AI.MODELEXECUTE {m} INPUTS 1 {a} OUTPUTS 1 {c}".split()
                reply = client.only_reply(*(dag if n % 2 else execute(m, a, b)))
                done[0] += 1
                if isinstance(reply, Error) and not reply.text.startswith(
                    ("ERR model key is empty", "ERR tensor key is empty", "WRONGTYPE", "ERR writes are paused", "LOADING")
                ):
                    unexpected.append(reply)

    with Wire(server.port, timeout=60) as admin, Wire(replica.port, timeout=60) as r:
        wait_until(lambda: b"master_link_status:up" in r("INFO", "replication"), "the link")
        threads = [threading.Thread(target=runs, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(250):
            for name in "pq":
                admin("AI.MODELSTORE", name, "ONNX", "CPU", "BLOB", model) if rng.random() < 0.3 else None
            for name in "abcd":
                admin("AI.TENSORSET", name, "INT64", 1, "VALUES", 1) if rng.random() < 0.3 else None
            admin(*words(rng.choice(DEEDS)))
        over.set()
        for thread in threads:
            thread.join(60)
        assert not unexpected, unexpected[:3]
        assert done[0] > 250
        admin("CLIENT", "UNPAUSE")
        wait_gone(admin)
        assert admin("WAIT", 1, 30_000) == 1
        for database in (0, 1):
            admin("SELECT", database)
            for key in admin("KEYS", "*"):
                admin("PERSIST", key)  # none may expire between two looks
        admin("SELECT", 0)
        wait_until(lambda: admin("DEBUG", "DIGEST") == r("DEBUG", "DIGEST"), "equal digests")
        before = admin("DEBUG", "DIGEST")
        assert admin("DEBUG", "LOADAOF") == OK
        assert admin("DEBUG", "DIGEST") == before
        assert admin("FLUSHALL") == OK
        wait_until(lambda: info(admin, "ONNX_sessions") == 0, "every session closed")


def test_an_evicted_input_is_still_there_for_the_run_that_took_it(start_server: Callable[..., Server], tmp_path: Path) -> None:
    server = start_server("--maxmemory-policy", "allkeys-random")
    with Wire(server.port) as wire, Wire(server.port) as client:
        gate = Gate(wire, tmp_path / "gate", "gate")
        assert wire("AI.TENSORSET", "in", "UINT8", 3_000_000) == OK
        client.send(*execute("gate", "in", "out"))
        wait_running(wire)
        used = int(next(line for line in wire("INFO", "memory").decode().splitlines() if line.startswith("used_memory:")).split(":")[1])
        assert wire("CONFIG", "SET", "maxmemory", used // 2) == OK
        wait_until(lambda: wire("EXISTS", "in", "gate") == 0 or wire("SET", "more", "x" * 1000) is None, "the eviction of both")
        assert wire("CONFIG", "SET", "maxmemory", 0) == OK
        gate.open()
        assert client.read() == OK
        assert wire("AI.TENSORGET", "out", "META") == [b"dtype", b"UINT8", b"shape", [3_000_000]]


def test_unlinked_models_are_freed_in_the_background_while_they_run(server: Server, wire: Wire) -> None:
    """Values of more than 64 units of effort are freed by the server's lazy-free thread; the loader closes their sessions meanwhile."""
    put(wire, "in", 1)
    blob = echo_model() + " " * 5_000_000
    over = threading.Event()

    def runs() -> None:
        with Wire(server.port) as client:
            while not over.is_set():
                client(*execute("big", "in", "out"))

    threads = [threading.Thread(target=runs) for _ in range(3)]
    for thread in threads:
        thread.start()
    freed = int(fields(wire, "memory")["lazyfreed_objects"])
    for _ in range(25):
        assert wire("AI.MODELSTORE", "big", "ONNX", "CPU", "BLOB", blob) == OK
        assert wire("UNLINK", "big") == 1
    over.set()
    for thread in threads:
        thread.join()
    wait_until(lambda: int(fields(wire, "memory")["lazyfreed_objects"]) >= freed + 25, "the lazy-free thread")
    wait_until(lambda: info(wire, "ONNX_sessions") == 0, "every session closed")


def fields(wire: Wire, section: str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in wire("INFO", section).decode().splitlines() if ":" in line)


def test_statistics_go_with_their_keys(wire: Wire) -> None:
    """Ten thousand names that come, run, are renamed and go leave no memory behind."""
    put(wire, "in", 1)
    store(wire, "m")

    def turn(n: int) -> None:
        wire("COPY", "m", f"m{n}")
        wire(*execute(f"m{n}", "in", "out"))
        wire("RENAME", f"m{n}", f"renamed{n}")
        assert wire("AI.INFO", f"renamed{n}")[15] == 1
        wire("DEL", f"renamed{n}")
        assert isinstance(wire("AI.INFO", f"renamed{n}"), Error)

    for n in range(300):
        turn(n)
    wait_until(lambda: info(wire, "ONNX_sessions") == 1, "closed sessions")
    before = int(fields(wire, "memory")["used_memory"])
    for n in range(300, 1300):
        turn(n)
    wait_until(lambda: info(wire, "ONNX_sessions") == 1, "closed sessions")
    wait_until(lambda: int(fields(wire, "memory")["used_memory"]) < before + 64 * 1024, "the memory")


def test_an_output_over_an_expired_key_is_a_new_key(wire: Wire) -> None:
    """Keys whose time has passed, which the server has not yet removed."""
    wire("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    try:
        store(wire, "m")
        put(wire, "in", 1)
        put(wire, "out", 2)
        wire("SET", "string", "x")
        for key in ("out", "string"):
            wire("PEXPIRE", key, 1)
        wait_until(lambda: wire("EXISTS", "out", "string") == 0)
        assert wire(*execute("m", "in", "out")) == OK
        assert wire(*execute("m", "in", "string")) == OK
        assert (wire("TTL", "out"), wire("TTL", "string"), get(wire, "string")) == (-1, -1, [1])
        wire("PEXPIRE", "in", 1)
        wait_until(lambda: wire("PTTL", "in") == -2)
        assert isinstance(wire(*execute("m", "in", "out")), Error)
    finally:
        wire("DEBUG", "SET-ACTIVE-EXPIRE", 1)


# ---- the server is busy, or loads -------------------------------------------------------------------------------------------


def test_a_server_that_sleeps_answers_each_run_once_when_it_wakes(server: Server, wire: Wire, tmp_path: Path) -> None:
    """Runs end, queue and time out while the main thread does nothing."""
    gate = Gate(wire, tmp_path / "gate", "gate")
    store(wire, "m")
    put(wire, "in", 4)
    with Wire(server.port) as first, Wire(server.port) as late, Wire(server.port) as patient:
        first.send(*execute("gate", "in", "a"))
        wait_running(wire)
        late.send(*execute("m", "in", "b", "TIMEOUT", 100))
        patient.send(*execute("m", "in", "c"))
        wait_queued(wire, 2)
        wire.send("DEBUG", "SLEEP", 0.7)
        threading.Timer(0.3, gate.open).start()
        assert wire.read() == OK
        assert (first.read(), late.read(), patient.read()) == (OK, Status("TIMEDOUT"), OK)
        assert (get(wire, "a"), get(wire, "b"), get(wire, "c")) == ([4], None, [4])


def test_a_reload_under_runs_changes_none_of_them(server: Server, wire: Wire, tmp_path: Path) -> None:
    gate = Gate(wire, tmp_path / "gate", "gate")
    store(wire, "m")
    put(wire, "in", 4)
    with Wire(server.port) as running, Wire(server.port) as queued:
        running.send(*execute("gate", "in", "a"))
        wait_running(wire)
        queued.send(*execute("m", "in", "b"))
        wait_queued(wire, 1)
        assert wire("DEBUG", "RELOAD") == OK
        gate.open()
        assert (running.read(), queued.read()) == (OK, OK)
        assert (get(wire, "a"), get(wire, "b")) == ([4], [4])
        assert wire(*execute("m", "a", "c")) == OK


LOCKS = """
def calls(tensors: List[Tensor], keys: List[str], args: List[str]):
    for i in range(200):
        redis.execute('INCR', keys[0])
        redis.execute('AI.TENSORGET', keys[1], 'BLOB')
"""


@pytest.mark.needs_torch
@pytest.mark.needs_onnx
def test_no_lock_is_waited_for_while_another_is_held(real_server: Server) -> None:
    """Scripts take the server's lock from two workers, models hold the interpreter, the main thread sleeps, forks, lists and configures:
    whoever waited for one lock while holding another would end all of it."""
    over = threading.Event()
    replies: list[Any] = []

    def again(*words: Any) -> None:
        with Wire(real_server.port, timeout=60) as client:
            while not over.is_set():
                replies.append(client(*words))

    with Wire(real_server.port, timeout=120) as wire:
        for device in ("CPU", "CPU:1"):
            assert wire("AI.SCRIPTSTORE", f"s{device}", device, "ENTRY_POINTS", 1, "calls", "SOURCE", LOCKS) == OK
            assert wire("AI.MODELSTORE", f"m{device}", "ONNX", device, "BLOB", (EXAMPLE_MODELS / "digits.onnx").read_bytes()) == OK
        assert wire("AI.TENSORSET", "x", "FLOAT", 8, 64) == OK
        jobs = [("AI.SCRIPTEXECUTE", f"s{d}", "calls", "KEYS", 2, f"n{d}", "x") for d in ("CPU", "CPU:1")]
        jobs += [execute(f"m{d}", "x", f"y{d}") for d in ("CPU", "CPU:1")]
        threads = [threading.Thread(target=again, args=job) for job in jobs * 2]
        for thread in threads:
            thread.start()
        for turn in range(40):
            wire("DEBUG", "SLEEP", 0.01)
            wire("INFO", "everything")
            wire("AI._MODELSCAN")
            wire("AI.MODELGET", "mCPU", "META")
            assert wire("AI.TENSORSET", f"t{turn}", "FLOAT", 1) == OK
            wire("BGSAVE") if turn % 10 == 0 else None
        over.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "somebody waits for ever"
    assert len(replies) >= len(threads) and set(replies) == {OK}


# ---- the end that is called off ---------------------------------------------------------------------------------------------


@since_7
def test_a_shutdown_that_is_aborted_leaves_everything_working(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """It waits for a replica that lags; meanwhile a run ends, and its output is there once the server has stayed."""
    master = start_server("--shutdown-timeout", "60", "--repl-diskless-sync-delay", "0")
    replica = start_server("--replicaof", "127.0.0.1", str(master.port))
    with Wire(master.port) as wire, Wire(master.port) as runner, Wire(master.port) as ending:
        wait_until(lambda: "online" in fields(wire, "replication").get("slave0", ""), "the replica")
        gate = Gate(wire, tmp_path / "gate", "gate")
        put(wire, "in", 4)
        runner.send(*execute("gate", "in", "a"))
        wait_running(wire)
        assert replica.process is not None
        replica.process.send_signal(signal.SIGSTOP)
        try:
            assert wire("SET", "more", "data") == OK
            ending.send("SHUTDOWN")
            wait_until(lambda: wire("SHUTDOWN", "ABORT") == OK, "a shutdown to abort")
            assert isinstance(ending.read(), Error)
            gate.open()
            assert runner.read() == OK
            assert get(wire, "a") == [4]
            store(wire, "after")
            assert wire(*execute("after", "in", "b")) == OK
        finally:
            replica.process.send_signal(signal.SIGCONT)
        wait_until(lambda: wire("WAIT", 1, 100) == 1, "the replica")
    assert master.stop() == 0


@pytest.mark.parametrize("doing", ["BGSAVE", "BGREWRITEAOF", "opening a model", "a run without end"])
@pytest.mark.parametrize("how", ["SIGTERM", "SHUTDOWN SAVE"])
def test_a_stop_in_the_middle_is_clean(start_server: Callable[..., Server], tmp_path: Path, doing: str, how: str) -> None:
    """Status 0, no report of a crash, no child left, and all that was acknowledged is there again."""
    delay = ("--rdb-key-save-delay", "20000") if doing.startswith("BG") else ()  # microseconds per key
    server = start_server("--appendonly", "yes", "--aof-use-rdb-preamble", "no", *delay)
    with Wire(server.port) as wire, Wire(server.port) as other:
        store(wire, "m")
        for n in range(20):
            put(wire, f"t{n}", n)
        child: list[int] = []
        if doing == "opening a model":
            other.send("AI.MODELSTORE", "n", "ONNX", "CPU", "BLOB", echo_model(open_gate=str(tmp_path / "never")))
            wait_until(lambda: info(wire, "loads_in_progress") == 1)
        elif doing == "a run without end":
            Gate(wire, tmp_path / "never", "gate")
            other.send(*execute("gate", "t1", "y"))
            wait_running(wire)
        else:
            wire(doing)
            child = wait_until(server.children, "the child")
        before = wire("DEBUG", "DIGEST")
        if how.startswith("SIG"):
            status = server.stop(getattr(signal, how))
        else:
            wire.send(*how.split())
            assert server.process is not None
            status = server.process.wait(60)
    assert status == 0
    assert "crashed by signal" not in server.log()
    for pid in child:
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists() or "Z (zombie)" in Path(f"/proc/{pid}/status").read_text(), "its end")
    server.start()
    with Wire(server.port) as wire:
        assert wire("DEBUG", "DIGEST") == before


def test_the_module_is_loaded_once_and_stays(wire: Wire) -> None:
    """Its types are in the keyspace: the server unloads no such module, and refuses a second one of its name."""
    put(wire, "in", 3)
    store(wire, "m")
    for _ in range(2):
        assert isinstance(wire("MODULE", "UNLOAD", "ai"), Error)
        assert isinstance(wire("MODULE", "LOAD", wire("MODULE", "LIST")[0][5]), Error)
        assert wire(*execute("m", "in", "out")) == OK
    assert len(wire("MODULE", "LIST")) == 1


def test_what_a_library_does_at_its_end_does_not_keep_the_server(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """A package that waits in atexit and leaves a thread running that nobody joins."""
    python = make_environment(tmp_path / "env", "redisai_py", *NUMPY)
    package = tmp_path / "env" / SITE / "onnxruntime"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import atexit, threading, time\n"
        "atexit.register(time.sleep, 600)\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        f"open({str(tmp_path / 'imported')!r}, 'w')\n"
        "raise ImportError('enough')\n"
    )
    server = start_server(module_args=("PYTHON", str(python)), echo=False)
    with Wire(server.port) as wire:
        assert wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", "x") == Error("ERR Could not load backend")
    assert (tmp_path / "imported").exists()
    assert server.stop(patience=20) == 0


CONSTRUCTOR = """
#include <fcntl.h>
__attribute__((constructor)) static void loaded(void) { open(CANARY, O_CREAT | O_WRONLY, 0600); }
"""


def test_no_path_makes_the_server_load_a_library(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """A library that tells when it is loaded lies wherever AI.CONFIG LOADBACKEND could be sent: by path, by name, below BACKENDSPATH."""
    (tmp_path / "redisai_onnxruntime").mkdir()
    (tmp_path / "lib.c").write_text(CONSTRUCTOR)
    canary = f'-DCANARY="{tmp_path / "canary"}"'
    library = tmp_path / "redisai_onnxruntime" / "redisai_onnxruntime.so"
    subprocess.run(["cc", "-shared", "-fPIC", canary, "-o", library, tmp_path / "lib.c"], check=True)
    shutil.copy(library, tmp_path / "redisai_onnxruntime.so")
    server = start_server(directory=tmp_path, module_args=("BACKENDSPATH", str(tmp_path)))
    with Wire(server.port) as wire:
        for path in (library, tmp_path / "redisai_onnxruntime.so", "./redisai_onnxruntime.so", "redisai_onnxruntime.so"):
            wire("AI.CONFIG", "LOADBACKEND", "ONNX", str(path))
        assert wire("AI.CONFIG", "BACKENDSPATH", str(tmp_path)) == OK
        wire("AI.CONFIG", "LOADBACKEND", "ONNX", "redisai_onnxruntime/redisai_onnxruntime.so")
        store(wire, "m")
        assert wire("ACL", "SETUSER", "writer", "on", "nopass", "~*", "+@write", "-@dangerous", "-@admin") == OK
        with Wire(server.port) as writer:
            assert writer("AUTH", "writer", "x") == OK
            assert writer("AI.CONFIG", "LOADBACKEND", "TORCH", str(library)).text.startswith("NOPERM")
        assert str(library) not in Path(f"/proc/{server.pid}/maps").read_text()
    assert not (tmp_path / "canary").exists()


# ---- what others may read ---------------------------------------------------------------------------------------------------


def test_no_report_holds_what_a_tensor_or_a_model_holds(start_server: Callable[..., Server]) -> None:
    """The log of a run that fails, of a value that is refused, and the report of a crash; MONITOR shows arguments, as it does of all."""
    server = start_server("--loglevel", "debug", "--crash-memcheck-enabled", "no")
    secret = b"s3cr3t" * 1000
    assert server.process is not None
    with Wire(server.port) as wire, Wire(server.port) as runner:
        store(wire, "bad", "raise", text="no")
        store(wire, "slow", "sleep", seconds=60)
        assert wire("AI.TENSORSET", "x", "UINT8", 1, len(secret), "BLOB", secret) == OK
        assert isinstance(wire(*execute("bad", "x", "y")), Error)
        assert isinstance(wire("AI.TENSORSET", "x", "UINT8", 7, "BLOB", secret), Error)
        assert isinstance(wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", secret), Error)
        assert isinstance(wire("RESTORE", "r", 0, secret), Error)
        runner.send(*execute("slow", "x", "y"))
        wait_running(wire)
        wire.send("DEBUG", "SEGFAULT")
        server.process.wait(60)
    assert "crashed by signal" in server.log()
    assert "s3cr3ts3cr3t" not in server.log()


# ---- TLS --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate that signs itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    line = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(line, cwd=folder, check=True, capture_output=True)
    return folder


def test_everything_works_over_tls_with_io_threads(start_server: Callable[..., Server], certificate: Path) -> None:
    """Large arguments and replies, pipelines, clients that leave in a run, and a replica whose link is encrypted too."""
    cert, key = str(certificate / "cert.pem"), str(certificate / "key.pem")
    options = ("--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert, "--tls-auth-clients", "no", "--io-threads", "4")
    linked = subprocess.run(["ldd", str(default_binary())], capture_output=True, text=True)
    if "libssl" not in linked.stdout:
        pytest.skip("needs a server with TLS")
    tls = free_port()
    start_server("--tls-port", str(tls), "--repl-diskless-sync-delay", "0", *options)
    replica = start_server(*options, "--tls-replication", "yes", "--repl-diskless-load", "swapdb", "--replicaof", "127.0.0.1", str(tls))

    def client() -> redis.Redis:
        return redis.Redis(port=tls, ssl=True, ssl_ca_certs=cert, ssl_cert_reqs=ssl.CERT_REQUIRED, socket_timeout=60)

    blob = np.random.default_rng(1).bytes(3_000_000)
    wrong: list[Any] = []

    def work(n: int) -> None:
        with client() as c, c.pipeline(transaction=False) as pipeline:
            for _ in range(5):
                pipeline.execute_command("AI.TENSORSET", f"x{n}", "UINT8", len(blob), "BLOB", blob)
                pipeline.execute_command(*execute("m", f"x{n}", f"y{n}"))
                pipeline.execute_command("AI.TENSORGET", f"y{n}", "BLOB")
                replies = pipeline.execute()
                if replies != [b"OK", b"OK", blob]:
                    wrong.append([str(reply)[:80] for reply in replies])

    with client() as c:
        c.execute_command("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model(), " " * 3_000_000)
        c.execute_command("AI.MODELSTORE", "slow", "ONNX", "CPU:1", "BLOB", echo_model("sleep", seconds=0.3))
        c.execute_command("AI.TENSORSET", "in", "FLOAT", 1)
        leaving = client().connection_pool.get_connection()
        leaving.send_command(*execute("slow", "in", "never"))
        wait_until(lambda: c.info("everything")["ai_jobs_in_flight"] == 1, "the run")
        leaving.disconnect()
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong, wrong[:2]
        wait_until(lambda: c.info("everything")["ai_jobs_in_flight"] == 0, "the last run")
        assert c.exists("never") == 0
        with replica.client() as r:
            wait_until(lambda: r.info("replication")["master_link_status"] == "up", "the encrypted link")
            wait_until(lambda: r.execute_command("DEBUG DIGEST") == c.execute_command("DEBUG DIGEST"), "equal digests")


# ---- numbers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.needs_onnx
@pytest.mark.needs_torch
@pytest.mark.needs_tflite
def test_the_same_input_has_the_same_answer_ten_thousand_times(real_server: Server) -> None:
    """To the bit, from clients at once, on three libraries; in batches, whose size a library may round by, to seven digits."""
    row = np.random.default_rng(3).standard_normal((1, 64)).astype("<f4")
    digits = {"ONNX": "digits.onnx", "TORCH": "digits.pt", "TFLITE": "digits.tflite"}
    answers: dict[str, set[bytes]] = {name: set() for name in (*digits, "batched")}
    asked = [0]
    with Wire(real_server.port, timeout=120) as wire:
        for backend, file in digits.items():
            assert wire("AI.MODELSTORE", backend, backend, "CPU", "BLOB", (EXAMPLE_MODELS / file).read_bytes()) == OK
        blob = (EXAMPLE_MODELS / "digits.onnx").read_bytes()
        assert wire("AI.MODELSTORE", "batched", "ONNX", "CPU", "BATCHSIZE", 16, "BLOB", blob) == OK
        assert wire("AI.TENSORSET", "x", "FLOAT", 1, 64, "BLOB", row.tobytes()) == OK

    def ask() -> None:
        with Wire(real_server.port, timeout=120) as client:
            for _ in range(25):
                for model in answers:
                    dag = f"AI.DAGEXECUTE_RO LOAD 1 x |> AI.MODELEXECUTE {model} INPUTS 1 x OUTPUTS 1 y |> AI.TENSORGET y BLOB".split()
                    for _ in range(25):
                        client.send(*dag)
                    for _ in range(25):
                        answers[model].add(client.read()[1])
                        asked[0] += 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked[0] == 10_000
    for backend in digits:
        assert len(answers[backend]) == 1, backend
    (alone,) = (np.frombuffer(answer, "<f4") for answer in answers["ONNX"])
    for answer in answers["batched"]:
        np.testing.assert_allclose(np.frombuffer(answer, "<f4"), alone, rtol=1e-5, atol=1e-7)
