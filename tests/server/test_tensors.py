"""AI.TENSORSET and AI.TENSORGET: every row of their argument tables, every dtype against numpy, and what a key must survive."""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from conftest import echo_model
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from servers import Server, wait_until
from wire import OK, QUEUED, Double, Error, Status, Wire, encode

DTYPES = {
    "FLOAT": np.float32,
    "DOUBLE": np.float64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "BOOL": np.bool_,
}
WRONGTYPE = Error("WRONGTYPE Operation against a key holding the wrong kind of value")

DTYPE = "ERR invalid data type"
SHAPE = "ERR invalid or negative value found in tensor shape"
ONE_BLOB = "ERR a single binary string should come after the BLOB argument in 'AI.TENSORSET' command"
COUNT = "ERR wrong number of values was given in 'AI.TENSORSET' command"
ITEMS = "ERR Number of string elements in data blob does not match tensor length"
LENGTH = "ERR data length does not match tensor shape and type"
BOOL = "ERR BOOL tensor elements must be 0 or 1"
NUL = "ERR C-string value contains null character"
VALUE = "ERR invalid value"
LIMIT = "ERR tensor is larger than MAX_TENSOR_BYTES"

BIG = 1 << 20  # bytes; beyond the size from which an argument is kept, not copied

patiently = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    with Wire(server.port) as wire:
        yield wire


@pytest.fixture
def resp3(server: Server) -> Iterator[Wire]:
    with Wire(server.port, resp=3) as wire:
        yield wire


def set_error(wire: Wire, *arguments: Any) -> str:
    """The error of AI.TENSORSET on a fresh key, which must leave no key."""
    reply = wire.only_reply("AI.TENSORSET", "fresh", *arguments)
    assert isinstance(reply, Error), reply
    assert wire("EXISTS", "fresh") == 0
    return reply.text


def stored(wire: Wire, *arguments: Any) -> tuple[str, list[int], Any]:
    """Stores a tensor and returns dtype, shape and values."""
    assert wire.only_reply("AI.TENSORSET", "t", *arguments) == OK
    return content(wire)


def content(wire: Wire, key: str = "t") -> tuple[str, list[int], Any]:
    fields = wire.only_reply("AI.TENSORGET", key, "META", "VALUES")
    assert fields[::2] == [b"dtype", b"shape", b"values"]
    return fields[1].decode(), fields[3], fields[5]


