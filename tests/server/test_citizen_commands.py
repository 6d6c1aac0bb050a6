"""What a server knows of the commands: COMMAND INFO and DOCS, keys and access control, categories, hints of redis-cli, RESP3."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import echo_model
from servers import Server, wait_until
from wire import OK, Double, Error, Wire

WRITES, RUNS, READS = ["denyoom", "write"], ["denyoom", "movablekeys", "write"], ["readonly"]

#: name -> flags, first, last, step, as RedisAI 1.2.7 has them
TABLE: dict[str, tuple[list[str], tuple[int, int, int]]] = {
    **dict.fromkeys(("tensorset", "modelset", "modelstore", "scriptset", "scriptstore"), (WRITES, (1, 1, 1))),
    **dict.fromkeys(("tensorget", "modelget", "scriptget", "info"), (READS, (1, 1, 1))),
    **{name: (["write"], (1, 1, 1)) for name in ("modeldel", "scriptdel")},
    "modelrun": (RUNS, (3, 3, 1)),
    "modelexecute": (RUNS, (4, 4, 1)),
    "scriptrun": (RUNS, (4, 4, 1)),
    "scriptexecute": (RUNS, (5, 5, 1)),
    **dict.fromkeys(("dagrun", "dagexecute"), (RUNS, (3, 3, 1))),
    **{name: (["movablekeys", "readonly"], (3, 3, 1)) for name in ("dagrun_ro", "dagexecute_ro")},
    **dict.fromkeys(("_modelscan", "_scriptscan"), (READS, (0, 0, 0))),
    "config": (["write"], (0, 0, 0)),
}
NAMES = [f"ai.{name}" for name in TABLE]


@pytest.fixture
def w(every_server: Server) -> Iterator[Wire]:
    with Wire(every_server.port) as wire:
        yield wire


def major(w: Wire) -> int:
    found = re.search(rb"redis_version:(\d+)", w("INFO", "server"))
    assert found
    return int(found[1])


def categories(server: Server) -> bool:
    """Whether the server lets a module put its commands into ACL categories."""
    return b"SetCommandACLCategories" not in Wire(server.port)("INFO", "everything")


def needs_seven(w: Wire) -> None:
    if major(w) < 7:
        pytest.skip("Redis 6.2 knows nothing of commands but their name, flags and first keys")


def fields(reply: list[Any]) -> dict[str, Any]:
    return {key.decode(): value for key, value in zip(reply[::2], reply[1::2], strict=True)}


# ---- COMMAND INFO and COMMAND DOCS -----------------------------------------------------------------------------------


def test_every_command_shows_the_flags_and_keys_that_it_always_had(w: Wire) -> None:
    ours = [row for row in w("COMMAND") if row[0].startswith(b"ai.")]
    assert sorted(row[0].decode() for row in ours) == sorted(NAMES)
    for row in ours:
        flags, keys = TABLE[row[0].decode()[3:]]
        assert row[1] == -1, "a server that knew the arity would refuse calls with a text of its own"
        assert sorted(flag.text for flag in row[2] if flag.text != "module") == flags, row[0]
        assert tuple(row[3:6]) == keys, row[0]


def test_commands_are_in_the_categories_that_an_operator_expects(every_server: Server, w: Wire) -> None:
    found = {row[0].decode()[3:]: sorted(category.text for category in row[6]) for row in w("COMMAND") if row[0].startswith(b"ai.")}
    if not categories(every_server):
        assert set(map(tuple, found.values())) == {()}, "this server has no means to say it"
        return
    assert found == {name: sorted(["@ai", "@read" if "readonly" in flags else "@write", "@slow"]) for name, (flags, _) in TABLE.items()}
    assert sorted(name.decode() for name in w("ACL", "CAT", "ai")) == sorted(NAMES)


def test_a_user_may_be_given_our_category(every_server: Server, w: Wire) -> None:
    if not categories(every_server):
        pytest.skip("no categories for modules")
    assert w("ACL", "SETUSER", "modeller", "on", "nopass", "~*", "-@all", "+@ai", "-@write") == OK
    with Wire(every_server.port) as user:
        user("AUTH", "modeller", "x")
        assert user("AI._MODELSCAN") == []
        assert user("AI.TENSORSET", "x", "FLOAT", 1).text.startswith("NOPERM")
        assert user("GET", "x").text.startswith("NOPERM")
    w("ACL", "DELUSER", "modeller")


def arguments(args: list[Any]) -> Iterator[dict[str, Any]]:
    for arg in map(fields, args):
        yield arg
        yield from arguments(arg.get("arguments", []))


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_documented(w: Wire, name: str) -> None:
    needs_seven(w)
    docs = fields(fields(w("COMMAND", "DOCS", name))[name])
    assert docs["module"] == b"ai" and docs["group"] == b"module"
    assert docs["summary"].endswith(b".") and docs["complexity"] and docs["since"] == b"1.2.7"
    if name in ("ai._modelscan", "ai._scriptscan"):
        assert "arguments" not in docs
        return
    specs = w("COMMAND", "INFO", name)[0][8]
    args = list(arguments(docs["arguments"]))
    assert args and all(arg["name"] for arg in args)
    for arg in args:
        kind = arg["type"].text if hasattr(arg["type"], "text") else arg["type"].decode()
        assert (kind == "key") == ("key_spec_index" in arg)
        assert arg.get("key_spec_index", 0) < max(1, len(specs))
        assert kind != "pure-token" or arg["token"]


def test_what_a_server_is_told_about_keys_makes_it_ask_the_planner(w: Wire) -> None:
    """Without VARIABLE_FLAGS a server trusts the specs and never calls back: keys that they do not show would escape access control."""
    needs_seven(w)
    for name in NAMES:
        row = w("COMMAND", "INFO", name)[0]
        movable = "movablekeys" in [flag.text for flag in row[2]]
        flags = {flag.text for spec in row[8] for flag in fields(spec)["flags"]}
        assert ("variable_flags" in flags) == movable, name
        for spec in map(fields, row[8]):
            assert {flag.text for flag in spec["flags"]} & {"RO", "RW", "OW", "RM"}


# ---- keys and access control -----------------------------------------------------------------------------------------

R, W, RW = "R", "W", "RW"

#: A command and its keys with the access to each. Names are as awkward as they may be: a tensor may be called as a keyword is.
KEYS: list[tuple[str, dict[str, str]]] = [
    ("AI.TENSORSET t FLOAT 1 VALUES 1", {"t": W}),
    ("AI.TENSORGET t BLOB", {"t": R}),
    ("AI.MODELSTORE m TORCH CPU BLOB {}", {"m": W}),
    ("AI.MODELSET m TORCH CPU BLOB {}", {"m": W}),
    ("AI.MODELGET m META", {"m": R}),
    ("AI.MODELDEL m", {"m": W}),
    ("AI.SCRIPTSTORE s CPU ENTRY_POINTS 1 f SOURCE_MISSING x", {"s": W}),
    ("AI.SCRIPTSET s CPU SOURCE_MISSING x", {"s": W}),
    ("AI.SCRIPTGET s", {"s": R}),
    ("AI.SCRIPTDEL s", {"s": W}),
    ("AI.INFO m", {"m": R}),
    ("AI.MODELEXECUTE m INPUTS 2 a b OUTPUTS 2 c d", {"m": R, "a": R, "b": R, "c": W, "d": W}),
    ("AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 c TIMEOUT 100", {"m": R, "a": R, "c": W}),
    ("AI.MODELEXECUTE INPUTS INPUTS 2 OUTPUTS b OUTPUTS 1 TIMEOUT", {"INPUTS": R, "OUTPUTS": R, "b": R, "TIMEOUT": W}),
    ("AI.MODELRUN m INPUTS a b OUTPUTS c d", {"m": R, "a": R, "b": R, "c": W, "d": W}),
    ("AI.MODELRUN m TIMEOUT 5 INPUTS a INPUTS OUTPUTS c OUTPUTS", {"m": R, "a": R, "INPUTS": R, "c": W, "OUTPUTS": W}),
    ("AI.SCRIPTRUN s f INPUTS a $ b OUTPUTS c d", {"s": R, "a": R, "b": R, "c": W, "d": W}),
    ("AI.SCRIPTRUN s f INPUTS a OUTPUTS c TIMEOUT 5", {"s": R, "a": R, "c": W}),
    ("AI.SCRIPTEXECUTE s f INPUTS 2 a b OUTPUTS 1 c", {"s": R, "a": R, "b": R, "c": W}),
    ("AI.SCRIPTEXECUTE s f KEYS 2 k l INPUTS 1 a ARGS 2 OUTPUTS KEYS OUTPUTS 1 c", {"s": R, "k": RW, "l": RW, "a": R, "c": W}),
    ("AI.SCRIPTEXECUTE s f KEYS 1 ARGS OUTPUTS 1 KEYS", {"s": R, "ARGS": RW, "KEYS": W}),
    (
        "AI.DAGEXECUTE LOAD 2 a b PERSIST 1 c |> AI.MODELEXECUTE m INPUTS 2 a b OUTPUTS 1 c |> AI.TENSORGET c",
        {"a": R, "b": R, "c": W, "m": R},
    ),
    (
        "AI.DAGEXECUTE LOAD 1 a PERSIST 1 c |> AI.TENSORSET LOAD FLOAT 1 VALUES 1 |> AI.MODELEXECUTE m INPUTS 2 a LOAD OUTPUTS 1 c "
        "|> AI.SCRIPTEXECUTE s f KEYS 1 k INPUTS 1 c OUTPUTS 1 PERSIST",
        {"a": R, "c": W, "m": R, "s": R, "k": RW},
    ),
    ("AI.DAGRUN PERSIST 1 c |> AI.TENSORSET x FLOAT 1 VALUES 1 |> AI.MODELRUN m INPUTS x OUTPUTS c", {"c": W, "m": R}),
    ("AI.DAGRUN LOAD 1 a |> AI.SCRIPTRUN s f INPUTS a OUTPUTS LOAD", {"a": R, "s": R}),
    ("AI.DAGEXECUTE_RO LOAD 1 a |> AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 LOAD |> AI.TENSORGET LOAD", {"a": R, "m": R}),
    ("AI.DAGRUN_RO LOAD 1 a |> AI.MODELRUN m INPUTS a OUTPUTS x |> AI.TENSORGET x", {"a": R, "m": R}),
]


def pattern(key: str, access: str, kinds: bool) -> str:
    return f"%{access}~{key}" if kinds else f"~{key}"


def refused(admin: Wire, user: Wire, patterns: list[str], command: list[str]) -> bool:
    """Whether a user with these patterns gets NOPERM, whatever else the answer is."""
    assert admin("ACL", "SETUSER", "limited", "resetkeys", *patterns) == OK
    reply = user(*command)
    return isinstance(reply, Error) and reply.text.startswith("NOPERM")


@pytest.fixture
def limited(every_server: Server, w: Wire) -> Iterator[Wire]:
    """A connection of a user who may run everything, on keys that a test names."""
    w("ACL", "SETUSER", "limited", "on", "nopass", "+@all", "resetkeys")
    with Wire(every_server.port) as user:
        user("AUTH", "limited", "x")
        yield user
    w("ACL", "DELUSER", "limited")


@pytest.mark.parametrize(("line", "keys"), KEYS, ids=[line.split()[0] for line, _ in KEYS])
def test_getkeys_access_control_and_the_command_agree_on_every_key(w: Wire, limited: Wire, line: str, keys: dict[str, str]) -> None:
    command, kinds = line.split(), major(w) >= 7
    assert sorted(key.decode() for key in w("COMMAND", "GETKEYS", *command)) == sorted(keys)
    all_of_them = [pattern(key, access, kinds) for key, access in keys.items()]
    assert not refused(w, limited, all_of_them, command), "these are all the keys it names, and no more access than it needs"
    for key, access in keys.items():
        others = [pattern(other, access, kinds) for other, access in keys.items() if other != key]
        assert refused(w, limited, others, command), f"{key} is out of bounds"
        for less in {R: W, W: R, RW: "RW"}[access] if kinds else "":
            assert refused(w, limited, [*others, pattern(key, less, kinds)], command), f"{key} with nothing but %{less}~"


def test_access_kinds_are_told_by_the_server_itself(w: Wire) -> None:
    needs_seven(w)
    reply = w("COMMAND", "GETKEYSANDFLAGS", *"AI.SCRIPTEXECUTE s f KEYS 1 k INPUTS 1 a OUTPUTS 1 c".split())
    found = {key.decode(): sorted(flag.text for flag in flags) for key, flags in reply}
    assert found == {"s": ["RO", "access"], "k": ["RW", "access", "update"], "a": ["RO", "access"], "c": ["OW", "update"]}


def test_a_routing_hint_is_for_the_cluster(w: Wire) -> None:
    dag = "AI.DAGEXECUTE ROUTING tag |> AI.TENSORSET x FLOAT 1 VALUES 1".split()
    assert w("COMMAND", "GETKEYS", *dag) == [b"tag"]
    if major(w) >= 7:
        assert w("COMMAND", "GETKEYSANDFLAGS", *dag) == [[b"tag", [("not_key",)]]]


def test_scans_show_a_user_the_keys_that_he_may_read(every_server: Server, w: Wire, limited: Wire) -> None:
    for key in ("mine", "theirs", "written"):
        w("AI.MODELSTORE", key, "TORCH", "CPU", "TAG", "v", "BLOB", echo_model())
    everything = [[b"written", b"v"], [b"theirs", b"v"], [b"mine", b"v"]]
    assert w("AI._MODELSCAN") == everything
    if major(w) < 7:
        w("ACL", "SETUSER", "limited", "~mine")
        assert limited("AI._MODELSCAN") == everything, "this server cannot be asked"
        return
    w("ACL", "SETUSER", "limited", "%RW~mine", "%W~written")
    ways: list[Callable[[], Any]] = [
        lambda: limited("AI._MODELSCAN"),
        lambda: (limited("MULTI"), limited("AI._MODELSCAN"), limited("EXEC")[0])[2],
        lambda: limited("EVAL", "return redis.call('AI._MODELSCAN')", 0),
    ]
    for ask in ways:
        assert ask() == [[b"mine", b"v"]]
    assert w("EVAL", "return redis.call('AI._MODELSCAN')", 0) == [[b"mine", b"v"]], "a script does not say for whom it runs"
    w("ACL", "DELUSER", "limited")
    assert w("EVAL", "return redis.call('AI._MODELSCAN')", 0) == everything
    assert w("AI._SCRIPTSCAN") == []


@pytest.mark.needs_torch
def test_a_script_sees_in_a_scan_what_its_caller_may_read(real_server: Server) -> None:
    source = """
