"""MODEL_EXECUTION_TIMEOUT: ONNX Runtime's runs are ended, those of other libraries are named in the log and left to finish.

The limit of these servers is a second, the least that is allowed. Nothing asserts that something happened quickly, only that it happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import calls, get, info, put, store, wait_queued, wait_running
from servers import EXAMPLE_MODELS, MODELS, Server, running, wait_until
from wire import OK, Error, Status, Wire

LIMIT = ("MODEL_EXECUTION_TIMEOUT", "1000")
ENDED = "Exiting due to terminate flag being set to true"


def execute(key: str, target: str, *words: Any) -> tuple[Any, ...]:
    return ("AI.MODELEXECUTE", key, "INPUTS", 1, "in", "OUTPUTS", 1, target, *words)


# ---- ONNX Runtime -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_server() -> Iterator[Server]:
    with running(module_args=(*LIMIT, "THREADS_PER_QUEUE", "2"), echo=False) as server:
        yield server


@pytest.fixture
def onnx(onnx_server: Server) -> Iterator[Wire]:
    """A client of a server with a model that never ends (`loop`) and one that does (`mul`)."""
    with Wire(onnx_server.port) as wire:
        wire("FLUSHALL")
        assert wire("AI.MODELSTORE", "loop", "ONNX", "CPU", "BLOB", (MODELS / "infinite_loop.onnx").read_bytes()) == OK
        assert wire("AI.TENSORSET", "in", "FLOAT", 1, "VALUES", 1) == OK
        yield wire


@pytest.mark.needs_onnx
def test_a_run_that_does_not_end_is_ended(onnx: Wire, onnx_server: Server) -> None:
    began = time.monotonic()
    with Wire(onnx_server.port) as other:
        other.send(*execute("loop", "y2"))
        reply = onnx(*execute("loop", "y"))
        assert isinstance(reply, Error) and ENDED in reply.text
        assert reply == other.read()  # two workers, two runs of one session, each ended
    assert time.monotonic() - began >= 1
    assert calls(onnx, "loop") == (2, 2)
    assert (onnx("EXISTS", "y"), onnx("EXISTS", "y2")) == (0, 0)
    assert onnx("PING") == Status("PONG")


@pytest.mark.needs_onnx
def test_the_worker_and_the_session_go_on(onnx: Wire, onnx_server: Server) -> None:
    """Options of a run that was ended are not used again: the model's next run lasts as long as the first, and others run as ever."""
    assert onnx("AI.MODELSTORE", "digits", "ONNX", "CPU", "BLOB", (EXAMPLE_MODELS / "digits.onnx").read_bytes()) == OK
    onnx("AI.TENSORSET", "x", "FLOAT", 1, 64)
    digits = ("AI.MODELEXECUTE", "digits", "INPUTS", 1, "x", "OUTPUTS", 1, "p")
    for _ in range(2):
        began = time.monotonic()
        with Wire(onnx_server.port) as looping:
            looping.send(*execute("loop", "y"))
            wait_running(onnx)
            assert onnx(*digits) == OK  # the other worker
            reply = looping.read()
        assert isinstance(reply, Error) and ENDED in reply.text
        assert time.monotonic() - began >= 1
        assert onnx(*digits) == OK
    assert calls(onnx, "digits") == (4, 0)


@pytest.mark.needs_onnx
def test_in_a_dag_the_op_fails_and_what_follows_is_not_run(onnx: Wire) -> None:
    ops = ("|>", *execute("loop", "y"), "|>", "AI.MODELEXECUTE", "loop", "INPUTS", 1, "y", "OUTPUTS", 1, "z")
    reply = onnx("AI.DAGEXECUTE", "LOAD", 1, "in", "PERSIST", 1, "z", *ops)
    assert isinstance(reply[0], Error) and ENDED in reply[0].text
    assert reply[1] == Status("NA")
    assert onnx("EXISTS", "z") == 0


