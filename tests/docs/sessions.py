"""Reads the documentation's code blocks and runs them, so that what a page shows is what happens.

    ```console   a session. Lines that begin with `$ ` are typed into a shell (which goes on with `> ` where a line is not all), lines that
                 begin with `127.0.0.1:6379> ` into redis-cli; the lines that follow are what is printed. A line `...` stands for any
                 lines, `...` inside one for any text, and a number with a decimal point for any number close to it: libraries and
                 processors differ in the last digits.
    ```python    a program; the blocks of a page share their variables. An ```output block right after it is what it prints.
    ```sh        typed on a machine of one's own (installing, starting services): read for errors, not run.

`<!-- no-run: reason -->` on the line before a block keeps it from being run. The blocks of a page run in order on one server that is empty
at the top of the page, in a directory that has the checkout's examples/ and tests/ in it. The server's port takes the place of 6379.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import pty
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from redisai_py.cli.address import Address
from redisai_py.cli.redis_cli import Session, is_text
from redisai_py.cli.replies import for_terminal, raw
from redisai_py.cli.words import split

ROOT = Path(__file__).resolve().parents[2]
RUN = ("console", "python")
DEFAULT_PORT = "6379"
SECONDS = 120

FENCE = re.compile(r"^(?P<indent>\s*)(?P<ticks>`{3,})\s*(?P<language>[\w+-]*).*$")
NO_RUN = re.compile(r"^\s*<!-- no-run: .+ -->\s*$")
PROMPT = re.compile(r"^(?:(?P<shell>\$)|(?:127\.0\.0\.1:\d+|redis)(?:\[\d+\])?(?:\(TX\))?>) (?P<command>.*)$")
#: A piece of an expected line that does not stand for itself.
VAGUE = re.compile(r"(?P<anything>\.\.\.|…)|(?P<number>-?\d+\.\d+(?:e[+-]?\d+)?)")
NUMBER = r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|-?inf|nan)"


# ---- reading -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of its first line of text
    language: str
    text: str
    no_run: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


class Step(NamedTuple):
    """What is typed at one prompt, and what the page says is printed."""

    shell: bool
    command: str
    expected: list[str]


def pages() -> list[Path]:
    """Each once: docs/ has links to pages that lie beside README.md."""
    linked = [page for page in sorted((ROOT / "docs").rglob("*.md")) if not page.is_symlink()]
    return [ROOT / "README.md", *sorted(page.resolve() for page in (ROOT / "docs").glob("*.md") if page.is_symlink()), *linked]


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        opening = FENCE.match(lines[at])
        if not opening:
            at += 1
            continue
        end = next((i for i in range(at + 1, len(lines)) if lines[i].strip() == opening["ticks"]), None)
        if end is None:
            raise ValueError(f"{page}:{at + 1}: a code block that does not end")
        text = textwrap.dedent("\n".join(line.removeprefix(opening["indent"]) for line in lines[at + 1 : end]))
        no_run = at > 0 and bool(NO_RUN.match(lines[at - 1]))
        found.append(Block(page, at + 2, opening["language"], text, no_run))
        at = end + 1
    return found


def steps(block: Block) -> list[Step]:
    """Raises ValueError for a session that begins with output."""
    found: list[Step] = []
    typing = False  # what follows may still belong to the line above
    for line in block.text.splitlines():
        if typing and (line[:2] in (">", "> ") or found[-1].command.endswith("\\")):
            shell, command, _ = found.pop()
            found.append(Step(shell, f"{command}\n{re.sub('^> ?', '', line)}", []))
        elif typed := PROMPT.match(line):
            typing = bool(typed["shell"])
            found.append(Step(typing, typed["command"], []))
        elif found:
            typing = False
            found[-1].expected.append(line)
        elif line.strip():
            raise ValueError(f"{block}: a session begins with what is typed, not with {line!r}")
    return found


# ---- comparing ---------------------------------------------------------------------------------------------------------------------


def line_matches(expected: str, actual: str) -> bool:
    expected, actual = expected.rstrip(), actual.rstrip()
    pattern, at = "", 0
    numbers: list[float] = []
    for vague in VAGUE.finditer(expected):
        pattern += re.escape(expected[at : vague.start()])
        if vague["number"]:
            numbers.append(float(vague["number"]))
        pattern += NUMBER if vague["number"] else ".*"
        at = vague.end()
    found = re.fullmatch(pattern + re.escape(expected[at:]), actual)
    return found is not None and all(
        math.isclose(float(shown), number, rel_tol=1e-3, abs_tol=1e-5) for shown, number in zip(found.groups(), numbers, strict=True)
    )


def matches(expected: Sequence[str], actual: Sequence[str]) -> bool:
    """Whether what was printed is what the page shows; blank lines at either end do not count."""
    return all_match(without_blank_ends(expected), without_blank_ends(actual))


def all_match(expected: Sequence[str], actual: Sequence[str]) -> bool:
    if not expected:
        return not actual
    if expected[0].strip() in ("...", "…"):
        return any(all_match(expected[1:], actual[skip:]) for skip in range(len(actual) + 1))
    return bool(actual) and line_matches(expected[0], actual[0]) and all_match(expected[1:], actual[1:])


def without_blank_ends(lines: Sequence[str]) -> list[str]:
    full = [number for number, line in enumerate(lines) if line.strip()]
    return list(lines[full[0] : full[-1] + 1]) if full else []


# ---- running -----------------------------------------------------------------------------------------------------------------------

#: Subcommands of `redisai` that talk to a server.
TALKERS = "cli|doctor|store|models|run|top|bench|export|exporter|quickstart"


class Typist:
    """Types sessions at a server. `directory` becomes the working directory of what is typed; close() ends the connection."""

    def __init__(self, port: int, directory: Path) -> None:
        self.port = port
        self.directory = directory
        self.session = Session(Address(port=port), resp3=False, cluster=False)
        self.variables: dict[str, Any] = {"__name__": "__main__"}
        for name in ("examples", "tests", "redisai_py", "docs"):
            (directory / name).symlink_to(ROOT / name)
        self.environment = {
            **os.environ,
            "PATH": f"{self._programs()}:{os.environ['PATH']}",
            "NO_COLOR": "1",
            "COLUMNS": "140",
            "TERM": "dumb",
        }

    def close(self) -> None:
        self.session.drop()

    def _programs(self) -> Path:
        """redis-cli and redisai that know the port; redisai stands in for a redis-cli that is not there."""
        programs = self.directory / ".bin"
        programs.mkdir()
        redisai = f"{sys.executable} -m redisai_py"
        redis_cli = shutil.which("redis-cli") or f"{redisai} cli"
        texts = {
            "redis-cli": f'exec {redis_cli} -p {self.port} "$@"',
            "redisai": f'export PYTHONPATH={ROOT}\ncase "$1" in {TALKERS}) c=$1; shift; set -- "$c" -p {self.port} "$@";; esac\n'
            f'exec {redisai} "$@"',
            "python": f'exec {sys.executable} "$@"',
        }
        for name, text in texts.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        return programs

    def run(self, step: Step) -> list[str]:
        """The lines that it prints, with the port that pages use."""
        command = re.sub(rf"\b{DEFAULT_PORT}\b", str(self.port), step.command)
        text = self._shell(command) if step.shell else self._prompt(command)
        return re.sub(rf"\b{self.port}\b", DEFAULT_PORT, text).splitlines()

    def _prompt(self, command: str) -> str:
        arguments = split(command)
        reply = self.session.call(arguments)
        text = raw(reply).removesuffix(b"\n") + b"\n" if is_text(arguments) and isinstance(reply, bytes) else for_terminal(reply)
        return text.decode(errors="backslashreplace")

    def _shell(self, command: str) -> str:
        """On a terminal, as programs print otherwise for a pipe."""
        terminal, output = pty.openpty()
        printed: list[bytes] = []
        reader = threading.Thread(target=lambda: printed.extend(read_all(terminal)))
        reader.start()
        try:
            subprocess.run(
                ["bash", "-c", command],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=SECONDS,
                check=False,
            )
        finally:
            os.close(output)
            reader.join()
            os.close(terminal)
        return b"".join(printed).decode(errors="backslashreplace").replace("\r\n", "\n")

    def run_python(self, text: str) -> list[str]:
        text = re.sub(rf"\b{DEFAULT_PORT}\b", str(self.port), text)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.chdir(self.directory), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(text, "<documentation>", "exec"), self.variables)
        return re.sub(rf"\b{self.port}\b", DEFAULT_PORT, printed.getvalue()).splitlines()


def read_all(terminal: int) -> Iterator[bytes]:
    """What is written until the last writer closes, which Linux reports as an error of the reader."""
    with contextlib.suppress(OSError):
        while data := os.read(terminal, 65536):
            yield data


def disagreements(page: Path, typist: Typist) -> Iterator[str]:
    """One text per step of a page that printed something else than the page shows."""
    all_blocks = blocks(page)
    for block, following in zip(all_blocks, [*all_blocks[1:], None], strict=True):
        if block.no_run:
            continue
        if block.language == "console":
            for step in steps(block):
                actual = typist.run(step)
                if not matches(step.expected, actual):
                    yield report(f"{block}: {step.command}", step.expected, actual)
        elif block.language == "python":
            actual = typist.run_python(block.text)
            if following and following.language == "output" and not matches(following.text.splitlines(), actual):
                yield report(str(block), following.text.splitlines(), actual)


def report(what: str, expected: Sequence[str], actual: Sequence[str]) -> str:
    return "\n".join([what, "  the page shows", *(f"    {line}" for line in expected), "  it prints", *(f"    {line}" for line in actual)])
