"""`redisai bench`: how many requests a second a model answers, how long they take, and what of that is the server.

A request is AI.MODELEXECUTE over keys that hold the inputs; nothing but names travels. The inputs and outputs lie under keys of their own,
which are deleted at the end, in the hash slot of the model's key. The figures of the library come from this process, so they are compared
only when the server is on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import redis

from ..errors import BackendError
from . import arrays, bare, load
from .address import Address, RefusedError, address, address_options
from .arrays import Array
from .client import talking
from .export import stored
from .figures import Program, pairs, read_one, text
from .output import write, write_json
from .tables import duration, number, show

HEADINGS = ("CLIENTS", "REQUESTS/S", "MEAN", "P50", "P99", "BATCH", "ERRORS")
LOCAL = ("127.0.0.1", "localhost", "::1")
HASH_TAG = re.compile(r"\{([^}]+)\}")


@dataclass(frozen=True)
class Row:
    """One number of clients. Times in microseconds, from the client's side."""

    clients: int
    requests: int
    requests_per_second: float
    mean_us: float
    p50_us: float
    p99_us: float
    batch: float | None  # requests that ran together, on average
    errors: int
    error: str  # the first, "" when there was none

    def cells(self) -> list[str]:
        times = map(duration, (self.mean_us, self.p50_us, self.p99_us))
        return [str(self.clients), number(self.requests_per_second), *times, number(self.batch, 1), str(self.errors)]


@dataclass(frozen=True)
class Bare:
    """The library in this process, one thread."""

    p50_us: float
    p99_us: float


# ---- the server's side -------------------------------------------------------------------------------------------------------------


@contextmanager
def keys(client: redis.Redis, key: str, inputs: Sequence[Array], outputs: int) -> Iterator[list[Any]]:
    """Sets the inputs; gives the command that runs the model over them. Deletes all that it wrote. Raises redis.RedisError."""
    tag = found[1] if (found := HASH_TAG.search(key)) else key
    ins = [f"{{{tag}}}:bench:in{i}" for i in range(len(inputs))]
    outs = [f"{{{tag}}}:bench:out{i}" for i in range(outputs)]
    taken = [name for name in (*ins, *outs) if client.execute_command("EXISTS", name)]
    if taken:
        raise click.ClickException(f"{taken[0]} exists: another bench is running, or one was killed; delete {{{tag}}}:bench:* first")
    try:
        for name, array in zip(ins, inputs, strict=True):
            client.execute_command("AI.TENSORSET", name, *arrays.tensorset(array))
        request = ["AI.MODELEXECUTE", key, "INPUTS", len(ins), *ins, "OUTPUTS", len(outs), *outs]
        client.execute_command(*request)  # says what is wrong with the inputs, and opens the model
        yield request
    finally:
        client.execute_command("DEL", *ins, *outs)


def measured(client: redis.Redis, where: Address, key: str, request: Sequence[Any], clients: int, seconds: float) -> Row:
    before = read_one(client, key)
    try:
        outcome = load.drive(where, request, clients, seconds)
    except (OSError, RefusedError) as error:
        raise click.ClickException(f"{where}: {error}") from None
    after = read_one(client, key)
    return Row(
        clients=clients,
        requests=len(outcome.latencies_us),
        requests_per_second=outcome.rate,
        mean_us=outcome.mean_us,
        p50_us=outcome.percentile(0.50),
        p99_us=outcome.percentile(0.99),
        batch=batch_between(before, after),
        errors=outcome.errors,
        error=outcome.error,
    )


def batch_between(before: Program, after: Program) -> float | None:
    batches = after.batches - before.batches
    return (after.batched_requests - before.batched_requests) / batches if batches > 0 else None


# ---- the library's side ------------------------------------------------------------------------------------------------------------


