"""Redis from inside a script: both styles of call, every kind of reply, errors, and models run by scripts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.needs_torch, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

from scripting import ENTRY, WRONGTYPE, FakeHost, error_of, open_script, run, tensor, thread_as_before  # noqa: E402, F401

from redisai_py.errors import BackendError, Terminated  # noqa: E402
from redisai_py.scripts import ReplyError  # noqa: E402

BINARY = bytes(range(256))


def commands(body: str, host: FakeHost | None = None, **options: Any) -> list[list[bytes]]:
    """The commands that a function body sends."""
    host = host or FakeHost()
    run(body, n_outputs=0, host=host, **options)
    return host.calls


# ---- arguments


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("redis.execute('PING')", [b"PING"]),
        ("redis.execute('PING', [])", [b"PING"]),
        ("redis.execute('SET', 'k', 'v')", [b"SET", b"k", b"v"]),
        ("redis.execute('SET', ['k', 'v'])", [b"SET", b"k", b"v"]),
        ("redis.execute('SET', keys)", [b"SET", b"key", b"value"]),
        ("redis.execute('SET', keys[0], args[0])", [b"SET", b"key", b"arg"]),
        ("redis.execute('SET', 'k', 5)", [b"SET", b"k", b"5"]),
        ("redis.execute('SET', 'k', str(5))", [b"SET", b"k", b"5"]),
        ("redis.execute('SET', 'k', -9223372036854775807)", [b"SET", b"k", b"-9223372036854775807"]),
        ("redis.execute('SET', 'k', 0.1)", [b"SET", b"k", b"0.1"]),
        ("redis.execute('SET', 'k', 1e300)", [b"SET", b"k", b"1e+300"]),
        ("redis.execute('SET', 'k', True)", [b"SET", b"k", b"1"]),
        ("redis.execute('SET', 'k', tensors[0][1])", [b"SET", b"k", b"2.5"]),
        ("redis.execute('SET', 'k', tensors[1])", [b"SET", b"k", b"7"]),
        ("redis.execute('SET', 5, 'v')", [b"SET", b"5", b"v"]),
        ("redis.execute('DEL', 'other', 3, keys)", [b"DEL", b"other", b"3", b"key", b"value"]),
        ("redis.execute('DEL', 'x', [1, 2], [0.5])", [b"DEL", b"x", b"1", b"2", b"0.5"]),
        ("redis.execute('SET', '', 'a b\\n\\t\"')", [b"SET", b"", b'a b\n\t"']),
        ("redis.execute('SET', 'ключ', 'é')", [b"SET", "ключ".encode(), "é".encode()]),
        ("REDIS.execute('PING')", [b"PING"]),
        ("Redis.execute(args[1].upper(), 'x')", [b"GET", b"x"]),
        ("v = redis.execute('GET', 'five')\n    redis.execute('ECHO', v)", [b"ECHO", b"five!"]),
        ("v = redis.asList(redis.execute('MGET', 'five', 'five'))\n    redis.execute('DEL', v)", [b"DEL", b"five!", b"five!"]),
        ("v = redis.asList(redis.execute('MGET', 'five'))\n    redis.execute('DEL', 'x', v, v)", [b"DEL", b"x", b"five!", b"five!"]),
        ("redis.execute('DEL', [k.upper() for k in keys])", [b"DEL", b"KEY", b"VALUE"]),
    ],
)
def test_what_a_call_sends(call: str, words: list[bytes]) -> None:
    host = FakeHost()
    host.keys[b"five"] = b"five!"
    inputs = [tensor([1.5, 2.5]), tensor([7], "INT64")]
    assert commands(f"    {call}\n", host, inputs=inputs, keys=[b"key", b"value"], args=[b"arg", b"get"])[-1] == words


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("tensors[0]", "a tensor argument must have one element, not 2"),
        ("redis.execute('GET', 'missing')", "an argument of type NoneType cannot be sent to Redis"),
        ("{'a': 1}", "an argument of type dict cannot be sent to Redis"),
    ],
)
def test_what_cannot_be_sent(argument: str, part: str) -> None:
    host = FakeHost()
    text = error_of(commands, f"    redis.execute('SET', 'k', {argument})\n", host, inputs=[tensor([1, 2])])
    assert f"RuntimeError: redis.execute: {part}" in text
    assert [b"SET"] not in [call[:1] for call in host.calls]


@pytest.mark.parametrize(
    "value",
    [BINARY, b"\0", b"a\0b", b"\xff", "é".encode(), b"x" * 100_000, BINARY * 100, b"", b"\x7f", b"\r\n"],
    ids=["all bytes", "nul", "nul inside", "not utf-8", "utf-8", "long", "long and binary", "empty", "delete", "line end"],
)
def test_strings_are_exact_to_the_byte(value: bytes) -> None:
    """In as a key, an argument and a reply; out as a key, a value typed str, a value typed Any, and an item of a list."""
    host = FakeHost()
    host.keys[value] = value
    body = """
    text = redis.execute('GET', keys[0])
    redis.execute('SET', 'typed', str(text))
    redis.execute('SET', 'any', text)
    redis.execute('SET', ['argument', args[0]])
    redis.execute('SET', 'length', len(str(text)))
    redis.execute('RPUSH', 'list', [keys[0], str(text)], redis.asList(redis.execute('MGET', keys[0])))
