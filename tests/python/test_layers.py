"""Who may know whom. ARCHITECTURE.md draws the picture; this keeps it true."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "redisai_py"

#: part of the package -> parts it may import. What all may use: tensor, device, errors, log, backends.base.
COMMON = {"tensor", "device", "errors", "log", "backends.base", "backends"}
ALLOWED = {
    "errors": set(),
    "device": {"errors"},
    "tensor": {"errors", "backends.base"},
    "log": set(),
    "_shim": {"_redisai"},
    "backends": COMMON,
    "scripts": COMMON,
    "sandbox": set(),
    "opener": COMMON | {"scripts"},
    "isolation": COMMON | {"_shim", "opener", "sandbox"},
    "flows": COMMON | {"_shim"},
    "execution": COMMON | {"_shim", "scripts", "opener"},
    "engine": COMMON | {"_shim", "execution", "isolation", "flows", "sandbox"},
    "testing": COMMON | {"scripts"},
}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in {"cli"})


def part_of(module: str) -> str:
    """`backends.torch` -> `backends`; `backends.base` stands for itself."""
    return module if module == "backends.base" else module.split(".")[0]


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, relative to the package, at any depth of the code."""
    here = path.relative_to(PACKAGE).with_suffix("").parts[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = ".".join([*here[: len(here) - node.level + 1], *([node.module] if node.module else [])])
        elif node.module and node.module.split(".")[0] == "redisai_py":
            base = node.module[len("redisai_py") :].lstrip(".")
        else:
            continue
        found.update([base] if base else [alias.name for alias in node.names])
    return found


def test_there_are_files_to_look_at() -> None:
    assert {"engine.py", "loader.py", "torch.py"} <= {p.name for p in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_knowledge_has_one_direction(path: Path) -> None:
    own = part_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    if own not in ALLOWED:
        return  # install and the entry points: processes of their own
    foreign = {part_of(name) for name in imports_of(path)} - {own, "__init__"}
    assert foreign <= ALLOWED[own], f"{path.name} may not import {sorted(foreign - ALLOWED[own])}"


def test_only_one_file_imports_the_extension_module() -> None:
    importers = [p.name for p in FILES if "_redisai" in {name.split(".")[0] for name in imports_of(p)}]
    assert importers == ["_shim.py"]


def test_the_server_never_imports_the_command_line() -> None:
    for path in FILES:
        assert not any(name.startswith("cli") for name in imports_of(path)) or path.name in {"__main__.py"}, path


def test_only_two_c_files_know_python() -> None:
    shim = PACKAGE.parent / "shim"
    knowing = sorted(p.name for p in shim.glob("*.c") if '"py.h"' in p.read_text() or "Python.h" in p.read_text())
    assert knowing == ["interp.c", "pymodule.c"]
