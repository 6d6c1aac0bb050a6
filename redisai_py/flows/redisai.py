"""`import redisAI` inside a flow: tensors, runners of models and scripts, and DAGs, as RedisGears' Python has them.

Everything crosses as commands: tensors are read and written by AI.TENSORGET and AI.TENSORSET, runs are plans in the grammar of
AI.DAGEXECUTE. So rights, replication, batching, limits and statistics are those of the commands, and nothing here knows how a model is run.
Error texts are those that scripts compare; names are those that they call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from types import ModuleType
from typing import Any

import numpy as np

from ..tensor import DTYPES, WIRE_NAMES, to_array
from .server import Run, Server
from .threads import Promise
from .values import GearsError, bytes_of, text_of

NOT_MADE = "Failed creating tensor, make sure you put the right data type."
WRONG_LENGTH = "ERR data length does not match tensor shape and type"
OTHER_SHARD = "Given key is not in the current shard"
NO_SUCH_SLOT = "slot that this node does not serve"  # part of the shim's text

Array = np.ndarray[Any, Any]


def fail(text: str) -> GearsError:
    return GearsError(text)


def arity(number: int, name: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Counts the arguments as the original does. `name`: what it calls the function in its error, where that is another."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def counted(self: Any, *args: Any) -> Any:
            if len(args) != number:
                raise fail(f"Wrong number of arguments given to {name or function.__name__}")
            return function(self, *args)

        return counted

    return wrap


def text(value: Any, otherwise: str) -> bytes:
    if not isinstance(value, str):
        raise fail(otherwise)
    return bytes_of(value)


def items(value: Any, otherwise: str) -> list[Any]:
    try:
        return list(value)
    except TypeError:
        raise fail(otherwise) from None


# ---- tensors ----------------------------------------------------------------------------------------------------------------------------


class PyTensor:
    """A tensor: a C-contiguous array of one of the ten dtypes; bytes objects for STRING."""

    __slots__ = ("array",)

    def __init__(self, array: Array) -> None:
        self.array = array

    @property
    def dtype(self) -> str:
        return "STRING" if self.array.dtype == object else WIRE_NAMES[self.array.dtype]

    def flat(self) -> list[Any]:
        values = self.array.ravel()
        if self.array.dtype == object:
            return [text_of(value) for value in values]
        return list(values.astype(np.uint8).tolist() if values.dtype == np.bool_ else values.tolist())

    def blob(self) -> bytes:
        return b"".join(value + b"\0" for value in self.array.ravel()) if self.array.dtype == object else self.array.tobytes()

    def words(self) -> list[bytes]:
        """As AI.TENSORSET takes it after the key."""
        return [self.dtype.encode(), *(b"%d" % dim for dim in self.array.shape), b"BLOB", self.blob()]

    def __str__(self) -> str:
        return repr(self.flat())


def _tensor(value: Any, kind: str = "PyTensor") -> PyTensor:
    if not isinstance(value, PyTensor):
        raise fail(f"Given argument is not of type {kind}")
    return value


def _shape(type_: Any, dims: Any) -> tuple[str, tuple[int, ...]]:
    name = text_of(text(type_, "type argument must be a string")).upper()
    shape = items(dims, "dims argument must be iterable")
    if not all(isinstance(dim, int) for dim in shape):
        raise fail("dims arguments must be long")
    if (name not in DTYPES and name != "STRING") or len(shape) > 64 or any(dim < 0 for dim in shape):
        raise fail(NOT_MADE)
    return name, tuple(int(dim) for dim in shape)


def _length(shape: Sequence[int]) -> int:
    length = 1
    for dim in shape:
        length *= dim
    return length


def _strings(values: Sequence[bytes], shape: tuple[int, ...]) -> PyTensor:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return PyTensor(array.reshape(shape))


def _number(value: Any, name: str) -> Any:
    """A number as the dtype holds it."""
    if not isinstance(value, int | float | np.number):
        raise fail("values arguments must be double")
    if name in ("FLOAT", "DOUBLE"):
        return float(value)
    low, high = (0, 1) if name == "BOOL" else (np.iinfo(DTYPES[name]).min, np.iinfo(DTYPES[name]).max)
    if not low <= value <= high or int(value) != value:
        raise fail(f"ERR {value} is no value of a tensor of type {name}")
    return int(value)


def from_values(name: str, shape: tuple[int, ...], values: list[Any]) -> PyTensor:
    if len(values) != _length(shape):
        raise fail(f"ERR {_length(shape)} values make a tensor of this shape, not {len(values)}")
    if name != "STRING":
        return PyTensor(np.array([_number(value, name) for value in values], dtype=DTYPES[name]).reshape(shape))
    if not all(isinstance(value, str | bytes) and "\0" not in text_of(_bytes(value)) for value in values):
        raise fail("values arguments must be strings without NUL")
    return _strings([_bytes(value) for value in values], shape)


def _bytes(value: str | bytes) -> bytes:
    return bytes_of(value) if isinstance(value, str) else value


def from_blob(name: str, shape: tuple[int, ...], blob: bytes) -> PyTensor:
    if name == "STRING":
        parts = blob.split(b"\0")
        if parts[-1] or len(parts) - 1 != _length(shape):
            raise fail(WRONG_LENGTH)
        return _strings(parts[:-1], shape)
    dtype = DTYPES[name]
    if len(blob) != _length(shape) * dtype.itemsize:
        raise fail(WRONG_LENGTH)
    if name == "BOOL" and blob.strip(b"\0\1"):
        raise fail(NOT_MADE)
    return PyTensor(np.frombuffer(blob, dtype=dtype).reshape(shape))


#: begin of an error of AI.TENSORSET and AI.TENSORGET -> what the functions say
_SETTING = {"WRONGTYPE": "ERR Key is already set with non tensor values."}
_GETTING = {"WRONGTYPE": "ERR key is not a tensor", "ERR tensor key is empty": "ERR tensor key is empty"}


def _mapped(error: str, texts: dict[str, str]) -> GearsError:
    if NO_SUCH_SLOT in error:
        return fail(OTHER_SHARD)
    return fail(next((told for begin, told in texts.items() if error.startswith(begin)), error))


def _store(server: Server, key: bytes, tensor: PyTensor) -> None:
    try:
        server.execute("AI.TENSORSET", key, *tensor.words())
    except GearsError as error:
        raise _mapped(str(error), _SETTING) from None


def _load(server: Server, *keys: bytes) -> list[PyTensor]:
    commands = [[b"AI.TENSORGET", key, b"META", b"BLOB"] for key in keys]
    replies = server.read_all(commands) if len(commands) > 1 else [server.read(*command) for command in commands]
    return [_tensor_of(reply) for reply in replies]


def _tensor_of(reply: Any) -> PyTensor:
    if (error := getattr(reply, "error_text", None)) is not None:
        raise _mapped(error, _GETTING)
    _, dtype, _, shape, _, blob = reply
    return from_blob(text_of(dtype), tuple(shape), blob)


# ---- runs -------------------------------------------------------------------------------------------------------------------------------


class Ops:
    """A plan in the making: tensors that are loaded, ops, and how many tensors it gives."""

    def __init__(self) -> None:
        self.loaded: dict[bytes, PyTensor] = {}
        self.ops: list[list[bytes]] = []

    def add(self, *op: bytes) -> None:
        self.ops.append(list(op))

    def argv(self) -> list[bytes]:
        head = [b"LOAD", b"%d" % len(self.loaded), *self.loaded] if self.loaded else [b"ROUTING", b"-"]  # one of them has to be there
        return [b"AI.DAGEXECUTE", *head, *(word for op in self.ops for word in (b"|>", *op))]

    def start(self, server: Server) -> Run:
        """Raises GearsError where the plan is refused."""
        try:
            return server.start(self.argv(), [tensor.array for tensor in self.loaded.values()])
        except ValueError as error:
            raise fail(str(error)) from None


def _run_op(command: bytes, *what: bytes, inputs: Iterable[bytes], outputs: Iterable[bytes]) -> list[bytes]:
    into, out = list(inputs), list(outputs)
    return [command, *what, b"INPUTS", b"%d" % len(into), *into, b"OUTPUTS", b"%d" % len(out), *out]


class Runner:
    """A model or script with its inputs, to be run once. Their names are ignored, as in the original: the order counts."""

    def __init__(self, *op: bytes) -> None:
        self._op = op
        self._inputs: list[PyTensor] = []
        self._outputs = 0
        self.valid = True

    def add_input(self, tensor: PyTensor) -> None:
        self._inputs.append(tensor)

    def add_output(self) -> None:
        self._outputs += 1

    def start(self, server: Server) -> Run:
        self.valid = False
        plan = Ops()
        plan.loaded = {b"i%d" % i: tensor for i, tensor in enumerate(self._inputs)}
        outputs = [b"o%d" % i for i in range(self._outputs)]
        plan.ops = [_run_op(*self._op, inputs=plan.loaded, outputs=outputs), *([b"AI.TENSORGET", name, b"META"] for name in outputs)]
        return plan.start(server)


class PyGraphRunner(Runner):
    """What createModelRunner gives."""


class PyTorchScriptRunner(Runner):
    """What createScriptRunner gives."""


def _valid(runner: Any, kind: type[Runner]) -> Any:
    if not isinstance(runner, kind):
        raise fail(f"Given argument is not of type {kind.__name__}")
    if not runner.valid:
        raise fail(f"{kind.__name__} is invalid")
    return runner


def _tensors(outputs: Sequence[Any]) -> list[PyTensor]:
    return [PyTensor(to_array(output)) for output in outputs if output is not None]


class Tensors:
    """A run, to be awaited for a list of PyTensor. Raises a plain Exception there, also for what was refused at once."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __await__(self) -> Any:
        return _tensors((yield from self._run.__await__()))


