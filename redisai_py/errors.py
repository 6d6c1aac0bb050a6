"""Errors that reach a client, with their exact text.

A text that starts with a code (`ERR `) is one that 1.2.7 sends with it; one that does not is sent bare, because existing clients compare
the whole line. Newlines become spaces when the reply is written (shim/reply.c); here the text stays as the library made it.
"""

from __future__ import annotations


class BackendError(Exception):
    """A model cannot be opened or run; `str()` is the line the client reads."""


class BatchMismatch(BackendError):
    """A batched run returned another number of rows than it was given. Never retried member by member."""


class Terminated(BackendError):
    """A run was ended by the watchdog or refused by the memory limit. Never retried member by member."""


def sentence(error: BaseException) -> str:
    """What a client reads of an exception that no backend foresaw."""
    try:
        text = str(error)
    except Exception:  # its text is no UTF-8, or worse
        text = ""
    if text.startswith("ERR "):
        return text
    return f"ERR {type(error).__name__}: {text}" if text else f"ERR {type(error).__name__}"