# ---- arguments of AI.TENSORSET -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        # the data type
        (("FLOAT16", 1), DTYPE),
        (("UINT32", 1), DTYPE),
        (("UINT64", 1), DTYPE),
        (("FLOA", 1), DTYPE),
        (("FLOATS", 1), DTYPE),
        (("", 1), DTYPE),
        ((b"FLOAT\0", 1), DTYPE),
        (("BLOB", "x"), DTYPE),
        # the shape
        *[(("FLOAT", dim), SHAPE) for dim in (0, -1, "", "1.0", "1e3", " 1", "1 ", "+1", "01", "-0", "0x2", "x", "1\0", 2**63, -(2**63))],
        (("FLOAT", 2, 0), SHAPE),
        (("FLOAT", 2, "VALUE", 1, 2), SHAPE),
        (("FLOAT", 2**63 - 1), SHAPE),
        (("FLOAT", 2**32, 2**32), SHAPE),
        (("FLOAT", 2**32, 2**32, "BLOB", ""), SHAPE),
        (("FLOAT", 2**32, 2**32, "VALUES"), SHAPE),
        (("UINT8", 2**62, 2, "BLOB", ""), SHAPE),
        (("STRING", 2**60, "BLOB", "x"), ITEMS),
        (("FLOAT", *[1] * 65), "ERR tensor shape has more than 64 dimensions"),
        # BLOB
        (("FLOAT", 1, "BLOB"), ONE_BLOB),
        (("FLOAT", "BLOB"), ONE_BLOB),
        (("FLOAT", 1, "BLOB", "abcd", "efgh"), ONE_BLOB),
        (("FLOAT", 1, "blob"), ONE_BLOB),
        (("FLOAT", 2, "BLOB", b"1234567"), LENGTH),
        (("FLOAT", 2, "BLOB", b"123456789"), LENGTH),
        (("FLOAT", 2, "BLOB", b""), LENGTH),
        (("FLOAT", "BLOB", b""), LENGTH),
        (("BOOL", 2, "BLOB", b""), LENGTH),
        (("DOUBLE", 10**12, "BLOB", b"short"), LENGTH),
        (("BOOL", 3, "BLOB", b"\2\0\0"), BOOL),
        (("BOOL", 3, "BLOB", b"\0\0\2"), BOOL),
        (("BOOL", 1, "BLOB", b"\xff"), BOOL),
        (("BOOL", 8, "BLOB", b"\0" * 7 + b"\2"), BOOL),
        (("BOOL", 19, "BLOB", b"\1" * 9 + b"\x80" + b"\1" * 9), BOOL),
        (("STRING", 1, "BLOB", b""), ITEMS),
        (("STRING", "BLOB", b""), ITEMS),
        (("STRING", 1, "BLOB", b"abc"), ITEMS),
        (("STRING", 2, "BLOB", b"abc\0"), ITEMS),
        (("STRING", 2, "BLOB", b"abc\0def"), ITEMS),
        (("STRING", 1, "BLOB", b"abc\0def\0"), ITEMS),
        (("STRING", 2, "BLOB", b"\0\0\0"), ITEMS),
        # VALUES: how many
        (("FLOAT", 2, "VALUES", 1), COUNT),
        (("FLOAT", 2, "VALUES", 1, 2, 3), COUNT),
        (("FLOAT", 2, "VALUES"), COUNT),
        (("FLOAT", "VALUES"), COUNT),
        (("FLOAT", "VALUES", 1, 2), COUNT),
        (("FLOAT", 10**12, "VALUES", 1), COUNT),
        # VALUES: which
        *[
            (("FLOAT", 1, "VALUES", v), VALUE)
            for v in ("", "x", "nan", "-nan", "NAN(1)", " 1", "1 ", "1e400", "-1e400", "1e-400", "1\0", "1,5")
        ],
        *[(("DOUBLE", 1, "VALUES", v), VALUE) for v in ("", "nan", "1e400", "1 2", "0x", "--1", "1" * 400)],
        *[(("INT64", 1, "VALUES", v), VALUE) for v in ("", "1.0", "1e3", "+1", "01", " 1", "-0", 2**63, -(2**63) - 1, 10**30, "-", "0x1")],
        *[(("INT32", 1, "VALUES", v), VALUE) for v in (2**31, -(2**31) - 1)],
        *[(("INT16", 1, "VALUES", v), VALUE) for v in (2**15, -(2**15) - 1)],
        *[(("INT8", 1, "VALUES", v), VALUE) for v in (128, -129, 300)],
        *[(("UINT8", 1, "VALUES", v), VALUE) for v in (256, -1)],
        *[(("UINT16", 1, "VALUES", v), VALUE) for v in (65536, -1)],
        *[(("BOOL", 1, "VALUES", v), VALUE) for v in (2, -1, "true", "")],
        (("INT8", 3, "VALUES", 1, 2, "x"), VALUE),
        (("STRING", 1, "VALUES", ""), NUL),
        (("STRING", 2, "VALUES", "a", ""), NUL),
        (("STRING", 1, "VALUES", b"a\0b"), NUL),
        (("STRING", 1, "VALUES", b"\0a"), NUL),
        (("STRING", 1, "VALUES", b"a\0\0"), NUL),
        # the first error of several
        (("NOPE", "x", "BLOB"), DTYPE),
        (("FLOAT", "x", "BLOB"), SHAPE),
        (("FLOAT", 2, "VALUES", "x"), COUNT),
        (("FLOAT", 2, "BLOB", "VALUES", 1), ONE_BLOB),
        (("FLOAT", 1, 1, "VALUES", "x", "BLOB"), COUNT),
    ],
)
def test_wrong_arguments_are_refused_with_the_text_clients_know(wire: Wire, arguments: tuple[Any, ...], error: str) -> None:
    assert set_error(wire, *arguments) == error


