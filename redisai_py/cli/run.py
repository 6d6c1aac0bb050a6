"""`redisai run`: one run of a model or script, with files for inputs and outputs. No key is written on the way."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import redis

from . import arrays
from .address import address_options
from .arrays import Array
from .client import talking
from .figures import pairs, read_one, text
from .output import write, write_json
from .tables import duration

WRITTEN = (".npy", ".npz", ".csv")


def check_function(client: redis.Redis, key: str, function: str | None) -> None:
    """A script runs a function of its own, a model has none. Raises click.UsageError."""
    kind = read_one(client, key).type
    if kind == "SCRIPT" and not function:
        points = ", ".join(map(text, pairs(client.execute_command("AI.SCRIPTGET", key, "META")).get("Entry Points", [])))
        raise click.UsageError(f"{key} is a script: name one of its functions with --function ({points})")
    if kind == "MODEL" and function:
        raise click.UsageError(f"{key} is a model, and models have no functions: leave out --function")


def output_names(client: redis.Redis, key: str, count: int | None) -> list[str]:
    """What to call the outputs: the model's own names where it has as many."""
    found: list[str] = []
    if read_one(client, key).type == "MODEL":
        found = [text(name) for name in pairs(client.execute_command("AI.MODELGET", key, "META"))["outputs"]]
    if count is None:
        return found or ["output"]
    return found if len(found) == count else ["output"] if count == 1 else [f"output{i}" for i in range(count)]


def run(client: redis.Redis, key: str, function: str | None, inputs: list[Array], outputs: int) -> list[Array]:
    """One DAG: the inputs set, the run, the outputs taken. Raises redis.RedisError, with the text of the part that failed."""
    ins, outs = [f"in{i}" for i in range(len(inputs))], [f"out{i}" for i in range(outputs)]
    line: list[Any] = ["AI.DAGEXECUTE" if function else "AI.DAGEXECUTE_RO", "ROUTING", key]
    for name, array in zip(ins, inputs, strict=True):
        line += ["|>", "AI.TENSORSET", name, *arrays.tensorset(array)]
    line += ["|>", *(["AI.SCRIPTEXECUTE", key, function] if function else ["AI.MODELEXECUTE", key])]
    line += [*(["INPUTS", len(ins), *ins] if ins else []), *(["OUTPUTS", len(outs), *outs] if outs else [])]
    for name in outs:
        line += ["|>", "AI.TENSORGET", name, "META", "BLOB"]
    replies = client.execute_command(*line)
    for reply in replies:
        if isinstance(reply, redis.RedisError):
            raise reply
    return [arrays.from_reply(reply) for reply in replies[len(ins) + 1 :]]


def save(path: str, names: list[str], outputs: list[Array]) -> None:
    """Raises click.ClickException for what the format cannot hold."""
    suffix = Path(path).suffix.lower()
    if suffix == ".npz":
        np.savez(path, **dict(zip(names, outputs, strict=True)))  # type: ignore[arg-type]
        return
    if len(outputs) != 1:
        raise click.ClickException(f"{path} holds one array and there are {len(outputs)} outputs: write .npz")
    if suffix == ".npy":
        np.save(path, outputs[0].astype("S") if outputs[0].dtype == object else outputs[0])
    else:
        np.savetxt(path, outputs[0].reshape(len(outputs[0]) if outputs[0].ndim > 1 else 1, -1), delimiter=",", fmt="%.9g")


def show(names: list[str], outputs: list[Array], microseconds: float) -> None:
    lines = []
    for name, output in zip(names, outputs, strict=True):
        dtype = arrays.tensorset(output)[0]
        lines += [f"{name}: {dtype} {'x'.join(map(str, output.shape))}", shown(output)]
    if sys.stdout.isatty():
        lines.append(f"({duration(microseconds)})")
    write(("\n".join(lines) + "\n").encode())


def shown(output: Array) -> str:
    if output.dtype == object:
        return str(arrays.as_lists(output))
    return np.array2string(output, precision=6, suppress_small=True, separator=" ", max_line_width=120)


def size_of(text: str | None) -> tuple[int, int] | None:
    """HxW. Raises click.BadParameter."""
    match arrays.parse_shape(text):
        case None:
            return None
        case (height, width):
            return height, width
    raise click.BadParameter(f"{text} is no size; write it as 28x28", param_hint="--size")


@click.command("run")
@click.argument("key")
@click.option(
    "-i", "--input", "inputs", multiple=True, metavar="SOURCE", help="A file (.npy, .csv, an image), 1,2,3, [[1,2],[3,4]] or FLOAT:1x64."
)
@click.option(
    "-o", "--output", "output", metavar="FILE", help="Write the outputs: .npy or .csv (one), .npz (any number).  [default: print]"
)
@click.option("--function", help="KEY is a script: the function to call.")
@click.option("--outputs", "count", type=click.IntRange(0), metavar="N", help="Number of outputs.  [default: the model's, else 1]")
@click.option("--dtype", type=click.Choice((*arrays.NUMERIC, "STRING"), case_sensitive=False), help="Convert to.")
@click.option("--shape", metavar="AxB", help="Shape of each input, such as 1x64.")
@click.option("--size", metavar="HxW", help="Images: resize.")
@click.option("--layout", type=click.Choice(["NCHW", "NHWC"], case_sensitive=False), help="Images: a batch of one in this order.")
@click.option("--divide", type=float, metavar="N", help="Divide by N and convert to FLOAT (255 for images).")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@address_options
def command(
    key: str,
    inputs: tuple[str, ...],
    output: str | None,
    function: str | None,
    count: int | None,
    dtype: str | None,
    shape: str | None,
    size: str | None,
    layout: str | None,
    divide: float | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Run a model or a script once.

    \b
    redisai run digits --input image.npy
    redisai run digits --input photo.png --size 28x28 --layout NCHW --divide 255 --output scores.npy
    redisai run sum --function add --input 1,2 --input 3,4
    """
    if output and Path(output).suffix.lower() not in WRITTEN:
        raise click.BadParameter(f"{output}: write one of {', '.join(WRITTEN)}", param_hint="--output")
    resize, reshape = size_of(size), arrays.parse_shape(shape)
    read = [arrays.prepared(arrays.read(given, dtype), resize, layout, divide) for given in inputs]
    sent = [arrays.converted(array, dtype, reshape) for array in read]
    with talking(where) as client:
        check_function(client, key, function)
        names = output_names(client, key, count)
        start = time.perf_counter()
        results = run(client, key, function, sent, len(names))
        microseconds = (time.perf_counter() - start) * 1e6
    if output:
        save(output, names, results)
    if as_json:
        told = [
            {"name": name, "dtype": arrays.tensorset(array)[0], "shape": list(array.shape), "values": arrays.as_lists(array)}
            for name, array in zip(names, results, strict=True)
        ]
        write_json({"outputs": told, "seconds": microseconds / 1e6})
    elif not output:
        show(names, results, microseconds)
