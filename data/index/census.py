"""The census of a meta file: where its lines are and what they hold, in 0.08 % of its size.

It is made once, by reading the file in threads, and kept in a sidecar. A sidecar is believed without reading the file
again if it is whole, of this version, of a file of this size and time of change, and if the file was read at least
2 s after that time: within the clock's grain a file can change without its time showing it. Otherwise the file is
read; if it is the same one, only the header becomes another.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ChangedError, RowError
from ..memory import MemoryFile
from .opening import BYTE_ORDER_MARK, empty, end_of_text, open_regular, pread, refuse_packed
from .scan import PAGE, PAGES_PER_SPAN, SPAN, Counted, Fill, scan
from .sidecar import VERSION, Found, Header, look, places, publish

LONGEST_LINE = 1 << 16
SMALL_BYTES = 8 << 20
SETTLED_NS = 2_000_000_000

Rows = npt.NDArray[np.int64]
Identity = tuple[int, int, int]  # size, time of change in ns, inode
Read = Callable[[int, int], bytes]  # (count, at) -> that many bytes from there, fewer only at the end


class Census:
    """What is known of one file. Equal bytes have equal fingerprints, whatever their path.

    `sidecar` is where it is kept, None if only in memory. Pickled, it goes without its arrays.
    """

    def __init__(self, path: Path, header: Header, body: Path | bytes, *, inode: int = 0, shared: bool = False) -> None:
        """`body` is a sidecar's path, or what would be in it: workers then share it by handle if it is large or if
        `shared` says so (the file can't be read again), else they read the small file again."""
        self.path = path
        self.header = header
        self.sidecar = body if isinstance(body, Path) else None
        self.inode = inode
        self._memory: MemoryFile | None = None
        self._body: memoryview | None = None
        if isinstance(body, bytes):
            self._body = memoryview(body)
            if shared or header.size_bytes >= SMALL_BYTES:
                self._memory = MemoryFile.of(body)

    @property
    def rows(self) -> int:
        """Lines, without blank ones at the end."""
        return self.header.rows

    @property
    def size_bytes(self) -> int:
        return self.header.size_bytes

    @property
    def identity(self) -> Identity:
        """Size, time of change and inode that the file had."""
        return self.header.size_bytes, self.header.mtime_ns, self.inode

    @property
    def fingerprint(self) -> str:
        """32 hex digits over size, counts and sums."""
        return self.header.fingerprint

    @property
    def totals(self) -> npt.NDArray[np.int64]:
        """Line feeds before each span of 64 KiB."""
        return np.frombuffer(self._mapped(), "<i8", self.header.spans)

    @property
    def sums(self) -> npt.NDArray[np.uint64]:
        """The content of each span, as a number."""
        return np.frombuffer(self._mapped(), "<u8", self.header.spans, 8 * self.header.spans)

    @property
    def counts(self) -> npt.NDArray[np.uint16]:
        """Line feeds of each page of 4 KiB."""
        return np.frombuffer(self._mapped(), "<u2", self.header.pages, 16 * self.header.spans)

    @property
    def labels(self) -> dict[str, Any] | None:
        """What `with_labels` was given last; None where nobody gave anything."""
        blob = bytes(self._mapped()[self.header.body_bytes - self.header.labels_bytes :])
        found: dict[str, Any] | None = json.loads(blob) if blob else None
        return found

    def with_labels(self, labels: dict[str, Any]) -> Census:
        """The same census with these labels (what JSON can hold) in place of others, its sidecar rewritten if it has
        one."""
        blob = json.dumps(labels).encode()
        body = bytes(self._mapped()[: self.header.body_bytes - self.header.labels_bytes]) + blob
        header = replace(self.header, labels_bytes=len(blob))
        if self.sidecar is not None and (written := publish(self.sidecar, header, body)):
            return Census(self.path, written, self.sidecar, inode=self.inode)
        return Census(self.path, header, body, inode=self.inode, shared=self._memory is not None)

    def pages_of(self, feeds: Rows) -> Rows:
        """The page in which each of these line feeds lies, counted from 1; page 0 for number 0, the last page with
        text for those after the last."""
        spans = np.maximum(np.searchsorted(self.totals, feeds) - 1, 0)
        # the pages of the last span may be fewer
        within = np.minimum(spans[:, None] * PAGES_PER_SPAN + np.arange(PAGES_PER_SPAN), self.header.pages - 1)
        passed = self.totals[spans][:, None] + np.cumsum(self.counts[within], axis=1, dtype=np.int64)
        pages: Rows = spans * PAGES_PER_SPAN + np.count_nonzero(passed < feeds[:, None], axis=1)
        return np.minimum(pages, (self.header.end - 1) // PAGE)

    def page_of(self, feed: int) -> tuple[int, int]:
        """The page of one line feed, as `pages_of` has it, and how many stand before that page."""
        totals = self.totals
        span = max(int(np.searchsorted(totals, feed)) - 1, 0)
        page, before = span * PAGES_PER_SPAN, int(totals[span])
        for count in self.counts[page : page + PAGES_PER_SPAN].tolist():
            if before + count >= feed:
                break
            page, before = page + 1, before + count
        return min(page, (self.header.end - 1) // PAGE), before

    def before_pages(self, pages: Rows) -> Rows:
        """Line feeds of the file before each of these pages."""
        spans = pages // PAGES_PER_SPAN
        within = np.minimum(spans[:, None] * PAGES_PER_SPAN + np.arange(PAGES_PER_SPAN), self.header.pages - 1)
        earlier: Rows = np.where(within < pages[:, None], self.counts[within], 0).sum(axis=1, dtype=np.int64)
        return self.totals[spans] + earlier

    def _mapped(self) -> memoryview:
        if self._body is None and self._memory is not None:
            self._body = memoryview(self._memory.map())
        if self._body is None:
            found = Found() if self.sidecar is None else look(self.sidecar)
            if found.header is not None and found.header.fingerprint == self.fingerprint:
                self.header, self._body = found.header, found.body
            else:
                fresh = open_census(self.path)
                if fresh.fingerprint != self.fingerprint:
                    raise changed(self.path)
                self.header, self._body = fresh.header, fresh._mapped()
        return self._body

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_body": None}


def open_census(
    path: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    force: bool = False,
) -> Census:
    """The census of a file: from a sidecar that is believed, else made now by `threads` threads and kept.

    It is kept beside the file, or in the folder `cache` where that can't be written, or in memory. A file below 8 MiB
    gets a sidecar only by `force`: reading it takes milliseconds. Raises MetaFileError, RowError (a line of more than
    64 KiB) or ChangedError (something still writes the file).
    """
    path = Path(path)
    fd = open_regular(path)
    try:
        refuse_packed(path, pread(fd, 16, 0))
        known = os.fstat(fd)
        free: list[Path] = []
        stale: list[Found] = []
        for place in places(path, None if cache is None else Path(cache)):
            found = look(place)
            if not found.foreign:
                free.append(place)
            if found.header is not None and found.header.size_bytes == known.st_size and found.whole:
                if _is_of(found, known):
                    return Census(path, found.header, place, inode=known.st_ino)
                stale.append(found)
        began = time.monotonic()
        header, body = census_of(path, partial(_fill, fd), known.st_size, threads or cpus(4))
        if identity(os.fstat(fd)) != identity(known):
            raise still_written(path)
    finally:
        os.close(fd)
    header = replace(header, mtime_ns=known.st_mtime_ns)
    for found in stale:
        if found.header is not None and found.header.fingerprint == header.fingerprint and found.header.labels_bytes:
            header = replace(header, labels_bytes=found.header.labels_bytes)
            body += bytes(found.body[found.header.body_bytes - found.header.labels_bytes :])
            break
    if force or stale or header.size_bytes >= SMALL_BYTES:
        for place in free:
            if written := publish(place, header, body, began=began):
                return Census(path, written, place, inode=known.st_ino)
    return Census(path, header, body, inode=known.st_ino)


def trusted(path: Path, status: os.stat_result, cache: str | os.PathLike[str] | None = None) -> Header | None:
    """The header of a sidecar that is believed of a file with this status."""
    for place in places(path, None if cache is None else Path(cache)):
        found = look(place)
        if _is_of(found, status) and found.whole:
            return found.header
    return None


def census_of(path: Path, fill: Fill, size: int, threads: int = 1) -> tuple[Header, bytes]:
    """The header (without times) and the body of a census of `size` bytes that `fill` reads.

    Raises MetaFileError if there is no row, RowError for a line that is too long, ChangedError for bytes that ended
    early; `path` is what their messages name.
    """

    def read(count: int, at: int) -> bytes:
        buffer = bytearray(count)
        return bytes(buffer[: fill(memoryview(buffer), at)])

    counted = scan(fill, size, threads)
    if counted.size_bytes != size:
        raise still_written(path)
    first = 3 if read(3, 0) == BYTE_ORDER_MARK else 0
    end = end_of_text(read, first, size)
    if end == first:
        raise empty(path)
    _refuse_long_lines(path, read, counted, first)
    blank = sum(read(min(SPAN, size - at), at).count(b"\n") for at in range(end, size, SPAN))
    body = b"".join(
        (
            counted.totals.astype("<i8").tobytes(),
            counted.sums.astype("<u8").tobytes(),
            counted.counts.astype("<u2").tobytes(),
        )
    )
    header = Header(
        version=VERSION,
        size_bytes=size,
        mtime_ns=0,
        read_ns=0,
        rows=counted.line_feeds - blank + 1,
        first=first,
        end=end,
        fingerprint=counted.fingerprint(),
        pages=counted.counts.size,
        labels_bytes=0,
    )
    return header, body


def cpus(at_most: int) -> int:
    """Processors that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(at_most, usable)


def still_written(path: Path) -> ChangedError:
    return ChangedError(f"{path} changed while it was read: is something still writing it?")


def changed(path: Path) -> ChangedError:
    return ChangedError(f"{path} changed after it was opened: start the run again")


def _is_of(found: Found, status: os.stat_result) -> bool:
    """Whether a sidecar, if it is whole, needs no reading of the file to be believed."""
    header = found.header
    if header is None or (header.size_bytes, header.mtime_ns) != identity(status)[:2]:
        return False
    return header.read_ns - header.mtime_ns >= SETTLED_NS


def identity(status: os.stat_result) -> Identity:
    """What tells without reading that a file is another one."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def _fill(fd: int, buffer: memoryview, at: int) -> int:
    done = os.preadv(fd, [buffer], at)
    while done < len(buffer) and (got := os.preadv(fd, [buffer[done:]], at + done)):
        done += got
    return done


def _refuse_long_lines(path: Path, read: Read, counted: Counted, first: int) -> None:
    """Raises RowError for the first line of more than 64 KiB: only around pages without a line feed can one be."""
    for begin, stop in _runs_of_zero(counted.counts):
        if stop - begin < LONGEST_LINE // PAGE - 1:
            continue
        before = read(PAGE, (begin - 1) * PAGE).rfind(b"\n") + (begin - 1) * PAGE if begin else first - 1
        after = read(PAGE, stop * PAGE).find(b"\n") + stop * PAGE if stop < counted.counts.size else counted.size_bytes
        if after - before - 1 > LONGEST_LINE:
            line = int(counted.counts[:begin].sum(dtype=np.int64)) + 1
            raise RowError(
                f"{path}:{line}  a line of more than {LONGEST_LINE} bytes: a line is 'path label'; is this a meta file?"
            )


def _runs_of_zero(counts: npt.NDArray[np.uint16]) -> Iterator[tuple[int, int]]:
    """(first, after the last) of every run of zeros."""
    edges = np.flatnonzero(np.diff(np.concatenate(([1], counts != 0, [1])).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
