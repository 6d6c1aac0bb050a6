"""Operators of TorchScript that end the process or never return, made to raise an error instead.

TorchScript divides integers without looking: `a % 0`, and the lowest integer divided by -1, raise SIGFPE. Searching a string for the empty
one, and padding one to a negative width, never ends. All are within reach of whoever calls a script with numbers and texts of their own. So
before the first run each such operator gets a test in front of it. Divisors written into the script are constants, and need none unless
they are 0 or -1.
"""

from __future__ import annotations

from typing import Any

LOWEST = -(2**63)
_INTEGERS = frozenset({"int", "Scalar", "number"})
_ZERO = "ZeroDivisionError: integer division or modulo by zero"
_OVERFLOW = "OverflowError: integer division result too large for 64 bits"
_EMPTY = "ValueError: the text to look for is empty"

#: operator -> whether it leaves a divisor of zero to the processor
_DIVISIONS = {"aten::remainder": True, "aten::floordiv": False, "aten::divmod": False, "aten::gcd": False}
_SEARCHES = ("aten::count", "aten::replace", "aten::rsplit")
_PADDINGS = ("aten::center", "aten::ljust", "aten::rjust", "aten::zfill")


def guard(graph: Any) -> None:
    """Adds the tests to a graph that has not run yet."""
    for kind, takes_zero in _DIVISIONS.items():
        for node in graph.findAllNodes(kind, True):
            _guard_division(graph, node, takes_zero)
    for kind in _SEARCHES:
        for node in graph.findAllNodes(kind, True):
            if _types(node)[:2] == ["str", "str"]:
                _raise_if(graph, node, [(node.inputsAt(1), "")], _EMPTY)
    for kind in _PADDINGS:
        for node in graph.findAllNodes(kind, True):
            _at_least_zero(graph, node, 1)


def _types(node: Any) -> list[str]:
    return [str(value.type()) for value in node.inputs()]


def _guard_division(graph: Any, node: Any, takes_zero: bool) -> None:
    if not _INTEGERS.issuperset(_types(node)) or _is_harmless(node.inputsAt(1)):
        return
    dividend, divisor = node.inputsAt(0), node.inputsAt(1)
    if takes_zero:
        _raise_if(graph, node, [(divisor, 0)], _ZERO)
    _raise_if(graph, node, [(dividend, LOWEST), (divisor, -1)], _OVERFLOW)
    if node.kind() == "aten::gcd":  # divides both ways
        _raise_if(graph, node, [(divisor, LOWEST), (dividend, -1)], _OVERFLOW)


def _is_harmless(divisor: Any) -> bool:
    node = divisor.node()
    return node.kind() == "prim::Constant" and node.kindOf("value") == "i" and node.i("value") not in (0, -1)


def _raise_if(graph: Any, node: Any, equalities: list[tuple[Any, Any]], message: str) -> None:
    """Puts `if all of these are equal: raise` in front of a node, at the node's place in the source."""
    with graph.insert_point_guard(node):
        tests = [graph.insert("aten::eq", [value, graph.insertConstant(constant)]) for value, constant in equalities]
        condition = tests[0] if len(tests) == 1 else graph.insert("aten::__and__", tests)
        arguments = [graph.insertConstant(message), graph.insertConstant("RuntimeError")]
    branch = graph.create("prim::If", [condition], 0)
    branch.insertBefore(node)
    branch.addBlock().addNode("prim::RaiseException", arguments).copyMetadata(node)
    branch.addBlock()


def _at_least_zero(graph: Any, node: Any, index: int) -> None:
    """Gives a node the larger of an input and 0: to Python, padding to a negative width pads nothing."""
    with graph.insert_point_guard(node):
        node.replaceInput(index, graph.insert("prim::max", [node.inputsAt(index), graph.insertConstant(0)]))