def _awaitable(runner: Runner, server: Server) -> Tensors:
    try:
        return Tensors(runner.start(server))
    except GearsError as error:
        refused = Promise()
        refused.give(((), str(error)))
        return Tensors(Run(refused))


# ---- DAGs -------------------------------------------------------------------------------------------------------------------------------

_OPS = (b"AI.MODELEXECUTE", b"AI.SCRIPTEXECUTE", b"AI.TENSORSET", b"AI.TENSORGET")
_SHOW = {b"AI.MODELEXECUTE": "AI.MODELGET", b"AI.SCRIPTEXECUTE": "AI.SCRIPTGET"}
INVALID = "PyDAGRunner is invalid"
NAME = "Tensor name argument must be a string"
_ABSENT: Any = object()


class PyDAGRunner:
    """Ops over named tensors, run once. Each method gives the object back, so that calls chain."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._plan = Ops()
        self._valid = True

    def _check(self, args: Sequence[Any], number: int, wrong: str) -> None:
        if not self._valid:
            raise fail(INVALID)
        if len(args) != number:
            raise fail(wrong)

    def Input(self, *args: Any) -> PyDAGRunner:  # noqa: N802
        """Input(name, tensor). The first under a name counts."""
        self._check(args, 2, "Wrong number of args to DAG load input")
        self._plan.loaded.setdefault(_name(args[0], NAME), _tensor(args[1], "PyTensorType"))
        return self

    def TensorSet(self, *args: Any) -> PyDAGRunner:  # noqa: N802
        """TensorSet(name, tensor)"""
        self._check(args, 2, "Wrong number of args to TensorSet op")
        name = _name(args[0], NAME)
        self._plan.add(b"AI.TENSORSET", name, *_tensor(args[1], "PyTensorType").words())
        return self

    def TensorGet(self, *args: Any) -> PyDAGRunner:  # noqa: N802
        """TensorGet(name): one more tensor in what Run gives."""
        self._check(args, 1, "Wrong number of args to TensorSet op")  # the original's words
        self._plan.add(b"AI.TENSORGET", _name(args[0], NAME), b"META")
        return self

    def ModelRun(self, *, name: Any = _ABSENT, inputs: Any = _ABSENT, outputs: Any = _ABSENT) -> PyDAGRunner:  # noqa: N802
        self._check((), 0, "")
        if name is _ABSENT:
            raise fail("Model key name was not given")
        key = text(name, "Model name argument must be a string")
        if inputs is _ABSENT:
            raise fail("Must specify model inputs")
        into = _names(inputs, "Model inputs must be iterable", "Input name must be a string")
        if outputs is _ABSENT:
            raise fail("Must specify model outputs")
        out = _names(outputs, "Model outputs must be iterable", "Output name must be a string")
        shown = _shown(self._server, b"AI.MODELEXECUTE", key)
        for names, word in ((into, "inputs"), (out, "outputs")):
            if shown.get(word) and len(shown[word]) != len(names):
                raise fail(f"Number of keys given as {word.upper()} does not match model definition")
        self._plan.ops.append(_run_op(b"AI.MODELEXECUTE", key, inputs=into, outputs=out))
        return self

    def ScriptRun(self, *, name: Any = _ABSENT, func: Any = _ABSENT, inputs: Any = (), outputs: Any = ()) -> PyDAGRunner:  # noqa: N802
        self._check((), 0, "")
        if name is _ABSENT:
            raise fail("Script key name was not given")
        key = text(name, "Script name argument must be a string")
        if func is _ABSENT:
            raise fail("Function name was not given")
        function = text(func, "Function name argument must be a string")
        into = _names(inputs, "Script inputs must be iterable", "Input name must be a string")
        out = _names(outputs, "Script outputs must be iterable", "Output name must be a string")
        _shown(self._server, b"AI.SCRIPTEXECUTE", key)
        self._plan.ops.append(_run_op(b"AI.SCRIPTEXECUTE", key, function, inputs=into, outputs=out))
        return self

    def OpsFromString(self, *args: Any) -> PyDAGRunner:  # noqa: N802
        """OpsFromString("|> AI... |> AI..."), split at single spaces. All of its ops are added, or none."""
        self._check(args, 1, "Wrong number of args")
        tokens = text(args[0], "ops argument must be a string").split(b" ")
        if tokens[0] != b"|>":
            raise fail("DAG op should start with: '|>' ")
        ops: list[list[bytes]] = []
        for token in tokens:
            if token == b"|>":
                ops.append([])
            else:
                ops[-1].append(token)
        for op in ops:
            command = op[0].upper() if op else b""
            if command not in _OPS:
                raise fail("Unsupported command within DAG")
            if command in _SHOW and len(op) > 1:
                _shown(self._server, command, op[1])
        self._plan.ops.extend(ops)
        return self

    def Run(self, *args: Any) -> Tensors:  # noqa: N802
        """Something to await: one PyTensor per TensorGet, in their order."""
        self._check(args, 0, "Wrong number of args")
        if not self._plan.ops:
            raise fail("ERR DAG is empty")
        self._valid = False
        return Tensors(self._plan.start(self._server))


def _name(value: Any, otherwise: str) -> bytes:
    name = text(value, otherwise)
    if name == b"|>":
        raise fail("ERR |> parts the ops of a DAG and is no name")
    return name


def _names(value: Any, not_iterable: str, not_text: str) -> list[bytes]:
    return [_name(name, not_text) for name in items(value, not_iterable)]


def _shown(server: Server, command: bytes, key: bytes) -> dict[str, Any]:
    """What AI.MODELGET and AI.SCRIPTGET say of a key. Nothing when the user may not ask: then the run itself will tell."""
    reply = server.read(_SHOW[command], key, "META")
    error = getattr(reply, "error_text", None)
    if error is not None and error.startswith("NOPERM"):
        return {}
    if error is not None:
        raise fail(OTHER_SHARD if NO_SUCH_SLOT in error else error)
    return {text_of(name): value for name, value in zip(reply[::2], reply[1::2], strict=True)}


# ---- the module -------------------------------------------------------------------------------------------------------------------------


class Functions:
    """The functions of the module, as methods: `server` is what they share."""

    def __init__(self, server: Server) -> None:
        self._server = server

    # tensors

    @arity(3)
    def createTensorFromValues(self, type_: Any, dims: Any, values: Any) -> PyTensor:  # noqa: N802
        """createTensorFromValues(type, dims, values): numbers in row-major order, as many as the shape has; str for STRING."""
        name, shape = _shape(type_, dims)
        return from_values(name, shape, items(values, "values argument must be iterable"))

    @arity(3)
    def createTensorFromBlob(self, type_: Any, dims: Any, blob: Any) -> PyTensor:  # noqa: N802
        """createTensorFromBlob(type, dims, blob): bytes as AI.TENSORSET takes them."""
        name, shape = _shape(type_, dims)
        try:
            view = memoryview(blob)
        except TypeError:
            raise fail("blob argument must be bytes, byte array or a buffer") from None
        if not view.c_contiguous:
            raise fail("Error getting buffer info.")
        return from_blob(name, shape, bytes(view))

    @arity(2)
    def setTensorInKey(self, key: Any, tensor: Any) -> None:  # noqa: N802
        _store(self._server, text(key, "key name argument must be a string"), _tensor(tensor))

    @arity(1, "msetTensorInKeyspace")
    def msetTensorsInKeyspace(self, tensors: Any) -> None:  # noqa: N802
        if not isinstance(tensors, dict):
            raise fail("Given argument is not of type PyDict")
        pairs = [(text(key, "key name argument must be a string"), _tensor(tensor)) for key, tensor in tensors.items()]
        for key, tensor in pairs:
            _store(self._server, key, tensor)

    @arity(1)
    def getTensorFromKey(self, key: Any) -> PyTensor:  # noqa: N802
        (tensor,) = _load(self._server, text(key, "key name argument must be a string"))
        return tensor

    @arity(1, "getTensorsFromKeyspace")
    def mgetTensorsFromKeyspace(self, keys: Any) -> list[PyTensor]:  # noqa: N802
        names = [text(key, "key name argument must be a string") for key in items(keys, "keys argument must be iterable")]
        return _load(self._server, *names)

    @arity(1)
    def tensorToFlatList(self, tensor: Any) -> list[Any]:  # noqa: N802
        return _tensor(tensor).flat()

    @arity(1)
    def tensorGetDataAsBlob(self, tensor: Any) -> bytearray:  # noqa: N802
        return bytearray(_tensor(tensor).blob())

    @arity(1)
    def tensorGetDims(self, tensor: Any) -> tuple[int, ...]:  # noqa: N802
        return tuple(_tensor(tensor).array.shape)

    # models

    def _check_type(self, key: bytes, kind: bytes, word: str) -> None:
        """The type of a key, where the user may ask for it; where not, the run will tell."""
        reply = self._server.read("TYPE", key)
        error = getattr(reply, "error_text", "")
        if NO_SUCH_SLOT in error:
            raise fail(OTHER_SHARD)
        if not error and reply != kind:
            raise fail(f"given key do not contain RedisAI {word}")

    @arity(1)
    def createModelRunner(self, key: Any) -> PyGraphRunner:  # noqa: N802
        name = text(key, "key argument must be a string")
        self._check_type(name, b"AI__MODEL", "model")
        return PyGraphRunner(b"AI.MODELEXECUTE", name)

    @arity(3)
    def modelRunnerAddInput(self, runner: Any, name: Any, tensor: Any) -> int:  # noqa: N802
        graph = _valid(runner, PyGraphRunner)
        text(name, "input name argument must be a string")
        graph.add_input(_tensor(tensor, "PyTensorType"))
        return 1

    @arity(2)
    def modelRunnerAddOutput(self, runner: Any, name: Any) -> int:  # noqa: N802
        graph = _valid(runner, PyGraphRunner)
        text(name, "output name argument must be a string")
        graph.add_output()
        return 1

    @arity(1)
    def modelRunnerRun(self, runner: Any) -> list[PyTensor]:  # noqa: N802
        return _tensors(_valid(runner, PyGraphRunner).start(self._server).wait())

    @arity(1)
    def modelRunnerRunAsync(self, runner: Any) -> Tensors:  # noqa: N802
        return _awaitable(_valid(runner, PyGraphRunner), self._server)

    # scripts

    @arity(2)
    def createScriptRunner(self, key: Any, function: Any) -> PyTorchScriptRunner:  # noqa: N802
        name = text(key, "key name argument must be a string")
        called = text(function, "function name argument must be a string")
        self._check_type(name, b"AI_SCRIPT", "script")
        return PyTorchScriptRunner(b"AI.SCRIPTEXECUTE", name, called)

    @arity(2)
    def scriptRunnerAddInput(self, runner: Any, tensor: Any) -> None:  # noqa: N802
        _valid(runner, PyTorchScriptRunner).add_input(_tensor(tensor))

    @arity(2, "scriptRunnerAddInput")
    def scriptRunnerAddInputList(self, runner: Any, tensors: Any) -> None:  # noqa: N802
        script = _valid(runner, PyTorchScriptRunner)
        for tensor in [_tensor(tensor) for tensor in items(tensors, "Tensors argument must be iterable")]:
            script.add_input(tensor)

    @arity(1)
    def scriptRunnerAddOutput(self, runner: Any) -> int:  # noqa: N802
        _valid(runner, PyTorchScriptRunner).add_output()
        return 1

    @arity(1)
    def scriptRunnerRun(self, runner: Any) -> list[PyTensor]:  # noqa: N802
        return _tensors(_valid(runner, PyTorchScriptRunner).start(self._server).wait())

    @arity(1)
    def scriptRunnerRunAsync(self, runner: Any) -> Tensors:  # noqa: N802
        return _awaitable(_valid(runner, PyTorchScriptRunner), self._server)

    @arity(0)
    def createDAGRunner(self) -> PyDAGRunner:  # noqa: N802
        return PyDAGRunner(self._server)


def make(server: Server) -> ModuleType:
    """The module, in no table of modules."""
    functions = Functions(server)
    module = ModuleType("redisAI", "Tensors, models, scripts and DAGs, from inside a flow.")
    for name in vars(Functions):
        if not name.startswith("_"):
            setattr(module, name, getattr(functions, name))
    module.PyTensor = PyTensor  # type: ignore[attr-defined]
    module.error = GearsError  # type: ignore[attr-defined]
    return module
