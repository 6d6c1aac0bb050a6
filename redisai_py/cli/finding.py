"""What a check of `redisai doctor` found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    subject: str
    status: str  # "ok", "note" (fine, but worth knowing) or "problem"
    found: str
    cure: str = ""
