"""Makes the checkout's environment: `.venv` with the extras a make target needs. Runs on any Python >= 3.11 with nothing installed.

1. What the machine lacks is found first, all of it, and named as the Debian packages that bring it. Nothing is installed before.
2. torch comes first and alone, because its default Linux build brings several gigabytes of CUDA: a dry run shows whether it would, and then
   the PyTorch project's own index of CPU builds is used, or the one named by TORCH_INDEX. ALLOW_CUDA=1 accepts the CUDA build.
3. Only that step sees the second index, so no other package can come from it.
4. The checkout itself is not installed but put on the path, by a .pth file and a `redisai` script: no build, no copy, no import hook inside
   the server. CMake places the libraries beside the sources (see the Makefile).
5. A stamp per set of extras holds the hash of what decides the installation; while it matches, the run ends in a tenth of a second.

    python3 tools/prepare.py --extras all,cli,server
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"
OLDEST, NEWEST = (3, 11), (3, 13)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_PREFIXES = ("nvidia-", "cuda-")
PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"
PIP_WITHOUT_DOWNLOADS = "pip>=25.3"  # older ones fetch whole wheels for a dry run

CHOICE = f"""
For CPU builds name an index of them (this one is the PyTorch project's own):
    make run TORCH_INDEX={CPU_INDEX}
To install CUDA all the same:
    make run ALLOW_CUDA=1"""


def fail(*lines: str) -> None:
    sys.exit("\n".join(lines))


# ---- what the machine must bring ---------------------------------------------------------------------------------------------------


def missing_packages() -> list[tuple[str, str]]:
    """(what is missing, the Debian package that brings it), for the running interpreter."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    needs = [
        ("the venv module of Python with pip (ensurepip)", f"python{version}-venv", has_venv()),
        ("Python's headers (Python.h)", f"python{version}-dev", has_headers()),
        ("Python's shared library (libpython)", f"libpython{version}", has_libpython(version)),
        ("a C compiler (cc)", "gcc libc6-dev", shutil.which(os.environ.get("CC", "cc").split()[0]) is not None),
    ]
    return [(what, package) for what, package, found in needs if not found]


def has_venv() -> bool:
    return all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))


def has_headers() -> bool:
    return (Path(sysconfig.get_path("include")) / "Python.h").exists()


def has_libpython(version: str) -> bool:
    """Loads it, so that one the dynamic linker alone knows counts, and one that is there but broken does not."""
    soname = sysconfig.get_config_var("INSTSONAME") or ""
    if ".so" not in soname:
        soname = f"libpython{version}.so.1.0"
    for candidate in (str(Path(sysconfig.get_config_var("LIBDIR") or "") / soname), soname):
        try:
            ctypes.CDLL(candidate)
        except OSError:
            continue
        return True
    return False


def check_machine() -> None:
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        fail(
            f"{sys.executable} is Python {sys.version.split()[0]}; this needs 3.{OLDEST[1]} to 3.{NEWEST[1]}.",
            "Name another with PYTHON=, as in: make run PYTHON=python3.11",
        )
    if missing := missing_packages():
        fail(
            *(f"missing: {what}" for what, _ in missing),
            f"On Debian and Ubuntu: apt-get install {' '.join(package for _, package in missing)}",
            "Elsewhere: a Python built with --enable-shared has library and headers (pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared).",
        )


# ---- pip ---------------------------------------------------------------------------------------------------------------------------


def pip(*arguments: str, capture: bool = False) -> str:
    """Runs the environment's pip. Raises CalledProcessError when it fails."""
    command = [str(PYTHON), "-m", "pip", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE if capture else None)
    return done.stdout or ""


def torch_arguments(index: str) -> list[str]:
    return ["install", "-c", str(CONSTRAINTS), "torch", *(["--extra-index-url", index] if index else [])]


def cuda_packages(index: str) -> list[str]:
    """The CUDA packages that installing torch would bring, by a dry run: none when torch is there already, or a CPU build is found."""
    report = json.loads(pip(*torch_arguments(index), "--quiet", "--dry-run", "--report", "-", capture=True))
    names = [item["metadata"]["name"].lower() for item in report["install"]]
    return [name for name in names if name.startswith(CUDA_PREFIXES)]


