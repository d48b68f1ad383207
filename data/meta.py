"""Meta files: a line per image, clip or frame folder, in one file or several.

    cat/0001.jpg 0            the last field is the label, so paths may hold spaces
    my dog/0001.jpg 1

Other formats (CSV, TSV, JSON lines, frame lists; see formats) are found by looking at the first lines. Paths are
relative to the root (default: the folder of the file they stand in). A label is a number below the number of classes,
or the name of a class.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ClassesError, DataError, MetaFileError, OutsideRootError, RowError
from .exclusion import read_excluded
from .files import Source, is_listed, look, paths_of, refuse_missing_root, refuse_of_listed, tell
from .formats.bulk import (
    Bytes,
    Flags,
    Places,
    Rows,
    Words,
    find_spans,
    good_paths,
    hash_names,
    name_table,
    pieces,
    read_numbers,
)
from .formats.classes import Classes, Given, read_classes
from .formats.format import Format, Malformed, Record
from .formats.guess import Columns
from .formats.labels import Chunk, Labels, find_labels, label_key, names_unknown
from .formats.rows import NO_COMMENTS, Problem, is_comment, parse_line, raise_all
from .formats.sniff import HEAD_LINES, sniff
from .index.census import SMALL_BYTES, open_census
from .index.ends import ENDS, check_ends
from .index.lines import LineFile, LineText

__all__ = ["Gathered", "MetaFile", "Source", "check_ends", "paths_of"]

Gathered = tuple[int, int, Bytes, Places, Places]


class MetaFile:
    """The rows of one meta file or of several, one after the other; nothing of them is kept in memory.

    `source` is a file, a list of files, or a glob; or a folder of class folders, tars or Parquet files, which are
    listed once (in the folder `cache`, else in memory). A LineText is a list of `path label` that lies in no file.
    `classes` is a number, a sequence of names, a file with one name per line, or None: then labels are numbers, all of
    which are read once to find the largest, or names, which are listed once. `format` and `columns` overrule what is
    seen in the first lines (see sniff), and `told` says what was. `exclude` names files of row numbers to leave out:
    rows are numbers in what is left. With `bare` rows may lack labels: `labelled` says whether they have some.
    `index` makes the sidecars of small files too, and lists names of any number. `checking` is for who looks at every
    row: it lists names of any number, too, and a row without a legal label counts for no class instead of raising.

    Raises MetaFileError, RowError, ClassesError, OptionError.
    """

    def __init__(
        self,
        source: Source | LineText,
        *,
        root: str | os.PathLike[str] | None = None,
        classes: Given = None,
        allow_outside_root: bool = False,
        format: str | None = None,
        columns: Columns | None = None,
        exclude: Source | None = None,
        cache: str | os.PathLike[str] | None = None,
        bare: bool = False,
        index: bool = False,
        checking: bool = False,
    ) -> None:
        self.root = None if root is None else Path(root)
        self.allow_outside_root = allow_outside_root
        self._root_found: Path | None = None
        self._listed = True
        self._table: tuple[Words, Places] | None = None
        known = read_classes(classes)
        # a number says how many classes there are, not what they are called
        self._names_given = classes is not None and not isinstance(classes, int)
        if isinstance(source, LineText):
            self.files: list[LineFile] = [source]
            self.told = ""
            self.formats = [_of_listing(source)]
        elif is_listed(paths := paths_of(source)):
            known = self._open_listed(paths, classes, format, columns, cache)
        else:
            self._listed = False
            refuse_missing_root(self.root)
            looks = [look(path, format=format, columns=columns, labelled=not bare) for path in paths]
            self.formats = looks
            if index:
                for path in paths:
                    open_census(path, cache=cache, force=True)
            self.files = [LineFile(path, skip=at.skip, cache=cache) for path, at in zip(paths, looks, strict=True)]
            self.told = tell(paths, looks)
            _refuse_other_labels(paths, looks, known)
        self.kind = _one_kind(self.files, self.formats)
        self.multi_label = any(format.separator is not None for format in self.formats)
        self.labelled = all(format.label is not None for format in self.formats)
        self._firsts: list[int] = np.cumsum([0, *(file.rows for file in self.files)]).tolist()
        files = [] if exclude is None else paths_of(exclude, "data.exclude")
        self._excluded = read_excluded(files, self._firsts[-1])
        self.n: int = self._firsts[-1] - self._excluded.size
        self._classes = known if known is not None else self._find_classes(index, checking)

    def __len__(self) -> int:
        return self.n

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of their labels; numbered classes are named "0", "1", …"""
        return self._classes.names

    @property
    def num_classes(self) -> int:
        return len(self._classes)

    @property
    def shared_classes(self) -> Classes:
        """The classes as a second set must take them, that of evaluation, say. Where they are names that nobody gave,
        but the rows themselves, it may use these names only: its numbers may well mean others."""
        return Classes(self._classes.names, by_name=not self._names_given)

    @property
    def fingerprint(self) -> str:
        """32 hex digits over the content of all files and what is left out of them: equal exactly where row for row
        the text is equal."""
        parts = [f"{file.size_bytes} {file.digest}" for file in self.files]
        parts += [f"without {self._excluded.digest}"] * bool(self._excluded.size)
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def read_bytes(self) -> int:
        """Bytes that were read from the files so far."""
        return sum(file.read_bytes for file in self.files)

    @property
    def in_memory(self) -> bool:
        """True where the rows were listed and lie in no file of a user's."""
        return self._listed

    def line(self, row: int) -> bytes:
        """The text of a row, read from its file."""
        at, within = self._find(row)
        return self.files[at].read(within)

    def place(self, row: int) -> str:
        """Where a row is and which image it means, for messages: `file:line  path`, or the image's path alone where
        the list lies in no file."""
        try:
            written = self.record(row).written
        except (DataError, OSError):  # the file is not what it was: what is known from memory must do
            return self.line_of(row)
        return str(self.root_of(row) / written) if self._listed else f"{self.line_of(row)}  {written}"

    def line_of(self, row: int) -> str:
        """`file:line` of a row, for messages about the line itself."""
        at, within = self._find(row)
        return f"{self.files[at].path}:{self.files[at].line_number(within)}"

    def format_of(self, row: int) -> Format:
        """How the line of a row is read."""
        return self.formats[self._find(row)[0]]

    def root_of(self, row: int) -> Path:
        """The folder that a row's path is relative to."""
        if self.root is not None:
            return self.root
        return self._root_found if self._root_found is not None else self.files[self._find(row)[0]].path.parent

    def record(self, row: int, line: bytes | None = None) -> Record:
        """What a row says; raises RowError or OutsideRootError with its file and line."""
        at, within = self._find(row)
        text = self.files[at].read(within) if line is None else line
        return parse_line(
            text, self.formats[at], self._classes, self.allow_outside_root, self.multi_label, lambda: self.line_of(row)
        )

    def check(self, rows: Sequence[int] | range | None = None) -> None:
        """Reads the given rows (default: the first and last 1,000) and raises all their problems at once."""
        if rows is None:
            rows = range(self.n) if self.n <= 2 * ENDS else [*range(ENDS), *range(self.n - ENDS, self.n)]
        wanted = np.unique(np.array(rows, np.int64))
        raise_all(
            problem
            for lo, hi, text, starts, stops in self.gather(wanted)
            for problem in self._problems(wanted[lo:hi], text, starts, stops)
        )

    def check_all(self) -> None:
        """Looks at every row, at numpy's speed where rows are plain; raises the problems of a file at once."""
        for first, text, starts, stops in self.chunks():
            self.check_chunk(np.arange(first, first + starts.size), text, starts, stops)

    def check_chunk(self, rows: Places, text: Bytes, starts: Places, stops: Places) -> None:
        """Raises the problems of rows (ascending) whose bytes lie in `text` from `starts` to `stops`.

        Rows that are surely good are passed in bulk, all others parsed one by one.
        """
        raise_all(self._problems(rows, text, starts, stops))

    def chunks(self) -> Iterator[Chunk]:
        """As LineFile.chunks, over all files, with row numbers of the whole."""
        for at in range(len(self.files)):
            yield from self._chunks_of(at)

    def gather(self, rows: Places, threads: int = 1) -> Iterator[Gathered]:
        """The bytes of rows (ascending, each once): (lo, hi, text, starts, stops) are those of rows[lo:hi].

        Reads little more than the pages that hold them; see LineFile.gather.
        """
        whole = self._excluded.rows_of(rows)
        for first, file in zip(self._firsts, self.files, strict=False):
            begin, end = np.searchsorted(whole, (first, first + file.rows)).tolist()
            if begin < end:
                for lo, hi, text, starts, stops in file.gather(whole[begin:end] - first, threads):
                    yield begin + lo, begin + hi, text, starts, stops

    def unit_starts(self, unit_bytes: int) -> Places:
        """The row at which each unit of the files begins, and n; see LineFile.unit_starts."""
        pairs = zip(self._firsts, self.files, strict=False)
        parts = [first + file.unit_starts(unit_bytes)[:-1] for first, file in pairs]
        return self._excluded.numbers_of(np.concatenate([*parts, np.array(self._firsts[-1:])]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    def _find(self, row: int) -> tuple[int, int]:
        """(which file, row of that file)."""
        if not 0 <= row < self.n:
            raise IndexError(f"row {row} of {self.n}")
        if self._excluded.size:
            row = int(self._excluded.rows_of(np.array(row)))
        at = bisect_right(self._firsts, row) - 1
        return at, row - self._firsts[at]

    def _chunks_of(self, at: int) -> Iterator[Chunk]:
        first = self._firsts[at]
        for row, text, starts, stops in self.files[at].chunks():
            kept = self._excluded.kept(first + row, first + row + starts.size)
            number = int(self._excluded.numbers_of(np.array(first + row)))
            if kept is None:
                yield number, text, starts, stops
            elif kept.any():
                yield number, text, starts[kept], stops[kept]

    def _problems(self, rows: Places, text: Bytes, starts: Places, stops: Places) -> Iterator[Problem]:
        while rows.size:
            at, _ = self._find(int(rows[0]))
            mine = int(np.searchsorted(rows, self._excluded.numbers_of(np.array(self._firsts[at + 1]))))
            for first, piece in pieces(text, starts[:mine], stops[:mine]):
                for index in np.flatnonzero(~self._plainly_good(piece, self.formats[at])).tolist():
                    if (problem := self._problem(int(rows[first + index]), piece.line(index))) is not None:
                        yield problem
            rows, starts, stops = rows[mine:], starts[mine:], stops[mine:]

    def _problem(self, row: int, line: bytes) -> Problem | None:
        try:
            self.record(row, line)
        except (RowError, OutsideRootError) as error:
            return error
        return None

    def _plainly_good(self, rows: Rows, format: Format) -> Flags:
        spans = find_spans(rows, format)
        if spans is None:
            return np.zeros(rows.stops.size, np.bool_)
        good = good_paths(rows, spans, not self.allow_outside_root)
        if self._classes.numbers_are_labels and not format.named:
            numbers, largest = read_numbers(rows, spans, format.separator)
            return good & numbers & (largest < len(self._classes))
        if format.separator is not None or self._classes.is_numbered:
            return np.zeros(rows.stops.size, np.bool_)
        if self._table is None:
            self._table = name_table(self._classes)
        hashes, _ = self._table
        found = hash_names(rows, spans.label_starts, spans.label_stops)
        good &= (found != 0) & (hashes[np.minimum(np.searchsorted(hashes, found), hashes.size - 1)] == found)
        return good

    def _open_listed(
        self,
        paths: list[Path],
        classes: Given,
        format: str | None,
        columns: Columns | None,
        cache: str | os.PathLike[str] | None,
    ) -> Classes:
        """Opens what is no file of lines; returns its classes."""
        from .sources.cached import open_lines

        refuse_of_listed(paths, self.root, format, columns)
        refuse_missing_root(self.root)
        opened = open_lines(paths, cache=cache, classes=classes, columns=dict(columns) if columns else None)
        self.files, self._root_found, self.told = [opened.file], opened.root, opened.told
        self.formats = [_of_listing(opened.file)]
        if opened.several:  # which the first rows need not show
            self.formats = [replace(self.formats[0], separator=",")]
        return opened.classes

    def _find_classes(self, index: bool, checking: bool) -> Classes:
        found = [self._labels_of(at, index, checking) for at in range(len(self.files))] if self.labelled else []
        named = [labels.names for labels in found if labels.names is not None]
        if named and len(named) < len(found):
            told = [self.files[[labels.names is None for labels in found].index(which)].path for which in (True, False)]
            raise ClassesError(
                f"the labels of {told[0]} are numbers and those of {told[1]} names: give data.classes (the names in "
                "the order of their numbers)"
            )
        if named:
            return Classes(sorted({name for names in named for name in names}, key=str.encode), by_name=True)
        return Classes.numbered(1 + max((labels.largest or 0 for labels in found), default=0))

    def _labels_of(self, at: int, index: bool, checking: bool) -> Labels:
        """What the labels of a file are: kept in its census, else found by a pass over it."""
        file, format = self.files[at], self.formats[at]
        key = label_key(format, self._excluded.digest)
        kept = file.census.labels or {}
        if (labels := Labels.restored(kept.get(key))) is not None:
            return labels
        large = file.size_bytes >= SMALL_BYTES and not isinstance(file, LineText)
        if large and format.named and not (index or checking):
            raise ClassesError(names_unknown(file.path))

        def fields(row: int, line: bytes) -> Sequence[str]:
            try:
                found = format.parse(line)
            except Malformed as error:
                if checking:
                    return ()
                raise RowError(f"{self.line_of(row)}  {error}") from None
            if not is_comment(line, found):
                return found.labels
            if checking:
                return ()
            raise RowError(f"{self.line_of(row)}  begins with #: {NO_COMMENTS}")

        labels = find_labels(self._chunks_of(at), format, fields, self.line_of, lenient=checking)
        if (large or index) and not checking:  # what passed over bad rows is no truth about the file
            file.census = file.census.with_labels({**kept, key: labels.stored()})
        return labels


def _of_listing(file: LineFile) -> Format:
    """Lines `path label` that this package wrote."""
    for _, text, starts, stops in file.chunks():
        lines = [
            text[start:stop].tobytes() for start, stop in zip(starts[:HEAD_LINES], stops[:HEAD_LINES], strict=True)
        ]
        return sniff(lines, file.path, format="lines")
    raise AssertionError("a file without rows can't be opened")


def _refuse_other_labels(paths: Sequence[Path], formats: Sequence[Format], known: Classes | None) -> None:
    """Raises ClassesError for a file of numbers where classes are known by name alone, and for one of names where they
    are numbers: one line, and not one for each row."""
    for path, format in zip(paths, formats, strict=True):
        if known is None or format.label is None:
            continue
        if known.by_name and not format.named:
            raise ClassesError(
                f"{path}: its labels are numbers, but those of the training data are names, of {known.told}: which "
                "number means which name? Give data.classes (the names in the order of their numbers)"
            )
        if known.is_numbered and format.named:
            raise ClassesError(
                f"{path}: its labels are names, but there are {known.told}: give data.classes (the names in the order "
                "of their numbers)"
            )


def _one_kind(files: Sequence[LineFile], formats: Sequence[Format]) -> str:
    kinds = [format.kind for format in formats]
    if len(set(kinds)) > 1:
        other = next(at for at, kind in enumerate(kinds) if kind != kinds[0])
        raise MetaFileError(
            f"the rows of {files[0].path} are of kind {kinds[0]!r}, those of {files[other].path} of kind "
            f"{kinds[other]!r}: one kind at a time"
        )
    return kinds[0]
