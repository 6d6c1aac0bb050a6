"""What the tests of RG.* share: sources that register flows, and a look at what is registered."""

from __future__ import annotations

from typing import Any

import redis


def command(trigger: str, body: str = "' '.join(record)") -> str:
    """A source: RG.TRIGGER `trigger` gives the expression `body`, in which `record` is the list of words."""
    return f"GB('CommandReader').map(lambda record: {body}).register(trigger={trigger!r})"


def on_key(prefix: str, body: str, **options: Any) -> str:
    """A source: `body`, in which `record` is what a KeysReader gives, runs for events of keys."""
    return f"GB('KeysReader').foreach(lambda record: {body}).register(prefix={prefix!r}, **{options!r})"


def waiting_command(trigger: str) -> str:
    """A source: RG.TRIGGER `trigger` `path` gives "done" when that file exists, and counts in the key "ended"."""
    return f"""
import os, time
def wait(record):
    while not os.path.exists(record[1]):
        time.sleep(0.005)
    execute('INCR', 'ended')
    return 'done'
GB('CommandReader').map(wait).register(trigger={trigger!r})
"""


def waits_for(path: Any) -> str:
    """Python that goes on when that file exists."""
    return f"import os, time\nwhile not os.path.exists({str(path)!r}):\n    time.sleep(0.005)\n"


def pairs(row: list[Any]) -> dict[str, Any]:
    return {name.decode(): value for name, value in zip(row[::2], row[1::2], strict=True)}


def registrations(r: redis.Redis) -> list[dict[str, Any]]:
    """RG.DUMPREGISTRATIONS, a dictionary for each, its RegistrationData put beside the rest and `args` made a list of pairs."""
    rows = [pairs(row) for row in r.execute_command("RG.DUMPREGISTRATIONS")]
    rows = [{**row, **pairs(row.pop("RegistrationData"))} for row in rows]
    return [{**row, "args": list(zip(row["args"][::2], row["args"][1::2], strict=True))} for row in rows]


def triggers(r: redis.Redis) -> dict[str, dict[str, Any]]:
    """The same of CommandReaders, by trigger."""
    return {dict(row["args"])[b"trigger"].decode(): row for row in registrations(r) if row["reader"] == b"CommandReader"}


def forget_all(r: redis.Redis) -> None:
    for row in registrations(r):
        r.execute_command("RG.UNREGISTER", row["id"])


def in_flight(r: redis.Redis) -> int:
    return int(r.info("ai_flows")["ai_flows_in_flight"])
