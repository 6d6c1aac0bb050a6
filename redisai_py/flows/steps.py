"""The steps between a reader and its end: each takes a stream of records and gives one, a record at a time.

A step is an asynchronous generator, so that it serves both kinds of threads: `call` is how a client's function is called there. A record
whose function raises is left out and its error is kept; the others go on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

Call = Callable[..., Awaitable[Any]]
Records = AsyncIterator[Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One of STEPS with its arguments; `functions` are those of them that a client wrote."""

    name: str
    arguments: tuple[Any, ...]

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        return tuple(argument for argument in self.arguments if callable(argument))


class Pass:
    """One passage of records through the steps. `errors` grows meanwhile."""

    def __init__(self, call: Call) -> None:
        self.errors: list[BaseException] = []
        self._call = call

    async def attempt(self, function: Callable[..., Any], *args: Any) -> tuple[bool, Any]:
        """(True, its value), or (False, None) when it raised. What ends the whole flow is raised."""
        try:
            return True, await self._call(function, *args)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            self.errors.append(error)
            return False, None

    async def through(self, steps: Iterable[Step], records: Iterable[Any]) -> list[Any]:
        stream = _each(records)
        for step in steps:
            stream = STEPS[step.name](self, stream, *step.arguments)
        return [record async for record in stream]


async def _each(records: Iterable[Any]) -> Records:
    for record in records:
        yield record


async def _map(run: Pass, records: Records, function: Callable[[Any], Any]) -> Records:
    async for record in records:
        ok, value = await run.attempt(function, record)
        if ok:
            yield value


async def _filter(run: Pass, records: Records, function: Callable[[Any], Any]) -> Records:
    async for record in records:
        ok, value = await run.attempt(function, record)
        if ok and value:
            yield record


async def _flatmap(run: Pass, records: Records, function: Callable[[Any], Any]) -> Records:
    async for record in records:
        ok, value = await run.attempt(function, record)
        if not ok:
            continue
        for item in value if isinstance(value, list | tuple) else (value,):
            yield item


async def _foreach(run: Pass, records: Records, function: Callable[[Any], Any]) -> Records:
    async for record in records:
        ok, _ = await run.attempt(function, record)
        if ok:
            yield record


async def _accumulate(run: Pass, records: Records, function: Callable[[Any, Any], Any]) -> Records:
    """One record: function(what there is so far, None at first; record). None at all without records."""
    value, any_came = None, False
    async for record in records:
        ok, result = await run.attempt(function, value, record)
        if ok:
            value, any_came = result, True
    if any_came:
        yield value


async def _aggregate(
    run: Pass, records: Records, zero: Any, local: Callable[[Any, Any], Any], combine: Callable[[Any, Any], Any]
) -> Records:
    """One record: local(what there is so far, record) over all records of this server, then combine(zero, that)."""
    value = zero
    async for record in records:
        ok, result = await run.attempt(local, value, record)
        if ok:
            value = result
    ok, result = await run.attempt(combine, zero, value)
    if ok:
        yield result


async def _count(run: Pass, records: Records) -> Records:
    number = 0
    async for _ in records:
        number += 1
    yield number


async def _limit(run: Pass, records: Records, length: int, start: int = 0) -> Records:
    number = 0
    async for record in records:
        if start <= number < start + length:
            yield record
        number += 1


async def _collect(run: Pass, records: Records) -> Records:
    """Nothing to do: a flow has the records of its own server only."""
    async for record in records:
        yield record


#: name -> (run, records, *arguments of the builder's method) -> records
STEPS: dict[str, Callable[..., Records]] = {
    "map": _map,
    "filter": _filter,
    "flatmap": _flatmap,
    "foreach": _foreach,
    "accumulate": _accumulate,
    "aggregate": _aggregate,
    "count": _count,
    "limit": _limit,
    "collect": _collect,
}
