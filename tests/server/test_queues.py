"""Run queues on a real server: limits, turns, devices and their workers. What waits is arranged with gates; nothing depends on speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import echo_model
from runs import Gate, calls, get, info, put, running, store, wait_queued, wait_running
from servers import MODELS, Server, wait_until
from wire import OK, QUEUED, Error, Status, Wire

FULL = Error("ERR the run queue of the device is full (MAX_QUEUE)")


def execute(key: str, target: str, *words: Any) -> tuple[Any, ...]:
    return ("AI.MODELEXECUTE", key, "INPUTS", 1, "in", "OUTPUTS", 1, target, *words)


class Clients:
    """Connections to a server: one to look around, and one per command that waits."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.wire = Wire(server.port)
        self.others: list[Wire] = []
        self.gates: list[Gate] = []
        put(self.wire, "in", 1)

    def send(self, *arguments: Any) -> Wire:
        """Sends a command on a connection of its own; the reply is read when the test wants it."""
        self.others.append(Wire(self.server.port))
        self.others[-1].send(*arguments)
        return self.others[-1]

    def hold(self, device: str = "CPU", workers: int = 1) -> Gate:
        """Keeps that many workers of the device busy until the gate is opened."""
        gate = Gate(self.wire, self.folder / f"gate{len(self.gates)}", f"gate{len(self.gates)}", device)
        self.gates.append(gate)
        before = running(self.wire, device)
        for n in range(workers):
            self.send(*execute(f"gate{len(self.gates) - 1}", f"passed{n}"))
        wait_running(self.wire, device, before + workers)
        return gate

    def close(self) -> None:
        for gate in self.gates:
            gate.open()
        for connection in (*self.others, self.wire):
            connection.close()


@pytest.fixture
def clients(server: Server, tmp_path: Path) -> Iterator[Clients]:
    clients = Clients(server, tmp_path)
    yield clients
    clients.close()


@pytest.fixture
def started(start_server: Callable[..., Server], tmp_path: Path) -> Iterator[Callable[..., Clients]]:
    """Clients of a server with load arguments."""
    made: list[Clients] = []

    def start(*module_args: str) -> Clients:
        made.append(Clients(start_server(module_args=module_args), tmp_path))
        return made[-1]

    yield start
    for clients in made:
        clients.close()


# ---- MAX_QUEUE --------------------------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once(started: Callable[..., Clients]) -> None:
    clients = started("MAX_QUEUE", "3")
    wire = clients.wire
    store(wire, "m")
    store(wire, "elsewhere", "echo", 1, 1, "CPU:1")
    gate = clients.hold()
    waiting = [clients.send(*execute("m", f"out{n}")) for n in range(3)]
    wait_queued(wire, 3)
    dag = ("AI.DAGEXECUTE", "LOAD", 1, "in", "|>", "AI.MODELEXECUTE", "m", "INPUTS", 1, "in", "OUTPUTS", 1, "x")
    for command in (execute("m", "no"), execute("gate0", "no"), ("AI.MODELRUN", "m", "INPUTS", "in", "OUTPUTS", "no"), dag):
        assert wire(*command) == FULL  # an answer, so the client was not blocked
    assert info(wire, "queue_CPU_length") == 3
    assert info(wire, "jobs_in_flight") == 4
    assert wire(*execute("elsewhere", "other")) == OK
    tensors_only = ("AI.DAGEXECUTE", "LOAD", 1, "in", "|>", "AI.TENSORGET", "in", "VALUES")
    assert wire(*tensors_only) == [[b"1"]]
    waiting[0].close()
    wait_queued(wire, 2)
    last = clients.send(*execute("m", "last"))
    wait_queued(wire, 3)
    gate.open()
    assert [client.read() for client in (*waiting[1:], last)] == [OK] * 3
    assert get(wire, "no") is None
    assert calls(wire, "m") == (3, 0)


