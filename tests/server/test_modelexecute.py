"""AI.MODELEXECUTE and AI.MODELRUN: every row of their argument tables, and what holds for every command that runs something.

What holds for every run: it sees the values of the moment it arrived, it writes its outputs when it has ended and if it may, it answers
once, and nothing but its outputs reaches replicas and the AOF.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import (
    NO_INTS,
    NO_MODEL,
    NO_TENSOR,
    NOT_HERE,
    WRONG_INPUTS,
    WRONG_OUTPUTS,
    WRONGTYPE,
    Gate,
    calls,
    get,
    info,
    put,
    put_script,
    running,
    since_7,
    store,
    wait_gone,
    wait_queued,
    wait_running,
)
from servers import Server, wait_until
from wire import OK, QUEUED, Error, Status, Wire

TIMEDOUT = Status("TIMEDOUT")
BAD_TIMEOUT = "ERR Invalid value for TIMEOUT"


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    with Wire(server.port) as wire:
        yield wire


@pytest.fixture
def other(server: Server) -> Iterator[Wire]:
    """A second client."""
    with Wire(server.port) as wire:
        yield wire


@pytest.fixture
def third(server: Server) -> Iterator[Wire]:
    with Wire(server.port) as wire:
        yield wire


@pytest.fixture
def world(wire: Wire) -> Wire:
    """Models m (1 input, 1 output), m2 (2, 1) and m12 (1, 2), tensors a and b, a script and a string."""
    store(wire, "m")
    store(wire, "m2", "add", 2)
    store(wire, "m12", outputs=2)
    put(wire, "a", 1, 2)
    put(wire, "b", 10, 20)
    put_script(wire, "script")
    wire("SET", "string", "x")
    return wire


def words(line: str) -> list[str]:
    return line.split()


# ---- arguments ---------------------------------------------------------------------------------------------------------------------------

EXECUTE_ARITY = "ERR wrong number of arguments for 'AI.MODELEXECUTE' command"
NO_INPUTS, NO_OUTPUTS = "ERR INPUTS not specified", "ERR OUTPUTS not specified"
INPUT_COUNT, OUTPUT_COUNT = "ERR Invalid argument for input_count", "ERR Invalid argument for output_count"
INPUTS_POSITIVE, OUTPUTS_POSITIVE = "ERR Input count must be a positive integer", "ERR Output count must be a positive integer"
FEW_INPUTS = "ERR number of input keys to AI.MODELEXECUTE command does not match the number of given arguments"
FEW_OUTPUTS = "ERR number of output keys to AI.MODELEXECUTE command does not match the number of given arguments"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        # how many words, then the model, then the words
        *[(" ".join(words("m INPUTS 1 a OUTPUTS 1")[:n]), EXECUTE_ARITY) for n in range(7)],
        ("none x x x x x x", NO_MODEL),
        ("string x x x x x x", WRONGTYPE),
        ("a INPUTS 1 a OUTPUTS 1 o", WRONGTYPE),
        ("script INPUTS 1 a OUTPUTS 1 o", WRONGTYPE),
        ("m INPUT 1 a OUTPUTS 1 o", NO_INPUTS),
        ("m OUTPUTS 1 o INPUTS 1 a", NO_INPUTS),
        ("m TIMEOUT 5 INPUTS 1 a OUTPUTS 1 o", NO_INPUTS),
        ("m INPUTS 0 a OUTPUTS 1 o", INPUTS_POSITIVE),
        ("m INPUTS -1 a OUTPUTS 1 o", INPUTS_POSITIVE),
        (f"m INPUTS {-(2**63)} a OUTPUTS 1 o", INPUTS_POSITIVE),
        ("m INPUTS 2 a b OUTPUTS 1 o", WRONG_INPUTS),
        (f"m INPUTS {2**63 - 1} a OUTPUTS 1 o", WRONG_INPUTS),
        (f"m INPUTS {2**32 + 1} a OUTPUTS 1 o", WRONG_INPUTS),
        ("m2 INPUTS 1 a OUTPUTS 1 o", WRONG_INPUTS),
        ("m2 INPUTS 2 a OUTPUTS 1 o", NO_OUTPUTS),  # takes OUTPUTS as a key
        ("m INPUTS 1 a b OUTPUTS 1 o", NO_OUTPUTS),
        ("m INPUTS 1 a OUTPUT 1 o", NO_OUTPUTS),
        ("m INPUTS 1 a TIMEOUT 5 OUTPUTS 1 o", NO_OUTPUTS),
        ("m2 INPUTS 2 a b OUTPUTS o", OUTPUT_COUNT),
        ("m2 INPUTS 2 a b x OUTPUTS", NO_OUTPUTS),
        ("m2 INPUTS 2 a OUTPUTS OUTPUTS 0", OUTPUTS_POSITIVE),
        ("m INPUTS 1 a OUTPUTS 0 o", OUTPUTS_POSITIVE),
        ("m INPUTS 1 a OUTPUTS -1 o", OUTPUTS_POSITIVE),
        ("m INPUTS 1 a OUTPUTS 2 o p", WRONG_OUTPUTS),
        (f"m INPUTS 1 a OUTPUTS {2**63 - 1} o", WRONG_OUTPUTS),
        ("m12 INPUTS 1 a OUTPUTS 1 o", WRONG_OUTPUTS),
        ("m12 INPUTS 1 a OUTPUTS 2 o", FEW_OUTPUTS),
        ("m INPUTS 1 a OUTPUTS 1 o p", "Invalid argument: p"),
        ("m INPUTS 1 a OUTPUTS 1 o TIMEOUT", "ERR No value provided for TIMEOUT"),
        *[(f"m INPUTS 1 a OUTPUTS 1 o TIMEOUT {value}", BAD_TIMEOUT) for value in (0, -1, "x", "1.0", "01", 2**63)],
        ("m INPUTS 1 a OUTPUTS 1 o TIMEOUT 0 x", BAD_TIMEOUT),
        ("m INPUTS 1 a OUTPUTS 1 o TIMEOUT 5 x", "Invalid argument: x"),
        ("m INPUTS 1 a OUTPUTS 1 o TIMEOUT 5 TIMEOUT 5", "Invalid argument: TIMEOUT"),
        # the inputs, in their order, after everything else
        ("m INPUTS 1 none OUTPUTS 1 o x", "Invalid argument: x"),
        ("m INPUTS 1 none OUTPUTS 1 o", NO_TENSOR),
        ("m INPUTS 1 string OUTPUTS 1 o", WRONGTYPE),
        ("m INPUTS 1 m OUTPUTS 1 o", WRONGTYPE),
        ("m2 INPUTS 2 none string OUTPUTS 1 o", NO_TENSOR),
        ("m2 INPUTS 2 string none OUTPUTS 1 o", WRONGTYPE),
        ("m2 INPUTS 2 a none OUTPUTS 1 o", NO_TENSOR),
    ],
)
def test_modelexecute_refuses(world: Wire, line: str, error: str) -> None:
    assert world.only_reply("AI.MODELEXECUTE", *words(line)) == Error(error)
    assert world("EXISTS", "o", "p") == 0
    assert calls(world, "m") == calls(world, "m2") == calls(world, "m12") == (0, 0)


def test_too_few_inputs_for_a_count_that_fits_the_model(wire: Wire) -> None:
    """Eight words at least: only a model with many inputs can run out of them."""
    store(wire, "m6", inputs=6)
    assert wire.only_reply("AI.MODELEXECUTE", "m6", "INPUTS", 6, *"abcd") == Error(FEW_INPUTS)


@pytest.mark.parametrize("value", NO_INTS)
def test_counts_and_timeouts_are_strict_integers(world: Wire, value: Any) -> None:
    assert world.only_reply("AI.MODELEXECUTE", "m", "INPUTS", value, "a", "OUTPUTS", 1, "o") == Error(INPUT_COUNT)
    assert world.only_reply("AI.MODELEXECUTE", "m", "INPUTS", 1, "a", "OUTPUTS", value, "o") == Error(OUTPUT_COUNT)
    assert world.only_reply("AI.MODELEXECUTE", "m", "INPUTS", 1, "a", "OUTPUTS", 1, "o", "TIMEOUT", value) == Error(BAD_TIMEOUT)
    assert world.only_reply("AI.MODELRUN", "m", "TIMEOUT", value, "INPUTS", "a", "OUTPUTS", "o") == Error(BAD_TIMEOUT)


def test_an_unexpected_word_comes_back_as_it_was_but_on_one_line(world: Wire) -> None:
    reply = world.only_reply("AI.MODELEXECUTE", "m", "INPUTS", 1, "a", "OUTPUTS", 1, "o", "two\r\nlines %s %n")
    assert reply == Error("Invalid argument: two  lines %s %n")


RUN_ARITY = "ERR wrong number of arguments for 'AI.MODELRUN' command"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        *[(" ".join(words("m INPUTS a OUTPUTS")[:n]), RUN_ARITY) for n in range(5)],
        ("none x x x x", NO_MODEL),
        ("string x x x x", WRONGTYPE),
        ("script INPUTS a OUTPUTS o", WRONGTYPE),
        ("m TIMEOUT 0 INPUTS a OUTPUTS o", BAD_TIMEOUT),
        ("m TIMEOUT -5 INPUTS a OUTPUTS o", BAD_TIMEOUT),
        ("m TIMEOUT INPUTS a OUTPUTS o", BAD_TIMEOUT),
        ("m TIMEOUT 5 a OUTPUTS o", NO_INPUTS),
        ("m a INPUTS a OUTPUTS o", NO_INPUTS),
        ("m OUTPUTS o INPUTS a", NO_INPUTS),
        ("m INPUTS a b OUTPUTS o", WRONG_INPUTS),
        ("m INPUTS OUTPUTS o p", WRONG_INPUTS),
        ("m INPUTS a b OUTPUTS o p", WRONG_INPUTS),  # the inputs are counted first
        ("m INPUTS a OUTPUTS o p", WRONG_OUTPUTS),
        ("m INPUTS a OUTPUTS o TIMEOUT 10", WRONG_OUTPUTS),  # two outputs more
        ("m12 INPUTS a OUTPUTS o", WRONG_OUTPUTS),
        ("m2 INPUTS a b OUTPUTS", WRONG_OUTPUTS),
        ("m2 INPUTS a b o", WRONG_INPUTS),  # without OUTPUTS all are inputs
        ("m INPUTS none OUTPUTS o", NO_TENSOR),
        ("m INPUTS string OUTPUTS o", WRONGTYPE),
    ],
)
def test_modelrun_refuses(world: Wire, line: str, error: str) -> None:
    assert world.only_reply("AI.MODELRUN", *words(line)) == Error(error)
    assert world("EXISTS", "o", "p") == 0


@pytest.mark.parametrize(
    ("line", "outputs"),
    [
        ("AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 o", {"o": [1, 2]}),
        ("ai.modelexecute m inputs 1 a outputs 1 o timeout 60000", {"o": [1, 2]}),
        ("AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 o TIMEOUT 9223372036854775807", {"o": [1, 2]}),
        ("AI.MODELEXECUTE m2 INPUTS 2 a b OUTPUTS 1 o", {"o": [11, 22]}),
        ("AI.MODELEXECUTE m2 INPUTS 2 a a OUTPUTS 1 o", {"o": [2, 4]}),
        ("AI.MODELEXECUTE m2 INPUTS 2 a b OUTPUTS 1 a", {"a": [11, 22]}),  # an input may be the output
        ("AI.MODELEXECUTE m12 INPUTS 1 a OUTPUTS 2 o o", {"o": [1, 2]}),
        ("AI.MODELEXECUTE m12 INPUTS 1 b OUTPUTS 2 o p", {"o": [10, 20], "p": [10, 20]}),
        ("AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 TIMEOUT", {"TIMEOUT": [1, 2]}),
        ("AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 OUTPUTS TIMEOUT 60000", {"OUTPUTS": [1, 2]}),
        ("AI.MODELRUN m INPUTS a OUTPUTS o", {"o": [1, 2]}),
        ("ai.modelrun m timeout 60000 inputs a outputs o", {"o": [1, 2]}),
        ("AI.MODELRUN m2 INPUTS a b OUTPUTS b", {"b": [11, 22]}),
        ("AI.MODELRUN m12 INPUTS a OUTPUTS OUTPUTS TIMEOUT", {"OUTPUTS": [1, 2], "TIMEOUT": [1, 2]}),
    ],
)
def test_a_model_runs(world: Wire, line: str, outputs: dict[str, list[float]]) -> None:
    assert world.only_reply(*words(line)) == OK
    assert {key: get(world, key) for key in outputs} == outputs


def test_of_two_outputs_of_one_name_the_last_wins(wire: Wire) -> None:
    store(wire, "swap", inputs=2, outputs=2)
    put(wire, "a", 1)
    put(wire, "b", 2)
    assert wire.only_reply("AI.MODELEXECUTE", "swap", "INPUTS", 2, "a", "b", "OUTPUTS", 2, "o", "o") == OK
    assert get(wire, "o") == [2]


def test_names_are_bytes(wire: Wire) -> None:
    model, a, o = b"m\0\r\n", b"\xff\0INPUTS", b" \0"
    assert wire("AI.MODELSTORE", model, "ONNX", "CPU", "BLOB", b'{"op": "echo"}') == OK
    wire("AI.TENSORSET", a, "DOUBLE", 1, "VALUES", 7)
    assert wire.only_reply("AI.MODELEXECUTE", model, "INPUTS", 1, a, "OUTPUTS", 1, o) == OK
    assert wire("AI.TENSORGET", o, "VALUES") == [b"7"]


@pytest.mark.parametrize("resp", [2, 3])
def test_the_reply_is_the_same_in_both_protocols(world: Wire, server: Server, resp: int) -> None:
    with Wire(server.port, resp=resp) as client:
        assert client.only_reply("AI.MODELEXECUTE", *words("m INPUTS 1 a OUTPUTS 1 o")) == OK
        assert client.only_reply("AI.MODELEXECUTE", *words("m INPUTS 1 none OUTPUTS 1 o")) == Error(NO_TENSOR)


# ---- what may go wrong when it runs ------------------------------------------------------------------------------------------------------


def test_the_error_of_a_run_is_one_line_and_nothing_is_written(world: Wire) -> None:
    store(world, "bad", "raise", text="first\nsecond\r\nthird")
    put(world, "o", 5)
    assert world.only_reply("AI.MODELEXECUTE", *words("bad INPUTS 1 a OUTPUTS 1 o")) == Error("first second  third")
    assert get(world, "o") == [5]
    assert calls(world, "bad") == (1, 1)


def test_an_output_that_the_model_did_not_give_leaves_its_key_alone(world: Wire) -> None:
    store(world, "none_given", "none", outputs=2)
    put(world, "o", 5)
    assert world.only_reply("AI.MODELEXECUTE", *words("none_given INPUTS 1 a OUTPUTS 2 o p")) == OK
    assert get(world, "o") == [5]
    assert world("EXISTS", "p") == 0


def test_an_output_of_a_dtype_without_a_name_is_an_error(world: Wire) -> None:
    store(world, "half", "half")
    reply = world.only_reply("AI.MODELEXECUTE", *words("half INPUTS 1 a OUTPUTS 1 o"))
    assert isinstance(reply, Error)
    assert world("EXISTS", "o") == 0
    assert world("PING") == Status("PONG")


@pytest.mark.parametrize("line", ["AI.MODELEXECUTE m12 INPUTS 1 a OUTPUTS 2 o string", "AI.MODELRUN m12 INPUTS a OUTPUTS o string"])
def test_an_output_key_of_another_type_is_one_error_and_those_before_it_stay(world: Wire, line: str) -> None:
    assert world.only_reply(*words(line)) == Error(WRONGTYPE)
    assert get(world, "o") == [1, 2]
    assert world("GET", "string") == b"x"


@pytest.mark.parametrize("key", ["m", "script"])
def test_an_output_does_not_replace_a_model_or_a_script(world: Wire, key: str) -> None:
    kind = world("TYPE", key)
    assert world.only_reply("AI.MODELEXECUTE", "m", "INPUTS", 1, "a", "OUTPUTS", 1, key) == Error(WRONGTYPE)
    assert world("TYPE", key) == kind


# ---- a run sees the values of the moment it arrived --------------------------------------------------------------------------------------


@pytest.fixture
def gated(wire: Wire, tmp_path: Path) -> Gate:
    """A model `gate` with one input, and tensor a = [1, 2]; the gate is opened at the end in any case."""
    put(wire, "a", 1, 2)
    return Gate(wire, tmp_path / "gate", "gate")


RUN = words("AI.MODELEXECUTE gate INPUTS 1 a OUTPUTS 1 o")


@pytest.mark.parametrize(
    "change",
    [
        "AI.TENSORSET a DOUBLE 1 1 VALUES 9",
        "SET a x",
        "DEL a",
        "UNLINK a",
        "RENAME a b",
        "PEXPIRE a 0",
        "FLUSHALL",
        "FLUSHALL ASYNC",
        "SWAPDB 0 1",
        "AI.MODELDEL gate",
        "DEL gate",
        "RENAME gate gate2",
        "SET gate x",
        "RESTORE a",
        "AI.MODELSTORE gate",
    ],
)
@pytest.mark.parametrize("queued", [False, True], ids=["running", "queued"])
def test_later_changes_of_its_keys_do_not_change_a_run(
    wire: Wire, other: Wire, third: Wire, gated: Gate, tmp_path: Path, change: str, queued: bool
) -> None:
    first = Gate(wire, tmp_path / "first", "first")
    if queued:
        third.send(*words("AI.MODELEXECUTE first INPUTS 1 a OUTPUTS 1 x"))
        wait_running(wire)
    other.send(*RUN)
    wait_queued(wire, 1) if queued else wait_running(wire)
    if change == "RESTORE a":
        wire("AI.TENSORSET", "c", "DOUBLE", 1, "VALUES", 9)
        assert wire("RESTORE", "a", 0, wire("DUMP", "c"), "REPLACE") == OK
    elif change == "AI.MODELSTORE gate":
        store(wire, "gate", "nan")
    else:
        assert not isinstance(wire(*words(change)), Error)
    gated.open()
    first.open()
    assert other.read() == OK
    if change == "SWAPDB 0 1":
        wire("SELECT", 1)  # the client is in database 0 all the while, and so is what it writes
        assert get(wire, "o") is None
        wire("SELECT", 0)
    assert get(wire, "o") == [1, 2]


@pytest.mark.parametrize(
    ("before", "during", "reply", "after"),
    [
        ([], ["SET o x"], Error(WRONGTYPE), b"x"),
        (["SET o x"], ["DEL o"], OK, [1, 2]),
        (["SET o x"], ["AI.TENSORSET o DOUBLE 1 VALUES 5"], None, b"x"),
        ([], ["AI.TENSORSET o DOUBLE 1 VALUES 5", "EXPIRE o 100"], OK, [1, 2]),
    ],
)
def test_it_is_the_type_of_an_output_key_at_the_end_that_counts(
    wire: Wire, other: Wire, gated: Gate, before: list[str], during: list[str], reply: Any, after: Any
) -> None:
    for line in before:
        wire(*words(line))
    other.send(*RUN)
    wait_running(wire)
    for line in during:
        wire(*words(line))
    gated.open()
    assert other.read() == (reply or Error(WRONGTYPE))
    assert other("PING") == Status("PONG"), "one reply and no more"
    assert (wire("GET", "o") if isinstance(after, bytes) else get(wire, "o")) == after
    assert wire("TTL", "o") == -1


@pytest.mark.parametrize("expiry", ["EXPIRE o 100", "PEXPIREAT o 99999999999999"])
def test_an_output_drops_the_time_to_live_of_its_key(world: Wire, expiry: str) -> None:
    put(world, "o", 5)
    world(*words(expiry))
    assert world.only_reply("AI.MODELEXECUTE", *words("m INPUTS 1 a OUTPUTS 1 o")) == OK
    assert world("TTL", "o") == -1


def test_everything_happens_in_the_selected_database(wire: Wire, other: Wire, tmp_path: Path) -> None:
    wire("SELECT", 3)
    gate = Gate(wire, tmp_path / "gate", "gate")
    put(wire, "a", 3)
    other("SELECT", 3)
    other.send(*RUN)
    wait_running(wire)
    wire("SELECT", 0)
    gate.open()
    assert other.read() == OK
    assert wire("EXISTS", "o") == 0
    assert wire.only_reply(*RUN) == Error(NO_MODEL)
    wire("SELECT", 3)
    assert get(wire, "o") == [3]


# ---- transactions, scripts, other clients ------------------------------------------------------------------------------------------------

BLOCKING = [
    "AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 o",
    "AI.MODELRUN m INPUTS a OUTPUTS o",
    "AI.SCRIPTEXECUTE script f INPUTS 1 a OUTPUTS 1 o",
    "AI.SCRIPTRUN script f INPUTS a OUTPUTS o",
    "AI.DAGEXECUTE LOAD 1 a |> AI.TENSORGET a",
    "AI.DAGEXECUTE_RO LOAD 1 a |> AI.TENSORGET a",
    "AI.DAGRUN LOAD 1 a |> AI.TENSORGET a",
    "AI.DAGRUN_RO LOAD 1 a |> AI.TENSORGET a",
]


@pytest.mark.parametrize("command", [*BLOCKING, *[line.split()[0] for line in BLOCKING]])
def test_run_commands_are_refused_in_transactions_and_lua_before_any_argument(world: Wire, command: str) -> None:
    assert world("MULTI") == OK
    assert world(*words(command)) == QUEUED
    assert world("EXEC") == [Error(NOT_HERE)]
    for call in ("call", "pcall"):
        reply = world.only_reply("EVAL", f"return redis.{call}({quoted(command)})", 0)
        assert isinstance(reply, Error)
        assert NOT_HERE in reply.text
    assert world("EXISTS", "o") == 0


def quoted(command: str) -> str:
    """As arguments of redis.call()."""
    return ",".join(f"'{word}'" for word in words(command))


@since_7
@pytest.mark.parametrize("command", BLOCKING)
def test_run_commands_are_refused_in_functions(world: Wire, command: str) -> None:
    code = f"#!lua name=f\nredis.register_function('f', function() return redis.call({quoted(command)}) end)"
    assert world("FUNCTION", "LOAD", "REPLACE", code) == b"f"
    reply = world.only_reply("FCALL", "f", 0)
    assert isinstance(reply, Error)
    assert NOT_HERE in reply.text
    assert world("EXISTS", "o") == 0


def test_a_watched_output_ends_the_transaction(wire: Wire, other: Wire, gated: Gate) -> None:
    other.send(*RUN)
    wait_running(wire)
    wire("WATCH", "o")
    gated.open()
    assert other.read() == OK
    assert wire("MULTI") == OK
    assert wire("PING") == QUEUED
    assert wire("EXEC") is None


@pytest.mark.parametrize("watched", ["a", "gate", "string"])
def test_reading_and_failing_touch_no_watch(wire: Wire, other: Wire, gated: Gate, watched: str) -> None:
    wire("SET", "string", "x")
    gated.open()
    wire("WATCH", watched)
    assert other.only_reply("AI.MODELEXECUTE", *words("gate INPUTS 1 a OUTPUTS 1 string")) == Error(WRONGTYPE)
    assert other.only_reply("AI.MODELEXECUTE", *words("gate INPUTS 1 a OUTPUTS 1 o")) == OK
    assert wire("MULTI") == OK
    assert wire("PING") == QUEUED
    assert wire("EXEC") == [Status("PONG")]


def test_client_side_caches_hear_of_outputs(world: Wire, server: Server) -> None:
    put(world, "o", 5)
    with Wire(server.port, resp=3) as cache:
        assert cache("CLIENT", "TRACKING", "ON") == OK
        cache("AI.TENSORGET", "o", "META")
        assert world.only_reply("AI.MODELEXECUTE", *words("m INPUTS 1 a OUTPUTS 1 o")) == OK
        assert cache.read() == [b"invalidate", [b"o"]]


def test_client_unblock_does_not_end_a_run(wire: Wire, other: Wire, gated: Gate) -> None:
    number = other("CLIENT", "ID")
    other.send(*RUN)
    wait_running(wire)
    assert wire("CLIENT", "UNBLOCK", number) == 0
    assert wire("CLIENT", "UNBLOCK", number, "ERROR") == 0
    gated.open()
    assert other.read() == OK
    assert get(wire, "o") == [1, 2]


def test_replies_of_a_pipeline_come_in_its_order(world: Wire) -> None:
    for i in range(50):
        world.send("AI.MODELEXECUTE", *words(f"m INPUTS 1 a OUTPUTS 1 o{i}"))
        world.send("AI.TENSORGET", f"o{i}", "VALUES")
        world.send("AI.MODELEXECUTE", *words(f"m INPUTS 1 none{i} OUTPUTS 1 o"))
    assert [world.read() for _ in range(150)] == [OK, [b"1", b"2"], Error(NO_TENSOR)] * 50


# ---- clients that leave, time that runs out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", ["close", "kill"])
def test_a_client_that_leaves_while_its_run_goes_on_writes_nothing(wire: Wire, server: Server, gated: Gate, leave: str) -> None:
    with Wire(server.port) as leaver:
        number = leaver("CLIENT", "ID")
        leaver.send(*RUN)
        wait_running(wire)
        if leave == "kill":
            assert wire("CLIENT", "KILL", "ID", number) == 1
    wait_until(lambda: str(number) not in ids(wire), "the client to be gone")
    gated.open()
    wait_gone(wire)
    assert wire("EXISTS", "o") == 0
    assert calls(wire, "gate") == (1, 0)  # it ran, and counts


@pytest.mark.parametrize("leave", ["close", "kill"])
def test_a_client_that_leaves_while_its_run_waits_never_runs(wire: Wire, other: Wire, server: Server, gated: Gate, leave: str) -> None:
    store(wire, "m")
    other.send(*RUN)
    wait_running(wire)
    with Wire(server.port) as leaver:
        number = leaver("CLIENT", "ID")
        leaver.send("AI.MODELEXECUTE", *words("m INPUTS 1 a OUTPUTS 1 p"))
        wait_queued(wire, 1)
        if leave == "kill":
            assert wire("CLIENT", "KILL", "ID", number) == 1
    wait_queued(wire, 0)
    gated.open()
    assert other.read() == OK
    wait_gone(wire)
    assert wire("EXISTS", "p") == 0
    assert calls(wire, "m") == (0, 0)


def ids(wire: Wire) -> set[str]:
    return set(re.findall(r"(?m)^id=(\d+)", wire("CLIENT", "LIST").decode()))


def test_a_timeout_ends_the_wait_of_a_queued_run_although_every_worker_is_busy(
    wire: Wire, other: Wire, server: Server, gated: Gate
) -> None:
    other.send(*RUN)
    wait_running(wire)
    for line in ("AI.MODELEXECUTE gate INPUTS 1 a OUTPUTS 1 p TIMEOUT 1", "AI.MODELRUN gate TIMEOUT 1 INPUTS a OUTPUTS p"):
        assert wire.only_reply(*words(line)) == TIMEDOUT
    gated.open()
    assert other.read() == OK
    assert wire("EXISTS", "p") == 0
    assert calls(wire, "gate") == (1, 0)  # what timed out counts nowhere


def test_a_timeout_does_not_end_a_run_that_has_begun(wire: Wire, other: Wire, gated: Gate) -> None:
    other.send(*RUN, "TIMEOUT", 30)
    wait_running(wire)
    passed = time.monotonic() + 0.05
    wait_until(lambda: time.monotonic() > passed)
    assert running(wire) == 1
    gated.open()
    assert other.read() == OK
    assert get(wire, "o") == [1, 2]


def test_a_timeout_ends_the_wait_for_a_batch_that_never_fills(wire: Wire) -> None:
    store(wire, "batched", "echo", 1, 1, "CPU", "BATCHSIZE", 4, "MINBATCHSIZE", 4)
    put(wire, "a", 1)
    assert wire.only_reply("AI.MODELEXECUTE", *words("batched INPUTS 1 a OUTPUTS 1 o TIMEOUT 20")) == TIMEDOUT
    assert wire("EXISTS", "o") == 0
    assert info(wire, "queue_CPU_length") == 0


# ---- what reaches replicas, the AOF and listeners ----------------------------------------------------------------------------------------


def aof_commands(server: Server) -> list[list[bytes]]:
    """The commands in the server's AOF, without SELECT."""
    data = b"".join(path.read_bytes() for path in sorted(server.directory.glob("**/*.aof")))
    found: list[list[bytes]] = []
    while data:
        count, _, data = data.partition(b"\r\n")
        arguments = []
        for _ in range(int(count[1:])):
            length, _, data = data.partition(b"\r\n")
            arguments.append(data[: int(length[1:])])
            data = data[int(length[1:]) + 2 :]
        found.append(arguments)
    return [command for command in found if command[0].upper() != b"SELECT"]


