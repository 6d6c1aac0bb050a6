"""What clients may send and how they may leave: every command with every argument bent, a million arguments, half commands, resets, and
readers that do not read. Each command has one reply, and only who misbehaves is closed."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import echo_model
from runs import Gate, calls, get, info, put, put_script, store, wait_gone, wait_running
from servers import MODELS, Server, wait_until
from wire import OK, Double, Error, Status, Wire, encode

PONG = Status("PONG")
WRONGTYPE = Error("WRONGTYPE Operation against a key holding the wrong kind of value")


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    with Wire(server.port) as wire:
        yield wire


def used_memory(wire: Wire) -> int:
    return int(dict(line.split(":") for line in wire("INFO", "memory").decode().splitlines() if ":" in line)["used_memory"])


def client_list(wire: Wire) -> list[dict[str, str]]:
    return [dict(pair.split("=", 1) for pair in line.split()) for line in wire("CLIENT", "LIST").decode().splitlines()]


def execute(key: str, source: str, target: str) -> tuple[Any, ...]:
    return ("AI.MODELEXECUTE", key, "INPUTS", 1, source, "OUTPUTS", 1, target)


# ---- every command, bent -----------------------------------------------------------------------------------------------------------------

SOURCE = "def f(tensors: List[Tensor], keys: List[str], args: List[str]):\n    return tensors[0]\n"

#: Every command with every clause, as lists: `MODEL` and `SOURCE` stand for bytes.
WHOLE = [
    "AI.TENSORSET t FLOAT 1 2 VALUES 1 2",
    "AI.TENSORSET t STRING 2 BLOB x",
    "AI.TENSORGET a META VALUES",
    "AI.TENSORGET a META BLOB",
    "AI.MODELSTORE n ONNX CPU TAG v BATCHSIZE 2 MINBATCHSIZE 1 MINBATCHTIMEOUT 1 BLOB MODEL",
    "AI.MODELSTORE n TF CPU INPUTS 1 x OUTPUTS 1 y BLOB x",
    "AI.MODELSET n ONNX CPU TAG v BATCHSIZE 2 MINBATCHSIZE 1 BLOB MODEL",
    "AI.MODELGET m META BLOB",
    "AI.MODELDEL n",
    "AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 o TIMEOUT 60000",
    "AI.MODELRUN m TIMEOUT 60000 INPUTS a OUTPUTS o",
    "AI._MODELSCAN",
    "AI.SCRIPTSTORE s CPU TAG v ENTRY_POINTS 1 f SOURCE SOURCE",
    "AI.SCRIPTSET t CPU TAG v SOURCE SOURCE",
    "AI.SCRIPTGET s META SOURCE",
    "AI.SCRIPTDEL none",
    "AI.SCRIPTEXECUTE s f KEYS 1 k INPUTS 1 a ARGS 1 x OUTPUTS 1 o TIMEOUT 60000",
    "AI.SCRIPTRUN s f INPUTS a OUTPUTS o TIMEOUT 60000",
    "AI._SCRIPTSCAN",
    "AI.DAGEXECUTE LOAD 1 a PERSIST 1 o TIMEOUT 60000 ROUTING r |> AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 o |> AI.TENSORGET o VALUES",
    "AI.DAGEXECUTE LOAD 1 a PERSIST 1 o |> AI.TENSORSET x INT8 1 VALUES 1 |> AI.SCRIPTEXECUTE s f KEYS 1 k INPUTS 1 a OUTPUTS 1 o",
    "AI.DAGEXECUTE_RO LOAD 1 a TIMEOUT 60000 |> AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 o |> AI.TENSORGET o META",
    "AI.DAGRUN LOAD 1 a PERSIST 1 o |> AI.MODELRUN m INPUTS a OUTPUTS o |> AI.SCRIPTRUN s f INPUTS o $ a OUTPUTS p",
    "AI.DAGRUN_RO LOAD 1 a |> AI.MODELRUN m INPUTS a OUTPUTS o |> AI.TENSORGET o BLOB",
    "AI.INFO m STATS",
    "AI.INFO m RESETSTAT",
    "AI.CONFIG GET MODEL_CHUNK_SIZE",
    "AI.CONFIG BACKENDSPATH x",
    "AI.CONFIG LOADBACKEND NOPE x",
]
HOSTILE = [
    b"",
    b"\xff" * 40,
    b"9223372036854775807",
    b"18446744073709551616",
    b"-1",
    b"1e3",
    b"0",
    b"a\0b",
    b"%n%s\r\n+OK\r\n$-1\r\n",
    b"|>",
]


def bent(words: list[bytes]) -> Iterator[list[bytes]]:
    """The command cut after each word and with words too many; then with each word hostile."""
    yield from (words[:n] for n in range(1, len(words) + 1))
    yield from ([*words, *more] for more in ([b"x"], [b"x", b"y"], words[1:]))
    yield from ([*words[:at], hostile, *words[at + 1 :]] for at in range(1, len(words)) for hostile in HOSTILE)


@pytest.fixture
def everything(real_server: Server) -> Iterator[Wire]:
    """A model m, a script s and a tensor a, of the real libraries."""
    with Wire(real_server.port, timeout=120) as wire:
        path = wire("AI.CONFIG", "GET", "BACKENDSPATH")
        assert wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", (MODELS / "minimal.onnx").read_bytes()) == OK
        assert wire("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", SOURCE) == OK
        assert wire("AI.TENSORSET", "a", "FLOAT", 1, 2, "VALUES", 1, 2) == OK
        yield wire
        wire("AI.CONFIG", "BACKENDSPATH", path)


@pytest.mark.needs_onnx
@pytest.mark.needs_torch
@pytest.mark.parametrize("line", WHOLE)
def test_a_bent_command_has_one_reply_and_an_error_changes_nothing(everything: Wire, line: str) -> None:
    data = {"MODEL": (MODELS / "minimal.onnx").read_bytes(), "SOURCE": SOURCE.encode()}
    words = [data.get(word, word.encode()) for word in line.split()]
    if words[-1] == b"SOURCE":
        words[-2:] = [b"SOURCE", SOURCE.encode()]  # the keyword, then the text
    commands = list(bent(words))
    assert len(commands) >= 4
    before = everything("DEBUG", "DIGEST")
    for command in commands:
        everything.send(*command)
        everything.send("DEBUG", "DIGEST")
        reply, after = everything.read(), everything.read()
        assert isinstance(after, Status) and len(after.text) == 40, "a command sent more than one reply"
        if isinstance(reply, Error) and reply != WRONGTYPE:  # outputs before one of another type stay
            assert after == before, command
        before = after
    assert everything.only_reply("PING") == PONG
    wait_gone(everything)


@pytest.mark.needs_onnx
@pytest.mark.needs_torch
def test_memory_is_back_after_every_bent_command(everything: Wire, real_server: Server) -> None:
    def all_of_them() -> int:
        sent = 0
        with Wire(real_server.port, timeout=120) as own:
            for line in WHOLE:
                for command in bent([b"" if word in ("MODEL", "SOURCE") else word.encode() for word in line.split()]):
                    own.send(*command)
                    sent += 1
            for _ in range(sent):
                own.read()
        wait_gone(everything)
        wait_until(lambda: len(client_list(everything)) == 1, "its connection to be gone")
        for key in (b"", b"t", b"n", b"o", b"p", b"k", *HOSTILE):
            everything("DEL", key)
        return used_memory(everything)

    all_of_them()
    first = all_of_them()
    assert all_of_them() - first < 64 << 10


# ---- a million arguments -----------------------------------------------------------------------------------------------------------------

MANY = 1_000_000


def command(*parts: Any) -> bytes:
    """A command on the wire; a tuple (bytes, n) stands for n arguments of the same bytes."""
    words = b"".join(encode(part[0]) * part[1] if isinstance(part, tuple) else encode(part) for part in parts)
    return b"*%d\r\n" % sum(part[1] if isinstance(part, tuple) else 1 for part in parts) + words


a, x = (b"a", MANY), (b"1", MANY)
LONG: dict[str, list[Any]] = {
    "values": ["AI.TENSORSET", "t", "UINT8", MANY, "VALUES", x],
    "dims": ["AI.TENSORSET", "t", "UINT8", x],
    "strings": ["AI.TENSORSET", "t", "STRING", MANY, "VALUES", x],
    "chunks": ["AI.MODELSTORE", "m2", "ONNX", "CPU", "BLOB", x],
    "names": ["AI.MODELSTORE", "m2", "TF", "CPU", "INPUTS", MANY, a, "OUTPUTS", 1, "b", "BLOB", "x"],
    "model inputs": ["AI.MODELEXECUTE", "m", "INPUTS", MANY, a, "OUTPUTS", 1, "o"],
    "model outputs": ["AI.MODELEXECUTE", "m", "INPUTS", 1, "a", "OUTPUTS", MANY, a],
    "old model inputs": ["AI.MODELRUN", "m", "INPUTS", a, "OUTPUTS", "o"],
    "entry points": ["AI.SCRIPTSTORE", "s2", "CPU", "ENTRY_POINTS", MANY, a, "SOURCE", "x"],
    "script keys": ["AI.SCRIPTEXECUTE", "s", "f", "KEYS", MANY, a, "ARGS", "x"],
    "script inputs": ["AI.SCRIPTEXECUTE", "s", "f", "INPUTS", MANY, a, "ARGS", "x"],
    "script arguments": ["AI.SCRIPTEXECUTE", "s", "f", "ARGS", MANY, a, "KEYS", "x"],
    "old script inputs": ["AI.SCRIPTRUN", "s", "f", "TIMEOUT", "x", "INPUTS", a],
    "loaded": ["AI.DAGEXECUTE", "LOAD", MANY, a, "|>", "AI.TENSORGET", "a", "META"],
    "persisted": ["AI.DAGEXECUTE", "PERSIST", MANY, a, "|>", "AI.TENSORSET", "a", "INT8", 1],
    "empty ops": ["AI.DAGRUN", (b"|>", MANY)],
    "unknown words": ["AI.DAGRUN_RO", a],
    "getkeys": ["COMMAND", "GETKEYS", "AI.DAGEXECUTE", "LOAD", MANY, a, "|>", "AI.TENSORGET", "a"],
    "info": ["AI.INFO", a],
}


@pytest.fixture(scope="module")
def small_stack(_shared_server: Server) -> Server:
    """The shared server, whose main thread has a megabyte of stack from here on: the kernel asks at each growth. Redis itself
    needs half of it where it compresses."""
    _, most = resource.prlimit(_shared_server.pid, resource.RLIMIT_STACK)
    resource.prlimit(_shared_server.pid, resource.RLIMIT_STACK, (1 << 20, most))
    return _shared_server


@pytest.mark.parametrize("what", LONG)
def test_a_million_arguments_need_no_stack(small_stack: Server, server: Server, wire: Wire, what: str) -> None:
    store(wire, "m")
    put(wire, "a", 1)
    put_script(wire, "s")
    wire.socket.sendall(command(*LONG[what]) + command("PING", "last"))
    reply = wire.read()
    assert wire.read() == b"last"
    match what:
        case "values":
            assert reply == OK and wire("AI.TENSORGET", "t", "BLOB") == b"\1" * MANY
        case "strings":
            assert reply == OK and wire("AI.TENSORGET", "t", "BLOB") == b"1\0" * MANY
        case "loaded":
            assert reply == [[b"dtype", b"DOUBLE", b"shape", [1, 1]]]
        case "getkeys":
            assert reply == [b"a"] * MANY
        case _:
            assert isinstance(reply, Error), reply
            assert wire("DBSIZE") == 3


def test_a_model_of_many_inputs_and_outputs_needs_no_stack(small_stack: Server, server: Server, wire: Wire) -> None:
    n = 20_000
    store(wire, "wide", inputs=n, outputs=n)
    put(wire, "a", 7)
    names = [f"o{i}" for i in range(n)]
    assert wire.only_reply("AI.MODELEXECUTE", "wide", "INPUTS", n, *["a"] * n, "OUTPUTS", n, *names) == OK
    assert wire("DBSIZE") == n + 2
    assert get(wire, names[-1]) == [7]


# ---- pipelines, half commands, bulks that are too long -----------------------------------------------------------------------------------


@pytest.mark.parametrize("resp", [2, 3])
def test_a_pipeline_of_ten_thousand_is_answered_in_order_and_in_the_protocols_types(server: Server, wire: Wire, resp: int) -> None:
    store(wire, "m")
    turns = 2500
    sent = b"".join(
        command("AI.TENSORSET", "a", "DOUBLE", 1, "VALUES", i)
        + command("AI.MODELEXECUTE", "m", "INPUTS", 1, "a", "OUTPUTS", 1, "o")
        + command("AI.TENSORGET", "o", "VALUES")
        + command("AI.TENSORGET", "none")
        for i in range(turns)
    )
    with Wire(server.port, resp=resp) as own:
        own.socket.setblocking(True)
        own.socket.sendall(sent)
        replies = [own.read() for _ in range(4 * turns)]
    number = (lambda i: Double(i)) if resp == 3 else (lambda i: b"%d" % i)
    empty = Error("ERR tensor key is empty or in a different shard")
    assert replies == [reply for i in range(turns) for reply in (OK, OK, [number(i)], empty)]
    assert all(type(replies[4 * i + 2][0]) is (Double if resp == 3 else bytes) for i in range(turns))


def test_the_protocol_may_change_in_the_middle_of_a_pipeline(server: Server, wire: Wire) -> None:
    """A run waits in between: what it answers, and what comes after, is in the protocol that was chosen when it was sent."""
    store(wire, "m", "sleep", seconds=0.01)
    put(wire, "a", 0.5)
    run = ("AI.DAGRUN", "LOAD", 1, "a", "|>", "AI.MODELRUN", "m", "INPUTS", "a", "OUTPUTS", "o", "|>", "AI.TENSORGET", "o", "VALUES")
    with Wire(server.port) as own:
        own.socket.sendall(command(*run) + command("HELLO", 3) + command(*run) + command("HELLO", 2) + command(*run))
        first, _, second, _, third = (own.read() for _ in range(5))
    assert first == third == [OK, [b"0.5"]]
    assert second == [OK, [Double(0.5)]] and type(second[1][0]) is Double


def test_who_wants_no_replies_gets_none(server: Server, wire: Wire) -> None:
    store(wire, "m", "sleep", seconds=0.002)
    put(wire, "a", 7)
    runs = [execute("m", "a", f"o{i}") for i in range(20)]
    with Wire(server.port) as own:
        for run in runs[:10]:
            own.socket.sendall(command("CLIENT", "REPLY", "SKIP") + command(*run) + command("CLIENT", "REPLY", "SKIP"))
            own.socket.sendall(command("AI.TENSORGET", "a") + command("ECHO", run[-1]))
            assert own.read() == run[-1].encode()
        own.send("CLIENT", "REPLY", "OFF")
        for run in runs[10:]:
            own.send(*run)
            own.send("AI.TENSORGET", "a", "VALUES")
            own.send("AI.MODELSTORE", "n", "ONNX", "CPU", "BLOB", "no model")
        own.send("CLIENT", "REPLY", "ON")
        assert own.read() == OK
        assert own("PING") == PONG
    assert wire("EXISTS", *(run[-1] for run in runs)) == 20
    assert calls(wire, "m") == (20, 0)


HALF = {
    "AI.TENSORSET": ["t", "UINT8", 5000, "BLOB", b"x" * 5000],
    "AI.MODELSTORE": ["n", "ONNX", "CPU", "BLOB", echo_model() + " " * 3000, " " * 2000],
    "AI.MODELEXECUTE": ["m", "INPUTS", 1, "a", "OUTPUTS", 1, "o"],
    "AI.DAGEXECUTE": ["PERSIST", 1, "o", "|>", "AI.TENSORSET", "o", "UINT8", 3000, "BLOB", b"x" * 3000],
    "AI.SCRIPTSTORE": ["s", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", SOURCE],
    "AI.MODELDEL": ["m"],
}


@pytest.mark.parametrize("end", ["close", "reset", "half-closed"])
@pytest.mark.parametrize("name", HALF)
def test_half_a_command_does_nothing(server: Server, wire: Wire, name: str, end: str) -> None:
    store(wire, "m")
    put(wire, "a", 1)
    before = wire("DEBUG", "DIGEST")
    whole = command(name, *HALF[name])
    for cut in sorted({1, 5, *range(9, len(whole) - 1, max(1, len(whole) // 12)), len(whole) - 3, len(whole) - 2, len(whole) - 1}):
        with Wire(server.port) as own:
            own.socket.sendall(whole[:cut])
            leave(own, end)
    wait_until(lambda: len(client_list(wire)) == 1, "every other client to be gone")
    assert wire("DEBUG", "DIGEST") == before
    assert info(wire, "jobs_in_flight") == 0
    assert calls(wire, "m") == (0, 0)


def leave(client: Wire, how: str) -> None:
    """Closes in order, by a reset, or in one direction only, which the server takes for a close."""
    if how == "half-closed":
        client.socket.shutdown(socket.SHUT_WR)
        assert client.reader.read() == b""
    elif how == "reset":
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("header", ["*4\r\n$12\r\nAI.TENSORSET\r\n$1\r\nt\r\n$1048577\r\n", "*2147483648\r\n", "*2\r\n$-1\r\n"])
def test_what_breaks_the_protocol_closes_that_client_alone(server: Server, wire: Wire, header: str) -> None:
    put(wire, "a", 1)
    assert wire("CONFIG", "SET", "proto-max-bulk-len", 1 << 20) == OK
    try:
        with Wire(server.port) as own:
            own.socket.sendall(header.encode())
            reply = own.read()
            assert isinstance(reply, Error) and reply.text.startswith("ERR Protocol error")
            with pytest.raises(ConnectionError):
                own.read()
        assert wire("DBSIZE") == 1 and get(wire, "a") == [1]
        whole = b"x" * (1 << 20)  # as long as it may be
        assert wire("AI.TENSORSET", "t", "UINT8", len(whole), "BLOB", whole) == OK
    finally:
        wire("CONFIG", "SET", "proto-max-bulk-len", 512 << 20)


# ---- clients that read slowly, or go -----------------------------------------------------------------------------------------------------


def slow_client(port: int) -> Wire:
    """Its kernel takes little off the server's hands."""
    client = Wire.__new__(Wire)
    client.socket = socket.socket()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.socket.settimeout(60)
    client.socket.connect(("127.0.0.1", port))
    client.reader = client.socket.makefile("rb")
    return client


