"""Tensors that go from one op of a DAG to the next on the same GPU stay there. The device is a fake: this is no GPU run.

The echo model `resident` answers with the number of its inputs that it found in the device's memory.
"""

from __future__ import annotations

import struct

import pytest
import redis
from conftest import echo_model
from servers import Server

OK = b"OK"


def dag(head: str, *ops: str) -> list[str]:
    words = f"AI.DAGEXECUTE {head}".split()
    for op in ops:
        words += ["|>", *op.split()]
    return words


def count(n: int) -> bytes:
    return struct.pack("<q", n)


@pytest.fixture
def c(r: redis.Redis) -> redis.Redis:
    for device in ("GPU", "GPU:1", "CPU"):
        for op, inputs in (("echo", 1), ("resident", 1), ("add", 2)):
            r.execute_command("AI.MODELSTORE", f"{op}@{device}", "TORCH", device, "BLOB", echo_model(op, inputs))
    r.execute_command("AI.MODELSTORE", "onnx", "ONNX", "GPU", "BLOB", echo_model("echo"))
    r.execute_command("AI.TENSORSET", "x", "FLOAT", 2, "VALUES", 1, 2)
    return r


def run(model: str, inputs: str, output: str) -> str:
    return f"AI.MODELEXECUTE {model} INPUTS {len(inputs.split())} {inputs} OUTPUTS 1 {output}"


def test_a_tensor_between_two_models_on_one_gpu_stays_there(c: redis.Redis) -> None:
    reply = c.execute_command(*dag("LOAD 1 x", run("echo@GPU", "x", "y"), run("resident@GPU", "y", "n"), "AI.TENSORGET n BLOB"))
    assert reply == [OK, OK, count(1)]


def test_the_values_are_those_of_a_run_through_the_host(c: redis.Redis) -> None:
    ops = [run("echo@GPU", "x", "y"), run("add@GPU", "y y", "z"), run("echo@GPU", "z", "out"), "AI.TENSORGET out BLOB"]
    assert c.execute_command(*dag("LOAD 1 x", *ops)) == [OK, OK, OK, struct.pack("<2f", 2, 4)]


@pytest.mark.parametrize(
    ("head", "ops"),
    [
        ("LOAD 1 x", [run("echo@GPU", "x", "y"), "AI.TENSORGET y BLOB", run("resident@GPU", "y", "n")]),  # somebody reads it
        ("LOAD 1 x PERSIST 1 y", [run("echo@GPU", "x", "y"), run("resident@GPU", "y", "n")]),  # it is written to a key
        ("LOAD 1 x", [run("echo@GPU", "x", "y"), run("echo@CPU", "y", "z"), run("resident@GPU", "y", "n")]),  # the CPU reads it
        ("LOAD 1 x", [run("echo@GPU", "x", "y"), run("echo@GPU:1", "y", "z"), run("resident@GPU", "y", "n")]),  # another GPU does
        ("LOAD 1 x", [run("echo@GPU", "x", "y"), run("onnx", "y", "z"), run("resident@GPU", "y", "n")]),  # another library does
        ("LOAD 1 x", [run("echo@CPU", "x", "y"), run("resident@GPU", "y", "n")]),  # it was never there
        ("LOAD 1 x", [run("resident@GPU", "x", "n")]),
    ],
)
def test_whatever_else_may_read_it_finds_it_in_memory(c: redis.Redis, head: str, ops: list[str]) -> None:
    reply = c.execute_command(*dag(head, *ops, "AI.TENSORGET n BLOB"))
    assert reply[-1] == count(0)
    assert all(item == OK or isinstance(item, bytes) for item in reply)


def test_a_name_that_is_set_again_is_another_tensor(c: redis.Redis) -> None:
    ops = [run("echo@GPU", "x", "y"), run("resident@GPU", "y", "y"), "AI.TENSORGET y BLOB"]
    assert c.execute_command(*dag("LOAD 1 x", *ops)) == [OK, OK, count(1)]


def test_a_dag_that_fails_behind_it_leaves_nothing_behind(server: Server, c: redis.Redis) -> None:
    c.execute_command("AI.MODELSTORE", "bad", "TORCH", "GPU", "BLOB", echo_model("raise", text="broken"))
    for _ in range(50):
        reply = c.execute_command(*dag("LOAD 1 x", run("echo@GPU", "x", "y"), run("bad", "y", "z"), "AI.TENSORGET z BLOB"))
        assert reply[0] == OK and isinstance(reply[1], redis.ResponseError) and reply[2] == b"NA"
    reply = c.execute_command(*dag("LOAD 1 x", run("echo@GPU", "x", "y"), run("resident@GPU", "y", "n"), "AI.TENSORGET n BLOB"))
    assert reply[-1] == count(1)
