"""Calls the `redisai` command in this process, with a pipe for standard output, as a shell script would."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from redisai_py.cli import main


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def cells(self) -> list[list[str]]:
        """The words of each line."""
        return [line.split() for line in self.out.splitlines()]


Redisai = Callable[..., Done]


def call(capture: pytest.CaptureFixture[str], *words: object) -> Done:
    status = main([str(word) for word in words])
    return Done(status, *capture.readouterr())
