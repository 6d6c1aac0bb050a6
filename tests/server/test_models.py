"""Models and scripts as keys: every row of the argument tables of the store, show, delete and list commands, and what storing promises.

Models here belong to the echo backend; what the real ones say to a model is tested with them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import echo_model
from fake_master import FakeMaster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import Server, wait_until
from wire import OK, QUEUED, Error, Status, Wire

WRONGTYPE = Error("WRONGTYPE Operation against a key holding the wrong kind of value")
MODEL = echo_model(inputs=2, outputs=1)
SOURCE = "def bar(a, b):\n    return a + b\n"
ENTRY = "def f(tensors: List[Tensor], keys: List[str], args: List[str]):\n    return tensors[0]\n"

NO_BLOB = "ERR Insufficient arguments, missing model BLOB"
DEVICE = "ERR Invalid DEVICE"
EXPECTED_BLOB = "ERR Invalid argument, expected BLOB"
NO_ENTRY_POINTS = "ERR Insufficient arguments, missing script entry points"
NO_SOURCE = "ERR Insufficient arguments, missing script SOURCE"
LOOSE_INTS_REFUSED = ("x", "", "-1", "1.5", "inf", "nan", "1e30", " 1")

patiently = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    with Wire(server.port) as wire:
        wire("AI.CONFIG", "MODEL_CHUNK_SIZE", 511 * 2**20)
        yield wire


def refused(wire: Wire, command: str, *arguments: Any) -> str:
    """The error of a store command on a fresh key, which must leave no key."""
    reply = wire.only_reply(command, "fresh", *arguments)
    assert isinstance(reply, Error), reply
    assert wire("EXISTS", "fresh") == 0
    return reply.text


def fields(wire: Wire, key: str = "m", command: str = "AI.MODELGET") -> dict[str, Any]:
    reply = wire.only_reply(command, key)
    return dict(zip((name.decode() for name in reply[::2]), reply[1::2], strict=True))


# ---- AI.MODELSTORE ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        # backend and device
        *[((backend, "CPU", "BLOB", "x"), "ERR unsupported backend") for backend in ("NOPE", "", "TFL", "TORCHES")],
        *[
            (("TORCH", device, "BLOB", "x"), DEVICE)
            for device in ("", "NOPE", "CPUX", "CP", "GPU1", "CPU:x", "CPU:1x", "CPU:-1", "CPU:123456", "CPU 1", b"CPU:\0", "TPU:0")
        ],
        # sizes of batches
        *[(("TORCH", "CPU", "BATCHSIZE", n, "BLOB", "x"), "ERR Invalid argument for BATCHSIZE") for n in LOOSE_INTS_REFUSED],
        *[
            (("TORCH", "CPU", "BATCHSIZE", 2, "MINBATCHSIZE", n, "BLOB", "x"), "ERR Invalid argument for MINBATCHSIZE")
            for n in LOOSE_INTS_REFUSED
        ],
        (("TORCH", "CPU", "MINBATCHSIZE", 2, "BLOB", "x"), "ERR MINBATCHSIZE specified without BATCHSIZE"),
        (("TORCH", "CPU", "BATCHSIZE", 0, "MINBATCHSIZE", 2, "BLOB", "x"), "ERR MINBATCHSIZE specified without BATCHSIZE"),
        *[
            (
                ("TORCH", "CPU", "BATCHSIZE", 2, "MINBATCHSIZE", 1, "MINBATCHTIMEOUT", n, "BLOB", "x"),
                "ERR Invalid argument for MINBATCHTIMEOUT",
            )
            for n in LOOSE_INTS_REFUSED
        ],
        (("TORCH", "CPU", "MINBATCHTIMEOUT", 2, "BLOB", "x"), "ERR MINBATCHTIMEOUT specified without MINBATCHSIZE"),
        (("TORCH", "CPU", "BATCHSIZE", 2, "MINBATCHTIMEOUT", 2, "BLOB", "x"), "ERR MINBATCHTIMEOUT specified without MINBATCHSIZE"),
        (
            ("TORCH", "CPU", "BATCHSIZE", 2, "MINBATCHSIZE", 0, "MINBATCHTIMEOUT", 2, "BLOB", "x"),
            "ERR MINBATCHTIMEOUT specified without MINBATCHSIZE",
        ),
        (("TORCH", "CPU", "TAG", "t", "BATCHSIZE"), "ERR Invalid argument for BATCHSIZE"),
        (("TORCH", "CPU", "TAG", "t"), NO_BLOB),
        (("TORCH", "CPU", "BATCHSIZE", 2), NO_BLOB),
        # names of inputs and outputs
        (("TF", "CPU", "BLOB", "x"), "ERR INPUTS not specified for TF"),
        (("TF", "CPU", "OUTPUTS", 1, "b", "BLOB", "x"), "ERR INPUTS not specified for TF"),
        (("TF", "CPU", "TAG", "t", "INPUTS"), "ERR Invalid argument for input_count"),
        *[
            (("TF", "CPU", "INPUTS", n, "a", "OUTPUTS", 1, "b", "BLOB", "x"), "ERR Invalid argument for input_count")
            for n in (*LOOSE_INTS_REFUSED, 0)
        ],
        (("TF", "CPU", "INPUTS", 9, "a", "BLOB", "x"), "ERR number of model inputs does not match the number of given arguments"),
        (("TF", "CPU", "INPUTS", 2**62, "a", "BLOB", "x"), "ERR number of model inputs does not match the number of given arguments"),
        (("TF", "CPU", "INPUTS", 1, "a", "BLOB", "x"), "ERR OUTPUTS not specified for TF"),
        (("TF", "CPU", "INPUTS", 1, "a"), "ERR OUTPUTS not specified for TF"),
        (("TF", "CPU", "INPUTS", 1, "a", "OUTPUTS"), "ERR Invalid argument for output_count"),
        *[
            (("TF", "CPU", "INPUTS", 1, "a", "OUTPUTS", n, "b", "BLOB", "x"), "ERR Invalid argument for output_count")
            for n in (*LOOSE_INTS_REFUSED, 0)
        ],
        (
            ("TF", "CPU", "INPUTS", 1, "a", "OUTPUTS", 4, "b", "BLOB", "x"),
            "ERR number of model outputs does not match the number of given arguments",
        ),
        (("TF", "CPU", "INPUTS", 1, "a", "OUTPUTS", 1, "b"), EXPECTED_BLOB),
        (("TF", "CPU", "INPUTS", 1, "a", "OUTPUTS", 1, "b", "c", "BLOB", "x"), EXPECTED_BLOB),
        *[
            (
                (backend, "CPU", "INPUTS", 1, "a", "OUTPUTS", 1, "b", "BLOB", "x"),
                "ERR INPUTS argument should not be specified for this backend",
            )
            for backend in ("TORCH", "ONNX", "TFLITE")
        ],
        (("ONNX", "CPU", "OUTPUTS", 1, "b", "BLOB", "x"), EXPECTED_BLOB),
        # the blob
        (("TORCH", "CPU", "x", "y"), EXPECTED_BLOB),
        (("TORCH", "CPU", "TAG", "t", "BLOB"), NO_BLOB),
        # options in another order are not options
        (("TORCH", "CPU", "BATCHSIZE", 2, "TAG", "t", "BLOB", "x"), EXPECTED_BLOB),
        (("TORCH", "CPU", "MINBATCHSIZE", 0, "BATCHSIZE", 2, "BLOB", "x"), EXPECTED_BLOB),
        (("TORCH", "CPU", "BATCHSIZE", 2, "BATCHSIZE", 2, "BLOB", "x"), EXPECTED_BLOB),
        # the first error of several
        (("NOPE", "NOPE", "BATCHSIZE", "x"), "ERR unsupported backend"),
        (("TORCH", "NOPE", "BATCHSIZE", "x"), DEVICE),
        (("TORCH", "CPU", "BATCHSIZE", "x", "MINBATCHSIZE", "x"), "ERR Invalid argument for BATCHSIZE"),
    ],
)
def test_wrong_arguments_of_modelstore(wire: Wire, arguments: tuple[Any, ...], error: str) -> None:
    assert refused(wire, "AI.MODELSTORE", *arguments) == error


@pytest.mark.parametrize("device", ["CPU", "cpu", "Cpu:", "CPU:1", "cpu:00001", "CPU:12345"])
def test_a_device_is_shown_as_it_was_given(wire: Wire, device: str) -> None:
    assert wire.only_reply("AI.MODELSTORE", "m", "ONNX", device, "BLOB", MODEL) == OK
    assert fields(wire)["device"] == device.encode()


def test_everything_modelstore_takes_is_shown_by_modelget(wire: Wire) -> None:
    names = ("INPUTS", "2", "a", "b", "OUTPUTS", "1", "c")
    options = ("TAG", "v1", "BATCHSIZE", "8", "MINBATCHSIZE", "2", "MINBATCHTIMEOUT", "5")
    assert wire.only_reply("AI.MODELSTORE", "m", "TF", "CPU", *options, *names, "BLOB", MODEL) == OK
    reply = wire.only_reply("AI.MODELGET", "m")
    assert reply == [
        b"backend", b"TF", b"device", b"CPU", b"tag", b"v1", b"batchsize", 8, b"minbatchsize", 2,
        b"inputs", [b"a", b"b"], b"outputs", [b"c"], b"minbatchtimeout", 5, b"blob", MODEL.encode(),
    ]  # fmt: skip


def test_what_is_not_given_is_shown_as_empty(wire: Wire) -> None:
    assert wire.only_reply("ai.modelstore", "m", "onnx", "cpu", "blob", MODEL) == OK
    got = fields(wire)
    assert list(got) == ["backend", "device", "tag", "batchsize", "minbatchsize", "inputs", "outputs", "minbatchtimeout", "blob"]
    assert (got["backend"], got["device"], got["tag"]) == (b"ONNX", b"cpu", b"")
    assert (got["batchsize"], got["minbatchsize"], got["minbatchtimeout"]) == (0, 0, 0)
    assert (len(got["inputs"]), len(got["outputs"])) == (2, 1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("BATCHSIZE", "3.0"), (3, 0, 0)),
        (("BATCHSIZE", "1e2"), (100, 0, 0)),
        (("BATCHSIZE", 0, "MINBATCHSIZE", 0, "MINBATCHTIMEOUT", 0), (0, 0, 0)),
        (("MINBATCHSIZE", 0), (0, 0, 0)),
        (("MINBATCHTIMEOUT", 0), (0, 0, 0)),
        (("BATCHSIZE", 2, "MINBATCHSIZE", 9), (2, 9, 0)),
        (("BATCHSIZE", 2, "MINBATCHSIZE", 1, "MINBATCHTIMEOUT", 7), (2, 1, 7)),
    ],
)
def test_sizes_of_batches_that_modelstore_takes(wire: Wire, options: tuple[Any, ...], expected: tuple[int, int, int]) -> None:
    assert wire.only_reply("AI.MODELSTORE", "m", "TFLITE", "CPU", *options, "BLOB", MODEL) == OK
    got = fields(wire)
    assert (got["batchsize"], got["minbatchsize"], got["minbatchtimeout"]) == expected


@pytest.mark.parametrize("tag", ["BLOB", "TAG", "", b"\0\xff", "BATCHSIZE"])
def test_a_tag_is_whatever_follows_the_keyword(wire: Wire, tag: Any) -> None:
    assert wire.only_reply("AI.MODELSTORE", "m", "TORCH", "CPU", "TAG", tag, "BLOB", MODEL) == OK
    assert fields(wire)["tag"] == (tag if isinstance(tag, bytes) else tag.encode())


def test_a_model_that_cannot_be_opened_is_refused_in_one_line(wire: Wire) -> None:
    assert refused(wire, "AI.MODELSTORE", "TORCH", "CPU", "BLOB", echo_model(open_raise="two\nlines\r\n")) == "two lines  "
    assert refused(wire, "AI.MODELSTORE", "TORCH", "CPU", "BLOB", "").startswith("ERR not an echo model")
    assert refused(wire, "AI.MODELSTORE", "TORCH", "CPU", "BLOB", "x").startswith("ERR not an echo model")
    assert wire("AI._MODELSCAN") == []


def test_a_failed_store_leaves_the_model_that_was_there(wire: Wire) -> None:
    wire("AI.MODELSTORE", "m", "TORCH", "CPU", "TAG", "old", "BLOB", MODEL)
    wire("EXPIRE", "m", 100)
    assert isinstance(wire.only_reply("AI.MODELSTORE", "m", "TORCH", "CPU", "TAG", "new", "BLOB", "x"), Error)
    assert isinstance(wire.only_reply("AI.MODELSTORE", "m", "TORCH", "NOPE", "BLOB", MODEL), Error)
    assert fields(wire)["tag"] == b"old" and wire("TTL", "m") > 0
    assert wire("AI._MODELSCAN") == [[b"m", b"old"]]


def test_a_missing_backend_is_said(start_server: Callable[..., Server]) -> None:
    server = start_server(env={"REDISAI_TEST_BACKEND": "fault"})
    with Wire(server.port) as wire:
        for _ in range(2):
            assert refused(wire, "AI.MODELSTORE", "ONNX", "CPU", "BLOB", "x") == "ERR Could not load backend"
            assert refused(wire, "AI.SCRIPTSET", "CPU", "SOURCE", SOURCE) == "ERR Could not load backend"


# ---- AI.MODELSET --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("NOPE", "CPU"), "ERR unsupported backend"),
        (("TORCH", "CPU"), NO_BLOB),
        *[(("TORCH", device, "BLOB", "x"), DEVICE) for device in ("INPUTS", "outputs", "TAG", "BATCHSIZE", "MINBATCHSIZE", "BLOB")],
        (("TORCH", "MINBATCHTIMEOUT", "BLOB", "x"), DEVICE),
        (("TORCH", "CPU:1234567", "BLOB", "x"), DEVICE),
        (("TFLITE", "CPU", "BATCHSIZE", 2, "BLOB", "x"), "ERR Auto-batching not supported by the TFLITE backend"),
        *[(("TORCH", "CPU", "BATCHSIZE", n, "BLOB", "x"), "ERR Invalid argument for BATCHSIZE") for n in LOOSE_INTS_REFUSED],
        *[
            (("TORCH", "CPU", "BATCHSIZE", 2, "MINBATCHSIZE", n, "BLOB", "x"), "ERR Invalid argument for MINBATCHSIZE")
            for n in LOOSE_INTS_REFUSED
        ],
        *[
            (
                ("TORCH", "CPU", "BATCHSIZE", 2, "MINBATCHSIZE", 2, "MINBATCHTIMEOUT", n, "BLOB", "x"),
                "ERR Invalid argument for MINBATCHTIMEOUT",
            )
            for n in LOOSE_INTS_REFUSED
        ],
        (("TORCH", "CPU", "MINBATCHSIZE", 0, "BLOB", "x"), "ERR MINBATCHSIZE specified without BATCHSIZE"),
        (("TORCH", "CPU", "BATCHSIZE", 0, "MINBATCHSIZE", 1, "BLOB", "x"), "ERR MINBATCHSIZE specified without BATCHSIZE"),
        (("TORCH", "CPU", "MINBATCHTIMEOUT", 1, "BLOB", "x"), "ERR MINBATCHTIMEOUT specified without BATCHSIZE"),
        (("TORCH", "CPU", "BATCHSIZE", 1, "MINBATCHTIMEOUT", 0, "BLOB", "x"), "ERR MINBATCHTIMEOUT specified without MINBATCHSIZE"),
        (("TORCH", "CPU", "TAG", "t"), NO_BLOB),
        (("TORCH", "CPU", "TAG"), NO_BLOB),
        (("TORCH", "CPU", "BLOB"), NO_BLOB),
        (("TORCH", "CPU", "ignored", "x"), NO_BLOB),
        (("TF", "CPU", "BLOB", "x"), "ERR Insufficient arguments, INPUTS and OUTPUTS not specified"),
        (("TF", "CPU", "OUTPUTS", "b", "BLOB", "x"), "ERR INPUTS not specified"),
        (("TF", "CPU", "a", "BLOB", "x"), "ERR INPUTS not specified"),
        (("TF", "CPU", "INPUTS", "a", "BLOB", "x"), "ERR OUTPUTS not specified"),
        (("TF", "CPU", "INPUTS", "a"), "ERR OUTPUTS not specified"),
        (("TF", "CPU", "INPUTS", "a", "OUTPUTS", "b"), NO_BLOB),
        (("TF", "CPU", "INPUTS", "a", "OUTPUTS", "b", "BLOB"), NO_BLOB),
        # the library's word on a device
        (("TORCH", "FOO", "BLOB", MODEL), "ERR unsupported device"),
    ],
)
def test_wrong_arguments_of_modelset(wire: Wire, arguments: tuple[Any, ...], error: str) -> None:
    assert refused(wire, "AI.MODELSET", *arguments) == error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("TORCH", "CPUwhat"), {"device": b"CPUwhat"}),
        (("TORCH", "CPU", "what", "ever"), {"backend": b"TORCH"}),
        (("ONNX", "CPU", "INPUTS", "a", "OUTPUTS", "b"), {"inputs": [b"input_0", b"input_1"]}),
        (("TF", "CPU", "INPUTS", "a", "b", "OUTPUTS", "c"), {"inputs": [b"a", b"b"], "outputs": [b"c"]}),
        (("TF", "CPU", "TAG", "t", "BATCHSIZE", 4, "MINBATCHSIZE", 2, "MINBATCHTIMEOUT", 9, "INPUTS", "a", "OUTPUTS", "c"),
         {"tag": b"t", "batchsize": 4, "minbatchsize": 2, "minbatchtimeout": 9}),
    ],
)  # fmt: skip
def test_accepted_forms_of_modelset(wire: Wire, arguments: tuple[Any, ...], expected: dict[str, Any]) -> None:
    assert wire.only_reply("AI.MODELSET", "m", *arguments, "BLOB", MODEL) == OK
    got = fields(wire)
    assert {name: got[name] for name in expected} == expected
    assert got["blob"] == MODEL.encode()


# ---- AI.SCRIPTSTORE and AI.SCRIPTSET ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("CPU", "SOURCE", SOURCE, 1, "f", "x"), NO_ENTRY_POINTS),
        (("CPU", "TAG", "t", "SOURCE", SOURCE, "x"), NO_ENTRY_POINTS),
        *[
            (("CPU", "ENTRY_POINTS", n, "f", "SOURCE", ENTRY), "ERR Non numeric entry points number provided to AI.SCRIPTSTORE command")
            for n in ("x", "", "1.5", "nan", "1e30")
        ],
        (("CPU", "TAG", "t", "TAG", "t", "ENTRY_POINTS"), NO_ENTRY_POINTS),
        (("CPU", "ENTRY_POINTS", -1, "f", "SOURCE", ENTRY), NO_ENTRY_POINTS),
        (("CPU", "ENTRY_POINTS", 9, "f", "SOURCE", ENTRY), NO_ENTRY_POINTS),
        (("CPU", "ENTRY_POINTS", 2**62, "f", "SOURCE", ENTRY), NO_ENTRY_POINTS),
        (("CPU", "ENTRY_POINTS", 3, "f", "SOURCE", ENTRY), NO_SOURCE),
        (("CPU", "ENTRY_POINTS", 2, "f", "SOURCE", ENTRY), NO_SOURCE),
        (("CPU", "ENTRY_POINTS", 1, "f", "g", "SOURCE"), NO_SOURCE),
        (("CPU", "ENTRY_POINTS", 2, "f", "g", "SOURCE"), NO_SOURCE),
    ],
)
def test_wrong_arguments_of_scriptstore(wire: Wire, arguments: tuple[Any, ...], error: str) -> None:
    assert refused(wire, "AI.SCRIPTSTORE", *arguments) == error


@pytest.mark.parametrize(
    "arguments", [("CPU", "x", SOURCE), ("CPU", "TAG", "t"), ("CPU", "TAG", "t", "x", SOURCE), ("CPU", "TAG", "SOURCE", SOURCE, "x")]
)
def test_wrong_arguments_of_scriptset(wire: Wire, arguments: tuple[Any, ...]) -> None:
    assert refused(wire, "AI.SCRIPTSET", *arguments) == NO_SOURCE


@pytest.mark.needs_torch
def test_forms_of_scriptstore_and_scriptset(wire: Wire) -> None:
    assert wire.only_reply("AI.SCRIPTSTORE", "s", "CPU", "TAG", "v1", "ENTRY_POINTS", 1, "f", "SOURCE", ENTRY) == OK
    meta = [b"device", b"CPU", b"tag", b"v1", b"Entry Points", [b"f"]]
    assert wire("AI.SCRIPTGET", "s") == [*meta, b"source", ENTRY.encode()]
    assert wire("AI.SCRIPTGET", "s", "META") == meta
    assert wire("AI.SCRIPTGET", "s", "source") == ENTRY.encode()
    assert wire("AI.SCRIPTGET", "s", "SOURCE", "META") == [*meta, b"source", ENTRY.encode()]
    assert wire("AI.SCRIPTGET", "s", "what", "ever") == [*meta, b"source", ENTRY.encode()]
    # a count that is a double, and words after the source
    assert wire.only_reply("AI.SCRIPTSTORE", "s", "cpu:1", "ENTRY_POINTS", "1.0", "f", "SOURCE", ENTRY, "what", "ever") == OK
    assert fields(wire, "s", "AI.SCRIPTGET") == {"device": b"cpu:1", "tag": b"", "Entry Points": [b"f"], "source": ENTRY.encode()}
    assert wire.only_reply("AI.SCRIPTSTORE", "s", "CPU", "TAG", "t", "ENTRY_POINTS", 0, "SOURCE", SOURCE) == OK
    assert fields(wire, "s", "AI.SCRIPTGET")["Entry Points"] == []
    assert wire.only_reply("AI.SCRIPTSET", "s", "CPU", "SOURCE", SOURCE) == OK
    assert fields(wire, "s", "AI.SCRIPTGET") == {"device": b"CPU", "tag": b"", "Entry Points": [], "source": SOURCE.encode()}
    assert wire.only_reply("AI.SCRIPTSET", "s", "CPU", "TAG", "v2", "SOURCE", SOURCE) == OK
    assert wire("AI._SCRIPTSCAN") == [[b"s", b"v2"]]


@pytest.mark.needs_torch
def test_a_script_that_does_not_compile_is_refused_in_one_line(wire: Wire) -> None:
    error = refused(wire, "AI.SCRIPTSET", "CPU", "SOURCE", "return 1")
    assert error.startswith("expected def but found 'return' here") and "\n" not in error
    assert refused(wire, "AI.SCRIPTSET", "NOPE", "SOURCE", SOURCE) == "ERR unsupported device"
    assert refused(wire, "AI.SCRIPTSET", "N" * 64, "SOURCE", SOURCE) == "ERR unsupported device"


# ---- arity and empty keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "counts"),
    [
        ("AI.MODELSTORE", (0, 1, 4)),
        ("AI.MODELSET", (0, 2)),
        ("AI.MODELGET", (0, 4)),
        ("AI.MODELDEL", (0, 2)),
        ("AI._MODELSCAN", (1, 2)),
        ("AI.SCRIPTSTORE", (0, 6)),
        ("AI.SCRIPTSET", (0, 3, 5, 7)),
        ("AI.SCRIPTGET", (0, 4)),
        ("AI.SCRIPTDEL", (0, 2)),
        ("AI._SCRIPTSCAN", (1, 2)),
    ],
)
def test_wrong_number_of_arguments(wire: Wire, command: str, counts: tuple[int, ...]) -> None:
    for n in counts:
        assert wire.only_reply(command, *["x"] * n) == wire.arity(command)


@pytest.mark.parametrize("kind", ["model", "script"])
@pytest.mark.parametrize("what", ["GET", "DEL"])
def test_empty_keys_and_keys_of_another_type(wire: Wire, kind: str, what: str) -> None:
    wire("SET", "text", "x")
    wire("AI.TENSORSET", "tensor", "INT8", 1)
    store(wire, "model", "script" if kind == "model" else "model")
    command = f"AI.{kind}{what}".upper()
    assert wire.only_reply(command, "missing") == Error(f"ERR {kind} key is empty")
    for key in ("text", "tensor", "model"):
        before = wire("DUMP", key)
        assert wire.only_reply(command, key) == WRONGTYPE
        assert wire("DUMP", key) == before


def store(wire: Wire, key: str, kind: str, tag: str = "") -> None:
    """Stores in a transaction, where nothing is opened first, so that no library is needed. A model's opening is waited for afterwards."""
    wire("MULTI")
    if kind == "model":
        wire("AI.MODELSTORE", key, "TORCH", "CPU", "TAG", tag, "BLOB", MODEL)
    else:
        wire("AI.SCRIPTSET", key, "CPU", "TAG", tag, "SOURCE", SOURCE)
    assert wire("EXEC") == [OK]
    if kind == "model":
        wire("AI.MODELGET", key, "META")


