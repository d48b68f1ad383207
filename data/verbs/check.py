"""`data check`: is every row of a meta file, or of a tree of class folders, good? Needs numpy only, but to decode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import MAX_PROBLEMS, DataError, ImageError, RowError
from ..meta import MetaFile
from .crew import in_processes
from .looking import GOOD, KINDS, MISSING, Look, Seen, pieces
from .progress import Progress

ROWS_AT_ONCE, IMAGES_AT_ONCE = 1024, 64
FEW_ROWS, FEW_IMAGES = 4096, 128  # so many are looked at here: a process costs more than they do
PARTS = 16  # keys are sorted in so many parts, to need less memory at once

Rows = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


def _none() -> Rows:
    return np.empty(0, np.int64)


@dataclass
class Report:
    """What a look at every row found.

    kinds: uint8 per row, an index into looking.KINDS. counts: rows per label, int64 [num_classes]. problems: the
    first as (row, error). repeats: rows that mean what an earlier row, the one in `repeated`, means already;
    conflicts: how many of them have another label than that one. overlaps: rows whose file stands in `against` too,
    there in row `overlapped`.
    """

    meta: MetaFile
    kinds: npt.NDArray[np.uint8]
    counts: npt.NDArray[np.int64]
    problems: list[tuple[int, DataError]] = field(default_factory=list)
    repeats: Rows = field(default_factory=_none)
    repeated: Rows = field(default_factory=_none)
    conflicts: int = 0
    against: MetaFile | None = None
    overlaps: Rows = field(default_factory=_none)
    overlapped: Rows = field(default_factory=_none)

    @property
    def bad(self) -> int:
        """How many rows can't be used."""
        return int(np.count_nonzero(self.kinds))

    @property
    def found(self) -> dict[str, int]:
        """How many rows there are of each kind that isn't good."""
        tally = np.bincount(self.kinds, minlength=len(KINDS)).tolist()
        return {kind: number for kind, number in zip(KINDS[1:], tally[1:], strict=True) if number}

    @property
    def left_out(self) -> npt.NDArray[np.bool_]:
        """The rows that a clean list does without: bad ones, repeats, overlaps."""
        out: npt.NDArray[np.bool_] = self.kinds != GOOD
        out[self.repeats] = True
        out[self.overlaps] = True
        return out

    def errors(self) -> list[DataError]:
        """The first problems of each kind of look, in the order of the file: at most 20, and one that counts on."""
        told = [error for _, error in self.problems[:MAX_PROBLEMS]]
        first = self.kinds[:MAX_PROBLEMS]
        if first.size > 1 and (first == MISSING).all() and not self.meta.in_memory:
            root = os.path.abspath(self.meta.root_of(0))
            told = [
                ImageError(
                    f"{self.meta.place(0)}: none of the first {first.size} images is in {root}, {self.bad:,} bad rows "
                    "in all: is it the folder that paths are relative to? data.root names it"
                )
            ]
        elif self.bad > len(told):
            told.append(type(told[-1])(f"… and {self.bad - len(told):,} more"))
        if self.against is not None and self.overlaps.size:
            pairs = zip(self.overlaps.tolist(), self.overlapped.tolist(), strict=True)
            lines = [f"{self.meta.place(row)}: also is {self.against.place(other)}" for row, other in pairs]
            told += map(RowError, RowError(*lines).problems)
        return told


def check_rows(
    meta: MetaFile,
    *,
    decode: bool = False,
    against: MetaFile | None = None,
    processes: int | None = None,
    shows: bool = False,
) -> Report:
    """Looks at every row of a meta file, and at what it names: is that there, or, with `decode`, can it be decoded?

    `against` is another set, that of training, say, whose files should not be among these. `shows` draws a bar where
    stderr is a terminal. Writes nothing; 18 bytes per row in memory. Raises ChangedError, WorkerDiedError.
    """
    report = Report(meta, np.zeros(meta.n, np.uint8), np.zeros(meta.num_classes, np.int64), against=against)
    keys, labels = np.zeros(meta.n, np.uint64), np.zeros(meta.n, np.int64)
    for rows, seen in _look(Look(meta, decode=decode), processes, "decoding" if decode else "checking", shows):
        report.kinds[rows] = np.frombuffer(seen.kinds, np.uint8)
        keys[rows] = np.frombuffer(seen.keys, np.uint64)
        labels[rows] = np.frombuffer(seen.labels, np.int64)
        for label, number in seen.counts.items():
            report.counts[label] += number
        report.problems = sorted([*report.problems, *seen.problems], key=lambda told: told[0])[:MAX_PROBLEMS]
    report.repeats, report.repeated = repeats_in(keys)
    report.conflicts = int(np.count_nonzero(labels[report.repeats] != labels[report.repeated]))
    if against is not None:
        report.overlaps, report.overlapped = _overlaps(keys, against, processes, shows)
    return report


def repeats_in(keys: Keys) -> tuple[Rows, Rows]:
    """(the rows, ascending, whose key stands in an earlier row; the first row with that key). Key 0 is no key.

    A sixteenth of the keys is sorted at a time. Two keys of different content are equal by chance once in 2^64 pairs.
    """
    later, first = [_none()], [_none()]
    for part in range(PARTS):
        rows = np.flatnonzero((keys >> np.uint64(60)) == part) if keys.size else _none()
        rows = rows[keys[rows] != 0]
        order = np.argsort(keys[rows], kind="stable")
        rows = rows[order]
        same = np.zeros(rows.size, np.bool_)
        same[1:] = keys[rows[1:]] == keys[rows[:-1]]
        begins = np.maximum.accumulate(np.where(same, 0, np.arange(rows.size)))
        later.append(rows[same])
        first.append(rows[begins[same]])
    found, earlier = np.concatenate(later), np.concatenate(first)
    order = np.argsort(found)
    return found[order], earlier[order]


def _overlaps(keys: Keys, other: MetaFile, processes: int | None, shows: bool) -> tuple[Rows, Rows]:
    """(the rows whose key stands in another set, the first row of that set that has it)."""
    by_key = np.argsort(keys, kind="stable")
    mine = keys[by_key]
    first = np.full(keys.size, other.n, np.int64)
    for rows, seen in _look(Look(other, files=False), processes, "comparing", shows):
        theirs = np.frombuffer(seen.keys, np.uint64)
        begin, end = np.searchsorted(mine, theirs, "left"), np.searchsorted(mine, theirs, "right")
        for index in np.flatnonzero((end > begin) & (theirs != 0)).tolist():
            hit = by_key[begin[index] : end[index]]
            first[hit] = np.minimum(first[hit], rows.start + index)
    found = np.flatnonzero(first < other.n)
    return found, first[found]


def _look(look: Look, processes: int | None, title: str, shows: bool) -> Iterator[tuple[slice, Seen]]:
    """What every piece of a meta file holds, in any order, looked at by as many processes as there are cores."""
    meta = look.meta
    at_once, few = (IMAGES_AT_ONCE, FEW_IMAGES) if look.decode else (ROWS_AT_ONCE, FEW_ROWS)
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    done = bad = 0
    with Progress(title, meta.n, "rows", shows=shows) as bar:
        for piece, seen in in_processes(look, pieces(meta, at_once), 1 if meta.n <= few else processes):
            done += len(seen.kinds)
            bad += len(seen.kinds) - seen.kinds.count(GOOD)
            bar.to(done, f"{bad:,} bad" if bad else "")
            yield slice(piece.first, piece.first + len(seen.kinds)), seen
