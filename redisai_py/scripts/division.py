"""Integer divisions that the processor refuses become errors of the script.

TorchScript divides integers without looking: `a % 0`, and the lowest integer divided by -1, raise SIGFPE, which ends the server. Both are
within reach of whoever calls a script with numbers in its arguments. So before the first run the graph gets a test in front of each such
operator. Divisors written into the script are constants, and need none unless they are 0 or -1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LOWEST = -(2**63)
_INTEGERS = frozenset({"int", "Scalar", "number"})
_ZERO = "ZeroDivisionError: integer division or modulo by zero"
_OVERFLOW = "OverflowError: integer division result too large for 64 bits"

#: operator -> whether it leaves a divisor of zero to the processor
_OPERATORS = {"aten::remainder": True, "aten::floordiv": False, "aten::divmod": False, "aten::gcd": False}


def guard(graph: Any) -> None:
    """Adds the tests to a graph that has not run yet."""
    for kind, takes_zero in _OPERATORS.items():
        for node in graph.findAllNodes(kind, True):
            dividend, divisor = (node.inputsAt(0), node.inputsAt(1))
            if _are_integers(dividend, divisor) and not _is_harmless(divisor):
                if takes_zero:
                    _raise_if(graph, node, [(divisor, 0)], _ZERO)
                for low, other in _overflows(kind, dividend, divisor):
                    _raise_if(graph, node, [(low, LOWEST), (other, -1)], _OVERFLOW)


def _are_integers(*values: Any) -> bool:
    return all(str(value.type()) in _INTEGERS for value in values)


def _is_harmless(divisor: Any) -> bool:
    node = divisor.node()
    return node.kind() == "prim::Constant" and node.kindOf("value") == "i" and node.i("value") not in (0, -1)


def _overflows(kind: str, dividend: Any, divisor: Any) -> Iterator[tuple[Any, Any]]:
    """The pairs (lowest integer, minus one) that overflow; gcd divides both ways."""
    yield dividend, divisor
    if kind == "aten::gcd":
        yield divisor, dividend


def _raise_if(graph: Any, node: Any, equalities: list[tuple[Any, int]], message: str) -> None:
    """Puts `if all of these are equal: raise` in front of a node, at the node's place in the source."""
    with graph.insert_point_guard(node):
        tests = [graph.insert("aten::eq", [value, graph.insertConstant(constant)]) for value, constant in equalities]
        condition = tests[0] if len(tests) == 1 else graph.insert("aten::__and__", tests)
        arguments = [graph.insertConstant(message), graph.insertConstant("RuntimeError")]
    branch = graph.create("prim::If", [condition], 0)
    branch.insertBefore(node)
    branch.addBlock().addNode("prim::RaiseException", arguments).copyMetadata(node)
    branch.addBlock()