def install_torch() -> None:
    index = os.environ.get("TORCH_INDEX", "")
    allowed = os.environ.get("ALLOW_CUDA", "") not in ("", "0")
    if not allowed and (found := cuda_packages(index)):
        print(f"torch from here would bring CUDA: {len(found)} packages ({found[0]}, ...), several gigabytes.", flush=True)
        if index:
            fail(f"The index {index} holds no CPU build of the pinned torch for this machine.", CHOICE)
        index = CPU_INDEX
        print(f"Trying the CPU build from {index} (ALLOW_CUDA=1 takes CUDA, TORCH_INDEX= another index).", flush=True)
        if cuda_packages(index):
            fail("No CPU build was found there.", CHOICE)
    pip(*torch_arguments(index), "--quiet")


def install_cmake() -> None:
    """cmake is often missing and always on the package index; a new enough one on PATH is used as it is."""
    found = shutil.which("cmake")
    if found:
        version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout.split()
        if len(version) > 2 and tuple(int(n) for n in version[2].split("-")[0].split(".")[:2]) >= (3, 18):
            return
    pip("install", "--quiet", "-c", str(CONSTRAINTS), "cmake")


def requirements(project: dict[str, Any], extras: Sequence[str]) -> list[str]:
    """What the package and its extras require, with the extras that an extra names (`redisai-server[torch,tf]`) followed."""
    found = list(project["dependencies"])
    for extra in extras:
        for line in project["optional-dependencies"][extra]:
            inner = re.fullmatch(rf"{project['name']}\[(.*)\]", line)
            found += requirements(project, inner.group(1).split(",")) if inner else [line]
    return sorted(set(found))


def install_requirements(extras: str) -> None:
    pip("install", "--quiet", "-c", str(CONSTRAINTS), *requirements(read_project()["project"], extras.split(",")))


def put_checkout_on_path() -> None:
    packages = Path(subprocess.run([PYTHON, "-c", PURELIB], check=True, text=True, stdout=subprocess.PIPE).stdout.strip())
    (packages / "redisai_checkout.pth").write_text(f"{ROOT}\n")
    script = PYTHON.with_name("redisai")
    script.write_text(f"#!{PYTHON}\nimport sys\n\nfrom redisai_py.cli import main\n\nsys.exit(main())\n")
    script.chmod(0o755)


# ---- the environment ---------------------------------------------------------------------------------------------------------------


def read_project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def wanted(extras: str) -> str:
    """Hash of what decides what is installed."""
    project = read_project()
    parts = [extras, sys.version, str(ROOT), CONSTRAINTS.read_text(), json.dumps(project["project"])]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def make_venv() -> None:
    if not PYTHON.exists():
        print(f"creating {VENV.relative_to(ROOT)} with Python {sys.version.split()[0]}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        pip("install", "--quiet", "--upgrade", PIP_WITHOUT_DOWNLOADS)


def install(extras: str) -> None:
    make_venv()
    print(f"installing {extras} (the first time takes some minutes)", flush=True)
    if {"all", "torch"} & set(extras.split(",")):
        print("  torch", flush=True)
        install_torch()
    install_cmake()
    print("  all else", flush=True)
    install_requirements(extras)
    put_checkout_on_path()


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Make the checkout's environment.")
    parser.add_argument("--extras", default="all,cli,server", help="extras of pyproject.toml, comma-separated")
    extras = ",".join(sorted(parser.parse_args(argv).extras.split(",")))
    stamp = VENV / f".prepared-{extras}"
    key = wanted(extras)
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == key:
        return
    check_machine()
    try:
        install(extras)
    except subprocess.CalledProcessError as error:
        fail(f"failed: {' '.join(error.cmd)}", "The lines above say why; `make clean-venv` starts over.")
    stamp.write_text(key)


if __name__ == "__main__":
    main(sys.argv[1:])