@pytest.fixture
def limited(server: Server, wire: Wire) -> Iterator[int]:
    """The size of a reply beyond which a client is closed."""
    assert wire("CONFIG", "SET", "client-output-buffer-limit", "normal 8388608 0 0") == OK
    yield 8 << 20
    wire("CONFIG", "SET", "client-output-buffer-limit", "normal 0 0 0")


def test_ten_million_values_for_a_reader_that_does_not_read(server: Server, wire: Wire, limited: int) -> None:
    assert wire("AI.TENSORSET", "big", "INT8", 10_000_000) == OK
    before = used_memory(wire)
    for options in (["VALUES"], ["BLOB"], []):
        with slow_client(server.port) as slow:
            slow.send("AI.TENSORGET", "big", *options)
            wait_until(lambda: len(client_list(wire)) == 1, "the reader to be closed")
            assert wire("PING") == PONG
    dag = ["AI.DAGRUN_RO", "LOAD", 1, "big", *["|>", "AI.TENSORGET", "big", "BLOB"] * 20]
    with slow_client(server.port) as slow:
        slow.send(*dag)
        wait_until(lambda: len(client_list(wire)) == 1, "the reader to be closed")
    assert used_memory(wire) - before < 1 << 20
    assert wire("AI.TENSORGET", "big", "META") == [b"dtype", b"INT8", b"shape", [10_000_000]]
    assert wire("CONFIG", "SET", "client-output-buffer-limit", "normal 0 0 0") == OK
    expected = b"*10000000\r\n" + b":0\r\n" * 10_000_000
    wire.send("AI.TENSORGET", "big", "VALUES")
    assert wire.reader.read(len(expected)) == expected


