"""A helper process: opens and runs what its server asks for, until the server is gone.

    python -m redisai_py.isolation.helper <descriptor of the control socket> <process id of the server>

The main thread reads the control socket: the settings first, then new channels, each of which gets a thread, and calls to end a run. It
ends the process when that socket closes; the kernel does so when the server dies without a word. Standard error leads to the server's log.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import log
from ..backends.base import Settings
from ..errors import BackendError, BatchMismatch, Terminated, sentence
from ..opener import Opener
from ..sandbox import Sandbox
from ..tensor import ArrayTensor
from . import wire
from .channel import Channel, Closed
from .memory import SharedMemory

_PR_SET_PDEATHSIG = 1
#: How much more willingly than the server the system kills a helper when memory runs out, of 1000.
_OOM_SCORE = 300


class Program:
    """A model or script that is open here. `key` is for log lines."""

    __slots__ = ("key", "session")

    def __init__(self, key: str, session: Any) -> None:
        self.key = key
        self.session = session


class Meter:
    """Sums up what a library allocates; each answer takes the sums along."""

    def __init__(self) -> None:
        self._bytes = self._accesses = 0
        self._lock = threading.Lock()

    def record(self, delta_bytes: int, accesses: int) -> None:
        with self._lock:
            self._bytes += delta_bytes
            self._accesses += accesses

    def take(self) -> tuple[int, int]:
        with self._lock:
            taken = self._bytes, self._accesses
            self._bytes = self._accesses = 0
        return taken


class Host:
    """The server as a script meets it here: both calls go back through the channel that runs the script."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def execute(self, argv: list[bytes]) -> Any:
        self._channel.send(wire.EXECUTE, wire.words_to(argv))
        return wire.reply_from(_received(self._channel).header[0])

    def model_execute(self, key: bytes, inputs: list[Any], n_outputs: int) -> list[Any]:
        self._channel.send(wire.MODEL, [key.decode("latin-1"), n_outputs], inputs)
        answer = _received(self._channel)
        if answer.kind == wire.FAILED:
            raise BackendError(answer.header[0])
        # Copies: the next answer is written over this one.
        return [None if row is None else np.array(self._channel.array(row)) for row in answer.rows]


class Helper:
    """What this process serves."""

    def __init__(self, settings: Settings) -> None:
        self.meter = Meter()
        self.opener = Opener(settings, self.meter)
        self.programs: dict[int, Program] = {}
        self.running: dict[int, tuple[Any, int]] = {}  # channel number -> session and thread of the run in progress
        self._opening = threading.Lock()
        self._answers = {wire.LOAD: self._load, wire.OPEN: self._open, wire.CLOSE: self._close, wire.RUN: self._run, wire.CALL: self._call}

    # ---- threads --------------------------------------------------------------------------------------------------------

    def serve(self, channel: Channel, number: int) -> None:
        """The thread of one channel."""
        while True:
            try:
                message = _received(channel)
                log.current.about = None
                self._answer(channel, number, message)
            except Closed:
                return

    def _answer(self, channel: Channel, number: int, message: wire.Message) -> None:
        try:
            header, outputs = self._answers[message.kind](channel, number, message)
            channel.send(wire.DONE, [*self.meter.take(), header], outputs)
        except Closed:
            raise
        except BaseException as error:
            kind, text = _described(error)
            channel.send(wire.FAILED, [*self.meter.take(), kind, text])

    def preload(self, names: Sequence[str]) -> None:
        """Imports what an earlier helper had loaded, before anybody asks."""
        for name in names:
            with self._opening, contextlib.suppress(ImportError):
                self.opener.load(name)

    # ---- answers: (header, outputs) -------------------------------------------------------------------------------------

    def _load(self, channel: Channel, number: int, message: wire.Message) -> tuple[Any, Sequence[Any]]:
        with self._opening:
            return list(self.opener.load(message.header[0])), ()

    def _open(self, channel: Channel, number: int, message: wire.Message) -> tuple[Any, Sequence[Any]]:
        program, is_script, fields = message.header
        blob = channel.bytes_of(message.rows[0])
        with self._opening:
            if program in self.programs:  # another worker was first
                return None, ()
            opening = SimpleNamespace(blob=blob, **fields)
            log.current.about = opening
            mismatch = ""
            if is_script:
                session = self.opener.open_script(opening)
            else:
                session, mismatch = self.opener.open_model(opening)
            self.programs[program] = Program(opening.key, session)
        names = list(getattr(session, "inputs", ())), list(getattr(session, "outputs", ()))
        return [mismatch, *names, hasattr(session, "terminate")], ()

    def _close(self, channel: Channel, number: int, message: wire.Message) -> tuple[Any, Sequence[Any]]:
        with self._opening:
            program = self.programs.pop(message.header[0], None)
            if program is not None:
                program.session.close()
        return None, ()

    def _run(self, channel: Channel, number: int, message: wire.Message) -> tuple[Any, Sequence[Any]]:
        number_of_program, n_outputs = message.header
        program = self.programs[number_of_program]
        log.current.about = program
        session = program.session
        self.running[number] = session, threading.get_ident()
        try:
            return None, session.run(_inputs(channel, message), n_outputs)
        finally:
            del self.running[number]

    def _call(self, channel: Channel, number: int, message: wire.Message) -> tuple[Any, Sequence[Any]]:
        number_of_program, function, keys, args, n_outputs = message.header
        program = self.programs[number_of_program]
        log.current.about = program
        words = wire.words_from(keys), wire.words_from(args)
        return None, program.session.run(function, _inputs(channel, message), *words, n_outputs, Host(channel))

    def terminate(self, number: int) -> None:
        """Ends the run on a channel, where its session can."""
        session, thread = self.running.get(number, (None, 0))
        if session is not None and hasattr(session, "terminate"):
            session.terminate(thread)


