"""Requests of one model run together, and nobody can tell from the results.

A worker is held at a gate while requests arrive, so what waits for it is known exactly: nothing here depends on how fast anything is.
The echo backend answers with its inputs, so a row that went to the wrong client would be seen.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import Gate, calls, info, put, running, store, wait_queued, wait_running
from servers import EXAMPLE_MODELS, MODELS, Server, wait_until
from wire import OK, Error, Status, Wire

MISMATCH = "ERR Model did not generate the expected batch size"
TIMEDOUT = Status("TIMEDOUT")


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    with Wire(server.port) as connection:
        yield connection


@pytest.fixture
def send(server: Server) -> Iterator[Callable[..., Wire]]:
    """Sends a command on a connection of its own; the reply is read when the test wants it."""
    connections: list[Wire] = []

    def send(*arguments: Any) -> Wire:
        connections.append(Wire(server.port))
        connections[-1].send(*arguments)
        return connections[-1]

    yield send
    for connection in connections:
        connection.close()


@pytest.fixture
def held(wire: Wire, send: Callable[..., Wire], tmp_path: Path) -> Iterator[Gate]:
    """The one worker of the CPU queue runs a model that ends when the gate is opened."""
    gate = Gate(wire, tmp_path / "gate", "gate")
    put(wire, "ticket", 1)
    passing = send("AI.MODELEXECUTE", "gate", "INPUTS", 1, "ticket", "OUTPUTS", 1, "passed")
    wait_running(wire)
    yield gate
    gate.open()
    passing.read()


def execute(key: str, source: str, target: str, *words: Any) -> tuple[Any, ...]:
    return ("AI.MODELEXECUTE", key, "INPUTS", 1, source, "OUTPUTS", 1, target, *words)


def put_rows(wire: Wire, key: str, rows: int, value: float, dtype: str = "FLOAT", width: tuple[int, ...] = (2,)) -> None:
    """A tensor of `rows` x `width`, all of one value."""
    shape = (rows, *width)
    assert wire("AI.TENSORSET", key, dtype, *shape, "VALUES", *[value] * int(np.prod(shape))) == OK


def tensor(wire: Wire, key: str) -> Any:
    """dtype, shape and values of a tensor; None when there is none."""
    reply = wire("AI.TENSORGET", key, "META", "VALUES")
    if isinstance(reply, Error):
        return None
    values = [float(v) if isinstance(v, bytes) and reply[1] != b"STRING" else v for v in reply[5]]
    return reply[1].decode(), reply[3], values


def stats(wire: Wire, key: str) -> dict[str, int]:
    reply = wire("AI.INFO", key)
    return {name.decode(): value for name, value in zip(reply[::2], reply[1::2], strict=True) if isinstance(value, int)}


def batches(wire: Wire, key: str) -> list[int]:
    """How many batches the model ran, how many requests were in them, and the histogram of their sizes."""
    reply = wire("AI.INFO", key, "STATS")
    fields = dict(zip(reply[::2], reply[1::2], strict=True))
    return [fields[b"batches"], fields[b"batched_requests"], *fields[b"batch_sizes"]]


# ---- which requests run together --------------------------------------------------------------------------------------------------------


def test_what_waits_for_a_busy_worker_runs_as_one_batch(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 100)
    pending = []
    for n in range(8):
        put_rows(wire, f"in{n}", 1 + n % 3, n)
        pending.append(send(*execute("m", f"in{n}", f"out{n}")))
        wait_queued(wire, n + 1)
    held.open()
    assert [client.read() for client in pending] == [OK] * 8
    for n in range(8):
        assert tensor(wire, f"out{n}") == ("FLOAT", [1 + n % 3, 2], [n] * 2 * (1 + n % 3))
    assert batches(wire, "m") == [1, 8, 8, 1]


def test_without_batchsize_each_runs_alone(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    store(wire, "m")
    put_rows(wire, "in", 1, 1)
    pending = [send(*execute("m", "in", f"out{n}")) for n in range(4)]
    wait_queued(wire, 4)
    held.open()
    assert [client.read() for client in pending] == [OK] * 4
    assert batches(wire, "m") == [4, 4, 1, 4]


def test_a_batch_may_pass_batchsize(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    """3 + 3 rows with BATCHSIZE 4 run as 6."""
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 4)
    put_rows(wire, "in", 3, 1)
    pending = [send(*execute("m", "in", f"out{n}")) for n in range(3)]
    wait_queued(wire, 3)
    held.open()
    assert [client.read() for client in pending] == [OK] * 3
    assert batches(wire, "m") == [2, 3, 1, 1, 2, 1]


def test_what_fills_a_batch_by_itself_runs_alone(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 4, "MINBATCHSIZE", 4)
    put_rows(wire, "small", 1, 1)
    put_rows(wire, "full", 4, 2)
    waits = send(*execute("m", "small", "out0"))
    wait_queued(wire, 1)
    full = send(*execute("m", "full", "out1"))
    wait_queued(wire, 2)
    held.open()
    assert full.read() == OK
    wait_queued(wire, 1)
    assert send(*execute("m", "full", "out2")).read() == OK  # also when the worker is idle
    assert batches(wire, "m") == [2, 2, 1, 2]
    waits.close()


OTHERS = [("FLOAT", 1, (2,)), ("DOUBLE", 1, (2,)), ("INT32", 1, (2,)), ("FLOAT", 1, (3,)), ("FLOAT", 1, (2, 1)), ("FLOAT", 1, (1, 2))]


def test_different_dtypes_and_shapes_are_never_mixed(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 100)
    pending = []
    for n in range(3 * len(OTHERS)):
        dtype, rows, width = OTHERS[n % len(OTHERS)]
        put_rows(wire, f"in{n}", rows, n, dtype, width)
        pending.append(send(*execute("m", f"in{n}", f"out{n}")))
        wait_queued(wire, n + 1)
    held.open()
    assert [client.read() for client in pending] == [OK] * len(pending)
    for n in range(len(pending)):
        dtype, rows, width = OTHERS[n % len(OTHERS)]
        assert tensor(wire, f"out{n}") == (dtype, [rows, *width], [n] * int(rows * np.prod(width)))
    assert batches(wire, "m") == [6, 18, 2, 6]


def test_scalars_and_inputs_that_disagree_on_rows_run_alone(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    store(wire, "one", "echo", 1, 1, "CPU", "BATCHSIZE", 100)
    store(wire, "two", "echo", 2, 2, "CPU", "BATCHSIZE", 100)
    wire("AI.TENSORSET", "scalar", "FLOAT", "VALUES", 5)
    put_rows(wire, "short", 1, 1)
    put_rows(wire, "long", 2, 2)
    pending = [send(*execute("one", "scalar", f"s{n}")) for n in range(2)]
    pending += [send("AI.MODELEXECUTE", "two", "INPUTS", 2, "short", "long", "OUTPUTS", 2, f"a{n}", f"b{n}") for n in range(2)]
    wait_queued(wire, 4)
    held.open()
    assert [client.read() for client in pending] == [OK] * 4
    assert tensor(wire, "s1") == ("FLOAT", [], [5])
    assert tensor(wire, "b1") == ("FLOAT", [2, 2], [2] * 4)
    assert batches(wire, "one") == [2, 2, 1, 2]
    assert batches(wire, "two") == [2, 2, 1, 2]


def test_a_model_stored_again_never_shares_a_batch_with_the_old_one(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 100)
    put_rows(wire, "in", 1, 7)
    old = [send(*execute("m", "in", f"old{n}")) for n in range(2)]
    wait_queued(wire, 2)
    store(wire, "m", "nan", 1, 1, "CPU", "BATCHSIZE", 100)
    new = [send(*execute("m", "in", f"new{n}")) for n in range(3)]
    wait_queued(wire, 5)
    held.open()
    assert [client.read() for client in (*old, *new)] == [OK] * 5
    assert [tensor(wire, f"old{n}")[2] for n in range(2)] == [[7, 7]] * 2
    assert all(np.isnan(tensor(wire, f"new{n}")[2]).all() for n in range(3))
    assert batches(wire, "m") == [1, 3, 2, 1]  # the old one's count went with it
    assert calls(wire, "m") == (3, 0)


def test_string_tensors_share_batches(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 100)
    texts = [["", "a"], ["bb", "größe", "x y", ""], ["c" * 1000, "d"]]
    for n, values in enumerate(texts):
        blob = b"".join(value.encode() + b"\0" for value in values)
        assert wire("AI.TENSORSET", f"in{n}", "STRING", len(values) // 2, 2, "BLOB", blob) == OK
    pending = [send(*execute("m", f"in{n}", f"out{n}")) for n in range(3)]
    wait_queued(wire, 3)
    held.open()
    assert [client.read() for client in pending] == [OK] * 3
    for n, values in enumerate(texts):
        assert tensor(wire, f"out{n}") == ("STRING", [len(values) // 2, 2], [v.encode() for v in values])
    assert batches(wire, "m") == [1, 3, 2, 1]


def test_ops_of_dags_share_batches_with_single_requests(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 100)
    for n in range(3):
        put_rows(wire, f"in{n}", 1, n)
    single = send(*execute("m", "in0", "out0"))
    dag = send("AI.DAGEXECUTE", "LOAD", 1, "in1", "PERSIST", 1, "b", "|>", *execute("m", "in1", "a"), "|>", *execute("m", "a", "b"))
    read_only = send("AI.DAGEXECUTE_RO", "LOAD", 1, "in2", "|>", *execute("m", "in2", "c"), "|>", "AI.TENSORGET", "c", "VALUES")
    wait_queued(wire, 3)
    held.open()
    assert (single.read(), dag.read(), read_only.read()) == (OK, [OK, OK], [OK, [b"2", b"2"]])
    assert tensor(wire, "out0") == ("FLOAT", [1, 2], [0, 0])
    assert tensor(wire, "b") == ("FLOAT", [1, 2], [1, 1])
    assert batches(wire, "m") == [2, 4, 1, 1, 2, 1]


def test_two_models_in_turn(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    for key in ("m", "n"):
        store(wire, key, "echo", 1, 1, "CPU", "BATCHSIZE", 100)
        put_rows(wire, key + "in", 1, ord(key))
    pending = [send(*execute(key, key + "in", f"{key}{n}")) for n in range(4) for key in ("m", "n")]
    wait_queued(wire, 8)
    held.open()
    assert [client.read() for client in pending] == [OK] * 8
    for key in ("m", "n"):
        assert batches(wire, key) == [1, 4, 4, 1]
        assert tensor(wire, key + "3")[2] == [ord(key)] * 2


# ---- MINBATCHSIZE -----------------------------------------------------------------------------------------------------------------------


def waits(wire: Wire, n: int = 1) -> None:
    """`n` requests are queued, and a worker that has looked at them since they came left them there."""
    store(wire, "passer-by")
    put(wire, "look", 1)
    assert wire(*execute("passer-by", "look", "looked")) == OK
    assert info(wire, "queue_CPU_length") == n
    wait_until(lambda: running(wire) == 0)


@pytest.fixture
def lonely(wire: Wire, send: Callable[..., Wire]) -> Wire:
    """A client whose request waits for company."""
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 10, "MINBATCHSIZE", 3)
    put_rows(wire, "in", 1, 1)
    client = send(*execute("m", "in", "out"))
    wait_queued(wire, 1)
    waits(wire)
    return client


def test_minbatchsize_waits_until_there_are_enough(wire: Wire, send: Callable[..., Wire], lonely: Wire) -> None:
    put_rows(wire, "two", 2, 2)
    assert send(*execute("m", "two", "out2")).read() == OK
    assert lonely.read() == OK
    assert batches(wire, "m") == [1, 2, 2, 1]


def test_minbatchsize_counts_only_what_fits_together(wire: Wire, send: Callable[..., Wire], lonely: Wire) -> None:
    put_rows(wire, "other", 2, 2, "DOUBLE")
    stranger = send(*execute("m", "other", "out2"))
    wait_queued(wire, 2)
    waits(wire, 2)
    stranger.close()
    lonely.close()
    wait_queued(wire, 0)


def test_minbatchtimeout_ends_the_wait(wire: Wire, send: Callable[..., Wire]) -> None:
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 10, "MINBATCHSIZE", 9, "MINBATCHTIMEOUT", 20)
    put_rows(wire, "in", 1, 1)
    assert wire(*execute("m", "in", "out")) == OK
    waited = dict(zip(*[iter(wire("AI.INFO", "m", "STATS"))] * 2, strict=True))[b"wait_us"]
    assert waited > 20_000


def test_timeout_ends_the_wait_for_company(wire: Wire, send: Callable[..., Wire]) -> None:
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 10, "MINBATCHSIZE", 9)
    put_rows(wire, "in", 1, 1)
    assert wire(*execute("m", "in", "out", "TIMEOUT", 20)) == TIMEDOUT
    assert tensor(wire, "out") is None
    assert calls(wire, "m") == (0, 0)
    wait_queued(wire, 0)


def test_timeout_releases_a_request_although_the_worker_is_busy(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 10)
    put_rows(wire, "in", 1, 1)
    patient = send(*execute("m", "in", "kept"))
    wait_queued(wire, 1)
    assert wire(*execute("m", "in", "out", "TIMEOUT", 20)) == TIMEDOUT
    assert running(wire) == 1
    held.open()
    assert patient.read() == OK
    assert tensor(wire, "out") is None
    assert calls(wire, "m") == (1, 0)


def test_a_client_that_leaves_takes_its_request_along(wire: Wire, lonely: Wire) -> None:
    gone = info(wire, "jobs_disconnected") or 0
    lonely.close()
    wait_until(lambda: info(wire, "jobs_disconnected") == gone + 1)
    assert info(wire, "queue_CPU_length") == 0
    assert calls(wire, "m") == (0, 0)
    assert tensor(wire, "out") is None


@pytest.mark.parametrize(
    "command", [("DEL", "m"), ("UNLINK", "m"), ("AI.MODELDEL", "m"), ("FLUSHALL", "ASYNC"), ("FLUSHALL", "SYNC"), ("SET", "m", 1)]
)
def test_a_model_that_goes_away_keeps_nobody_waiting(wire: Wire, lonely: Wire, command: tuple[str, ...]) -> None:
    wire(*command)
    assert lonely.read() == OK
    assert tensor(wire, "out") == ("FLOAT", [1, 2], [1, 1])


def test_a_model_stored_again_keeps_nobody_waiting(wire: Wire, lonely: Wire) -> None:
    store(wire, "m", "nan", 1, 1, "CPU", "BATCHSIZE", 10, "MINBATCHSIZE", 3)
    assert lonely.read() == OK
    assert tensor(wire, "out") == ("FLOAT", [1, 2], [1, 1])


def test_a_model_that_is_renamed_keeps_its_queue(wire: Wire, send: Callable[..., Wire], lonely: Wire) -> None:
    """RENAME is a delete and an insert to the server; who waits may be released by it, and nobody is lost."""
    wire("RENAME", "m", "n")
    put_rows(wire, "two", 2, 2)
    later = send(*execute("n", "two", "out2"))
    assert lonely.read() == OK
    later.close()
    assert calls(wire, "n")[0] >= 1


@pytest.mark.parametrize("how", ["SHUTDOWN", "SIGTERM"])
def test_shutdown_does_not_wait_for_company(start_server: Callable[..., Server], how: str) -> None:
    server = start_server()
    with Wire(server.port) as wire, Wire(server.port) as client:
        store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 10, "MINBATCHSIZE", 3)
        put_rows(wire, "in", 1, 1)
        client.send(*execute("m", "in", "out"))
        wait_queued(wire, 1)
        if how == "SHUTDOWN":
            wire.send("SHUTDOWN", "NOSAVE")
        assert server.stop(signal.SIGTERM) == 0
        with pytest.raises(ConnectionError):
            client.read()


# ---- errors -----------------------------------------------------------------------------------------------------------------------------


def test_a_failing_member_fails_alone(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    store(wire, "m", "raise", 1, 1, "CPU", "BATCHSIZE", 100, when=2, text="ERR unlucky")
    pending = []
    for n in range(5):
        put_rows(wire, f"in{n}", 1 + n % 2, n)
        pending.append(send(*execute("m", f"in{n}", f"out{n}")))
        wait_queued(wire, n + 1)
    held.open()
    assert [client.read() for client in pending] == [OK, OK, Error("ERR unlucky"), OK, OK]
    for n in (0, 1, 3, 4):
        assert tensor(wire, f"out{n}") == ("FLOAT", [1 + n % 2, 2], [n] * 2 * (1 + n % 2))
    assert tensor(wire, "out2") is None
    assert calls(wire, "m") == (5, 1)
    assert stats(wire, "m")["samples"] == 1 + 2 + 2 + 1


@pytest.mark.parametrize("op", ["oom", "system_exit", "half", "unspeakable"])
def test_whatever_a_library_throws_every_member_is_answered(wire: Wire, send: Callable[..., Wire], held: Gate, op: str) -> None:
    store(wire, "m", op, 1, 1, "CPU", "BATCHSIZE", 100)
    store(wire, "after")
    put_rows(wire, "in", 1, 1)
    pending = [send(*execute("m", "in", f"out{n}")) for n in range(3)]
    wait_queued(wire, 3)
    held.open()
    assert all(isinstance(client.read(), Error) for client in pending)
    assert calls(wire, "m") == (3, 3)
    assert wire(*execute("after", "in", "out")) == OK  # by the same worker


def test_another_number_of_rows_fails_every_member_and_is_not_retried(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    store(wire, "m", "wrong_rows", 1, 1, "CPU", "BATCHSIZE", 100)
    put_rows(wire, "in", 2, 1)
    pending = [send(*execute("m", "in", f"out{n}")) for n in range(3)]
    wait_queued(wire, 3)
    held.open()
    assert [client.read() for client in pending] == [Error(MISMATCH)] * 3
    assert calls(wire, "m") == (3, 3)
    assert [tensor(wire, f"out{n}") for n in range(3)] == [None] * 3
    assert wire(*execute("m", "in", "alone")) == OK  # unbatched runs may return what they like
    assert tensor(wire, "alone") == ("FLOAT", [3, 2], [1] * 6)


def test_outputs_that_are_not_produced_leave_every_key_as_it_is(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    store(wire, "m", "none", 1, 1, "CPU", "BATCHSIZE", 100)
    put_rows(wire, "in", 1, 1)
    put_rows(wire, "out0", 1, 9)
    pending = [send(*execute("m", "in", f"out{n}")) for n in range(2)]
    wait_queued(wire, 2)
    held.open()
    assert [client.read() for client in pending] == [OK, OK]
    assert tensor(wire, "out0")[2] == [9, 9]
    assert tensor(wire, "out1") is None
    assert stats(wire, "m")["samples"] == 0


# ---- statistics -------------------------------------------------------------------------------------------------------------------------


def test_every_member_counts_the_whole_duration_and_its_own_rows(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    store(wire, "m", "sleep", 1, 1, "CPU", "BATCHSIZE", 100, seconds=0.03)
    for n in range(3):
        put_rows(wire, f"in{n}", n + 1, n)
    pending = [send(*execute("m", f"in{n}", f"out{n}")) for n in range(3)]
    wait_queued(wire, 3)
    held.open()
    assert [client.read() for client in pending] == [OK] * 3
    found = stats(wire, "m")
    assert (found["calls"], found["errors"], found["samples"]) == (3, 0, 6)
    assert found["duration"] >= 3 * 30_000
    assert found["duration"] % 3 == 0
    assert wire("AI.INFO", "m", "RESETSTAT") == OK
    assert set(stats(wire, "m").values()) == {0}
    assert batches(wire, "m") == [0, 0]


def test_time_in_the_queue_is_no_duration(wire: Wire, send: Callable[..., Wire], held: Gate) -> None:
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 100)
    store(wire, "clock", "sleep", 1, 1, "CPU:1", seconds=0.1)
    put_rows(wire, "in", 1, 1)
    waiting = send(*execute("m", "in", "out"))
    wait_queued(wire, 1)
    assert wire(*execute("clock", "in", "out2")) == OK  # a tenth of a second passes
    held.open()
    assert waiting.read() == OK
    assert dict(zip(*[iter(wire("AI.INFO", "m", "STATS"))] * 2, strict=True))[b"wait_us"] > 100_000
    assert stats(wire, "m")["duration"] < 100_000


def test_a_batch_of_the_old_model_counts_nothing_for_the_new(wire: Wire, send: Callable[..., Wire], tmp_path: Path) -> None:
    first = Gate(wire, tmp_path / "m", "m")
    put(wire, "in", 1)
    old = send(*execute("m", "in", "out"))
    wait_running(wire)
    store(wire, "m")
    first.open()
    assert old.read() == OK
    assert calls(wire, "m") == (0, 0)


# ---- results ----------------------------------------------------------------------------------------------------------------------------

#: backend -> extension of the digits network, words of AI.MODELSTORE, mark
BACKENDS = [
    pytest.param("ONNX", "onnx", (), marks=pytest.mark.needs_onnx),
    pytest.param("TORCH", "pt", (), marks=pytest.mark.needs_torch),
    pytest.param("TF", "pb", ("INPUTS", 1, "x", "OUTPUTS", 1, "probabilities"), marks=pytest.mark.needs_tf),
    pytest.param("TFLITE", "tflite", (), marks=pytest.mark.needs_tflite),
]
#: Probabilities from a batch may differ from those of a row alone by this: libraries choose another order of summation for another shape.
TOLERANCE = 2e-6


@pytest.mark.parametrize(("backend", "extension", "names"), BACKENDS)
def test_batched_results_are_the_unbatched_ones(real_server: Server, backend: str, extension: str, names: tuple[Any, ...]) -> None:
    """Each client's rows, alone and in a batch that waits until all of them have come."""
    digits = np.load(MODELS / "digits_test_x.npy").astype("<f4")
    blob = (EXAMPLE_MODELS / f"digits.{extension}").read_bytes()
    parts = np.split(digits[:40], [1, 3, 6, 10, 11, 19, 30])
    with Wire(real_server.port) as wire:
        assert wire("AI.MODELSTORE", "alone", backend, "CPU", *names, "BLOB", blob) == OK
        assert wire("AI.MODELSTORE", "batched", backend, "CPU", "BATCHSIZE", 40, "MINBATCHSIZE", 40, *names, "BLOB", blob) == OK
        clients = [Wire(real_server.port) for _ in parts]
        for n, (client, rows) in enumerate(zip(clients, parts, strict=True)):
            assert wire("AI.TENSORSET", f"in{n}", "FLOAT", *rows.shape, "BLOB", rows.tobytes()) == OK
            assert wire(*execute("alone", f"in{n}", f"alone{n}")) == OK
            client.send(*execute("batched", f"in{n}", f"batched{n}"))
        assert [client.read() for client in clients] == [OK] * len(parts)
        assert batches(wire, "batched") == [1, len(parts), 8, 1]
        for n, rows in enumerate(parts):
            alone, batched = (np.frombuffer(wire("AI.TENSORGET", f"{how}{n}", "BLOB"), "<f4") for how in ("alone", "batched"))
            assert len(batched) == 10 * len(rows)
            assert np.abs(alone - batched).max() <= TOLERANCE
        for client in clients:
            client.close()