def test_what_waits_for_a_model_to_open_counts(started: Callable[..., Clients], tmp_path: Path) -> None:
    clients = started("MAX_QUEUE", "2")
    wire = clients.wire
    wire("MULTI")
    assert wire("AI.MODELSTORE", "slow", "ONNX", "CPU", "BLOB", echo_model(open_gate=str(tmp_path / "open"))) == QUEUED
    assert wire("EXEC") == [OK]
    waiting = [clients.send(*execute("slow", f"out{n}")) for n in range(2)]
    wait_until(lambda: info(wire, "queue_CPU_waiting") == 2)
    assert wire(*execute("slow", "no")) == FULL
    waiting[0].close()
    wait_until(lambda: info(wire, "queue_CPU_waiting") == 1)
    assert clients.send(*execute("slow", "out", "TIMEOUT", 10)).read() == Status("TIMEDOUT")
    (tmp_path / "open").touch()
    assert waiting[1].read() == OK
    assert (info(wire, "queue_CPU_waiting"), info(wire, "queue_CPU_length")) == (0, 0)


def test_max_queue_zero_is_no_limit(started: Callable[..., Clients]) -> None:
    clients = started("MAX_QUEUE", "0")
    store(clients.wire, "m")
    gate = clients.hold()
    waiting = [clients.send(*execute("m", f"out{n}")) for n in range(20)]
    wait_queued(clients.wire, 20)
    gate.open()
    assert [client.read() for client in waiting] == [OK] * 20


def test_five_hundred_clients_that_leave_at_once(clients: Clients) -> None:
    """Every second one leaves; nothing of it is run or written, and the others are served."""
    wire = clients.wire
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 16)
    gate = clients.hold()
    before = info(wire, "jobs_disconnected") or 0
    waiting = [clients.send(*execute("m", f"out{n}")) for n in range(500)]
    wait_queued(wire, 500)
    for client in waiting[::2]:
        client.close()
    wait_queued(wire, 250)
    assert info(wire, "jobs_disconnected") == before + 250
    gate.open()
    assert [client.read() for client in waiting[1::2]] == [OK] * 250
    assert wire("EXISTS", *(f"out{n}" for n in range(0, 500, 2))) == 0
    assert calls(wire, "m") == (250, 0)
    wait_until(lambda: info(wire, "jobs_in_flight") == 0)


# ---- turns ------------------------------------------------------------------------------------------------------------------------------


def order_of_service(clients: Clients, commands: list[tuple[Any, ...]]) -> list[str]:
    """Sends the commands while the worker is held; returns the keys that they wrote, in the order in which they did."""
    wire = clients.wire
    wire("CONFIG", "SET", "notify-keyspace-events", "Ed")
    gate = clients.hold()
    for n, command in enumerate(commands):
        clients.send(*command)
        wait_queued(wire, n + 1)
    listener = clients.send("PSUBSCRIBE", "__keyevent@0__:*")
    listener.read()
    gate.open()
    order = [listener.read()[-1].decode() for _ in range(len(commands) + 1)]
    wire("CONFIG", "SET", "notify-keyspace-events", "")
    assert order[0] == "passed0"
    return order[1:]


def test_a_hot_model_cannot_starve_another(clients: Clients) -> None:
    store(clients.wire, "hot")
    store(clients.wire, "cold")
    flood = [execute("hot", f"h{n}") for n in range(30)]
    order = order_of_service(clients, [*flood, execute("cold", "c0"), execute("cold", "c1")])
    assert order == ["h0", "c0", "h1", "c1", *(f"h{n}" for n in range(2, 30))]


def test_a_model_called_with_many_shapes_cannot_starve_another(clients: Clients) -> None:
    store(clients.wire, "hot", "echo", 1, 1, "CPU", "BATCHSIZE", 8)
    store(clients.wire, "cold")
    flood = []
    for n in range(20):
        put(clients.wire, f"in{n}", *range(n + 1))
        flood.append(("AI.MODELEXECUTE", "hot", "INPUTS", 1, f"in{n}", "OUTPUTS", 1, f"h{n}"))
    order = order_of_service(clients, [*flood, execute("cold", "c0"), execute("cold", "c1")])
    assert order == ["h0", "c0", "h1", "c1", *(f"h{n}" for n in range(2, 20))]


