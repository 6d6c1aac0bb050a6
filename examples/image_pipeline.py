"""From a photograph to a word: a script prepares the picture, a model classifies it, a script picks the answer, all in the server.

    python examples/image_pipeline.py --port 6379

The client sends bytes as a camera gives them: any size, three channels of 0 to 255. The model wants 8 x 8 grey pixels of 0 (white) to 16.
What lies in between is TorchScript and is stored beside the model, so every client, in whatever language, prepares its pictures alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import redis

MODELS = Path(__file__).resolve().parent / "models"
SCRIPT = """
def prepare(tensors: List[Tensor], keys: List[str], args: List[str]):
    picture = tensors[0].permute(2, 0, 1).unsqueeze(0).to(torch.float32)
    grey = picture.mean(dim=1, keepdim=True)
    small = torch.adaptive_avg_pool2d(grey, [8, 8])
    return ((255.0 - small) * 16.0 / 255.0).reshape([1, 64])

def best(tensors: List[Tensor], keys: List[str], args: List[str]):
    values, classes = torch.topk(tensors[0], int(args[0]), dim=1)
    return classes, values
"""
Array = np.ndarray[Any, Any]


def photograph(pixels: Array, height: int, width: int, seed: int) -> Array:
    """A digit of 8 x 8 as a camera might see it: enlarged, on paper that is not quite white, with noise."""
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    ink = pixels.reshape(8, 8)[rows][:, columns, None] / 16
    paper = np.array([250, 245, 235]) * (1 - ink) + np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    return paper.clip(0, 255).astype(np.uint8)


def classify(client: redis.Redis, picture: Array, choices: int) -> list[tuple[int, float]]:
    """The likeliest digits, with their probabilities. One round trip; what lies between the operations stays in the server."""
    *_, classes, values = client.execute_command(
        *["AI.DAGEXECUTE", "ROUTING", "digits", "|>"],
        *["AI.TENSORSET", "picture", "UINT8", *picture.shape, "BLOB", picture.tobytes(), "|>"],
        *["AI.SCRIPTEXECUTE", "around", "prepare", "INPUTS", 1, "picture", "OUTPUTS", 1, "pixels", "|>"],
        *["AI.MODELEXECUTE", "digits", "INPUTS", 1, "pixels", "OUTPUTS", 1, "scores", "|>"],
        *["AI.SCRIPTEXECUTE", "around", "best", "INPUTS", 1, "scores", "ARGS", 1, choices, "OUTPUTS", 2, "classes", "values", "|>"],
        *["AI.TENSORGET", "classes", "VALUES", "|>", "AI.TENSORGET", "values", "VALUES"],
    )
    return [(int(digit), float(value)) for digit, value in zip(classes, values, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify photographs of digits.")
    parser.add_argument("--port", type=int, default=6379)
    options = parser.parse_args()
    client = redis.Redis(port=options.port)

    client.execute_command("AI.MODELSTORE", "digits", "ONNX", "CPU", "BLOB", (MODELS / "digits.onnx").read_bytes())
    client.execute_command("AI.SCRIPTSTORE", "around", "CPU", "ENTRY_POINTS", 2, "prepare", "best", "SOURCE", SCRIPT)

    samples, labels = np.load(MODELS / "digits_sample.npy"), np.load(MODELS / "digits_labels.npy")
    for digit, (height, width) in ((3, (480, 640)), (7, (1080, 1920)), (2, (64, 64))):
        picture = photograph(samples[digit], height, width, seed=digit)
        answer = ", ".join(f"{digit} ({value:.0%})" for digit, value in classify(client, picture, 2))
        print(f"{width} x {height}, a {labels[digit]}: {answer}")


if __name__ == "__main__":
    main()
