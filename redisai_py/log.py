"""Everything Python says goes to the server's log: the package's own lines, `logging`, warnings, and what a library prints.

Levels are those of Redis: debug, verbose, notice, warning.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable

logger = logging.getLogger("redisai_py")

_LEVELS = ((logging.WARNING, "warning"), (logging.INFO, "notice"), (logging.DEBUG, "debug"))


def _redis_level(levelno: int) -> str:
    return next((name for least, name in _LEVELS if levelno >= least), "debug")


class ServerLog(logging.Handler):
    """Sends log records to the server, one line each."""

    def __init__(self, write: Callable[[str, str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        try:
            for line in self.format(record).splitlines():
                self._write(_redis_level(record.levelno), line)
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


def route_to_server(write: Callable[[str, str], None]) -> None:
    """Points logging, warnings, stdout and stderr at `write(level, line)`."""
    handler = ServerLog(write)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.raiseExceptions = False
    sys.stdout = LineWriter(lambda line: write("verbose", line))
    sys.stderr = LineWriter(lambda line: write("warning", line))
