"""The PyPI client `smartredis` (what SmartSim's users have) against a server. Usage: PORT MODELS."""

import os
import sys
from pathlib import Path

port, models = sys.argv[1], Path(sys.argv[2])
os.environ["SSDB"] = f"127.0.0.1:{port}"
os.environ["SR_DB_TYPE"] = "Standalone"
os.environ["SR_LOG_LEVEL"] = "QUIET"

import numpy as np  # noqa: E402
from smartredis import Client, Dataset  # noqa: E402

client = Client(None, logger_name="test")
data = np.arange(8, dtype=np.float32).reshape(2, 4)
client.put_tensor("data", data)
assert (client.get_tensor("data") == data).all()
for dtype in (np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16):
    array = np.arange(6).reshape(3, 2).astype(dtype)
    client.put_tensor(f"t{array.dtype}", array)
    back = client.get_tensor(f"t{array.dtype}")
    assert back.dtype == array.dtype and (back == array).all()

dataset = Dataset("set")
dataset.add_tensor("a", data)
dataset.add_meta_string("note", "kept")
client.put_dataset(dataset)
assert (client.get_dataset("set").get_tensor("a") == data).all()

a, b = np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6], [7, 8]], np.float32)
client.put_tensor("a", a)
client.put_tensor("b", b)
client.set_model_from_file("m", str(models / "two_inputs.pt"), "TORCH", "CPU", batch_size=4, min_batch_size=0, tag="v1")
client.run_model("m", inputs=["a", "b"], outputs=["c"])
assert (client.get_tensor("c") == a * b).all()
assert bytes(client.get_model("m")) == (models / "two_inputs.pt").read_bytes()
client.set_model_from_file("o", str(models / "two_inputs.onnx"), "ONNX", "CPU")
client.run_model("o", inputs=["a", "b"], outputs=["d"])
assert (client.get_tensor("d") == a * b).all()

client.set_script("s", "def add(a, b):\n    return a + b\n", "CPU")
client.run_script("s", "add", ["a", "b"], ["e"])
assert (client.get_tensor("e") == a + b).all()
assert client.get_script("s") == "def add(a, b):\n    return a + b\n"
client.set_script("v", "def total(tensors: List[Tensor]):\n    return torch.stack(tensors).sum(dim=0)\n", "CPU")
client.run_script("v", "total", ["a", "b", "a"], ["f"])
assert (client.get_tensor("f") == a + b + a).all()

info = client.get_ai_info([f"127.0.0.1:{port}"], "m")[0]
assert (info["calls"], info["errors"], info["samples"], info["backend"]) == ("1", "0", "2", "TORCH"), info
client.delete_model("m")
client.delete_script("s")
assert not client.model_exists("m")
sys.stdout.write("ok\n")
