"""What the loader and the workers hold of sessions in helpers: stand-ins with the same methods.

1. A thread of the server has a channel of its own per helper, so nothing is locked on the way of a request, and the arrays that a run
   returns stay what they are until the worker has given them to the shim. A script that runs a model does so on a second channel.
2. A stand-in keeps the bytes of its model (the shim's own memory, not a copy) and knows which helper has it open. Another one is sent
   them before the first run there.
3. Whoever waits reads the end of the socket when a helper dies. The run in progress is the suspect: it is not tried again, neither as a
   whole nor member by member.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from ..errors import BackendError, BatchMismatch, Terminated, sentence
from ..log import logger
from ..opener import Library
from . import wire
from .breaker import Breaker
from .channel import Array, Channel, Closed
from .memory import LARGEST, SharedMemory
from .supervisor import NONSENSE, Helper, Supervisor
from .wire import Garbage, Message

#: Seconds that a run which can be ended politely gets to end, before its helper is killed.
_GRACE = 0.5


class Failed(Exception):
    """What a library raised that is no BackendError; `str()` is the client's line."""


#: kind of an error as a helper names it -> what it is here. What is no Exception there must not be retried here.
ERRORS: dict[str, type[Exception]] = {
    "BackendError": BackendError,
    "BatchMismatch": BatchMismatch,
    "Terminated": Terminated,
    "ImportError": ImportError,
    "Exception": Failed,
    "BaseException": Terminated,
}


class _Thread(threading.local):
    """The channels of a thread, and how many runs of scripts it is inside of."""

    def __init__(self) -> None:
        self.channels: dict[tuple[str, int], tuple[Helper, Channel]] = {}
        self.depth = 0


_thread = _Thread()


#: a helper and the channel of the calling thread to it
Place = tuple[Helper, Channel]
Result = TypeVar("Result")


class Link:
    """The way to the helper of one device, for any thread of the server."""

    def __init__(self, supervisor: Supervisor, device: str, meter: Callable[[int, int], None], limit: float) -> None:
        self._supervisor = supervisor
        self._meter = meter
        self.device = device
        self.limit = limit  # seconds of a run that was overdue before it began

    def channel(self) -> Place:
        """This thread's channel. Raises Unavailable."""
        key = self.device, _thread.depth
        found = _thread.channels.get(key)
        if found is None or not found[0].alive:
            found = _thread.channels[key] = self._connect()
        return found

    def _connect(self) -> Place:
        for _ in range(3):  # it may die between the two lines
            helper = self._supervisor.helper(self.device)
            try:
                return helper, helper.open_channel()
            except Closed:
                helper.alive = False
        raise Terminated(f"ERR the process of the backends on {self.device} ends as soon as it starts")

    def loaded(self, name: str) -> None:
        self._supervisor.loaded(self.device, name)

    def ask(
        self,
        at: Place,
        kind: bytes,
        header: Sequence[Any],
        read: Callable[[Channel, Any, Sequence[wire.Row | None]], Result],
        tensors: Sequence[Any] = (),
        host: Any = None,
    ) -> Result:
        """Sends a request, waits for its answer and returns what `read` makes of its header and rows; what a script asks meanwhile is put
        to `host`. Raises what was raised there, and Terminated when the helper dies or says what makes no sense."""
        helper, channel = at
        result: Result | None = None
        error: Exception | None = None
        try:
            answer = _exchange(channel, kind, header, tensors, host)
            if answer.kind == wire.DONE:
                memory, accesses, inner = _fields(answer.header, 3)
                result = read(channel, inner, answer.rows)
            else:
                memory, accesses, name, text = _fields(answer.header, 4)
                error = _error(name, text)
            self._count(helper, memory, accesses)
            helper.served = True
        except Closed:
            raise Terminated(helper.fate(channel)) from None
        except Exception as problem:  # Garbage, or our own side failed in the middle: the two are no longer in step
            logger.warning("process %d of %s: %s", helper.pid, self.device, sentence(problem))
            nonsense = isinstance(problem, Garbage)
            helper.kill(f"ERR the process of the backends on {self.device} {NONSENSE if nonsense else _OUT_OF_STEP}", channel)
            raise Terminated(helper.fate(channel)) from None
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def _count(self, helper: Helper, memory: Any, accesses: Any) -> None:
        if memory or accesses:
            helper.memory += wire.number_of(memory)
            self._meter(wire.number_of(memory), wire.number_of(accesses))


_OUT_OF_STEP = "was ended because the server could not go on with its answer"


def _exchange(channel: Channel, kind: bytes, header: Sequence[Any], tensors: Sequence[Any], host: Any) -> Message:
    channel.into.give_back()
    channel.base = 0
    channel.send(kind, header, tensors)
    channel.base = channel.end  # a script still reads its inputs while it gets replies
    while (answer := channel.receive()).kind not in _ANSWERS:
        _serve(channel, answer, host)
    channel.out.give_back()
    return answer