def bare_figures(told: dict[str, Any], blob: bytes, inputs: Sequence[Array], outputs: int, seconds: float) -> Bare | str:
    """Or the reason why there are none."""
    backend = text(told["backend"])
    if not bare.installed(backend):
        return f"its library is not installed here ({backend})"
    try:
        session = bare.opened(backend, blob, *([text(name) for name in told[side]] for side in ("inputs", "outputs")))
        found = bare.latencies(session, inputs, outputs, seconds)
    except (ImportError, BackendError) as error:
        return f"{backend} cannot run it here: {error}"
    return Bare(found[len(found) // 2], found[int(0.99 * len(found))])


# ---- showing -----------------------------------------------------------------------------------------------------------------------


def plot(path: str, key: str, rows: Sequence[Row], library: Bare | None) -> None:
    """Latency over throughput, one point per number of clients. Raises click.ClickException without matplotlib."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise click.ClickException("plots need matplotlib: pip install matplotlib") from None
    mpl.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    rates = [row.requests_per_second for row in rows]
    for name, style in (("p50", "o-"), ("p99", "s--")):
        axes.plot(rates, [getattr(row, f"{name}_us") / 1000 for row in rows], style, label=name)
    for row in rows:
        axes.annotate(f"{row.clients}", (row.requests_per_second, row.p50_us / 1000), textcoords="offset points", xytext=(4, -12))
    if library:
        axes.axhline(library.p50_us / 1000, color="grey", linewidth=1, linestyle=":", label="library alone, p50")
    axes.set(xlabel="requests per second", ylabel="latency (ms)", title=f"{key}: latency over throughput, points labelled with clients")
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


def conclusion(rows: Sequence[Row], library: Bare | str | None) -> str:
    if library is None:
        return ""
    if isinstance(library, str):
        return f"no comparison with the bare library: {library}\n"
    line = f"the library alone, one thread: p50 {duration(library.p50_us)}, p99 {duration(library.p99_us)}\n"
    alone = next((row for row in rows if row.clients == 1), None)
    if alone is None:
        return line
    return line + f"the server adds {duration(max(alone.p50_us - library.p50_us, 0.0))} to the p50 of one client\n"


# ---- the command -------------------------------------------------------------------------------------------------------------------


def parse_clients(context: click.Context, parameter: click.Parameter, given: str) -> list[int]:
    try:
        found = [int(part) for part in given.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1 or max(found) > 1000:
        raise click.BadParameter("numbers from 1 to 1000 with commas, such as 1,8,64")
    return found


def chosen_inputs(given: Sequence[str], backend: str, blob: bytes) -> list[Array]:
    sources = list(given) or bare.described(backend, blob)
    if not sources:
        raise click.UsageError(f"a {backend} model does not say what its inputs are: give them, as in --input FLOAT:1x64")
    return [arrays.converted(arrays.read(source, None), None, None) for source in sources]


@click.command("bench")
@click.argument("key")
@click.option(
    "-i", "--input", "inputs", multiple=True, metavar="SOURCE", help="FLOAT:1x64, a file or values.  [default: what the model says]"
)
@click.option(
    "-c", "--clients", default="1,4,16,64", show_default=True, callback=parse_clients, help="Numbers of connections, one row each."
)
@click.option("--seconds", type=click.FloatRange(0.05), default=2.0, show_default=True, help="Per row.")
@click.option("--outputs", "count", type=click.IntRange(0), metavar="N", help="Number of outputs.  [default: the model's, else 1]")
@click.option("--plot", "svg", metavar="FILE.svg", help="Draw latency over throughput (needs matplotlib).")
@click.option("--bare/--no-bare", "compare", default=True, help="Also run the library in this process.  [default: when it can]")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@address_options
def command(
    key: str,
    inputs: tuple[str, ...],
    clients: list[int],
    seconds: float,
    count: int | None,
    svg: str | None,
    compare: bool,
    as_json: bool,
    **where: Any,
) -> int:
    """Measure a model: requests per second and latency for several numbers of clients. Ends with 1 when a request failed.

    The runs count in the model's AI.INFO. BATCH is the mean number of requests that ran together: raise BATCHSIZE and see.

    \b
    redisai bench digits
    redisai bench fraud --input FLOAT:1x30 --input FLOAT:1x256 --clients 1,50 --plot fraud.svg
    """
    target = address(**where)
    with talking(where) as client:
        kind, blob = stored(client, key)
        if kind != "MODEL":
            raise click.UsageError(f"{key} is a script; bench measures models")
        told = pairs(client.execute_command("AI.MODELGET", key, "META"))
        read = chosen_inputs(inputs, text(told["backend"]), blob)
        outputs = count if count is not None else len(told["outputs"]) or 1
        with keys(client, key, read, outputs) as request:
            rows = [measured(client, target, key, request, number_of, seconds) for number_of in clients]
    library: Bare | str | None = None
    if compare:
        local = target.unix or target.host in LOCAL
        library = bare_figures(told, blob, read, outputs, seconds) if local else "the server is on another machine"
    if svg:
        plot(svg, key, rows, library if isinstance(library, Bare) else None)
    report(key, rows, library, svg, as_json)
    return int(any(row.errors for row in rows))


def report(key: str, rows: Sequence[Row], library: Bare | str | None, svg: str | None, as_json: bool) -> None:
    if as_json:
        found = asdict(library) if isinstance(library, Bare) else None
        write_json({"key": key, "rows": [asdict(row) for row in rows], "library": found, "plot": svg and str(Path(svg))})
        return
    show(HEADINGS, [row.cells() for row in rows])
    if failed := next((row.error for row in rows if row.error), ""):
        click.echo(f"the first error: {failed}", err=True)
    write(conclusion(rows, library).encode())
