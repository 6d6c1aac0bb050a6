"""A script as the rest of the server sees it: open, run a function, close.

`ScriptSession` is the only class other packages use. It holds no state of a run: a session serves any number of threads at once, each with
its own host. This file imports no torch; what needs it is imported when a session opens, on the loader's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..backends.base import Settings, TensorView
from ..device import parse_device
from ..errors import BackendError
from .source import check_source

if TYPE_CHECKING:
    from .compile import Program


class ScriptHost(Protocol):
    """The server as a running script meets it. One host serves one run, on the thread of that run."""

    # Optional: `keep` and `residents`, for an op of a DAG whose neighbours run on the same GPU: see `backends.base.Session.run_resident`.

    def execute(self, argv: list[bytes]) -> Any:
        """Runs one Redis command with the rights of the client that called the script.

        Returns the reply: bytes for simple and bulk strings, int, float, bool, None, a list of replies, or for an error any object whose
        `error_text` is its text. Releases the GIL while it waits.
        """

    def model_execute(self, key: bytes, inputs: list[Any], n_outputs: int) -> list[Any]:
        """Runs a stored model on numpy arrays. Returns its outputs as arrays. Raises BackendError."""


class ScriptSession:
    """A compiled script.

    `source` is text or the client's bytes; `entry_points` name the functions that take (tensors, keys, args). Nothing in `settings`
    changes a script: threads belong to the torch backend, and files stay out of reach whatever models may do. Raises BackendError with
    the text the client reads.
    """

    def __init__(self, source: bytes | str, entry_points: Sequence[str], device: str, settings: Settings) -> None:
        target = parse_device(device)
        text = check_source(source)
        from .compile import compile_program

        self._program: Program | None = compile_program(text, entry_points, target)

    def run(
        self, function: str, inputs: Sequence[TensorView], keys: Sequence[bytes], args: Sequence[bytes], n_outputs: int, host: ScriptHost
    ) -> Sequence[Any]:
        """Calls one function.

        An entry point takes all inputs, keys and args; any other function takes its parameters from the inputs alone. Returns `n_outputs`
        C-contiguous numpy arrays, or nothing for `n_outputs` 0, whatever the function returned. A script never changes an input.
        Raises BackendError.
        """
        program = self._program
        if program is None:
            raise BackendError("ERR the script is closed")
        return program.run(function, inputs, keys, args, n_outputs, host)

    def close(self) -> None:
        """Frees the compiled code once the last run in progress has ended."""
        self._program = None
