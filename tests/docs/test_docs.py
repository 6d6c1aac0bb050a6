"""The documentation is true: what it shows is what happens, what it links to is there, and every command has its page."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import pytest
import redis
from servers import Server
from sessions import FENCE, ROOT, RUN, Block, Typist, blocks, disagreements, line_matches, matches, pages, steps

from redisai_py.cli import COMMANDS
from redisai_py.cli.group import group

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(<?([^)\s>]+)>?\)")
HEADING = re.compile(r"^#{1,6} +(.*?)\s*#*$")
NO_RUN_SHARE = 0.06


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def is_run(page: Path) -> bool:
    return any(block.language in RUN for block in blocks(page))


# ---- what is shown is what happens -------------------------------------------------------------------------------------------------


@pytest.fixture
def page_server(request: pytest.FixtureRequest) -> Server:
    """Where the page's sessions are run: pages about flows need a server that runs them."""
    page = getattr(request.node, "callspec", None) and request.node.callspec.params.get("page")
    server: Server = request.getfixturevalue("flow_server" if page and page.name.startswith(("flows.", "rg.")) else "real_server")
    return server


@pytest.fixture
def typist(page_server: Server, tmp_path: Path) -> Iterator[Typist]:
    typist = Typist(page_server.port, tmp_path)
    yield typist
    typist.close()


@pytest.mark.slow
@pytest.mark.needs_torch
@pytest.mark.needs_tf
@pytest.mark.needs_onnx
@pytest.mark.needs_tflite
@pytest.mark.parametrize("page", [page for page in pages() if is_run(page)], ids=name_of)
def test_a_page_shows_what_its_sessions_print(page: Path, typist: Typist, page_server: Server) -> None:
    client = page_server.client()
    before = client.config_get("*")
    found = list(disagreements(page, typist))
    for parameter, value in client.config_get("*").items():
        if before[parameter] != value:
            client.config_set(parameter, before[parameter])
    assert not found, "\n\n".join(found)


def test_few_blocks_are_not_run() -> None:
    all_blocks = [block for page in pages() for block in blocks(page) if block.language in RUN]
    left_out = [str(block) for block in all_blocks if block.no_run]
    assert len(all_blocks) > 40
    assert len(left_out) <= NO_RUN_SHARE * len(all_blocks), left_out


def test_every_session_begins_with_what_is_typed() -> None:
    for page in pages():
        for block in blocks(page):
            if block.language == "console":
                assert steps(block), block


def test_sessions_are_marked_as_such() -> None:
    """A session under another name, or none, would not be run."""
    for page in pages():
        for block in blocks(page):
            if block.language not in ("console", "sh"):
                assert not re.search(r"^(\$|127\.0\.0\.1:\d+>) ", block.text, re.MULTILINE), f"{block} is a session: mark it as console"


@pytest.mark.parametrize("block", [block for page in pages() for block in blocks(page) if block.language in ("sh", "bash")], ids=str)
def test_shell_lines_can_be_typed(block: Block) -> None:
    assert not re.search(r"^\$ ", block.text, re.MULTILINE), "a session is a console block"
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for target in re.findall(r"^make ([a-z-]+)", block.text, re.MULTILINE):
        assert re.search(rf"^{target}: ", (ROOT / "Makefile").read_text(), re.MULTILINE), f"make has no target {target}"
    for line in re.findall(r"\bredisai ([a-z-]+.*)", block.text):
        check_subcommand(line)


def check_subcommand(line: str) -> None:
    subcommand, *words = line.split()
    assert subcommand in COMMANDS, f"redisai has no {subcommand}"
    command = group.get_command(click.Context(group), subcommand)
    assert command
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    for word in words:
        if word in ("--", "|", "#", "&&", "&"):
            return
        if word.startswith("--"):
            assert word.split("=")[0].strip("`)\"'") in known, f"redisai {subcommand} has no {word}"


