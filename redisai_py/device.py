"""Device strings: what `CPU`, `cpu:1`, `GPU:0` mean to a backend.

The run queue of a device is named by the whole upper-cased string (`CPU` and `CPU:1` are two queues of the same processor); a backend only
asks which processor it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import BackendError


@dataclass(frozen=True)
class Device:
    """A processor: `kind` is "cpu" or "gpu"; `index` is the GPU's number, None where the library should choose."""

    kind: str
    index: int | None = None


# C's strtoll with base 0, which 1.2.7 used: leading digits count, the rest is ignored, nothing readable is 0.
_STRTOLL = re.compile(r"\s*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")


def parse_device(text: str, unsupported: str = "ERR unsupported device") -> Device:
    """Reads a device string the way the original's backends do.

    Anything that starts with CPU is the CPU; `GPU` is the default GPU; `GPU:<n>` is GPU n.
    Raises BackendError(unsupported) for everything else and for a GPU number that does not fit 16 bits.
    """
    name = text.upper()
    if name.startswith("CPU"):
        return Device("cpu")
    if name == "GPU":
        return Device("gpu")
    if not name.startswith("GPU:"):
        raise BackendError(unsupported)
    match = _STRTOLL.match(text[4:])
    index = _c_integer(match) if match else 0
    if not -1 <= index < 2**15:
        raise BackendError(unsupported)
    return Device("gpu", index if index >= 0 else None)


def _c_integer(match: re.Match[str]) -> int:
    sign, digits = match.groups()
    base = 16 if digits[:2].lower() == "0x" else 8 if digits[0] == "0" else 10
    return int(digits, base) * (-1 if sign == "-" else 1)
