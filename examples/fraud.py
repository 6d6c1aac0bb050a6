"""Rates a payment with data that is already in the server, in one round trip.

    python examples/fraud.py --port 6379

What is known about a card holder is a key of 256 numbers. A request sends only the 30 numbers of the payment; a DAG puts both into two
models, on two backends, lets a script take the mean of their answers, and returns that. The reference data never travels.

The weights of the two models are random, and the same: what is shown is how it is done, not who is a fraud.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import redis

MODELS = Path(__file__).resolve().parent / "models"
MEAN = """
def mean(tensors: List[Tensor], keys: List[str], args: List[str]):
    return torch.mean(torch.stack(tensors), dim=0)
"""
HOLDERS = 1000


def prepare(client: redis.Redis) -> None:
    client.execute_command("AI.MODELSTORE", "fraud:torch", "TORCH", "CPU", "BLOB", (MODELS / "fraud.pt").read_bytes())
    client.execute_command("AI.MODELSTORE", "fraud:onnx", "ONNX", "CPU", "BLOB", (MODELS / "fraud.onnx").read_bytes())
    client.execute_command("AI.SCRIPTSTORE", "fraud:mean", "CPU", "ENTRY_POINTS", 1, "mean", "SOURCE", MEAN)
    known = np.random.default_rng(1).standard_normal((HOLDERS, 256), np.float32)
    with client.pipeline(transaction=False) as pipe:
        for holder, numbers in enumerate(known):
            pipe.execute_command("AI.TENSORSET", f"holder:{holder}", "FLOAT", 1, 256, "BLOB", numbers.tobytes())
        pipe.execute()


def rate(client: redis.Redis, holder: int, payment: bytes) -> list[float]:
    """Probabilities of an honest payment and of a fraud."""
    known = f"holder:{holder}"
    replies = client.execute_command(
        *["AI.DAGEXECUTE", "LOAD", 1, known, "|>"],
        *["AI.TENSORSET", "payment", "FLOAT", 1, 30, "BLOB", payment, "|>"],
        *["AI.MODELEXECUTE", "fraud:torch", "INPUTS", 2, "payment", known, "OUTPUTS", 1, "one", "|>"],
        *["AI.MODELEXECUTE", "fraud:onnx", "INPUTS", 2, "payment", known, "OUTPUTS", 1, "other", "|>"],
        *["AI.SCRIPTEXECUTE", "fraud:mean", "mean", "INPUTS", 2, "one", "other", "OUTPUTS", 1, "both", "|>"],
        *["AI.TENSORGET", "both", "VALUES"],
    )
    return [float(value) for value in replies[-1]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Rate payments with reference data.")
    parser.add_argument("--port", type=int, default=6379)
    options = parser.parse_args()
    client = redis.Redis(port=options.port)
    prepare(client)

    payments = np.random.default_rng(2).standard_normal((HOLDERS, 30), np.float32)
    start = time.perf_counter()
    rates = [rate(client, holder, payment.tobytes()) for holder, payment in enumerate(payments)]
    seconds = time.perf_counter() - start

    for holder in range(3):
        print(f"holder {holder}: fraud with a probability of {rates[holder][1]:.1%}")
    print(f"{sum(fraud > 0.9 for _, fraud in rates)} of {HOLDERS} payments are held back")
    print(f"{seconds / HOLDERS * 1000:.2f} ms per payment, one after the other")


if __name__ == "__main__":
    main()
