"""Models and scripts that are damaged, hostile or without end, on a server with the real libraries: each is an error of its own client, and
nothing of them is left in a key, in a file or in the next request. What every library makes of every trick is in tests/python."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import calls, info, wait_running
from servers import EXAMPLE_MODELS, Server, wait_until
from wire import OK, Error, Status, Wire

from redisai_py.backends import tf_ops

TF_NAMES = ("INPUTS", 1, "x", "OUTPUTS", 1, "probabilities")
#: backend -> the digits network and the words that it takes to store it
BACKENDS = [
    pytest.param("ONNX", "digits.onnx", (), marks=pytest.mark.needs_onnx),
    pytest.param("TORCH", "digits.pt", (), marks=pytest.mark.needs_torch),
    pytest.param("TF", "digits.pb", TF_NAMES, marks=pytest.mark.needs_tf),
    pytest.param("TFLITE", "digits.tflite", (), marks=pytest.mark.needs_tflite),
]


@pytest.fixture
def wire(real_server: Server) -> Iterator[Wire]:
    with Wire(real_server.port, timeout=120) as wire:
        yield wire


@pytest.fixture
def files(real_server: Server) -> Iterator[Path]:
    """The directory in which the server works, with a file in it that no model may read; it must be the same at the end."""
    canary = real_server.directory / "canary.bin"
    canary.write_bytes(np.array([4711, 815], "<f4").tobytes())
    before = listing(real_server.directory)
    yield canary
    assert listing(real_server.directory) == before
    canary.unlink()


def listing(folder: Path) -> dict[str, bytes]:
    """Every file but the log."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}


# ---- damaged models ----------------------------------------------------------------------------------------------------------------------


def damaged(blob: bytes) -> Iterator[bytes]:
    """Nothing, noise, the model cut at each KiB and just before its end, and with one to eight bits flipped, often near its start."""
    chance = random.Random(20261122)
    yield b""
    yield from (chance.randbytes(n) for n in (1, 100, 10_000))
    yield from (blob[:n] for n in (*range(1024, len(blob), 1024), len(blob) - 1))
    for _ in range(60):
        broken = bytearray(blob)
        for _ in range(chance.randint(1, 8)):
            broken[chance.randrange(len(blob) if chance.random() < 0.5 else 1500)] ^= 1 << chance.randrange(8)
        yield bytes(broken)


@pytest.mark.parametrize(("backend", "file", "names"), BACKENDS)
def test_a_damaged_model_is_one_error_and_no_key_or_a_model(
    wire: Wire, files: Path, backend: str, file: str, names: tuple[Any, ...]
) -> None:
    blob = (EXAMPLE_MODELS / file).read_bytes()
    assert wire("AI.TENSORSET", "x", "FLOAT", 1, 64) == OK
    refused = 0
    for broken in damaged(blob):
        reply = wire.only_reply("AI.MODELSTORE", "m", backend, "CPU", *names, "BLOB", broken)
        assert wire("EXISTS", "m") == (reply == OK)
        if reply == OK:
            assert wire("AI.MODELGET", "m", "BLOB") == broken
            wire.only_reply("AI.MODELEXECUTE", "m", "INPUTS", 1, "x", "OUTPUTS", 1, "y")
            wire("DEL", "m", "y")
        else:
            assert isinstance(reply, Error) and reply.text.strip()
            refused += 1
    assert refused > 20
    assert wire("AI.MODELSTORE", "m", backend, "CPU", *names, "BLOB", blob) == OK
    assert wire("AI.MODELEXECUTE", "m", "INPUTS", 1, "x", "OUTPUTS", 1, "y") == OK


# ---- files -------------------------------------------------------------------------------------------------------------------------------


def graph_of(operator: str) -> bytes:
    """A GraphDef of one node without inputs: the check comes before anything is made of it."""
    node = b"".join(bytes([tag, len(text)]) + text for tag, text in ((0x0A, b"x"), (0x12, operator.encode())))
    return bytes([0x0A, len(node)]) + node


