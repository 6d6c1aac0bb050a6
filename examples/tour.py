"""One network, four formats: stores the digits classifier for every backend, runs it once, and prints the redis-cli lines that do the same.

    python examples/tour.py --port 6379

Needs a server with the module, and redis-py (`pip install 'redisai-server[cli]'`). `make run` starts a server and then does this.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import redis

from redisai_py.install import BACKEND_PACKAGES

MODELS = Path(__file__).resolve().parent / "models"
SAMPLES = np.load(MODELS / "digits_sample.npy")  # float32 [10, 64]: images of 8 x 8 pixels, 0 (white) to 16
LABELS = np.load(MODELS / "digits_labels.npy")
SHADES = " .:-=+*#%@"

#: backend -> (model file, which of the ten samples to classify, arguments of AI.MODELSTORE before BLOB)
TOUR: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "TORCH": ("digits.pt", 3, ()),
    "ONNX": ("digits.onnx", 5, ()),
    "TF": ("digits.pb", 7, ("INPUTS", "1", "x", "OUTPUTS", "1", "probabilities")),
    "TFLITE": ("digits.tflite", 8, ()),
}


class Tour:
    """Runs commands, printing each as a line that can be typed, with its reply and its time."""

    def __init__(self, client: redis.Redis, port: int):
        self.client = client
        program = "redis-cli" if shutil.which("redis-cli") else f"{os.path.relpath(Path(sys.executable).parent)}/redisai cli"
        self.prompt = f"$ {program}" + ("" if port == 6379 else f" -p {port}")

    def run(self, *arguments: Any, blob: Path | None = None, quiet: bool = False) -> Any:
        """One command; `blob` is a file whose bytes are the last argument."""
        words = " ".join(map(str, arguments))
        where = Path(blob).relative_to(MODELS.parent.parent) if blob else None
        print(f"  {self.prompt} {f'-x {words} < {where}' if blob else words}")
        start = time.perf_counter()
        reply = self.client.execute_command(*arguments, *([blob.read_bytes()] if blob else []))
        milliseconds = (time.perf_counter() - start) * 1000
        print(f"  {text(reply)}   ({milliseconds:.1f} ms)" if not quiet else f"  ({milliseconds:.1f} ms)")
        return reply

    def backend(self, name: str) -> None:
        file, sample, options = TOUR[name]
        model, pixels = f"digits:{name.lower()}", SAMPLES[sample]
        print(f"\n{name}: {file}\n")
        self.run("AI.MODELSTORE", model, name, "CPU", *options, "BLOB", blob=MODELS / file)
        self.run("AI.TENSORSET", "image", "FLOAT", 1, 64, "VALUES", *(f"{pixel:g}" for pixel in pixels))
        self.run("AI.MODELEXECUTE", model, "INPUTS", 1, "image", "OUTPUTS", 1, "scores")
        reply = self.run("AI.TENSORGET", "scores", "VALUES", quiet=True)
        show(pixels, np.array([float(score) for score in reply]), int(LABELS[sample]))


def text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def show(pixels: np.ndarray[Any, Any], scores: np.ndarray[Any, Any], label: int) -> None:
    """The image, with the scores of the ten digits beside it."""
    best = int(scores.argmax())
    rows = ["".join(SHADES[int(pixel * (len(SHADES) - 1) / 16)] * 2 for pixel in row) for row in pixels.reshape(8, 8)]
    beside = [f"{digit}  {score:6.1%} {'#' * round(score * 30)}" for digit, score in enumerate(scores) if score >= 0.0005]
    beside = ["", *beside[:5], "", f"Digit {best}; the label says {label}."]
    for row, line in zip(rows, beside + [""] * (len(rows) - len(beside)), strict=True):
        print(f"    |{row}|   {line}".rstrip())


def tour(client: redis.Redis, port: int) -> int:
    """Runs the whole tour; returns how many backends it showed."""
    print("The first model of each backend waits for its library to be imported; the next ones do not.")
    steps, shown = Tour(client, port), 0
    for package in BACKEND_PACKAGES:
        if package.installed():
            steps.backend(package.name)
            shown += 1
        else:
            print(f"\n{package.name}: not installed; {package.command}")
    return shown


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Run the digits classifier with every backend.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=6379)
    options = parser.parse_args(argv)
    try:
        tour(redis.Redis(options.host, options.port), options.port)
    except redis.RedisError as error:
        print(f"  (error) {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
