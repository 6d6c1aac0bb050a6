"""The threads that run a client's code, and the clock that ends what takes too long.

A thread cannot be killed. What can be done about one that loops, in this order:

1. Its caller is answered with an error when the time is over, so nobody waits for it.
2. `Interrupted` is raised inside it, by PyThreadState_SetAsyncExc or at its next call of ours, again and again: this ends loops in Python.
3. Code that sits in a library does not see it before it returns. After a while the thread counts as stuck and another takes its place,
   until SPARES are used up; from then on what needs such a thread is refused at once, which is better than to wait for ever.

Where the exception is raised matters. A lock that is taken in Python (`logging`, Condition, the import system) stays taken for ever when
it is raised between the taking and the `try`: a flow that logged in a loop stopped all logging of the process at the first attempt. So it
is raised only while the thread's innermost frame belongs neither to the standard library nor to us; what it called then unwinds as it
should. A thread that is never met there, because it spends its time in our calls, finds the exception at the next of them (`checkpoint`).

Should it still arrive a moment late, when the job is over: a place is left under the pool's lock, where one on its way is called back.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import heapq
import inspect
import itertools
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from ..log import current, logger

#: Threads for plain functions. While they wait for a model or for Redis they hold no GIL; a few keep the workers busy.
THREADS = 4
#: Threads that may stand in for stuck ones.
SPARES = 12
#: Coroutines that run at a time; more wait for their turn.
CONCURRENT = 256
#: Seconds between attempts to interrupt, and until a thread counts as stuck.
GRACE = 0.05
#: How often an attempt looks where the thread is. Each look of a busy thread takes a switch interval, half a millisecond.
SAMPLES = 20
STUCK = 2.0

NO_THREADS = "ERR no thread is left to run flows: they are stuck in code that cannot be interrupted, until the server is restarted"
TAKES_OVER, NONE_LEFT = "another takes over", "none is left"


class Interrupted(BaseException):
    """Raised inside a flow that takes too long. No Exception, so that `except Exception` does not swallow it."""


class Job(Protocol):
    """Something to run that somebody waits for. Whatever answers first, of these functions, answers; the rest does nothing."""

    @property
    def key(self) -> str: ...  # for log lines
    def overdue(self) -> None: ...  # any thread
    def refused(self, text: str) -> None: ...  # any thread


class PoolJob(Job, Protocol):
    def run(self) -> None: ...


class LoopJob(Job, Protocol):
    context: contextvars.Context

    async def main(self) -> None: ...


_GUARDED = (sysconfig.get_path("stdlib"), str(Path(__file__).parents[1]), "<frozen")
#: thread -> the task that is to end at its next checkpoint there; None: whatever the thread does
_condemned: dict[int, asyncio.Task[Any] | None] = {}


def interrupt(ident: int, task: asyncio.Task[Any] | None = None) -> None:
    """Raises `Interrupted` in another thread: at once where that is safe, else at its next checkpoint. `task`: only while that one runs."""
    for _ in range(SAMPLES):
        time.sleep(0)  # gives up the GIL and takes it again: for a switch interval nobody asks for it, so the thread stays where it is seen
        frame = sys._current_frames().get(ident)
        file = frame.f_code.co_filename if frame is not None else "<frozen"
        if task is not None and asyncio.current_task(task.get_loop()) is not task:
            return
        if not file.startswith(_GUARDED) or "site-packages" in file:
            _raise_in(ident, Interrupted)
            return
    _condemned[ident] = task


def call_back(ident: int) -> None:
    """Undoes `interrupt` where it has had no effect yet. On that thread itself."""
    _condemned.pop(ident, None)
    _raise_in(ident, None)


def _raise_in(ident: int, exception: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(exception) if exception else None)


def checkpoint() -> None:
    """Called by what flows call, holding nothing. Raises Interrupted when this thread has to end what it does."""
    if _condemned and (ident := threading.get_ident()) in _condemned:
        task = _condemned.pop(ident)
        if task is None or asyncio.current_task(task.get_loop()) is task:
            raise Interrupted


class Promise:
    """A value or an error that comes later. Awaited on a loop, or waited for on any other thread; given once."""

    def __init__(self) -> None:
        self._came = threading.Lock()
        self._came.acquire()
        self._told: deque[Callable[[], Any]] = deque()
        self._due = [None]  # emptied by the first to give
        self._outcome: list[tuple[Any, BaseException | None]] = []

    def give(self, value: Any = None, error: BaseException | None = None) -> None:
        """Any thread. Only the first call counts."""
        try:
            self._due.pop()
        except IndexError:
            return
        self._outcome.append((value, error))
        self._came.release()
        self._tell()

    def _tell(self) -> None:
        while self._outcome:
            try:
                call = self._told.popleft()
            except IndexError:
                return
            call()

    def wait(self) -> Any:
        """Waits, and returns the value or raises the error."""
        self._came.acquire()
        self._came.release()
        return self._result()

    def _result(self) -> Any:
        value, error = self._outcome[0]
        if error is not None:
            raise error
        return value

    def __await__(self) -> Generator[Any, None, Any]:
        if not self._outcome:
            loop = asyncio.get_running_loop()
            future = loop.create_future()

            def done() -> None:
                if not future.done():  # cancelled meanwhile
                    future.set_result(None)

            self._told.append(partial(loop.call_soon_threadsafe, done))
            self._tell()
            yield from future
        return self._result()


class Clock:
    """Calls functions at their time, on a thread of its own. They must be quick."""

    def __init__(self) -> None:
        self._new: SimpleQueue[tuple[float, int, Callable[[], None]]] = SimpleQueue()
        self._number = itertools.count()
        threading.Thread(target=self._serve, name="ai-clock", daemon=True).start()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Any thread."""
        self._new.put((time.monotonic() + seconds, next(self._number), call))

    def _serve(self) -> None:
        due: list[tuple[float, int, Callable[[], None]]] = []
        while True:
            with contextlib.suppress(Empty):
                heapq.heappush(due, self._new.get(timeout=max(0.0, due[0][0] - time.monotonic()) if due else None))
            while due and due[0][0] <= time.monotonic():
                try:
                    heapq.heappop(due)[2]()
                except Exception:
                    logger.exception("something that was due could not be done")