"""
    run(body, keys=[value], args=[value], n_outputs=0, host=host)
    assert host.keys == {value: value} | {
        b"typed": value, b"any": value, b"argument": value, b"length": b"%d" % len(value), b"list": [value] * 3,
    }  # fmt: skip


def test_a_call_whose_reply_nobody_uses_is_made_every_time() -> None:
    """The compiler removes and merges calls of pure functions; these are none."""
    assert commands("    redis.execute('INCR', 'n')\n" * 3) == [[b"INCR", b"n"]] * 3
    body = (
        "    for i in range(4):\n        redis.execute('INCR', 'n')\n    a = redis.execute('GET', 'n')\n    b = redis.execute('GET', 'n')\n"
    )
    assert len(commands(body)) == 6


def test_calls_are_made_in_the_order_of_the_script() -> None:
    body = "    if redis.execute('GET', 'a') is None:\n        redis.execute('SET', 'a', '1')\n    redis.execute('INCR', 'a')\n"
    assert commands(body) == [[b"GET", b"a"], [b"SET", b"a", b"1"], [b"INCR", b"a"]]


# ---- replies


@pytest.mark.parametrize(
    ("reply", "expression", "result"),
    [
        (b"text", "len(str(v))", 4),
        (b"12", "int(str(v))", 12),
        (b"2.5", "int(float(str(v)) * 2)", 5),
        (5, "int(str(v)) + 1", 6),
        (5_000_000_000, "int(str(v))", 5_000_000_000),
        (-(2**63), "int(str(v))", -(2**63)),
        (2**63 - 1, "int(str(v))", 2**63 - 1),
        (7, "v if isinstance(v, int) else -1", 7),
        (b"7", "-1 if isinstance(v, int) else 7", 7),
        (2.5, "int(v * 2) if isinstance(v, float) else -1", 5),
        (True, "int(v) if isinstance(v, bool) else -1", 1),
        (None, "1 if v is None else 0", 1),
        (b"", "0 if v is None else 1", 1),
        (0, "0 if v is None else 1", 1),
        ([], "len(redis.asList(v))", 0),
        ([b"a", b"b"], "len(redis.asList(v))", 2),
        ([b"a", 1, None, 2.5, False], "len(redis.asList(v))", 5),
        ([None, b"a"], "1 if redis.asList(v)[0] is None else 0", 1),
        ([[1, 2], [3, [4, b"five"]]], "int(str(redis.asList(redis.asList(redis.asList(v)[1])[1])[0]))", 4),
        ([[], [[]]], "len(redis.asList(redis.asList(v)[1]))", 1),
        ([1, [2, [3, [4, [5]]]]], "len(str(v))", len("[1, [2, [3, [4, [5]]]]]")),
        ([BINARY, [BINARY]], "len(str(redis.asList(redis.asList(v)[1])[0]))", 256),
    ],
)
def test_replies(reply: Any, expression: str, result: int) -> None:
    body = f"    v = redis.execute('ASK', 'x')\n    return torch.tensor({expression})\n"
    assert run(body, host=FakeHost(ask=reply))[0].item() == result


@pytest.mark.parametrize("reply", [[b"a"] * 1000, [[b"k", i] for i in range(1000)], [b"x" * 1000] * 100], ids=["flat", "nested", "long"])
def test_large_arrays_keep_their_order(reply: list[Any]) -> None:
    host = FakeHost(ask=reply)
    body = "    for item in redis.asList(redis.execute('ASK')):\n        redis.execute('RPUSH', 'seen', redis.asList(item)[1])\n"
    if isinstance(reply[0], bytes):
        body = body.replace("redis.asList(item)[1]", "item")
    run(body, n_outputs=0, host=host)
    assert host.keys[b"seen"] == [item if isinstance(item, bytes) else b"%d" % item[1] for item in reply]


def test_as_list_refuses_what_is_no_list() -> None:
    text = error_of(run, "    return torch.tensor(len(redis.asList(redis.execute('PING'))))\n")
    assert "redis.asList: the value is not a list" in text


# ---- errors


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("redis.execute('SET', 'k')", "Redis command returned an error: Invalid argument"),
        ("redis.execute('NOSUCH', 'k')", "Redis command returned an error: No such file or directory"),
        ("redis.execute('INCR', 'list')", f"Redis command returned an error: {WRONGTYPE}"),
        ("redis.execute('BAD')", "Redis command returned an error: ERR spilt ünïcode"),
        ("redis.execute('NESTED')", "Redis command returned an error: NOPERM inside"),
        ("redis.execute('ODD')", "Unexpected internal error"),
    ],
)
def test_an_error_ends_the_script(call: str, sentence: str) -> None:
    host = FakeHost(bad=ReplyError("ERR spilt ünïcode"), nested=[1, [ReplyError("NOPERM inside")]], odd=object())
    host.keys[b"list"] = [b"a"]
    body = f"    redis.execute('SET', 'before', '1')\n    {call}\n    redis.execute('SET', 'after', '1')\n    return tensors\n"
    text = error_of(run, body, host=host)
    assert text.endswith(f"\nRuntimeError: {sentence}")
    assert (b"before" in host.keys, b"after" in host.keys) == (True, False)


def test_an_error_text_shows_the_script_and_nothing_of_ours() -> None:
    source = "def g(x: str):\n    redis.execute('SET', x)\n    return 1\n" + ENTRY.format("f") + "    g(args[0])\n    return tensors\n"
    text = error_of(run, source, args=[b"k"])
    assert "in f\n" in text
    assert "    g(args[0])\n    ~ <--- HERE" in text
    assert "    redis.execute('SET', x)\n    ~~~~~~~~~~~~~ <--- HERE" in text
    for part in ("prelude", ".py", "At:", "CommandError", "_call", "_send"):
        assert part not in text


def test_a_host_that_breaks_ends_the_script_only() -> None:
    def broken(argv: list[bytes]) -> Any:
        raise OSError("gone")

    session = open_script(ENTRY.format("f") + "    redis.execute('BREAK')\n    return tensors\n", ["f"])
    assert "OSError: gone" in error_of(session.run, "f", (), (), (), 0, FakeHost(**{"break": broken}))
    session.run("f", (), (), (), 0, FakeHost(**{"break": b"OK"}))


# ---- models


def model_host() -> FakeHost:
    host = FakeHost()
    host.models = {
        b"double": lambda array: [array * 2],
        b"two": lambda a, b: [a + b, a - b],
        b"none": lambda array: [None],
        b"text": lambda array: [np.array([b"a"], dtype=object)],
        b"half": lambda array: [array.astype(np.float16)],
        b"read_only": lambda array: [np.broadcast_to(array, (2, 2))[0]],
    }
    return host


def test_models_run_on_tensors() -> None:
    body = "    return redisAI.model_execute('two', [tensors[0], tensors[0] * 3], 2)\n"
    outputs = run(body, inputs=[tensor([1, 2])], n_outputs=2, host=model_host())
    assert [output.tolist() for output in outputs] == [[4.0, 8.0], [-2.0, -4.0]]
    body = "    a = redisAI.model_execute(keys[0], tensors, 1)[0]\n    return REDISAI.model_execute('double', [a], 1)\n"
    assert run(body, inputs=[tensor([1, 2])], keys=[b"double"], host=model_host())[0].tolist() == [4.0, 8.0]


def test_models_get_contiguous_arrays() -> None:
    host = FakeHost()
    seen: list[Any] = []
    host.models[b"\xff"] = lambda array: [seen.append(array) or array]
    run(
        "    redisAI.model_execute(keys[0], [tensors[0].t()], 1)\n",
        inputs=[tensor([[1, 2], [3, 4]])],
        keys=[b"\xff"],
        n_outputs=0,
        host=host,
    )
    assert seen[0].flags.c_contiguous
    assert seen[0].tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("missing", "ERR model key is empty"),
        ("none", "ERR model none has an output that is no tensor"),
        ("text", "ERR model text returned strings, which TorchScript has no tensors for"),
    ],
)
def test_a_model_that_cannot_be_used_ends_the_script(key: str, sentence: str) -> None:
    text = error_of(run, f"    return redisAI.model_execute('{key}', tensors, 1)\n", inputs=[tensor([1])], host=model_host())
    assert text.endswith(f"\nRuntimeError: {sentence}")


@pytest.mark.parametrize("error", [BackendError("Invalid rank for input: X Got: 1 Expected: 2"), Terminated("terminate flag")])
def test_a_models_error_is_in_the_text(error: Exception) -> None:
    host = FakeHost()

    def fail(array: Any) -> Any:
        raise error

    host.models[b"m"] = fail
    text = error_of(run, "    return redisAI.model_execute('m', tensors, 1)\n", inputs=[tensor([1])], host=host)
    assert text.endswith(f"\nRuntimeError: {error}")


def test_a_model_may_return_any_dtype_that_torch_has() -> None:
    body = "    return redisAI.model_execute('half', tensors, 1)[0].float() + 1\n"
    assert run(body, inputs=[tensor([1, 2])], host=model_host())[0].tolist() == [2.0, 3.0]
    body = "    y = redisAI.model_execute('read_only', tensors, 1)[0]\n    y += 1\n    return y\n"
    assert run(body, inputs=[tensor([1, 2])], host=model_host())[0].tolist() == [2.0, 3.0]


def test_a_model_run_by_a_script_may_run_a_script_in_turn() -> None:
    inner_host, host = FakeHost(), FakeHost()
    inner = open_script(ENTRY.format("g") + "    redis.execute('SET', 'inner', '1')\n    return tensors[0] + 1\n", ["g"])
    host.models[b"m"] = lambda array: list(inner.run("g", [tensor(array)], (), (), 1, inner_host))
    body = "    y = redisAI.model_execute('m', tensors, 1)[0]\n    redis.execute('SET', 'outer', '1')\n    return y\n"
    assert run(body, inputs=[tensor([1])], host=host)[0].tolist() == [2.0]
    assert (list(inner_host.keys), list(host.keys)) == ([b"inner"], [b"outer"])


# ---- idioms of scripts in use

IDIOMS = """
def scale(x):
    return x * 2

