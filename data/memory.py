"""Anonymous memory that processes share by handle.

Nothing has a name in /dev/shm or in a folder: the kernel frees it with the last process that holds it, however that
one ends. Its size is no matter of /dev/shm either, which containers like to make tiny.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from typing import Any


class MemoryFile:
    """A file without a name. Workers get the same one under fork, forkserver and spawn; pickled otherwise it is
    copied."""

    def __init__(self, fd: int | None = None, *, name: str = "rankrun") -> None:
        self.fd = _anonymous(name) if fd is None else fd
        self._close = weakref.finalize(self, os.close, self.fd)

    @classmethod
    def of(cls, content: bytes) -> MemoryFile:
        """A new file that holds these bytes."""
        file = cls()
        write_all(file.fd, content, 0)
        return file

    def __len__(self) -> int:
        return os.fstat(self.fd).st_size

    def map(self) -> mmap.mmap:
        """Its bytes as they are now, for reading; no copy. Raises ValueError for an empty file."""
        return mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ)

    def close(self) -> None:
        """Closes this handle; other processes keep theirs."""
        self._close()

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is not None:
            return _from_handle, (reduction.DupFd(self.fd),)
        return MemoryFile.of, (bytes(self.map()) if len(self) else b"",)


def write_all(fd: int, content: bytes | memoryview, at: int) -> int:
    """Writes all bytes at an offset, however many the kernel takes at once; returns the offset behind them."""
    view = memoryview(content).cast("B")
    while view:
        done = os.pwrite(fd, view, at)
        at, view = at + done, view[done:]
    return at


def _from_handle(handle: Any) -> MemoryFile:
    return MemoryFile(handle.detach())


def _anonymous(name: str) -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    # macOS has none: a file that is unlinked before anything is written to it
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
