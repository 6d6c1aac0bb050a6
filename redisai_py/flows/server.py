"""What a flow may ask of the server: commands, transactions, and runs of models, with the rights of the user it works for.

Whom a call works for is a context variable, so it follows a flow through threads and tasks. The Redis lock is taken in the shim, without
the GIL, for one command or one transaction at a time: Python of a client never runs while it is held. That is why `atomic()` collects
commands and sends them at its end.
"""

from __future__ import annotations

import contextvars
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

from .._shim import Shim
from .threads import Promise, checkpoint
from .values import GearsError, reply_value, words

OUTSIDE = "this can be called inside a flow only"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a flow works for. `origin`: the registration, whose own writes are no events for it; None for a source."""

    user: Any
    db: int
    origin: str | None
    restoring: bool = False  # a source is run again for its registrations only


caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")
_block: contextvars.ContextVar[Atomic | None] = contextvars.ContextVar("atomic", default=None)


def working_for() -> Caller:
    """Raises GearsError on a thread that a flow started by itself, and Interrupted in a flow that has to end."""
    checkpoint()
    try:
        return caller.get()
    except LookupError:
        raise GearsError(OUTSIDE) from None


class Later:
    """The reply of a command inside `atomic()`: `.value` is there when the block is left."""

    __slots__ = ("_reply",)

    def __init__(self) -> None:
        self._reply: tuple[Any] | None = None

    @property
    def value(self) -> Any:
        """Raises GearsError where the command failed, and before the block's end."""
        if self._reply is None:
            raise GearsError("the commands of atomic() run at its end; there is no value before")
        return reply_value(self._reply[0])

    def _set(self, reply: Any) -> None:
        self._reply = (reply,)


class Atomic:
    """`with atomic():` collects the commands of the block and runs them at its end, in one hold of the Redis lock.

    A block that raises runs nothing. A command that fails undoes nothing, as in MULTI; the first error is raised at the end of the block.
    A block within a block belongs to the outer one.
    """

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._commands: list[tuple[list[bytes], Later]] = []
        self._token: contextvars.Token[Atomic | None] | None = None

    def add(self, argv: list[bytes]) -> Later:
        later = Later()
        self._commands.append((argv, later))
        return later

    def __enter__(self) -> Atomic:
        working_for()
        if _block.get() is None:
            self._token = _block.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._token is None:
            return
        _block.reset(self._token)
        self._token = None
        commands, self._commands = self._commands, []
        if kind is None and commands:
            self._run(commands)

    def _run(self, commands: list[tuple[list[bytes], Later]]) -> None:
        by = working_for()
        replies = self._shim.flow_transaction(by.user, by.db, [argv for argv, _ in commands], by.origin)
        for (_, later), reply in zip(commands, replies, strict=True):
            later._set(reply)
        reply_value(_cause(replies))


def _cause(replies: Sequence[Any]) -> Any:
    """The first error; EXECABORT only where there is no other, from which it follows. None without errors."""
    errors = [reply for reply in replies if hasattr(reply, "error_text")]
    return min(errors, key=lambda error: bool(error.error_text.startswith("EXECABORT")), default=None)


class Finished(NamedTuple):
    """A run that ended: the tensors, or why there are none."""

    outputs: Sequence[Any]
    error: str | None


class Run:
    """A run on the run queues. `wait()` blocks and raises GearsError; awaited it raises a plain Exception, as in RedisGears.

    Both give one tensor per TENSORGET.
    """

    def __init__(self, promise: Promise) -> None:
        self._promise = promise

    def wait(self) -> Sequence[Any]:
        outputs, error = self._promise.wait()
        if error is not None:
            raise GearsError(error)
        return list(outputs)

    def __await__(self) -> Generator[Any, None, Sequence[Any]]:
        outputs, error = yield from self._promise.__await__()
        if error is not None:
            raise Exception(error)
        return list(outputs)


class Server:
    """The shim as flows see it."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._runs: dict[int, Any] = {}  # token -> its Promise; or how it ended, when that came first

    # ---- commands -------------------------------------------------------------------------------------------------------------------

    def execute(self, *args: Any) -> Any:
        """One command; its reply, or inside `atomic()` a `Later`. Does nothing, and returns None, while a source is restored."""
        argv = words(args)
        if not argv:
            raise GearsError("a command needs a name")
        by = working_for()
        if by.restoring:
            return None
        block = _block.get()
        return reply_value(self._ask(by, argv)) if block is None else block.add(argv)

    def read(self, *args: Any) -> Any:
        """One command that reads, as the shim replies: bytes, and errors as values with `error_text`. At once, also inside `atomic()`."""
        return self._ask(working_for(), words(args))

    def read_all(self, commands: list[list[bytes]]) -> list[Any]:
        """Commands that read, in one hold of the Redis lock: what they see is of one moment. Raises GearsError when one is refused."""
        by = working_for()
        replies = self._shim.flow_transaction(by.user, by.db, commands, by.origin)
        for reply in replies:
            if getattr(reply, "error_text", "").startswith("EXECABORT"):
                raise GearsError(_cause(replies).error_text)
        return replies

    def _ask(self, by: Caller, argv: list[bytes]) -> Any:
        return self._shim.flow_execute(by.user, by.db, argv, by.origin)

    def atomic(self) -> Atomic:
        return Atomic(self._shim)

    def log(self, message: Any, level: str = "notice") -> None:
        """A line in the server's log; `level` debug, verbose, notice or warning. Straight to the shim: logging holds locks."""
        if level not in ("debug", "verbose", "notice", "warning"):
            raise GearsError(f"no such log level: {level}")
        checkpoint()
        for line in str(message).splitlines():
            self._shim.log(level, line.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0"))

    # ---- runs -----------------------------------------------------------------------------------------------------------------------

    def start(self, argv: list[bytes], tensors: list[Any]) -> Run:
        """Queues a plan, written as AI.DAGEXECUTE is; LOAD names are given `tensors`, in order. Raises ValueError when refused."""
        by = working_for()
        promise = Promise()
        token = self._shim.flow_start(by.user, by.db, argv, tensors, by.origin)
        early = self._runs.setdefault(token, promise)
        if early is not promise:  # it ended before we came here
            promise.give(self._runs.pop(token))
        return Run(promise)

    def ended(self, token: int, outputs: Sequence[Any], error: str | None) -> None:
        """The host: a run is over."""
        finished = Finished(outputs, error)
        promise = self._runs.setdefault(token, finished)
        if promise is not finished:
            del self._runs[token]
            promise.give(finished)
