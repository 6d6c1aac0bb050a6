"""From source to a `Program`: functions that can be called, and what a call must know about each.

Three checks stand between the compiler and the first run:

1. Operators (`_refuse_operators`). File access, other processes, Python, and state that other scripts and models share (the random
   seed, the FFT plan cache) are refused by the operators in the compiled graphs: one can be spelt in many ways but compiles to one name.
2. Size (`_Calls`). Calls are inlined at the first run. Thirty functions that each call the next one twice make a billion nodes, so the
   inlined size is added up over the call graph first.
3. Writes (`_writes_inputs`). A script may change its arguments in place, and they alias stored values. Inputs of a function that could do
   so are copied before each run; torch's alias analysis says which functions cannot, so that most scripts read tensors where they are.

Compiling happens on a thread of its own for the sake of its stack: see `source.py`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..backends import torch_ops, torch_threads
from ..backends.base import ResidentTable, TensorView
from ..device import Device
from ..errors import BackendError
from . import guards, operators, prelude
from .namespaces import resolve
from .source import COMPILER_STACK
from .tensors import to_array, to_resident, to_tensor

if TYPE_CHECKING:
    from .session import ScriptHost

MAX_FUNCTION_NODES = 16_000  # running a chain of operators recurses too: 60,000 overflowed 16 MB of stack, 40,000 did not
MAX_NODES = 200_000  # of all functions, once inlined
MAX_DEPTH = 300  # of calls, and of blocks, once inlined

#: what an entry point takes: tensors, keys, args
_ENTRY_POINT = ("List[Tensor]", "List[str]", "List[str]")

#: operators that change what other scripts and models see
_SHARED_STATE = frozenset(
    {
        "aten::manual_seed",
        "aten::set_grad_enabled",
        "aten::_cufft_clear_plan_cache",
        "aten::_cufft_set_plan_cache_max_size",
        "aten::__round_to_zero_floordiv",  # shares nothing, but divides by zero; no script needs it
    }
)
#: namespaces that a script has a way to; all others belong to compilers, other devices or other processes
_NAMESPACES = frozenset({"aten", "prim", "redis", "redisAI"})

#: operators that write to arguments although their schema does not say so
_SILENT_WRITERS = re.compile(r"aten::\w*(batch_norm|instance_norm|_no_grad_|flatten_weight)\w*")


def _is_written(argument: Any) -> bool:
    """Whether an operator writes to the tensors of an argument; what it does to a list as such harms no one."""
    return argument.alias_info is not None and argument.alias_info.is_write and "Tensor" in str(argument.type)


#: operators of which some form writes to a tensor
_WRITERS = frozenset(
    schema.name
    for schema in torch._C._jit_get_all_schemas()
    if _SILENT_WRITERS.match(schema.name) or any(map(_is_written, schema.arguments))
)


@dataclass(frozen=True, slots=True)
class Function:
    """One function of a script."""

    name: str
    call: Callable[..., Any]
    parameters: tuple[str, ...]  # their types, as TorchScript writes them
    entry_point: bool
    copies: bool  # whether it could write to its inputs


class Program:
    """A compiled script."""

    def __init__(self, functions: dict[str, Function], device: torch.device | None) -> None:
        self._functions = functions
        self._device = device

    def run(
        self, name: str, inputs: Sequence[TensorView], keys: Sequence[bytes], args: Sequence[bytes], n_outputs: int, host: ScriptHost
    ) -> Sequence[Any]:
        """See `ScriptSession.run`."""
        function = self._functions.get(name)
        if function is None:
            raise BackendError(f"Function does not exist: {name}")
        prepare_thread()
        torch_threads.use_all()
        keep = getattr(host, "keep", None)
        table: ResidentTable | None = None if keep is None else host.residents  # type: ignore[attr-defined]
        tensors = [to_tensor(view, self._device, function.copies, table) for view in inputs]
        arguments = (tensors, keys, args) if function.entry_point else _bind(function, tensors)
        result = self._call(function, arguments, host)
        return _outputs(result, n_outputs, name, keep, table)

    def _call(self, function: Function, arguments: Sequence[Any], host: ScriptHost) -> Any:
        before = operators.enter((host, self._device))
        try:
            return function.call(*arguments)
        except UnicodeDecodeError:  # it ran, but returned a string that Python cannot take: no tensor either way
            return None
        except Exception as error:
            raise BackendError(_run_text(error)) from error
        finally:
            operators.leave(before)


def compile_program(text: str, entry_points: Sequence[str], device: Device) -> Program:
    """Compiles checked source. Raises BackendError with the compiler's text or that of the first check that fails."""
    functions = _with_deep_stack(lambda: _compile(text))
    if device.kind == "gpu" and not torch.cuda.is_available():
        raise BackendError("GPU requested but Torch couldn't find CUDA")
    for name in entry_points:
        _check_entry_point(name, functions)
    chosen = frozenset(entry_points)
    program = {name: Function(name, call, types, name in chosen, copies) for name, (call, types, copies) in functions.items()}
    return Program(program, None if device.kind == "cpu" else torch.device("cuda", device.index))


