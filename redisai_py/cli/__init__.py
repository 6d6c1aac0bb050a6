"""The `redisai` command: a process of its own, never imported by the server.

One file per subcommand, one row below. A row carries the help line, so that `redisai --help` imports none of them and a subcommand imports
only what it needs. Every subcommand is plain text when piped, prints JSON with --json where it reports something, keeps to NO_COLOR, and
ends with 0 when all is well, 1 when it is not, 2 when it was called wrongly.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

#: subcommand -> (module below this package, line of help). The module's `command` is the click command.
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("serve", "Start a Redis or Valkey server with the module."),
    "cli": ("redis_cli", "Talk to a server, as redis-cli does."),
    "doctor": ("doctor", "Check this installation and say how to mend it."),
    "quickstart": ("quickstart", "Take a guided tour of a running server."),
    "store": ("store", "Store a model file as a key."),
    "models": ("models", "List models and scripts with their figures."),
    "run": ("run", "Run a model or script once, from and to files."),
    "export": ("export", "Write a stored model to a file."),
    "top": ("top", "Watch what a server is doing."),
    "bench": ("bench", "Measure throughput and latency of a model."),
    "exporter": ("exporter", "Serve metrics to Prometheus."),
    "module-path": ("module_path", "Print the path of redisai.so, for `loadmodule`."),
}

WITHOUT_CLICK = "The redisai command needs click and rich: pip install 'redisai-server[cli]'"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        from .group import run
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        return without_click(argv)
    return run(argv)


def without_click(argv: Sequence[str]) -> int:
    """`module-path` works with the core alone: a server's configuration needs it where nobody types commands."""
    if list(argv) != ["module-path"]:
        print(WITHOUT_CLICK, file=sys.stderr)
        return 1
    from ..install import module_path

    try:
        print(module_path())
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
