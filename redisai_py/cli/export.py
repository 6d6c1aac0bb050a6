"""`redisai export`: a stored model becomes a file again, byte for byte."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import redis

from .address import address_options
from .client import talking
from .figures import read_one
from .output import write, write_json
from .tables import size


def stored(client: redis.Redis, key: str) -> tuple[str, bytes]:
    """("MODEL", its bytes) or ("SCRIPT", its source). Raises redis.RedisError."""
    kind = read_one(client, key).type
    reply = client.execute_command(*(["AI.MODELGET", key, "BLOB"] if kind == "MODEL" else ["AI.SCRIPTGET", key, "SOURCE"]))
    return kind, b"".join(reply) if isinstance(reply, list) else reply


def save(path: Path, data: bytes) -> None:
    """Under its name only when whole: a file that was there stays as it was until then. Raises OSError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@click.command("export")
@click.argument("key")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("-f", "--force", is_flag=True, help="Write over a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@address_options
def command(key: str, file: str, force: bool, as_json: bool, **where: Any) -> None:
    """Write the bytes of a model, or the source of a script, to a file; - is standard output.

    \b
    redisai export digits digits.onnx
    redisai export digits - | sha256sum
    """
    path = Path(file)
    if file != "-" and path.exists() and not force:
        raise click.ClickException(f"{file} is there already; --force writes over it")
    with talking(where) as client:
        kind, data = stored(client, key)
    if file == "-":
        write(data)
        return
    try:
        save(path, data)
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from None
    if as_json:
        write_json({"key": key, "type": kind, "file": file, "bytes": len(data)})
    else:
        write(f"{file}: {kind.lower()} {key}, {size(len(data))}\n".encode())