def _received(channel: Channel) -> wire.Message:
    """The next message of the server, in the larger memory that may come before it: in front of a request, and of what a script asked for.
    Arrays in the memory before stay good."""
    while (message := channel.receive()).kind == wire.DOWN:
        _, (descriptor,), _, _ = socket.recv_fds(channel.socket, 1, 1)
        channel.into = _mapped(descriptor)
    return message


def _inputs(channel: Channel, message: wire.Message) -> list[ArrayTensor]:
    return [ArrayTensor(array) for array in map(channel.array, message.rows) if array is not None]


def _described(error: BaseException) -> tuple[str, str]:
    """The kind of an error as the server's side knows them (remote.ERRORS), and its text."""
    for kind in (BatchMismatch, Terminated, BackendError, ImportError):
        if isinstance(error, kind):
            return kind.__name__, str(error)
    return ("Exception" if isinstance(error, Exception) else "BaseException"), sentence(error)


# ---- the process ----------------------------------------------------------------------------------------------------------------


def _settle(parent: int) -> None:
    """Ties this process to the server and makes it the first to go when memory runs out. It takes no signals of a terminal or a service."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # the server died before the line above
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # writing a core of gigabytes would hold up the next helper
    with contextlib.suppress(OSError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(1000, int(score.read_text()) + _OOM_SCORE)))


def _logger() -> Callable[[str, str], None]:
    """What writes a line to the server's log: through a descriptor of its own, since standard error is elsewhere during an import
    (backends/quiet.py)."""
    descriptor = os.dup(2)

    def write(level: str, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(descriptor, f"{level}\t{line}\n".encode())

    return write


def _grow(channel: Channel, need: int) -> None:
    """Asks the server for more memory to write answers into."""
    channel.post(wire.GROW + wire.encode([need]))
    try:
        kind, (descriptor,), _, _ = socket.recv_fds(channel.socket, 64, 1)
    except (OSError, ValueError):
        raise Closed from None
    if kind != wire.UP:
        raise Closed
    channel.out, channel.base = _mapped(descriptor), 0


def _mapped(descriptor: int) -> SharedMemory:
    memory = SharedMemory(descriptor)
    memory.close_descriptor()
    return memory


def main() -> None:
    descriptor, parent = map(int, sys.argv[1:])
    _settle(parent)
    control = socket.socket(fileno=descriptor)
    log.route_to_server(_logger())
    start = json.loads(control.recv(wire.DATAGRAM))
    threading.stack_size(start["stack_size"])
    sys.setswitchinterval(start["switch_interval"])
    if start["sandbox"]:
        Sandbox(whole_process=True).enter()  # before there is a second thread
    helper = Helper(Settings(**start["settings"]))
    threading.Thread(target=helper.preload, args=(start["preload"],), name="ai-preload", daemon=True).start()
    control.send(b"ready")
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, wire.DATAGRAM, 3)
        if not data:
            os._exit(0)
        number = int(data[1:])
        if data[:1] == wire.TERMINATE:
            helper.terminate(number)
        else:
            sock, into, out = descriptors
            channel = Channel(socket.socket(fileno=sock), _mapped(out), _mapped(into), _grow)
            threading.Thread(target=helper.serve, args=(channel, number), name="ai-channel", daemon=True).start()


if __name__ == "__main__":
    main()
