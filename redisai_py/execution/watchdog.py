"""Ends runs that take longer than MODEL_EXECUTION_TIMEOUT, where the library can be told to (ONNX Runtime).

Others cannot be interrupted: a long run of theirs is logged once and left to finish.
"""

from __future__ import annotations

from .._shim import Shim
from ..log import logger
from .sessions import Sessions


def watch(shim: Shim, sessions: Sessions) -> None:
    """The watchdog thread: waits in the shim, without the GIL, until a run is overdue."""
    while True:
        try:
            if (overdue := shim.next_overdue()) is None:
                return
            end_run(sessions, *overdue)
        except Exception:
            logger.exception("the watchdog could not end a run")


def end_run(sessions: Sessions, thread: int, program: int, key: str) -> None:
    """Tells the session to end the run on `thread`, or says that it cannot."""
    opened = sessions.get(program)
    terminate = getattr(opened.session, "terminate", None) if opened else None
    if terminate is not None:
        terminate(thread)
    else:
        logger.warning("a run of %s takes longer than MODEL_EXECUTION_TIMEOUT; its backend cannot be interrupted", key)
