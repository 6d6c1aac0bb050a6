"""Keeps the libraries' own chatter out of the server's standard error while they load.

TensorFlow and TensorFlow Lite greet from C++ before any logging setting of theirs is in force, straight to file descriptor 2. For the
few seconds of an import that descriptor is pointed at a scratch file, in memory where the system has such files: a sandbox lets nobody
write others. What was said is attached to the error when the import fails; else it is dropped. Anything another thread writes to standard
error in those seconds goes the same way: the server itself logs to its log file or to standard output.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Redirects file descriptor 2 for as long as the block runs. An ImportError that leaves the block gets what was said as a note."""
    with os.fdopen(os.memfd_create("said"), "rb+") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        except ImportError as error:
            said.seek(0)
            if text := said.read().decode("utf-8", "replace").strip():
                error.add_note(text)
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
