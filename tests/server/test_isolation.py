"""ISOLATION process: whatever happens to a helper, the server lives, its clients get one error each, and the next request is answered."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import echo_model
from servers import EXAMPLE_MODELS, MODELS, Server, running, wait_until
from wire import OK, Error, Wire

ARGS = ("ISOLATION", "process")
CPU = "ERR the process of the backends on CPU "


@pytest.fixture(scope="module")
def isolated() -> Iterator[Server]:
    with running(module_args=ARGS) as server:
        with Wire(server.port) as wire:
            store(wire, "good")
            wire("AI.TENSORSET", "x", "FLOAT", 2, 1, "VALUES", 1, 2)
        pid = server.pid
        yield server
        assert server.alive() and server.pid == pid


@pytest.fixture
def wire(isolated: Server) -> Iterator[Wire]:
    with Wire(isolated.port) as wire:
        yield wire


def store(wire: Wire, key: str, op: str = "echo", *options: Any, device: str = "CPU", **model: Any) -> Any:
    reply = wire("AI.MODELSTORE", key, "ONNX", device, *options, "BLOB", echo_model(op, **model))
    assert reply == OK, reply
    return reply


def execute(key: str, output: str = "y") -> tuple[Any, ...]:
    return ("AI.MODELEXECUTE", key, "INPUTS", 1, "x", "OUTPUTS", 1, output)


def helpers(server: Server) -> list[psutil.Process]:
    """Processes of helpers, dead ones that nobody collected included."""
    return psutil.Process(server.pid).children()


def started(server: Server) -> int:
    return int(server.client().info("ai_isolation")["ai_helpers_started"])


def well(wire: Wire) -> None:
    """A run of a good model succeeds."""
    assert wire("DEL", "well") in (0, 1)
    assert wire(*execute("good", "well")) == OK
    assert wire("AI.TENSORGET", "well", "VALUES") == [b"1", b"2"]


# ---- crashes ----------------------------------------------------------------------------------------------------------------------------

CRASHES = {
    "segfault": ({}, "was ended by SIGSEGV"),
    "abort": ({}, "was ended by SIGABRT"),
    "exit": ({"status": 3}, "ended with status 3"),
    "overflow": ({}, "was ended by SIGSEGV"),
    "kill": ({}, "was killed by SIGKILL: the system may be out of memory"),
}


@pytest.mark.parametrize("op", CRASHES)
def test_a_backend_that_dies_costs_one_error_and_the_next_request_is_answered(isolated: Server, wire: Wire, op: str) -> None:
    options, how = CRASHES[op]
    store(wire, "bad", op, **options)
    wire("DEL", "y")
    assert wire(*execute("bad")) == Error(CPU + how)
    assert wire("EXISTS", "y") == 0
    assert wire("PING").text == "PONG"
    well(wire)
    assert wire("AI.INFO", "bad")[-1] == 1  # errors


def test_models_are_opened_again_and_nothing_is_left_of_the_dead(isolated: Server, wire: Wire) -> None:
    """Neither a process nor a descriptor; two rounds, because the first leaves what every later one replaces."""
    store(wire, "bad", "segfault")
    counts = []
    for _ in range(2):
        wire(*execute("bad"))
        well(wire)
        wait_until(lambda: [p.status() for p in helpers(isolated)].count(psutil.STATUS_ZOMBIE) == 0)
        assert len(helpers(isolated)) == 1
        counts.append(len(list(Path(f"/proc/{isolated.pid}/fd").iterdir())))
    assert counts[0] == counts[1]


def test_a_backend_that_dies_while_it_opens_is_an_error_of_the_store(isolated: Server, wire: Wire) -> None:
    wire("DEL", "bad")
    before = started(isolated)
    reply = wire("AI.MODELSTORE", "bad", "ONNX", "CPU", "BLOB", echo_model("echo", open_exit=7))
    assert reply == Error(CPU + "ended with status 7")
    assert wire("EXISTS", "bad") == 0
    well(wire)
    assert started(isolated) == before + 1


def test_requests_of_a_batch_share_the_error_and_are_not_tried_again(isolated: Server, wire: Wire) -> None:
    store(wire, "bad", "segfault", "BATCHSIZE", 6, "MINBATCHSIZE", 6)
    before = started(isolated)
    clients = [Wire(isolated.port) for _ in range(3)]
    for number, client in enumerate(clients):
        client.send(*execute("bad", f"y{number}"))
    assert [client.read() for client in clients] == [Error(CPU + "was ended by SIGSEGV")] * 3
    well(wire)
    assert started(isolated) == before + 1
    for client in clients:
        client.close()


def test_a_device_does_not_share_the_fate_of_another(isolated: Server, wire: Wire, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    store(wire, "waits", "gate", path=str(gate), device="CPU:1")
    store(wire, "bad", "abort")
    with Wire(isolated.port) as other:
        other.send(*execute("waits", "z"))
        assert wire(*execute("bad")) == Error(CPU + "was ended by SIGABRT")
        gate.touch()
        assert other.read() == OK


def test_a_model_that_kills_each_time_is_left_alone_for_a_while(isolated: Server, wire: Wire) -> None:
    store(wire, "bad", "kill")
    before = started(isolated)
    killed, replies = Error(CPU + CRASHES["kill"][1]), [wire(*execute("bad")) for _ in range(5)]
    refused = re.compile(r"ERR 3 runs in a row ended the process of the backends: refused, and tried again in [01] s")
    assert replies[:3] == [killed] * 3
    assert all(refused.fullmatch(reply.text) for reply in replies[3:])
    well(wire)
    assert started(isolated) == before + 3
    assert wait_until(lambda: (reply := wire(*execute("bad"))) == killed and reply) == killed
    assert re.match("ERR 4 runs in a row", wire(*execute("bad")).text)


def test_a_helper_that_dies_between_requests_is_replaced_before_the_next(isolated: Server, wire: Wire) -> None:
    well(wire)
    before = started(isolated)
    (helper,) = (p for p in helpers(isolated) if p.pid == served(isolated, "CPU"))
    helper.kill()
    wait_until(lambda: started(isolated) == before + 1)
    well(wire)


def test_one_that_dies_before_it_served_is_replaced_when_somebody_asks(isolated: Server, wire: Wire) -> None:
    """Else a helper that dies of what it imports at its start would be started for ever."""
    well(wire)
    before = started(isolated)
    psutil.Process(served(isolated, "CPU")).kill()
    wait_until(lambda: started(isolated) == before + 1)
    wait_until(lambda: served(isolated, "CPU") in [p.pid for p in helpers(isolated)])
    psutil.Process(served(isolated, "CPU")).kill()
    wait_until(lambda: served(isolated, "CPU") not in [p.pid for p in helpers(isolated)])
    assert started(isolated) == before + 1
    well(wire)
    assert started(isolated) == before + 2


def served(server: Server, device: str) -> int:
    """The process that the log names last for a device."""
    return int(re.findall(rf"process (\d+) serves {re.escape(device)}\n", server.log())[-1])


def test_a_save_that_collects_our_children_and_holds_our_sockets_is_no_hindrance(isolated: Server, wire: Wire) -> None:
    """While Redis saves, it waits for any child; and its saving child has copies of every descriptor."""
    store(wire, "bad", "abort")
    assert wire("CONFIG", "SET", "rdb-key-save-delay", 200000) == OK
    try:
        wire("BGSAVE")
        for _ in range(2):
            assert wire(*execute("bad")).text.startswith(CPU)
            well(wire)
        assert isolated.client().info("persistence")["rdb_bgsave_in_progress"] == 1
    finally:
        wire("CONFIG", "SET", "rdb-key-save-delay", 0)
    wait_until(lambda: not isolated.client().info("persistence")["rdb_bgsave_in_progress"])
    assert isolated.client().info("persistence")["rdb_last_bgsave_status"] == "ok"


# ---- what a helper says -----------------------------------------------------------------------------------------------------------------

NONSENSE = {
    "no json": "D{",
    "another kind": "Z[[],[]]",
    "no answer's form": "D[[1],[]]",
    "numbers that are none": 'D[["a","b",null],[]]',
    "a tensor outside": 'D[[0,0,null],[["FLOAT",[1000000000000],0,4000000000000]]]',
    "bytes that do not fit": 'D[[0,0,null],[["FLOAT",[2,1],0,9]]]',
    "negative dims": 'D[[0,0,null],[["FLOAT",[-1,-2],0,8]]]',
    "a place outside": "\0D" + "\xff" * 16,
    "a command of a model": 'E[["FLUSHALL"],[]]',
    "memory without end": "G[[123456789012345678],[]]",
    "an unknown error": 'F[[0,0,"SystemError","x"],[]]',
    "deep": "D" + "[" * 30000,
}


@pytest.mark.parametrize("text", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_ends_the_helper_and_nothing_else(isolated: Server, wire: Wire, text: str) -> None:
    store(wire, "bad", "nonsense", text=text)
    wire("DEL", "y")
    assert wire(*execute("bad")) == Error(CPU + "sent an answer that makes no sense and was ended")
    assert wire("EXISTS", "y") == 0
    well(wire)


def test_bytes_of_a_bool_are_0_or_1_whatever_a_helper_writes(isolated: Server, wire: Wire) -> None:
    store(wire, "liar", "bools")
    assert wire(*execute("liar")) == OK
    assert wire("AI.TENSORGET", "y", "BLOB") == b"\1\1"


TOO_LONG = Error("ERR the run took longer than MODEL_EXECUTION_TIMEOUT and was ended with its process")


# ---- limits -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited() -> Iterator[Server]:
    """A server whose runs have a second. Each test stores its model anew, so that no run has to open one."""
    with running(module_args=(*ARGS, "MODEL_EXECUTION_TIMEOUT", "1000")) as server:
        with Wire(server.port) as wire:
            store(wire, "good")
            wire("AI.TENSORSET", "x", "FLOAT", 2, 1, "VALUES", 1, 2)
        yield server


@pytest.mark.parametrize(
    "model", [{"op": "spin", "seconds": 60}, {"op": "sleep", "seconds": 60}, {"op": "spin", "seconds": 60, "terminable": True}]
)
def test_a_run_past_the_limit_ends_with_its_process(limited: Server, model: dict[str, Any]) -> None:
    """A library that can be asked is asked first; one that holds the GIL does not hear it."""
    with Wire(limited.port) as wire:
        store(wire, "slow", **model)
        began = time.monotonic()
        assert wire(*execute("slow")) == TOO_LONG
        assert time.monotonic() - began >= 1
        well(wire)


def test_a_run_that_can_be_asked_to_end_costs_no_process(limited: Server) -> None:
    with Wire(limited.port) as wire:
        store(wire, "slow", "sleep", seconds=60, terminable=True)
        before = started(limited)
        assert wire(*execute("slow")) == Error("Exiting due to terminate flag being set to true.")
        well(wire)
        assert started(limited) == before


def test_an_opening_in_front_of_a_run_does_not_count(limited: Server) -> None:
    """It may import a library, which takes as long as it takes. What follows has its limit as ever."""
    with Wire(limited.port) as wire:
        store(wire, "opens, spins", "spin", seconds=60, open_sleep=1.2)
        store(wire, "bad", "abort")
        assert wire(*execute("bad")) == Error(CPU + "was ended by SIGABRT")
        assert wire(*execute("opens, spins")) == TOO_LONG


# ---- tensors ----------------------------------------------------------------------------------------------------------------------------


def test_tensors_of_every_size_cross_and_memory_is_given_back(isolated: Server, wire: Wire) -> None:
    for size in (0, 1, 1000, 3 << 20, 80 << 20):
        blob = os.urandom(min(size, 4096)) * (size // 4096 if size > 4096 else 1)
        wire("AI.TENSORSET", "big", "UINT8", len(blob) or 1, *(("BLOB", blob) if blob else ()))
        assert wire("AI.MODELEXECUTE", "good", "INPUTS", 1, "big", "OUTPUTS", 1, "out") == OK
        assert wire("AI.TENSORGET", "out", "BLOB") == (blob or b"\0")
    wire("DEL", "big", "out")
    well(wire)  # the next run gives back what the last one left
    shared = sum(m.pss for m in psutil.Process(served(isolated, "CPU")).memory_maps() if "memfd:redisai" in m.path)
    assert shared < 150 << 20


def test_strings_and_scalars_cross(isolated: Server, wire: Wire) -> None:
    assert wire("AI.TENSORSET", "s", "STRING", 2, 2, "BLOB", b"\0a\0\xff\0" + b"b" * 100 + b"\0") == OK
    assert wire("AI.MODELEXECUTE", "good", "INPUTS", 1, "s", "OUTPUTS", 1, "out") == OK
    assert wire("AI.TENSORGET", "out", "VALUES") == [b"", b"a", b"\xff", b"b" * 100]
    for dtype in ("DOUBLE", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "BOOL"):
        wire("AI.TENSORSET", "s", dtype, 1, 1, 2, "VALUES", 1, 0)
        assert wire("AI.MODELEXECUTE", "good", "INPUTS", 1, "s", "OUTPUTS", 1, "out") == OK
        assert wire("AI.TENSORGET", "out", "META", "VALUES") == wire("AI.TENSORGET", "s", "META", "VALUES")


# ---- the end ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_no_helper_survives_the_server(start_server: Callable[..., Server], tmp_path: Path, sig: int) -> None:
    """One busy, one held by its own GIL, while a saving child holds the sockets that would tell them."""
    server = start_server("--rdb-key-save-delay", "10000000", module_args=ARGS)
    with Wire(server.port) as wire, Wire(server.port) as first, Wire(server.port) as second:
        wire("AI.TENSORSET", "x", "FLOAT", 2, "VALUES", 1, 2)
        store(wire, "waits", "gate", path=str(tmp_path / "gate"))
        store(wire, "spins", "spin", seconds=600, device="CPU:1")
        first.send(*execute("waits"))
        second.send(*execute("spins"))
        wait_until(lambda: server.client().info("ai_runtime")["ai_jobs_in_flight"] == 2)
        children = helpers(server)
        assert len(children) == 2
        if sig == signal.SIGKILL:
            wire("BGSAVE")
            wait_until(lambda: len(helpers(server)) == 3)
        saving = [child for child in helpers(server) if child not in children]
        os.kill(server.pid, sig)
        _, alive = psutil.wait_procs(children, 30)
        for child in saving:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        assert not alive


def test_the_setting_is_shown(isolated: Server, wire: Wire, start_server: Callable[..., Server]) -> None:
    assert wire("AI.CONFIG", "GET", "ISOLATION") == b"process"
    assert wire("CONFIG", "GET", "ai.isolation") == [b"ai.isolation", b"process"]
    shown = isolated.client().info("ai_isolation")
    assert shown["ai_isolation"] == "process"
    assert shown["ai_helpers_started"] == shown["ai_helpers_ended"] + shown["ai_helpers"]
    plain = start_server()
    assert plain.client().execute_command("AI.CONFIG", "GET", "ISOLATION") == b"none"
    assert plain.client().info("ai_isolation")["ai_helpers_started"] == 0
    with pytest.raises(AssertionError, match="error processing argument: ISOLATION thread"):
        start_server(module_args=("ISOLATION", "thread"))


# ---- a library --------------------------------------------------------------------------------------------------------------------------

SCRIPT = """
def calls(tensors: List[Tensor], keys: List[str], args: List[str]):
    redis.execute("SET", keys[0], args[0])
    value = redis.asList(redis.execute("MGET", keys[0], "nothing"))
    redis.execute("SET", keys[1], str(len(value)))
    return redisAI.model_execute("digits", tensors, 1)[0] + tensors[0].sum() * 0

