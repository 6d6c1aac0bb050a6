"""Compiles C files of the shim with a driver of the tests' own into an extension module, and imports it.

Built once per content of the sources, in .cache/unit/. UNIT_SANITIZE=1 builds the variant with the address and undefined behaviour
sanitizers, for a process that was started with libasan preloaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cffi

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHIM = ROOT / "shim"
SANITIZED = bool(os.environ.get("UNIT_SANITIZE"))


def compiled(name: str, declarations: str, driver: str, sources: Sequence[str]) -> Any:
    """The module: `.lib` has what `declarations` names, `.ffi` the rest. Raises cffi's VerificationError when it does not compile."""
    if SANITIZED:
        name += "_sanitized"
    path = _build(name, declarations, driver, sources)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _digest(declarations: str, driver: str) -> str:
    h = hashlib.sha256(declarations.encode() + sys.version.encode())
    for path in [*sorted(SHIM.glob("*.[ch]")), HERE / driver]:
        h.update(path.name.encode() + path.read_bytes())
    return h.hexdigest()[:16]


def _build(name: str, declarations: str, driver: str, sources: Sequence[str]) -> Path:
    folder = ROOT / ".cache" / "unit" / f"{name}-{_digest(declarations, driver)}"
    for built in folder.glob(f"{name}*.so"):
        return built
    ffi = cffi.FFI()
    ffi.cdef(declarations)
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if SANITIZED else []
    ffi.set_source(
        name,
        f'#include "{driver}"',
        sources=[str(SHIM / source) for source in sources],
        include_dirs=[str(SHIM), str(HERE)],
        extra_compile_args=["-O1", "-g", "-std=gnu11", "-fno-omit-frame-pointer", "-Wno-unused-function", *checks],
        extra_link_args=[*checks, "-lpthread", "-lm"],
    )
    scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
    ffi.compile(tmpdir=str(scratch))
    with contextlib.suppress(OSError):  # another run was first
        scratch.rename(folder)
    shutil.rmtree(scratch, ignore_errors=True)
    for old in folder.parent.glob(f"{name}-*"):
        if old != folder and not old.suffix:
            shutil.rmtree(old, ignore_errors=True)
    return next(folder.glob(f"{name}*.so"))
