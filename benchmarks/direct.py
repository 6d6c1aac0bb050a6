"""The libraries called in this process, in a closed loop on one thread: what a run costs when nobody serves it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .rows import MODELS


def _onnx(file: str, *shapes: tuple[int, ...]) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(MODELS / file), options, providers=["CPUExecutionProvider"])
    feed = {i.name: np.ones(shape, np.float32) for i, shape in zip(session.get_inputs(), shapes, strict=True)}
    return lambda: session.run(None, feed)


def _torch(file: str, *shapes: tuple[int, ...]) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(1)
    model = torch.jit.load(str(MODELS / file))
    inputs = [torch.ones(shape) for shape in shapes]
    torch.inference_mode().__enter__()
    return lambda: model(*inputs)


ROWS: tuple[tuple[str, Callable[[], Callable[[], Any]]], ...] = (
    ("onnx a*b", lambda: _onnx("two_inputs.onnx", (1, 2), (1, 2))),
    ("onnx mlp", lambda: _onnx("mlp.onnx", (1, 64))),
    ("onnx mlp, 64 rows", lambda: _onnx("mlp.onnx", (64, 64))),
    ("onnx cnn 28x28", lambda: _onnx("cnn.onnx", (1, 1, 28, 28))),
    ("onnx fraud", lambda: _onnx("fraud.onnx", (1, 30), (1, 256))),
    ("onnx fraud, 32 rows", lambda: _onnx("fraud.onnx", (32, 30), (32, 256))),
    ("torch a*b", lambda: _torch("two_inputs.pt", (1, 2), (1, 2))),
    ("torch fraud", lambda: _torch("fraud.pt", (1, 30), (1, 256))),
)


def cpu_us(call: Callable[[], Any], seconds: float = 0.3) -> float:
    """CPU of this thread per call, in microseconds: the least of five trials."""
    for _ in range(50):
        call()
    trials = []
    for _ in range(5):
        started, calls = time.thread_time(), 0
        while time.thread_time() - started < seconds / 5:
            call()
            calls += 1
        trials.append((time.thread_time() - started) / calls * 1e6)
    return min(trials)


def rows() -> Iterator[tuple[str, float]]:
    for name, make in ROWS:
        yield name, cpu_us(make())


def table() -> str:
    lines = ["The libraries called in one process, one thread, CPU per call:", "", "| call | us |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {us:.1f} |" for name, us in rows())])
