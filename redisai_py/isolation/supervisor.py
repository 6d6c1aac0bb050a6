"""Starts helpers, watches them, ends them: the thread "ai-helpers", and what other threads may ask of it.

1. Helpers are started on this thread alone, which lives as long as the server (see the head of the package). vfork and exec, no Python in
   between: the server may be large, and its other threads hold locks. Every descriptor but the helper's own is closed on the way.
2. A helper's end is known from its pidfd, and its channels are shut then: a saving child of Redis may hold copies of our sockets, so that
   nobody would ever read their end. The child is collected by pidfd, too: its number may belong to another by then.
3. What a helper writes to standard error goes to the server's log.
4. A helper that died is followed by another at once, with the same libraries, if it had served anybody; else when somebody asks, so that
   one that dies while it imports them is no storm. After three that died before they were ready nobody may ask for a while.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any

from .._shim import Shim
from ..backends.base import Settings
from ..errors import Terminated
from ..log import logger
from . import wire
from .breaker import Breaker
from .channel import Channel, Closed
from .memory import SharedMemory

NONSENSE = "sent an answer that makes no sense and was ended"
_LINE = 1024  # what the server's log takes
_LEVELS = ("debug", "verbose", "notice", "warning")
_END_SECONDS = 5.0  # how long the word of a helper's end may take to arrive after its sockets closed


class Unavailable(Terminated):
    """There is no helper, and none is started for a while. `str()` is the line the client reads."""


class Helper:
    """A running helper as the server sees it. Made and ended by the supervisor's thread."""

    def __init__(self, device: str, pid: int, pidfd: int, control: socket.socket, log: int) -> None:
        self.device = device
        self.pid = pid
        self.pidfd = pidfd
        self.control = control
        self.log = log
        self.alive = True  # cleared by whoever sees first that it is not
        self.ready = False
        self.served = False  # it has answered a request
        self.memory = 0  # bytes that its libraries said they hold, for INFO
        self.reason = ""  # why the server ended it; set before the signal is sent
        self.culprit: Channel | None = None  # whose run was the reason
        self.how = ""  # how it ended, once `ended` is set
        self.ended = threading.Event()
        self.said = b""  # the beginning of a line
        self._channels: list[Channel] = []
        self._lock = threading.Lock()

    def open_channel(self) -> Channel:
        """A new channel; the helper may not have started yet. Raises Closed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out, into = SharedMemory.of_size(0), SharedMemory.of_size(0)
        channel = Channel(ours, out, into, _grow)
        with self._lock, theirs:
            if not self.alive:
                raise Closed
            channel.number = len(self._channels)
            self._channels.append(channel)
            self._tell(wire.CHANNEL, channel.number, [theirs.fileno(), out.fd, into.fd])
        out.close_descriptor()
        into.close_descriptor()
        return channel

    def terminate(self, channel: Channel) -> None:
        """Asks the helper to end the run on a channel. Raises Closed."""
        with self._lock:
            self._tell(wire.TERMINATE, channel.number, [])

    def _tell(self, kind: bytes, number: int, descriptors: list[int]) -> None:
        try:
            socket.send_fds(self.control, [b"%b%d" % (kind, number)], descriptors, socket.MSG_DONTWAIT)
        except OSError:  # it has ended, or has not read for so long that it will not
            raise Closed from None

    def kill(self, reason: str, culprit: Channel | None = None) -> None:
        """Ends the helper; those who wait for it read `reason`. Any thread."""
        with self._lock:
            if not self.alive or self.reason:
                return
            self.reason = reason
            self.culprit = culprit
            self._signal()

    def _signal(self) -> None:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self, how: str) -> None:
        """The process is gone: wakes who waits for it and closes what led to it. Supervisor only."""
        with self._lock:
            self.alive = False
            self.how = how
            channels, self._channels = self._channels, []
            os.close(self.pidfd)
            self.ended.set()
        for channel in channels:
            channel.close()
        self.control.close()
        os.close(self.log)

    def fate(self, channel: Channel) -> str:
        """Why a run on `channel` got no answer: the line for its client. Waits for the word of the helper's end."""
        self.alive = False
        with self._lock:
            if not self.ended.is_set():
                self._signal()  # one that closed a socket and lives on; what is dying anyway does not die of this
        self.ended.wait(_END_SECONDS)
        if self.reason and self.culprit not in (None, channel):
            return f"ERR the process of the backends on {self.device} was ended for the sake of another run"
        return self.reason or f"ERR the process of the backends on {self.device} {self.how or 'ended'}"


