"""What is refused before torch's parser sees a script.

The parser and the compiler behind it are C++ and recurse: over brackets, operators, blocks, and from a function to one that is defined
after it. They check no depth, and a stack overflow ends the server: 3,000 nested `[` were enough for 8 MB of stack. So the depth is
bounded here, over the tokens, before compiling. What counts, and why:

1. Inside one expression the tree is never deeper than the tokens between commas, added up over the open brackets. Siblings (a table of
   ten thousand numbers) cost nothing; a chain costs its length.
2. Blocks nest by indentation.
3. A function defined later is compiled in the middle of its caller, so depths add up over the whole source.
4. `elif` is an `if` in the `else` before it. And every early `return`, `break` or `continue` wraps the rest of its function into one
   more block: time grows with the cube of their number (500 took 2.7 s, 2,000 did not end).

Tokens are read as torch's lexer reads them (its rules for strings, comments and `# type:` comments), or brackets could hide in what only
this file takes for a string. The limits lie far above any script that a person writes, and far below what a stack of COMPILER_STACK
bytes carries: the deepest construct found takes 2.7 kB of it per token.
"""

from __future__ import annotations

import re

from ..backends.torch_ops import refuse_null_pointers
from ..errors import BackendError

MAX_BYTES = 1 << 20  # the compiler takes about 20 us a line and holds the GIL: 1 MiB can stop the loader for seconds
MAX_BRACKETS = 100
MAX_CHAIN = 1000
MAX_BLOCKS = 50
MAX_BRANCHES = 256  # per function
MAX_ALL_BRANCHES = 1000
MAX_TOTAL_DEPTH = 20_000
COMPILER_STACK = 128 << 20  # bytes: MAX_TOTAL_DEPTH tokens at 2.7 kB, twice over

_TOKEN = re.compile(
    r"""
      (?P<skip>\#(?!\ type:)[^\n]* | \\\n | [ \t]+)
    | (?P<newline>\n)
    | (?P<comma>,)
    | (?P<open>[(\[{])
    | (?P<close>[)\]}])
    | (?P<word>[A-Za-z_][A-Za-z_0-9]*)
    | (?P<other>\"{3}(?:\\.|(?!\"{3})[^\\])*+\"{3} | '{3}(?:\\.|(?!'{3})[^\\])*+'{3}
        | \"(?:\\.|[^\"\\\n])*+\" | '(?:\\.|[^'\\\n])*+' | [0-9][0-9.]* | .)
    """,
    re.VERBOSE | re.DOTALL,
)
_INDENT = re.compile(r"[ \t]*(?![ \t\n]|\Z|#(?! type:))")  # of a line that says something
_BRANCHES = frozenset({"return", "break", "continue", "elif"})


def check_source(source: bytes | str) -> str:
    """The text to compile: decoded, with Unix line ends and a last newline (without one the parser fails).

    Raises BackendError when it is not UTF-8, holds a NUL byte, is larger or more deeply nested than the compiler can take, or has one of
    the two forms that it dies of.
    """
    raw = source.encode("utf-8", "surrogateescape") if isinstance(source, str) else source
    if len(raw) > MAX_BYTES:
        raise BackendError(f"ERR the script source has {len(raw)} bytes, more than the limit of {MAX_BYTES}")
    if b"\0" in raw:
        raise BackendError("ERR the script source contains a NUL byte")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BackendError(f"ERR the script source is not valid UTF-8 (byte {error.start})") from None
    text = text.replace("\r\n", "\n").rstrip() + "\n"
    _Depth(text).check()
    refuse_null_pointers(text, "script")
    return text


class _Depth:
    """One pass over the tokens of a source. Each counter is compared with its limit where it grows."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.chains = [0]  # tokens since the last comma, per open bracket
        self.chain = 0  # their sum
        self.blocks = [0]  # indentations in force
        self.branches = 0  # of the function being read
        self.all_branches = 0
        self.deepest = 0  # of the function being read
        self.finished = 0  # sum over the functions before it

    def check(self) -> None:
        self._indent(0)
        for token in _TOKEN.finditer(self.text):
            kind = token.lastgroup
            if kind == "skip":
                continue
            self.position = token.start()
            if kind == "newline":
                if len(self.chains) == 1:
                    self._restart_chain()
                    self._indent(token.end())
            elif kind == "comma":
                self._restart_chain()
            elif kind == "close":
                self._close()
            else:
                self._link()
                if kind == "open":
                    self._open()
                elif kind == "word":
                    self._word(token.group())

    def _restart_chain(self) -> None:
        self.chain -= self.chains[-1]
        self.chains[-1] = 0

    def _link(self) -> None:
        self.chains[-1] += 1
        self.chain += 1
        self._limit(self.chain, MAX_CHAIN, "operators and operands in one expression")
        depth = self.chain + len(self.blocks) + self.branches
        if depth > self.deepest:
            self.deepest = depth
            self._limit(self.finished + depth, MAX_TOTAL_DEPTH, "levels over all functions")

    def _open(self) -> None:
        self._limit(len(self.chains), MAX_BRACKETS, "brackets nested")
        self.chains.append(0)

    def _close(self) -> None:
        if len(self.chains) > 1:  # a stray one is the parser's to complain about
            self.chain -= self.chains.pop()

    def _word(self, word: str) -> None:
        if word == "def":
            self.finished += self.deepest
            self.deepest = self.branches = 0
        elif word in _BRANCHES:
            self.branches += 1
            self.all_branches += 1
            self._limit(self.branches, MAX_BRANCHES, "branches (return, break, continue, elif) in one function")
            self._limit(self.all_branches, MAX_ALL_BRANCHES, "branches (return, break, continue, elif)")

    def _indent(self, position: int) -> None:
        """Opens or closes blocks at the start of a line; blank lines and comments say nothing."""
        line = _INDENT.match(self.text, position)
        if line is None:
            return
        width = line.end() - position
        while len(self.blocks) > 1 and self.blocks[-1] >= width:
            self.blocks.pop()
        if width > self.blocks[-1]:
            self._limit(len(self.blocks), MAX_BLOCKS, "blocks nested")
            self.blocks.append(width)

    def _limit(self, value: int, limit: int, what: str) -> None:
        if value > limit:
            line = self.text.count("\n", 0, self.position) + 1
            raise BackendError(f"ERR the script is too complex: more than {limit} {what} (line {line})")
