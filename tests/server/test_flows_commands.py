"""RG.PYEXECUTE, RG.TRIGGER, RG.DUMPREGISTRATIONS, RG.UNREGISTER: what clients send and read, who may do what, and how much fits."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from conftest import echo_model
from registered import command, forget_all, in_flight, registrations, triggers, waiting_command, waits_for
from servers import Server, wait_until

OK = b"OK"
NO_BLOCKING = "can not run a non-sync execution inside a MULTI/LUA"


@pytest.fixture(scope="module")
def _flows_server() -> Iterator[Server]:
    server = Server(module_args=["FLOWS", "yes"])
    yield server
    server.close()


def cleaned(server: Server) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client
        forget_all(client)
        wait_until(lambda: in_flight(client) == 0, "an empty flow queue")
        client.flushall()
    assert server.alive(), server.log()[-4000:]


@pytest.fixture
def every(every_flows_server: Server) -> Iterator[redis.Redis]:
    yield from cleaned(every_flows_server)


@pytest.fixture
def server(_flows_server: Server) -> Server:
    return _flows_server


@pytest.fixture
def r(server: Server) -> Iterator[redis.Redis]:
    yield from cleaned(server)


# ---- registering and triggering ---------------------------------------------------------------------------------------------------------


def test_a_registered_trigger_gets_the_words_and_is_counted(every: redis.Redis) -> None:
    assert every.execute_command("RG.PYEXECUTE", command("greet")) == OK
    assert every.execute_command("RG.TRIGGER", "greet", "a", b"\xff\x00b") == [b"greet a \xff\x00b"]
    (row,) = registrations(every)
    assert re.fullmatch(rb"[0-9a-f]{40}-\d+", row["id"])
    assert (row["reader"], row["status"], row["mode"], row["user"]) == (b"CommandReader", b"live", b"async", b"default")
    assert (row["numTriggered"], row["numSuccess"], row["numFailures"], row["lastError"]) == (1, 1, 0, None)
    assert every.execute_command("RG.UNREGISTER", row["id"]) == OK
    assert registrations(every) == []
    with pytest.raises(redis.ResponseError, match="subcommand not found"):
        every.execute_command("RG.TRIGGER", "greet")
    with pytest.raises(redis.ResponseError, match="no such registration"):
        every.execute_command("RG.UNREGISTER", row["id"])


def test_a_flow_that_raises_is_one_error_and_is_counted(every: redis.Redis) -> None:
    every.execute_command("RG.PYEXECUTE", command("bad", "1 / 0"))
    with pytest.raises(redis.ResponseError, match="ZeroDivisionError: division by zero"):
        every.execute_command("RG.TRIGGER", "bad")
    row = triggers(every)["bad"]
    assert (row["numTriggered"], row["numSuccess"], row["numFailures"]) == (1, 0, 1)
    assert b"ZeroDivisionError" in row["lastError"]
    assert every.ping()


def test_a_source_that_raises_registers_nothing(every: redis.Redis) -> None:
    with pytest.raises(redis.ResponseError, match=r"NameError.*undefined"):
        every.execute_command("RG.PYEXECUTE", command("half") + "\nundefined")
    assert registrations(every) == []
    assert every.execute_command("RG.PYEXECUTE", command("half")) == OK  # the name is free


def test_a_trigger_is_registered_once(every: redis.Redis) -> None:
    every.execute_command("RG.PYEXECUTE", command("once"))
    for source in (command("once"), command("twice") + "\n" + command("twice")):
        with pytest.raises(redis.ResponseError, match="trigger already registered"):
            every.execute_command("RG.PYEXECUTE", source)
    assert list(triggers(every)) == ["once"]


def test_a_source_may_register_several_flows_that_go_one_by_one(every: redis.Redis) -> None:
    every.execute_command("RG.PYEXECUTE", command("one") + "\n" + command("two"))
    assert every.execute_command("RG.UNREGISTER", triggers(every)["one"]["id"]) == OK
    assert every.execute_command("RG.TRIGGER", "two") == [b"two"]
    assert list(triggers(every)) == ["two"]


def test_where_nobody_may_wait_a_trigger_is_refused(every: redis.Redis) -> None:
    every.execute_command("RG.PYEXECUTE", command("t"))
    transaction = every.pipeline(transaction=True)
    for words in (("RG.TRIGGER", "t"), ("RG.PYEXECUTE", "x = 1"), ("RG.TRIGGER", "nobody")):
        transaction.execute_command(*words)
    texts = [str(error) for error in transaction.execute(raise_on_error=False)]
    assert [NO_BLOCKING in text for text in texts] == [True, True, False]
    with pytest.raises(redis.ResponseError, match=NO_BLOCKING):
        every.eval("return redis.call('RG.TRIGGER', 't')", 0)
    with pytest.raises(redis.ResponseError, match="not allowed from script"):
        every.eval("return redis.call('RG.PYEXECUTE', 'x = 1')", 0)


def test_unblocking_replies_at_once_with_an_id(r: redis.Redis, tmp_path: Path) -> None:
    number = r.execute_command("RG.PYEXECUTE", waits_for(tmp_path / "go") + command("late"), "UNBLOCKING")
    assert re.fullmatch(rb"[0-9a-f]{40}-\d+", number)
    assert registrations(r) == []
    (tmp_path / "go").touch()
    wait_until(lambda: triggers(r), "the registration")
    assert r.execute_command("RG.TRIGGER", "late") == [b"late"]


def test_what_an_unblocking_source_does_wrong_is_in_the_log(r: redis.Redis, server: Server) -> None:
    number = r.execute_command("RG.PYEXECUTE", "raise KeyError('nobody waits')", "UNBLOCKING").decode()
    wait_until(lambda: f"source {number} failed" in server.log(), "a line in the log")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("RG.PYEXECUTE",), "wrong number of arguments"),
        (("RG.PYEXECUTE", "x = 1", "BLOCKING"), "knows UNBLOCKING and REQUIREMENTS"),
        (("RG.PYEXECUTE", "x = 1", "REQUIREMENTS"), "REQUIREMENTS names no package"),
        (("RG.PYEXECUTE", "x = 1", "REQUIREMENTS", "no-such-package-at-all"), "no-such-package-at-all"),
        (("RG.PYEXECUTE", " " * (1024 * 1024 + 1)), "larger than MAX_SCRIPT_BYTES"),
        (("RG.TRIGGER",), "wrong number of arguments"),
        (("RG.UNREGISTER",), "wrong number of arguments"),
        (("RG.DUMPREGISTRATIONS", "all"), "wrong number of arguments"),
    ],
)
def test_refusals(r: redis.Redis, words: tuple[str, ...], text: str) -> None:
    with pytest.raises(redis.ResponseError, match=text):
        r.execute_command(*words)


def test_a_model_runs_from_a_flow_and_is_counted(every: redis.Redis) -> None:
    every.execute_command("AI.MODELSTORE", "m{1}", "TORCH", "CPU", "BLOB", echo_model("add", 2))
    source = """