@pytest.mark.parametrize("arguments", [(), ("fresh",), ("fresh", "FLOAT")])
def test_too_few_arguments(wire: Wire, arguments: tuple[str, ...]) -> None:
    assert wire.only_reply("AI.TENSORSET", *arguments) == wire.arity("AI.TENSORSET")
    assert wire("EXISTS", "fresh") == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("FLOAT", 2, "VALUES", "1.5", "-2"), ("FLOAT", [2], [b"1.5", b"-2"])),
        (("float", 2, "values", 1, 2), ("FLOAT", [2], [b"1", b"2"])),
        (("FLOAT", "VALUES", 3), ("FLOAT", [], [b"3"])),
        (("INT32", "BLOB", b"\1\0\0\0"), ("INT32", [], [1])),
        (("FLOAT", 1, "VALUES", "0x10"), ("FLOAT", [1], [b"16"])),
        (("FLOAT", 3, "VALUES", "inf", "-inf", "Infinity"), ("FLOAT", [3], [b"inf", b"-inf", b"inf"])),
        (("FLOAT", 1, "VALUES", "1e39"), ("FLOAT", [1], [b"inf"])),
        (("FLOAT", 1, "VALUES", "1e-45"), ("FLOAT", [1], None)),
        (("DOUBLE", 1, "VALUES", "-0"), ("DOUBLE", [1], [b"-0"])),
        (("DOUBLE", 1, "VALUES", "5e-324"), ("DOUBLE", [1], None)),
        (("DOUBLE", 1, "VALUES", "1." + "0" * 300), ("DOUBLE", [1], [b"1"])),
        (("INT8", 2, "VALUES", 127, -128), ("INT8", [2], [127, -128])),
        (("INT16", 2, "VALUES", 32767, -32768), ("INT16", [2], [32767, -32768])),
        (("INT32", 2, "VALUES", 2**31 - 1, -(2**31)), ("INT32", [2], [2**31 - 1, -(2**31)])),
        (("INT64", 2, "VALUES", 2**63 - 1, -(2**63)), ("INT64", [2], [2**63 - 1, -(2**63)])),
        (("UINT8", 2, "VALUES", 0, 255), ("UINT8", [2], [0, 255])),
        (("UINT16", 2, "VALUES", 0, 65535), ("UINT16", [2], [0, 65535])),
        (("BOOL", 2, "VALUES", 0, 1), ("BOOL", [2], [0, 1])),
        (("STRING", 2, "VALUES", "ab", b"c\0"), ("STRING", [2], [b"ab", b"c"])),
        (("STRING", 1, "VALUES", b"\0"), ("STRING", [1], [b""])),
        (("STRING", 2, "BLOB", b"ab\0\0"), ("STRING", [2], [b"ab", b""])),
        (("STRING", 1, 2, "VALUES", "BLOB", "VALUES"), ("STRING", [1, 2], [b"BLOB", b"VALUES"])),
        (("STRING", "VALUES", b"\xff\xfe"), ("STRING", [], [b"\xff\xfe"])),
        (("FLOAT", 2, 3), ("FLOAT", [2, 3], [b"0"] * 6)),
        (("BOOL", 2), ("BOOL", [2], [0, 0])),
        (("STRING", 2, 1), ("STRING", [2, 1], [b"", b""])),
        (("INT8", *[1] * 64), ("INT8", [1] * 64, [0])),
    ],
)
def test_accepted_forms(wire: Wire, arguments: tuple[Any, ...], expected: tuple[str, list[int], Any]) -> None:
    dtype, shape, values = stored(wire, *arguments)
    assert (dtype, shape) == expected[:2]
    if expected[2] is not None:
        assert values == expected[2]


def test_a_subnormal_value_is_kept(wire: Wire) -> None:
    assert stored(wire, "DOUBLE", 1, "VALUES", "5e-324")[2] != [b"0"]
    assert wire("AI.TENSORGET", "t", "BLOB") == struct.pack("<d", 5e-324)


def test_keys_and_data_that_look_like_keywords_are_data(wire: Wire) -> None:
    assert wire("AI.TENSORSET", "BLOB", "STRING", 1, "BLOB", b"BLOB\0") == OK
    assert wire("AI.TENSORGET", "BLOB", "VALUES") == [b"BLOB"]
    assert wire("AI.TENSORSET", b"\0\r\n", "INT8", 1, "VALUES", 7) == OK
    assert wire("AI.TENSORGET", b"\0\r\n", "VALUES") == [7]
    assert wire("AI.TENSORSET", "", "INT8", 1, "VALUES", 8) == OK
    assert wire("AI.TENSORGET", "", "VALUES") == [8]


# ---- every dtype against numpy -----------------------------------------------------------------------------------------------------


def arrays(*names: str) -> st.SearchStrategy[tuple[str, np.ndarray[Any, Any]]]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=5, max_side=6)
    return st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), hnp.arrays(DTYPES[name], shapes)))


def numbers(values: list[Any]) -> list[Any]:
    return [float(v) if isinstance(v, bytes) else v for v in values]


@patiently
@given(arrays(*DTYPES))
def test_blobs_come_back_as_they_went(wire: Wire, case: tuple[str, np.ndarray[Any, Any]]) -> None:
    dtype, array = case
    assert wire("AI.TENSORSET", "t", dtype, *array.shape, "BLOB", array.tobytes()) == OK
    assert wire("AI.TENSORGET", "t") == [b"dtype", dtype.encode(), b"shape", list(array.shape), b"blob", array.tobytes()]
    values = np.array(numbers(wire("AI.TENSORGET", "t", "VALUES")), dtype=array.dtype)
    assert np.array_equal(values, array.reshape(-1), equal_nan=array.dtype.kind == "f")


