"""Rows of figures: a rich table on a terminal, aligned plain columns in a pipe. And figures as words, with their units."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from .output import console, write

NONE = "-"  # an absent figure, so that a pipe's columns stay countable


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> RenderableType:
    """A heading that ends in "<" is of a column of words; the others hold figures and are flush right."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        words = heading.endswith("<")
        made.add_column(heading.removesuffix("<"), justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for row in rows:
        made.add_row(*map(escape, row))
    return Group(f"[bold]{escape(title)}[/]", made) if title else made


def plain(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    cells = [[heading.removesuffix("<") for heading in headings], *[[cell or NONE for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if heading.endswith("<") else cell.rjust(width)
            for cell, width, heading in zip(row, widths, headings, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([*([title] if title else []), *lines]) + "\n"


def show(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    if sys.stdout.isatty():
        console().print(table(headings, rows, title))
    else:
        write(plain(headings, rows, title).encode())


# ---- figures as words --------------------------------------------------------------------------------------------------------------


def duration(microseconds: float | None) -> str:
    """Three digits and a unit: 853 us, 1.20 ms, 3.41 s."""
    if microseconds is None:
        return NONE
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            value = microseconds / size
            return f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{microseconds:.1f} us" if 0 < microseconds < 10 else f"{microseconds:.0f} us"


def size(count: float | None) -> str:
    """Bytes as 512 B, 9.9 kB, 1.5 MB (powers of 1000)."""
    if count is None:
        return NONE
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def number(value: float | None, digits: int = 0) -> str:
    return NONE if value is None else f"{value:.{digits}f}"
