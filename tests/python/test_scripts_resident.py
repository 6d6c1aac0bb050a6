"""Scripts between neighbours on one device: what lies there is not fetched, what nobody else reads stays. Run on the CPU as the device."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from redisai_py.backends.base import Settings
from redisai_py.scripts import ScriptSession
from redisai_py.testing import FakeTensor

pytestmark = pytest.mark.needs_torch

SOURCE = """
def double(a):
    return a * 2

def in_place(a):
    return a.add_(1)
"""


class Table(dict[int, Any]):
    numbers = itertools.count(1)

    def put(self, tensor: Any, dtype: str, shape: tuple[int, ...]) -> tuple[int, str, tuple[int, ...]]:
        number = next(self.numbers)
        self[number] = tensor
        return number, dtype, shape


class Host:
    def __init__(self, keep: tuple[bool, ...] | None) -> None:
        self.keep = keep
        self.residents = Table()


class Resident:
    """An input that is only a number."""

    dtype, shape, nbytes = "FLOAT", (2,), 8

    def __init__(self, number: int) -> None:
        self.resident = number

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("its data was asked for")


@pytest.fixture(scope="module")
def script() -> ScriptSession:
    pytest.importorskip("torch").set_num_threads(1)
    return ScriptSession(SOURCE, (), "CPU", Settings())


def view(*values: float) -> FakeTensor:
    return FakeTensor(np.array(values, np.float32))


def test_an_output_that_may_stay_is_left_and_found_by_the_next_run(script: ScriptSession) -> None:
    host = Host((True,))
    ((number, dtype, shape),) = script.run("double", [view(1, 2)], [], [], 1, host)  # type: ignore[arg-type]
    assert (dtype, shape) == ("FLOAT", (2,))
    host.keep = (False,)
    (result,) = script.run("double", [Resident(number)], [], [], 1, host)  # type: ignore[arg-type, list-item]
    assert result.tolist() == [4, 8]


def test_what_lies_on_the_device_is_not_changed_by_who_reads_it(script: ScriptSession) -> None:
    host = Host((True,))
    ((number, _, _),) = script.run("double", [view(1, 2)], [], [], 1, host)  # type: ignore[arg-type]
    script.run("in_place", [Resident(number)], [], [], 1, host)  # type: ignore[arg-type, list-item]
    assert host.residents[number].tolist() == [2, 4]


def test_without_neighbours_everything_is_an_array(script: ScriptSession) -> None:
    (result,) = script.run("double", [view(3)], [], [], 1, Host(None))  # type: ignore[arg-type]
    assert isinstance(result, np.ndarray)
