"""What `make leaks` looks for, with few turns: a leak of eight bytes, or of one Python object, in every turn is found."""

from __future__ import annotations

import os

import pytest
from servers import Server
from soak import leaks


def test_no_command_and_no_error_leaves_anything_behind() -> None:
    survey = leaks.commands(20261122, turns=60, rounds=4)
    assert survey.leaks() == {}
    assert set(survey.found) > set(leaks.CASES)


NEEDS = {
    "TF": pytest.mark.needs_tf,
    "TFLITE": pytest.mark.needs_tflite,
    "TORCH": pytest.mark.needs_torch,
    "ONNX": pytest.mark.needs_onnx,
    "SCRIPT": pytest.mark.needs_torch,
}


@pytest.mark.skipif("SANITIZER" in os.environ, reason="a sanitizer keeps freed memory for a while, to see who still uses it")
@pytest.mark.parametrize("name", [pytest.param(name, marks=NEEDS[name]) for name in leaks.STORED])
def test_storing_running_and_deleting_leaves_nothing_behind(real_server: Server, name: str) -> None:
    assert leaks.cycles(real_server, [name], turns=8, rounds=4).leaks() == {}


def test_what_grows_once_is_no_slope_and_what_grows_always_is() -> None:
    doubled, leaking = [0, 9000, 9000, 9000, 9000], [0, 80, 160, 9000, 9080, 9160]
    assert leaks.steps(doubled) == leaks.trend(doubled) == 0
    assert leaks.steps(leaking) == 80
    pages = [4096 * (80 * i // 4096) for i in range(400)]
    assert leaks.trend(pages) == pytest.approx(80, rel=0.05)
