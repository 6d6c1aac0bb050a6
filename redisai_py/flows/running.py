"""One run of a flow: its records go through its steps, and whoever asked is told exactly once how it ended."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from .server import Caller, caller
from .steps import Pass, Step
from .threads import Interrupted, Places, step_by_hand
from .values import answer, safe_failure

#: (results as the client reads them, errors as lines)
Told = Callable[[list[Any], list[str]], None]


class Once:
    """Calls `tell` the first time only, from whichever thread that is."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._due = [None]

    def __call__(self, *args: Any) -> None:
        try:
            self._due.pop()
        except IndexError:
            return
        self._tell(*args)


def takes_too_long(timeout: float) -> str:
    return f"ERR the flow takes longer than {timeout * 1000:.0f} ms (FLOWS_TIMEOUT)"


def belongs_on_loop(steps: tuple[Step, ...]) -> bool:
    """As soon as one of the functions is a coroutine function."""
    return any(inspect.iscoroutinefunction(function) for step in steps for function in step.functions)


class Execution:
    """Records through steps, on a pool thread or on the loop. `records` may be a generator that asks the server."""

    def __init__(
        self, key: str, steps: tuple[Step, ...], records: Iterable[Any], by: Caller, as_text: bool, places: Places, told: Told
    ) -> None:
        self.key = key
        self.context = contextvars.Context()
        self.context.run(caller.set, by)
        self._steps = steps
        self._records = records
        self._as_text = as_text
        self._places = places
        self._told = Once(told)

    def start(self, on_loop: bool) -> None:
        if on_loop:
            self._places.loop.submit(self)
        else:
            self._places.pool.submit(self)

    def run(self) -> None:
        self.context.run(step_by_hand, self._all(self._places.call_here))

    async def main(self) -> None:
        await self._all(self._places.call_there)

    async def _all(self, call: Any) -> None:
        passage = Pass(call)
        try:
            records = await passage.through(self._steps, self._records)
            results = [answer(record, self._as_text) for record in records]
        except Interrupted:
            raise
        except BaseException as error:  # of a reader, of a str(); a cancellation, which asyncio need not see again
            self._told([], [safe_failure(error)])
        else:
            self._told(results, [safe_failure(error) for error in passage.errors])

    def overdue(self) -> None:
        self._told([], [takes_too_long(self._places.timeout)])

    def refused(self, text: str) -> None:
        self._told([], [text])


class Task:
    """A function on a pool thread: a source, or a reader's own work. Its caller is told its value, or the line of what it raised."""

    def __init__(self, key: str, function: Callable[[], Any], by: Caller, places: Places, told: Callable[[Any, str | None], None]) -> None:
        self.key = key
        self._function = function
        self._context = contextvars.Context()
        self._context.run(caller.set, by)
        self._places = places
        self._told = Once(told)

    def start(self) -> None:
        self._places.pool.submit(self)

    def run(self) -> None:
        try:
            value = self._context.run(self._function)
        except Interrupted:
            raise
        except BaseException as error:  # also SystemExit: a client's exit() ends its source, not the thread
            self._told(None, safe_failure(error))
        else:
            self._told(value, None)

    def overdue(self) -> None:
        self._told(None, takes_too_long(self._places.timeout))

    def refused(self, text: str) -> None:
        self._told(None, text)
