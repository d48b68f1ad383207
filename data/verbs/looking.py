"""What `data check` asks of some rows at a time, in any process: is the line good, and is what it names there?"""

from __future__ import annotations

import hashlib
import os
import stat
import time
import warnings
from array import array
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple, Protocol

from ..errors import MAX_PROBLEMS, DataError, ImageError, OutsideRootError, RowError
from ..formats.format import Record
from ..meta import MetaFile

# One file after the other on a local disk: there threads only cost, as they wait for the interpreter's lock (300,000
# files took 2.6 s with one, 5 s with 8, 9 s with 32). A network's file system answers many at once, and shows itself
# by how long the first few take.
SLOW_S = 200e-6
SLOW_THREADS = 16
TRIED = 8

GOOD, MALFORMED, OUTSIDE, MISSING, IRREGULAR, EMPTY, UNREADABLE = range(7)
KINDS = ("good", "malformed", "outside of the root", "missing", "no regular file", "empty", "unreadable")


Item = tuple[int, bytes, Record, str]  # (row, its line, what it says, the file that it names)
NO_SPAN = Record("", 0)[3:]


class Piece(NamedTuple):
    """Consecutive rows, as they are sent to a process."""

    first: int
    text: bytes
    starts: list[int]
    stops: list[int]


class Seen(NamedTuple):
    """What was found in a piece: per row a kind (uint8), a key of what it names (uint64, 0 for a malformed line) and
    a label (int64, a key of them where there are several); rows per label; the first problems as (row, error)."""

    kinds: bytes
    keys: bytes
    labels: bytes
    counts: Counter[int]
    problems: list[tuple[int, DataError]]


class Found(Protocol):
    """Looks at what a record names, the file `full` below `root`; returns what is wrong, or None."""

    def __call__(self, row: int, line: bytes, record: Record, full: str, root: str) -> tuple[int, str] | None: ...


def pieces(meta: MetaFile, rows: int) -> Iterator[Piece]:
    """All rows of a meta file, so many at a time."""
    for first, text, starts, stops in meta.chunks():
        for at in range(0, starts.size, rows):
            begin, end = starts[at : at + rows], stops[at : at + rows]
            base = int(begin[0])
            yield Piece(first + at, text[base : int(end[-1])].tobytes(), (begin - base).tolist(), (end - base).tolist())


class Look:
    """Looks at pieces: at the lines alone, or with `files` at what they name, or with `decode` into it.

    Picklable; each process makes its own reader and remembers what it knows of folders and containers.
    """

    def __init__(self, meta: MetaFile, *, files: bool = True, decode: bool = False) -> None:
        self.meta = meta
        self.files = files
        self.decode = decode
        self._found: Found | None = None
        self._threads: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_found": None, "_threads": None}

    def __call__(self, piece: Piece) -> Seen:
        lines = [piece.text[start:stop] for start, stop in zip(piece.starts, piece.stops, strict=True)]
        root = os.path.join(os.path.abspath(self.meta.root_of(piece.first)), "")  # a piece is of one file
        kinds = bytearray(len(lines))
        keys, labels = array("Q", bytes(8 * len(lines))), array("q", bytes(8 * len(lines)))
        counts: Counter[int] = Counter()
        problems: list[tuple[int, DataError]] = []
        good: list[Item] = []
        for index, line in enumerate(lines):
            row = piece.first + index
            try:
                record = self.meta.record(row, line)
            except (RowError, OutsideRootError) as error:
                kinds[index] = OUTSIDE if isinstance(error, OutsideRootError) else MALFORMED
                problems.append((row, error))
                continue
            full = os.path.join(root, record.path)
            good.append((row, line, record, full))
            span = "" if record[3:] == NO_SPAN else repr(record[3:])
            keys[index] = _hash(f"{os.path.normpath(full)}\0{span}")
            if record.labels is None:
                labels[index] = record.label
                counts[record.label] += 1
            else:
                labels[index] = _hash(repr(record.labels)) >> 1
                counts.update(set(record.labels))
        if self.files or self.decode:
            told = 0
            for (row, _, record, _), wrong in zip(good, self._look_at(root, good), strict=True):
                if wrong is None:
                    continue
                kinds[row - piece.first] = wrong[0]
                if told < MAX_PROBLEMS:  # in words only what may be shown: every row may be bad
                    problems.append((row, self._error(row, record, *wrong)))
                    told += 1
        problems.sort(key=lambda problem: problem[0])
        return Seen(bytes(kinds), keys.tobytes(), labels.tobytes(), counts, problems[:MAX_PROBLEMS])

    def _error(self, row: int, record: Record, kind: int, reason: str) -> DataError:
        if self.meta.in_memory:
            place = str(self.meta.root_of(row) / record.written)
        else:
            place = f"{self.meta.line_of(row)}  {record.written}"
        text = reason if reason.startswith(place) else f"{place}: {reason}"
        return OutsideRootError(text) if kind == OUTSIDE else ImageError(text)

    def _look_at(self, root: str, good: list[Item]) -> Iterator[tuple[int, str] | None]:
        if self._found is None:
            self._found = Decoded(self.meta) if self.decode else Stated(self.meta.allow_outside_root)
        found: Found = self._found

        def at(item: Item) -> tuple[int, str] | None:
            return found(*item, root)

        begun = time.perf_counter()
        yield from map(at, good[:TRIED])
        slow = time.perf_counter() - begun > SLOW_S * TRIED
        if self.decode or not slow:
            yield from map(at, good[TRIED:])
        else:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(SLOW_THREADS)
            yield from self._threads.map(at, good[TRIED:])


