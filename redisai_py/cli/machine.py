"""What of the machine a server with models depends on: how Linux hands out memory, and the GPUs.

Read from /proc, /sys and /dev below `root`, because doctor may run where no tool is installed. What is not there, or may not be read, as in
some containers, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..install import BackendPackage
from .finding import Finding

OVERCOMMIT = Path("proc/sys/vm/overcommit_memory")
HUGE_PAGES = Path("sys/kernel/mm/transparent_hugepage/enabled")
DRIVER = Path("proc/driver/nvidia/version")
NODES = "nvidia[0-9]*"

#: backend -> (what a build for CPUs is called, what to install in its place)
CPU_BUILDS = {
    "TORCH": (
        re.compile(r"torch .*\+cpu"),
        "pip install --force-reinstall torch, from the package index itself: its build for Linux has CUDA",
    ),
    "ONNX": (re.compile(r"onnxruntime "), "pip uninstall onnxruntime && pip install 'redisai-server[onnx-gpu]'"),
    "TF": (re.compile(r"tensorflow-cpu "), "pip uninstall tensorflow-cpu && pip install 'redisai-server[tf-gpu]'"),
}


def read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def overcommit(root: Path) -> list[Finding]:
    policy = read(root / OVERCOMMIT)
    if policy == "0":
        why = "vm.overcommit_memory is 0: when memory is short, Linux may refuse the fork that saves the data"
        return [Finding("memory", "note", why, "sysctl vm.overcommit_memory=1, and the same line in /etc/sysctl.conf")]
    if policy == "2":
        why = "vm.overcommit_memory is 2: libraries reserve gigabytes that they never touch, and are refused"
        return [Finding("memory", "note", why, "sysctl vm.overcommit_memory=1, and the same line in /etc/sysctl.conf")]
    return [Finding("memory", "ok", "vm.overcommit_memory is 1")] if policy else []


def huge_pages(root: Path) -> list[Finding]:
    if "[always]" not in read(root / HUGE_PAGES):
        return []
    why = "transparent huge pages are on for everybody: a save in the background copies 2 MB for each byte that is written meanwhile"
    return [Finding("memory", "note", why, f"echo madvise > /{HUGE_PAGES}")]


def gpus(root: Path, backends: Sequence[BackendPackage]) -> list[Finding]:
    """The GPUs, and the backends here that cannot use them."""
    nodes = sorted(path.name for path in (root / "dev").glob(NODES))
    driver = re.search(r"Kernel Module\s.*?\s(\d+\.[\d.]+)", read(root / DRIVER))
    if not nodes:
        lost = "the NVIDIA driver is loaded, but /dev has no GPU; a container needs --gpus, a service PrivateDevices=false"
        return [Finding("GPU", "note", lost)] if driver else [Finding("GPU", "ok", "none: models run on the CPU")]
    version = f", driver {driver[1]}" if driver else ""
    return [Finding("GPU", "ok", f"{', '.join(nodes)}{version}"), *blind(backends)]


def blind(backends: Sequence[BackendPackage]) -> list[Finding]:
    found = []
    for package in backends:
        name = " ".join(package.installed() or ())
        if package.name in CPU_BUILDS and CPU_BUILDS[package.name][0].match(name):
            found.append(Finding("GPU", "note", f"{package.name} cannot use it: {name} is a build for CPUs", CPU_BUILDS[package.name][1]))
    return found


CHECKS: tuple[Callable[[Path], list[Finding]], ...] = (overcommit, huge_pages)
