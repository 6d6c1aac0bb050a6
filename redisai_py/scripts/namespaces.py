"""What the free names of a script mean, and so all that a script can reach.

The compiler asks for a name and gets a Python object; from a module it then takes attributes by itself. Handing it real modules would let
scripts walk from `torch.nn.functional` to `torch.os`. So each namespace here is a module made for the purpose that holds operators,
constants and torch's own scriptable functions, and nothing that leads on.

`torch` is the set of aten operators, as scripts have always had it, and on top of them dtypes and the like, `torch.nn.functional`,
`torch.linalg`, `torch.fft`, `torch.special`. `math` and the built-in exceptions are there as well. Case does not matter in the names of the
namespaces, as it never did.
"""

from __future__ import annotations

import builtins
import math
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional
from torch.jit._builtins import _find_builtin

from . import prelude

_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format, float)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


def _known_operators() -> frozenset[str]:
    return frozenset(schema.name for schema in torch._C._jit_get_all_schemas())


OPERATORS = _known_operators()


class _Torch(types.ModuleType):
    """`torch` in a script. Operators are looked up when asked for: there are thousands."""

    def __getattr__(self, name: str) -> Any:
        if "aten::" + name in OPERATORS:
            return getattr(torch.ops.aten, name)
        raise AttributeError(f"'{name}' is not available to scripts")


def _namespace(name: str, members: dict[str, Any]) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    return module


def _builtins_of(module: Any, names: Iterable[str]) -> dict[str, Any]:
    """The members of a module that stand for an operator."""
    return {name: getattr(module, name) for name in names if _find_builtin(getattr(module, name)) in OPERATORS}


def _public(module: Any) -> list[str]:
    return [name for name in dir(module) if not name.startswith("_")]


def _functional() -> dict[str, Any]:
    """`torch.nn.functional`: operators, and functions written in TorchScript's subset of Python."""
    source = torch.nn.functional
    own = (source.__name__, "torch", "torch._C._nn")
    names = [name for name in _public(source) if isinstance(getattr(source, name), _FUNCTIONS)]
    return {name: getattr(source, name) for name in names if getattr(source, name).__module__ in own}


def _torch() -> types.ModuleType:
    module = _Torch("torch")
    constants = {name: value for name, value in vars(torch).items() if isinstance(value, _CONSTANTS) and not name.startswith("_")}
    libraries = {
        name: _namespace(name, _builtins_of(getattr(torch, name), _public(getattr(torch, name)))) for name in ("linalg", "fft", "special")
    }
    annotate = {"annotate": torch.jit.annotate}
    module.__dict__.update(
        constants,
        **libraries,
        nn=_namespace("nn", {"functional": _namespace("functional", _functional())}),
        jit=_namespace("jit", annotate),
        unique=torch.functional.unique,
    )
    return module


def _math() -> types.ModuleType:
    members = _builtins_of(math, (name for name in _public(math) if callable(getattr(math, name))))
    return _namespace("math", members | {name: value for name, value in vars(math).items() if isinstance(value, float)})


def _names() -> dict[str, Any]:
    exceptions = {name: value for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception)}
    return exceptions | {"math": _math()}


#: lower-case name -> namespace
_NAMESPACES: dict[str, Any] = {
    "torch": _torch(),
    "redis": _namespace("redis", {"execute": prelude.execute, "asList": prelude.as_list}),
    "redisai": _namespace("redisAI", {"model_execute": prelude.model_execute}),
}
_NAMES = _names()


def resolve(name: str) -> Any:
    """The compiler's question: what does this free name (or type) mean? None for a name that means nothing."""
    return _NAMES.get(name) or _NAMESPACES.get(name.lower())


Resolver = Callable[[str], Any]