@pytest.mark.needs_tf
@pytest.mark.parametrize("reason", tf_ops.REFUSED)
def test_every_tensorflow_operator_that_is_refused_by_name_is_refused_at_the_store(wire: Wire, files: Path, reason: str) -> None:
    for operator in sorted(tf_ops.REFUSED[reason]):
        reply = wire.only_reply("AI.MODELSTORE", "m", "TF", "CPU", "INPUTS", 1, "x", "OUTPUTS", 1, "x", "BLOB", graph_of(operator))
        assert reply in (Error(f"ERR op {operator} is not allowed: {reason}"), Error(f"Op type not registered '{operator}'")), reply
    assert reply.text.startswith("ERR op ")
    assert wire("EXISTS", "m") == 0


@pytest.mark.needs_onnx
@pytest.mark.parametrize("where", ["canary.bin", "./canary.bin", "../canary.bin", "/etc/passwd", "*/_ORT_MEM_ADDR_/*"])
def test_weights_are_never_read_from_a_file(wire: Wire, files: Path, where: str) -> None:
    """The server works in the directory of its dump, which the library would take such names from."""
    from onnx import TensorProto, helper

    weights = TensorProto(name="W", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", where), ("offset", "0"), ("length", "8")):
        weights.external_data.add(key=key, value=value)
    identity = helper.make_node("Identity", ["W"], ["y"])
    inner = helper.make_graph([identity], "inner", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])], [weights])
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    branches = helper.make_node("If", ["true"], ["y"], then_branch=inner, else_branch=inner)
    outer = helper.make_graph([branches], "outer", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])], [true])
    for graph in (inner, outer):
        blob = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
        reply = wire.only_reply("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", blob)
        assert reply == Error("Initializer tensors with external data is not allowed.")
    assert wire("EXISTS", "m") == 0


# ---- runs that ask for too much ----------------------------------------------------------------------------------------------------------


