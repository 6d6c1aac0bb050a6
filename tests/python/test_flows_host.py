"""Sources, triggers, steps and readers of flows, over a fake shim."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flowing import Flows, told
from servers import PATIENCE, wait_until

OK = ("reply", ("+", "OK"))


@pytest.fixture(scope="module")
def _flows() -> Flows:
    return Flows()


@pytest.fixture
def flows(_flows: Flows) -> Iterator[Flows]:
    yield _flows
    _flows.empty()


# ---- sources ----------------------------------------------------------------------------------------------------------------------------


def test_a_source_that_does_nothing_is_ok(flows: Flows) -> None:
    assert flows.execute("x = 1") == OK


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(:\n", ["SyntaxError"]),
        (
            "def f():\n    raise ValueError('no')\nf()\n",
            ["Traceback (most recent call last)", "line 2, in f", "raise ValueError('no')", "ValueError: no"],
        ),
        ("exit(3)", ["SystemExit: 3"]),
        ("GB('CommandReader').register()", ["gears.error: CommandReader: register(trigger=...) needs a name"]),
        ("GB('NoReader')", ["gears.error: no such reader: NoReader"]),
        ("GB('CommandReader').map(1)", ["map: an argument is to be a function, not int"]),
        ("GB('CommandReader').run()", ["CommandReader cannot be run, only registered"]),
        ("GB('PythonReader').register()", ["PythonReader cannot be registered, only run"]),
        ("GB('KeysReader').register(hook='x')", ["register() of KeysReader takes no hook"]),
        ("GB('KeysReader').run(where='x')", ["run() of KeysReader takes no where"]),
        ("GB('CommandReader').register(trigger='x', mode='later')", ["no such mode: later"]),
        ("GB('StreamReader').register(batch=0)", ["batch has to be a number, 1 or more"]),
        ("GB('StreamReader').register(onFailedPolicy='x')", ["onFailedPolicy has to be one of continue, abort, retry"]),
        ("GB('KeysReader').register(eventTypes='set')", ["eventTypes has to be a list of strings"]),
        ("GB('KeysReader').nosuchstep(1)", ["AttributeError: a builder has no step nosuchstep"]),
        ("GB('KeysReader').count(1)", ["TypeError", "too many positional arguments"]),
        ("execute('NOSUCH')", ["gears.error: No such file or directory"]),
        ("execute()", ["gears.error: a command needs a name"]),
        ("execute('SET', 'k', None)", ["gears.error: None cannot be sent to Redis"]),
        ("log('x', 'loud')", ["gears.error: no such log level: loud"]),
    ],
)
def test_what_a_source_raises_is_its_answer(flows: Flows, source: str, words: list[str]) -> None:
    kind, text = flows.execute(source)
    assert kind == "fail" and text.startswith("ERR ")
    assert [word for word in words if word not in text] == [], text
    assert "redisai_py/flows/host.py" not in text and "running.py" not in text


def test_a_source_that_fails_registers_nothing(flows: Flows) -> None:
    assert flows.execute("GB('CommandReader').register(trigger='a')\nraise ValueError")[0] == "fail"
    assert flows.host._flows == {}


def test_a_trigger_that_is_taken_is_refused(flows: Flows) -> None:
    flows.register("GB('CommandReader').register(trigger='a')")
    assert "gears.error: trigger already registered" in flows.execute("GB('CommandReader').register(trigger='a')")[1]


def test_sources_do_not_see_each_other(flows: Flows) -> None:
    flows.execute("import builtins\nsecret = 1\nexecute = None\n__builtins__['other'] = 2")
    assert (
        flows.execute(
            "assert 'secret' not in globals()\nassert execute is not None\ntry:\n    other\nexcept NameError:\n    pass\nelse:\n    1/0"
        )
        == OK
    )


def test_the_import_of_redisai_is_seen_by_the_source_alone(flows: Flows) -> None:
    assert (
        flows.execute("import redisAI, json\nimport redisAI as other\nassert other is redisAI\nassert not hasattr(json, 'redisAI')") == OK
    )
    assert flows.execute("def f():\n    from redisAI import createDAGRunner\n    return createDAGRunner()\nf()") == OK
    assert "redisAI" not in sys.modules
    with pytest.raises(ImportError):
        __import__("redisAI")


def test_a_flow_cannot_be_registered_by_a_flow_that_runs(flows: Flows) -> None:
    assert "flows are registered and run while their source runs" in flows.ask("GB('CommandReader').register(trigger='b')")[1]


def test_what_is_registered_is_told_to_the_shim(flows: Flows) -> None:
    flows.register("GB('StreamReader', desc='words').register('log:*', batch=3, duration=50, trimStream=False)")
    flows.register("GB().register(prefix='h:*', eventTypes=['HSET', 'del'], keyTypes=['hash'])")
    stream, keys = flows.shim.specs.values()
    assert stream == {
        "reader": "StreamReader",
        "mode": "async",
        "description": "words",
        "convertToStr": True,
        "prefix": "log:*",
        "batch": 3,
        "duration": 50,
        "onFailedPolicy": "continue",
        "onFailedRetryInterval": 1,
        "trimStream": False,
    }
    expected = {
        "reader": "KeysReader",
        "mode": "async",
        "description": None,
        "convertToStr": True,
        "prefix": "h:*",
        "events": ["hset", "del"],
    }
    assert keys == {**expected, "keyTypes": ["hash"], "readValue": True}


def test_requirements_are_looked_for_and_never_installed(flows: Flows) -> None:
    import numpy

    assert flows.execute("x = 1", argv=[b"numpy", f"numpy=={numpy.__version__}".encode(), b"numpy>=1.0"]) == OK
    _, text = flows.execute("x = 1", argv=[b"no-such-package-here>=2"])
    assert text.endswith("no-such-package-here>=2 is not installed in the server's Python; flows install nothing")
    _, text = flows.execute("x = 1", argv=[b"numpy==0.1"])
    assert text.endswith(f"numpy==0.1 is asked for; the server's Python has {numpy.__version__}")


def test_on_registered_is_called(flows: Flows) -> None:
    flows.register("GB('CommandReader').register(trigger='a', onRegistered=lambda: execute('SET', 'k', 'called'))")
    assert flows.keys == {b"k": b"called"}


# ---- run() ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "results"),
    [
        ("", [b"1", b"2", b"3"]),
        (".map(lambda x: x * 2)", [b"2", b"4", b"6"]),
        (".filter(lambda x: x != 2)", [b"1", b"3"]),
        (".flatmap(lambda x: [x] * x)", [b"1", b"2", b"2", b"3", b"3", b"3"]),
        (".flatmap(lambda x: -x)", [b"-1", b"-2", b"-3"]),
        (".foreach(lambda x: 7)", [b"1", b"2", b"3"]),
        (".accumulate(lambda a, x: x + (a or 10))", [b"16"]),
        (".filter(lambda x: False).accumulate(lambda a, x: x)", []),
        (".aggregate(0, lambda a, x: a + x, lambda a, x: a + x)", [b"6"]),
        (".aggregate([], lambda a, x: a + [x], lambda a, x: a + x)", [b"[1, 2, 3]"]),
        (".count()", [b"3"]),
        (".filter(lambda x: False).count()", [b"0"]),
        (".limit(2)", [b"1", b"2"]),
        (".limit(1, 1)", [b"2"]),
        (".collect().map(str)", [b"1", b"2", b"3"]),
    ],
)
def test_steps(flows: Flows, steps: str, results: list[bytes]) -> None:
    assert flows.execute(f"GB('PythonReader'){steps}.run(lambda: iter([1, 2, 3]))") == ("reply", [results, []])


def test_a_coroutine_step_of_a_run_is_awaited(flows: Flows) -> None:
    source = """
    import asyncio
    async def double(x):
        await asyncio.sleep(0)
        return x * 2
    GB('PythonReader').map(double).filter(lambda x: x > 2).map(lambda x: double(x)).run(lambda: [1, 2, 3])
    """
    assert flows.execute(source) == ("reply", [[b"8", b"12"], []])


def test_a_record_that_fails_leaves_the_others_alone(flows: Flows) -> None:
    kind, (results, errors) = flows.execute("GB('PythonReader').map(lambda x: 6 // x).run(lambda: [0, 1, 2])")
    assert (kind, results) == ("reply", [b"6", b"3"])
    assert len(errors) == 1 and "ZeroDivisionError" in errors[0]


def test_a_source_runs_one_flow(flows: Flows) -> None:
    assert "a source can run one flow only" in flows.execute("GB('KeysReader').run()\nGB('KeysReader').run()")[1]


def test_keys_are_read_with_their_values(flows: Flows) -> None:
    flows.keys.update({b"k:s": b"v", b"k:h": {b"f": b"\xff"}, b"k:l": [b"a", b"b"], b"other": b"x"})
    source = "GB().map(lambda r: (r['key'], r['event'], r['type'], r['value'])).run('k:*', convertToStr=False)"
    source = source.replace("'value'])", "'value'] if r['type'] != 'hash' else list(r['value'].items()))")
    _, (results, errors) = flows.execute(source)
    assert errors == []
    assert sorted(results) == [
        [b"k:h", None, b"hash", [[b"f", b"\xff"]]],
        [b"k:l", None, b"list", [b"a", b"b"]],
        [b"k:s", None, b"string", b"v"],
    ]


def test_other_readers_of_run(flows: Flows) -> None:
    flows.keys.update({b"k": b"v"})
    flows.shim.redis([b"XADD", b"s", b"a", b"1"])
    flows.shim.redis([b"XADD", b"s", b"b", b"2"])
    assert flows.execute("GB('KeysOnlyReader').run('k*')") == ("reply", [[b"k"], []])
    assert flows.execute("GB('KeysOnlyReader').run('gone', noScan=True)") == ("reply", [[b"gone"], []])
    entry = "{'key': 's', 'id': '2-0', 'value': {'b': '2'}}"
    assert flows.execute("GB('StreamReader').run('s*', fromId='1-0')") == ("reply", [[entry.encode()], []])


# ---- triggers ---------------------------------------------------------------------------------------------------------------------------


def test_a_trigger_gives_its_words_to_the_function(flows: Flows) -> None:
    number = flows.register("GB('CommandReader').map(lambda record: record).register(trigger='t')")
    assert flows.trigger(number, b"a", b"\xff") == ("reply", [b"['t', 'a', '\\udcff']"])
    assert flows.shim.counted == [(number, True, None)]


@pytest.mark.parametrize(
    ("expression", "as_text", "plain"),
    [
        ("'a'", b"a", b"a"),
        ("'+fine'", ("+", "fine"), ("+", "fine")),
        ("'-ERR no'", ("-", "ERR no"), ("-", "ERR no")),
        ("''", b"", b""),
        ("-5", b"-5", -5),
        ("1.5", b"1.5", 1.5),
        ("None", b"None", None),
        ("True", b"True", b"True"),
        ("b'\\xff'", b"b'\\xff'", b"\xff"),
        ("[1, ['a', None]]", b"[1, ['a', None]]", [1, [b"a", None]]),
        ("{'a': 1}", b"{'a': 1}", b"{'a': 1}"),
        ("ValueError('no')", b"no", b"no"),
        ("'\\udcff'", b"\xff", b"\xff"),
        ("'\\ud800'", b"\\ud800", b"\\ud800"),
    ],
)
def test_what_a_client_reads_of_a_result(flows: Flows, expression: str, as_text: Any, plain: Any) -> None:
    assert flows.ask(f"return {expression}") == ("reply", [as_text])
    assert flows.ask(f"return {expression}", convertToStr=False) == ("reply", [plain])
    assert flows.ask(f"return {expression}", asynchronous=True) == ("reply", [as_text])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_function_raises_is_the_answer(flows: Flows, asynchronous: bool) -> None:
    kind, text = flows.ask("raise ValueError('no')", asynchronous=asynchronous)
    assert kind == "fail"
    assert text.startswith("ERR Traceback (most recent call last):") and text.endswith("ValueError: no")
    assert "in f" in text and "raise ValueError('no')" in text
    assert "redisai_py" not in text
    (_, ok, error), *_ = flows.shim.counted
    assert (ok, error) == (False, text)
    assert any("failed: ValueError: no" in line for line in flows.shim.lines)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "statement", ["raise SystemExit(1)", "raise KeyboardInterrupt", "class E(Exception):\n    def __str__(self): 1/0\nraise E"]
)
def test_whatever_is_raised_is_answered(flows: Flows, statement: str, asynchronous: bool) -> None:
    assert flows.ask(statement, asynchronous=asynchronous)[0] == "fail"
    assert flows.ask("return 1", asynchronous=asynchronous) == ("reply", [b"1"])


def test_a_result_whose_text_raises_is_answered(flows: Flows) -> None:
    kind, text = flows.ask("class R:\n    def __str__(self): raise ValueError('none')\nreturn R()")
    assert kind == "fail" and "ValueError: none" in text


def test_coroutine_and_plain_steps_mix(flows: Flows) -> None:
    source = """
    import asyncio, threading
    async def on_loop(record):
        await asyncio.sleep(0)
        return [threading.current_thread().name]
    def on_pool(record):
        return record + [threading.current_thread().name]
    GB('CommandReader').map(on_loop).map(on_pool).map(lambda x: x).register(trigger='t')
    """
    number = flows.register(source)
    assert flows.trigger(number) == ("reply", [b"['ai-flow-loop', 'ai-flow']"])


def test_many_coroutines_run_at_a_time(flows: Flows) -> None:
    source = """
    import asyncio
    waiting = []
    async def meet(record):
        waiting.append(asyncio.get_running_loop().create_future())
        if len(waiting) == 50:
            for future in waiting:
                future.set_result(None)
        await waiting[-1] if len(waiting) < 50 else None
        return len(waiting)
    GB('CommandReader').map(meet).register(trigger='t')
    """
    number = flows.register(source)
    assert [told(call) for call in [flows.pull(number) for _ in range(50)]] == [("reply", [b"50"])] * 50


def test_a_flow_whose_source_is_not_there_says_so(flows: Flows) -> None:
    assert flows.trigger("r-none") == ("fail", "ERR the source of this flow could not be run again; the server's log says why")


def test_a_flow_that_is_dropped_keeps_nothing(flows: Flows) -> None:
    import linecache

    number = flows.register("GB('CommandReader').register(trigger='t')")
    file = flows.host._flows[number].source.file
    assert file in linecache.cache
    flows.drop(number)
    assert file not in linecache.cache


# ---- builtins ---------------------------------------------------------------------------------------------------------------------------


def test_execute_sends_words_and_returns_python_values(flows: Flows) -> None:
    body = """
    execute('SET', 'k', b'\\xff')
    execute('RPUSH', 'l', [1, 2.5], 'x')
    return [execute('GET', 'k'), execute('GET', 'none'), execute('INCR', 'n'), execute('LRANGE', 'l', 0, -1)]
    """
    assert flows.ask(body, convertToStr=False) == ("reply", [[b"\xff", None, 1, [b"1", b"2.5", b"x"]]])


def test_execute_raises_what_the_server_says(flows: Flows) -> None:
    flows.keys[b"h"] = {}
    _, text = flows.ask("execute('GET', 'h')")
    assert text.endswith("gears.error: WRONGTYPE Operation against a key holding the wrong kind of value")


def test_execute_works_for_the_registration(flows: Flows) -> None:
    number = flows.register("GB('CommandReader').foreach(lambda r: execute('GET', 'k')).register(trigger='t')")
    flows.trigger(number, user="bob", db=7)
    assert flows.shim.asked[-1] == ("bob", 7, [b"GET", b"k"], number)


def test_execute_follows_tasks_and_refuses_other_threads(flows: Flows) -> None:
    body = """
    import asyncio, threading
    await asyncio.create_task(asyncio.sleep(0, execute('SET', 'a', '1')))
    await asyncio.to_thread(execute, 'SET', 'b', '2')
    said = []
    def alone():
        try:
            execute('SET', 'c', '3')
        except Exception as error:
            said.append(str(error))
    thread = threading.Thread(target=alone)
    thread.start()
    thread.join()
    return said[0]
    """
    assert flows.ask(body, asynchronous=True) == ("reply", [b"this can be called inside a flow only"])
    assert flows.keys == {b"a": b"1", b"b": b"2"}


def test_atomic_runs_its_commands_at_the_end_together(flows: Flows) -> None:
    body = """
    with atomic():
        first = execute('INCR', 'n')
        with atomic():
            second = execute('INCR', 'n')
        try:
            first.value
        except Exception as error:
            early = str(error)
        inside = redisAI.createTensorFromValues('FLOAT', [1], [1])
        redisAI.setTensorInKey('x', inside)
    with atomic():
        pass
    return [first.value, second.value, early]
    """
    kind, value = flows.ask(body, convertToStr=False)
    assert (kind, value) == ("reply", [[1, 2, b"the commands of atomic() run at its end; there is no value before"]])
    assert [[argv[0] for argv in block] for block in flows.shim.transactions] == [[b"INCR", b"INCR", b"AI.TENSORSET"]]


def test_atomic_runs_nothing_when_its_block_raises(flows: Flows) -> None:
    assert flows.ask("with atomic():\n    execute('SET', 'k', 'v')\n    raise ValueError('no')")[0] == "fail"
    assert flows.ask("execute('SET', 'k', 'now')") == ("reply", [b"None"])
    assert flows.keys == {b"k": b"now"} and flows.shim.transactions == []


def test_atomic_raises_the_first_error_after_all_have_run(flows: Flows) -> None:
    flows.keys[b"h"] = {}
    body = """
    try:
        with atomic():
            wrong = execute('GET', 'h')
            right = execute('SET', 'k', 'v')
    except Exception as error:
        return [str(error), right.value]
    """
    assert flows.ask(body, convertToStr=False) == ("reply", [[b"WRONGTYPE Operation against a key holding the wrong kind of value", b"OK"]])


def test_log_writes_lines(flows: Flows) -> None:
    flows.ask("log('one\\ntwo\\0')\nlog(3, level='warning')\nlog('\\ud800')")
    assert flows.shim.lines == ["notice one", "notice two\\0", "warning 3", "notice \\ud800"]


def test_hashtag_is_of_the_lowest_slot(flows: Flows) -> None:
    from redisai_py.flows.source import tag_of

    assert flows.ask("return hashtag()") == ("reply", [tag_of(0).encode()])
    nodes = [[200, 300, [b"h", 1, b"me"]], [100, 150, [b"h", 2, b"other"]], [400, 500, [b"h", 1, b"me"], [b"h", 3, b"replica"]]]
    redis = flows.shim.redis
    redis._cluster = lambda what: b"me" if what == b"MYID" else nodes
    try:
        assert flows.ask("return hashtag()") == ("reply", [tag_of(200).encode()])
    finally:
        del redis._cluster


@pytest.mark.parametrize(("tag", "slot"), [("06S", 0), ("Qi", 1)])
def test_tags_have_their_slot(tag: str, slot: int) -> None:
    from binascii import crc_hqx

    from redisai_py.flows.source import tag_of

    assert crc_hqx(tag.encode(), 0) % 16384 == slot == crc_hqx(tag_of(slot).encode(), 0) % 16384


# ---- events of keys ---------------------------------------------------------------------------------------------------------------------


def test_an_event_brings_the_key_as_it_is_then(flows: Flows) -> None:
    number = flows.register("GB().foreach(lambda r: execute('SET', 'seen', str(r))).register('h:*')")
    flows.keys[b"h:1"] = {b"a": b"1"}
    assert told(flows.event(number, b"h:1")) == ("done", None)
    assert flows.keys[b"seen"] == b"{'key': 'h:1', 'event': 'hset', 'type': 'hash', 'value': {'a': '1'}}"
    assert told(flows.event(number, b"gone", "del")) == ("done", None)
    assert flows.keys[b"seen"] == b"{'key': 'gone', 'event': 'del', 'type': 'empty', 'value': None}"


def test_an_event_without_values_reads_nothing(flows: Flows) -> None:
    number = flows.register("GB().foreach(lambda r: execute('SET', 'seen', str(r))).register('h:*', readValue=False)")
    flows.keys[b"h:1"] = {b"a": b"1"}
    told(flows.event(number, b"h:1"))
    assert [argv[0] for _, _, argv, _ in flows.shim.asked] == [b"SET"]
    assert flows.keys[b"seen"] == b"{'key': 'h:1', 'event': 'hset', 'type': None, 'value': None}"


def test_keys_of_other_types_are_passed_over(flows: Flows) -> None:
    number = flows.register("GB().foreach(lambda r: execute('SET', 'seen', r['key'])).register('*', keyTypes=['hash'])")
    flows.keys[b"s"] = b"text"
    assert told(flows.event(number, b"s")) == ("done", None)
    assert b"seen" not in flows.keys


def test_what_an_event_raises_is_told(flows: Flows) -> None:
    number = flows.register("GB().foreach(lambda r: 1 / 0).register('*')")
    kind, text = told(flows.event(number, b"k"))
    assert kind == "done" and text.endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_the_events_of_a_key_keep_their_order(flows: Flows, kind: str) -> None:
    source = f"""
    import asyncio, random, time
    {kind} f(record):
        {"await asyncio.sleep" if kind != "def" else "time.sleep"}(random.random() / 500)
        execute('RPUSH', 'order:' + record['key'], record['event'])
    GB().foreach(f).register('*')
    """
    number = flows.register(source)
    events = [flows.event(number, key, f"{i:02}") for i in range(20) for key in (b"a", b"b", b"c")]
    assert {told(event) for event in events} == {("done", None)}
    for key in (b"a", b"b", b"c"):
        assert flows.keys[b"order:" + key] == [b"%02d" % i for i in range(20)]


def test_a_long_line_of_events_ends_with_its_flow(flows: Flows, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    source = f"""
    import os, time
    def f(record):
        while not os.path.exists({str(gate)!r}):
            time.sleep(0.001)
    GB().foreach(f).register('*', readValue=False)
    """
    number = flows.register(source)
    events = [flows.event(number, b"k") for _ in range(3000)]
    flows.drop(number)
    gate.touch()
    assert {told(event) for event in events} == {("done", None)}


def test_events_of_a_flow_that_is_gone_make_room(flows: Flows) -> None:
    kind, text = told(flows.event("r-none", b"k"))
    assert kind == "done" and "could not be run again" in text


# ---- streams ----------------------------------------------------------------------------------------------------------------------------

STREAM = "GB('StreamReader').foreach(lambda r: execute('RPUSH', 'seen', r['id'] + str(r['value']))).register('s:*'{})"


def seen(flows: Flows, number: int) -> list[bytes]:
    wait_until(lambda: len(flows.keys.get(b"seen", ())) >= number, "the entries")
    return list(flows.keys[b"seen"])


def test_entries_are_dealt_with_in_order_and_leave_the_stream(flows: Flows) -> None:
    number = flows.register(STREAM.format(""))
    for i in range(10):
        flows.entry(number, b"s:1", b"n", b"%d" % i)
    assert seen(flows, 10) == [b"%d-0{'n': '%d'}" % (i + 1, i) for i in range(10)]
    wait_until(lambda: not flows.keys[b"s:1"], "an empty stream")
    wait_until(lambda: flows.shim.counted == [(number, True, None)] * 10, "ten runs")


def test_entries_from_before_the_registration_count(flows: Flows) -> None:
    flows.shim.redis([b"XADD", b"s:1", b"n", b"0"])
    flows.shim.redis([b"XADD", b"other", b"n", b"0"])
    flows.register(STREAM.format(""))
    assert seen(flows, 1) == [b"1-0{'n': '0'}"]
    assert len(flows.keys[b"other"]) == 1


def test_a_batch_waits_until_it_is_full(flows: Flows) -> None:
    number = flows.register(STREAM.format(", batch=3"))
    for i in range(5):
        flows.entry(number, b"s:1", b"n", b"%d" % i)
    assert len(seen(flows, 3)) == 3
    wait_until(lambda: len(flows.keys[b"s:1"]) == 2, "the rest")
    flows.entry(number, b"s:1", b"n", b"5")
    assert len(seen(flows, 6)) == 6


def test_a_batch_that_has_waited_long_enough_runs_as_it_is(flows: Flows) -> None:
    number = flows.register(STREAM.format(", batch=100, duration=20"))
    started = time.monotonic()
    flows.entry(number, b"s:1", b"n", b"0")
    assert seen(flows, 1) == [b"1-0{'n': '0'}"]
    assert time.monotonic() - started >= 0.02


def test_a_stream_that_is_kept_is_gone_through_once(flows: Flows) -> None:
    number = flows.register(STREAM.format(", trimStream=False"))
    for i in range(3):
        flows.entry(number, b"s:1", b"n", b"%d" % i)
    assert len(seen(flows, 3)) == 3
    wait_until(lambda: flows.shim.redis.groups == {(b"s:1", b"ai-flow:" + number.encode()): b"3-0"}, "the position")
    assert len(flows.keys[b"s:1"]) == 3


FAILING = """
fails = dict()
def f(record):
    n = record['value']['n']
    fails[n] = fails.get(n, 0) + 1
    execute('RPUSH', 'seen', n)
    if n == '1' and fails[n] == 1:
        raise ValueError('first time')