# ---- compiling

_Compiled = dict[str, tuple[Any, tuple[str, ...], bool]]
_lock = threading.Lock()  # torch compiles library functions into one table for all scripts


def _with_deep_stack(work: Callable[[], _Compiled]) -> _Compiled:
    """Runs `work` on a thread with COMPILER_STACK bytes of stack; what it returns or raises is returned or raised here."""
    outcome: list[Any] = []

    def target() -> None:
        try:
            outcome.append(work())
        except BackendError as error:
            outcome.append(error)
        except Exception as error:
            outcome.append(BackendError(str(error).strip()))

    thread = threading.Thread(target=target, name="script-compiler")
    with _lock:
        usual = threading.stack_size(COMPILER_STACK)
        try:
            thread.start()
        except RuntimeError as error:
            raise BackendError(f"ERR cannot compile the script: {error}") from error
        finally:
            threading.stack_size(usual)
        thread.join()
    if isinstance(outcome[0], BackendError):
        raise outcome[0]
    compiled: _Compiled = outcome[0]
    return compiled


def _compile(text: str) -> _Compiled:
    unit = torch._C.CompilationUnit()
    unit.define(text, resolve)
    functions = {function.name: function for function in unit.get_functions()}
    for function in functions.values():
        guards.guard(function.graph)
    calls = _Calls(functions)
    bodies = {name: calls.body(name) for name in functions}
    _refuse_operators(set().union(*(body.operators for body in bodies.values())))
    return {
        name: (
            function,
            tuple(str(argument.type) for argument in function.schema.arguments),
            bodies[name].writes and _writes_inputs(function.inlined_graph),
        )
        for name, function in functions.items()
    }


def _check_entry_point(name: str, functions: _Compiled) -> None:
    if name not in functions:
        raise BackendError(f"Function {name} does not exist in the given script.")
    types = functions[name][1]
    if len(types) != len(_ENTRY_POINT):
        raise BackendError(f"Wrong number of inputs in function {name}. Expected {len(_ENTRY_POINT)} but was {len(types)}")
    if types != _ENTRY_POINT:
        raise BackendError(
            f"Wrong inputs type in function {name}. Expected signature similar to: "
            f"def {name}(tensors: List[Tensor], keys: List[str], args: List[str])"
        )


# ---- what is in a graph


def _nodes(block: Any, depth: int = 0) -> Iterator[tuple[Any, int]]:
    """Every node of a graph or block, also inside its blocks and of graphs it carries, with the number of blocks around it."""
    for node in block.nodes():
        yield node, depth
        for inner in node.blocks():
            yield from _nodes(inner, depth + 1)
        if node.hasAttribute("Subgraph"):
            yield from _nodes(node.g("Subgraph"), depth + 1)


@dataclass(slots=True)
class _Body:
    """A function with all that it calls put into it."""

    operators: set[str]
    nodes: int = 0  # without constants
    depth: int = 0  # of nested blocks
    writes: bool = False  # whether an operator in it changes a tensor in place

    def include(self, other: _Body, depth: int) -> None:
        """Adds what stands at one node, inside `depth` blocks."""
        self.operators |= other.operators
        self.nodes += other.nodes
        self.depth = max(self.depth, depth + other.depth)
        self.writes |= other.writes


#: bodies of the functions that torch compiled once for all scripts: `torch.nn.functional`, the prelude
_library: dict[str, _Body] = {}


class _Calls:
    """The call graph of a script: what becomes of each function once its calls are put into it."""

    def __init__(self, functions: dict[str, Any]) -> None:
        self._functions = functions
        self._bodies: dict[str, _Body] = {}

    def body(self, name: str, level: int = 0) -> _Body:
        """The body of a function, by its qualified name. Raises BackendError when the script would grow too large."""
        own = name in self._functions
        known = (self._bodies if own else _library).get(name)
        if known is not None:
            return known
        self._check(_Body(set()), level)
        function = self._functions[name] if own else torch.jit._state._python_cu.find_function(name)
        body = _Body(set())
        for node, depth in _nodes(function.graph):
            kind = node.kind()
            body.include(_Body({kind}, int(kind != "prim::Constant"), 0, bool(_written(node))), depth)
            if kind == "prim::CallFunction":
                body.include(self.body(node.inputsAt(0).type().annotation_str, level + 1), depth)
        (self._bodies if own else _library)[name] = body
        self._check(body, level)
        return body

    def _check(self, body: _Body, level: int) -> None:
        total = sum(known.nodes for known in self._bodies.values())
        if body.nodes > MAX_FUNCTION_NODES or total > MAX_NODES or max(body.depth, level) > MAX_DEPTH:
            raise BackendError("ERR the script is too complex: its functions, put into one another where they are called, grow too large")


