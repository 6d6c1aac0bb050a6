"""Says what a model blob is by looking at it, so that a wrong file gets a sentence instead of a parser's complaint.

The usual mistakes are a checkpoint instead of a TorchScript archive, the right file for another backend, a file that is still packed, and a
text where a file was meant (a Git LFS pointer, an error page). Nothing here decides whether a model is good: a blob that looks right may
still be refused by its library.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from .onnx_wire import WireError, top_level


@dataclass(frozen=True)
class Format:
    """`noun` completes "this looks like ..."; `cure` is what to do instead, "" where the backend below takes it as it is."""

    noun: str
    cure: str = ""
    backend: str = ""  # the backend that takes it


_UNPACK = "unpack it and store the model file inside"
_SCRIPT = "build the model in Python and save it with torch.jit.save(torch.jit.trace(model, example), file)"
_FREEZE = "freeze it to a GraphDef (tf.compat.v1.graph_util.convert_variables_to_constants) and store that"

#: what `identify()` can answer
FORMATS: dict[str, Format] = {
    "empty": Format("an empty blob", "send the bytes of the model file after BLOB"),
    "torchscript": Format("a TorchScript archive", backend="TORCH"),
    "onnx": Format("an ONNX model", backend="ONNX"),
    "graphdef": Format("a TensorFlow GraphDef", backend="TF"),
    "tflite": Format("a TensorFlow Lite model", backend="TFLITE"),
    "pt2": Format("a program saved by torch.export (.pt2), which runs Python code when it is loaded", _SCRIPT),
    "aoti": Format("a native library packed by AOTInductor (.pt2)", _SCRIPT),
    "checkpoint": Format("a checkpoint saved by torch.save: weights without the code that uses them", _SCRIPT),
    "pickle": Format(
        "a Python pickle, such as torch.save, joblib or scikit-learn write, which runs code when it is loaded", "convert the model"
    ),
    "mobile": Format("a PyTorch Mobile flatbuffer", "save the model with torch.jit.save"),
    "ort": Format("a model in ORT format", "store the ONNX file it was made from"),
    "savedmodel": Format("the saved_model.pb of a TensorFlow SavedModel, without its variables", _FREEZE),
    "savedmodel-zip": Format("a zipped TensorFlow SavedModel", "store it with TF, one to an archive"),
    "keras": Format("a Keras model file", "export it to TensorFlow, TensorFlow Lite or ONNX"),
    "hdf5": Format("an HDF5 file, such as Keras writes", "export it to TensorFlow, TensorFlow Lite or ONNX"),
    "safetensors": Format("a safetensors file: weights without the code that uses them", _SCRIPT),
    "gguf": Format("a GGUF file", "convert the model to ONNX or TorchScript"),
    "numpy": Format("a NumPy array file", "store a model, or set a tensor with AI.TENSORSET"),
    "tensorrt": Format("a TensorRT engine", "store the ONNX file it was made from"),
    "gzip": Format("a gzip file", _UNPACK),
    "bzip2": Format("a bzip2 file", _UNPACK),
    "xz": Format("an xz file", _UNPACK),
    "zstd": Format("a Zstandard file", _UNPACK),
    "7z": Format("a 7-Zip archive", _UNPACK),
    "tar": Format("a tar archive", _UNPACK),
    "zip": Format("a zip archive without a model this server knows", _UNPACK),
    "broken-zip": Format("a zip archive with its end missing, such as a TorchScript file that was cut short", "send the whole file"),
    "lfs": Format("a Git LFS pointer, not the file itself", "run git lfs pull and send the file"),
    "html": Format("an HTML page, such as a download's error page", "check where the file came from"),
    "text": Format("a text, such as a path or a script", "send the bytes of the model file after BLOB"),
}

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"\x93NUMPY", "numpy"),
    (b"GGUF", "gguf"),
    (b"ptrt", "tensorrt"),
    (b"ftrt", "tensorrt"),
    (b"version https://git-lfs", "lfs"),
    *((b"\x80" + bytes([protocol]), "pickle") for protocol in (2, 3, 4, 5)),
)
_FLATBUFFERS = {b"TFL3": "tflite", b"ORTM": "ort", b"PTMF": "mobile"}


def identify(blob: bytes) -> str:
    """The key of `FORMATS` that fits, or "unknown"."""
    if not blob:
        return "empty"
    for start, name in _STARTS:
        if blob.startswith(start):
            return name
    if blob[4:8] in _FLATBUFFERS:
        return _FLATBUFFERS[blob[4:8]]
    if blob.startswith(b"PK\x03\x04"):
        return _zip(blob)
    if blob[257:262] == b"ustar":
        return "tar"
    if blob[8:9] == b"{" and int.from_bytes(blob[:8], "little") <= len(blob) - 8:
        return "safetensors"
    return _text(blob) or _protobuf(blob) or "unknown"


def refusal(blob: bytes, backend: str) -> str | None:
    """The line a client reads when `blob` is recognisably not what `backend` takes; None when it may be."""
    known = FORMATS.get(identify(blob))
    if known is None or known.backend == backend:
        return None
    wanted = next(entry.noun for entry in FORMATS.values() if entry.backend == backend)
    cure = known.cure or f"store it with {known.backend}"
    return f"ERR the blob is not {wanted}: it looks like {known.noun}; {cure}"


def _zip(blob: bytes) -> str:
    try:
        members = zipfile.ZipFile(io.BytesIO(blob)).namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return "broken-zip"
    # All that torch writes lies in one folder, whose name is free.
    inside = {name.partition("/")[2] for name in members}
    return next((name for name, fits in _ZIPS if fits(set(members) | inside)), "zip")


def _any(names: set[str], test: Callable[[str], bool]) -> bool:
    return any(test(name) for name in names)


_ZIPS: tuple[tuple[str, Callable[[set[str]], bool]], ...] = (
    ("torchscript", lambda names: "constants.pkl" in names and _any(names, lambda n: n.startswith("code/"))),
    ("aoti", lambda names: _any(names, lambda n: n.startswith("data/aotinductor/"))),
    ("pt2", lambda names: "archive_format" in names and _any(names, lambda n: n.startswith("models/"))),
    ("pt2", lambda names: "serialized_exported_program.json" in names),
    ("savedmodel-zip", lambda names: _any(names, lambda n: n.rpartition("/")[2] == "saved_model.pb")),
    ("keras", lambda names: {"config.json", "metadata.json"} <= names),
    ("checkpoint", lambda names: "data.pkl" in names),
    ("numpy", lambda names: _any(names, lambda n: n.endswith(".npy"))),
)


def _text(blob: bytes) -> str | None:
    head = blob[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "html"
    try:
        start = blob[:512].decode("ascii")
    except UnicodeDecodeError:
        return None
    return "text" if all(letter.isprintable() or letter in "\r\n\t" for letter in start) else None


def _protobuf(blob: bytes) -> str | None:
    """Tells the three kinds of protobuf model by the wire types of their first fields."""
    try:
        fields = {(number, wire) for number, wire, _, _ in top_level(blob)}
    except WireError:
        return None
    if (7, 2) in fields and fields & {(1, 0), (8, 2)}:
        return "onnx"
    if (1, 0) in fields and (2, 2) in fields and not fields & {(7, 2), (8, 2)}:
        return "savedmodel"
    return "graphdef" if (1, 2) in fields and {number for number, _ in fields} <= {1, 2, 3, 4, 5} else None
