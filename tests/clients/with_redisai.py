"""The PyPI client `redisai` against a server, with the checks that it makes of every reply itself. Usage: PORT MODELS."""

import sys
from pathlib import Path

import numpy as np
from redisai import Client

port, models = int(sys.argv[1]), Path(sys.argv[2])
client = Client(host="127.0.0.1", port=port)

# tensors
client.tensorset("x", [2, 3, 4, 5], shape=(2, 2), dtype="float")
assert (client.tensorget("x") == np.array([[2, 3], [4, 5]], np.float32)).all()
client.tensorset("n", np.arange(6, dtype=np.int64).reshape(2, 3))
meta = client.tensorget("n", as_numpy=False, meta_only=True)
assert meta["dtype"] == "INT64" and list(meta["shape"]) == [2, 3], meta
client.tensorset("words", np.array([["a", "bc"], ["d", ""]]).astype(str)[:, :1], dtype="str")
assert client.tensorget("words").tolist() == [["a"], ["d"]]
client.tensorset("flags", np.array([True, False]), dtype="bool")
assert client.tensorget("flags").tolist() == [True, False]

# models
blob = (models / "two_inputs.pt").read_bytes()
assert client.modelstore("m", "TORCH", "cpu", blob, tag="v1.0", batch=8, minbatch=1) == "OK"
got = client.modelget("m")
assert got["backend"] == "TORCH" and got["device"] == "cpu" and got["tag"] == "v1.0" and got["batchsize"] == 8, got
assert got["blob"] == blob
client.tensorset("a", [1, 2, 3, 4], shape=(2, 2), dtype="float")
client.tensorset("b", [5, 6, 7, 8], shape=(2, 2), dtype="float")
assert client.modelexecute("m", ["a", "b"], ["c"], timeout=10_000) == "OK"
assert client.tensorget("c").tolist() == [[5, 12], [21, 32]]
assert client.modelstore("onnx", "ONNX", "CPU", (models / "two_inputs.onnx").read_bytes()) == "OK"
assert client.modelrun("onnx", ["a", "b"], ["d"]) == "OK"
assert client.tensorget("d").tolist() == [[5, 12], [21, 32]]
assert client.modelscan()[0][0] == "onnx", client.modelscan()
info = client.infoget("m")
assert info["calls"] == 1 and info["errors"] == 0 and info["type"] == "MODEL" and info["samples"] == 2, info
assert client.inforeset("m") == "OK"
assert client.infoget("m")["calls"] == 0
assert client.modeldel("onnx") == "OK"

# a blob in chunks
chunk = client.execute_command("AI.CONFIG", "GET", "MODEL_CHUNK_SIZE")
assert isinstance(chunk, int)
client.config("MODEL_CHUNK_SIZE", "200")
try:
    assert client.modelstore("chunked", "TORCH", "CPU", blob) == "OK"
    assert b"".join(client.modelget("chunked")["blob"]) == blob
finally:
    client.config("MODEL_CHUNK_SIZE", str(chunk))

# scripts
source = """
def bar(tensors: List[Tensor], keys: List[str], args: List[str]):
    return tensors[0] + tensors[1]
"""
assert client.scriptstore("s", "cpu", source, "bar", tag="t") == "OK"
assert client.scriptexecute("s", "bar", inputs=["a", "b"], outputs=["e"]) == "OK"
assert client.tensorget("e").tolist() == [[6, 8], [10, 12]]
script = client.scriptget("s")
assert script["source"] == source and script["device"] == "cpu" and script["tag"] == "t", script
assert client.scriptset("old", "cpu", "def bar(a, b):\n    return a + b\n") == "OK"
assert client.scriptrun("old", "bar", ["a", "b"], ["f"]) == "OK"
assert client.tensorget("f").tolist() == [[6, 8], [10, 12]]
assert ["s", "t"] in client.scriptscan(), client.scriptscan()
assert client.scriptdel("old") == "OK"

# DAGs
dag = client.dag(load=["a", "b"], persist="g")
dag.modelexecute("m", ["a", "b"], ["g"])
dag.scriptexecute("s", "bar", inputs=["g", "b"], outputs=["h"])
dag.tensorget("h")
reply = dag.execute()
assert reply[:2] == ["OK", "OK"] and reply[2].tolist() == [[10, 18], [28, 40]], reply
assert client.tensorget("g").tolist() == [[5, 12], [21, 32]]
read_only = client.dag(load=["a"], readonly=True)
read_only.tensorget("a")
assert read_only.execute()[0].tolist() == [[1, 2], [3, 4]]

# pipelines
pipe = client.pipeline(transaction=True)
pipe = pipe.tensorset("p", [2, 3], dtype="float")
pipe = pipe.tensorget("p", as_numpy=True)
assert pipe.execute()[1].tolist() == [2, 3]
sys.stdout.write("ok\n")
