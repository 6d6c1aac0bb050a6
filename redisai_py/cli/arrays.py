"""Tensors outside the server: files and typed values as arrays, arrays as arguments of AI.TENSORSET, and replies as arrays again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..tensor import DTYPES, WIRE_NAMES

Array = np.ndarray[Any, Any]

IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
NUMERIC = "FLOAT", "DOUBLE", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "BOOL"
SYNTHETIC = re.compile(rf"(?P<dtype>{'|'.join(NUMERIC)}):(?P<shape>\d+(?:x\d+)*)", re.IGNORECASE)


# ---- reading -----------------------------------------------------------------------------------------------------------------------


def read(given: str, dtype: str | None) -> Array:
    """One --input: a file by its ending, DTYPE:AxB for random numbers, or a value typed on the command line.

    `dtype` is a wire name and says what to read typed values and tables as (None: FLOAT); other sources have their own. STRING is an object
    array of bytes. Raises click.BadParameter.
    """
    return source(given)(given, dtype)


def converted(array: Array, dtype: str | None, shape: Sequence[int] | None) -> Array:
    """C-contiguous, of a dtype that has a name on the wire. Raises click.BadParameter."""
    if dtype and dtype != "STRING":
        array = array.astype(DTYPES[dtype])
    if array.dtype != object and array.dtype not in WIRE_NAMES:
        raise click.BadParameter(f"{array.dtype} is no tensor dtype: convert it with --dtype")
    if shape is not None:
        try:
            array = array.reshape(shape)
        except ValueError:
            raise click.BadParameter(f"{array.size} elements do not fill {'x'.join(map(str, shape))}") from None
    return np.ascontiguousarray(array) if array.ndim else array


def source(given: str) -> Callable[[str, str | None], Array]:
    suffix = Path(given).suffix.lower()
    if suffix in IMAGES:
        return image
    if suffix in FILES:
        return FILES[suffix]
    return synthetic if SYNTHETIC.fullmatch(given) else value


def numpy_file(given: str, dtype: str | None) -> Array:
    try:
        loaded = np.load(given, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{given}: {getattr(error, 'strerror', None) or error}") from None
    if isinstance(loaded, np.ndarray):
        return loaded
    if len(loaded.files) != 1:
        raise click.BadParameter(f"{given} holds {len(loaded.files)} arrays; save the one to send as .npy")
    only: Array = loaded[loaded.files[0]]
    return only


def csv_file(given: str, dtype: str | None) -> Array:
    """Rows of numbers; a first line that is not numbers is taken for headings."""
    try:
        lines = [line for line in Path(given).read_text().splitlines() if line.strip()]
    except OSError as error:
        raise click.BadParameter(f"{given}: {error.strerror}") from None
    try:
        rows = [[float(cell) for cell in line.split(",")] for line in lines[0 if lines and is_numbers(lines[0]) else 1 :]]
        return np.array(rows, DTYPES[dtype or "FLOAT"])
    except ValueError as error:
        raise click.BadParameter(f"{given} is no table of numbers: {error}") from None


def is_numbers(line: str) -> bool:
    try:
        return all(float(cell) is not None for cell in line.split(","))
    except ValueError:
        return False


def image(given: str, dtype: str | None) -> Array:
    """uint8 [height, width, channels]; [height, width] for a grey image."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise click.ClickException("images need Pillow: pip install pillow") from None
    try:
        with Image.open(given) as opened:
            kept = opened if opened.mode in ("L", "RGB") else opened.convert("RGB")
            return np.asarray(kept)
    except OSError as error:
        raise click.BadParameter(f"{given}: {error.strerror or error}") from None


def synthetic(given: str, dtype: str | None) -> Array:
    """Random numbers, the same at every call: 0 to 1 for floating point, 0 and 1 for the rest."""
    found = SYNTHETIC.fullmatch(given)
    assert found is not None
    wanted = DTYPES[found["dtype"].upper()]
    shape = tuple(map(int, found["shape"].split("x")))
    random = np.random.default_rng(0)
    return (random.random(shape) if wanted.kind == "f" else random.integers(0, 2, shape)).astype(wanted)


def value(given: str, dtype: str | None) -> Array:
    """`1,2,3`, or nested lists as JSON writes them; with dtype STRING one text or a JSON list of texts."""
    try:
        read = json.loads(given if given.lstrip().startswith("[") else f"[{given}]")
        if dtype == "STRING":
            return strings(read if isinstance(read, list) else [read])
        return np.array(read, DTYPES[dtype or "FLOAT"])
    except (ValueError, TypeError):
        if dtype == "STRING":
            return strings([given])
        raise click.BadParameter(f"{given!r} is neither a file with one of the endings {endings()} nor numbers such as 1,2,3") from None


def strings(texts: list[Any]) -> Array:
    array = np.empty(len(texts), dtype=object)
    array[:] = [str(text).encode() for text in texts]
    return array


FILES: dict[str, Callable[[str, str | None], Array]] = {".npy": numpy_file, ".npz": numpy_file, ".csv": csv_file}


def endings() -> str:
    return ", ".join([*FILES, *IMAGES])


def prepared(array: Array, size: tuple[int, int] | None, layout: str | None, divisor: float | None) -> Array:
    """What image models ask for: another size (height, width), a batch of one as NCHW or NHWC, and FLOAT values divided by `divisor`."""
    if size is not None:
        array = resized(array, size)
    if layout:
        array = array[:, :, None] if array.ndim == 2 else array
        array = (array.transpose(2, 0, 1) if layout == "NCHW" else array)[None]
    return array if divisor is None else (array / divisor).astype(np.float32)


def resized(array: Array, size: tuple[int, int]) -> Array:
    from PIL import Image

    return np.asarray(Image.fromarray(array).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """1x3x28x28. Raises click.BadParameter."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in re.split("[x,]", text))
    except ValueError:
        raise click.BadParameter(f"{text} is no shape; write it as 1x3x28x28") from None


# ---- to and from the server --------------------------------------------------------------------------------------------------------


def tensorset(array: Array) -> list[Any]:
    """The arguments of AI.TENSORSET after the key."""
    name = "STRING" if array.dtype == object else WIRE_NAMES[array.dtype]
    blob = b"".join(text + b"\0" for text in array.ravel()) if array.dtype == object else array.tobytes()
    return [name, *array.shape, "BLOB", blob]


def from_reply(reply: Sequence[Any]) -> Array:
    """The reply of AI.TENSORGET key META BLOB as an array."""
    _, dtype, _, shape, _, blob = reply
    if dtype == b"STRING":
        array = np.empty(len(texts := blob.split(b"\0")[:-1]), dtype=object)
        array[:] = texts
        return array.reshape(shape)
    return np.frombuffer(blob, DTYPES[dtype.decode()]).reshape(shape)


def as_lists(array: Array) -> Any:
    """For JSON: nested lists of Python's own numbers, or of texts."""
    return array.astype(str).tolist() if array.dtype == object else array.tolist()
