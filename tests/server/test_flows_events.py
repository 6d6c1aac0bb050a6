"""Keyspace events and streams: which ones a flow is told of, how many may wait, and that a flow is not told of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from registered import forget_all, in_flight, on_key, registrations
from servers import Server, wait_until


@pytest.fixture
def server(every_flows_server: Server) -> Server:
    return every_flows_server


@pytest.fixture
def r(server: Server) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client
        forget_all(client)
        wait_until(lambda: in_flight(client) == 0, "an empty flow queue")
        client.flushall()
    assert server.alive(), server.log()[-4000:]


NOTE = "execute('RPUSH', 'seen', record['key'] + ' ' + record['event'])"


def seen(r: redis.Redis, n: int) -> list[str]:
    """What flows noted, when it is `n` lines and nothing is under way."""
    wait_until(lambda: r.llen("seen") >= n and in_flight(r) == 0, f"{n} events, not {r.lrange('seen', 0, -1)}")
    return [line.decode() for line in r.lrange("seen", 0, -1)]


def test_a_flow_hears_of_keys_that_begin_with_its_prefix(r: redis.Redis) -> None:
    r.execute_command("RG.PYEXECUTE", on_key("doc:*", NOTE))
    for key in ("doc:1", "do", "other", "doc:", "adoc:1"):
        r.set(key, 1)
    assert sorted(seen(r, 2)) == ["doc: set", "doc:1 set"]


def test_a_prefix_without_a_star_is_one_key(r: redis.Redis) -> None:
    r.execute_command("RG.PYEXECUTE", on_key("doc", NOTE))
    for key in ("doc1", "do", "doc"):
        r.set(key, 1)
    assert seen(r, 1) == ["doc set"]


def test_a_flow_hears_of_the_events_that_it_names(r: redis.Redis) -> None:
    r.execute_command("RG.PYEXECUTE", on_key("k*", NOTE, eventTypes=["hset", "DEL", "expired", "rename_to"]))
    r.set("k1", 1)
    r.delete("k1")
    r.hset("k2", "f", 1)
    r.rename("k2", "k3")
    r.set("k4", 1, px=1)
    wait_until(lambda: r.get("k4") is None)
    assert sorted(seen(r, 4)) == ["k1 del", "k2 hset", "k3 rename_to", "k4 expired"]


def test_events_of_one_key_arrive_in_order(r: redis.Redis) -> None:
    r.execute_command("RG.PYEXECUTE", on_key("n*", NOTE))
    wanted = []
    for _ in range(10):
        r.set("n", 1)
        r.incr("n")
        r.delete("n")
        wanted += ["n set", "n incrby", "n del"]
    assert seen(r, 30) == wanted


def test_writes_in_transactions_scripts_and_by_this_module_are_events(r: redis.Redis) -> None:
    r.execute_command("RG.PYEXECUTE", on_key("t*", NOTE))
    with r.pipeline(transaction=True) as p:
        p.set("t1", 1)
        p.execute()
    r.eval("redis.call('SET', KEYS[1], 1)", 1, "t2")
    r.execute_command("AI.TENSORSET", "t3", "FLOAT", 1)
    assert sorted(seen(r, 3)) == ["t1 set", "t2 set", "t3 ai.tensorset"]


def test_a_flow_hears_of_its_own_database(r: redis.Redis, server: Server) -> None:
    with server.client(db=3) as third:
        third.execute_command("RG.PYEXECUTE", on_key("x*", NOTE))
        r.set("x0", 1)
        third.set("x3", 1)
        assert seen(third, 1) == ["x3 set"]
    assert r.llen("seen") == 0


def test_a_flow_is_not_told_of_what_it_did_itself(r: redis.Redis) -> None:
    """What another flow did is an event like any other."""
    r.execute_command("RG.PYEXECUTE", on_key("loop*", "execute('INCR', record['key'])"))
    r.execute_command("RG.PYEXECUTE", on_key("loop*", NOTE, eventTypes=["incrby"]))
    r.set("loop", 5)
    assert seen(r, 1) == ["loop incrby"]
    assert r.get("loop") == b"6"


def test_a_key_that_a_flow_finds_expired_is_an_event_for_it_too(r: redis.Redis) -> None:
    look = "(execute('GET', 'k:late') if record['event'] == 'set' else None, " + NOTE + ")"
    r.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    try:
        r.set("k:late", 1, px=1)
        r.execute_command("RG.PYEXECUTE", on_key("k:*", look, eventTypes=["set", "expired"]))
        r.execute_command("DEBUG", "SLEEP", 0.002)
        r.set("k:first", 1)
        assert sorted(seen(r, 2)) == ["k:first set", "k:late expired"]
    finally:
        r.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 1)


def test_a_failing_flow_is_counted_and_others_go_on(r: redis.Redis) -> None:
    r.execute_command("RG.PYEXECUTE", on_key("k*", "1 / 0"))
    r.execute_command("RG.PYEXECUTE", on_key("k*", NOTE))
    for i in range(5):
        r.set(f"k{i}", 1)
    assert len(seen(r, 5)) == 5
    failing, good = registrations(r)
    assert (failing["numTriggered"], failing["numSuccess"], failing["numFailures"]) == (5, 0, 5)
    assert b"division by zero" in failing["lastError"]
    assert (good["numTriggered"], good["numSuccess"], good["numFailures"]) == (5, 5, 0)


def test_events_beyond_the_queue_are_dropped_and_counted(r: redis.Redis, tmp_path: Path) -> None:
    go = tmp_path / "go"
    source = f"import os, time\ndef wait(record):\n    while not os.path.exists({str(go)!r}):\n        time.sleep(0.005)\n    {NOTE}\n"
    r.execute_command("RG.PYEXECUTE", source + "GB('KeysReader').foreach(wait).register(prefix='k*')")
    dropped = r.info("ai_flows")["ai_flow_events_dropped"]
    limit = r.config_get("ai.max-queue") and r.config_set("ai.max-queue", 4)
    n = 10 if limit else 0  # a server before 7.0 takes the limit as a load argument only
    for i in range(n):
        r.set(f"k{i}", 1)
    (row,) = registrations(r)
    assert r.info("ai_flows")["ai_flow_events_dropped"] - dropped == row["numAborted"] == max(0, n - 4)
    go.touch()
    assert len(seen(r, min(n, 4))) == min(n, 4)
    if limit:
        r.config_set("ai.max-queue", 65536)
        r.set("k", 1)
        assert seen(r, 5)[-1] == "k set"


# ---- streams ----

STREAM = "execute('RPUSH', 'seen', record['key'] + ' ' + record['value']['n'])"


def on_stream(prefix: str, body: str = STREAM, **options: object) -> str:
    return f"GB('StreamReader').foreach(lambda record: {body}).register(prefix={prefix!r}, **{options!r})"


def test_a_stream_is_dealt_with_in_order_and_emptied(r: redis.Redis) -> None:
    r.xadd("s:1", {"n": "before"})  # there when the flow is registered
    r.execute_command("RG.PYEXECUTE", on_stream("s:*"))
    for i in range(50):
        r.xadd("s:1", {"n": i})
        r.xadd("t:1", {"n": i})
    assert seen(r, 51) == ["s:1 before", *[f"s:1 {i}" for i in range(50)]]
    wait_until(lambda: r.xlen("s:1") == 0, "an empty stream")
    assert r.xlen("t:1") == 50


def test_notices_of_one_stream_do_not_pile_up(r: redis.Redis, tmp_path: Path) -> None:
    go = tmp_path / "go"
    source = f"import os, time\ndef wait(record):\n    while not os.path.exists({str(go)!r}):\n        time.sleep(0.005)\n    {STREAM}\n"
    r.execute_command("RG.PYEXECUTE", source + "GB('StreamReader').foreach(wait).register(prefix='s')")
    for i in range(200):
        r.xadd("s", {"n": i})
    assert in_flight(r) == 0  # notices take no place in the bounded queue
    go.touch()
    wait_until(lambda: r.xlen("s") == 0, "an empty stream")
    assert seen(r, 200) == [f"s {i}" for i in range(200)]
    (row,) = registrations(r)
    wait_until(lambda: registrations(r)[0]["numSuccess"] == 200, "the count")
    assert row["numFailures"] == row["numAborted"] == 0
