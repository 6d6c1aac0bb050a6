"""The rows of the suite: what is sent, and what it is compared with.

A ratio only compares two rows of the same run, the same driver and the same number of clients. `original` holds what RedisAI 1.2.7 needed
on two such cores, in microseconds of server CPU per request with one client and with fifty; two figures are those of a quiet and of a
busy machine.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .load import Command, Work, encode

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "tests" / "models"

ONES = b"\x00\x00\x80?"  # a float 1.0


@dataclass(frozen=True)
class Row:
    """One kind of request."""

    name: str
    command: Command
    requests: int  # per round with fifty clients; a tenth with one
    against: str = ""  # row whose CPU per request it is divided by
    pipelines: tuple[int, ...] = (1,)
    clients: tuple[int, ...] = (1, 50)
    original: str = ""
    needs: str = ""  # backend
    wire: Sequence[bytes] = ()  # sent in turn instead of the command
    http: bool = False  # to the HTTP server beside, see http_server.py

    @property
    def work(self) -> Work:
        return Work(self.command, self.wire)


def _floats(n: int) -> bytes:
    return ONES * n


def _words(line: str) -> list[str]:
    return line.split()


def tensor_rows() -> Iterable[Row]:
    """AI.TENSORSET and AI.TENSORGET against SET and GET of the same bytes."""
    originals = {
        "16 B": ("12.1 / 12.8", ""),
        "4 KiB": ("11.9 / 12.5 (1 KiB)", "12.0 / 12.8 (1 KiB)"),
        "600 KiB": ("187 / 287", "173 / 267"),
    }
    for label, floats, requests in (("16 B", 4, 40_000), ("4 KiB", 1024, 30_000), ("600 KiB", 153_600, 1_500)):
        blob = _floats(floats)
        pipelines = (1, 16) if floats <= 1024 else (1,)
        yield Row(f"SET {label}", ["SET", f"s{floats}", blob], requests, pipelines=pipelines)
        command: list[str | bytes] = ["AI.TENSORSET", f"t{floats}", "FLOAT", str(floats), "BLOB", blob]
        yield Row(f"TENSORSET {label}", command, requests, f"SET {label}", pipelines, original=originals[label][0])
        yield Row(f"GET {label}", ["GET", f"s{floats}", b""][:2], requests, pipelines=pipelines)
        command = ["AI.TENSORGET", f"t{floats}", "BLOB"]
        yield Row(f"TENSORGET {label}", command, requests, f"GET {label}", pipelines, original=originals[label][1])


def run_rows() -> Iterable[Row]:
    """Runs of small models and scripts, against the blocked echo."""
    yield Row("PING", ["PING"], 60_000, original="11.0 / 6.4")
    yield Row("blocked echo", ["ECHO.BLOCKED"], 40_000)
    run = "AI.MODELEXECUTE {} INPUTS 2 a b OUTPUTS 1 c"
    yield Row("MODELEXECUTE torch a*b", _words(run.format("torch")), 30_000, "blocked echo", original="55 / 23-30", needs="TORCH")
    yield Row("MODELEXECUTE onnx a*b", _words(run.format("onnx")), 30_000, "blocked echo", needs="ONNX")
    yield Row("MODELEXECUTE tf a*b", _words(run.format("tf")), 30_000, "blocked echo", original="142-177 / 58-75", needs="TF")
    yield Row("MODELEXECUTE tflite a*b", _words(run.format("tflite")), 30_000, "blocked echo", needs="TFLITE")
    row = "AI.MODELEXECUTE {} INPUTS 1 row OUTPUTS 1 c"
    yield Row("MODELEXECUTE onnx mlp", _words(row.format("mlp")), 30_000, "blocked echo", needs="ONNX")
    yield Row("MODELEXECUTE onnx mlp BATCHSIZE 64", _words(row.format("mlp64")), 40_000, "blocked echo", needs="ONNX")
    image = "AI.MODELEXECUTE cnn INPUTS 1 image OUTPUTS 1 c"
    yield Row("MODELEXECUTE onnx cnn 28x28", _words(image), 6_000, "blocked echo", original="178 / 131 (mnist)", needs="ONNX")
    script = "AI.SCRIPTEXECUTE script add INPUTS 2 a b OUTPUTS 1 c"
    yield Row("SCRIPTEXECUTE add", _words(script), 30_000, "blocked echo", original="56-62 / 25-35", needs="TORCH")
    dag = "AI.DAGEXECUTE ROUTING x |> AI.TENSORSET x FLOAT 2 VALUES 1 2 "
    dag += "|> AI.MODELEXECUTE torch INPUTS 2 x x OUTPUTS 1 y |> AI.TENSORGET y VALUES"
    yield Row("DAG set+run+get", _words(dag), 30_000, "MODELEXECUTE torch a*b", original="54-74 / 27-45", needs="TORCH")
    dag = "AI.DAGEXECUTE LOAD 1 a PERSIST 1 kept |> AI.TENSORSET x FLOAT 2 VALUES 1 2 "
    dag += "|> AI.MODELEXECUTE torch INPUTS 2 a x OUTPUTS 1 kept |> AI.TENSORGET kept VALUES"
    yield Row("DAG load+set+run+persist+get", _words(dag), 30_000, "MODELEXECUTE torch a*b", original="63 / 47", needs="TORCH")


REFERENCES = 10_000
_rng = random.Random(7)
#: Keys of the reference tensors that requests name, in turn. All as long as each other.
NAMED = [f"ref:{number:05}" for number in _rng.sample(range(REFERENCES), 997)]


def fraud_rows() -> Iterable[Row]:
    """One transaction scored with one of the stored reference tensors, in one round trip; beside it the usual way, an HTTP server that gets
    the reference from the same Redis."""
    clients = (1, 16, 32, 64, 256)
    originals = {"ONNX": "52 (-c 32)", "TORCH": "74 (-c 32)"}
    transaction = _floats(30)
    yield Row("PING", ["PING"], 40_000, clients=clients, wire=[encode(["PING"])])
    for backend, key in (("ONNX", "fraud"), ("ONNX", "fraud64"), ("TORCH", "fraudpt"), ("TORCH", "fraudpt64")):
        line = "|> AI.MODELEXECUTE {} INPUTS 2 t {} OUTPUTS 1 score |> AI.TENSORGET score BLOB"
        set_ = _words("|> AI.TENSORSET t FLOAT 1 30 BLOB")
        wire = [encode(["AI.DAGEXECUTE", "LOAD", "1", ref, *set_, transaction, *_words(line.format(key, ref))]) for ref in NAMED]
        name = f"fraud DAG {backend.lower()}{' BATCHSIZE 64' if key.endswith('64') else ''}"
        yield Row(name, (), 20_000, "PING", clients=clients, original=originals[backend], needs=backend, wire=wire)
    head = "POST /{} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n"
    requests = [head.format(ref, len(transaction)).encode() + transaction for ref in NAMED]
    yield Row("uvicorn + onnxruntime + GET", (), 5_000, "PING", clients=clients, wire=requests, http=True)


def batching_rows() -> Iterable[Row]:
    """Throughput and latency of a small and of a heavier model, by BATCHSIZE and number of clients."""
    clients = (1, 4, 16, 50, 128, 256)
    for model, tensor, requests in (("mlp", "row", 20_000), ("cnn", "image", 6_000)):
        for batch in (0, 16, 64):
            key = f"{model}{batch or ''}"
            name = f"{model} {f'BATCHSIZE {batch}' if batch else 'unbatched'}"
            yield Row(name, _words(f"AI.MODELEXECUTE {key} INPUTS 1 {tensor} OUTPUTS 1 c"), requests, clients=clients, needs="ONNX")
    yield Row("blocked echo", ["ECHO.BLOCKED"], 20_000, clients=clients)


SUITES: dict[str, Callable[[], Iterable[Row]]] = {"tensors": tensor_rows, "runs": run_rows, "batching": batching_rows, "fraud": fraud_rows}

ADD_SCRIPT = "def add(tensors: List[Tensor], keys: List[str], args: List[str]):\n    return tensors[0] + tensors[1]\n"

#: Stored before the rows: (key, backend, options before BLOB, file).
STORED: tuple[tuple[str, str, str, str], ...] = (
    ("torch", "TORCH", "", "two_inputs.pt"),
    ("onnx", "ONNX", "", "two_inputs.onnx"),
    ("tf", "TF", "INPUTS 2 a b OUTPUTS 1 mul", "two_inputs.pb"),
    ("tflite", "TFLITE", "", "two_inputs.tflite"),
    ("mlp", "ONNX", "", "mlp.onnx"),
    ("mlp64", "ONNX", "BATCHSIZE 64", "mlp.onnx"),
    ("mlp16", "ONNX", "BATCHSIZE 16", "mlp.onnx"),
    ("cnn", "ONNX", "", "cnn.onnx"),
    ("cnn16", "ONNX", "BATCHSIZE 16", "cnn.onnx"),
    ("cnn64", "ONNX", "BATCHSIZE 64", "cnn.onnx"),
    ("fraud", "ONNX", "", "fraud.onnx"),
    ("fraud64", "ONNX", "BATCHSIZE 64", "fraud.onnx"),
    ("fraudpt", "TORCH", "", "fraud.pt"),
    ("fraudpt64", "TORCH", "BATCHSIZE 64", "fraud.pt"),
)


def prepare(client: Any, needed: set[str]) -> None:
    """Stores what the rows name."""
    for key, backend, options, file in STORED:
        if backend in needed:
            client.execute_command("AI.MODELSTORE", key, backend, "CPU", *options.split(), "BLOB", (MODELS / file).read_bytes())
    if "TORCH" in needed:
        client.execute_command("AI.SCRIPTSTORE", "script", "CPU", "ENTRY_POINTS", 1, "add", "SOURCE", ADD_SCRIPT)
    for key in ("a", "b"):
        client.execute_command("AI.TENSORSET", key, "FLOAT", 1, 2, "BLOB", _floats(2))
    client.execute_command("AI.TENSORSET", "row", "FLOAT", 1, 64, "BLOB", _floats(64))
    client.execute_command("AI.TENSORSET", "image", "FLOAT", 1, 1, 28, 28, "BLOB", _floats(784))
    store_references(client)
    for floats in (4, 1024, 153_600):
        client.set(f"s{floats}", _floats(floats))
        client.execute_command("AI.TENSORSET", f"t{floats}", "FLOAT", floats, "BLOB", _floats(floats))


def store_references(client: Any) -> None:
    """The reference rows of fraud scoring, as tensors and, for the HTTP server, as strings of the same bytes."""
    with client.pipeline(transaction=False) as pipe:
        for number in range(REFERENCES):
            blob = struct.pack("<256f", *(_rng.random() for _ in range(256)))
            pipe.execute_command("AI.TENSORSET", f"ref:{number:05}", "FLOAT", 1, 256, "BLOB", blob)
            pipe.set(f"string:ref:{number:05}", blob)
        pipe.execute()
