"""The loops of `make soak`, a few turns each."""

from __future__ import annotations

import pytest
from soak.loops import LOOPS


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("kill", 5),
        ("everysec", 1),
        ("cut", 15),
        ("fork", 8),
        ("stop", 5),
        ("sync", 60),
        ("truncate", 25),
        ("corrupt", 25),
        ("leave", 1000),
    ],
)
def test_loop(name: str, count: int) -> None:
    assert LOOPS[name](20261122, count)