@patiently
@given(arrays(*DTYPES))
def test_values_are_what_numpy_makes_of_them(wire: Wire, case: tuple[str, np.ndarray[Any, Any]]) -> None:
    dtype, array = case
    assume(not (array.dtype.kind == "f" and np.isnan(array).any()))
    flat = array.reshape(-1)
    words = [repr(float(v)) if array.dtype.kind == "f" else str(int(v)) for v in flat]
    assert wire("AI.TENSORSET", "t", dtype, *array.shape, "VALUES", *words) == OK
    assert wire("AI.TENSORGET", "t", "BLOB") == array.tobytes()


items = st.binary(min_size=1, max_size=20).filter(lambda b: b"\0" not in b)


@patiently
@given(hnp.array_shapes(min_dims=0, max_dims=3, max_side=4), st.data())
def test_strings_come_back_as_they_went(wire: Wire, shape: tuple[int, ...], data: st.DataObject) -> None:
    strings = data.draw(st.lists(items, min_size=math.prod(shape), max_size=math.prod(shape)))
    blob = b"".join(s + b"\0" for s in strings)
    for form in (["BLOB", blob], ["VALUES", *strings], ["VALUES", *(s + b"\0" for s in strings)]):
        assert wire("AI.TENSORSET", "t", "STRING", *shape, *form) == OK
        assert wire("AI.TENSORGET", "t") == [b"dtype", b"STRING", b"shape", list(shape), b"blob", blob]
        assert wire("AI.TENSORGET", "t", "VALUES") == strings


@patiently
@given(st.text(alphabet="0123456789.eE+-xXinfaINFANpP ", max_size=12))
def test_float_grammar_is_the_servers_own(wire: Wire, word: str) -> None:
    """INCRBYFLOAT and ZADD share a parser with the module API; ZADD is the one that takes infinities."""
    theirs = wire("ZADD", "z", word, "member")
    ours = wire("AI.TENSORSET", "t", "DOUBLE", 1, "VALUES", word)
    assert isinstance(ours, Error) == isinstance(theirs, Error), (ours, theirs)
    if ours == OK:
        assert wire("AI.TENSORGET", "t", "VALUES") == [wire("ZSCORE", "z", "member")]
    wire("DEL", "z")


def test_float_formats_are_the_servers_own(wire: Wire) -> None:
    """Redis to 7.0 prints 17 digits, later servers the shortest form: compare with a sorted set's score on the same server."""
    words = ["0.1", "1e300", "-2.5e-8", "3", "inf", "-inf", "123456789.125", "1e21"]
    for word in words:
        wire("ZADD", "z", word, word)
    assert stored(wire, "DOUBLE", len(words), "VALUES", *words)[2] == [wire("ZSCORE", "z", word) for word in words]
    wire("ZADD", "z", repr(float(np.float32(0.1))), "f32")
    assert stored(wire, "FLOAT", 1, "VALUES", "0.1")[2] == [wire("ZSCORE", "z", "f32")]


def test_nan_and_negative_zero_pass_through_a_blob(wire: Wire) -> None:
    values = stored(wire, "DOUBLE", 2, "BLOB", struct.pack("<2d", math.nan, -0.0))[2]
    assert math.isnan(float(values[0])) and values[1] == b"-0"


# ---- AI.TENSORGET --------------------------------------------------------------------------------------------------------------------

META = [b"dtype", b"INT8", b"shape", [2, 1]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), [*META, b"blob", b"\1\2"]),
        (("META",), META),
        (("BLOB",), b"\1\2"),
        (("VALUES",), [1, 2]),
        (("META", "BLOB"), [*META, b"blob", b"\1\2"]),
        (("BLOB", "META"), [*META, b"blob", b"\1\2"]),
        (("META", "VALUES"), [*META, b"values", [1, 2]]),
        (("values", "meta"), [*META, b"values", [1, 2]]),
        (("META", "META"), META),
        (("BLOB", "BLOB"), b"\1\2"),
        (("VALUES", "VALUES"), [1, 2]),
        (("BLOB", "VALUES"), Error("ERR both BLOB and VALUES specified")),
        (("VALUES", "BLOB"), Error("ERR both BLOB and VALUES specified")),
        (("NOPE",), Error("ERR unsupported data format")),
        (("",), Error("ERR unsupported data format")),
        (("BLOB", "NOPE"), Error("ERR unsupported data format")),
        (("NOPE", "BLOB"), Error("ERR unsupported data format")),
    ],
)
def test_forms_of_tensorget(wire: Wire, options: tuple[str, ...], expected: Any) -> None:
    wire("AI.TENSORSET", "t", "INT8", 2, 1, "VALUES", 1, 2)
    assert wire.only_reply("AI.TENSORGET", "t", *options) == expected