import redisAI
async def run(record):
    runner = redisAI.createModelRunner('m{1}')
    for values in ([1, 2], [10, 20]):
        redisAI.modelRunnerAddInput(runner, 'x', redisAI.createTensorFromValues('INT32', [2], values))
    redisAI.modelRunnerAddOutput(runner, 'y')
    (sum_,) = await redisAI.modelRunnerRunAsync(runner)
    redisAI.setTensorInKey('sum{1}', sum_)
    return redisAI.tensorToFlatList(sum_)
GB('CommandReader').map(run).register(trigger='sum')
"""
    assert every.execute_command("RG.PYEXECUTE", source) == OK
    assert every.execute_command("RG.TRIGGER", "sum") == [b"[11, 22]"]
    assert every.execute_command("AI.TENSORGET", "sum{1}", "VALUES") == [11, 22]
    assert every.execute_command("AI.INFO", "m{1}")[15] == 1


RUN = """
import redisAI
async def run(record):
    runner = redisAI.createModelRunner('m')
    redisAI.modelRunnerAddInput(runner, 'x', redisAI.createTensorFromValues('INT32', [1], [int(record[1])]))
    redisAI.modelRunnerAddOutput(runner, 'y')
    return redisAI.tensorToFlatList((await redisAI.modelRunnerRunAsync(runner))[0])
