"""Flows over restarts: RDB, AOF with and without an RDB in it, servers with FLOWS no, sources that fail the second time, damaged files."""

from __future__ import annotations

import contextlib
import random
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from conftest import echo_model
from registered import command, forget_all, in_flight, on_key, registrations, triggers
from servers import Server, server_binaries, wait_until

SERVERS = server_binaries()
FLOWS = ["FLOWS", "yes"]
OK = b"OK"


@pytest.fixture
def every(every_flows_server: Server) -> Iterator[redis.Redis]:
    with every_flows_server.client() as client:
        yield client
        client.config_set("appendonly", "no")
        forget_all(client)
        client.flushall()
    assert every_flows_server.alive(), every_flows_server.log()[-4000:]


def ids(r: redis.Redis) -> list[bytes]:
    return [row["id"] for row in registrations(r)]


def rewrite(r: redis.Redis) -> None:
    def ended() -> bool:
        info = r.info("persistence")
        return not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]

    wait_until(ended, "the first rewrite")
    r.bgrewriteaof()
    wait_until(ended, "the rewrite")


# ---- what comes back --------------------------------------------------------------------------------------------------------------------


def test_flows_come_back_from_an_rdb_and_run(every: redis.Redis) -> None:
    every.execute_command("RG.PYEXECUTE", command("first") + "\n" + command("second", "'2'"))
    every.execute_command("RG.PYEXECUTE", on_key("k*", "execute('INCR', 'n')", eventTypes=["set"]))
    before, args = ids(every), [row["args"] for row in registrations(every)]
    assert every.execute_command("DEBUG", "RELOAD") == OK
    assert ids(every) == before
    assert [row["args"] for row in registrations(every)] == args
    assert every.execute_command("RG.TRIGGER", "first", "x") == [b"first x"]  # waits until its source has been executed again
    assert every.execute_command("RG.TRIGGER", "second") == [b"2"]
    every.set("k", 1)
    wait_until(lambda: every.get("n") == b"1", "the event")
    assert {row["status"] for row in registrations(every)} == {b"live"}