def loops(tensors: List[Tensor], keys: List[str], args: List[str]):
    n = tensors[0]
    while bool((n > -1).any()):
        n = n + 1
    return n

def denied(tensors: List[Tensor], keys: List[str], args: List[str]):
    redis.execute("FLUSHALL")
    return tensors[0]
"""


@pytest.fixture(scope="module")
def real() -> Iterator[Server]:
    with running(module_args=(*ARGS, "MODEL_EXECUTION_TIMEOUT", "1000", "SANDBOX", "yes"), echo=False) as server:
        yield server


@pytest.mark.needs_torch
def test_real_libraries_scripts_and_their_calls_work_and_survive(real: Server) -> None:
    with Wire(real.port) as wire:
        digits = (EXAMPLE_MODELS / "digits.onnx").read_bytes()
        assert wire("AI.MODELSTORE", "digits", "ONNX", "CPU", "BLOB", digits) == OK
        store_script = ("AI.SCRIPTSTORE", "script", "CPU", "ENTRY_POINTS", 3, "calls", "loops", "denied", "SOURCE", SCRIPT)
        assert wire(*store_script) == OK
        assert wire("AI.TENSORSET", "x", "FLOAT", 1, 64, "BLOB", b"\0" * 256) == OK
        run = ("AI.SCRIPTEXECUTE", "script", "calls", "KEYS", 2, "k", "n", "INPUTS", 1, "x", "ARGS", 1, "\u00e9", "OUTPUTS", 1, "y")
        assert wire(*run) == OK
        assert (wire("GET", "k"), wire("GET", "n")) == ("\u00e9".encode(), b"2")
        assert wire("AI.MODELEXECUTE", "digits", "INPUTS", 1, "x", "OUTPUTS", 1, "z") == OK
        assert wire("AI.TENSORGET", "y", "BLOB") == wire("AI.TENSORGET", "z", "BLOB")
        assert "not allowed from script" in wire("AI.SCRIPTEXECUTE", "script", "denied", "INPUTS", 1, "x", "OUTPUTS", 1, "y").text
        for _ in range(2):
            endless = wire("AI.SCRIPTEXECUTE", "script", "loops", "INPUTS", 1, "x", "OUTPUTS", 1, "y")
            assert endless == TOO_LONG
            wire("DEL", "k")
            assert wire(*run) == OK
            assert wire("GET", "k") == "\u00e9".encode()


LARGE = """
def copy(tensors: List[Tensor], keys: List[str], args: List[str]):
    redis.execute("SET", keys[1], str(redis.execute("GET", keys[0])))

