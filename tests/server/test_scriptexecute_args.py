"""AI.SCRIPTEXECUTE and AI.SCRIPTRUN: every row of their argument tables, and (with torch) what running a script writes and says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from runs import NO_INTS, NO_SCRIPT, NO_TENSOR, WRONGTYPE, calls, get, put, put_script, store
from servers import Server
from wire import OK, Error, Wire

ARITY = "ERR wrong number of arguments for 'AI.SCRIPTEXECUTE' command"
SCOPE_FIRST = "ERR KEYS or INPUTS scope must be provided first for AI.SCRIPTEXECUTE command"
NO_KEYS = "ERR Missing arguments after KEYS keyword"
BAD_KEYS = "ERR Invalid or negative value found in number of KEYS"
FEW_KEYS = "ERR Number of pre declared KEYS to be used in the command does not match the number of given arguments"
NO_COUNT = "ERR Invalid arguments provided to AI.SCRIPTEXECUTE"
BAD_INPUTS = "ERR Invalid argument for inputs count in AI.SCRIPTEXECUTE"
BAD_OUTPUTS = "ERR Invalid argument for outputs count in AI.SCRIPTEXECUTE"
BAD_ARGS = "ERR Invalid argument for keys count in AI.SCRIPTEXECUTE"
FEW = "ERR number of {} to AI.SCRIPTEXECUTE command does not match the number of given arguments"
AGAIN = "ERR Already Encountered {} scope in AI.SCRIPTEXECUTE command"
UNEXPECTED = "ERR Invalid AI.SCRIPTEXECUTE command. Unexpected argument: {}"
BAD_TIMEOUT = "ERR Invalid value for TIMEOUT"
AFTER_TIMEOUT = "ERR Encountered problem parsing AI.SCRIPTEXECUTE"


@pytest.fixture
def world(server: Server) -> Iterator[Wire]:
    """A script s, tensor a, a model and a string."""
    with Wire(server.port) as wire:
        store(wire, "m")
        put(wire, "a", 1)
        wire("SET", "string", "x")
        put_script(wire, "s")
        yield wire


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("", ARITY),
        ("s", ARITY),
        ("none f", NO_SCRIPT),
        ("string f", WRONGTYPE),
        ("m f INPUTS 1 a", WRONGTYPE),
        ("a f INPUTS 1 a", WRONGTYPE),
        ("s f", SCOPE_FIRST),
        ("s f ARGS 1 x INPUTS 1 a", SCOPE_FIRST),
        ("s f OUTPUTS 1 o", SCOPE_FIRST),
        ("s f TIMEOUT 5 INPUTS 1 a", SCOPE_FIRST),
        ("s f x", SCOPE_FIRST),
        # KEYS
        ("s f KEYS", NO_KEYS),
        ("s f KEYS 1", NO_KEYS),
        ("s f KEYS 0 k", BAD_KEYS),
        ("s f KEYS -1 k", BAD_KEYS),
        ("s f KEYS 2 k", FEW_KEYS),
        (f"s f KEYS {2**63 - 1} k", FEW_KEYS),
        (f"s f KEYS {2**32 + 1} k", FEW_KEYS),
        ("s f INPUTS 0 KEYS 1", NO_KEYS),
        ("s f KEYS 1 k KEYS 1 k", AGAIN.format("KEYS")),
        # INPUTS, ARGS, OUTPUTS
        ("s f INPUTS", NO_COUNT),
        ("s f INPUTS 1 a ARGS", NO_COUNT),
        ("s f INPUTS 1 a OUTPUTS", NO_COUNT),
        ("s f INPUTS 1", FEW.format("inputs")),
        ("s f INPUTS 2 a", FEW.format("inputs")),
        ("s f INPUTS -1 a", FEW.format("inputs")),
        (f"s f INPUTS {2**63 - 1} a", FEW.format("inputs")),
        (f"s f INPUTS {-(2**63)} a", FEW.format("inputs")),
        ("s f INPUTS 1 a ARGS 1", FEW.format("args")),
        ("s f INPUTS 1 a ARGS -1", FEW.format("args")),
        (f"s f INPUTS 1 a ARGS {2**62} x", FEW.format("args")),
        ("s f INPUTS 1 a OUTPUTS 1", FEW.format("outputs")),
        ("s f INPUTS 1 a OUTPUTS -1", FEW.format("outputs")),
        ("s f INPUTS 1 a OUTPUTS 2 o", FEW.format("outputs")),
        ("s f INPUTS 1 a INPUTS 1 a", AGAIN.format("INPUTS")),
        ("s f INPUTS 0 INPUTS 0", AGAIN.format("INPUTS")),
        ("s f INPUTS 1 a ARGS 1 x ARGS 1 x", AGAIN.format("ARGS")),
        ("s f INPUTS 1 a OUTPUTS 1 o OUTPUTS x", AGAIN.format("OUTPUTS")),
        ("s f INPUTS 1 a b OUTPUTS 1 o", UNEXPECTED.format("b")),
        ("s f INPUTS 0 a", UNEXPECTED.format("a")),
        ("s f INPUTS 1 a $ OUTPUTS 1 o", UNEXPECTED.format("$")),
        ("s f INPUTS 1 a OUTPUTS 1 o p", UNEXPECTED.format("p")),
        # TIMEOUT
        ("s f INPUTS 1 a TIMEOUT", "ERR No value provided for TIMEOUT in AI.SCRIPTEXECUTE"),
        ("s f INPUTS 1 a TIMEOUT 0", BAD_TIMEOUT),
        ("s f INPUTS 1 a TIMEOUT -1", BAD_TIMEOUT),
        ("s f INPUTS 1 a TIMEOUT x OUTPUTS 1 o", BAD_TIMEOUT),
        ("s f INPUTS 1 a TIMEOUT 5 OUTPUTS 1 o", AFTER_TIMEOUT),
        ("s f INPUTS 1 a TIMEOUT 5 TIMEOUT 5", AFTER_TIMEOUT),
        # the inputs, when all else is right
        ("s f INPUTS 1 none OUTPUTS 1 o x", UNEXPECTED.format("x")),
        ("s f INPUTS 1 none OUTPUTS 1 o", NO_TENSOR),
        ("s f INPUTS 2 a string", WRONGTYPE),
        ("s f KEYS 1 none INPUTS 2 none string", NO_TENSOR),
        ("s f inputs 1 none outputs 1 o timeout 5", NO_TENSOR),
    ],
)
def test_scriptexecute_refuses(world: Wire, line: str, error: str) -> None:
    assert world.only_reply("AI.SCRIPTEXECUTE", *line.split()) == Error(error)
    assert world("EXISTS", "o") == 0
    assert calls(world, "s") == (0, 0)


@pytest.mark.parametrize("value", NO_INTS)
def test_counts_are_strict_integers(world: Wire, value: Any) -> None:
    def refused(*words: Any) -> str:
        reply = world.only_reply("AI.SCRIPTEXECUTE", "s", "f", *words)
        assert isinstance(reply, Error)
        return reply.text

    assert refused("KEYS", value, "k") == BAD_KEYS
    assert refused("INPUTS", value, "a") == BAD_INPUTS
    assert refused("INPUTS", 1, "a", "ARGS", value, "x") == BAD_ARGS
    assert refused("INPUTS", 1, "a", "OUTPUTS", value, "o") == BAD_OUTPUTS
    assert refused("INPUTS", 1, "a", "TIMEOUT", value) == BAD_TIMEOUT


RUN_ARITY = "ERR wrong number of arguments for 'AI.SCRIPTRUN' command"
UNKNOWN = "ERR Unrecongnized parameter to SCRIPTRUN"  # spelt so in 1.2.7
TWO_INPUTS = "ERR Already encountered an INPUTS keyword in SCRIPTRUN"
INPUTS_LATE = "ERR Already encountered an INPUTS section in SCRIPTRUN"
TWO_OUTPUTS = "ERR Already encountered an OUTPUTS keyword in SCRIPTRUN"
TWO_TIMEOUTS = "ERR Already encountered an TIMEOUT section in SCRIPTRUN"
DOLLAR_OUTSIDE = "ERR Encountered a variable size list of tensors outside of input section"
TWO_DOLLARS = "ERR Already encountered a variable size list of tensors"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("", RUN_ARITY),
        ("s", RUN_ARITY),
        ("none f", NO_SCRIPT),
        ("string f", WRONGTYPE),
        ("m f INPUTS a OUTPUTS o", WRONGTYPE),
        ("s f x INPUTS a", UNKNOWN),
        ("s f TIMEOUT 5 x", UNKNOWN),
        ("s f TIMEOUT", BAD_TIMEOUT),
        ("s f TIMEOUT 0 INPUTS a OUTPUTS o", BAD_TIMEOUT),
        ("s f INPUTS a TIMEOUT x", BAD_TIMEOUT),
        ("s f INPUTS a OUTPUTS o TIMEOUT -1", BAD_TIMEOUT),
        ("s f TIMEOUT 5 INPUTS a TIMEOUT 5", TWO_TIMEOUTS),
        ("s f TIMEOUT 5 TIMEOUT", TWO_TIMEOUTS),
        ("s f INPUTS INPUTS a", TWO_INPUTS),
        ("s f INPUTS a INPUTS b OUTPUTS o", TWO_INPUTS),
        ("s f INPUTS a OUTPUTS o INPUTS a", INPUTS_LATE),
        ("s f OUTPUTS o INPUTS a", INPUTS_LATE),
        ("s f INPUTS a OUTPUTS o OUTPUTS p", TWO_OUTPUTS),
        ("s f $ a", DOLLAR_OUTSIDE),
        ("s f INPUTS a OUTPUTS $ o", DOLLAR_OUTSIDE),
        ("s f INPUTS $ a $ b", TWO_DOLLARS),
        ("s f INPUTS none $ OUTPUTS o", NO_TENSOR),
        ("s f INPUTS a $ string OUTPUTS o", WRONGTYPE),
        ("s f timeout 5 inputs none outputs o", NO_TENSOR),
    ],
)
def test_scriptrun_refuses(world: Wire, line: str, error: str) -> None:
    assert world.only_reply("AI.SCRIPTRUN", *line.split()) == Error(error)
    assert world("EXISTS", "o") == 0
    assert calls(world, "s") == (0, 0)


# ---- with a library that runs scripts ----------------------------------------------------------------------------------------------------

SOURCE = """
def add(tensors: List[Tensor], keys: List[str], args: List[str]):
    return tensors[0] + tensors[1]