def scan(tensors: List[Tensor], keys: List[str], args: List[str]):
    return torch.tensor([len(redis.asList(redis.execute("AI._SCRIPTSCAN")))])
"""
    with Wire(real_server.port, timeout=120) as w, Wire(real_server.port) as user:
        needs_seven(w)
        for key in ("mine:1", "mine:2", "theirs"):
            assert w("AI.SCRIPTSTORE", key, "CPU", "ENTRY_POINTS", 1, "scan", "SOURCE", source) == OK
        w("AI.TENSORSET", "mine:x", "INT8", 1)
        w("ACL", "SETUSER", "limited", "on", "nopass", "+@all", "resetkeys", "~mine:*")
        user("AUTH", "limited", "x")
        for wire, seen in ((w, 3), (user, 2)):
            assert wire("AI.SCRIPTEXECUTE", "mine:1", "scan", "INPUTS", 1, "mine:x", "OUTPUTS", 1, "mine:y") == OK
            assert wire("AI.TENSORGET", "mine:y", "VALUES") == [seen]
        w("ACL", "DELUSER", "limited")


# ---- redis-cli -------------------------------------------------------------------------------------------------------


class Terminal:
    """redis-cli in a terminal of its own, which it believes to be a person's."""

    def __init__(self, port: int) -> None:
        environment = {**os.environ, "TERM": "xterm", "REDISCLI_HISTFILE": "/dev/null", "REDISCLI_RCFILE": "/dev/null"}
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 500, 0, 0))
        line = ["redis-cli", "-p", str(port)]
        self.process = subprocess.Popen(line, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True)
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self.seen += re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", os.read(self._master, 65536).decode(errors="replace"))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.mark.skipif(not shutil.which("redis-cli"), reason="there is no redis-cli here")
def test_redis_cli_completes_and_hints_our_commands(every_server: Server, w: Wire) -> None:
    needs_seven(w)
    terminal = Terminal(every_server.port)
    try:
        terminal.wait_for(f":{every_server.port}>")
        terminal.type("ai.modelexe\t")
        terminal.wait_for("AI.MODELEXECUTE")
        terminal.type(" ")
        terminal.wait_for("key INPUTS count input [input ...] OUTPUTS count output [output ...] [TIMEOUT milliseconds]")
        terminal.type("\x15ai.tensorset t ")
        terminal.wait_for("FLOAT|DOUBLE|INT8|INT16|INT32|INT64|UINT8|UINT16|BOOL|STRING [dim [dim ...]]")
        terminal.type("\x15help ai.modelstore\r")
        terminal.wait_for("summary: Opens a model on a backend and a device and stores it under a key.")
    finally:
        terminal.close()


