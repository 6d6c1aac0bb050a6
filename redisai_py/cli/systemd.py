"""What Debian's redis-server unit forbids that the module needs, and the drop-in that allows it.

The unit is hardened for a server without modules. Four of its settings stop this one:

1. NoExecPaths=/ with ExecPaths=/usr/lib /lib: the libraries of an environment elsewhere cannot be mapped as code; loadmodule fails.
2. MemoryDenyWriteExecute: TensorFlow maps memory that is writable and executable for the kernels it compiles; the mapping is refused.
3. SystemCallFilter=~@resources: numpy's OpenBLAS calls mbind() and torch calls sched_setaffinity() when they are imported; the filter
   kills the server for it (SIGSYS).
4. ProtectHome: an environment below /home or /root is not there at all.

A unit is read as text, because doctor runs where systemctl may not (a container, a build).
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..install import find_libpython, module_path

UNIT_DIRECTORIES = (Path("/etc/systemd/system"), Path("/run/systemd/system"), Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
UNITS = ("redis-server.service", "valkey-server.service", "redis.service", "valkey.service")
DROPIN_NAME = "redisai.conf"
TRUE = {"1", "yes", "true", "on"}
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))


@dataclass(frozen=True)
class Unit:
    """A service as its file and its drop-ins set it: setting -> the values in order, an empty assignment having cleared those before."""

    path: Path
    settings: dict[str, list[str]]

    @property
    def dropin(self) -> Path:
        return UNIT_DIRECTORIES[0] / f"{self.path.name}.d" / DROPIN_NAME

    def words(self, setting: str) -> list[str]:
        return [word for value in self.settings.get(setting, []) for word in value.split()]

    def last(self, setting: str) -> str:
        return (self.settings.get(setting) or [""])[-1].strip().lower()


@dataclass(frozen=True)
class Obstacle:
    """A setting in the way: what it does, and the lines that lift it."""

    why: str
    lines: tuple[str, ...]


# ---- reading units -----------------------------------------------------------------------------------------------------------------


def find_unit(directories: tuple[Path, ...] = UNIT_DIRECTORIES) -> Unit | None:
    """The first server unit installed, with its drop-ins."""
    for name in UNITS:
        for directory in directories:
            if (path := directory / name).is_file():
                dropins = sorted(dropin for above in directories for dropin in (above / f"{name}.d").glob("*.conf"))
                return Unit(path, settings(file.read_text() for file in (path, *dropins)))
    return None


def settings(texts: Iterator[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            name, equals, value = line.strip().partition("=")
            if not equals or name.startswith(("#", ";")):
                continue
            if value.strip():
                found.setdefault(name.strip(), []).append(value.strip())
            else:
                found.pop(name.strip(), None)
    return found


# ---- what the module needs ---------------------------------------------------------------------------------------------------------


def code_directories() -> list[Path]:
    """Directories that hold code the server maps: the module's, the environment's, the base interpreter's, libpython's."""
    named = [Path(sysconfig.get_path("platlib")), Path(sys.base_prefix) / "lib"]
    with suppress(FileNotFoundError):  # doctor says so in a line of its own
        named.append(module_path().parent)
    if (found := find_libpython()) and found[0].startswith("/"):
        named.append(Path(found[0]).parent)
    return outermost([path.resolve() for path in named])


def outermost(paths: list[Path]) -> list[Path]:
    """Without those that lie inside another."""
    return sorted(path for path in set(paths) if not any(other != path and path.is_relative_to(other) for other in paths))


def covered(path: Path, allowed: list[str]) -> bool:
    return any(path.is_relative_to(Path(word.lstrip("-+")).resolve()) for word in allowed)


def exec_paths(unit: Unit, directories: list[Path]) -> Obstacle | None:
    if not unit.words("NoExecPaths"):
        return None
    missing = [str(path) for path in directories if not covered(path, unit.words("ExecPaths"))]
    if not missing:
        return None
    return Obstacle("code may be mapped only from the unit's own ExecPaths", (f"ExecPaths={' '.join(missing)}",))


def write_execute(unit: Unit, directories: list[Path]) -> Obstacle | None:
    if unit.last("MemoryDenyWriteExecute") not in TRUE:
        return None
    return Obstacle("kernels that TensorFlow compiles need writable and executable memory", ("MemoryDenyWriteExecute=false",))


def system_calls(unit: Unit, directories: list[Path]) -> Obstacle | None:
    denied = False
    for value in unit.settings.get("SystemCallFilter", []):
        if "@resources" in value.replace("~", "").split():
            denied = value.startswith("~")
    if not denied:
        return None
    return Obstacle(
        "numpy and torch set memory policy and thread affinity when imported; the filter kills for it", ("SystemCallFilter=@resources",)
    )


def homes(unit: Unit, directories: list[Path]) -> Obstacle | None:
    inside = [path for path in directories if any(path.is_relative_to(home) for home in HOMES)]
    if not inside or unit.last("ProtectHome") not in TRUE | {"tmpfs"}:
        return None
    return Obstacle(
        f"{inside[0]} lies in a home directory, which the unit hides (the user redis must be able to read it too)",
        ("ProtectHome=read-only",),
    )


OBSTACLES: tuple[Callable[[Unit, list[Path]], Obstacle | None], ...] = (exec_paths, write_execute, system_calls, homes)


def obstacles(unit: Unit, directories: list[Path] | None = None) -> list[Obstacle]:
    directories = code_directories() if directories is None else directories
    return [found for check in OBSTACLES if (found := check(unit, directories))]


# ---- the drop-in -------------------------------------------------------------------------------------------------------------------

#: What Debian 12's unit forbids, for a machine without the unit at hand (an image being built, another host).
DEBIAN = Unit(
    UNIT_DIRECTORIES[-1] / UNITS[0],
    {
        "NoExecPaths": ["/"],
        "ExecPaths": ["/usr/bin/redis-server /usr/lib /lib"],
        "MemoryDenyWriteExecute": ["true"],
        "SystemCallFilter": ["@system-service", "~ @privileged @resources"],
        "ProtectHome": ["true"],
    },
)


def dropin(unit: Unit, directories: list[Path] | None = None) -> str:
    """The text of the drop-in: what the unit needs as its file alone sets it, so that printing it again does not lose what it says."""
    lines = [
        f"# Lets {unit.path.name} load the module. Written by `redisai doctor --systemd`; goes to",
        f"#   {unit.dropin}",
        "# and takes effect with: systemctl daemon-reload && systemctl restart " + unit.path.stem,
        "# The server's configuration file needs this line:",
        f"#   loadmodule {module_or_placeholder()}",
        "[Service]",
    ]
    for obstacle in obstacles(unit, directories):
        lines += [f"# {obstacle.why}", *obstacle.lines]
    if unit.last("PrivateDevices") in TRUE:
        lines += ["# for models on a GPU:", "# PrivateDevices=false"]
    return "\n".join(lines) + "\n"


def module_or_placeholder() -> str:
    try:
        return str(module_path())
    except FileNotFoundError:
        return "/path/to/redisai.so"


def unit_alone() -> Unit:
    """The installed unit without drop-ins; Debian's where none is installed."""
    found = find_unit()
    return Unit(found.path, settings(iter([found.path.read_text()]))) if found else DEBIAN
