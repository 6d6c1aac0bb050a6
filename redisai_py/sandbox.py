"""What code of models may still do once SANDBOX is on: compute, and read the Python installation and the system's libraries.

The kernel's Landlock restricts the calling thread and all that it starts, for ever: no file is opened but below the paths listed here, none
is written, created or removed, no program is started, no TCP connection made or accepted. The server's main thread is never among them:
it saves, rewrites its configuration and talks to its clients as before.

1. What is open stays usable, and UDP is not covered. What a thread may read it may also give away in what it returns.
2. The loader is restricted like the workers: opening a model runs code of it, and thread pools begin there, whose threads inherit. It can
   still import, because what can be imported can be read.
3. Rules bind to what a path means now. Descriptors of files in /proc and /sys stay open, because the kernel forgets such a file when nobody
   has it open, and makes another one at the next look.
4. The server opens its log for each line, on whichever thread has one: where sandboxed threads are the server's own, what Python says goes
   through a thread that may (`relay`).

No library: three system calls, the same numbers on all machines.
"""

from __future__ import annotations

import ctypes
import os
import queue
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PR_SET_NO_NEW_PRIVS = 38
_READ_FILE, _READ_DIR, _WRITE_FILE, _IOCTL_DEVICE = 1 << 2, 1 << 3, 1 << 1, 1 << 15

#: how many rights over files an ABI of Landlock knows, by its number; later ones know no more that concern us
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP = 0b11  # bind, connect; from ABI 4
_SCOPES = 0b11  # abstract sockets and signals of others; from ABI 6

#: read as a whole
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/cuda", "/opt/rocm", "/usr/share/zoneinfo")
#: read: what the loader of libraries, the C library and the libraries' look at the machine need
_FILES = (
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"),
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/filesystems", "/proc/sys/vm", "/sys/devices", "/sys/bus"),
    *("/sys/fs/cgroup", "/sys/kernel/mm", "/sys/class", "/dev/urandom", "/dev/random", "/proc/driver"),
)
#: read by a process that is a sandbox as a whole: of itself. TensorFlow aborts without the first where the program is Python
_OWN = ("/proc/self/cmdline", "/proc/self/maps")
#: read and written
_DEVICES = ("/dev/null", "/dev/zero")
_GPUS = ("nvidia*", "dri", "kfd")  # below /dev


class Unsupported(Exception):
    """The kernel cannot do it. `str()` says why in words joined by underscores, for INFO."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("descriptor", ctypes.c_int32))


_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    """A system call. Raises OSError."""
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def abi() -> int:
    """The version of Landlock that this kernel offers. Raises Unsupported."""
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError as error:
        raise Unsupported(f"off:_{error.strerror or 'no_Landlock'}_(the_kernel_offers_no_Landlock)".replace(" ", "_")) from None


class Sandbox:
    """A set of rules that threads can enter. `whole_process`: it holds all threads, so signals to others can be forbidden as well.

    Raises Unsupported. `state` is what INFO shows.
    """

    def __init__(self, whole_process: bool = False, paths: Sequence[Path] | None = None) -> None:
        self._abi = abi()
        self._rights = (1 << _FILE_RIGHTS[min(self._abi, max(_FILE_RIGHTS))]) - 1
        self._kept: list[int] = []
        scoped = _SCOPES if whole_process and self._abi >= 6 else 0
        rules = _Ruleset(self._rights, _TCP if self._abi >= 4 else 0, scoped)
        size = 8 if self._abi < 4 else 16 if self._abi < 6 else 24
        self._ruleset = _call(_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), ctypes.c_uint32(0))
        os.set_inheritable(self._ruleset, False)
        for path in readable() if paths is None else paths:
            self._allow(path, _READ_FILE | _READ_DIR)
        devices = [found for pattern in _GPUS for found in Path("/dev").glob(pattern)]
        for path in map(Path, _OWN if whole_process else ()):
            self._allow(path, _READ_FILE)
        tempfile.tempdir = tempfile.gettempdir() if paths is None else tempfile.tempdir  # it is found by writing there
        for path in (*map(Path, _DEVICES), *devices):
            self._allow(path, _READ_FILE | _READ_DIR | _WRITE_FILE | _IOCTL_DEVICE)

    @property
    def state(self) -> str:
        net = "" if self._abi >= 4 else "_without_network"
        return f"on:_Landlock_ABI_{self._abi}{net}"

    def _allow(self, path: Path, rights: int) -> None:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # this machine has none
            return
        self._kept.append(descriptor)
        if not path.is_dir():
            rights &= ~_READ_DIR
        rule = _PathBeneath(rights & self._rights, descriptor)
        _call(_ADD_RULE, ctypes.c_int(self._ruleset), ctypes.c_int(1), ctypes.byref(rule), ctypes.c_uint32(0))
        if not str(path).startswith(("/proc", "/sys", "/dev")):
            os.close(self._kept.pop())

    def enter(self) -> None:
        """Restricts the calling thread and those that it starts from now on. Raises OSError."""
        if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
        _call(_RESTRICT_SELF, ctypes.c_int(self._ruleset), ctypes.c_uint32(0))


def readable() -> list[Path]:
    """What has to be read: this package, the standard library, what is installed beside it, and the system's libraries."""
    package = Path(__file__).resolve().parent
    found = {package, *map(Path, (*_LIBRARIES, *_FILES)), Path(sys.executable).resolve().parent, Path(sys.prefix) / "pyvenv.cfg"}
    found |= {Path(path) for path in sysconfig.get_paths().values() if "lib" in Path(path).parts}
    found |= {Path(sys.base_prefix) / name for name in ("lib", "lib64", "pyvenv.cfg")}
    found.add(Path(os.environ.get("HOME", "/nonexistent")) / ".keras" / "keras.json")  # TensorFlow ends its import when it is there unread
    found |= _on_path(package)
    return sorted(path for path in found if path != Path("/"))


def _on_path(package: Path) -> set[Path]:
    """Directories of sys.path, but not a checkout's: that is more than the package, which is allowed for itself."""
    found = set()
    for entry in map(Path, sys.path):
        if entry.is_dir() and (entry.resolve() != package.parent or entry.name in ("site-packages", "dist-packages")):
            found.add(entry)
    return found


def wanted(setting: str, allow_file_ops: bool, whole_process: bool = False) -> tuple[Sandbox | None, str]:
    """The sandbox that SANDBOX asks for, or None, and what INFO shows. Raises ImportError when it is demanded and cannot be had."""
    if setting == "no":
        return None, "no"
    if setting == "auto" and allow_file_ops:
        return None, "off:_ALLOW_FILE_OPS"
    try:
        sandbox = Sandbox(whole_process)
    except (Unsupported, OSError) as error:
        if setting == "yes":
            raise ImportError(f"SANDBOX yes: {error}") from error
        return None, str(error) if isinstance(error, Unsupported) else f"off:_{error}"
    return sandbox, sandbox.state


def relay(write: Callable[[str, str], None]) -> Callable[[str, str], None]:
    """A `write(level, line)` for sandboxed threads: a thread that is none calls the real one, in order."""
    lines: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()

    def pass_on() -> None:
        while True:
            write(*lines.get())

    threading.Thread(target=pass_on, name="ai-log", daemon=True).start()
    return lambda level, line: lines.put((level, line))


def inside(sandbox: Sandbox | None, work: Callable[[], None]) -> None:
    """Does `work` on a thread of its own that has entered the sandbox, and waits for it. Raises what it raises."""
    if sandbox is None:
        return work()
    errors: list[BaseException] = []

    def target() -> None:
        try:
            sandbox.enter()
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, name="ai-start")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return None
