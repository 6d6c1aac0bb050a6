"""The click group that finds subcommands in the table of this package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import click

from .. import __version__
from . import COMMANDS
from .output import ReaderGoneError


class TableGroup(click.Group):
    """Imports a subcommand's file when it is called, and not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f".{COMMANDS[name][0]}", __package__).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=TableGroup, context_settings={"max_content_width": 120})
@click.version_option(__version__, prog_name="redisai")
def group() -> None:
    """Serve models from Redis: start a server, talk to it, look after it."""


def run(argv: Sequence[str]) -> int:
    """Runs the group outside click's own exit handling, so that callers and tests get a status."""
    try:
        status = group.main(args=list(argv), prog_name="redisai", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except ReaderGoneError:
        return 0
    return status if isinstance(status, int) else 0
