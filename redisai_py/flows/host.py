"""The host: takes what the shim has for flows, and starts what has to be done. Its thread runs no client's code and waits for none.

Order: the events of one key go one after the other, because the value is read when its turn comes and a flow that writes beside it must not
overtake another; so do the batches of one stream. Everything else runs side by side.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from .._shim import Shim
from ..log import logger
from .builder import Plan
from .readers import Position, Waiting, entries, key_records, scanned
from .running import Execution, Task, belongs_on_loop
from .server import Caller, Server
from .source import Source
from .threads import Places
from .values import bytes_of, text_of

#: Lines per flow. The events of a key always take the same one.
LINES = 128
NOT_HERE = "ERR the source of this flow could not be run again; the server's log says why"


class Line:
    """Runs one thing after the other. `start(thing, done)`; whoever calls `done`, at once or later, makes room for the next. Any thread."""

    def __init__(self, start: Callable[[Any, Callable[[], None]], None]) -> None:
        self._start = start
        self._things: deque[Any] = deque()
        self._idle: list[None] = [None]  # emptied by whom the line belongs to
        self._starter = 0  # the thread that is inside `start`, and goes on with the next itself

    def add(self, thing: Any) -> None:
        self._things.append(thing)
        self._next()

    def _next(self) -> None:
        while self._things:
            try:
                self._idle.pop()
            except IndexError:
                return
            try:
                thing = self._things.popleft()
            except IndexError:
                self._idle.append(None)
                continue
            self._starter = threading.get_ident()
            self._start(thing, self._done)
            if self._starter == threading.get_ident():
                self._starter = 0

    def _done(self) -> None:
        self._idle.append(None)
        if self._starter != threading.get_ident():  # else a thousand that are done at once would be a thousand calls deep
            self._next()


class Flow:
    """A registration."""

    def __init__(self, number: str, plan: Plan, source: Source, by: Caller) -> None:
        self.id = number
        self.plan = plan
        self.source = source
        self.by = by  # whom a stream's reading works for
        self.key = f"flow {plan.options.get('trigger') or number}"
        self.lines: dict[int, Line] = {}
        self.streams: dict[bytes, Stream] = {}
        self.dropped = False
        self._on_loop = belongs_on_loop(plan.steps)

    def start(self, records: Iterable[Any], by: Caller, places: Places, told: Callable[[list[Any], list[str]], None]) -> None:
        execution = Execution(self.key, self.plan.steps, records, by, self.plan.as_text, places, told)
        execution.start(self._on_loop)


class Stream:
    """A stream that a flow reads: one batch at a time. A turn of its line looks what is there; `wake()` gives it one."""

    def __init__(self, flow: Flow, key: bytes, host: Host) -> None:
        options = flow.plan.options
        self._flow = flow
        self._key = key
        self._host = host
        self._batch: int = options["batch"]
        self._policy: str = options["onFailedPolicy"]
        self._retry: int = options["onFailedRetryInterval"]
        self._position = Position(host.server, key, flow.id, options["trimStream"])
        self._waiting = Waiting(self._batch, options["duration"] / 1000)
        self._aborted = False
        self._line = Line(self._turn)
        self._asleep = [None]  # emptied by a wake-up that has not had its turn: more of them change nothing

    def wake(self) -> None:
        try:
            self._asleep.pop()
        except IndexError:
            return
        self._line.add(None)

    def _turn(self, _: None, done: Callable[[], None]) -> None:
        self._asleep.append(None)
        if self._aborted or self._flow.dropped:
            done()
            return
        self._task(self._look, partial(self._looked, done))

    def _task(self, function: Callable[[], Any], told: Callable[[Any, str | None], None]) -> None:
        Task(self._flow.key, function, self._flow.by, self._host.places, told).start()

    def _look(self) -> Any:
        batch = entries(self._host.server, self._key, self._position.after(), self._batch)
        return batch, self._waiting.wait(batch, time.monotonic())

    def _looked(self, done: Callable[[], None], seen: Any, error: str | None) -> None:
        if error is not None:
            self._stop(error, done)
            return
        batch, wait = seen
        if wait != 0.0:
            if wait is not None:
                self._host.places.clock.after(wait, self.wake)
            done()
            return
        records = [entry.record(self._key) for entry in batch]
        self._flow.start(records, self._flow.by, self._host.places, partial(self._ran, batch, done))

    def _ran(self, batch: Any, done: Callable[[], None], results: list[Any], errors: list[str]) -> None:
        self._host.count(self._flow, errors)
        if errors and self._policy == "retry":
            self._host.places.clock.after(self._retry, self.wake)
            done()
        elif errors and self._policy == "abort":
            self._aborted = True
            done()
        else:
            self._task(lambda: self._position.done(batch), partial(self._moved_on, done))

    def _moved_on(self, done: Callable[[], None], _: Any, error: str | None) -> None:
        if error is not None:
            self._stop(error, done)
            return
        self.wake()
        done()

    def _stop(self, error: str, done: Callable[[], None]) -> None:
        """It cannot be read or moved on: rights were taken away, or this server is a replica now. The next entry wakes it again."""
        self._host.count(self._flow, [error])
        done()


class Host:
    """`timeout_ms`: how long a flow may take, 0 for ever."""

    def __init__(self, shim: Shim, timeout_ms: int) -> None:
        self._shim = shim
        self.server = Server(shim)
        self.places = Places(timeout_ms / 1000)
        self._flows: dict[str, Flow] = {}
        self._handlers: dict[str, Callable[[Any], None]] = {
            "source": self._source,
            "trigger": self._trigger,
            "event": self._event,
            "stream": self._stream,
            "drop": self._drop,
        }

    def serve(self) -> None:
        """The host's thread: one thing after the other until the server stops."""
        while (thing := self._shim.next_flow()) is not None:
            try:
                kind = getattr(thing, "kind", None)
                if kind is None:
                    self.server.ended(thing.token, thing.outputs, thing.error)
                else:
                    self._handlers[kind](thing)
            except BaseException:  # the next must still be served
                logger.exception("the host of flows could not start something")
            thing = None  # what was not answered is answered when it goes

    # ---- sources --------------------------------------------------------------------------------------------------------------------

    def _source(self, call: Any) -> None:
        by = Caller(call.user, call.db, None, call.restoring)
        source = Source(call, self._shim, self.server, self.places, partial(self._add, by))
        Task(f"flow {call.id}", source.run, by, self.places, partial(self._source_ran, call, source)).start()

    def _add(self, by: Caller, number: str, plan: Plan, source: Source) -> None:
        source.flows.add(number)
        self._flows[number] = Flow(number, plan, source, Caller(by.user, by.db, number))

    def _source_ran(self, call: Any, source: Source, value: Any, error: str | None) -> None:
        source.close()
        flows = [self._flows[number] for number in source.flows]
        if error is None:
            call.reply(value)  # now the registrations hold
            for flow in flows:
                self._wake_streams(flow)
        else:
            if call.restoring:
                logger.warning("the source of flows %s could not be run again: %s", call.id, error.removeprefix("ERR "))
            for flow in flows:
                self._remove(flow)
            call.fail(error)
        if not source.flows:
            source.forget()

    def _remove(self, flow: Flow) -> None:
        flow.dropped = True
        self._flows.pop(flow.id, None)
        flow.source.flows.discard(flow.id)

    def _drop(self, call: Any) -> None:
        if flow := self._flows.get(call.id):
            self._remove(flow)
            if not flow.source.flows:
                flow.source.forget()

    # ---- triggers -------------------------------------------------------------------------------------------------------------------

    def _trigger(self, call: Any) -> None:
        if (flow := self._flows.get(call.id)) is None:
            call.fail(NOT_HERE)
            return
        by = Caller(call.user, call.db, flow.id)
        record = [text_of(word) for word in call.argv]
        flow.start([record], by, self.places, partial(self._triggered, flow, call))

    def _triggered(self, flow: Flow, call: Any, results: list[Any], errors: list[str]) -> None:
        self.count(flow, errors)
        if errors:
            call.fail(errors[0])
        else:
            call.reply(results)

    def count(self, flow: Flow, errors: list[str]) -> None:
        if errors:
            self._complain(flow, errors[0])
        self._shim.flow_count(flow.id, not errors, errors[0] if errors else None)

    def _complain(self, flow: Flow, error: str) -> None:
        """Straight to the shim: logging holds locks, and this may be the thread of a flow."""
        last = error.splitlines()[-1].removeprefix("ERR ")
        self._shim.log("warning", f"{flow.key} failed: {last}".encode("utf-8", "backslashreplace").decode().replace("\0", "\\0"))

    # ---- events of keys -------------------------------------------------------------------------------------------------------------

    def _event(self, event: Any) -> None:
        if (flow := self._flows.get(event.id)) is None:
            event.done(NOT_HERE)
            return
        slot = hash((event.db, event.key)) % LINES
        if (line := flow.lines.get(slot)) is None:
            line = flow.lines[slot] = Line(partial(self._start_event, flow))
        line.add(event)

    def _start_event(self, flow: Flow, event: Any, done: Callable[[], None]) -> None:
        if flow.dropped:
            event.done(None)
            done()
            return
        options = flow.plan.options
        types = options["keyTypes"] or ()
        records = key_records(self.server, [event.key], event.event, types, options["readValue"])
        by = Caller(event.user, event.db, flow.id)
        flow.start(records, by, self.places, partial(self._event_ran, flow, event, done))

    def _event_ran(self, flow: Flow, event: Any, done: Callable[[], None], results: list[Any], errors: list[str]) -> None:
        if errors:
            self._complain(flow, errors[0])
        event.done(errors[0] if errors else None)
        done()

    # ---- streams --------------------------------------------------------------------------------------------------------------------

    def _stream(self, event: Any) -> None:
        flow, key = self._flows.get(event.id), event.key
        event.done(None)  # makes room; batches are counted when they ran
        if flow is not None:
            self._stream_of(flow, key).wake()

    def _stream_of(self, flow: Flow, key: bytes) -> Stream:
        return flow.streams.get(key) or flow.streams.setdefault(key, Stream(flow, key, self))

    def _wake_streams(self, flow: Flow) -> None:
        """Streams that have entries already: from before the registration, or left by a server that stopped."""
        if flow.plan.reader == "StreamReader":
            Task(flow.key, partial(self._scan, flow), flow.by, self.places, partial(self._scanned, flow)).start()

    def _scan(self, flow: Flow) -> None:
        for key in matching(self.server, flow.plan.options["prefix"] or "*"):
            self._stream_of(flow, key).wake()

    def _scanned(self, flow: Flow, _: Any, error: str | None) -> None:
        if error is not None:
            self.count(flow, [error])


def matching(server: Server, prefix: str) -> Iterable[bytes]:
    """Names of streams that a registration's prefix stands for: with a `*` at its end all that begin so, without it one key."""
    if not prefix.endswith("*"):
        return [bytes_of(prefix)]
    escaped = "".join(f"\\{sign}" if sign in "*?[]\\^-" else sign for sign in prefix[:-1])
    return scanned(server, escaped + "*", "TYPE", "stream")


def start(shim: Shim, timeout_ms: int) -> Host:
    """Starts the threads of flows."""
    host = Host(shim, timeout_ms)
    threading.Thread(target=host.serve, name="ai-flows", daemon=True).start()
    return host