def test_a_flow_waits_until_its_model_is_open_again(every: redis.Redis) -> None:
    every.execute_command("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model())
    source = """
import redisAI
async def run(record):
    dag = redisAI.createDAGRunner().Input('x', redisAI.createTensorFromValues('INT32', [1], [5]))
    return redisAI.tensorToFlatList((await dag.ModelRun(name='m', inputs=['x'], outputs=['y']).TensorGet('y').Run())[0])
GB('CommandReader').map(run).register(trigger='run')
"""
    every.execute_command("RG.PYEXECUTE", source)
    every.execute_command("DEBUG", "RELOAD")
    assert every.execute_command("RG.TRIGGER", "run") == [b"[5]"]


def test_what_a_source_did_beside_registering_is_not_done_again(every: redis.Redis) -> None:
    every.execute_command("RG.PYEXECUTE", "execute('INCR', 'n')\n" + command("t"))
    every.execute_command("DEBUG", "RELOAD")
    assert every.execute_command("RG.TRIGGER", "t") == [b"t"]
    assert every.get("n") == b"1"


def test_what_was_unregistered_does_not_come_back(every: redis.Redis) -> None:
    every.execute_command("RG.PYEXECUTE", command("gone") + "\n" + command("stays"))
    every.execute_command("RG.UNREGISTER", triggers(every)["gone"]["id"])
    number = triggers(every)["stays"]["id"]
    every.execute_command("DEBUG", "RELOAD")
    assert every.execute_command("RG.TRIGGER", "stays") == [b"stays"]
    assert ids(every) == [number]
    with pytest.raises(redis.ResponseError, match="subcommand not found"):
        every.execute_command("RG.TRIGGER", "gone")


@pytest.mark.parametrize("preamble", ["yes", "no"])
def test_flows_come_back_from_an_aof(every: redis.Redis, preamble: str) -> None:
    """As commands that followed the file's base, and as what a rewrite made of them."""
    every.config_set("aof-use-rdb-preamble", preamble)
    every.execute_command("RG.PYEXECUTE", command("base"))
    every.config_set("appendonly", "yes")
    wait_until(lambda: not every.info("persistence")["aof_rewrite_in_progress"], "the first rewrite")
    every.execute_command("RG.PYEXECUTE", command("later") + "\n" + command("gone"))
    every.execute_command("RG.UNREGISTER", triggers(every)["gone"]["id"])
    before = ids(every)
    for step in ("as appended", "rewritten"):
        assert every.execute_command("DEBUG", "LOADAOF") == OK
        assert ids(every) == before, step
        assert every.execute_command("RG.TRIGGER", "base") == [b"base"]
        assert every.execute_command("RG.TRIGGER", "later") == [b"later"]
        rewrite(every)


def test_the_digest_of_the_data_knows_no_flows(every: redis.Redis) -> None:
    every.set("k", 1)
    before = every.execute_command("DEBUG", "DIGEST")
    every.execute_command("RG.PYEXECUTE", command("t"))
    assert every.execute_command("DEBUG", "DIGEST") == before


def test_flushing_the_data_keeps_the_flows(every: redis.Redis) -> None:
    every.execute_command("RG.PYEXECUTE", command("t"))
    every.flushall()
    assert every.execute_command("RG.TRIGGER", "t") == [b"t"]


# ---- one server ----


def test_a_killed_server_has_what_it_said_ok_to(start_server: Callable[..., Server]) -> None:
    server = start_server("--appendonly", "yes", "--appendfsync", "always", module_args=FLOWS)
    with server.client() as r:
        r.execute_command("RG.PYEXECUTE", command("t"))
        number = ids(r)
    server.restart(signal.SIGKILL)
    with server.client() as r:
        assert ids(r) == number
        assert r.execute_command("RG.TRIGGER", "t", "again") == [b"t again"]
        r.execute_command("RG.PYEXECUTE", command("new"))
        assert len(set(ids(r))) == 2  # numbers of another run do not meet those of this one


def test_what_comes_while_a_source_is_executed_again_waits(start_server: Callable[..., Server], tmp_path: Path) -> None:
    slow, go = tmp_path / "slow", tmp_path / "go"
    server = start_server(module_args=FLOWS)
    source = f"import os, time\nwhile os.path.exists({str(slow)!r}) and not os.path.exists({str(go)!r}):\n    time.sleep(0.005)\n"
    with server.client() as r:
        r.execute_command("RG.PYEXECUTE", source + command("t") + "\n" + on_key("k*", "execute('INCR', 'n')", eventTypes=["set"]))
        slow.touch()
        r.execute_command("DEBUG", "RELOAD")
        assert {row["status"] for row in registrations(r)} == {b"restoring"}
        with server.client() as other:
            connection = other.connection_pool.get_connection()
            connection.send_command("RG.TRIGGER", "t", "waits")
            r.set("k", 1)
            wait_until(lambda: in_flight(r) == 2, "a trigger and an event that wait")
            go.touch()
            assert connection.read_response() == [b"t waits"]
        wait_until(lambda: r.get("n") == b"1", "the event")


def test_a_source_that_fails_the_second_time_sleeps_and_is_kept(start_server: Callable[..., Server], tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    server = start_server(module_args=FLOWS)
    source = f"import os\nassert not os.path.exists({str(flag)!r}), 'not now'\n"
    with server.client() as r:
        r.execute_command("RG.PYEXECUTE", source + command("moody"))
        r.execute_command("RG.PYEXECUTE", command("steady"))
        flag.touch()
        r.execute_command("DEBUG", "RELOAD")
        assert r.execute_command("RG.TRIGGER", "steady") == [b"steady"]
        wait_until(lambda: triggers(r)["moody"]["status"] == b"asleep", "the failure")
        assert b"not now" in triggers(r)["moody"]["lastError"]
        assert "could not be restored" in server.log()
        with pytest.raises(redis.ResponseError, match="could not be restored"):
            r.execute_command("RG.TRIGGER", "moody")
        flag.unlink()
        r.execute_command("DEBUG", "RELOAD")
        assert r.execute_command("RG.TRIGGER", "moody") == [b"moody"]


def test_a_source_that_registers_something_else_the_second_time(start_server: Callable[..., Server], tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    server = start_server(module_args=FLOWS)
    with server.client() as r:
        one_or_other = command("t").replace("'t'", f"'other' if os.path.exists({str(flag)!r}) else 't'")
        r.execute_command("RG.PYEXECUTE", "import os\n" + one_or_other + "\n" + command("same"))
        flag.touch()
        r.execute_command("DEBUG", "RELOAD")
        assert r.execute_command("RG.TRIGGER", "same") == [b"same"]
        assert {name: row["status"] for name, row in triggers(r).items()} == {"t": b"asleep", "same": b"live"}
        with pytest.raises(redis.ResponseError, match="subcommand not found"):
            r.execute_command("RG.TRIGGER", "other")


def test_saving_asks_no_python(start_server: Callable[..., Server]) -> None:
    """A flow that never ends holds the GIL most of the time; a child has none."""
    server = start_server(module_args=FLOWS)
    with server.client() as r, server.client() as other:
        r.execute_command(
            "RG.PYEXECUTE", "def spin(record):\n    while True:\n        pass\nGB('CommandReader').map(spin).register(trigger='spin')"
        )
        other.connection_pool.get_connection().send_command("RG.TRIGGER", "spin")
        wait_until(lambda: in_flight(r) == 1, "the flow")
        for _ in range(3):
            r.bgsave()
            wait_until(lambda: not r.info("persistence")["rdb_bgsave_in_progress"], "the child's end")
        assert r.info("persistence")["rdb_last_bgsave_status"] == "ok"
    server.restart()
    with server.client() as r:
        assert list(triggers(r)) == ["spin"]


# ---- servers with other settings ----


def writes_nothing_for_no_flows(r: redis.Redis) -> bool:
    """From Redis 7.2 on a module may have data beside keys and write nothing of it."""
    return tuple(int(n) for n in r.info("server")["redis_version"].split(".")[:2]) >= (7, 2)


#: the newest and the oldest: the one writes nothing for no flows, the other knows no such way
ENDS = [name for name in SERVERS if name in ("redis-8", "redis-6.2")] or list(SERVERS)


@pytest.mark.parametrize("name", ENDS)
def test_a_dump_with_flows_on_a_server_with_flows_no(start_server: Callable[..., Server], tmp_path: Path, name: str) -> None:
    """It reads them, runs nothing and, where the server can, saves them again."""
    options = {"binary": SERVERS[name], "directory": tmp_path}
    server = start_server(module_args=FLOWS, **options)
    with server.client() as r:
        r.execute_command("RG.PYEXECUTE", command("t") + "\n" + on_key("k*", "execute('INCR', 'n')", eventTypes=["set"]))
        kept = writes_nothing_for_no_flows(r)
        r.save()
    server.stop()
    off = start_server(**options)
    assert "flows are kept and not run" in off.log()
    with off.client() as r:
        r.set("k", 1)
        with pytest.raises(redis.ResponseError, match="unknown command"):
            r.execute_command("RG.TRIGGER", "t")
        r.save()
    off.stop()
    with start_server(module_args=FLOWS, **options).client() as r:
        assert r.get("n") is None
        if kept:
            assert r.execute_command("RG.TRIGGER", "t") == [b"t"]
        else:
            assert registrations(r) == []


@pytest.mark.parametrize("name", ENDS)
def test_a_server_without_flows_writes_what_one_without_the_module_reads(
    start_server: Callable[..., Server], tmp_path: Path, name: str
) -> None:
    """With FLOWS no anywhere, and with FLOWS yes where the server writes nothing for no flows."""
    options = {"binary": SERVERS[name], "directory": tmp_path}
    server = start_server(module_args=["FLOWS", "no"], **options)
    with server.client() as r:
        if writes_nothing_for_no_flows(r):
            server.close()
            server = start_server(module_args=FLOWS, **options)
    with server.client() as r:
        r.set("k", 1)
        if "yes" in server.module_args:
            r.execute_command("RG.PYEXECUTE", command("gone"))
            forget_all(r)
        r.save()
    server.stop()
    with start_server(load_module=False, **options).client() as r:
        assert r.get("k") == b"1"


def test_an_aof_with_flows_on_a_server_with_flows_no(start_server: Callable[..., Server], tmp_path: Path) -> None:
    options = ("--appendonly", "yes", "--aof-use-rdb-preamble", "no")
    server = start_server(*options, module_args=FLOWS, directory=tmp_path)
    with server.client() as r:
        r.execute_command("RG.PYEXECUTE", command("t"))
        r.set("k", 1)
        rewrite(r)
    server.stop()
    off = start_server(*options, directory=tmp_path)
    with off.client() as r:
        assert r.get("k") == b"1"
        rewrite(r)  # what is kept is written again
    off.stop()
    with start_server(*options, module_args=FLOWS, directory=tmp_path).client() as r:
        assert r.execute_command("RG.TRIGGER", "t") == [b"t"]


# ---- damage ----


def resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def damaged_words() -> list[list[bytes]]:
    source = command("t").encode()
    good = [b"id-1", b"default", b"0", source, b"0", b"1", b"id-2", b"CommandReader", b"0", b"4", b"trigger", b"t", b"mode", b"async"]
    made = [good[:n] for n in range(len(good))]
    made += [[*good, b"more"], [*good, *good]]
    for i in range(len(good)):
        for word in (b"", b"-1", b"1", b"3", b"9223372036854775807", b"18446744073709551616", b"1048577", b"x", b"\0", b"1" * 70000):
            if word != good[i]:
                made.append([*good[:i], word, *good[i + 1 :]])
    return made


def test_malformed_words_in_an_aof_make_no_flow(start_server: Callable[..., Server], tmp_path: Path) -> None:
    server = start_server("--appendonly", "yes", "--aof-use-rdb-preamble", "no", module_args=FLOWS, directory=tmp_path)
    server.stop(signal.SIGKILL)
    (log,) = [path for path in tmp_path.rglob("appendonly*") if path.is_file() and ".incr." in path.name] or [tmp_path / "appendonly.aof"]
    lines = [resp(b"AI.CONFIG", b"_FLOW", b"ADD", *words) for words in damaged_words()]
    lines += [resp(b"AI.CONFIG", b"_FLOW", *words) for words in ([], [b"DEL"], [b"DEL", b"nobody"], [b"MUL", b"x"])]
    log.write_bytes(b"".join(lines) + resp(b"SET", b"end", b"1"))
    server.start()
    with server.client() as r:
        assert r.get("end") == b"1"
        for row in registrations(r):  # words that differ and are well-formed: another id, user, source, trigger
            assert row["reader"] == b"CommandReader"
            assert (b"trigger" in dict(row["args"])) and len(dict(row["args"])) <= 2
            r.execute_command("RG.UNREGISTER", row["id"])
        r.execute_command("RG.PYEXECUTE", command("sound"))
        assert r.execute_command("RG.TRIGGER", "sound") == [b"sound"]


def test_a_damaged_rdb_is_refused_and_crashes_nothing(start_server: Callable[..., Server], tmp_path: Path) -> None:
    options = ("--rdbchecksum", "no", "--rdbcompression", "no")
    server = start_server(*options, module_args=FLOWS, directory=tmp_path)
    with server.client() as r:
        r.execute_command("RG.PYEXECUTE", command("t"))
        number = ids(r)[0].decode()
        r.save()
    server.stop()
    whole = (tmp_path / "dump.rdb").read_bytes()
    first = whole.index(number[:40].encode()) - 12
    last = whole.index(b"convertToStr") + 30
    rng = random.Random(7)
    counts = [i for i in range(first, last) if whole[i] < 0x20 and whole[i] != 0]
    refused = 0
    for at in rng.sample(counts, 3):
        (tmp_path / "dump.rdb").write_bytes(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(5))]) + whole[at + 1 :])
        with contextlib.suppress(AssertionError):
            start_server(*options, module_args=FLOWS, directory=tmp_path).stop(signal.SIGKILL)
        log = max(tmp_path.glob("server-*.log"), key=lambda path: path.stat().st_mtime).read_text(errors="replace")
        assert "REDIS BUG REPORT" not in log and not re.search("AddressSanitizer|runtime error", log)
        refused += "Could not load the flows" in log
    assert refused >= 1