def transactions(commands: list[list[bytes]]) -> list[list[list[bytes]]]:
    """What belongs together: between MULTI and EXEC, or alone. Redis 6.2 wraps a single command as well."""
    found: list[list[list[bytes]]] = []
    inside = False
    for command in commands:
        if command == [b"MULTI"]:
            found.append([])
        elif command != [b"EXEC"]:
            found[-1].append(command) if inside else found.append([command])
        inside = command == [b"MULTI"] or (inside and command != [b"EXEC"])
    return found


def test_only_the_outputs_of_runs_are_replicated(start_server: Callable[..., Server]) -> None:
    master = start_server("--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0")
    replica = start_server("--replicaof", "127.0.0.1", str(master.port))
    with Wire(master.port) as wire, Wire(replica.port) as copy:
        wait_until(lambda: b"master_link_status:up" in copy("INFO", "replication"), "the link to the master")
        store(wire, "m")
        store(wire, "m12", outputs=2)
        store(wire, "bad", "raise", text="no")
        put(wire, "a", 1, 2)
        before = len(aof_commands(master))
        assert wire("AI.MODELEXECUTE", *words("m INPUTS 1 a OUTPUTS 1 o")) == OK
        assert wire("AI.MODELEXECUTE", *words("m12 INPUTS 1 a OUTPUTS 2 p q")) == OK
        assert wire("AI.MODELEXECUTE", *words("bad INPUTS 1 a OUTPUTS 1 x")) == Error("no")
        assert wire("AI.MODELEXECUTE", *words("m INPUTS 1 none OUTPUTS 1 x")) == Error(NO_TENSOR)
        dag = words("AI.DAGEXECUTE LOAD 1 a PERSIST 2 r s |> AI.TENSORSET r INT8 VALUES 7 |> AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 s")
        assert wire(*dag) == [OK, OK]
        assert wire(*words("AI.DAGRUN PERSIST 1 t |> AI.TENSORSET t STRING 2 VALUES x yz")) == [OK]
        assert wire("AI.INFO", "m", "RESETSTAT") == OK
        written = aof_commands(master)[before:]
        doubles = b"\0\0\0\0\0\0\xf0?\0\0\0\0\0\0\0@"

        def tensor(key: bytes) -> list[bytes]:
            return [b"AI.TENSORSET", key, b"DOUBLE", b"1", b"2", b"BLOB", doubles]

        number = [b"AI.TENSORSET", b"r", b"INT8", b"BLOB", b"\7"]
        text = [b"AI.TENSORSET", b"t", b"STRING", b"2", b"BLOB", b"x\0yz\0"]
        assert transactions(written) == [[tensor(b"o")], [tensor(b"p"), tensor(b"q")], [number, tensor(b"s")], [text]]

        assert wire("WAIT", 1, 10_000) == 1
        assert copy("DBSIZE") == wire("DBSIZE")
        assert [get(copy, key) for key in "opqs"] == [[1, 2]] * 4
        assert copy("DEBUG", "DIGEST") == wire("DEBUG", "DIGEST")
        assert calls(copy, "m") == (0, 0)
        digest = wire("DEBUG", "DIGEST")
        assert wire("DEBUG", "LOADAOF") == OK
        assert wire("DEBUG", "DIGEST") == digest

        # A replica runs what only reads, and refuses what may write.
        for line in BLOCKING:
            name = line.split()[0]
            reply = copy.only_reply(*words(line))
            if name.endswith("_RO"):
                assert reply == [[b"dtype", b"DOUBLE", b"shape", [1, 2], b"blob", doubles]]
            else:
                assert isinstance(reply, Error)
                assert reply.text.startswith("READONLY")
        assert copy.only_reply(*words("AI.DAGRUN_RO LOAD 1 a |> AI.MODELRUN m INPUTS a OUTPUTS x |> AI.TENSORGET x VALUES"))[0] == OK
        assert copy("EXISTS", "x") == 0