def test_tensorget_reports_the_key_before_the_options(wire: Wire) -> None:
    wire("SET", "s", "x")
    assert wire.only_reply("AI.TENSORGET") == wire.arity("AI.TENSORGET")
    assert wire.only_reply("AI.TENSORGET", "missing", "META", "BLOB", "VALUES") == wire.arity("AI.TENSORGET")
    assert wire.only_reply("AI.TENSORGET", "missing", "NOPE") == Error("ERR tensor key is empty or in a different shard")
    assert wire.only_reply("AI.TENSORGET", "s", "NOPE") == WRONGTYPE


def test_resp3_changes_only_floats(wire: Wire, resp3: Wire) -> None:
    wire("AI.TENSORSET", "f", "FLOAT", 3, "VALUES", "0.5", "inf", "-inf")
    wire("AI.TENSORSET", "i", "INT8", 1, "VALUES", 3)
    wire("AI.TENSORSET", "s", "STRING", 1, "VALUES", "x")
    values = resp3("AI.TENSORGET", "f", "VALUES")
    assert values == [0.5, math.inf, -math.inf] and all(isinstance(v, Double) for v in values)
    assert resp3("AI.TENSORGET", "f", "META") == [b"dtype", b"FLOAT", b"shape", [3]]
    assert resp3("AI.TENSORGET", "i", "META", "VALUES") == [b"dtype", b"INT8", b"shape", [1], b"values", [3]]
    assert resp3("AI.TENSORGET", "s", "VALUES") == [b"x"]


# ---- keys ------------------------------------------------------------------------------------------------------------------------------


FOREIGN = [
    ("SET", "k", "text"),
    ("RPUSH", "k", "item"),
    ("HSET", "k", "field", "value"),
    ("AI.SCRIPTSET", "k", "CPU", "SOURCE", "def f(a): return a"),
]


@pytest.mark.parametrize("make", FOREIGN, ids=lambda command: command[0])
def test_a_key_of_another_type_is_refused_before_any_argument_and_not_touched(wire: Wire, make: tuple[Any, ...]) -> None:
    wire("MULTI")  # where a script is stored without being compiled
    wire(*make)
    assert not any(isinstance(r, Error) for r in wire("EXEC"))
    before = wire("DUMP", "k")
    for arguments in (("FLOAT", 1), ("NOPE", "x"), ("FLOAT", -1), ("FLOAT", 1, "BLOB", "x"), ("INT8", 1, "VALUES", 1)):
        assert wire.only_reply("AI.TENSORSET", "k", *arguments) == WRONGTYPE
    assert wire.only_reply("AI.TENSORGET", "k") == WRONGTYPE
    assert wire("DUMP", "k") == before


def test_overwriting_replaces_dtype_shape_and_data(wire: Wire) -> None:
    assert stored(wire, "FLOAT", 2, "VALUES", 1, 2) == ("FLOAT", [2], [b"1", b"2"])
    assert stored(wire, "STRING", 1, 1, "VALUES", "x") == ("STRING", [1, 1], [b"x"])
    assert stored(wire, "INT64", "VALUES", -7) == ("INT64", [], [-7])


def test_a_failed_overwrite_leaves_the_old_value(wire: Wire) -> None:
    before = stored(wire, "INT8", 2, "VALUES", 1, 2)
    for arguments in (("FLOAT", 1, "BLOB", "x"), ("INT8", 1, "VALUES", 300), ("INT8", 10**15), ("NOPE", 1)):
        assert isinstance(wire("AI.TENSORSET", "t", *arguments), Error)
        assert content(wire) == before


def test_overwriting_drops_a_ttl(wire: Wire) -> None:
    wire("AI.TENSORSET", "t", "FLOAT", 1)
    wire("EXPIRE", "t", 100)
    assert wire("TTL", "t") > 0
    assert isinstance(wire("AI.TENSORSET", "t", "FLOAT", 1, "VALUES", "x"), Error)
    assert wire("TTL", "t") > 0
    assert wire("AI.TENSORSET", "t", "FLOAT", 1) == OK
    assert wire("TTL", "t") == -1


def test_an_expired_tensor_is_gone_for_set_and_get(wire: Wire) -> None:
    wire("AI.TENSORSET", "t", "FLOAT", 1)
    wire("PEXPIREAT", "t", 1)
    assert wire("AI.TENSORGET", "t") == Error("ERR tensor key is empty or in a different shard")
    assert stored(wire, "INT8", 1, "VALUES", 1) == ("INT8", [1], [1])
    assert wire("TTL", "t") == -1