class Spares:
    """How many more threads may stand in for stuck ones."""

    def __init__(self, number: int = SPARES) -> None:
        self._left = number
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            if not self._left:
                return False
            self._left -= 1
            return True

    def give_back(self) -> None:
        with self._lock:
            self._left += 1


# ---- plain functions --------------------------------------------------------------------------------------------------------------------


class _Place:
    """A thread of the pool. `job` and `stuck` change under the pool's lock."""

    def __init__(self) -> None:
        self.ident = 0
        self.job: PoolJob | None = None
        self.since = 0.0
        self.late = False
        self.watched = False  # the clock will look at it
        self.stuck = False
        self.replaced = False  # while stuck: another thread stands in


class Pool:
    """Threads that run jobs in the order of their arrival. `timeout` in seconds, 0 for none."""

    def __init__(self, clock: Clock, spares: Spares, timeout: float, threads: int = THREADS) -> None:
        self._clock = clock
        self._spares = spares
        self._timeout = timeout
        self._jobs: SimpleQueue[PoolJob] = SimpleQueue()
        self._lock = threading.Lock()
        self._able = threads  # threads that are not stuck
        for _ in range(threads):
            self._start_thread()

    def submit(self, job: PoolJob) -> None:
        """Any thread."""
        self._jobs.put(job)
        if not self._able:
            self._refuse_all()

    def _refuse_all(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._jobs.get_nowait().refused(NO_THREADS)

    def _start_thread(self) -> None:
        threading.Thread(target=self._serve, args=(_Place(),), name="ai-flow", daemon=True).start()

    def _serve(self, place: _Place) -> None:
        place.ident = threading.get_ident()
        stays = True
        while stays:
            try:
                current.about = self._take(place)
                current.about.run()
            except Interrupted:
                pass  # the clock has answered for it
            except BaseException:
                logger.exception("a thread could not finish a flow")
            current.about = None
            while (left := self._leave(place)) is None:
                pass
            stays = left

    def _take(self, place: _Place) -> PoolJob:
        job = self._jobs.get()
        place.since, place.late = time.monotonic(), False
        place.job = job
        if self._timeout and not place.watched:
            place.watched = True
            self._clock.after(self._timeout, partial(self._look, place))
        return job

    def _leave(self, place: _Place) -> bool | None:
        """Makes the place idle. False: the thread has to go, another stands in for it. None: interrupted on the way, call again."""
        try:
            with self._lock:
                place.job = None
                call_back(place.ident)
                if not place.stuck:
                    return True
                place.stuck = False
                if not place.replaced:
                    self._able += 1
                    return True
        except Interrupted:
            return None
        self._spares.give_back()
        return False

    def _look(self, place: _Place) -> None:
        """The clock: is the place's job overdue?"""
        with self._lock:
            if (job := place.job) is None:
                place.watched = False
                return
            wait = place.since + self._timeout - time.monotonic()
            if wait <= 0:
                interrupt(place.ident)
            first = wait <= 0 and not place.late
            place.late |= first
        if first:
            job.overdue()
        if wait <= -STUCK and not place.stuck:
            self._give_up(place, job)
        self._clock.after(wait if wait > 0 else GRACE, partial(self._look, place))

    def _give_up(self, place: _Place, job: PoolJob) -> None:
        with self._lock:
            if place.job is not job:
                return
            place.stuck, place.replaced = True, self._spares.take()
            self._able -= not place.replaced
        if place.replaced:
            self._start_thread()
        elif not self._able:
            self._refuse_all()
        logger.warning("%s: stuck in code that cannot be interrupted; %s", job.key, TAKES_OVER if place.replaced else NONE_LEFT)


# ---- coroutine functions ----------------------------------------------------------------------------------------------------------------


class _LoopThread:
    """One asyncio loop. Its own thread fills `running`; `waiting` takes jobs from anywhere."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.ident = 0
        self.waiting: deque[LoopJob] = deque()
        self.running: dict[LoopJob, tuple[float, asyncio.Task[None]]] = {}
        self.retired = False
        self.asked = 0.0  # the clock's: when it asked for a sign of life that has not come; 0 = none is due
        self.blocked = 0.0  # the clock's: since when it has to be interrupted; 0 = it turns
        threading.Thread(target=self._serve, name="ai-flow-loop", daemon=True).start()

    def _serve(self) -> None:
        self.ident = threading.get_ident()
        asyncio.set_event_loop(self.loop)
        while True:
            try:
                self.loop.run_forever()
                return
            except BaseException:  # an interruption that came a moment late
                continue

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        self.loop.call_soon_threadsafe(function, *args)

    def admit(self) -> None:
        """On the loop: starts what waits."""
        while self.waiting and len(self.running) < CONCURRENT:
            job = self.waiting.popleft()
            task = self.loop.create_task(job.main(), context=job.context)
            self.running[job] = (time.monotonic(), task)
            task.add_done_callback(partial(self._ended, job))

    def _ended(self, job: LoopJob, task: asyncio.Task[None]) -> None:
        self.running.pop(job, None)
        if task.cancelled() or task.exception() is not None:
            job.refused("ERR the flow was cancelled")  # unless it was answered, as it is when it was overdue
        self.admit()

    def lives(self) -> None:
        self.asked = self.blocked = 0.0

    def culprit(self, late: dict[LoopJob, asyncio.Task[None]], timeout: float) -> asyncio.Task[Any] | None:
        """The clock: the task that runs at this moment, if it has to be interrupted."""
        if not self.asked:
            self.asked = time.monotonic()
            self.call(self.lives)
        current = asyncio.current_task(self.loop)
        return current if current in late.values() or time.monotonic() - self.asked >= timeout else None


class Loop:
    """Runs coroutines, CONCURRENT at a time. `timeout` in seconds, 0 for none."""

    def __init__(self, clock: Clock, spares: Spares, timeout: float) -> None:
        self._clock = clock
        self._spares = spares
        self._timeout = timeout
        self._thread: _LoopThread | None = _LoopThread()
        self._watch(self._thread)

    def submit(self, job: LoopJob) -> None:
        """Any thread."""
        thread = self._thread
        if thread is None:
            job.refused(NO_THREADS)
            return
        thread.waiting.append(job)
        thread.call(thread.admit)
        if thread is not self._thread:  # given up at this moment
            self._move(thread)

    def _move(self, thread: _LoopThread) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self.submit(thread.waiting.popleft())

    def promise(self, awaitable: Awaitable[Any]) -> Promise:
        """Any other thread: something to wait for that is awaited on the loop."""
        job = _Awaited(awaitable)
        self.submit(job)
        return job.promise

    def _watch(self, thread: _LoopThread, wait: float | None = None) -> None:
        if self._timeout:
            self._clock.after(self._timeout if wait is None else wait, partial(self._look, thread))

    def _look(self, thread: _LoopThread) -> None:
        """The clock: is anything overdue, and does the loop turn?"""
        if thread.retired:
            return
        now = time.monotonic()
        running = list(thread.running.items())
        started = {job: since for job, (since, _) in running}
        late = {job: task for job, (since, task) in running if since + self._timeout <= now}
        long_late = {job: task for job, task in late.items() if started[job] + self._timeout + GRACE <= now}  # cancelled before this look
        for job, task in late.items():
            job.overdue()
            thread.call(task.cancel)
            if started[job] + self._timeout + STUCK <= now and not thread.blocked:  # it will not be cancelled: let it, but out of the count
                thread.running.pop(job, None)
                thread.call(thread.admit)
        culprit = thread.culprit(long_late, self._timeout) if running or thread.waiting else None
        if culprit is not None:
            thread.blocked = thread.blocked or now
            interrupt(thread.ident, culprit)
            if now - thread.blocked >= STUCK and thread is self._thread:
                self._give_up(thread)
        else:
            _condemned.pop(thread.ident, None)
        due = min((since + self._timeout - now for job, (since, _) in running if job not in late), default=self._timeout)
        self._watch(thread, GRACE if late or thread.blocked else due)

    def _give_up(self, thread: _LoopThread) -> None:
        """Another loop takes over. What ran on this one is answered for, what waited moves."""
        spare = self._spares.take()
        self._thread = _LoopThread() if spare else None
        logger.warning("flows: the loop is stuck in code that cannot be interrupted; %s", TAKES_OVER if spare else NONE_LEFT)
        thread.call(self._came_back, thread)
        for job in list(thread.running):
            job.overdue()
        self._move(thread)
        if self._thread is not None:
            self._watch(self._thread)

    def _came_back(self, thread: _LoopThread) -> None:
        """On a loop that was given up, when it turns again."""
        thread.lives()
        if self._thread is None:
            self._thread = thread
            return
        self._spares.give_back()
        thread.retired = True
        for _, task in thread.running.values():
            task.cancel()
        thread.loop.call_later(STUCK, thread.loop.stop)


class _Awaited:
    """An awaitable that a thread waits for."""

    key = "flow"

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self._awaitable = awaitable
        self.context = contextvars.copy_context()
        self.promise = Promise()

    async def main(self) -> None:
        try:
            self.promise.give(await self._awaitable)
        except BaseException as error:
            self.promise.give(error=error)
            if isinstance(error, asyncio.CancelledError):
                raise

    def overdue(self) -> None:
        self.promise.give(error=Interrupted())

    def refused(self, text: str) -> None:
        self.promise.give(error=RuntimeError(text))


class _Called:
    """A plain function that a coroutine waits for."""

    def __init__(self, key: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.key = key
        self._call = partial(function, *args)
        self.promise = Promise()

    def run(self) -> None:
        try:
            self.promise.give(self._call())
        except Interrupted:
            raise
        except BaseException as error:
            self.promise.give(error=error)

    def overdue(self) -> None:
        self.promise.give(error=TimeoutError("the function takes too long"))

    def refused(self, text: str) -> None:
        self.promise.give(error=RuntimeError(text))


class Places:
    """The threads of all flows, and how a function is called from either kind of them."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.clock = Clock()
        spares = Spares()
        self.pool = Pool(self.clock, spares, timeout)
        self.loop = Loop(self.clock, spares, timeout)

    async def call_here(self, function: Callable[..., Any], *args: Any) -> Any:
        """On a pool thread. What it returns to be awaited is awaited on the loop, while this thread waits. Never suspends."""
        value = function(*args)
        return self.loop.promise(value).wait() if inspect.isawaitable(value) else value

    async def call_there(self, function: Callable[..., Any], *args: Any) -> Any:
        """On the loop. A plain function runs on a pool thread."""
        if inspect.iscoroutinefunction(function):
            return await function(*args)
        job = _Called("flow", in_context(function), args)
        self.pool.submit(job)
        value = await job.promise
        return await value if inspect.isawaitable(value) else value


def in_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, to be run with the context variables of this moment."""
    return partial(contextvars.copy_context().run, function)


def step_by_hand(coroutine: Any) -> Any:
    """Runs a coroutine that never suspends, as those of `call_here` do."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise RuntimeError("awaited on a thread that has no loop")
