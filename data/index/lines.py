"""The lines of a text file, found through its census; none of them is kept in memory.

Row r of a file with s header lines stands behind line feed number r + s (counted from 1), so the census tells the
page of 4 KiB in which it begins. What is read is compared with the census page by page, and where the file's size,
time of change or inode is not what it was, all of it is compared before anything is taken from it.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MetaFileError
from ..memory import MemoryFile
from .census import LONGEST_LINE, Census, census_of, changed, cpus, identity, open_census, trusted
from .opening import BYTE_ORDER_MARK, WHITESPACE, empty, end_of_text, open_regular, pread, refuse_packed
from .scan import LINE_FEED, PAGE, PAGES_PER_SPAN, SPAN, scan

__all__ = ["LONGEST_LINE", "WHITESPACE", "LineFile", "LineText", "ends"]

CHUNK_BYTES = 1 << 22
BATCH_BYTES = 1 << 20
# So many pages that nobody asked for are read rather than begin another read. Measured with one row of 1,024: 1 is 2 %
# better than none, 4 is 30 % worse, since what is read is searched as well.
GAP_PAGES = 1
# From so many wanted rows of a span on it is read in one piece, and no page is looked up for each row.
DENSE_ROWS = PAGES_PER_SPAN // 2
CARRIAGE_RETURN = 13

Rows = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Batch = tuple[int, int, Bytes, Rows, Rows]


class _Room:
    """Memory for the bytes of one batch after the other: new memory for each would cost more than the reading, in
    page faults (0.17 of 0.37 s for one row of 1,024 of 50 million)."""

    def __init__(self) -> None:
        self._text = np.empty(0, np.uint8)
        self._is_feed = np.empty(0, np.bool_)

    def of(self, size: int) -> tuple[Bytes, npt.NDArray[np.bool_]]:
        if size > self._text.size:
            self._text = np.empty(size + size // 4, np.uint8)
            self._is_feed = np.empty(self._text.size, np.bool_)
        return self._text[:size], self._is_feed[:size]


class LineFile:
    """Rows 0 … rows - 1 of one newline-terminated text file; blank lines at its end are no rows, nor are the first
    `skip` lines.

    A byte order mark at the start and the CR of CRLF belong to no row. `digest` is the census's fingerprint, of all
    bytes. `read_bytes` counts what was read through this object, after the census.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        skip: int = 0,
        cache: str | os.PathLike[str] | None = None,
        threads: int | None = None,
    ) -> None:
        self._begin(Path(path), open_census(path, cache=cache, threads=threads), skip)

    def _begin(self, path: Path, census: Census, skip: int) -> None:
        self.path = path
        self.census = census
        self.skip = skip
        self.rows = census.rows - skip
        self.size_bytes = census.size_bytes
        self.read_bytes = 0
        self._fd: int | None = None
        self._known = census.identity
        if self.rows <= 0:
            raise MetaFileError(f"{path} has a header and no row below it: one line per image is wanted")

    @property
    def digest(self) -> str:
        return self.census.fingerprint

    def line_number(self, row: int) -> int:
        """The number of a row's line, from 1, as editors count."""
        return row + self.skip + 1

    def read(self, row: int) -> bytes:
        """The bytes of one row, without its line end, read from the file; raises ChangedError."""
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        # apart from `gather`, whose arithmetic over many rows takes ten times as long for one
        feed, census = row + self.skip, self.census
        begin, before = census.page_of(feed)
        stop = census.page_of(feed + 1)[0] + 1
        text = bytearray(min(stop * PAGE, self.size_bytes) - begin * PAGE)
        got = self._fill(memoryview(text), begin * PAGE)
        self.read_bytes += got
        found = [text.count(b"\n", at, at + PAGE) for at in range(0, len(text), PAGE)]
        if got != len(text) or found != census.counts[begin:stop].tolist():
            raise changed(self.path)
        self._check_unchanged()
        if feed == census.rows - 1:  # it may have no line feed behind it
            del text[census.header.end - begin * PAGE :]
        line = text.split(b"\n")[feed - before]
        return bytes(line[census.header.first if feed == 0 else 0 :].removesuffix(b"\r"))

    def chunks(self) -> Iterator[tuple[int, Bytes, Rows, Rows]]:
        """All rows in order: (number of the first row, bytes, start of each row in them, end of each row).

        Raises ChangedError if the bytes are not those that were there at the opening.
        """
        step = max(1, CHUNK_BYTES * self.rows // self.size_bytes)
        for begin in range(0, self.rows, step):
            rows = np.arange(begin, min(begin + step, self.rows))
            for low, _, text, starts, stops in self._gathered(rows, 1, reuse=False):
                first = int(starts[0])
                yield begin + low, text[first : stops[-1]], starts - first, stops - first

    def gather(self, rows: Rows, threads: int = 1) -> Iterator[Batch]:
        """Chosen rows, sorted and each at most once: batches (low, high, bytes, start of each of rows[low:high] in
        them, end of each). The bytes begin at an address divisible by 8, hold other rows too, go on for 8 bytes or
        more after the last row, and are overwritten by the next batch.

        Only the pages that hold the rows are read, 1 or 2 MiB per batch, by `threads` threads ahead. Raises
        ChangedError if the bytes are not those that were there at the opening.
        """
        return self._gathered(rows, max(1, threads), reuse=True)

    def _gathered(self, rows: Rows, threads: int, *, reuse: bool) -> Iterator[Batch]:
        if rows.size == 0:
            return
        self._check_unchanged()
        feeds = rows + self.skip
        batches = self._batches(feeds)
        rooms = cycle([_Room() for _ in range(min(len(batches), threads + 1))])
        if threads == 1 or len(batches) == 1:
            for low, high, wanted in batches:
                yield (low, high, *self._batch(feeds[low:high], wanted, next(rooms) if reuse else _Room()))
        else:
            with ThreadPoolExecutor(threads) as pool:
                ahead: deque[tuple[int, int, Future[tuple[Bytes, Rows, Rows]]]] = deque()
                for low, high, wanted in batches:
                    ahead.append((low, high, pool.submit(self._batch, feeds[low:high], wanted, next(rooms))))
                    if len(ahead) > threads:
                        low, high, batch = ahead.popleft()
                        yield (low, high, *batch.result())
                for low, high, batch in ahead:
                    yield (low, high, *batch.result())
        self._check_unchanged()

    def unit_starts(self, unit_bytes: int) -> Rows:
        """How many rows stand before each unit of `unit_bytes` (a multiple of 4,096) of the file, then `rows`: a row
        belongs to the unit in which the line feed before it lies, the first one to the first unit. [U + 1]"""
        if unit_bytes <= 0 or unit_bytes % PAGE:
            raise ValueError(f"unit_bytes {unit_bytes} is no multiple of {PAGE}")
        units = -(-self.size_bytes // unit_bytes)
        starts = np.zeros(units + 1, np.int64)
        starts[1:units] = self.census.before_pages(np.arange(1, units) * (unit_bytes // PAGE)) + 1 - self.skip
        starts[units] = self.rows
        return np.clip(starts, 0, self.rows)

    def _batches(self, feeds: Rows) -> list[tuple[int, int, Rows]]:
        """Cuts sorted line feed numbers where the rows behind them take about BATCH_BYTES to read: (first one of a
        batch, after the last one, how many of them are in each span)."""
        totals = self.census.totals
        first, last = np.maximum(np.searchsorted(totals, feeds[[0, -1]]) - 1, 0).tolist()
        # how many lie before the end of each span
        until = np.searchsorted(feeds, totals[first + 1 : last + 1], side="right")
        until = np.concatenate((until, [feeds.size]))
        wanted = np.diff(until, prepend=0)
        # rows that lie alone take less of a batch than what is read for them: such batches are better twice as large
        cost = np.cumsum(np.where(wanted < DENSE_ROWS, wanted * (PAGE // 2), SPAN))
        cuts = np.searchsorted(cost, np.arange(BATCH_BYTES, int(cost[-1]), BATCH_BYTES)) + 1
        edges = np.unique(np.concatenate(([0], cuts, [until.size]))).tolist()
        begins = [0, *until[np.array(edges[1:]) - 1].tolist()]
        cut = zip(begins, begins[1:], edges, edges[1:], strict=False)
        return [(low, high, wanted[span:stop]) for low, high, span, stop in cut if low < high]

    def _batch(self, feeds: Rows, wanted: Rows, room: _Room) -> tuple[Bytes, Rows, Rows]:
        """The bytes of the rows behind these line feeds, of which spans hold so many each, and where in them each
        row starts and stops."""
        census = self.census
        pieces = _pieces(wanted)
        after = np.concatenate((pieces[1:], [feeds.size]))
        pages = census.pages_of(np.concatenate((feeds[pieces], feeds[after - 1] + 1)))
        begin, stop = pages[: pieces.size], pages[pieces.size :] + 1
        apart = np.flatnonzero(begin[1:] > stop[:-1] + GAP_PAGES)
        begin, stop = begin[np.concatenate(([0], apart + 1))], stop[np.concatenate((apart, [stop.size - 1]))]
        text, hits = self._read_pages(begin, stop, room)
        ends = np.cumsum(stop - begin)
        # line feeds that stand before each read in the bytes read, less those in the file: what makes one number of
        # the other
        earlier = np.searchsorted(hits, (ends - (stop - begin)) * PAGE) - census.before_pages(begin)
        rows_per_read = np.diff(np.concatenate(([0], after[apart], [feeds.size])))
        at = feeds + np.repeat(earlier, rows_per_read)
        if feeds[-1] == census.rows - 1:
            # the last row may have no line feed behind it
            hits = np.concatenate((hits, [text.size]))
        stops = hits[at]
        at -= 1
        starts = hits[at]
        starts += 1
        if feeds[0] == 0:
            starts[0] = census.header.first
        if feeds[-1] == census.rows - 1:
            stops[-1] = census.header.end - int(stop[-1] - ends[-1]) * PAGE
        stops -= (stops > starts) & (text[stops - 1] == CARRIAGE_RETURN)
        return text, starts, stops

    def _read_pages(self, begin: Rows, stop: Rows, room: _Room) -> tuple[Bytes, Rows]:
        """The bytes of the pages begin[i] … stop[i] - 1, one run after the other, and where line feeds are in them."""
        lengths = stop - begin
        total = int(lengths.sum())
        at = total * PAGE
        buffer, is_feed = room.of(at + 8)
        got = self._fill_runs(buffer.data, (begin * PAGE).tolist(), (lengths * PAGE).tolist())
        self.read_bytes += got
        # the page that the file ends in is shorter
        expected = at - max(0, int(stop[-1]) * PAGE - self.size_bytes)
        buffer[expected:] = LINE_FEED
        hits = np.flatnonzero(np.equal(buffer[:expected], LINE_FEED, out=is_feed[:expected]))
        found = np.diff(np.searchsorted(hits, np.arange(0, at + 1, PAGE)))
        numbers = np.arange(total) + np.repeat(stop - np.cumsum(lengths), lengths)
        if got != expected or not np.array_equal(found, self.census.counts[numbers]):
            raise changed(self.path)
        return buffer, hits

    def _fill(self, buffer: memoryview, at: int) -> int:
        fd = self._open()
        done = os.preadv(fd, [buffer], at)
        while done < len(buffer) and (got := os.preadv(fd, [buffer[done:]], at + done)):
            done += got
        return done

    def _fill_runs(self, buffer: memoryview, begins: list[int], counts: list[int]) -> int:
        """Fills the buffer with `counts[i]` bytes from `begins[i]`, one after the other; returns how many it got."""
        fd, preadv = self._open(), os.preadv
        at = got = 0
        for begin, count in zip(begins, counts, strict=True):
            done = preadv(fd, [buffer[at : at + count]], begin)
            # less than asked for: the end of the file, or a file system that gives what it has
            got += done if done == count else done + self._fill(buffer[at + done : at + count], begin + done)
            at += count
        return got

    def _open(self) -> int:
        if self._fd is None:
            fd = open_regular(self.path)
            weakref.finalize(self, os.close, fd)
            self._fd = fd
        return self._fd

    def _check_unchanged(self) -> None:
        """Raises ChangedError unless the file is the one of the census."""
        now = identity(os.fstat(self._open()))
        if now != self._known:
            counted = scan(self._fill, self.size_bytes, cpus(4)) if now[0] == self.size_bytes else None
            if counted is None or counted.fingerprint() != self.digest:
                raise changed(self.path)
            self._known = now

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fd": None, "read_bytes": 0}


class LineText(LineFile):
    """The same over lines that stand in memory and in no file; `path` is what they are about."""

    def __init__(self, path: str | os.PathLike[str], text: bytes) -> None:
        self._text = MemoryFile.of(text)
        self._map: Any = None
        header, body = census_of(Path(path), partial(_copy, memoryview(text)), len(text))
        self._begin(Path(path), Census(Path(path), header, body, shared=True), 0)

    def _fill(self, buffer: memoryview, at: int) -> int:
        if self._map is None:
            self._map = memoryview(self._text.map())
        return _copy(self._map, buffer, at)

    def _fill_runs(self, buffer: memoryview, begins: list[int], counts: list[int]) -> int:
        spans = zip(begins, counts, accumulate(counts), strict=True)
        return sum(self._fill(buffer[end - count : end], begin) for begin, count, end in spans)

    def _check_unchanged(self) -> None:
        """Nobody else can change it."""

    def _open(self) -> int:
        return self._text.fd

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_map": None}


def ends(
    path: Path, count: int, *, cache: str | os.PathLike[str] | None = None, most_bytes: int | None = None
) -> tuple[list[tuple[int, bytes]], int]:
    """(the first and last `count` lines with their line numbers, the number of lines of the file).

    Lines between are not looked at, only counted, or not even that where a census tells. Blank lines at the end are
    left out. Of a file without a census that is larger than `most_bytes`, only so many are counted, and the number of
    lines, like those of the last ones, is an estimate.
    """
    fd = open_regular(path)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        size = status.st_size
        reach = 2 * LONGEST_LINE + 64 * 1024
        refuse_packed(path, os.pread(fd, 16, 0))
        if size <= 16 * CHUNK_BYTES:
            text = pread(fd, size, 0).removeprefix(BYTE_ORDER_MARK).rstrip(WHITESPACE)
            if not text:
                raise empty(path)
            lines = list(enumerate(text.split(b"\n"), 1))
            return (lines if len(lines) <= 2 * count else lines[:count] + lines[-count:]), len(lines)
        begun: list[tuple[int, bytes]] = []
        for number in range(1, count + 1):
            begun.append((number, file.readline(reach).removesuffix(b"\n").removeprefix(BYTE_ORDER_MARK)))
        stop = end_of_text(partial(pread, fd), 0, size)
        last = max(file.tell(), stop - 4 * CHUNK_BYTES)
        tail = pread(fd, stop - last, last).split(b"\n")[1:][-count:]
        known = trusted(path, status, cache)
        if known is not None:
            total = known.rows
        else:
            until = stop if most_bytes is None else min(stop, most_bytes)
            counted = scan(lambda buffer, at: os.preadv(fd, [buffer], at), until, cpus(4))
            total = 1 + round(counted.line_feeds * stop / until)
        return begun + [(total - len(tail) + 1 + index, line) for index, line in enumerate(tail)], total


def _pieces(wanted: Rows) -> Rows:
    """Of rows of which spans hold so many each: where a piece of the file begins that is read whole. That is each
    row, but in spans of which many are wanted only the first one."""
    single = np.repeat(wanted < DENSE_ROWS, wanted)
    begins = np.cumsum(wanted) - wanted
    single[begins[wanted > 0]] = True
    return np.flatnonzero(single)


def _copy(source: memoryview, buffer: memoryview, at: int) -> int:
    part = source[at : at + len(buffer)]
    buffer[: len(part)] = part
    return len(part)