def test_a_server_that_becomes_a_replica_stores_no_result(start_server: Callable[..., Server], tmp_path: Path) -> None:
    server, master = start_server(), start_server()
    with Wire(server.port) as wire, Wire(server.port) as client:
        put(wire, "a", 1)
        gate = Gate(wire, tmp_path / "gate", "gate")
        client.send(*RUN)
        wait_running(wire)
        assert wire("REPLICAOF", "127.0.0.1", master.port) == OK
        reply = client.read()
        assert isinstance(reply, Error)
        assert reply.text.startswith("UNBLOCKED")
        gate.open()
        wait_gone(wire)
        assert wire("EXISTS", "o") == 0


def test_the_outputs_of_a_run_are_not_stored_when_memory_ran_out_meanwhile(start_server: Callable[..., Server], tmp_path: Path) -> None:
    port = start_server().port
    with Wire(port) as wire, Wire(port) as client:
        put(wire, "a", 1)
        gate = Gate(wire, tmp_path / "gate", "gate")
        client.send(*RUN)
        wait_running(wire)
        wire("CONFIG", "SET", "maxmemory", 1)
        refused = wire.only_reply(*RUN)
        assert isinstance(refused, Error)
        assert refused.text.startswith("OOM")
        gate.open()
        reply = client.read()
        assert reply == Error("OOM command not allowed when used memory > 'maxmemory'.")
        assert wire("EXISTS", "o") == 0
        wire("CONFIG", "SET", "maxmemory", 0)
        assert wire.only_reply(*RUN) == OK


