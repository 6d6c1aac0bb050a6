"""How long other clients wait while something slow goes on: PING while a model of 100 MB is stored, by backend."""

from __future__ import annotations

import io
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def torch_model(megabytes: int) -> bytes:
    """A TorchScript archive of one linear layer of that size."""
    import torch

    side = int((megabytes * 1e6 / 4) ** 0.5)
    model = torch.jit.trace(torch.nn.Linear(side, side, bias=False).eval(), torch.zeros(1, side))
    file = io.BytesIO()
    torch.jit.save(model, file)
    return file.getvalue()


def onnx_model(megabytes: int) -> bytes:
    """An ONNX model with one initializer of that size."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    side = int((megabytes * 1e6 / 4) ** 0.5)
    weight = numpy_helper.from_array(np.zeros((side, side), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", side]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "big", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = onnx._serialize(model) if hasattr(onnx, "_serialize") else model.SerializeToString()
    return serialized


def pings(client: Any, until: Callable[[], bool]) -> list[float]:
    """Round trips of PING in milliseconds, one after the other, until told to stop."""
    took = []
    while not until():
        started = time.perf_counter()
        client.ping()
        took.append((time.perf_counter() - started) * 1e3)
    return took


def rows(server: Any, megabytes: int = 100) -> Iterator[tuple[str, list[float], float]]:
    """(what goes on, PING round trips meanwhile, seconds it took)."""
    with server.client() as probe, server.client() as storer:
        deadline = time.perf_counter() + 2
        yield "nothing", pings(probe, lambda: time.perf_counter() > deadline), 2.0
        for backend, make in (("TORCH", torch_model), ("ONNX", onnx_model)):
            blob = make(megabytes)
            done = threading.Event()

            def store(backend: str = backend, blob: bytes = blob, done: threading.Event = done) -> None:
                storer.execute_command(
                    "AI.MODELSTORE", f"big:{backend}", backend, "CPU", "BLOB", *[blob[i : i + 10**7] for i in range(0, len(blob), 10**7)]
                )
                done.set()

            thread = threading.Thread(target=store)
            started = time.perf_counter()
            thread.start()
            took = pings(probe, done.is_set)
            thread.join()
            yield f"AI.MODELSTORE {backend}, {len(blob) / 1e6:.0f} MB", took, time.perf_counter() - started
            probe.delete(f"big:{backend}")


def table(server: Any) -> str:
    lines = [
        "PING of another client meanwhile, milliseconds:",
        "",
        "| what goes on | seconds | PINGs | p50 | p99 | max |",
        "|---|---|---|---|---|---|",
    ]
    for name, took, seconds in rows(server):
        took.sort()
        p99 = took[int(len(took) * 0.99)]
        lines.append(f"| {name} | {seconds:.2f} | {len(took)} | {statistics.median(took):.3f} | {p99:.3f} | {took[-1]:.3f} |")
    return "\n".join(lines)