class Stated:
    """Is what a record names there, inside of the root, and not empty? A container as far as the record's span, a
    folder of frames as many as it says."""

    def __init__(self, allow_outside_root: bool) -> None:
        self.allow_outside_root = allow_outside_root
        self.real = lru_cache(1 << 16)(_real_folder)

    def __call__(self, row: int, line: bytes, record: Record, full: str, root: str) -> tuple[int, str] | None:
        try:
            facts = os.lstat(full)
            is_link = stat.S_ISLNK(facts.st_mode)
            if not self.allow_outside_root:
                real = os.path.realpath(full) if is_link else self.real(os.path.dirname(full))
                if not real.startswith(self.real(root)):
                    return OUTSIDE, f"leads out of the root {root} by a link (data.allow_outside_root=true lifts this)"
            if is_link:
                facts = os.stat(full)
        except (OSError, ValueError) as error:
            return MISSING, (error.strerror if isinstance(error, OSError) else "") or str(error)
        if record.frames is not None:
            return _frames(full, facts, record.frames)
        if not stat.S_ISREG(facts.st_mode):
            return IRREGULAR, "no regular file"
        if facts.st_size == 0:
            return EMPTY, "the file has zero bytes"
        if record.offset is not None and record.length is not None:
            end = record.offset + record.length
            if end > facts.st_size:
                return UNREADABLE, f"bytes {record.offset} … {end} are wanted, but the file ends at {facts.st_size}"
        return None


class Decoded:
    """Can what a record names be decoded?"""

    def __init__(self, meta: MetaFile) -> None:
        from ..decode import ImageDecoder, UnreadableImage, resolve_decoder
        from ..sampling import SampleReader

        self.first = Stated(meta.allow_outside_root)
        decoder = ImageDecoder(resolve_decoder().name)
        frames = None if meta.kind == "image" else 1
        self.reader = SampleReader(meta, seed=0, transform=None, decoder=decoder, clip_frames=frames)
        self.unreadable = UnreadableImage

    def __call__(self, row: int, line: bytes, record: Record, full: str, root: str) -> tuple[int, str] | None:
        wrong = self.first(row, line, record, full, root)
        if wrong is not None:
            return wrong
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.reader.pixels(row, line)
        except OutsideRootError as error:
            return OUTSIDE, str(error)
        except self.unreadable as error:
            return UNREADABLE, str(error)
        return None


def _frames(full: str, facts: os.stat_result, frames: int) -> tuple[int, str] | None:
    if not stat.S_ISDIR(facts.st_mode):
        return IRREGULAR, "no folder of frames"
    held = sum(1 for name in os.listdir(full) if not name.startswith("."))
    return None if held >= frames else (UNREADABLE, f"{frames} frames are wanted, but the folder holds {held} files")


def _real_folder(path: str) -> str:
    return os.path.join(os.path.realpath(path), "")


def _hash(content: str) -> int:
    """64 bits, never 0."""
    digest = hashlib.blake2b(content.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