GB('CommandReader').map(run).register(trigger='run')
"""


def test_runs_of_flows_and_of_clients_share_batches(every: redis.Redis, every_flows_server: Server) -> None:
    every.execute_command("AI.MODELSTORE", "m", "TORCH", "CPU", "BATCHSIZE", 2, "MINBATCHSIZE", 2, "BLOB", echo_model())
    every.execute_command("AI.TENSORSET", "x{m}", "INT32", 1, "VALUES", 7)
    every.execute_command("RG.PYEXECUTE", RUN)
    with every_flows_server.client() as other:
        connection = other.connection_pool.get_connection()
        connection.send_command("RG.TRIGGER", "run", 5)
        wait_until(lambda: every.info("ai_queues")["ai_queue_CPU_length"] == 1, "the flow's run in the queue")
        assert every.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 1, "x{m}", "OUTPUTS", 1, "y{m}") == OK
        assert connection.read_response() == [b"[5]"]
    assert every.execute_command("AI.TENSORGET", "y{m}", "VALUES") == [7]
    stats = every.execute_command("AI.INFO", "m", "STATS")
    assert (stats[3], stats[5]) == (1, 2)  # batches, requests in them


def test_a_run_of_a_flow_ends_with_its_model_and_with_its_queue(r: redis.Redis, server: Server) -> None:
    r.execute_command("AI.MODELSTORE", "m", "TORCH", "CPU", "BATCHSIZE", 2, "MINBATCHSIZE", 2, "BLOB", echo_model())
    r.execute_command("RG.PYEXECUTE", RUN)
    with server.client() as other:
        connection = other.connection_pool.get_connection()
        connection.send_command("RG.TRIGGER", "run", 5)
        wait_until(lambda: r.info("ai_queues")["ai_queue_CPU_length"] == 1, "the flow's run in the queue")
        r.config_set("ai.max-queue", 1)
        try:
            with pytest.raises(redis.ResponseError, match=r"queue.* is full"):
                r.execute_command("RG.TRIGGER", "run", 6)
        finally:
            r.config_set("ai.max-queue", 65536)
        r.delete("m")  # what waits for company runs alone
        assert connection.read_response() == [b"[5]"]


def test_a_failing_model_fails_its_flow(r: redis.Redis) -> None:
    r.execute_command("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model("raise", text="ERR it does not fit"))
    r.execute_command("RG.PYEXECUTE", RUN)
    with pytest.raises(redis.ResponseError, match=r"Exception: .*it does not fit"):
        r.execute_command("RG.TRIGGER", "run", 1)
    assert r.execute_command("AI.INFO", "m")[17] == 1


# ---- off, or taken -----------------------------------------------------------------------------------------------------------------------


def test_without_flows_there_are_no_such_commands(start_server: Callable[..., Server]) -> None:
    with start_server().client() as c:
        assert c.execute_command("CONFIG", "GET", "ai.flows") in ({"ai.flows": "no"}, [b"ai.flows", b"no"], {b"ai.flows": b"no"})
        assert not any("flow" in name for name in c.info("everything"))
        with pytest.raises(redis.ResponseError, match="unknown command"):
            c.execute_command("RG.TRIGGER", "t")
        for words in (("ADD", "id", "", "0", "x", "0", "0"), ("DEL", "id")):
            with pytest.raises(redis.ResponseError, match="unsupported subcommand"):
                c.execute_command("AI.CONFIG", "_FLOW", *words)


RG = r"""
typedef int (*Get)(const char *, void *);
int RedisModule_OnLoad(void **ctx, void **argv, int argc) {
    void (*attributes)(void *, const char *, int, int);
    ((Get)ctx[0])("RedisModule_SetModuleAttribs", (void *)&attributes);
    attributes(ctx, "rg", 1, 1);
    return 0;
}
"""


def test_gears_that_is_loaded_first_keeps_its_commands(start_server: Callable[..., Server], tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler
    (tmp_path / "rg.c").write_text(RG)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "rg.so", tmp_path / "rg.c"], check=True)
    server = start_server("--loadmodule", str(tmp_path / "rg.so"), module_args=["FLOWS", "yes"])
    with server.client() as c:
        assert "AI flows are off" in server.log()
        with pytest.raises(redis.ResponseError, match="unknown command"):
            c.execute_command("RG.TRIGGER", "t")


# ---- rights ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def author(r: redis.Redis, server: Server) -> Iterator[redis.Redis]:
    """A client whose user may send sources and use keys a:*, nothing else."""
    r.execute_command("ACL", "SETUSER", "author", "on", ">secret", "resetkeys", "~a:*", "+rg.pyexecute", "+set", "+get")
    with server.client(username="author", password="secret") as client:
        yield client
    r.execute_command("ACL", "DELUSER", "author")


def test_a_flow_has_the_rights_of_who_registered_it_at_each_call(r: redis.Redis, author: redis.Redis) -> None:
    author.execute_command("RG.PYEXECUTE", command("put", "execute('SET', record[1], 'x')"))
    assert triggers(r)["put"]["user"] == b"author"
    assert r.execute_command("RG.TRIGGER", "put", "a:1") == [OK]
    with pytest.raises(redis.ResponseError, match="NOPERM"):
        r.execute_command("RG.TRIGGER", "put", "b:1")
    r.execute_command("ACL", "SETUSER", "author", "~b:*")
    assert r.execute_command("RG.TRIGGER", "put", "b:1") == [OK]
    r.execute_command("ACL", "SETUSER", "author", "-set")
    with pytest.raises(redis.ResponseError, match="NOPERM"):
        r.execute_command("RG.TRIGGER", "put", "a:2")
    r.execute_command("ACL", "DELUSER", "author")
    with pytest.raises(redis.ResponseError, match="NOPERM"):
        r.execute_command("RG.TRIGGER", "put", "a:2")
    assert sorted(r.keys()) == [b"a:1", b"b:1"]


def test_models_are_read_with_the_rights_of_who_registered_the_flow(r: redis.Redis, author: redis.Redis) -> None:
    for key in ("a:m", "b:m"):
        r.execute_command("AI.MODELSTORE", key, "TORCH", "CPU", "BLOB", echo_model("echo"))
    source = """
