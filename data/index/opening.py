"""Opening a meta file: what can't be one is refused by looking, before anything waits or reads on."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from ..errors import MetaFileError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WHITESPACE = b" \t\r\n"
LOOK_BYTES = 1 << 20

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
_BINARY = {b"\xff\xfe": "UTF-16 text", b"\xfe\xff": "UTF-16 text", b"PAR1": "Parquet", b"\x89PNG": "a PNG image"}


def open_regular(path: Path) -> int:
    """A file descriptor for reading a regular file; anything else is refused without waiting on it."""
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would hang
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        here = "" if path.is_absolute() else f" Paths are relative to the current folder {Path.cwd()}"
        raise MetaFileError(f"meta file {path}: {reason}; is the path right?{here}") from None
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise MetaFileError(f"{path} is a folder where a meta file is wanted (a text file of lines 'path label')")
    raise MetaFileError(f"{path} is no regular file (a pipe or a device): a meta file is read more than once")


def refuse_packed(path: Path, head: bytes) -> None:
    """Refuses what isn't text by its first bytes, whatever its name says."""
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            raise MetaFileError(f"{path} is {name}-compressed: unpack it first")
    for magic, name in _BINARY.items():
        if head.startswith(magic):
            raise MetaFileError(f"{path} is {name}: a meta file is UTF-8 text with lines 'path label'")


def empty(path: Path) -> MetaFileError:
    """What is raised for a file without a single row."""
    return MetaFileError(f"{path} is empty: a meta file has one line 'path label' per image")


def pread(fd: int, count: int, at: int) -> bytes:
    """`count` bytes, fewer only at the end of the file."""
    parts: list[bytes] = []
    while count > 0 and (part := os.pread(fd, count, at)):
        parts.append(part)
        count -= len(part)
        at += len(part)
    return b"".join(parts)


def end_of_text(read: Callable[[int, int], bytes], first: int, size: int) -> int:
    """The offset after the last byte that isn't white space, `first` if there is none; `read(count, at)` reads."""
    end = size
    while end > first:
        begin = max(first, end - (4096 if end == size else LOOK_BYTES))
        if kept := read(end - begin, begin).rstrip(WHITESPACE):
            return begin + len(kept)
        end = begin
    return first
