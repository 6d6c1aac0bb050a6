"""Runs the suite and writes its tables.

    python -m benchmarks                      all suites, three rounds
    python -m benchmarks --suite runs --rounds 5
    python -m benchmarks --against other.so   the same rows on two modules, interleaved

Every round visits every row on every module once, so that a machine that gets busy does so for all of them; what is printed is the median
over the rounds. Files go to benchmarks/results/: a table (.md), the raw rounds (.json), a plot per suite (.svg).
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from . import direct, flows, http_server, plots, scale, stall
from .load import Measured, measure
from .rows import ROOT, Row, prepare
from .rows import SUITES as REQUESTS

sys.path.insert(0, str(ROOT / "tests"))
from servers import Server, module_path

RESULTS = ROOT / "benchmarks" / "results"

#: (module label, row, clients, pipeline) -> one Measured per round
Rounds = dict[tuple[str, str, int, int], list[Measured]]


def build_echo_module(folder: Path) -> Path:
    """Compiles the floor: a command blocked and answered by a plain C thread."""
    target = folder / "echo.so"
    sources = [ROOT / "benchmarks" / "echo_module.c", ROOT / "shim" / "redis_api.c"]
    flags = ["-O2", "-shared", "-fPIC", "-std=gnu11", "-fvisibility=hidden", "-pthread"]
    subprocess.run([os.environ.get("CC", "cc"), *flags, *map(str, sources), "-o", str(target)], check=True)
    return target


def start(module: Path, echo: Path, module_args: Sequence[str]) -> Server:
    os.environ["REDISAI_MODULE"] = str(module)
    return Server("--loadmodule", str(echo), module_args=module_args, echo=False)


def cells(rows: Sequence[Row]) -> Iterator[tuple[Row, int, int]]:
    for row in rows:
        for clients in row.clients:
            for pipeline in row.pipelines:
                yield row, clients, pipeline


def run(rows: Sequence[Row], servers: dict[str, Server], web: http_server.Running | None, rounds: int, scale: float) -> Rounds:
    measured: Rounds = {}
    for number in range(rounds):
        for row, clients, pipeline in cells(rows):
            for label, server in servers.items():
                requests = max(200, int(row.requests * scale * (0.2 if clients == 1 else 1)))
                if row.http:
                    assert web is not None
                    if server is not web.redis:
                        continue
                    got = measure([web.pid, server.pid], web.port, row.work, clients, requests, pipeline)
                else:
                    got = measure([server.pid], server.port, row.work, clients, requests, pipeline)
                measured.setdefault((label, row.name, clients, pipeline), []).append(got)
        click.echo(f"round {number + 1} of {rounds} done", err=True)
    return measured


def median(rounds: Sequence[Measured]) -> dict[str, Any]:
    numbers = ("rate", "p50_ms", "p99_ms", "main_us", "others_us", "cpu_us")
    summary: dict[str, Any] = {name: statistics.median(getattr(m, name) for m in rounds) for name in numbers}
    return {**summary, "driver": rounds[0].driver}


def table(rows: Sequence[Row], measured: Rounds, labels: Sequence[str]) -> str:
    head = ["request", "-c", "-P", "req/s", "p50 ms", "p99 ms", "CPU us", "main", "workers", "ratio", "1.2.7 (-c 1 / -c 50)", "driver"]
    if len(labels) > 1:
        head.insert(0, "module")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row, clients, pipeline in cells(rows):
        for label in labels:
            if (label, row.name, clients, pipeline) not in measured:
                continue
            m = median(measured[label, row.name, clients, pipeline])
            base = measured.get((label, row.against, clients, pipeline))
            ratio = f"{m['cpu_us'] / median(base)['cpu_us']:.2f}x {row.against}" if base else ""
            cell = [
                row.name,
                str(clients),
                str(pipeline),
                f"{m['rate']:,.0f}",
                f"{m['p50_ms']:.3f}",
                f"{m['p99_ms']:.3f}",
                f"{m['cpu_us']:.1f}",
            ]
            cell += [f"{m['main_us']:.1f}", f"{m['others_us']:.1f}", ratio, row.original, m["driver"]]
            lines.append("| " + " | ".join([label, *cell] if len(labels) > 1 else cell) + " |")
    return "\n".join(lines)


def machine() -> str:
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} CPUs ({model}), {system}, load {os.getloadavg()[0]:.1f} at the start"


def special(name: str, module_args: Sequence[str]) -> str:
    """The suites that are no rows of requests: a server of their own, a table."""
    with ExitStack() as stack:
        echo = build_echo_module(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        server = start(module_path(), echo, module_args)
        stack.callback(server.close)
        prepare(server.client(), {"ONNX", "TORCH"})
        return SPECIAL[name](server)


SUITES = {**REQUESTS, "flows": flows.flow_rows}
SPECIAL = {"stall": stall.table, "scale": scale.table}


@click.command()
@click.option("--suite", "suites", multiple=True, type=click.Choice([*SUITES, *SPECIAL]), help="Which rows; all when not given.")
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds.")
@click.option("--scale", default=1.0, show_default=True, help="Factor on the number of requests.")
@click.option("--only", default="", help="Only rows whose name contains this.")
@click.option("--against", type=click.Path(exists=True, path_type=Path), help="A second module to run the same rows on.")
@click.option("--module-args", default="", help="Load arguments of the module.")
@click.option("--out", default=RESULTS, show_default=True, type=click.Path(path_type=Path), help="Folder for the files.")
def main(suites: tuple[str, ...], rounds: int, scale: float, only: str, against: Path | None, module_args: str, out: Path) -> None:
    """Measures what requests cost on a server of this machine."""
    out.mkdir(parents=True, exist_ok=True)
    modules = {"this": module_path(), **({"other": against.resolve()} if against else {})}
    here = machine()
    for suite in suites or (*SUITES, *SPECIAL):
        if suite in SPECIAL:
            text = f"# {suite}\n\n{here}.\n\n{special(suite, module_args.split())}\n"
            (out / f"{suite}.md").write_text(text)
            click.echo(text)
            continue
        rows = [row for row in SUITES[suite]() if only in row.name or row.name in {r.against for r in SUITES[suite]() if only in r.name}]
        with ExitStack() as stack:
            echo = build_echo_module(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            arguments = [*module_args.split(), *(flows.MODULE_ARGS if suite == "flows" else ())]
            servers = {label: start(path, echo, arguments) for label, path in modules.items()}
            for server in servers.values():
                stack.callback(server.close)
                prepare(server.client(), {row.needs for row in rows} - {""})
                if suite == "flows":
                    flows.register(server.client())
            web = None
            if any(row.http for row in rows):
                web = stack.enter_context(http_server.running(servers["this"]))
            measured = run(rows, servers, web, rounds, scale)
        text = f"# {suite}\n\n{here}. Medians of {rounds} rounds; CPU is the server's, per request.\n\n"
        text += table(rows, measured, list(modules)) + "\n"
        if suite == "runs":
            text += f"\n{direct.table()}\n"
        (out / f"{suite}.md").write_text(text)
        raw = {" | ".join(map(str, key)): [asdict(m) for m in value] for key, value in measured.items()}
        (out / f"{suite}.json").write_text(json.dumps(raw, indent=1) + "\n")
        plots.draw(suite, measured, out / f"{suite}.svg")
        click.echo(text)


if __name__ == "__main__":
    main()
