"""What is open: one entry per model or script, named by the id that the shim gave it.

Written by the loader, read by workers. A plain dict serves both: reads and writes of one item are atomic under the GIL, an id is never
used twice, and a session is closed only after the shim has seen its last reference go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .resident import Residents


@dataclass(frozen=True, slots=True)
class Opened:
    """An open session with what a worker needs to know about it."""

    session: Any  # backends.base.Session, or scripts.ScriptSession
    is_script: bool
    batch_mismatch: str  # error text when an output's rows do not match the batch's


class Sessions(dict[int, Opened]):
    """The open sessions by id, and what their runs leave on devices between the ops of a DAG."""

    def __init__(self, residents: Residents | None = None) -> None:
        super().__init__()
        self.residents = residents
