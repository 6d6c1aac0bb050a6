"""What a blob looks like, and what a client is told when it is not what the backend takes."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisai_py.backends import BACKENDS
from redisai_py.backends.formats import FORMATS, identify, refusal

MODELS = Path(__file__).resolve().parents[1] / "models"


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"x" * 40)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pt"))
    return out.getvalue()


def npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.ones(3))
    return out.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"\0\0\0\0"


BLOBS: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("torchscript", zipped("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl", "m/version")),
    ("pt2", zipped("m/archive_format", "m/models/model.json", "m/data/weights/0")),
    ("pt2", zipped("serialized_exported_program.json", "version")),
    ("aoti", zipped("m/archive_format", "m/data/aotinductor/model/x.so", "m/models/model.json")),
    ("checkpoint", zipped("m/data.pkl", "m/data/0", "m/version")),
    ("savedmodel-zip", zipped("saved_model.pb", "variables/variables.index")),
    ("savedmodel-zip", zipped("model/saved_model.pb", "model/variables/variables.index")),
    ("keras", zipped("config.json", "metadata.json", "model.weights.h5")),
    ("numpy", zipped("a.npy", "b.npy")),
    ("zip", zipped("readme.md")),
    ("broken-zip", zipped("m/data.pkl")[:60]),
    ("pickle", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."),
    ("pickle", b"\x80\x04\x95\x1f\x00\x00\x00"),
    ("mobile", b"\x14\x00\x00\x00PTMF" + bytes(40)),
    ("ort", b"\x14\x00\x00\x00ORTM" + bytes(40)),
    ("tflite", b"\x1c\x00\x00\x00TFL3" + bytes(40)),
    ("savedmodel", b"\x08\x01\x12\x04\x0a\x02\x12\x00"),
    ("onnx", b"\x08\x08\x12\x01a\x3a\x02\x12\x00\x42\x02\x10\x11"),
    ("graphdef", b"\x0a\x06\x0a\x01a\x12\x01b\x22\x03\x08\x87\x01"),
    ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(40)),
    ("safetensors", safetensors()),
    ("gguf", b"GGUF\x03\x00\x00\x00"),
    ("numpy", npy()),
    ("tensorrt", b"ftrt\x00\x00\x00\x00"),
    ("gzip", gzip.compress(b"model")),
    ("bzip2", b"BZh91AY&SY"),
    ("xz", b"\xfd7zXZ\x00\x00\x04"),
    ("zstd", b"\x28\xb5\x2f\xfd\x04\x00"),
    ("7z", b"7z\xbc\xaf\x27\x1c\x00\x04"),
    ("tar", tarred()),
    ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
    ("html", b"<!DOCTYPE html>\n<html><body>404</body></html>"),
    ("html", b'  <?xml version="1.0"?><Error>AccessDenied</Error>'),
    ("text", b"/home/me/model.pt"),
    ("text", b'{"error": "not found"}'),
    ("unknown", random.Random(0).randbytes(300)),
    ("unknown", b"\x00" * 100),
    ("unknown", b"\xff"),
]


@pytest.mark.parametrize(("name", "blob"), BLOBS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BLOBS)])
def test_a_blob_is_recognised(name: str, blob: bytes) -> None:
    assert identify(blob) == name


def test_every_format_is_tested() -> None:
    assert {name for name, _ in BLOBS} == {*FORMATS, "unknown"}


SUFFIXES = {".pt": "torchscript", ".onnx": "onnx", ".pb": "graphdef", ".tflite": "tflite", ".npy": "numpy"}


@pytest.mark.parametrize("path", sorted(path for path in MODELS.iterdir() if path.suffix in SUFFIXES), ids=lambda path: path.name)
def test_real_models_are_recognised(path: Path) -> None:
    assert identify(path.read_bytes()) == SUFFIXES[path.suffix]


@pytest.mark.needs_torch
def test_what_torch_writes_is_recognised() -> None:
    torch = pytest.importorskip("torch")
    for zipfile_format, name in ((True, "checkpoint"), (False, "pickle")):
        out = io.BytesIO()
        torch.save({"w": torch.ones(2)}, out, _use_new_zipfile_serialization=zipfile_format)
        assert identify(out.getvalue()) == name


def test_each_backend_takes_one_format() -> None:
    assert sorted(entry.backend for entry in FORMATS.values() if entry.backend) == sorted(BACKENDS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_refusal_says_what_was_wanted_what_came_and_what_to_do(backend: str, name: str) -> None:
    blob = next(blob for kind, blob in BLOBS if kind == name)
    line = refusal(blob, backend)
    if FORMATS[name].backend == backend:
        assert line is None
    else:
        assert line is not None
        wanted = next(entry.noun for entry in FORMATS.values() if entry.backend == backend)
        assert line.startswith(f"ERR the blob is not {wanted}: it looks like {FORMATS[name].noun}; ")
        assert line.endswith(FORMATS[name].cure or f"store it with {FORMATS[name].backend}")
        assert "\n" not in line


def test_a_blob_nobody_knows_is_left_to_the_library() -> None:
    assert all(refusal(b"\xff\x00\xff", backend) is None for backend in BACKENDS)


@given(st.binary(max_size=400))
def test_any_bytes_have_an_answer(blob: bytes) -> None:
    assert identify(blob) in {*FORMATS, "unknown"}


@given(st.sampled_from([blob for _, blob in BLOBS if blob]), st.data())
def test_damaged_and_cut_blobs_have_an_answer(blob: bytes, data: st.DataObject) -> None:
    damaged = bytearray(blob[: data.draw(st.integers(1, len(blob)))])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert identify(bytes(damaged)) in {*FORMATS, "unknown"}
