"""Keeps the heads of docs/commands/*.md equal to what a server says of the commands: syntax, summary, complexity, flags, access to keys.

All of it comes from the table in shim/commands.c by way of COMMAND DOCS and COMMAND INFO of a running server (Redis 7.0 or later, Valkey)
with the module. The head of a page is everything above its first `## `; the rest is written by hand. Without --check heads are put right,
and a page that is missing is begun.

    python tools/command_pages.py [--check] [--port 6379]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

PAGES = Path(__file__).resolve().parent.parent / "docs" / "commands"

#: flags of COMMAND INFO that say nothing about the command
DULL = {"module", "movablekeys"}


# ---- asking ----------------------------------------------------------------------------------------------------------------


def ask(client: redis.Redis, *command: str) -> Any:
    """The reply as it came: redis-py rearranges those of COMMAND. Text is decoded."""
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command(*command)
        return decoded(connection.read_response())
    finally:
        client.connection_pool.release(connection)


def decoded(reply: Any) -> Any:
    if isinstance(reply, dict):
        return {decoded(name): decoded(value) for name, value in reply.items()}
    if isinstance(reply, list | set):
        return [decoded(item) for item in reply]
    return reply.decode() if isinstance(reply, bytes) else reply


def fields(reply: Any) -> dict[str, Any]:
    """A map, which RESP2 sends as an array."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def commands(client: redis.Redis) -> dict[str, list[Any]]:
    """Rows of COMMAND INFO by name, of our commands. Raises ResponseError on a server before 7.0."""
    names = sorted(ask(client, "COMMAND", "LIST", "FILTERBY", "MODULE", "ai"))
    return {row[0]: row for row in ask(client, "COMMAND", "INFO", *names)}


# ---- writing ---------------------------------------------------------------------------------------------------------------


def one(arg: dict[str, Any]) -> str:
    """An argument without its brackets: its token, its name, its alternatives or its parts."""
    parts = [fields(part) for part in arg.get("arguments", [])]
    if arg["type"] == "pure-token":
        return str(arg["token"])
    if arg["type"] == "oneof":
        text = " | ".join(syntax_of(part) for part in parts)
    elif arg["type"] == "block":
        text = " ".join(syntax_of(part) for part in parts)
    else:
        text = str(arg["name"])
    return f"{arg['token']} {text}" if "token" in arg else text


def syntax_of(arg: dict[str, Any]) -> str:
    flags = arg.get("flags", [])
    text = one(arg)
    if "multiple_token" in flags:
        text += f" [{text} ...]"
    elif "multiple" in flags:
        again = text.removeprefix(f"{arg['token']} ") if "token" in arg else text
        text += f" [{again} ...]"
    if "optional" in flags:
        return f"[{text}]"
    return f"<{text}>" if arg["type"] == "oneof" else text


def syntax(name: str, docs: dict[str, Any]) -> str:
    return " ".join([name.upper(), *(syntax_of(fields(arg)) for arg in docs.get("arguments", []))])


def leaves(args: list[Any]) -> Iterator[dict[str, Any]]:
    for arg in map(fields, args):
        yield arg
        yield from leaves(arg.get("arguments", []))


def access(docs: dict[str, Any], row: list[Any]) -> str:
    """Which of `%R~` and `%W~` a user needs, for each argument that is a key."""
    kinds: dict[str, list[str]] = {}
    for arg in leaves(docs.get("arguments", [])):
        if arg["type"] != "key":
            continue
        flags = set(fields(row[8][arg["key_spec_index"]])["flags"])
        letters = ("R" if "access" in flags else "") + ("W" if flags & {"insert", "update", "delete"} else "")
        kinds.setdefault(letters, []).append(f"`{arg['name']}`")
    return "; ".join(f"`%{letters}~` {', '.join(dict.fromkeys(names))}" for letters, names in kinds.items())


def head(client: redis.Redis, name: str, row: list[Any]) -> str:
    docs = fields(fields(ask(client, "COMMAND", "DOCS", name))[name])
    flags = ", ".join(flag for flag in sorted(row[2]) if flag not in DULL)
    facts = [("since", docs["since"]), ("complexity", docs["complexity"]), ("flags", flags), ("keys", access(docs, row) or "none")]
    rows = "\n".join(f"| {what} | {text} |" for what, text in facts)
    return f"# {name.upper()}\n\n```text\n{syntax(name, docs)}\n```\n\n{docs['summary']}\n\n| | |\n|---|---|\n{rows}\n\n"


# ---- comparing -------------------------------------------------------------------------------------------------------------


def body(page: Path) -> str:
    """What is written by hand."""
    text = page.read_text() if page.exists() else ""
    at = text.find("\n## ")
    return text[at + 1 :] if at >= 0 else ""


def page_of(name: str, folder: Path) -> Path:
    """A read-only form may have its page with the command it is a form of."""
    page = folder / f"{name}.md"
    return page if page.exists() or not name.endswith("_ro") else folder / f"{name.removesuffix('_ro')}.md"


def wrong_pages(client: redis.Redis, folder: Path = PAGES, mend: bool = False) -> list[str]:
    """Names of the commands whose page is missing or has another head; with `mend` they are put right."""
    found = []
    for name, row in commands(client).items():
        page = page_of(name, folder)
        if page.stem != name:
            continue
        wanted = head(client, name, row) + body(page)
        if not page.exists() or page.read_text() != wanted:
            found.append(name)
            if mend:
                page.write_text(wanted)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Put the heads of docs/commands right, or check them.")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--port", type=int, default=6379)
    options = parser.parse_args()
    wrong = wrong_pages(redis.Redis(port=options.port), mend=not options.check)
    for name in wrong:
        print(f"docs/commands/{name}.md {'differs from' if options.check else 'was put right by'} the table of commands")
    return int(options.check and bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
