"""Clients that are not run here: the commands that they form, sent byte by byte, and the replies that they can read.

JRedisAI, redisai-go and redisai-js need registries or tools that a test run does not have. What they send is known from how they are
documented and used, as is what they look for in a reply; each block below is one of them doing a whole round: tensors, a model, a script, a
DAG. Replies are compared with their types: these clients cast without asking.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from servers import EXAMPLE_MODELS, MODELS, Server
from wire import OK, Wire

pytestmark = [pytest.mark.needs_torch, pytest.mark.needs_onnx, pytest.mark.needs_tf]
pytest.importorskip("torch")

MULTIPLY = (MODELS / "two_inputs.onnx").read_bytes()
GRAPH = (EXAMPLE_MODELS / "digits.pb").read_bytes()
SCRIPT = "def bar(a, b):\n    return a + b\n"
NEW_SCRIPT = "def bar(tensors: List[Tensor], keys: List[str], args: List[str]):\n    return tensors[0] + tensors[1]\n"
INFO_FIELDS = [b"key", b"type", b"backend", b"device", b"tag", b"duration", b"samples", b"calls", b"errors"]


@pytest.fixture
def wire(real_server: Server) -> Iterator[Wire]:
    with Wire(real_server.port, timeout=120) as wire:
        yield wire


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def pairs(reply: list[Any]) -> dict[bytes, Any]:
    assert isinstance(reply, list) and len(reply) % 2 == 0 and all(isinstance(name, bytes) for name in reply[::2]), reply
    return dict(zip(reply[::2], reply[1::2], strict=True))


def check_info(reply: Any) -> None:
    """They walk over nine pairs, take strings for bulk and figures for integers."""
    assert isinstance(reply, list) and reply[::2] == INFO_FIELDS
    assert all(isinstance(value, bytes) for value in reply[1:10:2]) and all(type(value) is int for value in reply[11::2])


def test_jredisai_1_2(wire: Wire) -> None:
    """Numbers as VALUES, META VALUES back, blobs in chunks, the commands of RedisAI 1.2."""
    assert wire("AI.TENSORSET", "a", "FLOAT", "2", "2", "VALUES", "1.0", "2.0", "3.0", "4.0") == OK
    assert wire("AI.TENSORSET", "b", "FLOAT", "2", "2", "VALUES", "5.0", "6.0", "7.0", "8.0") == OK
    assert wire("AI.TENSORSET", "n", "INT64", "3", "VALUES", "1", "-2", "9223372036854775807") == OK
    reply = wire("AI.TENSORGET", "a", "META", "VALUES")
    assert reply == [b"dtype", b"FLOAT", b"shape", [2, 2], b"values", [b"1", b"2", b"3", b"4"]]
    assert pairs(wire("AI.TENSORGET", "n", "META", "VALUES"))[b"values"] == [1, -2, 9223372036854775807]

    chunks = [MULTIPLY[:100], MULTIPLY[100:]]
    options = ["TAG", "v1", "BATCHSIZE", "8", "MINBATCHSIZE", "1", "MINBATCHTIMEOUT", "1"]
    assert wire("AI.MODELSTORE", "m", "ONNX", "CPU", *options, "BLOB", *chunks) == OK
    assert wire("AI.MODELEXECUTE", "m", "INPUTS", "2", "a", "b", "OUTPUTS", "1", "c", "TIMEOUT", "10000") == OK
    assert wire("AI.TENSORGET", "c", "META", "VALUES")[5] == [b"5", b"12", b"21", b"32"]
    model = pairs(wire("AI.MODELGET", "m", "META", "BLOB"))
    assert (model[b"backend"], model[b"device"], model[b"tag"], model[b"blob"]) == (b"ONNX", b"CPU", b"v1", MULTIPLY)
    assert (model[b"batchsize"], model[b"minbatchsize"], model[b"minbatchtimeout"]) == (8, 1, 1)
    graph = ["INPUTS", "1", "x", "OUTPUTS", "1", "probabilities", "BLOB", GRAPH]
    assert wire("AI.MODELSTORE", "tf", "TF", "CPU", "BATCHSIZE", "0", *graph) == OK

    assert wire("AI.SCRIPTSTORE", "s", "CPU", "TAG", "t", "ENTRY_POINTS", "1", "bar", "SOURCE", NEW_SCRIPT) == OK
    assert wire("AI.SCRIPTEXECUTE", "s", "bar", "KEYS", "1", "a", "INPUTS", "2", "a", "b", "OUTPUTS", "1", "d", "TIMEOUT", "10000") == OK
    script = pairs(wire("AI.SCRIPTGET", "s", "META", "SOURCE"))
    assert (script[b"Entry Points"], script[b"source"]) == ([b"bar"], NEW_SCRIPT.encode())

    dag = ["AI.DAGEXECUTE", "LOAD", "2", "a", "b", "PERSIST", "1", "e", "TIMEOUT", "10000"]
    run = ["|>", "AI.MODELEXECUTE", "m", "INPUTS", "2", "a", "b", "OUTPUTS", "1", "e"]
    replies = wire(*dag, *run, "|>", "AI.TENSORGET", "e", "META", "VALUES")
    assert replies == [OK, [b"dtype", b"FLOAT", b"shape", [2, 2], b"values", [b"5", b"12", b"21", b"32"]]]
    check_info(wire("AI.INFO", "m"))
    assert wire("AI.INFO", "m", "RESETSTAT") == OK
    assert type(wire("AI.CONFIG", "GET", "MODEL_CHUNK_SIZE")) is int
    assert wire("AI.MODELDEL", "m") == wire("AI.SCRIPTDEL", "s") == OK


def test_redisai_go_1_0(wire: Wire) -> None:
    """The deprecated commands, names of inputs and outputs without a count in AI.MODELSET, META BLOB back."""
    assert wire("AI.TENSORSET", "a", "FLOAT", "2", "2", "BLOB", floats(1, 2, 3, 4)) == OK
    assert wire("AI.TENSORSET", "b", "FLOAT", "2", "2", "VALUES", "5", "6", "7", "8") == OK
    reply = wire("AI.TENSORGET", "a", "META", "BLOB")
    assert reply == [b"dtype", b"FLOAT", b"shape", [2, 2], b"blob", floats(1, 2, 3, 4)]
    assert wire("AI.TENSORGET", "a", "META")[:4] == reply[:4]

    assert wire("AI.MODELSET", "m", "ONNX", "CPU", "TAG", "v1", "BATCHSIZE", "4", "MINBATCHSIZE", "2", "BLOB", MULTIPLY) == OK
    assert wire("AI.MODELSET", "tf", "TF", "CPU", "INPUTS", "x", "OUTPUTS", "probabilities", "BLOB", GRAPH) == OK
    assert wire("AI.MODELSET", "m", "ONNX", "CPU", "BLOB", MULTIPLY) == OK
    assert wire("AI.MODELRUN", "m", "INPUTS", "a", "b", "OUTPUTS", "c") == OK
    assert wire("AI.TENSORGET", "c", "BLOB") == floats(5, 12, 21, 32)
    model = pairs(wire("AI.MODELGET", "tf", "META", "BLOB"))
    assert (model[b"backend"], model[b"inputs"], model[b"outputs"], model[b"blob"]) == (b"TF", [b"x"], [b"probabilities"], GRAPH)

    assert wire("AI.SCRIPTSET", "s", "CPU", "TAG", "t", "SOURCE", SCRIPT) == OK
    assert wire("AI.SCRIPTRUN", "s", "bar", "INPUTS", "a", "b", "OUTPUTS", "d") == OK
    assert wire("AI.TENSORGET", "d", "VALUES") == [b"6", b"8", b"10", b"12"]
    assert pairs(wire("AI.SCRIPTGET", "s", "META", "SOURCE"))[b"source"] == SCRIPT.encode()

    dag = ["AI.DAGRUN", "LOAD", "2", "a", "b", "PERSIST", "1", "e", "|>", "AI.MODELRUN", "m", "INPUTS", "a", "b", "OUTPUTS", "e"]
    assert wire(*dag, "|>", "AI.TENSORGET", "e", "META", "BLOB") == [OK, [*reply[:5], floats(5, 12, 21, 32)]]
    read_only = ["AI.DAGRUN_RO", "LOAD", "1", "a", "|>", "AI.TENSORGET", "a", "META", "BLOB"]
    assert wire(*read_only) == [reply]
    check_info(wire("AI.INFO", "m"))
    assert wire("AI.MODELDEL", "m") == wire("AI.SCRIPTDEL", "s") == OK


def test_redisai_js_1_0(wire: Wire) -> None:
    """As redisai-go, with numbers as VALUES throughout; names of commands in lower case."""
    assert wire("ai.tensorset", "a", "FLOAT", "1", "2", "VALUES", "2", "3") == OK
    assert wire("ai.tensorset", "b", "FLOAT", "1", "2", "VALUES", "3", "5") == OK
    reply = pairs(wire("ai.tensorget", "a", "META", "VALUES"))
    assert reply == {b"dtype": b"FLOAT", b"shape": [1, 2], b"values": [b"2", b"3"]}
    assert wire("ai.modelset", "m", "ONNX", "CPU", "BLOB", MULTIPLY) == OK
    assert wire("ai.modelrun", "m", "INPUTS", "a", "b", "OUTPUTS", "c") == OK
    assert pairs(wire("ai.tensorget", "c", "META", "VALUES"))[b"values"] == [b"6", b"15"]
    assert pairs(wire("ai.modelget", "m", "META", "BLOB"))[b"blob"] == MULTIPLY
    assert wire("ai.scriptset", "s", "CPU", "SOURCE", SCRIPT) == OK
    assert wire("ai.scriptrun", "s", "bar", "INPUTS", "a", "b", "OUTPUTS", "d") == OK
    dag = ["ai.dagrun", "LOAD", "2", "a", "b", "PERSIST", "1", "d"]
    script = ["|>", "ai.scriptrun", "s", "bar", "INPUTS", "a", "b", "OUTPUTS", "d"]
    assert wire(*dag, *script, "|>", "ai.tensorget", "d", "META", "VALUES")[1][5] == [b"5", b"8"]
    check_info(wire("ai.info", "m"))
    assert wire("ai.info", "m", "RESETSTAT") == OK
    assert wire("ai.config", "BACKENDSPATH", "/usr/lib/redis/modules/backends/") == OK
    assert wire("ai.modeldel", "m") == wire("ai.scriptdel", "s") == OK
