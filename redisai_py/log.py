"""Everything Python says goes to the server's log: the package's own lines, `logging`, warnings, and what a library prints.

Levels are those of Redis: debug, verbose, notice, warning. What a library says while a model or script is opened or run is put under its
key, so that the line can be followed; the package's own lines name the key themselves where there is one.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("redisai_py")

#: per thread, `.about`: what it works for, a thing with a `key` (a batch, an opening), or None
current = threading.local()

_LEVELS = ((logging.WARNING, "warning"), (logging.INFO, "notice"), (logging.DEBUG, "debug"))


def _redis_level(levelno: int) -> str:
    return next((name for least, name in _LEVELS if levelno >= least), "debug")


def of_key(line: str) -> str:
    """A line that somebody else wrote, under the key that this thread works for."""
    about: Any = getattr(current, "about", None)
    try:
        key = about.key if about is not None else ""
    except Exception:  # it has been answered meanwhile
        key = ""
    return f"{key if key.isprintable() else ascii(key)}: {line}" if key else line


def one_line(line: str) -> str:
    """As the shim can take it: what is not UTF-8 (keys are bytes) and what would end the line stays visible."""
    return line.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def format_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """One line, without the place that raised it: nobody who runs a server can do anything about that."""
    return f"{category.__name__}: {message}"


class ServerLog(logging.Handler):
    """Sends log records to the server, one line each."""

    def __init__(self, write: Callable[[str, str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        try:
            ours = record.name == logger.name
            for line in self.format(record).splitlines():
                self._write(_redis_level(record.levelno), line if ours else of_key(line))
        except Exception:  # a log line must never fail a request
            self.handleError(record)


class LineWriter(io.TextIOBase):
    """Stands in for stdout and stderr: whole lines become log lines."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._partial = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            if line.strip():
                self._write(line)
        return len(text)


def route_to_server(log_line: Callable[[str, str], None]) -> None:
    """Points logging, warnings, stdout and stderr at `log_line(level, line)`."""

    def write(level: str, line: str) -> None:
        log_line(level, one_line(line))

    handler = ServerLog(write)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.formatwarning = format_warning
    logging.raiseExceptions = False
    sys.stdout = LineWriter(lambda line: write("verbose", of_key(line)))
    sys.stderr = LineWriter(lambda line: write("warning", of_key(line)))
