"""`_redisai.pyi` names what `_redisai` has, so that the type checker speaks of the module that is there."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

from servers import ROOT

from redisai_py import _redisai


def declared() -> dict[str, set[str]]:
    """Class -> its public members; "" -> the module's own functions and classes."""
    found: dict[str, set[str]] = {"": set()}
    for node in ast.parse((ROOT / "redisai_py" / "_redisai.pyi").read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[""].add(node.name)
        if isinstance(node, ast.ClassDef):
            found[node.name] = {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
    return found


def public(owner: ModuleType | type) -> set[str]:
    return {name for name in vars(owner) if not name.startswith("_")}


def test_the_stub_names_what_the_extension_module_has() -> None:
    stub = declared()
    assert stub.pop("") == public(_redisai)
    for name, members in stub.items():
        cls = getattr(_redisai, name)
        assert inspect.isclass(cls)
        assert {member for member in members if not member.startswith("_")} == public(cls), name
    assert len(stub) > 5
