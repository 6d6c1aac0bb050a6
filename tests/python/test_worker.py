"""Workers and loader when something goes wrong that nobody foresaw: every request is answered, and the thread goes on."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from redisai_py.backends.base import Settings
from redisai_py.errors import BackendError, BatchMismatch, Terminated
from redisai_py.execution.loader import Loader
from redisai_py.execution.sessions import Opened, Sessions
from redisai_py.execution.watchdog import watch
from redisai_py.execution.worker import Workers, answer

MISMATCH = "ERR other rows"


class FakeBatch:
    """A batch of `size` requests with one row each; `told` is what they were told, in order."""

    keys = args = ()
    program, key, function, n_outputs = 1, "m", None, 1

    keep = None  # nothing stays on a device

    def __init__(self, size: int = 1, told: list[Any] | None = None) -> None:
        self.size = self.rows = size
        self.told: list[Any] = [] if told is None else told

    def inputs(self) -> list[Any]:
        return [np.zeros((self.size, 2), np.float32)]

    def finish(self, outputs: Any) -> None:
        self.told.extend([outputs[0].shape] * self.size)

    def fail(self, text: str) -> None:
        self.told.extend([text] * self.size)

    def split(self) -> list[FakeBatch]:
        return [FakeBatch(1, self.told) for _ in range(self.size)]


def sessions(run: Callable[..., Any]) -> Sessions:
    session = type("Session", (), {"run": staticmethod(run), "close": lambda self: None})()
    return {1: Opened(session, False, MISMATCH)}


def told(size: int, run: Callable[..., Any]) -> list[Any]:
    batch = FakeBatch(size)
    answer(batch, sessions(run))
    return batch.told


def raising(error: BaseException | type[BaseException]) -> Callable[..., Any]:
    def run(inputs: Any, n_outputs: int) -> Any:
        raise error

    return run


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


# ---- one batch --------------------------------------------------------------------------------------------------------------------------


def test_what_a_session_returns_is_the_answer() -> None:
    assert told(3, lambda inputs, n: inputs) == [(3, 2)] * 3


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BackendError("said so"), "said so"),
        (ValueError("no"), "ERR ValueError: no"),
        (ValueError(), "ERR ValueError"),
        (ValueError("ERR no"), "ERR no"),
        (Unspeakable(), "ERR Unspeakable"),
        (MemoryError(), "ERR MemoryError"),
        (SystemExit(3), "ERR SystemExit: 3"),
        (KeyboardInterrupt(), "ERR KeyboardInterrupt"),
    ],
)
def test_what_a_session_raises_is_the_answer(error: BaseException, text: str) -> None:
    assert told(1, raising(error)) == [text]
    assert told(3, raising(error)) == [text] * 3


def test_a_failed_batch_is_run_again_member_by_member() -> None:
    seen: list[int] = []

    def run(inputs: Any, n_outputs: int) -> Any:
        seen.append(len(inputs[0]))
        if len(inputs[0]) > 1 or len(seen) == 3:
            raise BackendError("bad")
        return inputs

    assert told(4, run) == [(1, 2), "bad", (1, 2), (1, 2)]
    assert seen == [4, 1, 1, 1, 1]


@pytest.mark.parametrize("error", [Terminated("ended"), BatchMismatch("rows"), SystemExit()])
def test_what_a_retry_would_only_repeat_is_not_retried(error: BaseException) -> None:
    runs: list[int] = []

    def run(inputs: Any, n_outputs: int) -> Any:
        runs.append(1)
        raise error

    assert len(told(4, run)) == 4
    assert len(runs) == 1


@pytest.mark.parametrize("shape", [(2, 2), (4, 2), (0, 2), ()])
def test_a_batch_with_another_number_of_rows_is_an_error_for_all(shape: tuple[int, ...]) -> None:
    assert told(3, lambda inputs, n: [np.zeros(shape)]) == [MISMATCH] * 3
    assert told(3, lambda inputs, n: [inputs[0], np.zeros(shape)]) == [MISMATCH] * 3
    assert told(1, lambda inputs, n: [np.zeros(shape)]) == [shape]


# ---- the threads ------------------------------------------------------------------------------------------------------------------------


class FakeShim:
    """Hands out `things` one after the other, each made when it is asked for; then None. An exception is raised."""

    def __init__(self, *things: Callable[[], Any]) -> None:
        self.things = list(things)

    def Worker(self, queue: int) -> FakeShim:
        return self

    def pop(self) -> Any:
        return self.things.pop(0)() if self.things else None

    next_message = next_overdue = pop

    def meter(self, *numbers: int) -> None: ...

    def backend_loaded(self, *words: str) -> None: ...


def fails() -> Any:
    raise MemoryError


def served(*things: Callable[[], Any], run: Callable[..., Any] = lambda inputs, n: inputs) -> None:
    """A worker that pops all of them."""
    workers = Workers(FakeShim(*things), sessions(run), 1)
    workers._serve(1, threading.Event())


def test_a_worker_survives_a_pop_that_fails() -> None:
    batch = FakeBatch()
    served(fails, lambda: batch)
    assert batch.told == [(1, 2)]


def test_a_worker_lets_go_of_a_batch_that_it_could_not_answer(unlogged: None) -> None:
    """The shim answers a batch that is dropped; one that lingers in the worker's frame would leave its clients waiting for the next."""

    class Broken(FakeBatch):
        def fail(self, text: str) -> None:
            raise RuntimeError("cannot say so")

    alive: list[weakref.ref[Any]] = []

    def broken() -> Any:
        batch = Broken()
        alive.append(weakref.ref(batch))
        return batch

    def looks() -> Any:
        assert alive[0]() is None
        alive.append(alive[0])

    served(broken, looks, run=raising(SystemExit))
    assert len(alive) == 2


