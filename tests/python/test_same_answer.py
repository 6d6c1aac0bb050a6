"""Same data, same answer: one network in every format, run by every backend over the same rows that none of them was trained on.

The models are written by tests/models/make_models.py from one set of weights, so a difference here is a difference between backends.
Tolerances: float networks agree to 2e-6 on probabilities (32-bit sums in another order); the quantised one to 0.06, with one digit in a
hundred allowed to differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redisai_py.backends import backend_class
from redisai_py.backends.base import Backend, ModelSpec, Session, Settings
from redisai_py.errors import BackendError
from redisai_py.testing import FakeMeter, FakeTensor

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES, MODELS = ROOT / "examples" / "models", ROOT / "tests" / "models"
Array = np.ndarray[Any, Any]

FLOAT_TOLERANCE, INT8_TOLERANCE = 2e-6, 0.06
ACCURACY = 0.973  # of the float networks on the 450 held-out rows

#: backend -> package to look for, file extension, marker
BACKENDS = {
    "TORCH": ("torch", "pt", pytest.mark.needs_torch),
    "ONNX": ("onnxruntime", "onnx", pytest.mark.needs_onnx),
    "TF": ("tensorflow", "pb", pytest.mark.needs_tf),
    "TFLITE": ("ai_edge_litert", "tflite", pytest.mark.needs_tflite),
}
#: network -> inputs, outputs: TF wants names
NAMES = {
    "digits": (("x",), ("probabilities",)),
    "cnn": (("x",), ("probabilities",)),
    "two_inputs": (("a", "b"), ("mul",)),
    "minimal": (("x",), ("y",)),
}
every_backend = pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, (_, _, mark) in BACKENDS.items()])


@cache
def backend(name: str) -> Backend:
    pytest.importorskip(BACKENDS[name][0])
    return backend_class(name).load(Settings(), FakeMeter())


_sessions: dict[tuple[str, str], Session] = {}


@pytest.fixture(scope="module", autouse=True)
def _closed_at_the_end() -> Iterator[None]:
    yield
    while _sessions:
        _sessions.popitem()[1].close()


def session(name: str, network: str) -> Session:
    if (name, network) not in _sessions:
        inputs, outputs = NAMES[network] if name == "TF" else ((), ())
        file = f"{network}.{BACKENDS[name][1]}"
        folder = EXAMPLES if network.startswith("digits") else MODELS
        spec = ModelSpec(network, "CPU", inputs, outputs)
        _sessions[name, network] = backend(name).open((folder / file).read_bytes(), spec, Settings())
    return _sessions[name, network]


def run(name: str, network: str, *inputs: Array) -> Array:
    (output,) = session(name, network).run([FakeTensor(one) for one in inputs], 1)
    return np.asarray(output)


@cache
def held_out() -> tuple[Array, Array]:
    return np.load(MODELS / "digits_test_x.npy").astype(np.float32), np.load(MODELS / "digits_test_y.npy")


@cache
def expected() -> Array:
    """The digits network worked out with numpy alone, from the weights in the ONNX file."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(EXAMPLES / "digits.onnx").graph
    w = {tensor.name: onnx.numpy_helper.to_array(tensor).astype(np.float64) for tensor in graph.initializer}
    hidden = np.maximum(held_out()[0] @ w["w1"] + w["b1"], 0)
    scores = np.exp(hidden @ w["w2"] + w["b2"])
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))


def accuracy(probabilities: Array) -> float:
    return float((probabilities.argmax(axis=1) == held_out()[1]).mean())


@every_backend
def test_digits_agree_with_arithmetic(name: str) -> None:
    out = run(name, "digits", held_out()[0])
    assert out.dtype == np.float32 and out.shape == (450, 10)
    assert np.abs(out - expected()).max() < FLOAT_TOLERANCE
    assert accuracy(out) == pytest.approx(ACCURACY, abs=0.001)


@every_backend
def test_one_row_at_a_time_gives_what_a_batch_gives(name: str) -> None:
    rows = held_out()[0][:64]
    together = run(name, "digits", rows)
    alone = np.concatenate([run(name, "digits", rows[i : i + 1]) for i in range(len(rows))])
    assert np.abs(together - alone).max() < FLOAT_TOLERANCE