GB('StreamReader').foreach(f).register('s:*'{})
"""


@pytest.mark.parametrize(
    ("policy", "expected", "left"),
    [
        ("", [b"0", b"1", b"2"], 0),
        (", onFailedPolicy='retry'", [b"0", b"1", b"1", b"2"], 0),
        (", onFailedPolicy='abort'", [b"0", b"1"], 2),
    ],
)
def test_what_becomes_of_a_batch_that_fails(flows: Flows, policy: str, expected: list[bytes], left: int) -> None:
    number = flows.register(FAILING.format(policy))
    for i in range(3):
        flows.entry(number, b"s:1", b"n", b"%d" % i)
    assert seen(flows, len(expected)) == expected
    wait_until(lambda: len(flows.keys[b"s:1"]) == left, "what is left")
    assert [ok for _, ok, _ in flows.shim.counted].count(False) == 1


# ---- restoring --------------------------------------------------------------------------------------------------------------------------


def test_a_source_that_is_restored_registers_and_does_nothing_else(flows: Flows) -> None:
    source = """
    import redisAI
    assert execute('SET', 'k', 'v') is None
    redisAI.setTensorInKey('x', redisAI.createTensorFromValues('FLOAT', [1], [1]))
    GB().run()
    GB('CommandReader').foreach(lambda r: execute('SET', 'k', 'v')).register(trigger='t')
    """
    number = flows.register(source, restoring=True)
    assert flows.keys == {} and flows.shim.asked == []
    flows.trigger(number)
    assert flows.keys == {b"k": b"v"}


def test_a_source_that_cannot_be_restored_is_told_and_logged(flows: Flows, caplog: pytest.LogCaptureFixture) -> None:
    kind, text = flows.execute("1 / 0", restoring=True)
    assert kind == "fail" and "ZeroDivisionError" in text
    wait_until(lambda: "could not be run again" in caplog.text, "the line")


# ---- the rest ---------------------------------------------------------------------------------------------------------------------------


def test_nothing_of_flows_is_imported_without_them() -> None:
    program = """