# ---- links ---------------------------------------------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    """The page without its code."""
    kept, fence = [], ""
    for line in page.read_text().splitlines():
        if fence:
            fence = "" if line.strip() == fence else fence
        elif opening := FENCE.match(line):
            fence = opening["ticks"]
        else:
            kept.append(re.sub(r"`[^`]*`", "", line) if not HEADING.match(line) else line)
    return "\n".join(kept)


@cache
def anchors(page: Path) -> set[str]:
    """As mkdocs makes them of headings."""
    found: set[str] = set()
    for line in prose(page).splitlines():
        if not (heading := HEADING.match(line)):
            continue
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
        slug = re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())
        found.add(slug if slug not in found else f"{slug}_1")
    return found


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name_of(page)} links to {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{name_of(page)} links to {target}; there are {sorted(anchors(there))}"


def test_every_page_can_be_reached_from_the_first() -> None:
    reached, waiting = set(), [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for target in LINK.findall(prose(page)):
            there = (page.parent / target.partition("#")[0]).resolve()
            if there.suffix == ".md" and there not in reached and there.exists():
                waiting.append(there)
    assert {name_of(page) for page in pages() if page.is_relative_to(ROOT / "docs")} <= {name_of(page) for page in reached}


# ---- completeness ----------------------------------------------------------------------------------------------------------------------


def test_every_command_has_its_page(real: redis.Redis) -> None:
    """A read-only form may be described on the page of the command it is a form of."""
    commands = [name for name in real.execute_command("COMMAND") if name.startswith("ai.")]
    assert len(commands) == 22
    for command in commands:
        page = ROOT / "docs" / "commands" / f"{command}.md"
        if not page.exists():
            page = ROOT / "docs" / "commands" / f"{command.removesuffix('_ro')}.md"
        assert page.exists(), f"{command} has no page"
        assert command.upper() in page.read_text(), page


def test_the_overview_of_commands_says_what_the_server_says(flow_server: Server) -> None:
    rows = dict(re.findall(r"^\| \[([A-Z._]+)\]\([^)]*\) \| (.+) \|$", (ROOT / "docs" / "commands" / "index.md").read_text(), re.MULTILINE))
    with flow_server.client() as client:
        client.response_callbacks = {}  # redis-py takes the reply for one of COMMAND itself
        try:
            described = pairs(client.execute_command("COMMAND", "DOCS", *rows))
        except redis.ResponseError:
            pytest.skip("a server before 7.0 has no COMMAND DOCS")
    summaries = {name.decode().upper(): dict(pairs(entry))[b"summary"].decode() for name, entry in described}
    assert rows == summaries
    assert len(rows) == 26


def pairs(reply: Any) -> list[tuple[Any, Any]]:
    return list(reply.items()) if isinstance(reply, dict) else list(zip(reply[::2], reply[1::2], strict=True))


def test_readme_names_every_subcommand_of_redisai() -> None:
    rows = re.findall(r"^\| `redisai ([a-z-]+)` \| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows == [(name, line) for name, (_, line) in COMMANDS.items()]


def configuration_rows() -> list[tuple[str, str, str]]:
    """(load arguments, parameter, default) of each row of README's table."""
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \| `(ai\.[a-z-]+)` \| ([^|]+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    return [(arguments, parameter, default.strip()) for arguments, parameter, default in rows]


def test_readme_names_every_setting_with_its_default(real: redis.Redis) -> None:
    parameters = real.config_get("ai.*")
    if not parameters:
        pytest.skip("a server before 7.0 has no parameters of modules")
    rows = configuration_rows()
    assert {parameter for _, parameter, _ in rows} == set(parameters)
    for _, parameter, default in rows:
        if not default.startswith("*"):
            assert parameters[parameter] == default, parameter
    table = (ROOT / "shim" / "config.c").read_text().partition("static const Option options[]")[2].partition("};")[0]
    assert set(re.findall(r'^    \{"([A-Z_]+)"', table, re.MULTILINE)) == {
        name for names, _, _ in rows for name in re.findall("[A-Z_]+", names)
    }


def test_the_page_on_what_was_tested_names_the_versions_that_tests_run_with() -> None:
    page = (ROOT / "docs" / "tested.md").read_text()
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    rows = dict(re.findall(r"^\| (?:TORCH|TF|ONNX|TFLITE) \| ([a-z-]+) ([\d.]+) \|", page, re.MULTILINE))
    del rows["tflite-runtime"]  # in an environment of its own
    assert len(rows) == 4
    assert rows == {name: pins[name if name in pins else name.replace("-", "_")] for name in rows}
    assert f"redis-py {'.'.join(pins['redis'].split('.')[:2])}" in page


def test_compatibility_names_the_limits_with_their_defaults(real: redis.Redis) -> None:
    rows = re.findall(r"^\| (MAX_\w+) \| (\d+)", (ROOT / "docs" / "compatibility.md").read_text(), re.MULTILINE)
    assert len(rows) == 4
    for name, default in rows:
        assert real.execute_command("AI.CONFIG", "GET", name) == int(default), name


def test_the_errors_in_troubleshooting_are_ours() -> None:
    """A text that nobody sends any more helps nobody. What follows `...` is the error's own detail."""
    sources = "".join(
        path.read_text() for folder in ("shim", "redisai_py") for path in (ROOT / folder).rglob("*.[cp]*") if path.suffix in (".c", ".py")
    )
    quoted = re.findall(r"`(ERR [^`]+)`", (ROOT / "docs" / "troubleshooting.md").read_text())
    assert len(quoted) >= 8
    for text in quoted:
        for part in re.split(r"\.\.\.|NAME value", text.removeprefix("ERR ")):
            assert part.strip() in sources or part.startswith("wrong number of arguments"), text


# ---- the reader itself -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ("OK", "OK", True),
        ("OK", "(error) ERR", False),
        ('1) "0.25"', '1) "0.2500001"', True),
        ('1) "0.25"', '1) "0.26"', False),
        ('1) "1e-06"', '1) "1e-06"', True),
        ("(integer) 5", "(integer) 6", False),
        ("(integer) ...", "(integer) 6", True),
        ("12.5 ms", "12.5 s", False),
    ],
)
def test_lines_are_compared_as_the_convention_says(expected: str, actual: str, same: bool) -> None:
    assert line_matches(expected, actual) is same


def test_three_dots_stand_for_any_lines_and_nothing_else_does() -> None:
    assert matches(["a", "...", "z"], ["a", "b", "c", "z"])
    assert matches(["a", "..."], ["a"])
    assert not matches(["a", "z"], ["a", "b", "z"])
    assert not matches(["a", "...", "z"], ["a", "b"])
    assert not matches([], ["an error nobody expected"])


def test_a_shell_goes_on_where_a_line_is_not_all() -> None:
    text = "$ cat <<'EOF'\n> a\n>   b\n> EOF\na\n  b\n$ echo x \\\n    y\nx y\n> z"
    first, second = steps(Block(ROOT / "page.md", 1, "console", text, False))
    assert first == (True, "cat <<'EOF'\na\n  b\nEOF", ["a", "  b"])
    assert second == (True, "echo x \\\n    y", ["x y", "> z"])


def test_a_wrong_session_is_reported(typist: Typist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n127.0.0.1:6379> AI.TENSORSET t INT8 1 VALUES 7\nOK\n$ redis-cli AI.TENSORGET t VALUES\n1) (integer) 8\n```\n"
        "```python\nprint(6379)\n```\n```output\n6380\n```\n"
    )
    monkeypatch.setattr("sessions.ROOT", tmp_path)
    found = list(disagreements(page, typist))
    assert len(found) == 2
    assert "page.md:2: redis-cli AI.TENSORGET t VALUES" in found[0]
    assert "1) (integer) 7" in found[0]
    assert "    6379" in found[1]