@pytest.mark.needs_tflite
def test_the_quantised_digits_are_nearly_as_good() -> None:
    (out,) = (
        backend("TFLITE")
        .open((EXAMPLES / "digits_int8.tflite").read_bytes(), ModelSpec("q", "CPU"), Settings())
        .run([FakeTensor(held_out()[0])], 1)
    )
    assert np.abs(out - expected()).max() < INT8_TOLERANCE
    assert accuracy(out) > ACCURACY - 0.01


@pytest.mark.needs_tflite
@pytest.mark.parametrize(("file", "dtype"), [("digits_int8_io", np.int8), ("digits_uint8_io", np.uint8)])
def test_the_quantised_digits_in_raw_integers_are_as_good(file: str, dtype: Any) -> None:
    opened = backend("TFLITE").open((MODELS / f"{file}.tflite").read_bytes(), ModelSpec("q", "CPU"), Settings())
    # Pixels of 0 to 16 over the whole range of the type, probabilities of 0 to 1 likewise: how make_models.py calibrated it.
    lowest = np.iinfo(dtype).min
    raw = np.clip(np.round(held_out()[0] * (255 / 16)) + lowest, lowest, np.iinfo(dtype).max).astype(dtype)
    (out,) = opened.run([FakeTensor(raw)], 1)
    assert out.dtype == dtype
    assert np.abs((out.astype(np.float32) - lowest) / 256 - expected()).max() < INT8_TOLERANCE
    assert accuracy(out) > ACCURACY - 0.01


@every_backend
def test_the_sample_beside_the_examples_is_recognised(name: str) -> None:
    out = run(name, "digits", np.load(EXAMPLES / "digits_sample.npy"))
    assert out.argmax(axis=1).tolist() == np.load(EXAMPLES / "digits_labels.npy").tolist()


@every_backend
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_two_inputs_multiply(name: str, rows: int) -> None:
    a = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    assert np.array_equal(run(name, "two_inputs", a, a + 1), a * (a + 1))


@every_backend
def test_the_smallest_model_doubles(name: str) -> None:
    assert run(name, "minimal", np.float32([[1, 2]])).tolist() == [[2, 4]]


def test_convolutions_agree() -> None:
    pictures = np.random.default_rng(7).random((5, 1, 28, 28), np.float32)
    answers = {name: run(name, "cnn", pictures) for name in BACKENDS}
    for (one, a), (other, b) in pairwise(answers.items()):
        assert np.abs(a - b).max() < FLOAT_TOLERANCE, (one, other)
    assert all(out.shape == (5, 10) and np.allclose(out.sum(axis=1), 1, atol=1e-5) for out in answers.values())


@every_backend
def test_a_backend_refuses_the_others_models(name: str) -> None:
    """With a text that names what the file is."""
    for other, (_, extension, _) in BACKENDS.items():
        if other != name:
            with pytest.raises(BackendError) as caught:
                backend(name).open((MODELS / f"minimal.{extension}").read_bytes(), ModelSpec("key", "CPU", ("x",), ("y",)), Settings())
            # ONNX has one sentence for whatever is no graph, which existing clients look for.
            assert f"store it with {other}" in str(caught.value) or str(caught.value) == "No graph was found in the protobuf."


@every_backend
def test_outputs_are_arrays_that_c_can_take(name: str) -> None:
    out = session(name, "minimal").run([FakeTensor(np.float32([[1, 2], [3, 4]]))], 1)[0]
    assert isinstance(out, np.ndarray) and out.flags.c_contiguous and out.dtype == np.float32


@every_backend
@pytest.mark.parametrize("attribute", ["name", "package", "batch_mismatch", "version"])
def test_a_backend_says_who_it_is(name: str, attribute: str) -> None:
    assert isinstance(getattr(backend(name), attribute), str) and getattr(backend(name), attribute)


@every_backend
def test_a_session_names_its_inputs_and_outputs(name: str) -> None:
    opened = session(name, "two_inputs")
    assert len(opened.inputs) == 2 and len(opened.outputs) == 1
