"""`redisai module-path`: where redisai.so is."""

from __future__ import annotations

import click

from ..install import module_path


@click.command("module-path")
def command() -> None:
    """Print the path of redisai.so.

    \b
    redis-server --loadmodule "$(redisai module-path)"
    """
    try:
        click.echo(module_path())
    except FileNotFoundError as error:
        raise click.ClickException(str(error)) from None
