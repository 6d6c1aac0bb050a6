"""Flows on a real server with the real libraries: the worked example, company in batches, streams over a restart, and flows that fail."""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import MODELS, Server, wait_until
from wire import OK, Error, Status, Wire

WORKED_EXAMPLE = """
import redisAI

async def ModelRun(record):
    keys = ['a{1}', 'b{1}']
    tensors = redisAI.mgetTensorsFromKeyspace(keys)
    modelRunner = redisAI.createModelRunner('m{1}')
    redisAI.modelRunnerAddInput(modelRunner, 'a', tensors[0])
    redisAI.modelRunnerAddInput(modelRunner, 'b', tensors[1])
    redisAI.modelRunnerAddOutput(modelRunner, 'mul')
    res = await redisAI.modelRunnerRunAsync(modelRunner)
    redisAI.setTensorInKey('c{1}', res[0])

GB('CommandReader').map(ModelRun).register(trigger='ModelRun')
"""


@pytest.fixture
def wire(flow_server: Server) -> Iterator[Wire]:
    with Wire(flow_server.port) as wire:
        yield wire


def register(wire: Wire, source: str) -> None:
    reply = wire("RG.PYEXECUTE", textwrap.dedent(source))
    assert reply == OK, reply


def data(wire: Wire, number: int = 0) -> dict[str, Any]:
    """What RG.DUMPREGISTRATIONS says of a registration."""
    row = wire("RG.DUMPREGISTRATIONS")[number]
    fields = dict(zip(row[::2], row[1::2], strict=True))[b"RegistrationData"]
    return {name.decode(): value for name, value in zip(fields[::2], fields[1::2], strict=True)}


def store_product(wire: Wire, key: str, *options: Any) -> None:
    blob = (MODELS / "two_inputs.onnx").read_bytes()
    assert wire("AI.MODELSTORE", key, "ONNX", "CPU", *options, "BLOB", blob) == OK


def put(wire: Wire, key: str, *values: float) -> None:
    assert wire("AI.TENSORSET", key, "FLOAT", 1, len(values), "VALUES", *values) == OK


@pytest.mark.needs_torch
def test_the_worked_example(wire: Wire) -> None:
    assert wire("RG.PYEXECUTE", WORKED_EXAMPLE) == OK
    wire("AI.MODELSTORE", "m{1}", "TORCH", "CPU", "BLOB", (MODELS / "two_inputs.pt").read_bytes())
    for key in ("a{1}", "b{1}"):
        wire("AI.TENSORSET", key, "FLOAT", 2, 2, "VALUES", 2, 3, 2, 3)
    assert wire("RG.TRIGGER", "ModelRun") == [b"None"]
    assert wire("AI.TENSORGET", "c{1}", "VALUES") == [b"4", b"9", b"4", b"9"]


