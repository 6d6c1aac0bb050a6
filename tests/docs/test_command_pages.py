"""The pages of the commands begin with what the server says of them: one table feeds both."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from servers import Server

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import command_pages  # noqa: E402


@pytest.fixture
def c(flow_server: Server) -> Iterator[redis.Redis]:
    """Of a server with all commands."""
    with flow_server.client() as client:
        try:
            command_pages.commands(client)
        except redis.ResponseError:
            pytest.skip("a server before 7.0 knows nothing of arguments")
        yield client


def test_the_head_of_every_page_is_what_the_server_says(c: redis.Redis) -> None:
    assert command_pages.wrong_pages(c) == [], "run: python tools/command_pages.py"


def test_every_page_says_how_to_call_the_command_what_it_answers_and_shows_it() -> None:
    for page in command_pages.PAGES.glob("[ar]*.*.md"):
        sections = [line for line in page.read_text().splitlines() if line.startswith("## ")]
        assert "## Reply" in sections and "```console" in page.read_text(), page.name


def test_a_page_that_differs_is_found_and_put_right(c: redis.Redis, tmp_path: Path) -> None:
    names = list(command_pages.commands(c))
    assert len(names) == 26
    (tmp_path / "ai.dagexecute.md").write_text("")
    (tmp_path / "ai.dagrun.md").write_text("")
    pages = [name for name in names if name not in ("ai.dagexecute_ro", "ai.dagrun_ro")]
    assert command_pages.wrong_pages(c, tmp_path) == command_pages.wrong_pages(c, tmp_path, mend=True) == pages
    assert command_pages.wrong_pages(c, tmp_path) == []
    page = tmp_path / "ai.tensorget.md"
    assert page.read_text().startswith("# AI.TENSORGET\n\n```text\nAI.TENSORGET key [META] [BLOB | VALUES]\n```\n")
    page.write_text(page.read_text().replace("Returns", "Gives") + "## Body\n\ntext\n")
    assert command_pages.wrong_pages(c, tmp_path, mend=True) == ["ai.tensorget"]
    assert page.read_text().endswith("| keys | `%R~` `key` |\n\n## Body\n\ntext\n")
