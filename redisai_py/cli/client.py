"""A connection for the commands that look at or change a server, and what to do about it when that fails.

Replies come as the server sent them (bytes, int, lists): redis-py's own readings of INFO and others lose fields of modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .address import Address, address

CONNECT_SECONDS = 5.0

#: what redis-py raises -> what to do. The first row that fits counts: classes below others come first.
ADVICE: tuple[tuple[type[redis.RedisError], str], ...] = (
    (redis.AuthenticationError, "give the password in the environment as REDISCLI_AUTH, or with --pass, and the user with --user"),
    (redis.BusyLoadingError, "the server is still reading its data; try again in a moment"),
    (redis.exceptions.NoPermissionError, "the user lacks a right: see ACL WHOAMI and ACL GETUSER"),
    (redis.exceptions.MovedError, "the key belongs to another node of the cluster: name that one with -h and -p"),
    (redis.ReadOnlyError, "this server is a replica: name its master with -h and -p"),
    (redis.exceptions.OutOfMemoryError, "the server is at its maxmemory"),
    (redis.TimeoutError, "the server is there but does not answer"),
)
NO_SERVER = "start one with `redisai serve`, or say where it is with -h HOST and -p PORT"
NO_MODULE = 'load the module: redis-server --loadmodule "$(redisai module-path)", or `redisai serve`'


def connect(where: Address, timeout: float | None = None) -> redis.Redis:
    """A client that connects when it is first used. `timeout`: seconds to wait for a reply, None for ever."""
    client = redis.Redis(
        host=where.host,
        port=where.port,
        unix_socket_path=where.unix,
        username=where.user,
        password=where.password,
        db=where.database,
        protocol=2,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=timeout,
        retry=Retry(NoBackoff(), 0),  # a command that may have run is not sent twice
    )
    client.response_callbacks.clear()
    return client


@contextmanager
def talking(where: Mapping[str, Any], timeout: float | None = None) -> Iterator[redis.Redis]:
    """A client of the server that the options name; its errors become messages that say what to do (status 1)."""
    target = address(**where)
    with connect(target, timeout) as client:
        try:
            yield client
        except redis.RedisError as error:
            raise click.ClickException(explained(error, target)) from None


def explained(error: redis.RedisError, target: Address) -> str:
    """The error in one line, and the way out of it where there is one."""
    text = str(error)
    if "unknown command" in text and "AI." in text.upper():
        return f"the server at {target} does not have the module\n  {NO_MODULE}"
    for kind, advice in ADVICE:
        if isinstance(error, kind):
            return f"{target}: {text}\n  {advice}"
    if isinstance(error, redis.ConnectionError):
        return f"no server answers at {target}: {reason(error)}\n  {NO_SERVER}"
    return text


def reason(error: redis.ConnectionError) -> str:
    """What the system said, without the address that redis-py repeats."""
    cause = error.__cause__ or error.__context__
    return (isinstance(cause, OSError) and cause.strerror) or str(error).removesuffix(".")