def test_a_batched_model_and_one_that_is_not_take_turns(clients: Clients) -> None:
    store(clients.wire, "many", "echo", 1, 1, "CPU", "BATCHSIZE", 4)
    store(clients.wire, "one")
    commands = [execute(key, f"{key}{n}") for key in ("many", "one") for n in range(8)]
    order = order_of_service(clients, commands)
    turns = ["many" if key.startswith("many") else "one" for key in order]
    assert turns == ["many"] * 4 + ["one"] + ["many"] * 4 + ["one"] * 7


def test_requests_of_one_model_are_served_in_order(clients: Clients) -> None:
    store(clients.wire, "m")
    assert order_of_service(clients, [execute("m", f"o{n}") for n in range(10)]) == [f"o{n}" for n in range(10)]


# ---- devices and workers ----------------------------------------------------------------------------------------------------------------


def test_devices_are_queues_with_workers_of_their_own(clients: Clients) -> None:
    wire = clients.wire
    store(wire, "here")
    store(wire, "there", "echo", 1, 1, "CPU:1")
    store(wire, "also there", "echo", 1, 1, "cpu:1")
    gate = clients.hold("CPU")
    stuck = clients.send(*execute("here", "a"))
    wait_queued(wire, 1)
    assert wire(*execute("there", "b")) == OK
    assert wire(*execute("also there", "c")) == OK
    assert info(wire, "queue_cpu:1_workers") is None  # one queue, however it is spelled
    assert (info(wire, "queue_CPU:1_length"), info(wire, "queue_CPU_length")) == (0, 1)
    gate.open()
    assert stuck.read() == OK


def test_a_device_appears_while_another_works(started: Callable[..., Clients]) -> None:
    """The watchdog walks the list of queues when a run begins, and the main thread adds to it: ThreadSanitizer sees how."""
    wire = started().wire
    for device in ("CPU", "CPU:1", "CPU:2", "CPU:3"):
        store(wire, device, "echo", 1, 1, device)
        assert wire("AI.MODELEXECUTE", device, "INPUTS", 1, "in", "OUTPUTS", 1, "out") == OK


def test_a_dag_over_two_devices_uses_both(clients: Clients) -> None:
    wire = clients.wire
    first, second = clients.hold("CPU"), clients.hold("CPU:2")
    store(wire, "x")
    store(wire, "y", "echo", 1, 1, "CPU:2")
    ops = (
        "|>",
        "AI.MODELEXECUTE",
        "x",
        "INPUTS",
        1,
        "in",
        "OUTPUTS",
        1,
        "a",
        "|>",
        "AI.MODELEXECUTE",
        "y",
        "INPUTS",
        1,
        "in",
        "OUTPUTS",
        1,
        "b",
    )
    dag = clients.send("AI.DAGEXECUTE", "LOAD", 1, "in", "PERSIST", 2, "a", "b", *ops)
    wait_queued(wire, 1, "CPU")
    wait_queued(wire, 1, "CPU:2")  # side by side: neither waits for the other
    second.open()
    wait_queued(wire, 0, "CPU:2")
    assert info(wire, "queue_CPU_length") == 1
    first.open()
    assert dag.read() == [OK, OK]


