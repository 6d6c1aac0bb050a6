"""Tells what files hold by their bytes: Magika, an ONNX model with 214 kinds of files, runs on all of them at once.

python examples/filetype.py --port 6379 [FILE ...]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import redis
from published import ROOT, published

SETTINGS = json.loads(published("magika", "config.min.json").read_text())
LABELS, SIDE, PADDING = SETTINGS["target_labels_space"], SETTINGS["beg_size"], SETTINGS["padding_token"]
FILES = [ROOT / name for name in ("README.md", "Makefile", "shim/ai.h", "examples/filetype.py", "examples/models/digits.onnx", "LICENSE")]


def features(data: bytes) -> list[int]:
    """What the model looks at: 1024 bytes of the beginning and of the end, without blanks, padded with 256."""
    begin = data[: SETTINGS["block_size"]].lstrip()[:SIDE]
    end = data[-SETTINGS["block_size"] :].rstrip()[-SIDE:]
    return [*begin, *[PADDING] * (SIDE - len(begin)), *[PADDING] * (SIDE - len(end)), *end]


def main() -> None:
    parser = argparse.ArgumentParser(description="Tell what files hold.")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("files", type=Path, nargs="*", default=FILES)
    options = parser.parse_args()
    client = redis.Redis(port=options.port)

    client.execute_command("AI.MODELSTORE", "magika", "ONNX", "CPU", "BLOB", published("magika", "model.onnx").read_bytes())
    looks = np.array([features(path.read_bytes()) for path in options.files], np.int32)
    client.execute_command("AI.TENSORSET", "looks", "INT32", *looks.shape, "BLOB", looks.tobytes())
    client.execute_command("AI.MODELEXECUTE", "magika", "INPUTS", 1, "looks", "OUTPUTS", 1, "kinds")
    answer = client.execute_command("AI.TENSORGET", "kinds", "BLOB")

    for path, scores in zip(options.files, np.frombuffer(answer, np.float32).reshape(len(looks), -1), strict=True):
        print(f"{path.name:12} {LABELS[scores.argmax()]:10} {scores.max():.0%}")


if __name__ == "__main__":
    main()