def shift(x, by):
    return scale(x) + by

def to_int(value: Any):
    return int(str(value))

def to_float(value: Any) -> float:
    return float(str(value))

def push(key: str, value: str):
    redis.execute("RPUSH", key, value)

def helpers(tensors: List[Tensor], keys: List[str], args: List[str]):
    return shift(tensors[0], tensors[1])

def counter(tensors: List[Tensor], keys: List[str], args: List[str]):
    redis.execute("SET", keys[0], "0")
    for i in range(3):
        redis.execute("INCR", keys[0])
    value = to_int(redis.execute("GET", keys[0]))
    redis.execute("DEL", [keys[0]])
    return torch.tensor(value)

def columns(tensors: List[Tensor], keys: List[str], args: List[str]):
    rows: List[Tensor] = []
    for key in keys:
        for value in redis.asList(redis.execute("HVALS", key)):
            rows.append(torch.tensor(to_float(value)).reshape(1, 1))
    return torch.cat(rows, dim=0)

def listing(tensors: List[Tensor], keys: List[str], args: List[str]):
    for arg in args:
        push(keys[0], arg)
    words: List[str] = [keys[0]]
    for index in range(2):
        words.append(str(index - index * 2))
    return torch.tensor(len(redis.asList(redis.execute("LRANGE", words))))