def test_type_and_database(wire: Wire) -> None:
    wire("AI.TENSORSET", "t", "FLOAT", 1)
    assert wire("TYPE", "t") == Status("AI_TENSOR")
    assert wire("SELECT", 3) == OK
    assert wire("AI.TENSORGET", "t") == Error("ERR tensor key is empty or in a different shard")
    assert wire("AI.TENSORSET", "t", "INT8", 1, "VALUES", 3) == OK
    wire("SELECT", 0)
    assert content(wire) == ("FLOAT", [1], [b"0"])


def changes_a_watch(server: Server, wire: Wire, *command: Any) -> bool:
    with Wire(server.port) as other:
        wire("WATCH", "t")
        other(*command)
        wire("MULTI")
        wire("PING")
        return wire("EXEC") is None


def test_watch_sees_writes_and_nothing_else(server: Server, wire: Wire) -> None:
    assert changes_a_watch(server, wire, "AI.TENSORSET", "t", "INT8", 1, "VALUES", 1)  # a new key
    assert changes_a_watch(server, wire, "AI.TENSORSET", "t", "INT8", 1, "VALUES", 1)  # the same type again
    assert not changes_a_watch(server, wire, "AI.TENSORGET", "t")
    assert not changes_a_watch(server, wire, "AI.TENSORSET", "t", "INT8", 1, "VALUES", "x")
    assert not changes_a_watch(server, wire, "AI.TENSORSET", "t", "NOPE", 1)


def test_client_tracking_hears_of_overwrites(server: Server, wire: Wire) -> None:
    wire("AI.TENSORSET", "t", "INT8", 1, "VALUES", 1)
    with Wire(server.port, resp=3) as reader:
        reader("CLIENT", "TRACKING", "ON")
        assert reader("AI.TENSORGET", "t", "VALUES") == [1]
        wire("AI.TENSORSET", "t", "INT8", 1, "VALUES", 2)
        assert reader.read() == [b"invalidate", [b"t"]]


def test_works_inside_a_transaction(wire: Wire) -> None:
    arity = wire.arity("AI.TENSORSET")
    wire("MULTI")
    assert wire("AI.TENSORSET", "t", "INT8", 2, "VALUES", 1, 2) == QUEUED
    assert wire("AI.TENSORSET", "t", "INT8", 2, "VALUES", 1, 300) == QUEUED
    assert wire("AI.TENSORSET", "t") == QUEUED
    assert wire("AI.TENSORGET", "t", "VALUES") == QUEUED
    assert wire("EXEC") == [OK, Error(VALUE), arity, [1, 2]]


def test_works_inside_a_script(wire: Wire) -> None:
    script = """redis.call('AI.TENSORSET', KEYS[1], 'INT8', 2, 'VALUES', 1, 2)
                redis.call('AI.TENSORSET', KEYS[2], 'STRING', 1, 'BLOB', ARGV[1])
                return redis.call('AI.TENSORGET', KEYS[1], 'META', 'VALUES')"""
    blob = b"x" * BIG + b"\0"
    assert wire("EVAL", script, 2, "t", "u", blob) == [b"dtype", b"INT8", b"shape", [2], b"values", [1, 2]]
    assert wire("AI.TENSORGET", "u", "BLOB") == blob
    reply = wire("EVAL", "return redis.call('AI.TENSORSET', KEYS[1], 'INT8', 1, 'VALUES', 300)", 1, "t")
    assert isinstance(reply, Error) and "invalid value" in reply.text


def test_dims_of_zero_come_back_from_the_aof_and_from_nowhere_else(tmp_path: Path, start_server: Callable[..., Server]) -> None:
    """A model may produce them; they are written as AI.TENSORSET."""
    commands = [
        ("SELECT", 0),
        ("AI.TENSORSET", "a", "FLOAT", 0, 3, "BLOB", ""),
        ("AI.TENSORSET", "b", "STRING", 2, 0, "BLOB", ""),
        ("AI.TENSORSET", "c", "INT8", 0),
        ("AI.TENSORSET", "d", "INT8", -1),
        ("AI.TENSORSET", "e", "INT8", 0, "BLOB", "x"),
    ]
    (tmp_path / "appendonly.aof").write_bytes(b"".join(b"*%d\r\n" % len(c) + b"".join(map(encode, c)) for c in commands))
    server = start_server("--appendonly", "yes", directory=tmp_path)
    with Wire(server.port) as wire:
        assert wire("AI.TENSORGET", "a") == [b"dtype", b"FLOAT", b"shape", [0, 3], b"blob", b""]
        assert content(wire, "b") == ("STRING", [2, 0], [])
        assert content(wire, "c") == ("INT8", [0], [])
        assert wire("EXISTS", "d", "e") == 0
        assert set_error(wire, "FLOAT", 0, 3, "BLOB", "") == SHAPE