# ---- any library, by way of the echo backend --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def echo_server() -> Iterator[Server]:
    with running(module_args=LIMIT) as server:
        yield server


@pytest.fixture
def wire(echo_server: Server) -> Iterator[Wire]:
    with Wire(echo_server.port) as wire:
        wire("FLUSHALL")
        put(wire, "in", 1)
        yield wire


def test_every_member_of_a_batch_that_is_ended_is_told_and_none_is_retried(wire: Wire, echo_server: Server, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    store(wire, "m", "gate", 1, 1, "CPU", "BATCHSIZE", 3, "MINBATCHSIZE", 3, path=str(gate), terminable=True)
    clients = [Wire(echo_server.port) for _ in range(3)]
    for n, client in enumerate(clients):
        client.send(*execute("m", f"out{n}"))
    assert clients[0].read() == Error(ENDED + ".")
    gate.touch()  # a second run of the others would succeed
    assert [client.read() for client in clients[1:]] == [Error(ENDED + ".")] * 2
    assert calls(wire, "m") == (3, 3)
    assert wire("AI.INFO", "m", "STATS")[3] == 1
    for client in clients:
        client.close()


def test_time_in_the_queue_does_not_count(wire: Wire, echo_server: Server, tmp_path: Path) -> None:
    """Behind a run that takes all of its second, another begins anew."""
    store(wire, "first", "gate", path=str(tmp_path / "never"), terminable=True)
    store(wire, "second", "sleep", seconds=0.2, terminable=True)
    with Wire(echo_server.port) as one, Wire(echo_server.port) as two:
        one.send(*execute("first", "a"))
        wait_running(wire)
        two.send(*execute("second", "b"))
        wait_queued(wire, 1)
        assert one.read() == Error(ENDED + ".")
        assert two.read() == OK


def test_what_cannot_be_interrupted_is_named_once_and_finishes(wire: Wire, echo_server: Server, tmp_path: Path) -> None:
    store(wire, "slow one", "gate", path=str(tmp_path / "gate"))
    line = "a run of slow one takes longer than MODEL_EXECUTION_TIMEOUT; its backend cannot be interrupted"
    with Wire(echo_server.port) as client:
        client.send(*execute("slow one", "out"))
        wait_until(lambda: line in echo_server.log())
        (tmp_path / "gate").touch()
        assert client.read() == OK
    assert get(wire, "out") == [1]
    assert calls(wire, "slow one") == (1, 0)
    assert echo_server.log().count(line) == 1


def test_a_limit_that_is_lowered_counts_for_the_run_in_progress(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """The watchdog slept until the end of an hour."""
    server = start_server(module_args=("MODEL_EXECUTION_TIMEOUT", "3600000"))
    with Wire(server.port) as wire, Wire(server.port) as client:
        store(wire, "m", "gate", path=str(tmp_path / "never"), terminable=True)
        put(wire, "in", 1)
        client.send(*execute("m", "out"))
        wait_running(wire)
        assert wire("CONFIG", "SET", "ai.model-execution-timeout", "1000") == OK
        assert client.read() == Error(ENDED + ".")


def test_short_runs_are_left_alone(wire: Wire, echo_server: Server) -> None:
    """Also many of them, one after the other, for longer than the limit in all."""
    store(wire, "m", "sleep", seconds=0.1, terminable=True)
    already = len(echo_server.log())
    assert [wire(*execute("m", "out")) for _ in range(12)] == [OK] * 12
    assert "MODEL_EXECUTION_TIMEOUT" not in echo_server.log()[already:]
    assert info(wire, "queue_CPU_idle_workers") == 1


def test_the_limit_is_shown(start_server: Callable[..., Server]) -> None:
    with Wire(start_server(module_args=("MODEL_EXECUTION_TIMEOUT", "1234")).port) as wire:
        assert info(wire, "model_execution_timeout") == 1234
