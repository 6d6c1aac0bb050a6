"""tests/FAULTS.md names tests; this says that they exist, that no row is forgotten, and that few rows have none."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROWS = 98
MAY_LACK_TESTS = 10
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
TIERS = {"test", "fuzz", "soak"}


def rows() -> list[list[str]]:
    """The cells of every row of the table, as text."""
    lines = (TESTS / "FAULTS.md").read_text().splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if re.match(r"\| \d", line)]
    assert all(len(row) == 5 for row in cells), [row for row in cells if len(row) != 5]
    return cells


@cache
def functions(path: Path) -> set[str]:
    """The names of the functions of a file, also of those inside classes."""
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def unknown(text: str) -> list[str]:
    """What `text` names that is no function of a file below tests/, or is in a test file and no test."""
    found = []
    for file, name in NAMED.findall(text):
        path = TESTS / file
        is_test = name.startswith("test_") or not path.name.startswith("test_")
        if not (path.is_file() and is_test and name in functions(path)):
            found.append(f"{file}::{name}")
    return found


def test_every_row_is_there_once() -> None:
    assert [int(row[0]) for row in rows()] == list(range(1, ROWS + 1))


def test_every_test_that_is_named_exists() -> None:
    assert {row[0]: unknown(row[3]) for row in rows() if unknown(row[3])} == {}


def test_a_cell_names_tests_or_says_what_is_missing_and_the_tiers_are_known() -> None:
    said = {row[0]: NAMED.sub("", row[3]).replace("<br>", "").strip(" ,") for row in rows()}
    assert {row: text for row, text in said.items() if text and not text.startswith("*Missing:*")} == {}
    assert {row[0]: row[4] for row in rows() if not set(row[4].replace(",", "").split()) <= TIERS} == {}


def test_few_rows_have_no_test_and_those_say_what_is_missing() -> None:
    without = {row[0]: row[3] for row in rows() if not NAMED.search(row[3])}
    assert len(without) <= MAY_LACK_TESTS
    assert [row for row, text in without.items() if len(text.removeprefix("*Missing:*").split()) < 5] == []
    assert [row[0] for row in rows() if not (row[1] and row[2]) or bool(row[4]) != bool(NAMED.search(row[3]))] == []


def test_a_name_that_leads_nowhere_is_found() -> None:
    here = "docs/test_faults_table.py"
    good = f"`{here}::test_every_row_is_there_once`"
    bad = [f"{here}::rows", f"{here}::test_nothing", "docs/no_file.py::test_nothing"]
    assert unknown(" ".join([good, *(f"`{name}`" for name in bad)])) == bad