def onnx_graph(*nodes: Any, inputs: tuple[str, ...] = ("n",)) -> bytes:
    """A model of opset 17 that takes 64-bit integers and gives `y`."""
    from onnx import TensorProto, helper

    given = [helper.make_tensor_value_info(name, TensorProto.INT64, [None]) for name in inputs]
    graph = helper.make_graph(list(nodes), "g", given, [helper.make_tensor_value_info("y", TensorProto.INT64, None)])
    return bytes(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def scan() -> bytes:
    """Adds its state to itself a million million times, by an iteration over a tensor that must be made first."""
    from onnx import TensorProto, helper

    state, item = (helper.make_tensor_value_info(name, TensorProto.INT64, []) for name in ("s", "i"))
    out = [helper.make_tensor_value_info("t", TensorProto.INT64, [])]
    body = helper.make_graph([helper.make_node("Add", ["s", "i"], ["t"])], "body", [state, item], out)
    zero = helper.make_node("Constant", [], ["zero"], value=helper.make_tensor("z", TensorProto.INT64, [], [0]))
    items = helper.make_node("ConstantOfShape", ["n"], ["items"], value=helper.make_tensor("v", TensorProto.INT64, [1], [1]))
    return onnx_graph(zero, items, helper.make_node("Scan", ["zero", "items"], ["y"], body=body, num_scan_inputs=1))


def too_large() -> dict[str, bytes]:
    from onnx import TensorProto, helper

    def node(kind: str, *inputs: str, **attributes: Any) -> Any:
        return helper.make_node(kind, list(inputs), ["y"], **attributes)

    return {
        "Expand": onnx_graph(node("Expand", "n", "n")),
        "Tile": onnx_graph(node("Tile", "n", "n")),
        "ConstantOfShape": onnx_graph(node("ConstantOfShape", "n", value=helper.make_tensor("v", TensorProto.INT64, [1], [1]))),
        "Scan": scan(),
    }


@pytest.mark.needs_onnx
@pytest.mark.skipif("SANITIZER" in os.environ, reason="a sanitizer's operator new ends the process instead of throwing")
@pytest.mark.parametrize("size", [1 << 46, 1 << 60, -5])
@pytest.mark.parametrize("kind", ["Expand", "Tile", "ConstantOfShape", "Scan"])
def test_a_run_that_asks_for_more_memory_than_there_is_fails_alone(wire: Wire, kind: str, size: int) -> None:
    assert wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", too_large()[kind]) == OK
    assert wire("AI.TENSORSET", "n", "INT64", 1, "VALUES", size) == OK
    reply = wire.only_reply("AI.MODELEXECUTE", "m", "INPUTS", 1, "n", "OUTPUTS", 1, "y")
    assert isinstance(reply, Error) and reply.text.strip()
    assert wire("EXISTS", "y") == 0
    assert calls(wire, "m") == (1, 1)
    assert wire("AI.TENSORSET", "n", "INT64", 1, "VALUES", 1) == OK
    assert wire("AI.MODELEXECUTE", "m", "INPUTS", 1, "n", "OUTPUTS", 1, "y") == OK


# ---- scripts -----------------------------------------------------------------------------------------------------------------------------

ENTRY = "def f(tensors: List[Tensor], keys: List[str], args: List[str]):\n"
GOOD = ENTRY + "    return tensors[0] * 2\n"


@pytest.fixture
def script(wire: Wire) -> Wire:
    """A script s that doubles, and a tensor a."""
    assert wire("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", GOOD) == OK
    assert wire("AI.TENSORSET", "a", "FLOAT", 2, "VALUES", 1, 2) == OK
    return wire


def run(wire: Wire) -> Any:
    return wire.only_reply("AI.SCRIPTEXECUTE", "s", "f", "INPUTS", 1, "a", "OUTPUTS", 1, "o")


NO_SCRIPTS: dict[str, tuple[list[str], str | bytes]] = {
    "syntax": (["f"], "def f(:\n"),
    "nothing": (["f"], ""),
    "no function": (["f"], "x = 1\n"),
    "an entry point that is not there": (["g"], GOOD),
    "one of two that is not there": (["f", "g"], GOOD),
    "another signature": (["f"], "def f(a, b):\n    return a\n"),
    "recursion": (["f"], ENTRY + "    return f(tensors, keys, args)\n"),
    "NUL": (["f"], GOOD.encode() + b"\0"),
    "no UTF-8": (["f"], ENTRY.encode() + b"    return '\xff'\n"),
    "ten megabytes": (["f"], GOOD + "#" * (10 << 20)),
    "ten thousand brackets": (["f"], ENTRY + f"    return {'(' * 10_000}tensors{')' * 10_000}\n"),
    "ten thousand blocks": (["f"], ENTRY + "".join(f"{' ' * (i + 4)}if True:\n" for i in range(3000)) + " " * 3005 + "return tensors\n"),
    "Python": (["f"], "import os\n" + ENTRY + "    os.system('touch canary')\n    return tensors\n"),
    "a file": (["f"], ENTRY + "    torch.save(tensors[0], 'canary')\n    return tensors\n"),
    "threads": (["f"], ENTRY + "    torch.set_num_threads(7)\n    return tensors\n"),
    "seed": (["f"], ENTRY + "    torch.manual_seed(7)\n    return tensors\n"),
    "default dtype": (["f"], ENTRY + "    torch.set_default_dtype(torch.float64)\n    return tensors\n"),
}


@pytest.mark.needs_torch
@pytest.mark.parametrize("what", NO_SCRIPTS)
def test_what_is_no_script_is_one_error_and_the_old_one_stays(script: Wire, files: Path, what: str) -> None:
    names, source = NO_SCRIPTS[what]
    before = script("DUMP", "s")
    for key in ("s", "fresh"):
        reply = script.only_reply("AI.SCRIPTSTORE", key, "CPU", "ENTRY_POINTS", len(names), *names, "SOURCE", source)
        assert isinstance(reply, Error) and reply.text.strip()
    assert script("EXISTS", "fresh") == 0
    assert script("DUMP", "s") == before
    assert run(script) == OK
    assert script("AI.TENSORGET", "o", "VALUES") == [b"2", b"4"]


FAILING = {
    "raises": "    raise ValueError('no')\n    return tensors\n",
    "no tensor": "    return 1\n",
    "a string": "    return 'x'\n",
    "nothing": "    print('x')\n",
    "too many": "    return [tensors[0], tensors[0]]\n",
    "more than a tensor may have": "    return torch.empty([1 << 40])\n",  # which a kernel may promise
    "more than there are addresses for": "    return torch.ones([1 << 46]).sum()\n",
    "out of range": "    return tensors[7]\n",
    "a dtype without a name": "    return tensors[0].half()\n",
}


@pytest.mark.needs_torch
@pytest.mark.parametrize("what", FAILING)
def test_a_script_that_fails_is_one_error_and_the_next_call_is_fine(script: Wire, what: str) -> None:
    assert script("AI.SCRIPTSTORE", "bad", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", ENTRY + FAILING[what]) == OK
    for _ in range(2):
        reply = script.only_reply("AI.SCRIPTEXECUTE", "bad", "f", "INPUTS", 1, "a", "OUTPUTS", 1, "o")
        assert isinstance(reply, Error) and reply.text.strip()
        assert script("EXISTS", "o") == 0
    assert calls(script, "bad") == (2, 2)
    assert run(script) == OK


@pytest.mark.needs_torch
def test_a_flood_of_prints_does_not_fill_the_log(script: Wire, real_server: Server) -> None:
    """What a script prints is told at the level `verbose`, which servers leave out unless they are told otherwise."""
    flood = ENTRY + "    for i in range(50000):\n        print('flood', i)\n    return tensors\n"
    assert script("AI.SCRIPTSTORE", "loud", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", flood) == OK
    before = len(real_server.log())
    assert script("AI.SCRIPTEXECUTE", "loud", "f", "INPUTS", 1, "a", "OUTPUTS", 1, "o") == OK
    assert len(real_server.log()) - before < 10_000


@pytest.mark.needs_torch
def test_a_long_source_is_compiled_while_the_server_answers(script: Wire, real_server: Server) -> None:
    source = ENTRY + "    x = tensors[0]\n" + "    x = x + 1\n" * 4_000 + "    return x\n"
    with Wire(real_server.port, timeout=120) as storing:
        storing.send("AI.SCRIPTSTORE", "long", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", source)
        answered = 0
        while info(script, "loads_in_progress") or not answered:
            assert script("PING") == Status("PONG")
            answered += 1
        assert storing.read() == OK
    assert answered > 100


@pytest.mark.needs_torch
def test_a_script_without_end_holds_one_worker_and_nobody_else(start_server: Callable[..., Server]) -> None:
    """It cannot be interrupted: the log names it, other workers and the loader go on, and the server stops when it is told to."""
    server = start_server(module_args=("THREADS_PER_QUEUE", "2", "MODEL_EXECUTION_TIMEOUT", "1000"), echo=False)
    with Wire(server.port, timeout=120) as wire, Wire(server.port) as stuck:
        assert wire("AI.TENSORSET", "a", "FLOAT", 2, "VALUES", 1, 2) == OK
        loop = ENTRY + "    x = 0\n    while len(tensors) > 0:\n        x = x + 1\n    return tensors\n"
        assert wire("AI.SCRIPTSTORE", "endless", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", loop) == OK
        stuck.send("AI.SCRIPTEXECUTE", "endless", "f", "INPUTS", 1, "a", "OUTPUTS", 1, "never")
        wait_running(wire)
        assert wire("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", GOOD) == OK
        for _ in range(20):
            assert run(wire) == OK
        line = "a run of endless takes longer than MODEL_EXECUTION_TIMEOUT; its backend cannot be interrupted"
        wait_until(lambda: line in server.log(), "the script to be named")
        assert wire("AI.SCRIPTDEL", "endless") == OK
        assert run(wire) == OK
        assert wire("EXISTS", "never") == 0
    assert server.stop() == 0
    assert "crashed by signal" not in server.log()
