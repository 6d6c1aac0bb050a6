"""Whether the cost of a request stays flat: keys, clients, models; and how a big dump starts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .load import Work, measure
from .rows import MODELS

RUN = ["AI.MODELEXECUTE", "onnx", "INPUTS", "2", "a", "b", "OUTPUTS", "1", "c"]


def resident_mb(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def keys(server: Any, counts: tuple[int, ...] = (10, 1_000, 100_000)) -> Iterator[tuple[str, float]]:
    """CPU per run as the keyspace grows."""
    with server.client() as client:
        have = 0
        for count in counts:
            pipe = client.pipeline(transaction=False)
            for i in range(have, count):
                pipe.execute_command("AI.TENSORSET", f"k:{i}", "FLOAT", 4)
                if i % 5_000 == 0:
                    pipe.execute()
            pipe.execute()
            have = count
            yield f"{count:,} tensors in the keyspace", measure([server.pid], server.port, Work(RUN), 50, 20_000).cpu_us


def clients(server: Any, counts: tuple[int, ...] = (1, 10, 100, 500)) -> Iterator[tuple[str, float]]:
    for count in counts:
        yield f"{count} clients", measure([server.pid], server.port, Work(RUN), count, 20_000 if count > 1 else 5_000).cpu_us


def models(server: Any, count: int = 1_000) -> Iterator[tuple[str, str]]:
    """Memory of a model that nobody runs, and how long the first answer of one takes."""
    blob = (MODELS / "mlp.onnx").read_bytes()
    with server.client() as client:
        before = resident_mb(server.pid)
        started = time.perf_counter()
        for i in range(count):
            client.execute_command("AI.MODELSTORE", f"many:{i}", "ONNX", "CPU", "BLOB", blob)
        elapsed = time.perf_counter() - started
        yield f"storing {count:,} models of {len(blob) / 1000:.0f} kB", f"{elapsed / count * 1e3:.2f} ms each"
        yield "memory per idle model", f"{(resident_mb(server.pid) - before) * 1024 / count:.0f} KiB"
        started = time.perf_counter()
        client.execute_command("AI.MODELEXECUTE", f"many:{count - 1}", "INPUTS", 1, "row", "OUTPUTS", 1, "c")
        yield "first answer of one of them", f"{(time.perf_counter() - started) * 1e3:.2f} ms"
        client.delete(*[f"many:{i}" for i in range(count)])


def dump(server: Any, megabytes: int = 2_000) -> Iterator[tuple[str, str]]:
    """Start-up with a big dump of tensors and some models. Leaves the server restarted."""
    with server.client() as client:
        blob = bytes(4_000_000)
        for i in range(megabytes // 4):
            client.execute_command("AI.TENSORSET", f"big:{i}", "UINT8", len(blob), "BLOB", blob[:-8] + i.to_bytes(8, "little"))
        client.config_set("rdbcompression", "no")
        client.save()
    started = time.perf_counter()
    server.restart()
    yield f"start with a dump of {megabytes / 1000:.0f} GB, until the first PING", f"{time.perf_counter() - started:.2f} s"
    with server.client() as client:
        yield "tensors after it", f"{client.dbsize():,} keys"
        client.flushall()


def table(server: Any) -> str:
    lines = ["CPU per AI.MODELEXECUTE (onnx a*b, -c 50 unless said), microseconds:", "", "| with | us |", "|---|---|"]
    lines += [f"| {name} | {us:.1f} |" for name, us in (*keys(server), *clients(server))]
    lines += ["", "| what | figure |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {figure} |" for name, figure in (*models(server), *dump(server)))])
