"""Meta files: lines `path label`, one per image, in one file or several.

    cat/0001.jpg 0            the last field is the label, so paths may hold spaces
    my dog/0001.jpg 1

Paths are relative to the root (default: the folder of the file they stand in). A label is a number below the number
of classes, or the name of a class where names are given.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .classes import Classes, Given, read_classes
from .errors import MAX_PROBLEMS, DataError, MetaFileError, NamedLabelError, OutsideRootError, RowError, counted
from .lines import LONGEST_LINE, LineFile, LineText, ends

ENDS = 1000
Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class MetaFile:
    """The rows of one meta file or of several, one after the other; nothing of them is kept in memory.

    `classes` is a number, a sequence of names, a file with one name per line, or None: then labels are numbers and
    all of them are read once to find the largest. A LineText for a source is a list that lies in no file, as
    class folders give it. Raises MetaFileError, RowError, ClassesError.
    """

    def __init__(
        self,
        source: Source | LineText,
        *,
        root: str | os.PathLike[str] | None = None,
        classes: Given = None,
        allow_outside_root: bool = False,
    ) -> None:
        self.files = [source] if isinstance(source, LineText) else [LineFile(path) for path in paths_of(source)]
        self.root = None if root is None else Path(root)
        self.allow_outside_root = allow_outside_root
        self._firsts = np.cumsum([0, *(file.rows for file in self.files)]).tolist()
        self.n: int = self._firsts[-1]
        self._classes = read_classes(classes)
        if self._classes is None:
            self._classes = Classes.numbered(self._largest_label() + 1)

    def __len__(self) -> int:
        return self.n

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of their labels; numbered classes are named "0", "1", …"""
        assert self._classes is not None
        return self._classes.names

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def fingerprint(self) -> str:
        """32 hex digits over the content of all files: equal exactly where row for row the text is equal."""
        parts = "\n".join(f"{file.size_bytes} {file.digest}" for file in self.files)
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def line(self, row: int) -> bytes:
        """The text of a row, read from its file."""
        file, within = self._find(row)
        return file.read(within)

    def place(self, row: int) -> str:
        """Where a row is and which image it means, for messages: `file:line  path`, or the image's path alone where
        the list lies in no file."""
        try:
            path = self.parse(row)[0]
        except DataError:  # the file is not what it was: what is known from memory must do
            return self.line_of(row)
        return str(self.root_of(row) / path) if self.in_memory else f"{self.line_of(row)}  {path}"

    def line_of(self, row: int) -> str:
        """`file:line` of a row, for messages about the line itself."""
        file, within = self._find(row)
        return f"{file.path}:{within + 1}"

    @property
    def in_memory(self) -> bool:
        """True where the rows lie in no file of lines."""
        return isinstance(self.files[0], LineText)

    def root_of(self, row: int) -> Path:
        """The folder that a row's path is relative to."""
        return self.root if self.root is not None else self._find(row)[0].path.parent

    def parse(self, row: int, line: bytes | None = None) -> tuple[str, int]:
        """(path as written, label) of a row; raises RowError or OutsideRootError with its file and line."""
        return parse_line(self.line(row) if line is None else line, self._classes, self.allow_outside_root, self, row)

    def check(self, rows: Sequence[int] | range | None = None) -> None:
        """Reads the given rows (default: the first and last 1,000) and raises all their problems at once."""
        if rows is None:
            rows = range(self.n) if self.n <= 2 * ENDS else [*range(ENDS), *range(self.n - ENDS, self.n)]
        problems: list[RowError | OutsideRootError] = []
        for row in rows:
            try:
                self.parse(row)
            except (RowError, OutsideRootError) as error:
                problems.append(error)
                if len(problems) > MAX_PROBLEMS:
                    break
        if problems:
            raise type(problems[0])(*(line for error in problems for line in error.problems))

    def check_all(self) -> None:
        """Looks at every row, at numpy's speed where rows are plain; raises the problems of a file at once."""
        for first, text, starts, stops in self.chunks():
            self.check_chunk(np.arange(first, first + starts.size), text, starts, stops)

    def check_chunk(
        self,
        rows: npt.NDArray[np.int64],
        text: npt.NDArray[np.uint8],
        starts: npt.NDArray[np.int64],
        stops: npt.NDArray[np.int64],
    ) -> None:
        """Raises the problems of rows whose bytes lie in `text` from `starts` to `stops`.

        Rows that are surely good are passed in bulk, all others parsed one by one.
        """
        assert self._classes is not None
        labels = plain_labels(text, starts, stops)
        good = (labels >= 0) & (labels < len(self._classes.names)) & self._classes.numbers_are_labels
        whole = text.tobytes()
        if not self.allow_outside_root:
            good &= text[np.minimum(starts, text.size - 1)] != ord("/")
            good &= b".." not in whole
        good &= _is_utf8(whole)
        problems: list[RowError | OutsideRootError] = []
        for index in np.flatnonzero(~good).tolist():
            try:
                self.parse(int(rows[index]), whole[starts[index] : stops[index]])
            except (RowError, OutsideRootError) as error:
                problems.append(error)
                if len(problems) > MAX_PROBLEMS:
                    break
        if problems:
            raise type(problems[0])(*(line for error in problems for line in error.problems))

    def chunks(self) -> Iterator[tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """As LineFile.chunks, over all files, with row numbers of the whole."""
        for first, file in zip(self._firsts, self.files, strict=False):
            for row, text, starts, stops in file.chunks():
                yield first + row, text, starts, stops

    def _find(self, row: int) -> tuple[LineFile, int]:
        if not 0 <= row < self.n:
            raise IndexError(f"row {row} of {self.n}")
        at = int(np.searchsorted(self._firsts, row, side="right")) - 1
        return self.files[at], row - self._firsts[at]

    def _largest_label(self) -> int:
        largest = 0
        for first, text, starts, stops in self.chunks():
            labels = plain_labels(text, starts, stops)
            whole = text.tobytes()
            for index in np.flatnonzero(labels < 0).tolist():
                line = whole[starts[index] : stops[index]]
                labels[index] = parse_line(line, None, self.allow_outside_root, self, first + index)[1]
            largest = max(largest, int(labels.max()))
        return largest


def parse_line(
    line: bytes, classes: Classes | None, allow_outside_root: bool, meta: MetaFile | None, row: int, place: str = ""
) -> tuple[str, int]:
    """(path, label) of one line; the one place that says what a good line is."""

    def at() -> str:
        return place or (meta.line_of(row) if meta is not None else f"row {row}")

    if len(line) > LONGEST_LINE:
        raise RowError(f"{at()}  a line of {len(line)} bytes, more than {LONGEST_LINE}: a line is 'path label'")
    if b"\0" in line:
        raise RowError(f"{at()}  holds a NUL byte: a meta file is UTF-8 text")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise RowError(
            f"{at()}  byte {error.start + 1} ({line[error.start]:#04x}) is not UTF-8: save the file as UTF-8"
        ) from None
    # only blanks and tabs part fields: str.split() would also cut at no-break spaces, which stand in file names
    stripped = text.rstrip(" \t\r")
    cut = max(stripped.rfind(" "), stripped.rfind("\t"))
    path, field = stripped[: cut + 1].rstrip(" \t"), stripped[cut + 1 :]
    if not stripped:
        raise RowError(f"{at()}  is blank: every line is 'path label' (blank lines may stand at the end only)")
    if not path:
        hint = ""
        if "," in field or field.startswith("{"):
            hint = " (CSV and JSON lines are not read: write 'path label')"
        raise RowError(f"{at()}  {_short(stripped)} has no label: a line is 'path label'{hint}")
    if not allow_outside_root and (path.startswith("/") or ".." in path.split("/")):
        raise OutsideRootError(
            f"{at()}  {_short(path)} leaves the root: paths are relative to it "
            "(data.root=… sets it, data.allow_outside_root=true lifts this)"
        )
    return path, _label(field, classes, at)


_NAMES = "give data.classes (names or a file of names) for labels that are names"


def _label(field: str, classes: Classes | None, at: object) -> int:
    assert callable(at)
    if classes is not None and (label := classes.label(field)) is not None:
        return label
    if not (field.isascii() and field.isdigit()) or len(field) > 18:
        if field.startswith("-") and field[1:].isdigit():
            raise RowError(f"{at()}  label {_short(field)} is below 0: labels are 0 … number of classes - 1")
        if classes is None:
            raise NamedLabelError(f"{at()}  label {_short(field)} is no whole number: {_NAMES}")
        raise RowError(f"{at()}  label {_short(field)} is neither a number nor one of the {classes.told}")
    if classes is None:
        return int(field)
    raise RowError(f"{at()}  label {field} is out of range: there are {classes.told}, labels 0 … {len(classes) - 1}")


def plain_labels(
    text: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The labels of rows that are plainly `path digits`, and -1 for every other row (which may still be legal)."""
    labels = np.full(starts.size, -1, np.int64)
    gaps = np.flatnonzero((text == 32) | (text == 9))
    if gaps.size == 0:
        return labels
    before = np.searchsorted(gaps, stops) - 1
    gap = gaps[np.maximum(before, 0)]
    digits = stops - gap - 1
    # a byte in front of the gap that is no blank: the path; at most 9 digits: no overflow to think about
    good = (before >= 0) & (gap > starts) & (digits >= 1) & (digits <= 9)
    good[good] &= ~np.isin(text[gap[good] - 1], (32, 9))
    value = np.zeros(starts.size, np.int64)
    for place in range(int(digits[good].max(initial=0))):
        live = np.flatnonzero(good & (digits > place))
        digit = text[gap[live] + 1 + place].astype(np.int64) - 48
        good[live] = (digit >= 0) & (digit <= 9)
        value[live] = value[live] * 10 + digit
    labels[good] = value[good]
    return labels


def check_ends(
    source: Source, *, classes: int | Sequence[str] | str | None = None, allow_outside_root: bool = False
) -> int:
    """The number of rows, once the first and last 1,000 lines of every file have been found good.

    What lies between is counted, not looked at: this is what a launcher asks before it starts anything. Raises all
    problems at once (at most 20 are shown); those that have one cause, labels that are names, as one.
    """
    known = read_classes(classes)
    problems: list[RowError | OutsideRootError] = []
    rows = 0
    for path in paths_of(source):
        lines, count = ends(path, ENDS)
        rows += count
        for number, line in lines:
            try:
                parse_line(line.removesuffix(b"\r"), known, allow_outside_root, None, 0, f"{path}:{number}")
            except (RowError, OutsideRootError) as error:
                problems.append(error)
    if len(problems) > 1 and all(isinstance(error, NamedLabelError) for error in problems):
        first, _, cure = str(problems[0]).rpartition(": ")
        raise RowError(f"{first}, nor is that of {counted(len(problems) - 1, 'other line')}: {cure}")
    if problems:
        raise RowError(*map(str, problems))
    return rows


def paths_of(source: Source) -> list[Path]:
    """The files of a source: one, or a sequence of several."""
    given = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not given or not all(os.fspath(path) for path in given):
        raise MetaFileError("no meta file is given: data.train and data.val name a file, a list of files or a folder")
    return [Path(path) for path in given]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