_ANSWERS = (wire.DONE, wire.FAILED)


def _fields(header: Any, count: int) -> list[Any]:
    if not isinstance(header, list) or len(header) != count:
        raise Garbage("an answer of another form")
    return header


def _error(name: Any, text: Any) -> Exception:
    if not isinstance(name, str) or name not in ERRORS:
        raise Garbage("an unknown kind of error")
    return ERRORS[name](wire.text_of(text))


# ---- what a script asks while it runs -------------------------------------------------------------------------------------------


def _serve(channel: Channel, message: Message, host: Any) -> None:
    if message.kind == wire.GROW:
        _more_memory(channel, wire.number_of(_fields(message.header, 1)[0]))
    elif message.kind == wire.EXECUTE and host is not None:
        channel.send(wire.RETURN, [wire.reply_to(host.execute(_words(message.header)))])
    elif message.kind == wire.MODEL and host is not None:
        _run_model(channel, message, host)
    else:
        raise Garbage("a call that only scripts may make")


def _words(header: Any) -> list[bytes]:
    words = wire.words_from(header)
    if not words:
        raise Garbage("a command without a name")
    return words


def _run_model(channel: Channel, message: Message, host: Any) -> None:
    key, n_outputs = _fields(message.header, 2)
    (name,), count = wire.words_from([key]), wire.number_of(n_outputs)
    inputs = [_private(channel, row) for row in message.rows]
    _thread.depth += 1
    try:
        outputs = host.model_execute(name, inputs, count)
    except Exception as error:
        channel.send(wire.FAILED, [str(error) if isinstance(error, BackendError) else sentence(error)])
    else:
        channel.send(wire.RETURN, [], outputs)
    finally:
        _thread.depth -= 1


def _more_memory(channel: Channel, need: int) -> None:
    if not 0 < need <= LARGEST:
        raise Garbage("more memory than there is")
    memory = SharedMemory.of_size(need)
    channel.post(wire.UP, [memory.fd])
    memory.close_descriptor()
    channel.into = memory


def _private(channel: Channel, row: wire.Row | None) -> Array:
    array = channel.array(row)
    if array is None:
        raise Garbage("an input that is none")
    return np.array(array)


# ---- sessions -------------------------------------------------------------------------------------------------------------------


class _Run:
    """A run in progress, as the watchdog finds it."""

    __slots__ = ("began", "channel", "helper", "late", "over")

    def __init__(self, helper: Helper, channel: Channel) -> None:
        self.helper = helper
        self.channel = channel
        self.began = False  # its session is open
        self.late = False  # it was overdue before it began
        self.over = False

    def kill(self) -> None:
        if not self.over:
            self.helper.kill("ERR the run took longer than MODEL_EXECUTION_TIMEOUT and was ended with its process", self.channel)


def _later(seconds: float, work: Callable[..., None], *arguments: Any) -> None:
    timer = threading.Timer(seconds, work, arguments)
    timer.daemon = True
    timer.start()


class RemoteOpener:
    """Opens models and scripts in helpers: what `opener.Opener` is for this process. Loader thread, and start-up."""

    def __init__(self, supervisor: Supervisor, meter: Callable[[int, int], None], limit: float) -> None:
        self._supervisor = supervisor
        self._meter = meter
        self._limit = limit
        self._links: dict[str, Link] = {}

    def load(self, name: str, device: str = "CPU") -> Library:
        """Imports a backend in the helper of `device`. Raises ImportError, also when the import ends the helper."""
        link = self._link(device)
        try:
            library = link.ask(link.channel(), wire.LOAD, [name], _library)
        except BackendError as error:
            raise ImportError(f"Could not load {name} backend: {error}") from error
        link.loaded(name)
        return library

    def open_model(self, opening: Any) -> tuple[RemoteSession, str]:
        session = RemoteModel(self._link(opening.device), opening, False)
        session.open()
        return session, session.batch_mismatch

    def open_script(self, opening: Any) -> RemoteSession:
        session = RemoteScript(self._link(opening.device), opening, True)
        session.open()
        return session

    def _link(self, device: str) -> Link:
        name = device.upper()
        if name not in self._links:
            self._links[name] = Link(self._supervisor, name, self._meter, self._limit)
        return self._links[name]


def _library(channel: Channel, header: Any, rows: Any) -> Library:
    version, origin = _fields(header, 2)
    return Library(wire.text_of(version), wire.text_of(origin))


def _nothing(channel: Channel, header: Any, rows: Any) -> None:
    """The answer to what needs none."""