def test_the_tensors_of_a_dag_are_not_persisted_when_memory_ran_out_meanwhile(start_server: Callable[..., Server], tmp_path: Path) -> None:
    port = start_server().port
    with Wire(port) as wire, Wire(port) as client:
        put(wire, "a", 1)
        gate = Gate(wire, tmp_path / "gate", "gate")
        client.send(
            *words("AI.DAGEXECUTE LOAD 1 a PERSIST 2 x y |> AI.MODELEXECUTE gate INPUTS 1 a OUTPUTS 1 x |> AI.TENSORSET y DOUBLE 1")
        )
        wait_running(wire)
        wire("CONFIG", "SET", "maxmemory", 1)
        gate.open()
        assert client.read() == [OK, OK, Error("OOM command not allowed when used memory > 'maxmemory'.")]
        assert wire("EXISTS", "x", "y") == 0


# ---- which keys --------------------------------------------------------------------------------------------------------------------------

R, W, RW = "RO access", "OW update", "RW access update"

KEYS: list[tuple[str, dict[str, str]]] = [
    ("AI.MODELEXECUTE m INPUTS 2 a b OUTPUTS 1 o TIMEOUT 5", {"m": R, "a": R, "b": R, "o": W}),
    ("AI.MODELEXECUTE m INPUTS 1 INPUTS OUTPUTS 2 OUTPUTS o", {"m": R, "INPUTS": R, "OUTPUTS": W, "o": W}),
    ("AI.MODELEXECUTE m INPUTS 9 a b OUTPUTS 1 o", {"m": R}),
    ("AI.MODELRUN m TIMEOUT 5 INPUTS a b OUTPUTS o p", {"m": R, "a": R, "b": R, "o": W, "p": W}),
    ("AI.MODELRUN m INPUTS a OUTPUTS o OUTPUTS TIMEOUT", {"m": R, "a": R, "o": W, "OUTPUTS": W, "TIMEOUT": W}),
    ("AI.SCRIPTEXECUTE s f KEYS 2 k l INPUTS 1 a ARGS 2 x y OUTPUTS 1 o", {"s": R, "k": RW, "l": RW, "a": R, "o": W}),
    ("AI.SCRIPTEXECUTE s f INPUTS 1 a OUTPUTS 1 o TIMEOUT 5", {"s": R, "a": R, "o": W}),
    ("AI.SCRIPTRUN s f INPUTS a $ b OUTPUTS o", {"s": R, "a": R, "b": R, "o": W}),
    (
        "AI.DAGEXECUTE LOAD 2 a b PERSIST 1 o ROUTING r |> AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 o",
        {"a": R, "b": R, "o": W, "r": "not_key", "m": R},
    ),
    ("AI.DAGEXECUTE LOAD 1 a |> AI.SCRIPTEXECUTE s f INPUTS 1 a KEYS 1 k ARGS 1 x OUTPUTS 1 y", {"a": R, "k": RW, "s": R}),
    ("AI.DAGEXECUTE_RO LOAD 1 a |> AI.TENSORSET LOAD FLOAT 1 |> AI.MODELEXECUTE m INPUTS 1 LOAD OUTPUTS 1 x", {"a": R, "m": R}),
    (
        "AI.DAGRUN LOAD 1 a PERSIST 1 o |> AI.MODELRUN m INPUTS a OUTPUTS o |> AI.SCRIPTRUN s f INPUTS o OUTPUTS p",
        {"a": R, "o": W, "m": R, "s": R},
    ),
    ("AI.DAGRUN_RO LOAD 1 |> |> AI.MODELRUN m INPUTS a OUTPUTS x", {"|>": R, "m": R}),
    ("AI.DAGRUN_RO LOAD 1 a |> AI.MODELRUN m INPUTS |> OUTPUTS x", {"a": R}),  # a local name cannot be |>
]


