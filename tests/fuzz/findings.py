"""What a fuzzer found, and where it is kept: each finding is a file of the corpus, which every later run begins with."""

from __future__ import annotations

import hashlib
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
Counts = dict[str, int]


class Finding(AssertionError):
    """An input that does harm. `data` is the input, `what` the harm; the message names the file that the input was written to."""

    def __init__(self, target: str, data: bytes, what: str) -> None:
        path = CORPUS / target / f"finding-{hashlib.sha256(data).hexdigest()[:16]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        super().__init__(f"{path}: {what}")
        self.path = path


def corpus(target: str) -> list[Path]:
    """The inputs that are kept for a target."""
    return sorted(path for path in (CORPUS / target).glob("*") if path.is_file())
