"""One plot per suite: CPU per request, or throughput against latency where a row ran with many numbers of clients."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

from .load import Measured

Rounds = Mapping[tuple[str, str, int, int], Sequence[Measured]]


def draw(suite: str, measured: Rounds, path: Path) -> None:
    """Writes an SVG file. A row that ran with more than two numbers of clients becomes a curve, the others bars."""
    clients = {name: sorted({c for _, n, c, _ in measured if n == name}) for _, name, _, _ in measured}
    curves = [name for name, counts in clients.items() if len(counts) > 2]
    (_curves if curves else _bars)(suite, measured, path)


def _curves(suite: str, measured: Rounds, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 5))
    for label, name in dict.fromkeys((label, name) for label, name, _, _ in measured):
        points = sorted((c, rounds) for (module, row, c, _), rounds in measured.items() if (module, row) == (label, name))
        x = [statistics.median(m.rate for m in rounds) for _, rounds in points]
        y = [statistics.median(m.p50_ms for m in rounds) for _, rounds in points]
        axes.plot(x, y, marker="o", label=name if label == "this" else f"{name} ({label})")
        for (count, _), px, py in zip(points, x, y, strict=True):
            axes.annotate(str(count), (px, py), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set(
        xlabel="requests per second", ylabel="p50 latency, ms", title=f"{suite}: throughput and latency by number of clients", yscale="log"
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def _bars(suite: str, measured: Rounds, path: Path) -> None:
    keys = list(reversed(measured))
    figure, axes = plt.subplots(figsize=(9, 0.28 * len(keys) + 1.2))
    main = [statistics.median(m.main_us for m in measured[key]) for key in keys]
    others = [statistics.median(m.others_us for m in measured[key]) for key in keys]
    names = [
        f"{name}  -c {clients}{f' -P {pipeline}' if pipeline > 1 else ''}{'' if label == 'this' else f' ({label})'}"
        for label, name, clients, pipeline in keys
    ]
    axes.barh(names, main, label="main thread")
    axes.barh(names, others, left=main, label="workers")
    axes.set(xlabel="server CPU per request, us", title=f"{suite}: what a request costs", xscale="log" if max(main) > 100 else "linear")
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(fontsize=8)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
