"""`redisai models`: what is stored, and how it has been doing."""

from __future__ import annotations

from typing import Any

import click

from .address import address_options
from .client import talking
from .figures import Program, names, read_programs
from .output import write_json
from .tables import duration, number, show, size

HEADINGS = ("KEY<", "TYPE<", "BACKEND<", "DEVICE<", "TAG<", "CALLS", "ERRORS", "MEAN", "BATCH", "SAMPLES", "MEMORY")


def row(program: Program) -> list[str]:
    return [
        program.key,
        program.type.lower(),
        program.backend,
        program.device,
        program.tag,
        str(program.calls),
        str(program.errors),
        duration(program.mean_us),
        number(program.mean_batch, 1),
        number(program.samples),
        size(program.memory),
    ]


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="All figures as JSON.")
@address_options
def command(as_json: bool, **where: Any) -> None:
    """List the models and scripts of a database, with the figures of AI.INFO.

    MEAN is the time of a run, BATCH the mean number of requests that ran together, SAMPLES the rows that went through.

    \b
    redisai models
    redisai models --json -n 2
    """
    with talking(where) as client:
        programs = read_programs(client, names(client))
    if as_json:
        write_json([program.as_dict() for program in programs])
    elif programs:
        show(HEADINGS, [row(program) for program in programs])
    else:
        click.echo("no models or scripts in this database; `redisai store FILE` stores a model", err=True)
