"""Rates each payment of a stream as it comes in: an AI flow takes it from the stream, and puts what it found into another.

    python examples/flow_fraud.py --port 6379

The server has to run flows (`FLOWS yes`). The models, the script and what is known of the card holders are those of `fraud.py`; there a
client asks for each payment, here nobody does. An entry leaves the stream when it has been rated, so none is lost over a restart.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import fraud
import numpy as np
import redis

FLOW = """
import redisAI

async def rate(record):
    payment = record["value"]
    numbers = payment["numbers"].encode("utf-8", "surrogateescape")  # a value of a stream is text; this gives its bytes back
    dag = redisAI.createDAGRunner()
    dag.Input("payment", redisAI.createTensorFromBlob("FLOAT", [1, 30], numbers))
    dag.Input("known", redisAI.getTensorFromKey("holder:" + payment["holder"]))
    dag.ModelRun(name="fraud:torch", inputs=["payment", "known"], outputs=["one"])
    dag.ModelRun(name="fraud:onnx", inputs=["payment", "known"], outputs=["other"])
    dag.ScriptRun(name="fraud:mean", func="mean", inputs=["one", "other"], outputs=["both"])
    both, = await dag.TensorGet("both").Run()
    honest, fraud = redisAI.tensorToFlatList(both)
    execute("XADD", "rates", "*", "payment", record["id"], "holder", payment["holder"], "fraud", f"{fraud:.3f}")

GB("StreamReader", desc="rate payments").foreach(rate).register("payments")
"""
DESCRIPTION = b"rate payments"
PAYMENTS = 200


def prepare(client: redis.Redis) -> None:
    fraud.prepare(client)
    client.delete("payments", "rates")
    for row in client.execute_command("RG.DUMPREGISTRATIONS"):
        if row[5] == DESCRIPTION:  # of an earlier run of this example
            client.execute_command("RG.UNREGISTER", row[1])
    client.execute_command("RG.PYEXECUTE", FLOW)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rate the payments of a stream.")
    parser.add_argument("--port", type=int, default=6379)
    options = parser.parse_args()
    client = redis.Redis(port=options.port)
    prepare(client)

    payments = np.random.default_rng(2).standard_normal((PAYMENTS, 30), np.float32)
    for holder, payment in enumerate(payments):
        client.xadd("payments", {"holder": holder, "numbers": payment.tobytes()})

    last: Any = "0"
    held = 0
    for number in range(PAYMENTS):
        reply: Any = client.xread({"rates": last}, count=1, block=0)
        last, rate = reply[0][1][0]
        held += float(rate[b"fraud"]) > 0.9
        if number < 3:
            print(f"holder {int(rate[b'holder'])}: fraud with a probability of {float(rate[b'fraud']):.1%}")
    print(f"{held} of {PAYMENTS} payments are held back")
    while client.xlen("payments"):  # the last one leaves right after its rate was written
        time.sleep(0.001)
    print("the stream of payments is empty")


if __name__ == "__main__":
    main()
