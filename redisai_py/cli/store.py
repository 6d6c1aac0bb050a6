"""`redisai store`: a model file becomes a key, with a look at its bytes first and a progress bar while they travel."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import redis
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ..backends.formats import FORMATS, identify
from ..install import BACKEND_PACKAGES
from .address import address_options
from .client import talking
from .output import console, write, write_json
from .tables import duration, size

BACKENDS = tuple(package.name for package in BACKEND_PACKAGES)
DEFAULT_CHUNK = 535822336  # of a server that will not say
PIECE = 1 << 20  # bytes between two looks at the progress bar


# ---- what is stored ----------------------------------------------------------------------------------------------------------------


def detected(blob: bytes, file: str) -> str:
    """The backend that takes these bytes. Raises click.ClickException with what they are instead."""
    form = FORMATS.get(identify(blob))
    if form is None:
        raise click.ClickException(f"{file} is of no known format; name the backend with --backend {'|'.join(BACKENDS)}")
    if form.backend:
        return form.backend
    if "store it with TF" in form.cure:
        return "TF"
    raise click.ClickException(f"{file} is no model: it looks like {form.noun}\n  {form.cure}")


def chunks(blob: bytes, length: int) -> list[memoryview]:
    """The blob as arguments of at most `length` bytes."""
    view = memoryview(blob)
    return [view[at : at + length] for at in range(0, len(blob), length)] or [view]


def chunk_size(client: redis.Redis) -> int:
    """The server's MODEL_CHUNK_SIZE, which is below the longest argument it takes."""
    try:
        return int(client.execute_command("AI.CONFIG", "GET", "MODEL_CHUNK_SIZE") or DEFAULT_CHUNK)
    except redis.exceptions.NoPermissionError:
        return DEFAULT_CHUNK


def words(key: str, backend: str, device: str, options: dict[str, Any]) -> list[str]:
    """The arguments of AI.MODELSTORE before the bytes, in the order that it wants."""
    found = ["AI.MODELSTORE", key, backend, device]
    for name in ("tag", "batchsize", "minbatchsize", "minbatchtimeout"):
        if options[name] is not None:
            found += [name.upper(), str(options[name])]
    for name in ("inputs", "outputs"):
        if listed := [part for part in (options[name] or "").split(",") if part]:
            found += [name.upper(), str(len(listed)), *listed]
    return [*found, "BLOB"]


# ---- sending -----------------------------------------------------------------------------------------------------------------------


def send(client: redis.Redis, leading: Sequence[str], blobs: Sequence[memoryview], sent: Callable[[int], None]) -> Any:
    """One command, its bytes in pieces, telling `sent` of each. Returns the reply; raises redis.RedisError."""
    pool = client.connection_pool
    connection = pool.get_connection()
    try:
        head = b"*%d\r\n" % (len(leading) + len(blobs))
        connection.send_packed_command([head + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in map(str.encode, leading))])
        for blob in blobs:
            connection.send_packed_command([b"$%d\r\n" % len(blob)], check_health=False)
            for at in range(0, len(blob), PIECE):
                piece = blob[at : at + PIECE]
                connection.send_packed_command([piece], check_health=False)
                sent(len(piece))
            connection.send_packed_command([b"\r\n"], check_health=False)
        return connection.read_response()
    except BaseException:
        connection.disconnect()  # half a command may be on its way
        raise
    finally:
        pool.release(connection)


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while it is a terminal; nothing otherwise."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console(stderr=True), transient=True
    )
    with bar:
        task = bar.add_task(what, total=total)

        def sent(count: int) -> None:
            bar.advance(task, count)
            if bar.finished:
                bar.update(task, description=f"{what}: opening")

        yield sent


# ---- the command -------------------------------------------------------------------------------------------------------------------


@click.command("store")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("-k", "--key", help="Key to store it under.  [default: the file's name without its ending]")
@click.option(
    "--backend", type=click.Choice(["auto", *BACKENDS], case_sensitive=False), default="auto", help="[default: what the bytes look like]"
)
@click.option("--device", default="CPU", show_default=True, help="CPU, CPU:1, GPU, GPU:0 ...")
@click.option("--tag", help="A text kept with the model, such as a version.")
@click.option("--batchsize", type=click.IntRange(0), metavar="N", help="Run waiting requests together, up to N rows.")
@click.option("--minbatchsize", type=click.IntRange(0), metavar="N", help="Wait until N rows are there.")
@click.option("--minbatchtimeout", type=click.IntRange(0), metavar="MS", help="But no longer than this.")
@click.option("--inputs", metavar="A,B", help="TF: the graph's inputs, in order.")
@click.option("--outputs", metavar="A,B", help="TF: the graph's outputs, in order.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@address_options
def command(file: str, key: str | None, backend: str, device: str, as_json: bool, **options: Any) -> None:
    """Store a model file as a key. The server opens it before this ends: what it cannot serve is refused, with the reason.

    FILE may be - for standard input. The backend is taken from the bytes unless named.

    \b
    redisai store model.onnx
    redisai store model.pt --key fraud --tag v2 --batchsize 64
    redisai store graph.pb --inputs x --outputs probabilities
    """
    own = {name: options.pop(name) for name in ("tag", "batchsize", "minbatchsize", "minbatchtimeout", "inputs", "outputs")}
    blob = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    if key is None and file == "-":
        raise click.UsageError("bytes from standard input have no name: give --key")
    name = key or Path(file).stem
    chosen = detected(blob, file) if backend == "auto" else backend.upper()
    if chosen == "TF" and identify(blob) == "graphdef" and not (own["inputs"] and own["outputs"]):
        raise click.UsageError(f"{file} is a TensorFlow graph, which does not say where it begins and ends: give --inputs and --outputs")
    leading = words(name, chosen, device, own)
    start = time.perf_counter()
    with talking(options) as client:
        blobs = chunks(blob, chunk_size(client))
        with progress(len(blob), name) as sent:
            send(client, leading, blobs, sent)
    microseconds = (time.perf_counter() - start) * 1e6
    if as_json:
        told = {"key": name, "backend": chosen, "device": device, "bytes": len(blob), "chunks": len(blobs)}
        write_json({**told, "seconds": microseconds / 1e6})
    else:
        write(f"{name}: {chosen} on {device}, {size(len(blob))}, stored in {duration(microseconds)}\n".encode())
