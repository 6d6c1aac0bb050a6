"""Which operators a stored TorchScript program may use, and how they are found before any of it runs.

TorchScript is a language with file access: `torch.from_file` maps any file, `torch.save` writes one, and a stored model that names the
operators behind `redis.execute` would send commands with the rights of whoever runs it. Two nets, because parts of an archive run while
it is being loaded (`__setstate__`, the default values of arguments):

1. `check_source()` reads source before anything is compiled. It finds an operator wherever the compiler could: after a dot, with blanks,
   line continuations and comments between, or named in a string (`getattr(torch, "save")`). A `getattr` that is more than one plain
   string is refused as such, because "sa" "ve" and "s\\141ve" are spellings of it too. Prose in an error message is not found: no dot,
   no quote. It also refuses source that would end the process inside the compiler: an expression of about 3000 levels overflows the C
   stack, and a list literal where the type is Any and a tensor without an index (`x[]`) are null pointers.
2. `check_graphs()` reads the compiled graphs, with their blocks and subgraphs, where every spelling has become the one name.

Scripts need both nets too, with `host_calls=True`: redis and redisAI are what they are for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import BackendError

#: operators that read or write files; a load argument may allow them
FILE_OPERATORS = frozenset({"aten::from_file", "aten::save", "debugprims::load_tensor"})

#: namespaces of our own: commands sent to the server, and other models run. Only scripts have a client on whose behalf they do so.
HOST_NAMESPACES = frozenset({"redis", "redisAI"})

#: Other processes, Python, and compiler internals that trust their offsets (`inductor::_reinterpret_tensor` reads past the end of a
#: tensor).
CLOSED_NAMESPACES = frozenset({"c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "dist_rpc", "symm_mem", "inductor"})
CLOSED_OPERATORS = frozenset({"prim::PythonOp", "prim::IgnoredPythonOp", "prim::rpc_async", "prim::rpc_sync", "prim::rpc_remote"})

_FILE_WORDS = frozenset(operator.partition("::")[2] for operator in FILE_OPERATORS)
_CLOSED_WORDS = HOST_NAMESPACES | CLOSED_NAMESPACES | frozenset({"rpc_async", "rpc_sync", "rpc_remote"})
_BLANK = r"(?:[\s\\]|\#[^\n]*\n)*"
_WORD = re.compile(rf"(?:\.{_BLANK}|[\"'])({'|'.join(sorted(_FILE_WORDS | _CLOSED_WORDS))})\b", re.VERBOSE)
_GETATTR = re.compile(r"\bgetattr\b")
#: The form the serialiser writes, innermost first: a dotted name, then one plain string.
_PLAIN_GETATTR = re.compile(r"""\bgetattr\(\s*[\w.\s]+,\s*(["'])([^"'\\\n]+)\1\s*\)""")

#: Levels of one expression or of nested blocks. What torch writes stays below 50: its serialiser splits expressions longer than 40
#: characters.
MAX_DEPTH = 500
_TOKEN = re.compile(
    r"""(?P<skip>\"{3}.*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|\#[^\n]*|\\\n)"""
    r"""|(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<comma>[,;])|(?P<line>\n[ \t]*)"""
    r"""|(?P<operator>[-+*/%<>=!~&|^.@]|\b(?:not|and|or|if|lambda)\b)""",
    re.DOTALL,
)

#: Torch's compiler dies of a list literal where it expects Any: `return [x]` in a function that returns Any, `y: Any = [x]`. Not of
#: `y = [x]; return y`.
_ANY = r"(?:Optional\[\s*)*Any\b[\s\]]*"
_LIST_AS_ANY = re.compile(rf":\s*{_ANY}=[\s(]*\[|\bannotate\(\s*{_ANY},[\s(]*\[")
_RETURNS_ANY = re.compile(rf"->\s*{_ANY}(?::|$)(.*?)(?=^\s*def\b|\Z)", re.MULTILINE | re.DOTALL)
_RETURNED_LIST = re.compile(r"\breturn\b(?:[\s(]*|[^\n]*\belse[\s(]*)\[")

#: Brackets without anything in them after a value. Strings and comments are read past.
_EMPTY_INDEX = re.compile(
    r"""\"{3}.*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|\#[^\n]*"""
    rf"""|(?P<value>\b[A-Za-z_]\w*|[)\]}}]){_BLANK}\[(?P<empty>{_BLANK}\])""",
    re.DOTALL,
)
_BEFORE_A_LIST = frozenset({"return", "in", "and", "or", "not", "is", "if", "else", "assert", "raise", "yield", "lambda", "print", "del"})


def check_source(source: str, *, what: str = "model", allow_file_ops: bool = False, host_calls: bool = False) -> None:
    """The first net, for the source of a "model" or a "script". Raises BackendError saying what is wrong with it."""
    if too_deep(source):
        raise BackendError(f"ERR the {what}'s code nests deeper than {MAX_DEPTH} levels")
    refuse_null_pointers(source, what)
    _refuse(words(source, allow_file_ops=allow_file_ops, host_calls=host_calls), what)


def check_graphs(graphs: Iterable[Any], *, what: str = "model", allow_file_ops: bool = False, host_calls: bool = False) -> None:
    """The second net, for torch graphs. Raises BackendError naming the operators that are not allowed."""
    found = {kind for graph in graphs for kind in operators(graph)}
    _refuse(forbidden(found, allow_file_ops=allow_file_ops, host_calls=host_calls), what)


def _refuse(names: list[str], what: str) -> None:
    if names:
        raise BackendError(f"ERR the {what} uses operators that stored {what}s may not use: {', '.join(names)}")


def refuse_null_pointers(source: str, what: str) -> None:
    """Raises BackendError for the two forms that torch's compiler dies of: a list as Any, and `x[]`, of which it reads the first index."""
    if lists_as_any(source):
        raise BackendError(f"ERR the {what} has a list where the type is Any, which torch cannot compile; give the list a name first")
    for match in _EMPTY_INDEX.finditer(source):
        if match["value"] and match["value"] not in _BEFORE_A_LIST:
            line = source.count("\n", 0, match.start("empty")) + 1
            raise BackendError(f"ERR the {what} has an index with nothing between [ and ] (line {line})")


def words(source: str, *, allow_file_ops: bool = False, host_calls: bool = False) -> list[str]:
    """The names of forbidden operators in TorchScript source, sorted, "getattr" for one that hides a name. Empty when there are none."""
    found = {match[1] for match in _WORD.finditer(source)}
    if _hides_a_name(source):
        found.add("getattr")
    return sorted(found - (_FILE_WORDS if allow_file_ops else set()) - (HOST_NAMESPACES if host_calls else set()))


def _hides_a_name(source: str) -> bool:
    """Whether a getattr is left once the plain ones, nested ones too, have been reduced."""
    while True:
        reduced = _PLAIN_GETATTR.sub("_", source)
        if reduced == source:
            return _GETATTR.search(source) is not None
        source = reduced


def too_deep(source: str) -> bool:
    """Whether an expression, a type or a block of TorchScript source nests deeper than MAX_DEPTH.

    Counted together: open brackets, operators since the last comma of each, and columns of indentation; `elif` branches on their own.
    """
    chains = [0]  # operators so far, per open bracket
    total = 0  # their sum
    for match in _TOKEN.finditer(source) if len(source) > MAX_DEPTH else ():
        kind = match.lastgroup
        if kind == "open":
            chains.append(0)
        elif kind in ("operator", "close"):
            if kind == "close" and len(chains) > 1:
                total -= chains.pop()
            chains[-1] += 1
            total += 1
        elif kind == "comma" or (kind == "line" and len(chains) == 1):
            start = len(match[0]) - 1 if kind == "line" else 0
            total += start - chains[-1]
            chains[-1] = start
        if total + len(chains) > MAX_DEPTH:
            return True
    return source.count("elif") > MAX_DEPTH


def lists_as_any(source: str) -> bool:
    """Whether the source has one of the usual forms of a list literal where the type is Any."""
    return bool(_LIST_AS_ANY.search(source)) or any(_RETURNED_LIST.search(match[1]) for match in _RETURNS_ANY.finditer(source))


def forbidden(kinds: Iterable[str], *, allow_file_ops: bool = False, host_calls: bool = False) -> list[str]:
    """Those of `kinds` ("namespace::name") that a program may not contain, sorted."""
    namespaces = CLOSED_NAMESPACES if host_calls else CLOSED_NAMESPACES | HOST_NAMESPACES
    closed = CLOSED_OPERATORS if allow_file_ops else CLOSED_OPERATORS | FILE_OPERATORS
    return sorted({kind for kind in kinds if kind in closed or kind.partition("::")[0] in namespaces})


def operators(graph: Any) -> Iterator[str]:
    """The kind of every node of a torch graph or block, with those of its blocks and of the graphs its nodes carry (`prim::fork`)."""
    for node in graph.nodes():
        yield node.kind()
        for block in node.blocks():
            yield from operators(block)
        if node.hasAttribute("Subgraph"):
            yield from operators(node.g("Subgraph"))
