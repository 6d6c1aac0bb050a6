"""A hook of mkdocs: puts the pages of docs/commands into the navigation, so that a new command's page needs no line in mkdocs.yml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SECTION = "commands/"


def on_config(config: Any) -> Any:
    """Replaces the entry that names the folder by its pages, the overview first. Raises KeyError when mkdocs.yml has no such entry."""
    folder = Path(config["docs_dir"]) / SECTION
    pages = sorted(page.name for page in folder.glob("*.md") if page.name != "index.md")
    for entry in config["nav"]:
        if SECTION in entry.values():
            entry["Commands"] = [f"{SECTION}index.md", *({page.removesuffix(".md").upper(): SECTION + page} for page in pages)]
            return config
    raise KeyError(SECTION)
