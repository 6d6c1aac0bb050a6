"""What running a compiled TorchScript program would do to the process: how large it becomes, and which arguments it may write to.

1. Calls are put into their callers before the first run. Thirty functions that each call the next one twice become a billion nodes, so the
   size is added up over the call graph before torch is asked to do it.
2. Turning a graph into code recurses over values that are used once: a chain of 50,000 such operators overflowed a stack of 16 MB, 20,000
   did not overflow 8 MB. What exporters write has chains of some thousands.
3. Arguments alias keyspace values. Torch's alias analysis says which values may share memory with them, but takes all attributes of the
   module for possible aliases of all arguments. They are not, as long as nothing is stored in the module; without that, every network
   with a batch normalisation would have its inputs copied for each run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from ..errors import BackendError
from .torch_ops import operators

MAX_NODES = 500_000
MAX_CALLS = 300  # levels of calls
MAX_CHAIN = 15_000

#: Nodes through which an argument may outlive the run, or reach code that cannot be seen here.
_KEEPS_ARGUMENTS = frozenset({"prim::SetAttr", "prim::CallMethod", "prim::CallFunction", "prim::fork", "prim::awaitable"})
#: What some schemas leave unsaid: normalisations update these arguments, and these operators all of theirs.
_UPDATED = frozenset({"running_mean", "running_var"})
_WRITES_ALL = re.compile(r"aten::(_no_grad_|\w*flatten_weight)")

_TOO_COMPLEX = "ERR the model is too complex: its functions, put into one another where they are called, grow too large"


def check_size(functions: Iterable[Any]) -> None:
    """Refuses a program that would grow beyond MAX_NODES or MAX_CALLS. Raises BackendError. Call it before `inlined_graph`."""
    graphs = {function.qualified_name: function.graph for function in functions}
    measured: dict[str, tuple[int, int]] = {}
    for name in graphs:
        _measure(name, graphs, measured, 0)


def _measure(name: str, graphs: Mapping[str, Any], measured: dict[str, tuple[int, int]], level: int) -> tuple[int, int]:
    """The nodes of a function with all that it calls, and the levels of calls below it."""
    if name in measured or name not in graphs:
        return measured.get(name, (0, 0))
    size = depth = 0
    for node in _nodes(graphs[name]):
        size += 1
        kind = node.kind()
        if kind in ("prim::CallMethod", "prim::CallFunction") and level <= MAX_CALLS:
            callee = node.inputsAt(0).type().annotation_str
            nodes, below = _measure(f"{callee}.{node.s('name')}" if kind == "prim::CallMethod" else callee, graphs, measured, level + 1)
            size, depth = size + nodes, max(depth, below + 1)
        if size > MAX_NODES or level + depth > MAX_CALLS:
            raise BackendError(_TOO_COMPLEX)
    measured[name] = size, depth
    return size, depth


def check_chains(graph: Any) -> None:
    """Refuses an inlined graph with a chain of more than MAX_CHAIN operators. Raises BackendError."""
    depths: dict[Any, int] = {}
    for node in _nodes(graph):
        depth = 1 + max((depths.get(value.debugName(), 0) for value in node.inputs() if len(value.uses()) == 1), default=0)
        if depth > MAX_CHAIN:
            raise BackendError(_TOO_COMPLEX)
        for value in node.outputs():
            depths[value.debugName()] = depth


def written_inputs(graph: Any) -> tuple[bool, ...]:
    """For each parameter of an inlined method after `self`: whether a run could write to its memory or keep it beyond the run."""
    parameters = list(graph.inputs())[1:]
    if not _KEEPS_ARGUMENTS.isdisjoint(operators(graph)):
        return (True,) * len(parameters)
    aliases = graph.alias_db()
    written = [value for node in _nodes(graph) for value in _written(node) if not _is_attribute(value)]
    return tuple(any(aliases.may_contain_alias(value, parameter) for value in written) for parameter in parameters)


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.nodes():
        yield node
        for block in node.blocks():
            yield from _nodes(block)


def _written(node: Any) -> Iterator[Any]:
    """The inputs of a node that it may write to."""
    return (node.inputsAt(position) for position in _writes(node.schema()))


@cache
def _writes(schema: str) -> tuple[int, ...]:
    """The positions of the arguments that an operator writes to, from its schema. Nodes of the language itself have none."""
    import torch

    if schema == "(no schema)":
        return ()
    arguments = torch._C.parse_schema(schema).arguments
    everything = _WRITES_ALL.match(schema) is not None
    return tuple(i for i, argument in enumerate(arguments) if everything or argument.name in _UPDATED or _is_written(argument.alias_info))


def _is_written(alias: Any) -> bool:
    return alias is not None and bool(alias.is_write)


def _is_attribute(value: Any) -> bool:
    """A tensor of the module: nobody stored an argument there, or the graph would have a SetAttr. (A list of the module may have grown.)"""
    return bool(value.node().kind() == "prim::GetAttr" and value.type().kind() == "TensorType")