def _arrays(channel: Channel, header: Any, rows: Sequence[wire.Row | None]) -> list[Array | None]:
    """Outputs. BOOL ones are private and made of 0 and 1: what lies in the shared memory could change under our eyes."""
    arrays = [channel.array(row) for row in rows]
    return [array.view(np.uint8) != 0 if array is not None and array.dtype == np.bool_ else array for array in arrays]


class RemoteSession:
    """What models and scripts have in common: they are opened in whichever helper is there, and their runs may end it."""

    def __init__(self, link: Link, opening: Any, is_script: bool) -> None:
        self.inputs: tuple[str, ...] = ()
        self.outputs: tuple[str, ...] = ()
        self.batch_mismatch = ""
        self._link = link
        self._id = opening.id
        self._data = opening.data
        self._key = opening.key
        self._is_script = is_script
        self._backend = "TORCH" if is_script else opening.backend
        fields = ("backend", "device", "batchsize", "inputs", "outputs", "entry_points")
        self._fields = {"key": opening.key, **{name: getattr(opening, name) for name in fields}}
        self._open_in: Helper | None = None
        self._polite = False  # the helper's session can end a run
        self._breaker = Breaker()
        self._running: dict[int, _Run] = {}  # by thread

    def open(self) -> None:
        """Opens it in the helper that is there. Raises what the library raises."""
        self._guarded(lambda at: None)

    def _guarded(self, work: Callable[[Place], Result]) -> Result:
        """Does `work` in a helper that has the session open. One that dies meanwhile counts against this session."""
        if self._breaker.failures and (wait := self._breaker.wait(time.monotonic())):
            raise Terminated(
                f"ERR {self._breaker.failures} runs in a row ended the process of the backends: refused, and tried again in {wait:.0f} s"
            )
        helper, channel = at = self._link.channel()
        thread = threading.get_ident()
        run = self._running[thread] = _Run(helper, channel)
        try:
            if self._open_in is not helper:
                self._open_there(at)
            run.began = True
            if run.late:
                _later(self._link.limit, self._overdue, run)
            result = work(at)
        except Terminated:
            if not helper.alive and helper.culprit in (None, channel):
                self._breaker.failed(time.monotonic())
            raise
        finally:
            run.over = True
            del self._running[thread]
        if self._breaker.failures:
            self._breaker.succeeded()
        return result

    def _open_there(self, at: Place) -> None:
        self._link.ask(at, wire.OPEN, [self._id, self._is_script, self._fields], self._read_opened, [memoryview(self._data)])
        self._open_in = at[0]
        self._link.loaded(self._backend)

    def _read_opened(self, channel: Channel, header: Any, rows: Any) -> None:
        if header is None:  # another worker was first
            return
        mismatch, inputs, outputs, polite = _fields(header, 4)
        self.batch_mismatch = wire.text_of(mismatch)
        self.inputs, self.outputs = wire.names_of(inputs), wire.names_of(outputs)
        self._polite = polite is True

    def terminate(self, thread: int) -> None:
        """A run on a thread of ours is past its limit: the watchdog's. An opening before it does not count, it may import a library."""
        run = self._running.get(thread)
        if run is not None:
            run.late = True
            if run.began:
                self._overdue(run)

    def _overdue(self, run: _Run) -> None:
        """Asks for the run's end where the library can be asked; a helper that does not end it soon is killed."""
        if run.over or not self._polite:
            run.kill()
            return
        with suppress(Closed):
            run.helper.terminate(run.channel)
        _later(_GRACE, run.kill)

    def close(self) -> None:
        """Loader thread. A helper that is gone, or that hangs, has nothing to close."""
        helper = self._open_in
        if helper is None or not helper.alive:
            return
        try:
            self._link.ask(self._link.channel(), wire.CLOSE, [self._id], _nothing)
        except BackendError as error:
            logger.warning("%s could not be closed: %s", self._key, error)


class RemoteModel(RemoteSession):
    """A model, as `backends.base.Session`."""

    def run(self, inputs: Sequence[Any], n_outputs: int) -> Sequence[Any]:
        """See `Session.run`; the arrays are good until this thread's next run."""
        return self._guarded(lambda at: self._link.ask(at, wire.RUN, [self._id, n_outputs], _arrays, inputs))


class RemoteScript(RemoteSession):
    """A script, as `scripts.ScriptSession`."""

    def run(
        self, function: str, inputs: Sequence[Any], keys: Sequence[bytes], args: Sequence[bytes], n_outputs: int, host: Any
    ) -> Sequence[Any]:
        """See `ScriptSession.run`."""
        header = [self._id, function, wire.words_to(keys), wire.words_to(args), n_outputs]
        return self._guarded(lambda at: self._link.ask(at, wire.CALL, header, _arrays, inputs, host))