STORES = {
    "AI.MODELSTORE": ("TORCH", "CPU", "BLOB", MODEL),
    "AI.MODELSET": ("TORCH", "CPU", "BLOB", MODEL),
    "AI.SCRIPTSTORE": ("CPU", "ENTRY_POINTS", "1", "f", "SOURCE", ENTRY),
    "AI.SCRIPTSET": ("CPU", "SOURCE", SOURCE),
}


@pytest.mark.parametrize("command", STORES)
def test_stores_do_not_overwrite_another_type(wire: Wire, command: str) -> None:
    """Argument errors come first, whether the client may wait or not."""
    wire("SET", "text", "x")
    store(wire, "other", "script" if "MODEL" in command else "model")
    for key in ("text", "other"):
        before = wire("DUMP", key)
        assert wire.only_reply(command, key, *STORES[command]) == WRONGTYPE
        assert wire.only_reply(command, key, "NOPE", *STORES[command][1:]) != WRONGTYPE or "SCRIPT" in command
        wire("MULTI")
        wire(command, key, *STORES[command])
        assert wire("EXEC") == [WRONGTYPE]
        assert wire("DUMP", key) == before


def test_a_key_that_becomes_another_type_while_a_model_opens(server: Server, wire: Wire) -> None:
    with Wire(server.port) as other:
        other.send("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model(open_sleep=0.2))
        wait_until(lambda: info(wire, "clients")["blocked_clients"] == "1", "the store waits")
        wire("SET", "m", "text")
        assert other.read() == WRONGTYPE
        assert other("PING") == Status("PONG")
    assert wire("GET", "m") == b"text"
    assert wire("AI._MODELSCAN") == []


def info(wire: Wire, section: str) -> dict[str, str]:
    lines = wire("INFO", section).decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


# ---- AI.MODELGET --------------------------------------------------------------------------------------------------------------------


def test_forms_of_modelget(wire: Wire) -> None:
    wire("AI.MODELSTORE", "m", "TF", "CPU", "INPUTS", 1, "a", "OUTPUTS", 1, "b", "BLOB", MODEL)
    whole = wire("AI.MODELGET", "m")
    assert len(whole) == 18 and whole[-2:] == [b"blob", MODEL.encode()]
    assert wire("AI.MODELGET", "m", "META") == whole[:16]
    assert wire("AI.MODELGET", "m", "meta", "meta") == whole[:16]
    assert wire("AI.MODELGET", "m", "BLOB") == MODEL.encode()
    for options in (("META", "BLOB"), ("BLOB", "META"), ("what",), ("what", "ever")):
        assert wire("AI.MODELGET", "m", *options) == whole
    assert wire("AI.MODELGET", "m", "what", "META") == whole[:16]
    assert wire("AI.MODELGET", "m", "what", "BLOB") == MODEL.encode()
    with Wire(wire.socket.getpeername()[1], resp=3) as resp3:
        assert resp3("AI.MODELGET", "m") == whole


@pytest.mark.parametrize("size", [1, 2, 7, len(MODEL) - 1, len(MODEL), len(MODEL) + 1])
def test_a_blob_above_the_chunk_size_comes_in_chunks_and_the_last_may_be_empty(wire: Wire, size: int) -> None:
    wire("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", MODEL)
    assert wire("AI.CONFIG", "MODEL_CHUNK_SIZE", size) == OK
    blob = wire("AI.MODELGET", "m", "BLOB")
    assert wire("AI.MODELGET", "m")[-1] == blob
    if len(MODEL) < size:
        assert blob == MODEL.encode()
    else:
        assert b"".join(blob) == MODEL.encode()
        assert [len(chunk) for chunk in blob] == [size] * (len(MODEL) // size) + [len(MODEL) % size]


@patiently
@given(st.lists(st.integers(0, len(MODEL)), max_size=6))
def test_a_blob_may_come_in_any_chunks(wire: Wire, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(MODEL)]
    chunks = [MODEL[a:b] for a, b in pairwise(edges)]
    assert wire.only_reply("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", *chunks) == OK
    assert wire("AI.MODELGET", "m", "BLOB") == MODEL.encode()


def test_big_chunks_are_joined_as_they_came(wire: Wire) -> None:
    padded = [MODEL[:-1], " " * 100_000, "\n" * 40_000, " " * 32_768, MODEL[-1:]]
    assert wire.only_reply("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", *padded) == OK
    assert wire("AI.MODELGET", "m", "BLOB") == "".join(padded).encode()
    many = [*MODEL[:-1], *[" "] * 200_000, MODEL[-1:]]
    assert wire.only_reply("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", *many) == OK
    assert wire("AI.MODELGET", "m", "BLOB") == "".join(many).encode()


def test_limits_on_the_size_of_blobs(start_server: Callable[..., Server]) -> None:
    server = start_server(module_args=["MAX_MODEL_BYTES", str(len(MODEL)), "MAX_SCRIPT_BYTES", "100"])
    with Wire(server.port) as wire:
        assert wire("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", MODEL) == OK
        for chunks in ((MODEL + " ",), (MODEL, " ")):
            assert refused(wire, "AI.MODELSTORE", "TORCH", "CPU", "BLOB", *chunks) == "ERR model is larger than MAX_MODEL_BYTES"
        assert refused(wire, "AI.SCRIPTSET", "CPU", "SOURCE", "#" * 101) == "ERR script is larger than MAX_SCRIPT_BYTES"


# ---- AI.MODELDEL, AI.SCRIPTDEL and the scans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "script"])
def test_deleting(wire: Wire, kind: str) -> None:
    store(wire, "a", kind)
    assert wire.only_reply(f"AI.{kind}DEL".upper(), "a") == OK
    assert wire("EXISTS", "a") == 0
    assert wire.only_reply(f"AI.{kind}DEL".upper(), "a") == Error(f"ERR {kind} key is empty")
    assert wire(f"AI._{kind}SCAN".upper()) == []


def test_models_are_listed_newest_first_and_scripts_oldest_first(wire: Wire) -> None:
    for n in range(3):
        store(wire, f"m{n}", "model", f"v{n}")
        store(wire, f"s{n}", "script", "" if n == 1 else f"w{n}")
    assert wire.only_reply("AI._MODELSCAN") == [[b"m2", b"v2"], [b"m1", b"v1"], [b"m0", b"v0"]]
    assert wire.only_reply("AI._SCRIPTSCAN") == [[b"s0", b"w0"], [b"s1", b""], [b"s2", b"w2"]]
    store(wire, "m0", "model", "again")
    assert wire("AI._MODELSCAN")[0] == [b"m0", b"again"]
    assert len(wire("AI._MODELSCAN")) == 3


@pytest.mark.parametrize("kind", ["model", "script"])
def test_scans_show_what_is_in_the_keyspace_and_nothing_else(wire: Wire, kind: str) -> None:
    def scan() -> list[Any]:
        return sorted(wire(f"AI._{kind}SCAN".upper()))

    for key in "abcdefg":
        store(wire, key, kind, key.upper())
    wire("DEL", "a")
    wire("UNLINK", "b")
    wire("RENAME", "c", "renamed")
    wire("COPY", "d", "copy")
    wire("MOVE", "e", 1)
    wire("PEXPIREAT", "f", 1)
    wire("EXISTS", "f")
    wire("SET", "g", "text")
    assert scan() == sorted([[b"renamed", b"C"], [b"d", b"D"], [b"copy", b"D"], [b"e", b"E"]])
    wire("FLUSHALL")
    assert scan() == []
    store(wire, "h", kind)
    wire("FLUSHALL", "ASYNC")
    wait_until(lambda: scan() == [], "the flushed key leaves the list")


def test_key_names_are_bytes_in_scans(wire: Wire) -> None:
    name = b"\0\xff\r\n"
    wire("MULTI")
    wire("AI.MODELSTORE", name, "TORCH", "CPU", "TAG", b"\0t", "BLOB", MODEL)
    wire("EXEC")
    assert wire("AI._MODELSCAN") == [[name, b"\0t"]]


def test_a_scan_is_logged(server: Server, wire: Wire) -> None:
    wire("AI._MODELSCAN")
    wire("AI._SCRIPTSCAN")
    assert "MODELSCAN is experimental and might be removed in future versions" in server.log()
    assert "SCRIPTSCAN is experimental and might be removed in future versions" in server.log()


# ---- what storing promises ----------------------------------------------------------------------------------------------------------


def test_storing_drops_a_ttl(wire: Wire) -> None:
    for write in (lambda: wire("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", MODEL), lambda: store(wire, "m", "model")):
        write()
        wire("EXPIRE", "m", 100)
        write()
        assert wire("TTL", "m") == -1


def changes_a_watch(server: Server, wire: Wire, key: str, command: Callable[[Wire], Any]) -> bool:
    with Wire(server.port) as other:
        wire("WATCH", key)
        command(other)
        wire("MULTI")
        wire("PING")
        return wire("EXEC") is None


def test_watch_sees_stores_and_deletions_and_nothing_else(server: Server, wire: Wire) -> None:
    def model(*blob: str) -> Callable[[Wire], Any]:
        return lambda other: other("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", *blob)

    assert changes_a_watch(server, wire, "m", model(MODEL))
    assert changes_a_watch(server, wire, "m", model(MODEL))
    assert changes_a_watch(server, wire, "m", lambda other: store(other, "m", "model"))
    assert not changes_a_watch(server, wire, "m", model("no model"))
    assert not changes_a_watch(server, wire, "m", model())
    assert not changes_a_watch(server, wire, "m", lambda other: other("AI.MODELGET", "m"))
    assert not changes_a_watch(server, wire, "m", lambda other: other("AI.SCRIPTDEL", "m"))
    assert changes_a_watch(server, wire, "m", lambda other: other("AI.MODELDEL", "m"))


def test_redis_goes_on_while_a_model_opens(server: Server, wire: Wire) -> None:
    with Wire(server.port) as other:
        other.send("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model(open_spin=0.3))
        wait_until(lambda: info(wire, "clients")["blocked_clients"] == "1", "the store waits")
        assert wire("PING") == Status("PONG")
        assert wire("EXISTS", "m") == 0
        assert other.read() == OK
    assert wire("EXISTS", "m") == 1


def test_stores_of_one_key_end_in_the_order_in_which_they_came(server: Server, wire: Wire) -> None:
    first, second = Wire(server.port), Wire(server.port)
    with first, second:
        first.send("AI.MODELSTORE", "m", "TORCH", "CPU", "TAG", "first", "BLOB", echo_model(open_sleep=0.1))
        wait_until(lambda: info(wire, "clients")["blocked_clients"] == "1", "the store waits")
        second.send("AI.MODELSTORE", "m", "TORCH", "CPU", "TAG", "second", "BLOB", MODEL)
        assert (first.read(), second.read()) == (OK, OK)
    assert fields(wire)["tag"] == b"second"
    assert wire("AI._MODELSCAN") == [[b"m", b"second"]]


def test_a_client_that_leaves_while_its_model_opens_writes_nothing(server: Server, wire: Wire) -> None:
    with Wire(server.port) as other:
        other.send("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model(open_sleep=0.2), " " * 50_000)
        wait_until(lambda: info(wire, "clients")["blocked_clients"] == "1", "the store waits")
    wait_until(lambda: info(wire, "clients")["blocked_clients"] == "0", "the client is gone")
    assert wire("AI.MODELSTORE", "after", "TORCH", "CPU", "BLOB", MODEL) == OK  # in order: the first opening has ended
    assert wire("EXISTS", "m") == 0
    assert wire("AI._MODELSCAN") == [[b"after", b""]]


def test_in_a_transaction_the_bytes_are_stored_at_once_and_opened_later(wire: Wire, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    model = echo_model(inputs=2, outputs=1, open_gate=str(gate))
    wire("MULTI")
    assert wire("AI.MODELSTORE", "good", "TORCH", "CPU", "BLOB", model[:5], model[5:]) == QUEUED
    assert wire("AI.MODELSTORE", "bad", "TORCH", "CPU", "BLOB", "no model") == QUEUED
    assert wire("AI.MODELSTORE", "worse", "TORCH", "NOPE", "BLOB", MODEL) == QUEUED
    assert wire("AI.MODELGET", "good") == QUEUED
    assert wire("AI.MODELDEL", "missing") == QUEUED
    good, bad, worse, shown, deleted = wire("EXEC")
    assert (good, bad, worse, deleted) == (OK, OK, Error(DEVICE), Error("ERR model key is empty"))
    assert dict(zip(shown[::2], shown[1::2], strict=True))[b"inputs"] == []  # not known yet, and no waiting here
    gate.touch()
    assert wire("AI.MODELGET", "good", "META")[11] == [b"input_0", b"input_1"]  # waits for the opening
    assert wire("AI.MODELGET", "bad")[11:14:2] == [[], []]
    assert wire("AI.MODELGET", "bad", "BLOB") == b"no model"
    wire("AI.TENSORSET", "x", "INT8", 1)
    reply = wire("AI.MODELEXECUTE", "bad", "INPUTS", 1, "x", "OUTPUTS", 1, "y")
    assert isinstance(reply, Error) and reply.text.startswith("ERR not an echo model")


def test_in_a_script_too(wire: Wire) -> None:
    lua = "return redis.call('AI.MODELSTORE', KEYS[1], 'TORCH', 'CPU', 'BLOB', ARGV[1], ARGV[2])"
    assert wire("EVAL", lua, 1, "m", MODEL, " " * 100_000) == OK
    assert wire("AI.MODELGET", "m", "BLOB") == (MODEL + " " * 100_000).encode()
    assert wire("EVAL", "return redis.call('AI.MODELGET', KEYS[1], 'META')[2]", 1, "m") == b"TORCH"
    assert wire("EVAL", "return redis.call('AI.MODELDEL', KEYS[1])", 1, "m") == OK


def test_many_clients_store_at_once(server: Server, wire: Wire) -> None:
    replies: list[Any] = []

    def client(n: int) -> None:
        with Wire(server.port) as own:
            for i in range(20):
                replies.append(own.only_reply("AI.MODELSTORE", f"m{(n + i) % 5}", "TORCH", "CPU", "TAG", str(n), "BLOB", MODEL))

    threads = [threading.Thread(target=client, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == [OK] * 120
    assert sorted(key for key, _ in wire("AI._MODELSCAN")) == [b"m0", b"m1", b"m2", b"m3", b"m4"]


# ---- replication and the AOF --------------------------------------------------------------------------------------------------------


def aof_commands(server: Server) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(Path(server.directory).rglob("*.aof")))


def test_stores_and_deletions_are_written_verbatim_and_replayed_without_waiting(start_server: Callable[..., Server]) -> None:
    server = start_server("--appendonly", "yes", "--appendfsync", "always", "--aof-use-rdb-preamble", "no")
    with Wire(server.port) as wire:
        assert wire("AI.MODELSTORE", "m", "TORCH", "CPU", "TAG", "t", "BLOB", MODEL[:9], MODEL[9:]) == OK
        assert isinstance(wire("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", "no model"), Error)
        store(wire, "bad", "model")
        wire("AI.TENSORSET", "x", "FLOAT", 2, "VALUES", 1, 2)
        wire("AI.MODELSTORE", "gone", "TORCH", "CPU", "BLOB", MODEL)
        wire("AI.MODELDEL", "gone")
        written = aof_commands(server)
        assert written.count(b"no model") == 0
        assert MODEL[:9].encode() + b"\r\n" in written and written.count(b"AI.MODELDEL") == 1
    server.restart()
    with Wire(server.port) as wire:
        got = fields(wire)
        assert (got["tag"], got["blob"], len(got["inputs"])) == (b"t", MODEL.encode(), 2)
        assert wire("AI.TENSORGET", "x", "VALUES") == [b"1", b"2"]
        assert wire("EXISTS", "gone") == 0


def test_a_replica_takes_what_its_master_sends(start_server: Callable[..., Server]) -> None:
    """Also a tensor with a dim of 0, which clients may not set, and a model that cannot be opened."""
    server = start_server()
    with FakeMaster() as master, Wire(server.port) as wire:
        wire("REPLICAOF", "127.0.0.1", master.port)
        master.accept()
        master.send("AI.TENSORSET", "empty", "FLOAT", 0, 3, "BLOB", "")
        master.send("AI.TENSORSET", "none", "STRING", 0, "BLOB", "")
        master.send("AI.TENSORSET", "bad", "FLOAT", -1)
        master.send("AI.MODELSTORE", "m", "TORCH", "CPU", "TAG", "t", "BLOB", MODEL)
        master.send("AI.MODELSTORE", "unopenable", "ONNX", "GPU:3", "BLOB", "no model")
        master.send("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", ENTRY)
        master.send("AI.SCRIPTSET", "deleted", "CPU", "SOURCE", SOURCE)
        master.send("AI.SCRIPTDEL", "deleted")
        master.send("SET", "last", "x")
        wait_until(lambda: wire("EXISTS", "last"), "the stream has been applied")
        assert wire("AI.TENSORGET", "empty") == [b"dtype", b"FLOAT", b"shape", [0, 3], b"blob", b""]
        assert wire("AI.TENSORGET", "none", "META", "VALUES") == [b"dtype", b"STRING", b"shape", [0], b"values", []]
        assert wire("EXISTS", "bad", "deleted") == 0
        assert wire("AI.MODELGET", "m", "BLOB") == MODEL.encode()
        assert wire("AI.MODELGET", "unopenable", "BLOB") == b"no model"
        assert wire("AI.SCRIPTGET", "s", "META") == [b"device", b"CPU", b"tag", b"", b"Entry Points", [b"f"]]
        assert wire("AI.TENSORSET", "x", "FLOAT", 1).text.startswith("READONLY")
        assert wire("AI.MODELGET", "m", "META")[11] == [b"input_0", b"input_1"]  # a replica opens at the first use


words = st.lists(
    st.one_of(
        st.sampled_from(["TORCH", "TF", "ONNX", "CPU", "TAG", "BATCHSIZE", "MINBATCHSIZE", "MINBATCHTIMEOUT", "INPUTS", "OUTPUTS", "BLOB"]),
        st.sampled_from(["ENTRY_POINTS", "SOURCE", "META", "0", "1", "2", "-1", "1.0", "9223372036854775807", "m", ""]),
        st.binary(max_size=8),
    ),
    max_size=14,
)


@patiently
@given(
    st.sampled_from([*(c for c in STORES if "MODEL" in c), "AI.MODELGET", "AI.MODELDEL", "AI.SCRIPTGET", "AI.SCRIPTDEL", "AI._MODELSCAN"]),
    words,
)
def test_any_arguments_get_one_reply(wire: Wire, command: str, arguments: list[Any]) -> None:
    wire.only_reply(command, *arguments)
    wire.only_reply(command, "m", "TORCH", "CPU", *arguments)
    wire("MULTI")
    wire(command, "m", "TF", "CPU", *arguments)
    assert len(wire("EXEC")) == 1