import redisAI
async def run(record):
    dag = redisAI.createDAGRunner().Input('x', redisAI.createTensorFromValues('FLOAT', [1], [1]))
    dag.ModelRun(name=record[1], inputs=['x'], outputs=['y']).TensorGet('y')
    return redisAI.tensorToFlatList((await dag.Run())[0])
GB('CommandReader').map(run).register(trigger='run')
"""
    r.execute_command("ACL", "SETUSER", "author", "+type", "+ai.modelget")
    author.execute_command("RG.PYEXECUTE", source)
    assert r.execute_command("RG.TRIGGER", "run", "a:m") == [b"[1.0]"]
    with pytest.raises(redis.ResponseError, match="NOPERM"):
        r.execute_command("RG.TRIGGER", "run", "b:m")


def test_who_may_trigger_needs_no_other_right(r: redis.Redis, server: Server) -> None:
    r.execute_command("RG.PYEXECUTE", command("count", "execute('INCR', 'n')"))
    r.execute_command("ACL", "SETUSER", "guest", "on", ">secret", "+rg.trigger")
    with server.client(username="guest", password="secret") as guest:
        assert guest.execute_command("RG.TRIGGER", "count") == [b"1"]
        for words in (("RG.PYEXECUTE", "x = 1"), ("RG.DUMPREGISTRATIONS",), ("RG.UNREGISTER", "x"), ("INCR", "n")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                guest.execute_command(*words)
    r.execute_command("ACL", "DELUSER", "guest")


def test_sources_are_dangerous_and_no_script_or_flow_sends_them(every: redis.Redis) -> None:
    (row,) = every.execute_command("COMMAND", "INFO", "rg.pyexecute").values()
    assert {"admin", "noscript"} <= {str(flag) for flag in row["flags"]}
    dangerous = {name.decode() for name in every.execute_command("ACL", "CAT", "dangerous")}
    names_categories = tuple(int(n) for n in every.info("server")["redis_version"].split(".")[:2]) >= (7, 2)
    assert {"rg.pyexecute", "rg.unregister", "rg.dumpregistrations"} & dangerous == (
        {"rg.pyexecute", "rg.unregister", "rg.dumpregistrations"} if names_categories else set()
    )
    assert "rg.trigger" not in dangerous
    for words in ("'RG.PYEXECUTE', 'x = 1'", "'RG.DUMPREGISTRATIONS'", "'RG.UNREGISTER', 'x'"):
        with pytest.raises(redis.ResponseError, match="not allowed from script"):
            every.execute_command("RG.PYEXECUTE", f"execute({words})")


# ---- bounds, clients that leave ----


def test_the_flow_queue_is_bounded(r: redis.Redis, server: Server, tmp_path: Path) -> None:
    r.execute_command("RG.PYEXECUTE", waiting_command("wait"))
    r.config_set("ai.max-queue", 2)
    clients = [server.client() for _ in range(2)]
    connections = [c.connection_pool.get_connection() for c in clients]
    try:
        for connection in connections:
            connection.send_command("RG.TRIGGER", "wait", str(tmp_path / "go"))
        wait_until(lambda: in_flight(r) == 2, "two triggers in flight")
        for words in (("RG.TRIGGER", "wait", "x"), ("RG.PYEXECUTE", "x = 1")):
            with pytest.raises(redis.ResponseError, match="the flow queue is full"):
                r.execute_command(*words)
        (tmp_path / "go").touch()
        for connection in connections:
            assert connection.read_response() == [b"done"]
    finally:
        r.config_set("ai.max-queue", 65536)
        for c in clients:
            c.close()


def test_a_client_that_leaves_is_forgotten_when_its_flow_ends(r: redis.Redis, server: Server, tmp_path: Path) -> None:
    r.execute_command("RG.PYEXECUTE", waiting_command("wait"))
    go = tmp_path / "go"
    leaving = server.client()
    connection = leaving.connection_pool.get_connection()
    connection.send_command("RG.TRIGGER", "wait", str(go))
    wait_until(lambda: in_flight(r) == 1, "the trigger in flight")
    connection.disconnect()
    leaving.close()
    wait_until(lambda: r.info("ai_runtime")["ai_jobs_disconnected"] >= 1, "the client's leave")
    go.touch()
    wait_until(lambda: in_flight(r) == 0, "the end of the flow")
    assert r.get("ended") == b"1"


def test_what_runs_when_its_flow_is_unregistered_ends_and_is_answered(r: redis.Redis, server: Server, tmp_path: Path) -> None:
    r.execute_command("RG.PYEXECUTE", waiting_command("wait"))
    with server.client() as other:
        connection = other.connection_pool.get_connection()
        connection.send_command("RG.TRIGGER", "wait", str(tmp_path / "go"))
        wait_until(lambda: in_flight(r) == 1, "the trigger in flight")
        assert r.execute_command("RG.UNREGISTER", triggers(r)["wait"]["id"]) == OK
        (tmp_path / "go").touch()
        assert connection.read_response() == [b"done"]
    assert registrations(r) == []