def test_threads_that_cannot_be_started_are_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ulimit -u`: a queue without workers must not count as served, or its requests would wait for ever."""
    start = threading.Thread.start
    allowed = [1]

    def limited(thread: threading.Thread) -> None:
        if not allowed[0]:
            raise RuntimeError("can't start new thread")
        allowed[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    workers = Workers(FakeShim(), {}, 3)
    with pytest.raises(RuntimeError, match="can't start"):
        workers.ensure(7)
    allowed[0] = 2
    workers.ensure(7)
    assert allowed[0] == 0
    workers.ensure(7)  # they all run


class FakeOpening:
    """A store of a model that cannot be opened, or whatever `blob` does."""

    id, key, queue, is_script, backend, device, batchsize = 1, "m", 7, False, "ONNX", "CPU", 0
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __init__(self, error: BaseException | type[BaseException]) -> None:
        self.error = error
        self.told: list[str] = []

    @property
    def blob(self) -> bytes:
        raise self.error

    def opened(self, inputs: Any, outputs: Any) -> None:
        raise AssertionError("it did not open")

    def failed(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def unlogged() -> Iterator[None]:
    """The log of a test run keeps what it logged, tracebacks and their frames included."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Loader]:
    monkeypatch.setenv("REDISAI_TEST_BACKEND", "echo")

    def make(*messages: Callable[[], Any]) -> Loader:
        shim: Any = FakeShim(*messages)
        return Loader(shim, {}, Workers(FakeShim(), {}, 1), Settings())

    return make


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BackendError("no model"), "no model"),
        (MemoryError(), "ERR MemoryError"),
        (Unspeakable(), "ERR Unspeakable"),
        (SystemExit(), "ERR SystemExit"),
    ],
)
def test_whatever_opening_raises_the_client_is_told_and_the_next_is_served(loader: Any, error: BaseException, text: str) -> None:
    first, second = FakeOpening(error), FakeOpening(BackendError("second"))
    loader(lambda: first, fails, lambda: second).serve()
    assert (first.told, second.told) == ([text], ["second"])


def test_the_loader_lets_go_of_a_message_that_it_could_not_answer(loader: Any, unlogged: None) -> None:
    class Broken(FakeOpening):
        def failed(self, text: str) -> None:
            raise RuntimeError("cannot say so")

    alive: list[weakref.ref[Any]] = []

    def broken() -> Any:
        opening = Broken(ValueError)
        alive.append(weakref.ref(opening))
        return opening

    def looks() -> Any:
        assert alive[0]() is None
        alive.append(alive[0])

    loader(broken, looks).serve()
    assert len(alive) == 2


def test_the_loader_starts_workers_before_it_opens(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_threads(self: Any, queue: int) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Workers, "ensure", no_threads)
    opening = FakeOpening(AssertionError("it was opened"))
    loader(lambda: opening).serve()
    assert opening.told == ["ERR RuntimeError: can't start new thread"]


# ---- the watchdog -----------------------------------------------------------------------------------------------------------------------


def test_the_watchdog_ends_what_can_be_ended_and_names_what_cannot(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[int] = []
    able = type("Session", (), {"terminate": staticmethod(ended.append)})()
    broken = type("Session", (), {"terminate": staticmethod(lambda thread: 1 / 0)})()
    found: Sessions = {1: Opened(able, False, ""), 2: Opened(object(), False, ""), 3: Opened(broken, False, "")}
    shim: Any = FakeShim(
        lambda: (11, 1, "a"), lambda: (12, 2, "slow one"), lambda: (13, 3, "c"), fails, lambda: (14, 9, "gone"), lambda: (15, 1, "a")
    )
    watch(shim, found)
    assert ended == [11, 15]
    assert "slow one takes longer than MODEL_EXECUTION_TIMEOUT" in caplog.text