def test_threads_per_queue_run_side_by_side(started: Callable[..., Clients]) -> None:
    clients = started("THREADS_PER_QUEUE", "3")
    wire = clients.wire
    assert info(wire, "queue_CPU_workers") == 3
    store(wire, "m")
    store(wire, "elsewhere", "echo", 1, 1, "CPU:1")
    assert info(wire, "queue_CPU:1_workers") == 3
    gate = clients.hold(workers=2)
    assert wire(*execute("m", "free")) == OK  # by the third
    more = clients.hold(workers=1)
    stuck = clients.send(*execute("m", "out"))
    wait_queued(wire, 1)
    assert info(wire, "queue_CPU_idle_workers") == 0
    more.open()
    assert stuck.read() == OK
    gate.open()
    fields = [line for line in wire("INFO", "ai_cpu").decode().splitlines() if "bthread" in line]
    names = [f"ai_queue_{device}_bthread_n{n}_used_cpu_total" for device in ("CPU", "CPU:1") for n in (1, 2, 3)]
    assert sorted(line.rpartition(":")[0] for line in fields) == sorted(names)
    assert wire("INFO", "ai_load_time_configs").decode().count("ai_threads_per_queue:3") == 1


def test_three_workers_share_what_waits_and_lose_nothing(started: Callable[..., Clients]) -> None:
    clients = started("THREADS_PER_QUEUE", "3")
    wire = clients.wire
    store(wire, "m", "echo", 1, 1, "CPU", "BATCHSIZE", 4)
    gate = clients.hold(workers=3)
    waiting = [clients.send(*execute("m", f"out{n}")) for n in range(50)]
    wait_queued(wire, 50)
    gate.open()
    assert [client.read() for client in waiting] == [OK] * 50
    assert calls(wire, "m") == (50, 0)
    assert info(wire, "queue_CPU_length") == 0


def test_queues_and_workers_stay_when_their_models_go(clients: Clients) -> None:
    wire = clients.wire
    store(wire, "m", "echo", 1, 1, "CPU:7")
    wire("FLUSHALL")
    assert info(wire, "queue_CPU:7_workers") == 1
    put(wire, "in", 1)
    store(wire, "m", "echo", 1, 1, "CPU:7")
    assert wire(*execute("m", "out")) == OK
    assert info(wire, "queue_CPU:7_workers") == 1


# ---- devices that are not there ---------------------------------------------------------------------------------------------------------

#: backend -> a model, words of AI.MODELSTORE, and what a client reads who asks for a GPU where there is none. TFLITE runs on the CPU then.
NO_GPU = [
    pytest.param("ONNX", "mul_1.onnx", (), "ERR GPU requested but ONNX couldn't find CUDA", marks=pytest.mark.needs_onnx),
    pytest.param("TORCH", "minimal.pt", (), "GPU requested but Torch couldn't find CUDA", marks=pytest.mark.needs_torch),
    pytest.param(
        "TF", "minimal.pb", ("INPUTS", 1, "x", "OUTPUTS", 1, "y"), "ERR GPU requested but TF couldn't find CUDA", marks=pytest.mark.needs_tf
    ),
    pytest.param("TFLITE", "minimal.tflite", (), None, marks=pytest.mark.needs_tflite),
]
without_gpu = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU here")


@without_gpu
@pytest.mark.parametrize("device", ["GPU", "gpu:1"])
@pytest.mark.parametrize(("backend", "file", "names", "text"), NO_GPU)
def test_a_gpu_that_is_not_there(
    real_server: Server, backend: str, file: str, names: tuple[Any, ...], text: str | None, device: str
) -> None:
    with Wire(real_server.port) as wire:
        reply = wire("AI.MODELSTORE", "m", backend, device, *names, "BLOB", (MODELS / file).read_bytes())
        assert reply == (Error(text) if text else OK)
        assert wire("EXISTS", "m") == (0 if text else 1)


@without_gpu
@pytest.mark.needs_torch
def test_a_script_for_a_gpu_that_is_not_there(real_server: Server) -> None:
    source = "def f(tensors: List[Tensor], keys: List[str], args: List[str]):\n    return tensors[0]\n"
    with Wire(real_server.port) as wire:
        reply = wire("AI.SCRIPTSTORE", "s", "GPU:0", "ENTRY_POINTS", 1, "f", "SOURCE", source)
        assert reply == Error("GPU requested but Torch couldn't find CUDA")
