"""One binary for every server: the smoke part of the tests on each one that is here."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from conftest import echo_model
from redis.utils import str_if_bytes
from servers import Server, server_binaries, wait_until

SERVERS = server_binaries()
OK = b"OK"


@pytest.fixture(scope="module", params=SERVERS, ids=str)
def any_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(binary=SERVERS[request.param])
    yield server
    server.close()


@pytest.fixture
def c(any_server: Server) -> Iterator[redis.Redis]:
    with any_server.client() as client:
        client.flushall()
        yield client
    assert any_server.alive(), any_server.log()[-4000:]


def test_the_module_is_there_by_its_name_and_version(c: redis.Redis) -> None:
    modules = [dict(zip(*[iter(row)] * 2, strict=False)) if isinstance(row, list) else row for row in c.execute_command("MODULE LIST")]
    rows = [{(k.decode() if isinstance(k, bytes) else k): v for k, v in row.items()} for row in modules]
    assert ("ai", 10207) in [(r["name"].decode() if isinstance(r["name"], bytes) else r["name"], r["ver"]) for r in rows]


def test_tensors(c: redis.Redis) -> None:
    assert c.execute_command("AI.TENSORSET", "t", "FLOAT", 2, 2, "VALUES", 1, 2, 3, "-inf") == OK
    assert c.execute_command("AI.TENSORGET", "t", "BLOB") == struct.pack("<4f", 1, 2, 3, float("-inf"))
    assert c.type("t") == b"AI_TENSOR"
    big = bytes(100_000)
    assert c.execute_command("AI.TENSORSET", "big", "UINT8", 100_000, "BLOB", big) == OK
    assert c.execute_command("AI.TENSORGET", "big", "BLOB") == big


def test_a_model_is_stored_run_and_deleted(c: redis.Redis) -> None:
    assert c.execute_command("AI.MODELSTORE", "m", "TORCH", "CPU", "TAG", "v", "BLOB", echo_model("add", 2)) == OK
    for key, value in (("a", 1), ("b", 2)):
        c.execute_command("AI.TENSORSET", key, "INT32", 1, "VALUES", value)
    c.expire("a", 1000)
    assert c.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 2, "a", "b", "OUTPUTS", 1, "a") == OK
    assert c.execute_command("AI.TENSORGET", "a", "VALUES") == [3]
    assert c.ttl("a") == -1
    assert c.execute_command("AI.INFO", "m")[13] == 1
    assert c.execute_command("AI._MODELSCAN") == [[b"m", b"v"]]
    assert c.execute_command("AI.MODELDEL", "m") == OK


def test_a_big_input_runs(c: redis.Redis) -> None:
    c.execute_command("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model())
    blob = bytes(range(256)) * 1000
    c.execute_command("AI.TENSORSET", "x", "UINT8", 256_000, "BLOB", blob)
    assert c.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 1, "x", "OUTPUTS", 1, "y") == OK
    assert c.execute_command("AI.TENSORGET", "y", "BLOB") == blob


def test_a_dag(c: redis.Redis) -> None:
    c.execute_command("AI.MODELSTORE", "m", "TF", "CPU", "INPUTS", 1, "x", "OUTPUTS", 1, "y", "BLOB", echo_model())
    c.execute_command("AI.TENSORSET", "stored", "FLOAT", 1, "VALUES", 4)
    dag = "AI.DAGEXECUTE LOAD 1 stored PERSIST 1 kept |> AI.MODELEXECUTE m INPUTS 1 stored OUTPUTS 1 kept |> AI.TENSORGET kept BLOB"
    assert c.execute_command(*dag.split()) == [OK, struct.pack("<f", 4)]
    assert c.execute_command("AI.TENSORGET", "kept", "BLOB") == struct.pack("<f", 4)


@pytest.mark.parametrize("command", ["AI.MODELEXECUTE m INPUTS 1 x OUTPUTS 1 y", "AI.DAGRUN |> AI.TENSORSET x FLOAT 1"])
def test_runs_are_refused_where_a_client_cannot_be_blocked(c: redis.Redis, command: str) -> None:
    refused = "Cannot run RedisAI command within a transaction or a LUA script"
    with c.pipeline(transaction=True) as transaction:
        transaction.execute_command(*command.split())
        with pytest.raises(redis.ResponseError, match=refused):
            transaction.execute()
    with pytest.raises(redis.ResponseError, match=refused):
        c.eval("return redis.call(unpack(ARGV))", 0, *command.split())


def test_keys_of_a_command(c: redis.Redis) -> None:
    got = c.command_getkeys(*"AI.MODELEXECUTE m INPUTS 2 a b OUTPUTS 1 c".split())
    assert [str_if_bytes(key) for key in got] == ["m", "a", "b", "c"]


def test_resp3_keeps_flat_arrays(any_server: Server, c: redis.Redis) -> None:
    c.execute_command("AI.TENSORSET", "t", "FLOAT", 1, "VALUES", 0.5)
    with any_server.client(protocol=3) as three:
        assert three.execute_command("AI.TENSORGET", "t", "META", "VALUES") == [b"dtype", b"FLOAT", b"shape", [1], b"values", [0.5]]


def test_what_is_saved_loads_again(any_server: Server, c: redis.Redis) -> None:
    c.execute_command("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model())
    c.execute_command("AI.TENSORSET", "t", "STRING", 2, "VALUES", "a", "b")
    c.execute_command("DEBUG", "RELOAD")
    assert c.execute_command("AI.TENSORGET", "t", "VALUES") == [b"a", b"b"]
    assert c.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 1, "t", "OUTPUTS", 1, "u") == OK
    dump = c.dump("m")
    assert c.restore("copy", 0, dump) == OK
    assert c.execute_command("AI.MODELGET", "copy", "BLOB") == echo_model().encode()


def test_info_has_its_sections_first_and_in_order(c: redis.Redis) -> None:
    info = c.execute_command("INFO", "everything")
    text = info.decode() if isinstance(info, bytes) else None
    if text is None:  # redis-py parsed it
        assert info["ai_RedisAI_version"] == "1.2.7"
        return
    sections = [line[2:] for line in text.splitlines() if line.startswith("# ai_")]
    assert sections[:5] == ["ai_versions", "ai_git", "ai_load_time_configs", "ai_backends_info", "ai_cpu"]


def test_save_in_the_background_while_a_run_is_in_progress(any_server: Server, c: redis.Redis, tmp_path: object) -> None:
    gate = f"{tmp_path}/gate"
    c.execute_command("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model("gate", path=gate))
    c.execute_command("AI.TENSORSET", "x", "FLOAT", 1, "VALUES", 1)
    with any_server.client() as other:
        other.connection_pool.get_connection()
        waiting = other.connection_pool.get_connection()
        waiting.send_command(*"AI.MODELEXECUTE m INPUTS 1 x OUTPUTS 1 y".split())
        c.bgsave()
        wait_until(lambda: not c.info("persistence")["rdb_bgsave_in_progress"], "the end of the save")
        assert c.info("persistence")["rdb_last_bgsave_status"] == "ok"
        Path(gate).touch()
        assert waiting.read_response() == OK


def test_the_server_stops_cleanly_and_what_it_saved_comes_back(any_server: Server, c: redis.Redis) -> None:
    c.execute_command("AI.TENSORSET", "t", "DOUBLE", 1, "VALUES", 1.25)
    c.save()
    assert any_server.stop() == 0
    any_server.start()
    with any_server.client() as again:
        assert again.execute_command("AI.TENSORGET", "t", "BLOB") == struct.pack("<d", 1.25)
