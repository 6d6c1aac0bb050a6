"""The patches beside this file. Each begins with what it is:

    Defect: what the change makes wrong, in one sentence
    Tier: plain, asan, tsan, leaks or memcheck
    Test: a test that must fail; a line for each
    Shows: what must be read in the output or in a sanitizer's report, so that it failed for this reason; a regular expression, optional

and goes on as `git diff` writes it. A patch changes the product alone: the tests it names are those of the project.

To add one: change the code, write the head, append the output of `git diff`, take the change back, and run `make seeded ARGS=<name>`.
Where the defect survives, a test is missing.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TIERS = ("plain", "asan", "tsan", "leaks", "memcheck")
#: Lines around a change that must still be the same: the fewest with which it cannot land elsewhere.
CONTEXT = "-C1"


@dataclass(frozen=True)
class Defect:
    """One patch. `tests` are pytest's ids without parameters, from the root of the tree."""

    name: str
    path: Path
    says: str
    tier: str
    tests: tuple[str, ...]
    shows: str
    files: tuple[str, ...]


def read(path: Path) -> Defect:
    """Raises ValueError with the name of the file when its head is incomplete."""
    head, cut, body = path.read_text().partition("\ndiff --git ")
    lines = [line.partition(": ") for line in head.splitlines() if line]
    known = {"Defect", "Tier", "Test", "Shows"}
    fields = {key: [value for word, _, value in lines if word == key] for key in known}
    if (
        not cut
        or {word for word, _, _ in lines} - known
        or len(fields["Defect"]) != 1
        or not fields["Test"]
        or fields["Tier"][0] not in TIERS
    ):
        raise ValueError(f"{path.name}: the head of a patch is Defect, Tier, Test and perhaps Shows, and a diff follows")
    files = tuple(re.findall(r"^\+\+\+ b/(\S+)", cut + body, re.MULTILINE))
    return Defect(path.stem, path, fields["Defect"][0], fields["Tier"][0], tuple(fields["Test"]), "|".join(fields["Shows"]), files)


def defects() -> Iterator[Defect]:
    """All of them, by name."""
    for path in sorted(HERE.glob("*.patch")):
        yield read(path)


def apply(defect: Defect, tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`git apply` in `tree`; what it says is in `.stderr`."""
    return subprocess.run(["git", "apply", CONTEXT, *options, str(defect.path)], cwd=tree, capture_output=True, text=True, check=False)


def missing(test: str) -> bool:
    """Whether a test is not there, by its source: collecting would import every library."""
    file, _, function = test.partition("::")
    path = ROOT / file
    if not path.exists() or not function:
        return not path.exists()
    return function not in {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
