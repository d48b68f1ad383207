"""The lines of a text file, found through the offset of every 64th one.

The file is read once, in chunks of 4 MiB, and never held: 8 bytes for 64 rows stay in memory. What a meta file can't
be (a FIFO, a gzip under a .txt name, a binary, a line of 10 MB) is refused here, by looking before reading.
"""

from __future__ import annotations

import hashlib
import os
import stat
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import ChangedError, MetaFileError, RowError

STRIDE = 64
CHUNK_BYTES = 1 << 22
LONGEST_LINE = 1 << 16
WHITESPACE = b" \t\r\n"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
Read = Callable[[int, int], bytes]  # (count, at) -> that many bytes from there, fewer only at the end
_BINARY = {b"\xff\xfe": "UTF-16 text", b"\xfe\xff": "UTF-16 text", b"PAR1": "Parquet", b"\x89PNG": "a PNG image"}


class LineFile:
    """Rows 0 … rows - 1 of one newline-terminated text file; blank lines at its end are no rows.

    A byte order mark at the start and the CR of CRLF belong to no row. `digest` is a hash of all bytes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd: int | None = None
        with open(open_regular(self.path), "rb", buffering=0) as file:
            self.size_bytes = os.fstat(file.fileno()).st_size
            read = partial(_pread, file.fileno())
            refuse_packed(self.path, read(16, 0))
            self._scan(read)

    def _scan(self, read: Read) -> None:
        self._first = 3 if read(3, 0) == BYTE_ORDER_MARK else 0
        digest = hashlib.blake2b(digest_size=16)
        starts = [np.array([self._first], np.int64)]
        newlines, last_newline, base = 0, self._first - 1, 0
        while chunk := read(CHUNK_BYTES, base):
            digest.update(chunk)
            if b"\0" in chunk:
                line = newlines + chunk[: chunk.index(b"\0")].count(b"\n") + 1
                raise RowError(f"{self.path}:{line}  holds a NUL byte: a meta file is UTF-8 text")
            hits = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + base
            edges = np.concatenate(([last_newline], hits, [base + len(chunk)]))
            if (long := np.flatnonzero(np.diff(edges) > LONGEST_LINE + 1)).size:
                raise RowError(
                    f"{self.path}:{newlines + int(long[0]) + 1}  a line of more than {LONGEST_LINE} bytes: "
                    "a line is 'path label'; is this a meta file?"
                )
            # the row after newline k is row k + 1; those divisible by STRIDE are kept
            starts.append(hits[(STRIDE - 1 - newlines) % STRIDE :: STRIDE] + 1)
            newlines += hits.size
            last_newline = int(edges[-2])
            base += len(chunk)
        if base != self.size_bytes:
            raise ChangedError(f"{self.path} changed while it was read: is something still writing it?")
        self._end = _end_of_text(read, self._first, base)
        if self._end == self._first:
            raise MetaFileError(f"{self.path} is empty: a meta file has one line 'path label' per image")
        blank = sum(read(CHUNK_BYTES, at).count(b"\n") for at in range(self._end, base, CHUNK_BYTES))
        self.rows = newlines - blank + 1
        self._starts = np.concatenate(starts)[: -(-self.rows // STRIDE)]
        self.digest = digest.hexdigest()

    def read(self, row: int) -> bytes:
        """The bytes of one row, without its line end, read from the file."""
        block, within = divmod(row, STRIDE)
        lines = self._block(block, block + 1).split(b"\n")
        if len(lines) != min(STRIDE, self.rows - block * STRIDE):
            raise ChangedError(f"{self.path} changed after it was opened: start the run again")
        return lines[within].removesuffix(b"\r")

    def chunks(self) -> Iterator[tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """All rows in order: (number of the first row, bytes, start of each row in them, end of each row).

        Raises ChangedError at the end if the bytes are not those that were there at the opening.
        """
        digest = hashlib.blake2b(self._read(self._first, 0), digest_size=16)
        # whole strides of about CHUNK_BYTES
        step = max(1, CHUNK_BYTES * len(self._starts) // max(1, self._end))
        for block in range(0, len(self._starts), step):
            stop = min(block + step, len(self._starts))
            text = self._block(block, stop)
            digest.update(text if stop == len(self._starts) else text + b"\n")
            buffer = np.frombuffer(text, np.uint8)
            ends = np.append(np.flatnonzero(buffer == 10), buffer.size).astype(np.int64)
            if ends.size != min(self.rows, stop * STRIDE) - block * STRIDE:
                break
            starts = np.concatenate((np.zeros(1, np.int64), ends[:-1] + 1))
            ends -= (ends > starts) & (buffer[np.maximum(ends - 1, 0)] == 13)
            yield block * STRIDE, buffer, starts, ends
        else:
            for at in range(self._end, self.size_bytes + 1, CHUNK_BYTES):
                digest.update(self._read(CHUNK_BYTES, at))
            if digest.hexdigest() == self.digest:
                return
        raise ChangedError(f"{self.path} changed after it was opened: start the run again")

    def _block(self, block: int, stop: int) -> bytes:
        """The bytes of strides `block` … `stop - 1`, without the last one's final newline."""
        begin = int(self._starts[block])
        end = int(self._starts[stop]) - 1 if stop < len(self._starts) else self._end
        return self._read(end - begin, begin)

    def _read(self, count: int, at: int) -> bytes:
        return _pread(self._open(), count, at)

    def _open(self) -> int:
        if self._fd is None:
            fd = open_regular(self.path)
            weakref.finalize(self, os.close, fd)
            if os.fstat(fd).st_size != self.size_bytes:
                raise ChangedError(f"{self.path} changed after it was opened: start the run again")
            self._fd = fd
        return self._fd

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_fd": None}