def nothing(tensors: List[Tensor], keys: List[str], args: List[str]):
    redis.execute("SET", ["x", "{1}"])

def switch(tensors: List[Tensor], keys: List[str], args: List[str]):
    reply = redis.execute(args[0], args[1:])
    if isinstance(reply, int):
        return torch.tensor(reply)
    elif isinstance(reply, str):
        return torch.tensor(len(reply))
    return torch.tensor(-1)

def annotated(tensors: List[Tensor], keys: List[str], args: List[str]) -> Tuple[Tensor, Tensor]:
    pair: Dict[str, Tensor] = {"a": tensors[0]}
    maybe: Optional[Tensor] = None
    if len(tensors) > 1:
        maybe = tensors[1]
    assert maybe is not None
    return pair["a"], maybe

def old_style(a, b, rest: List[Tensor]):
    total = a + b
    for r in rest:
        total = total + r
    return total
"""


def test_idioms() -> None:
    names = ["helpers", "counter", "columns", "listing", "nothing", "switch", "annotated"]
    session = open_script(IDIOMS, names)
    host = FakeHost()
    host.keys[b"h1"] = {b"a": b"1.5", b"b": b"2"}
    host.keys[b"h2"] = {b"c": b"-3"}

    def call(name: str, inputs: list[Any], keys: list[bytes], args: list[bytes], n_outputs: int = 1) -> list[Any]:
        return [output.tolist() for output in session.run(name, inputs, keys, args, n_outputs, host)]

    assert call("helpers", [tensor([1]), tensor([10])], [], []) == [[12.0]]
    assert call("counter", [], [b"n"], []) == [3]
    assert b"n" not in host.keys
    assert call("columns", [], [b"h1", b"h2"], []) == [[[1.5], [2.0], [-3.0]]]
    assert call("listing", [], [b"l"], [b"a", b"b"]) == [2]
    assert call("nothing", [], [], [], 0) == []
    assert host.keys[b"x"] == b"{1}"
    assert call("switch", [], [], [b"LLEN", b"l"]) == [2]
    assert call("switch", [], [], [b"ECHO", b"hello"]) == [5]
    assert call("switch", [], [], [b"GET", b"missing"]) == [-1]
    assert call("annotated", [tensor([1]), tensor([2])], [], [], 2) == [[1.0], [2.0]]
    assert call("old_style", [tensor([value]) for value in (1, 2, 3, 4)], [], []) == [[10.0]]