import sys
from types import SimpleNamespace
from redisai_py import engine
import threading
idle = threading.Event()
nothing = lambda *args: None
shim = SimpleNamespace(settings=lambda: {**options, "eager": []}, queues=list, released=list, next_overdue=idle.wait)
shim.next_message = shim.next_flow = shim.meter = shim.sandbox = nothing
import redisai_py.backends.base as base, inspect
options = {name: 1 for name, p in inspect.signature(base.Settings).parameters.items() if p.default is p.empty}
engine.build(shim)
assert not [name for name in sys.modules if name.startswith("redisai_py.flows") or name == "asyncio"], sys.modules
names = {thread.name for thread in threading.enumerate()}
assert not [name for name in names if "flow" in name or "clock" in name], names
options.update(flows=True, flows_timeout_ms=1)
engine.build(shim)
assert "redisai_py.flows.host" in sys.modules
assert {"ai-flow", "ai-flow-loop", "ai-clock"} <= {thread.name for thread in threading.enumerate()}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr


def test_a_broken_message_does_not_end_the_host(flows: Flows, caplog: pytest.LogCaptureFixture) -> None:
    flows.shim.post(object())
    assert flows.ask("return 1") == ("reply", [b"1"])
    assert any(thread.name == "ai-flows" for thread in threading.enumerate())