def test_slow_readers_get_exactly_what_was_there_while_others_are_served(server: Server, wire: Wire) -> None:
    """Each reply is larger than what kernels keep for a connection."""
    blob = bytes(range(256)) * (64 << 10)
    assert wire("AI.TENSORSET", "big", "UINT8", len(blob), "BLOB", blob) == OK
    slow = [slow_client(server.port) for _ in range(8)]
    for reader in slow:
        reader.send("AI.TENSORGET", "big", "BLOB")
    wait_until(lambda: sum(int(c["omem"]) > 0 for c in client_list(wire)) == 8, "replies that wait to be read")
    assert wire("AI.TENSORSET", "big", "INT8", 1) == OK
    store(wire, "m")
    put(wire, "a", 1)
    assert wire("AI.MODELEXECUTE", "m", "INPUTS", 1, "a", "OUTPUTS", 1, "o") == OK
    for reader in slow:
        assert reader.read() == blob
        reader.close()


@pytest.mark.parametrize("end", ["reset", "half-closed"])
def test_who_is_gone_while_his_run_lasts_writes_nothing(server: Server, wire: Wire, tmp_path: Path, end: str) -> None:
    gate = Gate(wire, tmp_path / "gate", "gate")
    put(wire, "a", 1)
    with Wire(server.port) as own:
        own.send("AI.MODELEXECUTE", "gate", "INPUTS", 1, "a", "OUTPUTS", 1, "o")
        wait_running(wire)
        leave(own, end)
    gate.open()
    wait_gone(wire)
    assert wire("EXISTS", "o") == 0
    assert calls(wire, "gate") == (1, 0)