def model(tensors: List[Tensor], keys: List[str], args: List[str]):
    return redisAI.model_execute(keys[0], tensors, 1)
"""


@pytest.mark.needs_torch
@pytest.mark.needs_onnx
def test_what_a_script_asks_for_may_be_larger_than_the_memory_that_it_began_with(real: Server) -> None:
    """Replies and outputs of models that come while it runs: each way of the shared memory is replaced by a larger one in the middle."""
    with Wire(real.port) as wire:
        wire("FLUSHALL")
        assert wire("AI.SCRIPTSTORE", "large", "CPU", "ENTRY_POINTS", 2, "copy", "model", "SOURCE", LARGE) == OK
        assert wire("AI.MODELSTORE", "double", "ONNX", "CPU", "BLOB", (MODELS / "minimal.onnx").read_bytes()) == OK
        for size in (1000, 3 << 20, 1000):
            wire("SET", "from", "x" * size)
            assert wire("AI.SCRIPTEXECUTE", "large", "copy", "KEYS", 2, "from", "to") == OK
            assert wire("GET", "to") == b"x" * size
        for rows in (1, 300_000, 1):
            numbers = np.arange(2 * rows, dtype="<f4").reshape(rows, 2)
            assert wire("AI.TENSORSET", "x", "FLOAT", rows, 2, "BLOB", numbers.tobytes()) == OK
            assert wire("AI.SCRIPTEXECUTE", "large", "model", "KEYS", 1, "double", "INPUTS", 1, "x", "OUTPUTS", 1, "y") == OK
            assert wire("AI.TENSORGET", "y", "BLOB") == (numbers * 2).tobytes()
