"""Python environments made of links, for servers that must find less than is installed, or something else."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy

import redisai_py

SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
NUMPY = ("numpy", "numpy.libs")


def make_environment(folder: Path, *packages: str) -> Path:
    """A virtual environment made of links, in which only these packages of ours can be imported. Returns its python."""
    (folder / "bin").mkdir(parents=True)
    (folder / SITE).mkdir(parents=True)
    (folder / "bin" / "python").symlink_to((Path(sys.prefix) / "bin" / "python").resolve())
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder)
    for package in packages:
        source = Path(redisai_py.__file__).parent if package == "redisai_py" else Path(numpy.__file__).parent.with_name(package)
        if source.exists():
            (folder / SITE / package).symlink_to(source)
    return folder / "bin" / "python"