@pytest.mark.needs_torch
def test_scripts_run_from_flows(wire: Wire) -> None:
    script = "def add(tensors: List[Tensor], keys: List[str], args: List[str]):\n    return tensors[0] + tensors[1]\n"
    assert wire("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "add", "SOURCE", script) == OK
    register(
        wire,
        """
        import redisAI
        make = redisAI.createTensorFromValues
        async def f(record):
            x, y = make('FLOAT', [2], [1, 2]), make('FLOAT', [2], [10, 20])
            runner = redisAI.createScriptRunner('s', record[1])
            assert redisAI.scriptRunnerAddInput(runner, x) is None
            assert redisAI.scriptRunnerAddInputList(runner, [y]) is None
            assert redisAI.scriptRunnerAddOutput(runner) == 1
            first = await redisAI.scriptRunnerRunAsync(runner)
            dag = redisAI.createDAGRunner().Input('x', x).ScriptRun(name='s', func='add', inputs=['x', 'x'], outputs=['z']).TensorGet('z')
            second = await dag.Run()
            return str(first[0]), str(second[0])
        def g(record):
            runner = redisAI.createScriptRunner('s', 'add')
            redisAI.scriptRunnerAddInputList(runner, [make('FLOAT', [1], [3])] * 2)
            redisAI.scriptRunnerAddOutput(runner)
            return redisAI.scriptRunnerRun(runner)[0]
        GB('CommandReader').map(f).register(trigger='f')
        GB('CommandReader').map(g).register(trigger='g')
        """,
    )
    assert wire("RG.TRIGGER", "f", "add") == [b"('[11.0, 22.0]', '[2.0, 4.0]')"]
    assert wire("RG.TRIGGER", "g") == [b"[6.0]"]
    error = wire("RG.TRIGGER", "f", "nosuch")
    assert isinstance(error, Error) and "Exception: Function does not exist: nosuch" in error.text


@pytest.mark.needs_onnx
def test_a_dag_counts_the_keys_of_a_model(wire: Wire) -> None:
    store_product(wire, "m")
    register(
        wire,
        """
        import redisAI
        def f(record):
            redisAI.createDAGRunner().ModelRun(name='m', inputs=record[1].split(','), outputs=record[2].split(','))
        GB('CommandReader').map(f).register(trigger='f')
        """,
    )
    assert wire("RG.TRIGGER", "f", "a,b", "c") == [b"None"]
    for inputs, outputs, what in (("a", "c", "INPUTS"), ("a,b", "c,d", "OUTPUTS")):
        assert wire("RG.TRIGGER", "f", inputs, outputs).text.endswith(
            f"gears.error: Number of keys given as {what} does not match model definition"
        )


@pytest.mark.needs_onnx
def test_runs_of_many_flows_share_batches(flow_server: Server, wire: Wire) -> None:
    store_product(wire, "m", "BATCHSIZE", 64, "MINBATCHSIZE", 8, "MINBATCHTIMEOUT", 500)
    register(
        wire,
        """
        import redisAI
        async def f(record):
            runner = redisAI.createModelRunner('m')
            for _ in range(2):
                redisAI.modelRunnerAddInput(runner, 'x', redisAI.createTensorFromValues('FLOAT', [1, 2], [int(record[1]), 1]))
            redisAI.modelRunnerAddOutput(runner, 'c')
            return (await redisAI.modelRunnerRunAsync(runner))[0]
        GB('CommandReader').map(f).register(trigger='f')
        """,
    )
    replies: dict[int, Any] = {}

    def ask(n: int) -> None:
        with Wire(flow_server.port) as own:
            replies[n] = own("RG.TRIGGER", "f", n)

    asking = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert replies == {n: [b"[%.1f, 1.0]" % (n * n)] for n in range(16)}
    reply = wire("AI.INFO", "m")
    assert dict(zip(reply[::2], reply[1::2], strict=True))[b"calls"] == 16
    stats = wire("AI.INFO", "m", "STATS")
    assert dict(zip(stats[::2], stats[1::2], strict=True))[b"batches"] <= 4


def test_results_errors_and_statuses(wire: Wire) -> None:
    register(
        wire,
        """
        GB('CommandReader').flatmap(lambda r: ['+fine', '-ERR bad', 'x', ValueError('returned'), -1]).register(trigger='text')
        GB('CommandReader').flatmap(lambda r: [1, 1.5, None, ['a', [b'\\xff']]]).register(trigger='plain', convertToStr=False)
        GB('CommandReader').map(lambda r: 1 / 0).register(trigger='raise')
        """,
    )
    assert wire("RG.TRIGGER", "text") == [Status("fine"), Error("ERR bad"), b"x", b"returned", b"-1"]
    assert wire("RG.TRIGGER", "plain") == [1, b"1.5", None, [b"a", [b"\xff"]]]
    error = wire("RG.TRIGGER", "raise")
    assert error.text.startswith("ERR Traceback") and error.text.endswith("ZeroDivisionError: division by zero")
    assert wire("RG.TRIGGER", "nosuch") == Error("ERR subcommand not found")


def test_run_over_what_is_there(wire: Wire) -> None:
    for i in range(20):
        wire("HSET", f"h:{i}", "n", i)
    assert wire(
        "RG.PYEXECUTE", "GB().map(lambda r: int(r['value']['n'])).aggregate(0, lambda a, x: a + x, lambda a, x: a + x).run('h:*')"
    ) == [[b"190"], []]
    results, errors = wire("RG.PYEXECUTE", "GB().map(lambda r: 1 // int(r['value']['n'])).run('h:*')")
    assert len(results) == 19 and len(errors) == 1 and b"ZeroDivisionError" in errors[0]


def test_a_client_that_leaves_is_not_waited_for(flow_server: Server, wire: Wire) -> None:
    register(
        wire,
        """
        import time
        def f(record):
            execute('SET', 'begun', '1')
            while execute('GET', 'left') != '1':
                time.sleep(0.001)
            execute('SET', 'done', '1')
        GB('CommandReader').map(f).register(trigger='slow')
        """,
    )
    with Wire(flow_server.port) as leaving:
        leaving.send("RG.TRIGGER", "slow")
        wait_until(lambda: wire("GET", "begun") == b"1", "the flow")
    wire("SET", "left", "1")
    wait_until(lambda: wire("GET", "done") == b"1", "the flow's end")
    assert wire("RG.TRIGGER", "slow") == [b"None"]


def test_atomic_is_seen_as_one(flow_server: Server, wire: Wire) -> None:
    register(
        wire,
        """
        def f(record):
            for _ in range(200):
                with atomic():
                    execute('INCR', 'a')
                    execute('INCR', 'b')
        GB('CommandReader').foreach(f).register(trigger='both')
        """,
    )
    wire.send("RG.TRIGGER", "both")
    with Wire(flow_server.port) as other:
        seen = [other("MGET", "a", "b") for _ in range(200)]
    assert all(a == b for a, b in seen)
    wire.read()
    assert wire("MGET", "a", "b") == [b"200", b"200"]


def test_what_a_flow_prints_is_in_the_log(flow_server: Server, wire: Wire) -> None:
    register(wire, "def f(record):\n    log('said by the flow')\nGB('CommandReader').map(f).register(trigger='says')")
    wire("RG.TRIGGER", "says")
    wait_until(lambda: "said by the flow" in flow_server.log(), "the line")


def test_hashes_are_answered_as_they_are_written(wire: Wire) -> None:
    register(
        wire,
        """
        def f(record):
            execute('HSET', record['key'], 'length', len(record['value']['text']))
        GB().filter(lambda r: r['value']).foreach(f).register('doc:*', eventTypes=['hset'])
        """,
    )
    for i in range(200):
        wire("HSET", f"doc:{i}", "text", "x" * i)
    wire("HSET", "other", "text", "x")
    wait_until(lambda: data(wire)["numSuccess"] == 200, "200 events")
    assert [wire("HGET", f"doc:{i}", "length") for i in range(200)] == [b"%d" % i for i in range(200)]
    assert wire("HGET", "other", "length") is None


# ---- streams over a restart -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", ", trimStream=False"])
def test_a_stream_goes_on_after_a_restart_where_it_was(start_server: Callable[..., Server], tmp_path: Path, options: str) -> None:
    gate = tmp_path / "gate"
    server = start_server("--appendonly", "yes", "--appendfsync", "always", module_args=("FLOWS", "yes"))
    source = f"""
    import os, time
    def f(record):
        while record['value']['n'] == '5' and not os.path.exists({str(gate)!r}):
            time.sleep(0.01)
        execute('RPUSH', 'seen', record['value']['n'])
    GB('StreamReader').foreach(f).register('s:*'{options})
    """
    with Wire(server.port) as wire:
        register(wire, source)
        for i in range(10):
            wire("XADD", "s:1", "*", "n", i)
        wait_until(lambda: wire("LLEN", "seen") == 5, "five entries")
    server.stop()
    gate.touch()
    server.start()
    with Wire(server.port) as wire:
        wait_until(lambda: wire("LLEN", "seen") == 10, "the rest")
        assert wire("LRANGE", "seen", 0, -1) == [b"%d" % i for i in range(10)]
        wire("XADD", "s:1", "*", "n", 10)
        wait_until(lambda: wire("LLEN", "seen") == 11, "the newest")
        wait_until(lambda: wire("XLEN", "s:1") == (11 if options else 0), "the stream")


# ---- flows that do not end ---------------------------------------------------------------------------------------------------------------

LOOPS = {
    "plain": "def f(record):\n    while True: pass",
    "plain, calling": "def f(record):\n    while True: execute('GET', 'x')",
    "coroutine": "async def f(record):\n    while True: pass",
    "coroutine, logging": "import logging\nasync def f(record):\n    while True: logging.getLogger('x').debug('x')",
}


@pytest.fixture(scope="module")
def hasty() -> Iterator[Server]:
    server = Server(module_args=("FLOWS", "yes", "FLOWS_TIMEOUT", "300"))
    yield server
    server.close()


@pytest.mark.parametrize("function", LOOPS.values(), ids=LOOPS)
def test_a_flow_that_loops_is_ended_and_the_server_serves(hasty: Server, function: str) -> None:
    with Wire(hasty.port) as wire, Wire(hasty.port) as other:
        register(wire, f"{function}\nGB('CommandReader').map(f).register(trigger='loop')\nGB('CommandReader').register(trigger='echo')")
        wire.send("RG.TRIGGER", "loop")
        assert other("PING") == Status("PONG")
        assert wire.read() == Error("ERR the flow takes longer than 300 ms (FLOWS_TIMEOUT)")
        assert sorted(data(wire, number)["numFailures"] for number in (0, 1)) == [0, 1]
        assert wire("RG.TRIGGER", "echo") == [b"['echo']"]
        for row in wire("RG.DUMPREGISTRATIONS"):
            wire("RG.UNREGISTER", row[1])


def test_a_source_that_loops_registers_nothing(hasty: Server) -> None:
    with Wire(hasty.port) as wire:
        source = "GB('CommandReader').register(trigger='never')\nwhile True: pass"
        assert wire("RG.PYEXECUTE", source) == Error("ERR the flow takes longer than 300 ms (FLOWS_TIMEOUT)")
        assert wire("RG.DUMPREGISTRATIONS") == []
        assert wire("RG.TRIGGER", "never") == Error("ERR subcommand not found")