def both(tensors: List[Tensor], keys: List[str], args: List[str]):
    return tensors[0], tensors[1]

def scale(tensors: List[Tensor], keys: List[str], args: List[str]):
    return tensors[0] * float(args[0])

def fail(tensors: List[Tensor], keys: List[str], args: List[str]):
    assert len(tensors) > 5, "too few"
    return tensors[0]

def keep(tensors: List[Tensor], keys: List[str], args: List[str]):
    redis.execute("SET", keys[0], args[0])

def nested(tensors: List[Tensor], keys: List[str], args: List[str]):
    redis.execute("AI.MODELEXECUTE", ["m", "INPUTS", "1", "a", "OUTPUTS", "1", "o"])
    return tensors[0]

def plain(a, b):
    return a - b

def joined(a, rest: List[Tensor]):
    return a + rest[0] + rest[1]
"""
ENTRY_POINTS = ("add", "both", "scale", "fail", "keep", "nested")


@pytest.fixture
def scripts(real_server: Server) -> Iterator[Wire]:
    with Wire(real_server.port) as wire:
        assert wire("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", len(ENTRY_POINTS), *ENTRY_POINTS, "SOURCE", SOURCE) == OK
        put(wire, "a", 1, 2)
        put(wire, "b", 10, 20)
        wire("SET", "string", "x")
        yield wire


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    ("line", "outputs"),
    [
        ("AI.SCRIPTEXECUTE s add INPUTS 2 a b OUTPUTS 1 o", {"o": [11, 22]}),
        ("ai.scriptexecute s add inputs 2 a b outputs 1 o timeout 60000", {"o": [11, 22]}),
        ("AI.SCRIPTEXECUTE s both INPUTS 2 a b OUTPUTS 2 o p", {"o": [1, 2], "p": [10, 20]}),
        ("AI.SCRIPTEXECUTE s both INPUTS 2 a b OUTPUTS 2 o o", {"o": [10, 20]}),
        ("AI.SCRIPTEXECUTE s scale INPUTS 1 a ARGS 1 3 OUTPUTS 1 a", {"a": [3, 6]}),
        ("AI.SCRIPTEXECUTE s scale INPUTS 1 a OUTPUTS 1 o ARGS 1 3", {"o": [3, 6]}),
        ("AI.SCRIPTEXECUTE s scale KEYS 1 k OUTPUTS 1 o ARGS 2 3 4 INPUTS 1 a", {"o": [3, 6]}),
        ("AI.SCRIPTEXECUTE s add INPUTS 2 a b", {}),
        ("AI.SCRIPTRUN s plain INPUTS b a OUTPUTS o", {"o": [9, 18]}),
        ("AI.SCRIPTRUN s plain TIMEOUT 60000 INPUTS b a OUTPUTS o", {"o": [9, 18]}),
        ("AI.SCRIPTRUN s joined INPUTS a $ b b OUTPUTS o TIMEOUT 60000", {"o": [21, 42]}),
        ("AI.SCRIPTRUN s joined INPUTS a b b OUTPUTS o", {"o": [21, 42]}),  # the signature decides, not the $
    ],
)
def test_a_script_runs(scripts: Wire, line: str, outputs: dict[str, list[float]]) -> None:
    assert scripts.only_reply(*line.split()) == OK
    assert {key: get(scripts, key) for key in outputs} == outputs


@pytest.mark.needs_torch
def test_a_script_reads_and_writes_the_keys_it_was_given(scripts: Wire) -> None:
    assert scripts.only_reply(*"AI.SCRIPTEXECUTE s keep KEYS 1 k ARGS 1 value".split()) == OK
    assert scripts("GET", "k") == b"value"


@pytest.mark.needs_torch
def test_a_run_that_fails_says_so_on_one_line_and_writes_nothing(scripts: Wire) -> None:
    reply = scripts.only_reply(*"AI.SCRIPTEXECUTE s fail INPUTS 1 a OUTPUTS 1 o".split())
    assert isinstance(reply, Error)
    assert "too few" in reply.text
    assert scripts("EXISTS", "o") == 0
    assert calls(scripts, "s") == (1, 1)


@pytest.mark.needs_torch
def test_an_output_key_of_another_type_is_one_error(scripts: Wire) -> None:
    assert scripts.only_reply(*"AI.SCRIPTEXECUTE s both INPUTS 2 a b OUTPUTS 2 o string".split()) == Error(WRONGTYPE)
    assert get(scripts, "o") == [1, 2]
    assert scripts("GET", "string") == b"x"


@pytest.mark.needs_torch
def test_a_script_cannot_call_what_would_have_to_wait(scripts: Wire) -> None:
    """AI.MODELEXECUTE through redis.execute ended the server in 1.2.7."""
    reply = scripts.only_reply(*"AI.SCRIPTEXECUTE s nested INPUTS 1 a OUTPUTS 1 o".split())
    assert isinstance(reply, Error)
    assert "Cannot run RedisAI command within a transaction or a LUA script" in reply.text
    assert scripts("EXISTS", "o") == 0