@since_7
@pytest.mark.parametrize(("line", "keys"), KEYS)
def test_command_getkeys(wire: Wire, line: str, keys: dict[str, str]) -> None:
    found = {key.decode(): " ".join(flag.text for flag in flags) for key, flags in wire("COMMAND", "GETKEYSANDFLAGS", *words(line))}
    assert found == keys
    assert {key.decode() for key in wire("COMMAND", "GETKEYS", *words(line))} == set(keys)


@pytest.mark.parametrize(
    "line",
    [
        "AI.TENSORSET k FLOAT 1",
        "AI.TENSORGET k",
        "AI.MODELSTORE k ONNX CPU BLOB x",
        "AI.MODELSET k ONNX CPU BLOB x",
        "AI.MODELGET k META",
        "AI.MODELDEL k",
        "AI.SCRIPTSTORE k CPU ENTRY_POINTS 1 f SOURCE x",
        "AI.SCRIPTSET k CPU SOURCE x",
        "AI.SCRIPTGET k",
        "AI.SCRIPTDEL k",
        "AI.INFO k RESETSTAT",
    ],
)
def test_the_key_of_other_commands(wire: Wire, line: str) -> None:
    assert wire("COMMAND", "GETKEYS", *words(line)) == [b"k"]


@since_7
@pytest.mark.parametrize("line", ["AI._MODELSCAN x", "AI._SCRIPTSCAN x", "AI.CONFIG GET BACKENDSPATH"])
def test_commands_that_have_no_key(wire: Wire, line: str) -> None:
    assert wire("COMMAND", "GETKEYS", *words(line)) == Error("ERR The command has no key arguments")