# ---- RESP3 -----------------------------------------------------------------------------------------------------------


def flat(reply: Any) -> bool:
    """Nothing but arrays, strings, integers, doubles and null: clients of 1.2.7 read arrays where RESP3 would have maps and sets."""
    if isinstance(reply, list):
        return type(reply) is list and all(map(flat, reply))
    return reply is None or (isinstance(reply, bytes | int | float | tuple) and not isinstance(reply, bool))


COMMANDS = [
    "AI.TENSORSET t FLOAT 2 VALUES 0.5 inf",
    "AI.TENSORSET i INT8 1 VALUES 3",
    "AI.TENSORGET t META VALUES",
    "AI.TENSORGET t VALUES",
    "AI.TENSORGET t",
    "AI.TENSORGET i VALUES",
    "AI.MODELSTORE m ONNX CPU TAG v BLOB {}",
    "AI.MODELSET m ONNX CPU TAG v BLOB {}",
    "AI.MODELGET m",
    "AI.MODELGET m BLOB",
    "AI.MODELEXECUTE m INPUTS 1 t OUTPUTS 1 o",
    "AI.MODELRUN m INPUTS t OUTPUTS o",
    "AI.DAGEXECUTE LOAD 1 t PERSIST 1 o |> AI.MODELEXECUTE m INPUTS 1 t OUTPUTS 1 o |> AI.TENSORGET o META VALUES",
    "AI.DAGRUN LOAD 1 t |> AI.MODELRUN m INPUTS t OUTPUTS o |> AI.TENSORGET o VALUES",
    "AI.DAGEXECUTE_RO LOAD 1 t |> AI.TENSORGET t VALUES",
    "AI.DAGRUN_RO LOAD 1 t |> AI.TENSORGET t",
    "AI._MODELSCAN",
    "AI.INFO m RESETSTAT",
    "AI.INFO m",
    "AI.INFO m STATS",
    "AI.CONFIG GET MODEL_CHUNK_SIZE",
    "AI.CONFIG GET UNKNOWN",
    "AI.CONFIG MODEL_CHUNK_SIZE 535822336",
    "AI.SCRIPTSET t CPU SOURCE x",
    "AI.SCRIPTSTORE t CPU ENTRY_POINTS 1 f SOURCE x",
    "AI.SCRIPTEXECUTE missing f INPUTS 1 t OUTPUTS 1 o",
    "AI.SCRIPTRUN missing f INPUTS t OUTPUTS o",
    "AI.SCRIPTGET s",
    "AI.SCRIPTGET s SOURCE",
    "AI._SCRIPTSCAN",
    "AI.SCRIPTDEL s",
    "AI.MODELDEL m",
]


