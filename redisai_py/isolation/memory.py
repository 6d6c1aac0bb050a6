"""Memory that the server and a helper share: one writes, the other reads.

The server makes it (memfd_create: no name in any file system, gone with its last user) and seals its size, so that reading it can never
fault. It grows by being replaced. What a large run used is given back to the system afterwards, the addresses stay.
"""

from __future__ import annotations

import fcntl
import mmap
import os

ALIGNMENT = 64
SMALLEST = 1 << 20
KEPT = 64 << 20  # bytes that stay in use between runs
LARGEST = 1 << 36  # a helper that asks for more has lost its mind


class SharedMemory:
    """`map` is the memory, `size` its bytes, `fd` the descriptor to send, until `close_descriptor()`."""

    __slots__ = ("fd", "map", "size")

    def __init__(self, fd: int) -> None:
        """Takes over the descriptor. Raises OSError when it cannot be mapped, ValueError when its size can still change."""
        self.fd = fd
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise ValueError("shared memory that could shrink")
        self.size = os.fstat(fd).st_size
        self.map = mmap.mmap(fd, self.size)

    def close_descriptor(self) -> None:
        """The other side has its own by now. The mapping stays until the last array that looks into it is gone."""
        os.close(self.fd)

    @classmethod
    def of_size(cls, least: int) -> SharedMemory:
        """New memory of at least so many bytes. Raises MemoryError."""
        size = SMALLEST
        while size < least:
            size *= 2
        if size > LARGEST:
            raise MemoryError(f"{least} bytes do not fit into shared memory")
        fd = os.memfd_create("redisai", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return cls(fd)

    def give_back(self) -> None:
        """Lets the system have the pages beyond KEPT; what they held is zero afterwards. Either side, when nothing there is needed."""
        if self.size > KEPT:
            self.map.madvise(mmap.MADV_REMOVE, KEPT, self.size - KEPT)


def aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