VANISHING = """
import fcntl, socket, struct, sys
from pathlib import Path
import redis
from runs import Gate, put, store, wait_running
from servers import running, wait_until
from wire import OK, Wire

def loopback(up):
    "Takes the interface up or down: what is sent while it is down is lost without a word."
    with socket.socket() as s:
        name = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16xH14x", fcntl.ioctl(s, 0x8913, name))[0]
        fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", flags | 1 if up else flags & ~1))

folder = Path(sys.argv[1])
run = ("AI.MODELEXECUTE", "gate", "INPUTS", 1, "a", "OUTPUTS", 1, "o")
loopback(True)
with running("--unixsocket", str(folder / "socket"), "--tcp-keepalive", "1") as server:
    look = redis.Redis(unix_socket_path=str(folder / "socket"))
    wire, waits, half = (Wire(server.port) for _ in range(3))
    gate = Gate(wire, folder / "gate", "gate")
    put(wire, "a", 1)
    waits.send(*run)
    wait_running(wire)
    half.socket.sendall(b"*5\\r\\n$12\\r\\nAI.TENSORSET\\r\\n$1\\r\\nt\\r\\n$5\\r\\nUINT8\\r\\n$4\\r\\n1000\\r\\n$4\\r\\nBL")
    wire.close()  # a reply that is still to be acknowledged would be sent again for minutes
    wait_until(lambda: look.info("clients")["connected_clients"] == 3, "one to leave in order")
    loopback(False)
    wait_until(lambda: look.info("clients")["connected_clients"] == 1, "the peers to be given up")
    gate.open()
    wait_until(lambda: look.info("everything")["ai_jobs_in_flight"] == 0, "the run to end")
    assert look.keys() in ([b"a", b"gate"], [b"gate", b"a"]), look.keys()
    loopback(True)
    with Wire(server.port) as again:
        assert again(*run) == OK
    print("survived")
"""


