"""`make fuzz ARGS='<target> <count> [seed]'`: one fuzzer, as long as one likes; `make fuzz` lists them.

From tests/: python -m fuzz.run restore 1000000

A line is appended to results.jsonl, so that runs add up: target, seed, commit, day, count, seconds, findings, and what the target counted.
A finding ends the run; its input is then a file in corpus/, to be committed with the mending.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from servers import ROOT

from . import models, parsers
from .findings import Counts, Finding
from .oracle import oracle
from .restore import restore

RESULTS = Path(__file__).parent / "results.jsonl"

#: name -> what runs `count` inputs from `seed` and returns what it counted. Raises Finding.
TARGETS: dict[str, Callable[[int, int], Counts]] = {
    "restore": restore,
    **{name: parsers.target(name) for name in parsers.TARGETS},
    **{f"{name}-storm": parsers.storm_target(name) for name in parsers.TARGETS},
    **{name: models.target(name) for name in models.TARGETS},
    "oracle": oracle,
}


def record(target: str, seed: int, count: int, seconds: float, findings: int, counts: Counts) -> None:
    """Appends a run to the results."""
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    row = {"target": target, "seed": seed, "commit": commit, "when": datetime.now(UTC).date().isoformat(), "count": count}
    with RESULTS.open("a") as file:
        file.write(json.dumps({**row, "seconds": round(seconds), "findings": findings, **counts}) + "\n")


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["list"]:
        sys.stdout.write("".join(f"{name:10} {(run.__doc__ or '').splitlines()[0]}\n" for name, run in TARGETS.items()))
        return
    name, count = arguments[0], int(arguments[1])
    seed = int(arguments[2]) if len(arguments) > 2 else random.randrange(1 << 30)
    started = time.monotonic()
    try:
        counts = TARGETS[name](seed, count)
    except Finding as finding:
        record(name, seed, count, time.monotonic() - started, 1, {})
        sys.exit(f"seed {seed}: {finding}")
    record(name, seed, counts.pop("count", count), time.monotonic() - started, counts.pop("findings", 0), counts)
    sys.stdout.write(f"{name}: {count} inputs, seed {seed}: {counts}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
