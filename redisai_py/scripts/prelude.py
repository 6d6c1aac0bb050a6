"""`redis.execute`, `redis.asList` and `redisAI.model_execute` as scripts call them, written in TorchScript.

The compiler reads the text of this file; Python never runs these functions. They exist because of what cannot cross from TorchScript to
Python (see `replies.py`): strings that are not UTF-8 go as byte values, nested array replies come back as a program to build them from.
Everything here is inlined at each place of call, so it is kept short.

No `from __future__ import annotations` here, and the older names of types: the compiler wants it so.
"""

# mypy: ignore-errors
# ruff: noqa: UP006, UP035, UP045, F811

from typing import Any, List, Optional

import torch

from . import operators  # noqa: F401  (registers the operators named below)


def _pack(text: str) -> Any:
    """A string as Python can take it: itself when it is printable ASCII, else its bytes."""
    if text.isprintable():
        packed: Any = text
    else:
        packed = ([ord(character) for character in list(text)],)  # list(): indexing a string copies all of it
    return packed


def _build(leaves: List[Optional[Any]], program: List[int]) -> Optional[Any]:
    """Runs the program of a nested array. The leaves come reversed, so that the next one is always the last."""
    stack: List[Optional[Any]] = []
    for code in program:
        if code < 0:
            stack.append(leaves.pop())
        else:
            items: List[Optional[Any]] = []
            for _ in range(code):
                items.append(stack.pop())
            items.reverse()
            stack.append(items)
    return stack.pop()


def _send(words: List[Any]) -> Optional[Any]:
    is_array, reply = torch.ops.redis._call(words)
    if is_array:
        leaves, program = torch.ops.redis._array()
        reply = _build(leaves, program) if len(program) > 0 else leaves
    return reply


@torch.jit._overload
def execute(command: str) -> Optional[Any]: ...


@torch.jit._overload
def execute(command: str, args: List[str]) -> Optional[Any]: ...


@torch.jit._overload
def execute(command: str, args: List[Any]) -> Optional[Any]: ...


@torch.jit._overload
def execute(command: str, args: List[Optional[Any]]) -> Optional[Any]: ...


def execute(command, args: Optional[List[str]] = None):
    words = [_pack(command)]
    if args is not None:
        for arg in args:
            if isinstance(arg, str):
                words.append(_pack(arg))
            elif isinstance(arg, List[str]):
                for item in arg:
                    words.append(_pack(item))
            elif isinstance(arg, List[Optional[Any]]):
                for element in arg:
                    words.append(_pack(element) if isinstance(element, str) else element)
            else:
                words.append(arg)
    return _send(words)


def as_list(reply: Any) -> List[Optional[Any]]:
    assert isinstance(reply, List[Optional[Any]]), "redis.asList: the value is not a list"
    return reply


def model_execute(model_key: str, inputs: List[torch.Tensor], num_outputs: int) -> List[torch.Tensor]:
    return torch.ops.redisAI._run(_pack(model_key), inputs, num_outputs)