def _refuse_operators(names: set[str]) -> None:
    refused = set(torch_ops.forbidden(names, host_calls=True))
    refused |= {name for name in names if name in _SHARED_STATE or name.partition("::")[0] not in _NAMESPACES}
    if refused:
        raise BackendError(f"ERR the script uses operators that scripts may not use: {', '.join(sorted(refused))}")


def _writes_inputs(graph: Any) -> bool:
    """Whether a run could write to memory of the parameters, by torch's alias analysis."""
    aliases = graph.alias_db()
    written = [value for node in _reached(graph) for value in _written(node)]
    return any(aliases.may_contain_alias(value, parameter) for value in written for parameter in graph.inputs())


def _reached(block: Any) -> Iterator[Any]:
    """The nodes of a graph without the branches that a constant condition rules out (`inplace=False` in torch's own functions)."""
    for node in block.nodes():
        yield node
        blocks = list(node.blocks())
        if node.kind() == "prim::If":
            condition = node.input().node()
            if condition.kind() == "prim::Constant":
                blocks = blocks[:1] if condition.i("value") else blocks[1:]
        for inner in blocks:
            yield from _reached(inner)


def _written(node: Any) -> list[Any]:
    """The inputs of a node that are, or hold, tensors to which it writes."""
    if node.kind() not in _WRITERS:
        return []
    schema = node.schema()
    if _SILENT_WRITERS.match(schema):
        return list(node.inputs())
    if "!" not in schema:
        return []
    return [value for argument, value in zip(torch._C.parse_schema(schema).arguments, node.inputs(), strict=False) if _is_written(argument)]


# ---- running


class _Thread(threading.local):
    inference: Any = None


_thread = _Thread()


def prepare_thread() -> None:
    """Turns gradients off on this thread, for good: entering and leaving inference mode costs more than a small script."""
    if _thread.inference is None:
        _thread.inference = torch._C._InferenceMode(True)


def _bind(function: Function, tensors: list[torch.Tensor]) -> Sequence[Any]:
    """The arguments of a function that is no entry point: tensors in their order, and all that is left for a list of tensors."""
    if len(function.parameters) > len(tensors):
        raise BackendError(f"Wrong number of inputs provided to function: {function.name}")
    bound: list[Any] = []
    for kind in function.parameters:
        if kind == "Tensor":
            bound.append(tensors[len(bound)])
        elif kind == "List[Tensor]":
            bound.append(tensors[len(bound) :])
            break
        else:
            raise BackendError(f"Unsupported input type in function definition: {function.name}")
    if len(bound) < len(function.parameters):
        raise BackendError(f"expected {len(function.parameters)} inputs, but got only {len(bound)}")
    return bound


def _outputs(result: Any, n_outputs: int, name: str, keep: Sequence[bool] | None, table: ResidentTable | None) -> Sequence[Any]:
    """The tensors of a result, one level deep, as arrays, or in `table` where `keep` says so.

    Raises BackendError for anything else and for another number of them.
    """
    if n_outputs == 0:
        return ()
    tensors = (result,) if isinstance(result, torch.Tensor) else result
    if not isinstance(tensors, (tuple, list)) or not all(map(torch.is_tensor, tensors)):
        raise BackendError(f"Function returned non-tensor values{name}")  # no blank: so since the first version
    if len(tensors) != n_outputs:
        raise BackendError(f"Function returned unexpected number of outputs - {name}")
    try:
        where = f"function {name}"
        if keep is None or table is None:
            return [to_array(tensor, where) for tensor in tensors]
        return [to_resident(t, where, table) if stays else to_array(t, where) for t, stays in zip(tensors, keep, strict=True)]
    except (RuntimeError, TypeError) as error:  # no memory for the copy; a layout or dtype that numpy does not know
        raise BackendError(str(error)) from error


_PYTHON_STACK = re.compile(r"\n+At:\n.*", re.DOTALL)
_PYTHON_CLASS = re.compile(r"(RuntimeError: )(?:CommandError|BackendError|BatchMismatch|Terminated): ")
_PRELUDE_FRAME = re.compile(rf'  File "{re.escape(prelude.__file__)}", line \d+, in \w+\n(?:(?!  File "|[\w.]+: ).*\n)*')


def _run_text(error: Exception) -> str:
    """TorchScript's traceback without what is ours in it: the prelude's frames and the Python stack behind a failed call."""
    text = _PYTHON_STACK.sub("", str(error))
    return _PYTHON_CLASS.sub(r"\1", _PRELUDE_FRAME.sub("", text))