@pytest.mark.parametrize("line", ["AI.MODELEXECUTE m", "AI.DAGEXECUTE LOAD", "AI.DAGRUN |> AI.TENSORSET a FLOAT 1", "AI.SCRIPTRUN s"])
def test_a_command_without_keys(wire: Wire, line: str) -> None:
    assert wire("COMMAND", "GETKEYS", *words(line)) == Error("ERR Invalid arguments specified for command")


#: What a user must be allowed for each of these, and for no other key.
GUARDED = [
    ("AI.MODELEXECUTE m2 INPUTS 2 a b OUTPUTS 1 o", ["%R~m2", "%R~a", "%R~b", "%W~o"], OK),
    ("AI.MODELRUN m2 INPUTS a b OUTPUTS o", ["%R~m2", "%R~a", "%R~b", "%W~o"], OK),
    (
        "AI.DAGEXECUTE LOAD 1 a PERSIST 1 o |> AI.TENSORSET LOAD DOUBLE 1 2 |> AI.TENSORSET ROUTING DOUBLE 1 2 |> "
        "AI.MODELEXECUTE m2 INPUTS 2 a LOAD OUTPUTS 1 o",
        ["%R~a", "%R~m2", "%W~o"],
        [OK, OK, OK],
    ),
    ("AI.DAGRUN LOAD 1 a |> AI.TENSORSET LOAD DOUBLE 1 2 |> AI.MODELRUN m INPUTS LOAD OUTPUTS x", ["%R~a", "%R~m"], [OK, OK]),
    ("AI.DAGRUN_RO LOAD 1 a |> AI.MODELRUN m INPUTS a OUTPUTS PERSIST", ["%R~a", "%R~m"], [OK]),
]


