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
