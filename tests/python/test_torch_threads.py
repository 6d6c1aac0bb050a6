"""A TorchScript run gets one thread or all, by what runs of its size took. The clock is turned by hand: a call says how long it took."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from redisai_py.backends import torch_threads
from redisai_py.backends.threads import LIGHT_SECONDS, LIGHT_WEIGHTS
from redisai_py.backends.torch_threads import Pace, Threads

ALL = 4


class Library:
    """What libtorch was told, and the number of threads in force at each call."""

    def __init__(self) -> None:
        self.number = 0
        self.told: list[int] = []
        self.runs: list[int] = []
        self.now = 0.0

    def set_number(self, number: int) -> None:
        self.number = number
        self.told.append(number)

    def forward(self, seconds: float) -> str:
        self.runs.append(self.number)
        self.now += seconds
        return "result"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    made = Library()
    monkeypatch.setattr(torch_threads.time, "thread_time", lambda: made.now)
    yield made


def pace(library: Library, model_bytes: int = 100, fixed: bool = False) -> Pace:
    return Pace(Threads(library.set_number, ALL), model_bytes, fixed)


def test_light_runs_stay_on_one_thread(library: Library) -> None:
    paced = pace(library)
    for _ in range(5):
        assert paced.run(library.forward, [LIGHT_SECONDS / 10], 100) == "result"
    assert library.runs == [1] * 5
    assert library.told == [ALL, 1], "a number that is in force is not set again"


def test_long_runs_get_all_threads_once_three_have_shown_it(library: Library) -> None:
    paced = pace(library)
    for _ in range(5):
        paced.run(library.forward, [LIGHT_SECONDS * 2], 100)
    assert library.runs == [1, 1, 1, ALL, ALL]


def test_a_slow_first_run_does_not_decide(library: Library) -> None:
    paced = pace(library)
    for seconds in (LIGHT_SECONDS * 5, LIGHT_SECONDS / 5, LIGHT_SECONDS / 5, LIGHT_SECONDS / 5):
        paced.run(library.forward, [seconds], 100)
    assert library.runs == [1] * 4


def test_a_very_long_run_decides_at_once(library: Library) -> None:
    paced = pace(library)
    for _ in range(2):
        paced.run(library.forward, [LIGHT_SECONDS * 50], 100)
    assert library.runs == [1, ALL]


def test_sizes_are_decided_apart(library: Library) -> None:
    paced = pace(library)
    for _ in range(4):
        paced.run(library.forward, [LIGHT_SECONDS * 50], 1 << 20)
        paced.run(library.forward, [LIGHT_SECONDS / 50], 100)
    assert library.runs == [1, 1, ALL, 1, ALL, 1, ALL, 1]


def test_a_run_that_fails_is_no_trial(library: Library) -> None:
    paced = pace(library)
    with pytest.raises(ZeroDivisionError):
        paced.run(lambda: 1 / 0, [], 100)
    for _ in range(4):
        paced.run(library.forward, [LIGHT_SECONDS * 2], 100)
    assert library.runs == [1, 1, 1, ALL]


@pytest.mark.parametrize(("model_bytes", "fixed"), [(100, True), (LIGHT_WEIGHTS + 1, False)])
def test_configured_threads_and_large_models_are_not_tried(library: Library, model_bytes: int, fixed: bool) -> None:
    paced = pace(library, model_bytes, fixed)
    paced.run(library.forward, [0.0], 100)
    assert library.runs == [ALL]


def test_scripts_get_all_threads_after_a_light_model() -> None:
    library = Library()

    class Torch:
        set_num_threads = library.set_number

    before = torch_threads._process
    try:
        threads = torch_threads.of_process(Torch, ALL)
        threads.use(1)
        torch_threads.use_all()
        assert library.number == ALL
    finally:
        torch_threads._process = before
