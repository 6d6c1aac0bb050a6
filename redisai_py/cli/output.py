"""Standard output: bytes, JSON, and a console that is plain text when piped."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from rich.console import Console


class ReaderGoneError(Exception):
    """Whoever read our output has gone (`redisai ... | head`): time to stop, and nothing to report."""


def write(data: bytes) -> None:
    """Writes and flushes. Raises ReaderGoneError instead of BrokenPipeError, which a server's socket can raise too."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere, silently
        raise ReaderGoneError from None


def write_json(value: Any) -> None:
    write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def console(stderr: bool = False) -> Console:
    """Rich's console: colours on a terminal unless NO_COLOR is set, and lines that no pipe cuts."""
    piped = not (sys.stderr if stderr else sys.stdout).isatty()
    return Console(highlight=False, soft_wrap=piped, no_color=True if piped else None, stderr=stderr)