class LineText(LineFile):
    """The same over lines that stand in memory and in no file; `path` is what they are about."""

    def __init__(self, path: str | os.PathLike[str], text: bytes) -> None:
        self.path = Path(path)
        self._fd = None
        self._text = text
        self.size_bytes = len(text)
        self._scan(self._read)

    def _read(self, count: int, at: int) -> bytes:
        return self._text[at : at + count]


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


def ends(path: Path, count: int) -> tuple[list[tuple[int, bytes]], int]:
    """(the first and last `count` lines with their line numbers, the number of rows of the file).

    Lines between are not looked at, only counted. Blank lines at the end are left out.
    """
    fd = open_regular(path)
    with open(fd, "rb") as file:
        size = os.fstat(fd).st_size
        reach = 2 * LONGEST_LINE + 64 * 1024
        head = os.pread(fd, 16, 0)
        refuse_packed(path, head)
        if size <= 16 * CHUNK_BYTES:
            text = _pread(fd, size, 0).removeprefix(BYTE_ORDER_MARK).rstrip(WHITESPACE)
            if not text:
                raise MetaFileError(f"{path} is empty: a meta file has one line 'path label' per image")
            lines = list(enumerate(text.split(b"\n"), 1))
            return (lines if len(lines) <= 2 * count else lines[:count] + lines[-count:]), len(lines)
        begun: list[tuple[int, bytes]] = []
        for number in range(1, count + 1):
            begun.append((number, file.readline(reach).removesuffix(b"\n").removeprefix(BYTE_ORDER_MARK)))
        stop = _end_of_text(partial(_pread, fd), 0, size)
        last = max(file.tell(), stop - 4 * CHUNK_BYTES)
        tail = _pread(fd, stop - last, last).split(b"\n")[1:][-count:]
        total = 1 + sum(_pread(fd, min(CHUNK_BYTES, stop - at), at).count(b"\n") for at in range(0, stop, CHUNK_BYTES))
        return begun + [(total - len(tail) + 1 + index, line) for index, line in enumerate(tail)], total


def _pread(fd: int, count: int, at: int) -> bytes:
    """`count` bytes, fewer only at the end of the file."""
    parts: list[bytes] = []
    while count > 0 and (part := os.pread(fd, count, at)):
        parts.append(part)
        count -= len(part)
        at += len(part)
    return b"".join(parts)


def _end_of_text(read: Read, first: int, size: int) -> int:
    """The offset after the last byte that isn't white space."""
    end = size
    while end > first:
        begin = max(first, end - CHUNK_BYTES)
        kept = read(end - begin, begin).rstrip(WHITESPACE)
        if kept:
            return begin + len(kept)
        end = begin
    return first