def test_peers_that_vanish_without_a_word_are_given_up(tmp_path: Path) -> None:
    """On a network of its own, whose interface is taken down while one client waits for its run and another has sent half a command."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a network namespace cannot be made here")
    here = Path(__file__).parent
    done = subprocess.run(
        [unshare, "-rn", sys.executable, "-c", VANISHING, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parent}"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "survived\n", done.stderr[-3000:]


def test_an_idle_client_is_closed_and_one_that_waits_for_a_run_is_not(server: Server, wire: Wire, tmp_path: Path) -> None:
    gate = Gate(wire, tmp_path / "gate", "gate")
    put(wire, "a", 1)
    with Wire(server.port) as idle, Wire(server.port) as waiting:
        assert idle("PING") == PONG
        waiting.send("AI.MODELEXECUTE", "gate", "INPUTS", 1, "a", "OUTPUTS", 1, "o")
        wait_running(wire)
        wire("CONFIG", "SET", "timeout", 1)
        try:
            wait_until(lambda: len(client_list(wire)) == 2, "the idle one to be closed")
        finally:
            wire("CONFIG", "SET", "timeout", 0)
        gate.open()
        assert waiting.read() == OK
        with pytest.raises(ConnectionError):
            idle("PING")


# ---- keys of another type ----------------------------------------------------------------------------------------------------------------

TYPES = {
    "string": [("SET", "k", "x")],
    "list": [("RPUSH", "k", "x")],
    "hash": [("HSET", "k", "f", "x")],
    "set": [("SADD", "k", "x")],
    "sorted set": [("ZADD", "k", 1, "x")],
    "stream": [("XADD", "k", "1-1", "f", "x")],
    "tensor": [("AI.TENSORSET", "k", "INT8", 1)],
    "model": [("AI.MODELSTORE", "k", "ONNX", "CPU", "BLOB", echo_model())],
    "script": [("MULTI",), ("AI.SCRIPTSET", "k", "CPU", "SOURCE", SOURCE), ("EXEC",)],
}

#: Each command that names a key, with `k` in each place of a key, and the types that belong there.
PLACES: list[tuple[str, set[str]]] = [
    ("AI.TENSORSET k INT8 1", {"tensor"}),
    ("AI.TENSORGET k", {"tensor"}),
    ("AI.MODELSTORE k ONNX CPU BLOB MODEL", {"model"}),
    ("AI.MODELSET k ONNX CPU BLOB MODEL", {"model"}),
    ("AI.MODELGET k", {"model"}),
    ("AI.MODELDEL k", {"model"}),
    ("AI.SCRIPTGET k", {"script"}),
    ("AI.SCRIPTDEL k", {"script"}),
    ("AI.MODELEXECUTE k INPUTS 1 a OUTPUTS 1 o", {"model"}),
    ("AI.MODELEXECUTE m INPUTS 1 k OUTPUTS 1 o", {"tensor"}),
    ("AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 k", {"tensor"}),
    ("AI.MODELRUN k INPUTS a OUTPUTS o", {"model"}),
    ("AI.MODELRUN m INPUTS k OUTPUTS o", {"tensor"}),
    ("AI.MODELRUN m INPUTS a OUTPUTS k", {"tensor"}),
    ("AI.SCRIPTEXECUTE k f INPUTS 1 a OUTPUTS 1 o", {"script"}),
    ("AI.SCRIPTEXECUTE s f INPUTS 1 k OUTPUTS 1 o", {"tensor"}),
    ("AI.SCRIPTRUN k f INPUTS a OUTPUTS o", {"script"}),
    ("AI.SCRIPTRUN s f INPUTS k OUTPUTS o", {"tensor"}),
    ("AI.DAGEXECUTE LOAD 1 k |> AI.TENSORGET k", {"tensor"}),
    ("AI.DAGEXECUTE LOAD 1 a |> AI.MODELEXECUTE k INPUTS 1 a OUTPUTS 1 o", {"model"}),
    ("AI.DAGEXECUTE LOAD 1 a |> AI.SCRIPTEXECUTE k f INPUTS 1 a OUTPUTS 1 o", {"script"}),
    ("AI.DAGEXECUTE_RO LOAD 1 k |> AI.TENSORGET k", {"tensor"}),
    ("AI.DAGRUN LOAD 1 a |> AI.MODELRUN k INPUTS a OUTPUTS o", {"model"}),
    ("AI.DAGRUN_RO LOAD 1 k |> AI.TENSORGET k", {"tensor"}),
]


@pytest.mark.parametrize("kind", TYPES)
def test_a_key_of_another_type_is_one_error_in_every_place_and_stays(server: Server, wire: Wire, kind: str) -> None:
    store(wire, "m")
    put(wire, "a", 1)
    put_script(wire, "s")
    for line in TYPES[kind]:
        assert not isinstance(wire(*line), Error)
    before, size = wire("DUMP", "k"), wire("DBSIZE")
    for line, right in PLACES:
        if kind not in right:
            assert wire.only_reply(*[echo_model() if word == "MODEL" else word for word in line.split()]) == WRONGTYPE, line
            assert (wire("DUMP", "k"), wire("DBSIZE")) == (before, size), line
    persist = "AI.DAGEXECUTE LOAD 1 a PERSIST 1 k |> AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 k".split()
    if kind != "tensor":
        assert wire.only_reply(*persist) == [OK, WRONGTYPE]
        assert wire("DUMP", "k") == before
        reply = wire.only_reply("AI.INFO", "k")
        assert (reply == Error("ERR cannot find run info for key")) == (kind not in ("model", "script"))
