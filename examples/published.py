"""Where the examples find models that others have published: tools/real_models.py takes them out of packages."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def published(package: str, name: str) -> Path:
    """A file of a package. Ends the program, saying how to get it, when it is not there."""
    path = ROOT / ".cache" / "real-models" / package / name
    if not path.exists():
        sys.exit(f"{name} is not here yet; this fetches it: python tools/real_models.py {package}")
    return path