@since_7
@pytest.mark.parametrize(("line", "rights", "reply"), GUARDED)
def test_a_user_needs_the_right_to_every_key_and_to_nothing_else(
    world: Wire, other: Wire, line: str, rights: list[str], reply: Any
) -> None:
    def login(*patterns: str) -> None:
        assert world("ACL", "SETUSER", "u", "reset", "on", ">p", "+@all", *patterns) == OK
        assert other("AUTH", "u", "p") == OK

    login(*rights)
    assert other.only_reply(*words(line)) == reply
    world("DEL", "o")
    swapped = {"R": "W", "W": "R"}
    for at, right in enumerate(rights):
        others = rights[:at] + rights[at + 1 :]
        for lacking in (others, [*others, f"%{swapped[right[1]]}{right[2:]}"]):
            login(*lacking)
            refused = other.only_reply(*words(line))
            assert isinstance(refused, Error), (right, lacking)
            assert refused.text.startswith("NOPERM")
    assert world("EXISTS", "o") == 0
    world("ACL", "DELUSER", "u")


@pytest.mark.parametrize("name", ["LOAD", "PERSIST", "ROUTING", "AI.MODELEXECUTE", "|>x", "KEYS", "TIMEOUT"])
@pytest.mark.parametrize("command", ["AI.DAGEXECUTE", "AI.DAGRUN"])
def test_a_tensor_named_like_a_keyword_hides_no_model_from_the_rights_of_a_user(world: Wire, other: Wire, name: str, command: str) -> None:
    assert world("ACL", "SETUSER", "u", "reset", "on", ">p", "+@all", "~a*") == OK
    assert other("AUTH", "u", "p") == OK
    run = (
        ["AI.MODELRUN", "m", "INPUTS", name, "OUTPUTS", "x"]
        if "RUN" in command
        else ["AI.MODELEXECUTE", *words(f"m INPUTS 1 {name} OUTPUTS 1 x")]
    )
    before = [command, "LOAD", 1, "a", "|>", "AI.TENSORSET", name, "DOUBLE", 1]
    assert other.only_reply(*before, "|>", "AI.TENSORGET", name, "VALUES") == [OK, [b"0"]]
    for line in ([*before, "|>", *run], [*before, "|>", "AI.TENSORSET", name, "DOUBLE", 1, "|>", *run]):
        reply = other.only_reply(*line)
        assert isinstance(reply, Error)
        assert reply.text.startswith("NOPERM")
    world("ACL", "DELUSER", "u")


