"""`redisai top`: what a server is doing, as a live table; once and in plain text when piped.

Every figure but the totals is of the time since the last look: counters are read twice and subtracted. Percentiles are the server's own of
whole commands (waiting included), read off the buckets of LATENCY HISTOGRAM, which double: the truth may be up to that factor away.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click
import redis
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from .address import Address, address, address_options
from .client import explained, talking
from .figures import RUN_COMMANDS, STORE_COMMANDS, TENSOR_COMMANDS, Command, Names, Program, queues, read_commands, read_info, read_programs
from .output import console, write, write_json
from .tables import duration, number, plain, size, table

COMMANDS = (*RUN_COMMANDS, *TENSOR_COMMANDS, *STORE_COMMANDS)
PROGRAM_HEADINGS = ("KEY<", "TYPE<", "BACKEND<", "DEVICE<", "CALLS/S", "RUN", "WAIT", "BATCH", "ERRORS", "CALLS", "MEMORY")
COMMAND_HEADINGS = ("COMMAND<", "CALLS/S", "MEAN", "P50", "P99", "FAILED")
QUEUE_HEADINGS = ("QUEUE<", "LENGTH", "OPENING", "WORKERS", "BUSY")


@dataclass(frozen=True)
class Look:
    """One reading of everything."""

    at: float  # seconds, of a clock that only goes forward
    info: Mapping[str, str]
    programs: Mapping[str, Program]
    commands: Mapping[str, Command]


def look(client: redis.Redis, names: Names) -> Look:
    info = read_info(client)
    programs = {program.key: program for program in read_programs(client, names.read(client, info))}
    return Look(time.monotonic(), info, programs, read_commands(client, info, COMMANDS))


# ---- two looks as figures ----------------------------------------------------------------------------------------------------------


def ratio(amount: float, count: float) -> float | None:
    return amount / count if count else None


def program_figures(now: Program, before: Program | None, seconds: float) -> dict[str, Any]:
    """Since `before`; of the whole life of the key when its counters were reset meanwhile, or when it is new."""
    then = before if before and before.calls <= now.calls and before.batches <= now.batches else None
    since = {name: getattr(now, name) - (getattr(then, name) if then else 0) for name in DIFFERENCES}
    return {
        "key": now.key,
        "type": now.type,
        "backend": now.backend,
        "device": now.device,
        "calls_per_second": since["calls"] / seconds,
        "run_us": ratio(since["duration_us"], since["calls"]),
        "wait_us": ratio(since["wait_us"], since["batched_requests"]),
        "batch": ratio(since["batched_requests"], since["batches"]),
        "errors": now.errors,
        "calls": now.calls,
        "memory": now.memory,
    }


DIFFERENCES = ("calls", "duration_us", "wait_us", "batched_requests", "batches")


def command_figures(now: Command, before: Command | None, seconds: float) -> dict[str, Any]:
    since = now.since(before)
    return {
        "command": now.name,
        "calls_per_second": since.calls / seconds,
        "mean_us": ratio(since.usec, since.calls),
        "p50_us": since.percentile(0.50),
        "p99_us": since.percentile(0.99),
        "failed": now.failed,
    }


def figures(now: Look, before: Look) -> dict[str, Any]:
    """What is shown, as JSON has it. Times in microseconds, memory in bytes."""
    seconds = max(now.at - before.at, 1e-6)
    info = now.info
    return {
        "seconds": seconds,
        "server": {
            "kind": "Valkey" if "valkey_version" in info else "Redis",
            "version": info.get("valkey_version") or info.get("redis_version", "?"),
            "clients": int(info.get("connected_clients", 0)),
            "memory": int(info.get("used_memory", 0)),
            "commands_per_second": (int(info["total_commands_processed"]) - int(before.info["total_commands_processed"])) / seconds,
            "jobs_in_flight": int(info.get("ai_jobs_in_flight", 0)),
            "loads_in_progress": int(info.get("ai_loads_in_progress", 0)),
            "session_memory": sum(int(value) for name, value in info.items() if name.endswith("_memory_estimate")),
        },
        "queues": [{"device": device, **told} for device, told in queues(info).items()],
        "programs": [program_figures(program, before.programs.get(key), seconds) for key, program in now.programs.items()],
        "commands": [command_figures(command, before.commands.get(name), seconds) for name, command in now.commands.items()],
    }


# ---- figures as text ---------------------------------------------------------------------------------------------------------------


def heading(where: Address, told: Mapping[str, Any]) -> str:
    """Two lines: one would not fit a terminal of 80 columns."""
    server = told["server"]
    return (
        f"{server['kind']} {server['version']} at {where}  {server['clients']} clients  {server['commands_per_second']:.0f} commands/s\n"
        f"{size(server['memory'])} data  {size(server['session_memory'])} sessions  "
        f"{server['jobs_in_flight']} runs in flight  {server['loads_in_progress']} loading"
    )


def parts(told: Mapping[str, Any]) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    """The tables: (headings, rows). Programs by calls per second, the busiest first."""
    programs = sorted(told["programs"], key=lambda p: -p["calls_per_second"])
    return [
        (QUEUE_HEADINGS, [queue_row(queue) for queue in told["queues"]]),
        (PROGRAM_HEADINGS, [program_row(program) for program in programs]),
        (COMMAND_HEADINGS, [command_row(command) for command in told["commands"]]),
    ]


def queue_row(queue: Mapping[str, Any]) -> list[str]:
    busy = queue.get("workers", 0) - queue.get("idle_workers", 0)
    return [queue["device"], str(queue.get("length", 0)), str(queue.get("waiting", 0)), str(queue.get("workers", 0)), str(busy)]


def program_row(program: Mapping[str, Any]) -> list[str]:
    return [
        program["key"],
        program["type"].lower(),
        program["backend"],
        program["device"],
        number(program["calls_per_second"], 1),
        duration(program["run_us"]),
        duration(program["wait_us"]),
        number(program["batch"], 1),
        str(program["errors"]),
        str(program["calls"]),
        size(program["memory"]),
    ]


def command_row(command: Mapping[str, Any]) -> list[str]:
    times = [duration(command[name]) for name in ("mean_us", "p50_us", "p99_us")]
    return [command["command"].upper(), number(command["calls_per_second"], 1), *times, str(command["failed"])]


def as_text(where: Address, told: Mapping[str, Any]) -> str:
    return "\n".join([heading(where, told) + "\n", *(plain(headings, rows) for headings, rows in parts(told) if rows)])


def as_screen(where: Address, told: Mapping[str, Any]) -> RenderableType:
    shown: list[RenderableType] = [Text(heading(where, told))]
    for headings, rows in parts(told):
        if rows:
            shown += ["", table(headings, rows)]
    return Group(*shown)


# ---- the command -------------------------------------------------------------------------------------------------------------------


def once(client: redis.Redis, interval: float) -> dict[str, Any]:
    names = Names()
    before = look(client, names)
    time.sleep(interval)
    return figures(look(client, names), before)


def live(client: redis.Redis, where: Address, interval: float) -> None:
    """Until Ctrl-C. A server that goes away is waited for: a restart is what an operator may be watching for."""
    names = Names()
    before = look(client, names)
    with Live(as_screen(where, figures(before, before)), console=console(), screen=True, auto_refresh=False) as screen:
        while True:
            time.sleep(interval)
            try:
                now = look(client, names)
            except redis.ConnectionError as error:
                screen.update(Text(explained(error, where)), refresh=True)
                continue
            screen.update(as_screen(where, figures(now, before)), refresh=True)
            before = now


@click.command("top")
@click.option("-i", "--interval", type=click.FloatRange(0.05), default=1.0, show_default=True, metavar="SECONDS", help="Between two looks.")
@click.option("--once", "only_once", is_flag=True, help="One look over the interval, then end.  [default when piped]")
@click.option("--json", "as_json", is_flag=True, help="One look as JSON.")
@address_options
def command(interval: float, only_once: bool, as_json: bool, **where: Any) -> None:
    """Watch a server: queues, models and scripts, and the AI commands. Ctrl-C ends it.

    CALLS/S, RUN (a run in the library), WAIT (in the queue, per request) and BATCH (requests run together) are of the last interval; CALLS,
    ERRORS and FAILED are totals. P50 and P99 need Redis 7 or later.

    \b
    redisai top
    redisai top --once --interval 10
    """
    target = address(**where)
    with talking(where) as client:
        if sys.stdout.isatty() and not only_once and not as_json:
            with suppress(KeyboardInterrupt):  # the way to end it, and no failure
                live(client, target, interval)
            return
        told = once(client, interval)
    if as_json:
        write_json(told)
    elif sys.stdout.isatty():
        console().print(as_screen(target, told))
    else:
        write(as_text(target, told).encode())
