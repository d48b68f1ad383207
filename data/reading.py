"""The bytes of images: whole files, and spans of containers."""

from __future__ import annotations

import io
import os
import stat

from .decode import UnreadableImage
from .index.opening import pread

LARGEST_FILE = 1 << 30
MOST_OPEN = 32


def read_file(path: str) -> bytes:
    """All bytes of a regular file; raises OSError or UnreadableImage, and never waits on a pipe."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_FILE:
            raise UnreadableImage(f"{size} bytes, more than {LARGEST_FILE}")
        return file.readall()


def open_file(path: str) -> io.FileIO:
    """A regular file, opened for reading; raises OSError or UnreadableImage."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return io.FileIO(fd, "rb")
    os.close(fd)
    raise UnreadableImage("no regular file")


class OpenFiles:
    """Reads spans of containers, of which the last few stay open: on a network's file system opening costs more than
    reading. Threads may share it; another process begins with none open."""

    def __init__(self) -> None:
        self._files: dict[str, io.FileIO] = {}

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; raises OSError or UnreadableImage."""
        file = self._files.get(path)
        if file is None:
            file = open_file(path)
            if len(self._files) >= MOST_OPEN:
                # not closed here: another thread may just read from it, and who has it last closes it
                self._files.pop(next(iter(self._files), ""), None)
            self._files[path] = file
        size = os.fstat(file.fileno()).st_size
        if offset + length > size:
            raise UnreadableImage(f"the span of {length} bytes from {offset} goes past the end of the file, {size}")
        if length > LARGEST_FILE:
            raise UnreadableImage(f"a span of {length} bytes, more than {LARGEST_FILE}")
        return pread(file.fileno(), length, offset)

    def __getstate__(self) -> dict[str, object]:
        return {"_files": {}}