# ---- sizes -------------------------------------------------------------------------------------------------------------------------------


def test_a_huge_shape_without_data_is_refused_before_memory_is_taken(wire: Wire) -> None:
    for n in range(50):
        wire("SET", f"filler{n}", "x" * 1000)
    used = int(info(wire, "memory")["used_memory"])
    wire("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    wire("CONFIG", "SET", "maxmemory", used + 20_000_000)
    try:
        for shape in ((10**12,), (10**9, 10**3), (2**61,), (2**30, 2**30)):
            assert set_error(wire, "FLOAT", *shape) in (LIMIT, SHAPE)
            assert set_error(wire, "STRING", *shape) in (LIMIT, SHAPE)
            wire("SET", "probe", 1)
        assert info(wire, "stats")["evicted_keys"] == "0"
        assert wire("DBSIZE") == 51
    finally:
        wire("CONFIG", "SET", "maxmemory", 0)
        wire("CONFIG", "SET", "maxmemory-policy", "noeviction")


def info(wire: Wire, section: str) -> dict[str, str]:
    lines = wire("INFO", section).decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def test_big_blobs_survive_what_happens_to_the_request_that_brought_them(wire: Wire) -> None:
    """They are kept as the client's own string: the connection's buffers must not show through."""
    rng = np.random.default_rng(1)
    blobs = {f"t{n}": rng.bytes(size) for n, size in enumerate((32767, 32768, 32769, 65536, BIG, BIG + 7))}
    for key, blob in blobs.items():
        assert wire("AI.TENSORSET", key, "UINT8", len(blob), "BLOB", blob) == OK
    for key, blob in reversed(blobs.items()):
        wire("SET", "noise", rng.bytes(len(blob)))
        assert wire("AI.TENSORGET", key, "BLOB") == blob
    for key, blob in blobs.items():
        assert wire("COPY", key, "copy") == 1
        wire("AI.TENSORSET", key, "UINT8", 1)
        assert wire("AI.TENSORGET", "copy", "BLOB") == blob
        wire("DEL", "copy")


@pytest.mark.parametrize("size", [64, BIG])
def test_a_run_sees_a_tensor_as_it_was_or_as_it_is_never_a_mixture(server: Server, wire: Wire, size: int) -> None:
    """Workers copy a kept argument to aligned memory while its key is overwritten."""
    blobs = [bytes([n]) * size for n in range(4)]
    wire("AI.TENSORSET", "t", "UINT8", size, "BLOB", blobs[0])
    assert wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model()) == OK
    over = threading.Event()

    def overwrite() -> None:
        with Wire(server.port) as own:
            while not over.is_set():
                for blob in blobs:
                    assert own("AI.TENSORSET", "t", "UINT8", size, "BLOB", blob) == OK

    def run(n: int, wrong: list[Any]) -> None:
        with Wire(server.port) as own:
            for _ in range(50):
                reply = own("AI.MODELEXECUTE", "m", "INPUTS", 1, "t", "OUTPUTS", 1, f"out{n}")
                blob = own("AI.TENSORGET", f"out{n}", "BLOB")
                if reply != OK or blob not in blobs:
                    wrong.append(reply)

    wrong: list[Any] = []
    writer = threading.Thread(target=overwrite)
    runners = [threading.Thread(target=run, args=(n, wrong)) for n in range(3)]
    for thread in (writer, *runners):
        thread.start()
    for thread in runners:
        thread.join()
    over.set()
    writer.join()
    assert wrong == []


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_library_is_given_data_that_begins_at_a_multiple_of_64(wire: Wire, ndim: int) -> None:
    """Vectorised kernels may count on it: data that was copied, data that was kept as the client sent it, and what another run gave."""
    for key, op in (("echo", "echo"), ("address", "address")):
        assert wire("AI.MODELSTORE", key, "ONNX", "CPU", "BLOB", echo_model(op)) == OK
    for name, dtype in DTYPES.items():
        for n in (1, 3, BIG // 8):
            assert wire("AI.TENSORSET", "t", name, *[1] * (ndim - 1), n, "BLOB", bytes(n * np.dtype(dtype).itemsize)) == OK
            assert wire("AI.MODELEXECUTE", "echo", "INPUTS", 1, "t", "OUTPUTS", 1, "u") == OK
            for key in ("t", "u"):
                assert wire("AI.MODELEXECUTE", "address", "INPUTS", 1, key, "OUTPUTS", 1, "where") == OK
                assert wire("AI.TENSORGET", "where", "VALUES")[0] % 64 == 0, (name, n, key)


def test_big_string_blobs_are_indexed_and_checked(wire: Wire) -> None:
    strings = [b"%d" % n for n in range(20_000)]
    blob = b"".join(s + b"\0" for s in strings)
    assert stored(wire, "STRING", len(strings), "BLOB", blob) == ("STRING", [len(strings)], strings)
    assert set_error(wire, "STRING", len(strings), "BLOB", blob[:-1]) == ITEMS
    assert set_error(wire, "STRING", len(strings) + 1, "BLOB", blob) == ITEMS
    assert set_error(wire, "STRING", len(strings) - 1, "BLOB", blob) == ITEMS


def test_memory_returns_after_tensors_are_gone(wire: Wire) -> None:
    def used() -> int:
        wire("PING")
        return int(info(wire, "memory")["used_memory"])

    def churn() -> None:
        for n in range(40):
            wire("AI.TENSORSET", f"t{n % 4}", "UINT8", BIG, "BLOB", bytes(BIG))
            wire("AI.TENSORSET", f"s{n % 4}", "STRING", 100, "VALUES", *["x" * 1000] * 100)
            wire("AI.TENSORSET", "t0", "UINT8", BIG, "BLOB", bytes(BIG - 1))
            wire("AI.TENSORSET", "s0", "STRING", 2, "BLOB", b"x" * BIG)
        wire("FLUSHALL")

    churn()
    before = used()
    churn()
    assert used() - before < BIG // 2


def test_a_million_arguments(wire: Wire) -> None:
    n = 1_000_000
    assert wire("AI.TENSORSET", "t", "UINT8", n, "VALUES", *["7"] * n) == OK
    assert wire("AI.TENSORGET", "t", "BLOB") == b"\7" * n
    assert set_error(wire, "UINT8", *["1"] * n) == "ERR tensor shape has more than 64 dimensions"
    assert wire("PING") == Status("PONG")


grammar = st.lists(
    st.one_of(
        st.sampled_from(["FLOAT", "INT8", "STRING", "BOOL", "BLOB", "VALUES", "META", "0", "1", "2", "-1", "1e3", "", "|>", "4294967296"]),
        st.integers(-(2**65), 2**65).map(str),
        st.binary(max_size=12),
    ),
    max_size=9,
)


@patiently
@given(grammar)
def test_any_arguments_get_one_reply_and_change_nothing_when_refused(wire: Wire, words: list[Any]) -> None:
    wire("AI.TENSORSET", "t", "INT8", 1, "VALUES", 1)
    reply = wire.only_reply("AI.TENSORSET", "t", *words)
    assert reply == OK or isinstance(reply, Error)
    if reply != OK:
        assert content(wire) == ("INT8", [1], [1])
    reply = wire.only_reply("AI.TENSORGET", *words)
    assert isinstance(reply, (Error, list, bytes))


def test_a_limit_that_was_lowered_keeps_no_server_from_its_own_tensors(start_server: Callable[..., Server]) -> None:
    """MAX_TENSOR_BYTES is for what clients and models bring; what was accepted once loads, replays and replicates whatever it is now."""
    big = bytes(range(256)) * 40
    options = ("--appendonly", "yes", "--aof-use-rdb-preamble", "no")
    server = start_server(*options)
    with server.client() as client:
        client.execute_command("AI.TENSORSET", "big", "UINT8", len(big), "BLOB", big)
    server.module_args = ["MAX_TENSOR_BYTES", "1000"]
    server.restart()  # from the AOF
    replica = start_server("--replicaof", "127.0.0.1", str(server.port), module_args=["MAX_TENSOR_BYTES", "100"])
    with server.client() as client, replica.client() as second:
        assert client.execute_command("AI.TENSORGET", "big", "BLOB") == big
        with pytest.raises(redis.ResponseError, match="larger than MAX_TENSOR_BYTES"):
            client.execute_command("AI.TENSORSET", "other", "UINT8", len(big), "BLOB", big)
        client.execute_command("AI.TENSORSET", "small", "UINT8", 500, "BLOB", big[:500])
        wait_until(lambda: second.exists("big", "small") == 2, "both tensors on the replica")
        dump = client.dump("big")
        with pytest.raises(redis.ResponseError, match="Bad data format"):
            client.restore("again", 0, dump)  # no way around the limit
