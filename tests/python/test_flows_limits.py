"""Flows that loop, sleep or will not end: their callers are answered, and others go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from flowing import Flows, told
from servers import wait_until

from redisai_py.flows import threads
from redisai_py.flows.threads import Clock, Interrupted, Loop, Places, Pool, Promise, Spares, step_by_hand

TIMEOUT_MS = 150
LATE = ("fail", f"ERR the flow takes longer than {TIMEOUT_MS} ms (FLOWS_TIMEOUT)")


@pytest.fixture(scope="module", autouse=True)
def _soon() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(threads, "STUCK", 0.2)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def flows() -> Flows:
    return Flows(TIMEOUT_MS)


LOOPS = {
    "a loop": "while True: pass",
    "a loop that catches all": "while True:\n    try:\n        while True: pass\n    except Exception: pass",
    "a loop that calls": "while True: execute('GET', 'k')",
    "a loop that logs": "import logging\nwhile True: logging.getLogger('flow').debug('x')",
    "a sleep": "import time\nfor _ in range(10**6): time.sleep(0.01)",
}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("body", LOOPS.values(), ids=LOOPS)
def test_a_flow_that_loops_is_ended_and_wedges_nobody(flows: Flows, body: str, asynchronous: bool) -> None:
    assert flows.ask(body, asynchronous=asynchronous) == LATE
    assert [flows.ask("return 1", asynchronous=kind) for kind in (False, True) * 5] == [("reply", [b"1"])] * 10
    (_, ok, error) = flows.shim.counted[0]
    flows.empty()
    assert (ok, error) == (False, LATE[1])


def test_a_coroutine_that_waits_too_long_is_cancelled(flows: Flows) -> None:
    body = "import asyncio\ntry:\n    await asyncio.sleep(1000)\nfinally:\n    execute('SET', 'cancelled', 'yes')"
    assert flows.ask(body, asynchronous=True) == LATE
    wait_until(lambda: flows.keys.pop(b"cancelled", None) == b"yes", "the cancellation")


def test_a_coroutine_that_refuses_to_be_cancelled_is_left_out_of_the_count(flows: Flows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "CONCURRENT", 1)
    body = "import asyncio\nwhile True:\n    try:\n        await asyncio.sleep(0.01)\n    except BaseException: pass"
    assert flows.ask(body, asynchronous=True) == LATE
    assert flows.ask("return 1", asynchronous=True) == ("reply", [b"1"])


def test_more_loops_than_threads_at_a_time(flows: Flows) -> None:
    number = flows.register("def f(r):\n    while True: pass\nGB('CommandReader').map(f).register(trigger='loop')")
    calls = [flows.pull(number) for _ in range(2 * threads.THREADS)]
    assert [told(call) for call in calls] == [LATE] * len(calls)
    assert flows.ask("return 1") == ("reply", [b"1"])
    flows.drop(number)


def test_a_source_that_loops_is_answered_and_registers_nothing_later(flows: Flows) -> None:
    source = "try:\n    while True: pass\nfinally:\n    GB('CommandReader').register(trigger='late')"
    assert flows.execute(source) == LATE
    assert flows.ask("return 1") == ("reply", [b"1"])
    assert not any(spec.get("trigger") == "late" for spec in flows.shim.specs.values())


def test_a_plain_step_that_loops_in_a_coroutine_flow_is_ended(flows: Flows) -> None:
    source = """
    async def first(record):
        return record
    def second(record):
        while True: pass
    GB('CommandReader').map(first).map(second).register(trigger='mixed')
    """
    number = flows.register(source)
    assert flows.trigger(number)[0] == "fail"
    assert flows.ask("return 1", asynchronous=True) == ("reply", [b"1"])
    flows.drop(number)


def test_events_behind_one_that_loops_have_their_turn(flows: Flows) -> None:
    source = "def f(r):\n    while r['event'] == 'loop': pass\nGB().foreach(f).register('*')"
    number = flows.register(source)
    first, second = flows.event(number, b"k", "loop"), flows.event(number, b"k", "set")
    assert told(first) == ("done", LATE[1])
    assert told(second) == ("done", None)
    flows.drop(number)


# ---- code that cannot be interrupted ----------------------------------------------------------------------------------------------------


class Stubborn:
    """A job that ignores interruptions until it is let go; then it says what became of it."""

    key = "stubborn"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.said: list[str] = []
        import contextvars

        self.context = contextvars.Context()

    def run(self) -> None:
        self.begun.set()
        while not self.gate.is_set():
            try:
                self.gate.wait()
            except Interrupted:
                continue

    async def main(self) -> None:
        self.run()

    def overdue(self) -> None:
        self.said.append("overdue")

    def refused(self, text: str) -> None:
        self.said.append(text)


class Quick(Stubborn):
    """A job that is over at once."""

    def run(self) -> None:
        self.said.append("ran")


def pool(spares: int, size: int = 1) -> Pool:
    return Pool(Clock(), Spares(spares), 0.05, size)


def loop(spares: int) -> Loop:
    return Loop(Clock(), Spares(spares), 0.05)


@pytest.mark.parametrize("make", [pool, loop])
def test_another_thread_takes_over_from_one_that_is_stuck(make: Callable[[int], Any]) -> None:
    place = make(1)
    stuck, quick = Stubborn(), Quick()
    place.submit(stuck)
    stuck.begun.wait()
    place.submit(quick)
    wait_until(lambda: quick.said == ["ran"], "the other job")
    assert stuck.said[0] == "overdue"
    stuck.gate.set()


@pytest.mark.parametrize("make", [pool, loop])
def test_without_a_thread_left_flows_are_refused_until_one_comes_back(make: Callable[[int], Any]) -> None:
    place = make(0)
    stuck, waiting, later = Stubborn(), Quick(), Quick()
    place.submit(stuck)
    stuck.begun.wait()
    place.submit(waiting)
    wait_until(lambda: waiting.said == [threads.NO_THREADS], "the refusal of what waits")
    place.submit(later)
    wait_until(lambda: later.said == [threads.NO_THREADS], "the refusal of what comes")
    stuck.gate.set()

    def runs() -> bool:
        job = Quick()
        place.submit(job)
        wait_until(lambda: job.said, "an answer")
        return job.said == ["ran"]

    wait_until(runs, "a thread that runs jobs")


@pytest.mark.parametrize("make", [pool, loop])
def test_a_stand_in_is_given_back(make: Callable[[int], Any]) -> None:
    """One spare, stuck three times in turn: it can be used again each time."""
    place = make(1)
    for _ in range(3):
        stuck, quick = Stubborn(), Quick()
        place.submit(stuck)
        stuck.begun.wait()
        place.submit(quick)
        wait_until(lambda quick=quick: quick.said == ["ran"], "the other job")  # type: ignore[misc]
        stuck.gate.set()
        wait_until(lambda: place._spares._left == 1, "the spare")


def test_an_interruption_in_between_does_not_end_the_thread() -> None:
    place = pool(0)
    idents: list[int] = []

    class Who(Quick):
        def run(self) -> None:
            idents.append(threading.get_ident())
            super().run()

    first = Who()
    place.submit(first)
    wait_until(lambda: first.said, "the first")
    for _ in range(50):
        threads._raise_in(idents[0], Interrupted)  # it is idle: the exception waits for its next step in Python
        job = Who()
        place.submit(job)
        time.sleep(0)
        again = Who()
        place.submit(again)
        wait_until(lambda again=again: again.said == ["ran"], "the next")  # type: ignore[misc]
    assert set(idents) == {idents[0]}


# ---- promises, the clock ----------------------------------------------------------------------------------------------------------------


def test_a_promise_is_kept_once_for_all_who_wait() -> None:
    promise = Promise()
    got: list[Any] = []
    waiting = [threading.Thread(target=lambda: got.append(promise.wait())) for _ in range(5)]
    for thread in waiting:
        thread.start()
    promise.give(1)
    promise.give(2)
    promise.give(error=ValueError())
    for thread in waiting:
        thread.join()
    assert got == [1] * 5 and promise.wait() == 1


def test_a_promise_is_awaited_before_and_after_it_is_kept() -> None:
    import asyncio

    async def both() -> tuple[Any, Any]:
        promise = Promise()
        asyncio.get_running_loop().call_later(0.001, promise.give, 1)
        return await promise, await promise

    async def broken() -> Any:
        promise = Promise()
        promise.give(error=ValueError("no"))
        return await promise

    assert asyncio.run(both()) == (1, 1)
    with pytest.raises(ValueError, match="no"):
        asyncio.run(broken())


def test_a_waiter_that_is_cancelled_is_not_told() -> None:
    import asyncio

    async def given_up() -> None:
        promise = Promise()
        task = asyncio.ensure_future(asyncio.wait_for(promise, 0.001))
        with pytest.raises(TimeoutError):
            await task
        promise.give(1)
        await asyncio.sleep(0)

    asyncio.run(given_up())


def test_the_clock_calls_in_order_of_time_and_survives_what_fails() -> None:
    clock = Clock()
    called: list[str] = []
    clock.after(0.03, partial(called.append, "c"))
    clock.after(0.02, partial(called.append, "b"))
    clock.after(0.01, lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    clock.after(0, partial(called.append, "a"))
    wait_until(lambda: len(called) == 3, "three calls")
    assert called == ["a", "b", "c"]


def test_awaiting_where_there_is_no_loop_is_an_error() -> None:
    async def waits() -> None:
        await Promise()

    with pytest.raises(RuntimeError):
        step_by_hand(waits())


def test_a_plain_function_that_returns_something_to_await() -> None:
    async def later() -> int:
        return 7

    places = Places(0)
    assert step_by_hand(places.call_here(lambda: later())) == 7
    assert places.loop.promise(places.call_there(lambda: later())).wait() == 7
