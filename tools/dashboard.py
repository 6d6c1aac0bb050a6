"""Asks a Prometheus everything that the Grafana dashboard asks it, and prints what each panel would show.

    python tools/dashboard.py http://127.0.0.1:9090 [--window 5m]

Grafana itself is not needed: variables are replaced as it does when all servers and keys are chosen. Ends with 1 when Prometheus cannot
read an expression, or has nothing for it: a panel that stays empty on a server that works is a mistake in the panel.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DASHBOARD = Path(__file__).resolve().parent.parent / "docs" / "grafana-dashboard.json"
SECONDS = 20


class Shown(NamedTuple):
    """One line of a legend: what it is called and its value now; what went wrong instead, when nothing can be shown."""

    panel: str
    legend: str
    value: str
    wrong: bool = False


def ask(prometheus: str, path: str, **words: str) -> Any:
    """`data` of the answer. Raises ValueError with Prometheus's own words when it refuses."""
    try:
        with urllib.request.urlopen(f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(words)}", timeout=SECONDS) as reply:
            return json.load(reply)["data"]
    except urllib.error.HTTPError as error:
        raise ValueError(json.load(error)["error"]) from None


def expanded(expression: str, window: str) -> str:
    """As Grafana sends it: every variable of the board stands for all of its values."""
    return re.sub(r"\$\w+", ".*", expression.replace("$__rate_interval", window))


def named(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], f"<no label {found[1]}>"), legend)


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those inside collapsed rows too."""
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", [])


def shown(prometheus: str, board: dict[str, Any], window: str) -> Iterator[Shown]:
    for panel in panels(board):
        for target in panel.get("targets", []):
            try:
                found = ask(prometheus, "query", query=expanded(target["expr"], window))["result"]
            except ValueError as error:
                yield Shown(panel["title"], target["expr"], str(error), wrong=True)
                continue
            if not found:
                yield Shown(panel["title"], target["expr"], "nothing", wrong=True)
            for series in found:
                legend = named(target["legendFormat"], series["metric"])
                yield Shown(panel["title"], legend, series["value"][1], wrong="<no label" in legend)


def choices(prometheus: str, board: dict[str, Any]) -> Iterator[Shown]:
    """What the lists at the top of the board offer."""
    for variable in board["templating"]["list"]:
        if found := re.fullmatch(r"label_values\((.+), (\w+)\)", variable.get("definition", "")):
            values = ask(prometheus, f"label/{found[2]}/values", **{"match[]": expanded(found[1], "")})
            yield Shown("lists", variable["label"], ", ".join(values) or "nothing", wrong=not values)


def main() -> int:
    parser = argparse.ArgumentParser(description="Print what the Grafana dashboard shows.")
    parser.add_argument("prometheus", help="such as http://127.0.0.1:9090")
    parser.add_argument("--window", default="5m", help="over which rates are taken")
    options = parser.parse_args()
    board = json.loads(DASHBOARD.read_text())
    found = [*choices(options.prometheus, board), *shown(options.prometheus, board, options.window)]
    for line in found:
        print(f"{'wrong' if line.wrong else 'ok':6}{line.panel:40}{line.legend:40}{line.value}")
    return int(any(line.wrong for line in found))


if __name__ == "__main__":
    sys.exit(main())
