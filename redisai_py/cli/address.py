"""Where a server is: the options that every subcommand talking to one shares, spelled as redis-cli spells them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import click

from .resp import Connection, Failure

F = TypeVar("F", bound=Callable[..., Any])
PASSWORD_VARIABLE = "REDISCLI_AUTH"


class RefusedError(Exception):
    """The server answered the greeting (AUTH, HELLO, SELECT) with an error."""


@dataclass(frozen=True)
class Address:
    host: str = "127.0.0.1"
    port: int = 6379
    unix: str | None = None
    user: str | None = None
    password: str | None = None
    database: int = 0

    def __str__(self) -> str:
        return self.unix or f"{self.host}:{self.port}"

    def connect(self, resp3: bool = False, timeout: float | None = None) -> Connection:
        """Raises OSError when nothing answers, RefusedError when the server turns the greeting down."""
        connection = Connection(self.host, self.port, self.unix, timeout)
        for command in self._greeting(resp3):
            reply = connection.call(*command)
            if isinstance(reply, Failure):
                connection.close()
                raise RefusedError(f"{command[0]} failed: {reply.text.decode(errors='replace')}")
        return connection

    def _greeting(self, resp3: bool) -> list[list[str]]:
        commands = []
        if self.password is not None:
            commands.append(["AUTH", *([self.user] if self.user else []), self.password])
        if resp3:
            commands.append(["HELLO", "3"])
        if self.database:
            commands.append(["SELECT", str(self.database)])
        return commands


def from_url(url: str) -> Address:
    """redis://[[user]:password@]host[:port][/database], or unix://path. Raises click.BadParameter."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise click.BadParameter(f"{url}: {error}") from None
    if parts.scheme == "unix":
        return Address(unix=parts.path)
    if parts.scheme not in ("redis", "valkey"):
        raise click.BadParameter(f"{url} does not begin with redis:// or unix://")
    database = parts.path.strip("/")
    if database and not database.isdigit():
        raise click.BadParameter(f"{url}: {database!r} is no database number")
    return Address(
        host=parts.hostname or Address.host,
        port=port or Address.port,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        database=int(database or 0),
    )


OPTIONS = (
    click.option("-h", "--host", help="Server's host.  [default: 127.0.0.1]"),
    click.option("-p", "--port", type=click.IntRange(1, 65535), help="Server's port.  [default: 6379]"),
    click.option("-s", "--socket", "unix", metavar="PATH", help="Unix socket instead of host and port."),
    click.option("-a", "--pass", "password", metavar="TEXT", help=f"Password; better in the environment as {PASSWORD_VARIABLE}."),
    click.option("--user", metavar="NAME", help="User of the password."),
    click.option("-n", "--db", "database", type=click.IntRange(0), help="Database number."),
    click.option("-u", "--url", metavar="URL", help="redis://user:password@host:port/database"),
)


def address_options(function: F) -> F:
    """Adds the options; the function receives them as keyword arguments for `address()`."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


def address(url: str | None = None, **given: Any) -> Address:
    """The address that the options name; an option overrides its part of the URL."""
    found = from_url(url) if url else Address()
    if found.password is None and (password := os.environ.get(PASSWORD_VARIABLE)):
        found = replace(found, password=password)
    return replace(found, **{name: value for name, value in given.items() if value is not None})