# ---- cluster -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _lonely_cluster() -> Iterator[Server]:
    server = Server("--cluster-enabled", "yes")
    with Wire(server.port) as wire:
        wire("CLUSTER", "ADDSLOTS", *range(16384))
        wait_until(lambda: b"cluster_state:ok" in wire("CLUSTER", "INFO"), "the cluster's state")
    yield server
    server.close()


@pytest.fixture
def cluster(_lonely_cluster: Server) -> Iterator[Wire]:
    """A cluster of one node that serves every slot."""
    with Wire(_lonely_cluster.port) as wire:
        wire("FLUSHALL")
        yield wire


CROSSSLOT = Error("CROSSSLOT Keys in request don't hash to the same slot")


def test_in_a_cluster_every_key_of_a_command_counts(cluster: Wire) -> None:
    store(cluster, "m{1}")
    put(cluster, "a{1}", 1)
    put(cluster, "a{2}", 2)
    assert cluster.only_reply("AI.MODELEXECUTE", *words("m{1} INPUTS 1 a{1} OUTPUTS 1 o{1}")) == OK
    assert cluster.only_reply("AI.MODELRUN", *words("m{1} INPUTS a{1} OUTPUTS o{1}")) == OK
    for line in (
        "AI.MODELEXECUTE m{1} INPUTS 1 a{2} OUTPUTS 1 o{1}",
        "AI.MODELEXECUTE m{1} INPUTS 1 a{1} OUTPUTS 1 o{2}",
        "AI.MODELRUN m{1} INPUTS a{1} OUTPUTS o{2}",
        "AI.SCRIPTEXECUTE s{1} f INPUTS 1 a{1} OUTPUTS 1 o{2}",
        "AI.SCRIPTEXECUTE s{1} f KEYS 1 k{2} INPUTS 1 a{1} OUTPUTS 1 o{1}",
        "AI.SCRIPTEXECUTE s{1} f INPUTS 1 a{1} ARGS 1 x OUTPUTS 1 o{2}",
        "AI.SCRIPTRUN s{1} f INPUTS a{1} OUTPUTS o{2}",
        "AI.DAGEXECUTE LOAD 2 a{1} a{2} |> AI.TENSORGET a{1}",
        "AI.DAGEXECUTE LOAD 1 a{1} PERSIST 1 o{2} |> AI.TENSORSET o{2} FLOAT 1",
        "AI.DAGEXECUTE LOAD 1 a{1} ROUTING {2} |> AI.TENSORGET a{1}",
        "AI.DAGEXECUTE LOAD 1 a{2} |> AI.MODELEXECUTE m{1} INPUTS 1 a{2} OUTPUTS 1 x",
        "AI.DAGRUN LOAD 1 a{2} |> AI.MODELRUN m{1} INPUTS a{2} OUTPUTS x",
        "AI.DAGRUN LOAD 1 a{2} |> AI.SCRIPTRUN s{1} f INPUTS a{2} OUTPUTS x",
    ):
        assert cluster.only_reply(*words(line)) == CROSSSLOT, line


def test_in_a_cluster_local_names_do_not_count(cluster: Wire) -> None:
    store(cluster, "m{1}")
    put(cluster, "a{1}", 1)
    run = "|> AI.TENSORSET x{2} DOUBLE 1 VALUES 5 |> AI.MODELEXECUTE m{1} INPUTS 1 x{2} OUTPUTS 1 y{3} |> AI.TENSORGET y{3} VALUES"
    assert cluster.only_reply(*words(f"AI.DAGEXECUTE ROUTING {{1}} {run}")) == [OK, OK, [b"5"]]
    assert cluster.only_reply(*words("AI.DAGRUN |> AI.TENSORSET x FLOAT 1 VALUES 2 |> AI.TENSORGET x VALUES")) == [OK, [b"2"]]
    assert cluster.only_reply(*words("AI.DAGEXECUTE LOAD 1 a{1} PERSIST 1 o{1} |> AI.TENSORSET o{1} DOUBLE VALUES 3")) == [OK]
    assert get(cluster, "o{1}") == [3]


def test_in_a_cluster_a_slot_without_a_node_is_answered_by_the_server(cluster: Wire) -> None:
    slot = cluster("CLUSTER", "KEYSLOT", "{2}")
    assert cluster("CLUSTER", "DELSLOTS", slot) == OK
    try:
        reply = cluster.only_reply("AI.MODELEXECUTE", *words("m{2} INPUTS 1 a{2} OUTPUTS 1 o{2}"))
        assert isinstance(reply, Error)
        assert reply.text.startswith("CLUSTERDOWN")
    finally:
        cluster("CLUSTER", "ADDSLOTS", slot)
        wait_until(lambda: b"cluster_state:ok" in cluster("CLUSTER", "INFO"), "the cluster's state")
