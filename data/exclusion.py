"""Rows that are left out: files of row numbers, and the numbering of what is left.

rows of the meta file   0 1 2 3 4 5 6
left out                  1     4
numbers of what is left 0   1 2   3 4
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import MetaFileError, RowError
from .index.opening import BYTE_ORDER_MARK, open_regular, pread, refuse_packed
from .memory import MemoryFile

Rows = npt.NDArray[np.int64]


class Excluded:
    """Maps between rows of a meta file and their numbers once `rows` of it (sorted, each once) are left out.

    Travels to other processes by handle, whatever its size.
    """

    def __init__(self, rows: Rows) -> None:
        self.size = int(rows.size)
        self.digest = hashlib.blake2b(rows.astype("<i8").tobytes(), digest_size=16).hexdigest() if self.size else ""
        # an empty file can't be mapped
        self._memory = MemoryFile.of(rows.astype("<i8").tobytes()) if self.size else None

    @cached_property
    def rows(self) -> Rows:
        """The rows that are left out, sorted."""
        if self._memory is None:
            return np.empty(0, np.int64)
        return np.frombuffer(self._memory.map(), "<i8")

    @cached_property
    def _before(self) -> Rows:
        """How many rows are left before each of them."""
        return self.rows - np.arange(self.rows.size)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("rows", "_before")}

    def rows_of(self, numbers: Rows) -> Rows:
        """The rows of the meta file that have these numbers in what is left."""
        return numbers + np.searchsorted(self._before, numbers, side="right") if self.size else numbers

    def numbers_of(self, rows: Rows) -> Rows:
        """How many rows are left before each of these rows of the meta file."""
        return rows - np.searchsorted(self.rows, rows) if self.size else rows

    def kept(self, first: int, stop: int) -> npt.NDArray[np.bool_] | None:
        """Which of the rows first … stop - 1 are left; None: all of them."""
        begin, end = np.searchsorted(self.rows, (first, stop)) if self.size else (0, 0)
        if begin == end:
            return None
        kept = np.ones(stop - first, np.bool_)
        kept[self.rows[begin:end] - first] = False
        return kept


def read_excluded(files: Sequence[str | os.PathLike[str]], n: int) -> Excluded:
    """The rows that these files name, one number per line, from 0; raises MetaFileError or RowError.

    Numbers are those of the whole meta file of `n` rows, whatever else leaves rows out, and may be given twice.
    """
    found = [_read(Path(path), n) for path in files]
    rows = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    if n and rows.size == n:
        raise MetaFileError(f"{', '.join(map(str, files))}: all {n} rows are left out (data.exclude)")
    return Excluded(rows)


def _read(path: Path, n: int) -> Rows:
    try:
        fd = open_regular(path)
    except MetaFileError as error:
        raise MetaFileError(f"data.exclude: {error}".replace("meta file ", "", 1)) from None
    with open(fd, "rb", buffering=0):
        text = pread(fd, os.fstat(fd).st_size, 0)
    refuse_packed(path, text[:16])
    text = text.removeprefix(BYTE_ORDER_MARK)
    words = text.split()
    if not text.translate(None, b"0123456789 \t\r\n") and max(map(len, words), default=0) <= 18:
        rows = np.array(words, "S18").astype(np.int64) if words else np.empty(0, np.int64)
        if not rows.size or int(rows.max()) < n:
            return rows
    for number, line in enumerate(text.splitlines(), 1):
        for word in line.split():
            if not word.isdigit() or len(word) > 18 or int(word) >= n:
                raise RowError(
                    f"{path}:{number}  {os.fsdecode(word)[:60]!r} is no row: data.exclude names files of row numbers, "
                    f"one per line, 0 … {n - 1} here"
                )
    raise AssertionError("one of the words was no row")