@pytest.fixture
def script(every_server: Server, w: Wire) -> Iterator[None]:
    """A script `s` that nobody opens, which would import a library: stored on a replica, which opens at the first use."""
    w("REPLICAOF", "127.0.0.1", "1")
    w("CONFIG", "SET", "replica-read-only", "no")
    w("MULTI")
    w("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", "def f(tensors, keys, args):\n    return tensors\n")
    assert w("EXEC") == [OK]
    yield
    w("FLUSHALL")
    w("CONFIG", "SET", "replica-read-only", "yes")
    w("REPLICAOF", "NO", "ONE")


@pytest.mark.usefixtures("script")
def test_every_command_sends_the_same_arrays_in_resp3_with_typed_doubles(every_server: Server, w: Wire) -> None:
    assert {line.split()[0].lower() for line in COMMANDS} == set(NAMES)
    dump = w("DUMP", "s")
    replies: dict[int, list[Any]] = {}
    for resp in (2, 3):
        with Wire(every_server.port, resp=resp) as wire:
            wire("RESTORE", "s", 0, dump, "REPLACE")
            replies[resp] = [wire.only_reply(*line.split()) for line in COMMANDS]
            if resp == 3:
                values = wire("AI.TENSORGET", "t", "VALUES")
                assert values == [0.5, float("inf")] and all(isinstance(value, Double) for value in values)
                assert wire("AI.TENSORGET", "i", "VALUES") == [3]
            else:
                assert wire("AI.TENSORGET", "t", "VALUES") == [b"0.5", b"inf"]
    for line, two, three in zip(COMMANDS, replies[2], replies[3], strict=True):
        assert flat(three), line
        if "STATS" in line:
            assert len(two) == len(three), line
        else:
            assert with_texts(three) == two, line


def with_texts(reply: Any) -> Any:
    """A RESP3 reply as RESP2 sends it."""
    if isinstance(reply, list):
        return [with_texts(item) for item in reply]
    return (b"%g" % reply) if isinstance(reply, float) else reply


# ---- a client that reads slowly -----------------------------------------------------------------------------------------


def test_a_slow_reader_of_many_values_stops_nobody(every_server: Server, w: Wire) -> None:
    assert w("AI.TENSORSET", "big", "DOUBLE", 200_000) == OK
    with Wire(every_server.port) as slow:
        slow.send("AI.TENSORGET", "big", "VALUES")
        wait_until(lambda: w("PING") == ("PONG",), "an answer meanwhile")