def _grow(channel: Channel, need: int) -> None:
    """Replaces what the server writes to by larger memory."""
    memory = SharedMemory.of_size(need)
    channel.post(wire.DOWN + wire.encode([]))
    channel.post(b"+", [memory.fd])
    memory.close_descriptor()
    channel.out, channel.base = memory, 0


class Supervisor:
    """The helpers of all devices."""

    def __init__(self, shim: Shim, settings: Settings, **start: Any) -> None:
        self._shim = shim
        self._start = {"settings": dataclasses.asdict(settings), **start}
        self._helpers: dict[str, Helper] = {}  # by device; written by the supervisor's thread
        self._breakers: dict[str, Breaker] = {}
        self._libraries: dict[str, list[str]] = {}  # by device, in the order in which they were loaded
        self._wanted: list[tuple[str, Future[Helper]]] = []
        self._lock = threading.Lock()
        self._started = self._ended = 0
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._by_descriptor: dict[int, Helper] = {}
        threading.Thread(target=self._serve, name="ai-helpers", daemon=True).start()

    # ---- for other threads ----------------------------------------------------------------------------------------------

    def helper(self, device: str) -> Helper:
        """The helper of a device, started when there is none. Raises Unavailable."""
        helper = self._helpers.get(device)
        if helper is not None and helper.alive:
            return helper
        future: Future[Helper] = Future()
        with self._lock:
            self._wanted.append((device, future))
        os.eventfd_write(self._wake, 1)
        return future.result()

    def loaded(self, device: str, name: str) -> None:
        """A helper of `device` has this library now, and so shall its successors."""
        names = self._libraries.setdefault(device, [])
        if name not in names:
            names.append(name)

    # ---- the thread -----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            try:
                self._turn()
            except Exception:
                logger.exception("the supervisor of the helpers stumbled")

    def _turn(self) -> None:
        # Whose event it is has to be known first: a helper that is buried and followed in this turn leaves its numbers to the next.
        for descriptor, helper in [(found, self._by_descriptor.get(found)) for found, _ in self._poll.poll()]:
            if descriptor == self._wake:
                os.eventfd_read(self._wake)
            elif helper is None or helper.ended.is_set():
                continue
            elif descriptor == helper.log:
                self._log(helper)
            elif descriptor == helper.pidfd:
                self._bury(helper)
            else:
                self._hear(helper)
        with self._lock:
            wanted, self._wanted = self._wanted, []
        for device, future in wanted:
            try:
                future.set_result(self._need(device))
            except BaseException as error:
                future.set_exception(error)

    def _need(self, device: str) -> Helper:
        helper = self._helpers.get(device)
        if helper is not None and not helper.alive and not helper.ended.is_set():
            self._wait_for(helper)  # somebody read the end of its sockets before we heard of it
            helper = self._helpers.get(device)
        if helper is not None and helper.alive:
            return helper
        breaker = self._breakers.setdefault(device, Breaker())
        if wait := breaker.wait(time.monotonic()):
            raise Unavailable(
                f"ERR the process of the backends on {device} did not start {breaker.failures} times in a row and is tried again in "
                f"{wait:.0f} s"
            )
        try:
            return self._spawn(device)
        except OSError as error:
            breaker.failed(time.monotonic())
            raise Unavailable(f"ERR the process of the backends on {device} could not be started: {error.strerror}") from error

    def _wait_for(self, helper: Helper) -> None:
        only = select.poll()
        only.register(helper.pidfd, select.POLLIN)
        only.poll()
        self._bury(helper)

    def _spawn(self, device: str) -> Helper:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log, into_log = os.pipe2(os.O_CLOEXEC)
        try:
            command = [sys.executable, "-I", "-B", "-m", "redisai_py.isolation.helper", str(theirs.fileno()), str(os.getpid())]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=into_log, stderr=into_log, pass_fds=[theirs.fileno()], start_new_session=True
            )
            process.returncode = 0  # it is ours to collect, by pidfd: Popen must never wait for a number that another may have
            helper = Helper(device, process.pid, os.pidfd_open(process.pid), ours, log)
        except BaseException:
            ours.close()
            os.close(log)
            raise
        finally:
            theirs.close()
            os.close(into_log)
        with contextlib.suppress(OSError):  # it is dead already: the pidfd says so in a moment
            ours.send(json.dumps({**self._start, "preload": self._libraries.get(device, [])}).encode())
        os.set_blocking(log, False)
        for descriptor in (helper.pidfd, log, ours.fileno()):
            self._poll.register(descriptor, select.POLLIN)
            self._by_descriptor[descriptor] = helper
        self._helpers[device] = helper
        self._started += 1
        self._publish()
        logger.info("process %d serves %s", helper.pid, device)
        return helper

    def _hear(self, helper: Helper) -> None:
        """The control socket: the one word that a helper is ready. Its end says nothing: the pidfd will."""
        try:
            word = helper.control.recv(64)
        except OSError:
            word = b""
        if word == b"ready":
            helper.ready = True
            self._breakers.setdefault(helper.device, Breaker()).succeeded()
        else:
            self._ignore(helper.control.fileno())
            helper.kill(f"ERR the process of the backends on {helper.device} {NONSENSE}" if word else "")

    def _log(self, helper: Helper) -> bool:
        """Takes what a helper wrote. False when there was nothing."""
        try:
            said = os.read(helper.log, 1 << 16)
        except BlockingIOError:
            return False
        if not said:  # it closed its end; poll would never sleep again
            self._ignore(helper.log)
            return False
        *lines, rest = (helper.said + said).split(b"\n")
        if len(rest) > _LINE:
            lines, rest = [*lines, rest], b""
        helper.said = rest
        for line in lines:
            self._log_line(helper, line[: 2 * _LINE].decode("utf-8", "backslashreplace"))
        return True

    def _log_line(self, helper: Helper, line: str) -> None:
        level, tab, text = line.partition("\t")
        if not tab or level not in _LEVELS:
            level, text = "verbose", line
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        if text:
            self._shim.log(level, text[:_LINE])

    def _bury(self, helper: Helper) -> None:
        how = _collect(helper.pidfd)
        while self._log(helper):
            pass
        if helper.said:
            self._log_line(helper, helper.said.decode("utf-8", "backslashreplace"))
        for descriptor in (helper.pidfd, helper.log, helper.control.fileno()):
            del self._by_descriptor[descriptor]
            self._ignore(descriptor)
        helper.close(how)
        self._ended += 1
        self._shim.meter(-helper.memory, 0)
        if helper.reason:
            how = f"was killed: {helper.reason.removeprefix('ERR ')}"
        logger.warning("process %d of %s %s", helper.pid, helper.device, how)
        if self._helpers.get(helper.device) is helper:
            del self._helpers[helper.device]
        self._publish()
        if not helper.ready:
            self._breakers.setdefault(helper.device, Breaker()).failed(time.monotonic())
        elif helper.served:
            self._spawn(helper.device)

    def _ignore(self, descriptor: int) -> None:
        with contextlib.suppress(KeyError):
            self._poll.unregister(descriptor)

    def _publish(self) -> None:
        self._shim.helpers(len(self._helpers), self._started, self._ended)


def _collect(pidfd: int) -> str:
    """How the process ended, as the rest of a sentence. Redis collects any child while it saves, and then nobody knows."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return "ended"
    assert result is not None
    if result.si_code == os.CLD_EXITED:
        return f"ended with status {result.si_status}"
    try:
        name = signal.Signals(result.si_status).name
    except ValueError:
        name = str(result.si_status)
    if name == "SIGKILL":
        return "was killed by SIGKILL: the system may be out of memory"
    return f"was ended by {name}"
