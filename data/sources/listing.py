"""What a source that is no text of lines becomes: lines `path label`, and stamps that prove it unchanged.

Class folders, tars and Parquet files give a Listing each; cached.py keeps it as a cached file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR
from typing import NamedTuple

from ..errors import ClassesError, RowError, counted
from ..formats.classes import MOST_CLASSES, Classes, Given, read_classes
from ..index.opening import open_regular

LONGEST_NAME = 256
Parts = tuple[str, ...]  # the labels of one row as they stand in the source

# Times of files tick in jiffies at best and in 2 s at worst (FAT): what is as young as that may change unseen.
RACY_NS = 2_000_000_000


class Stamp(NamedTuple):
    """What a file or folder was when it was listed. A folder's size says nothing and is -1."""

    path: str
    size_bytes: int
    mtime_ns: int


def stamp(path: str | os.PathLike[str]) -> Stamp:
    """The stamp of a file or folder as it is now; raises OSError."""
    facts = os.stat(path)
    size = -1 if S_ISDIR(facts.st_mode) else facts.st_size
    return Stamp(os.path.abspath(path), size, facts.st_mtime_ns)


def stamp_of_file(path: Path) -> Stamp:
    """The stamp of a regular file; raises MetaFileError for anything else, without waiting on a pipe."""
    fd = open_regular(path)
    try:
        facts = os.fstat(fd)
    finally:
        os.close(fd)
    return Stamp(os.path.abspath(path), facts.st_size, facts.st_mtime_ns)


def unchanged(stamps: Sequence[Stamp], began_ns: int) -> bool:
    """Whether all stamps still hold, and were old enough to be trusted when the listing began."""
    try:
        return bool(stamps) and all(stamp(seen.path) == seen and seen.mtime_ns < began_ns - RACY_NS for seen in stamps)
    except OSError:
        return False


@dataclass
class Listing:
    """Lines `path label` of one source, all labels numbers.

    `text()` gives whole lines in pieces, anew at every call; `stamps` are complete once it has been read through.
    `several`: a row may have more than one, written `3,7`. `told` says for people what was understood and what was
    passed over.
    """

    text: Callable[[], Iterable[bytes]]
    classes: Classes
    told: str
    several: bool = False
    stamps: list[Stamp] = field(default_factory=list)


class Labels:
    """Gathers the labels of rows, and numbers them at the end.

    Whole numbers are labels as they stand; if one is a name, all are, and a label is the place of its name among the
    names, sorted by bytes. With `given` classes these decide. Raises ClassesError or RowError with the first place.
    """

    def __init__(self, given: Given) -> None:
        self._given = read_classes(given)
        # a number of classes says how many there are, not what they are called
        self._count = given if isinstance(given, int) else None
        self._codes: dict[Parts, int] = {}
        self._places: list[str] = []
        self._texts: list[bytes] = []

    def code(self, parts: Parts, place: str) -> int:
        """A small number that stands for these labels until all are known."""
        code = self._codes.get(parts)
        if code is None:
            code = self._codes[parts] = len(self._codes)
            self._places.append(place)
            for part in parts:
                _check_name(part, place)
        return code

    @property
    def several(self) -> bool:
        """Whether any row has more than one label."""
        return any(len(parts) != 1 for parts in self._codes)

    def text(self, parts: Parts) -> bytes:
        """What stands in a line for labels that were gathered, once they are numbered."""
        return self._texts[self._codes[parts]]

    def numbered(self) -> tuple[Classes, list[bytes]]:
        """The classes, and for every code the text that stands in a line: `7`, or `3,7` for several labels."""
        known = self._classes()
        texts = self._texts = []
        for parts, place in zip(self._codes, self._places, strict=True):
            labels = [known.label(part) for part in parts]
            if None in labels:
                strange = parts[labels.index(None)]
                raise RowError(f"{place}  label {strange!r} is none of the {known.told}: mend it, or data.classes")
            texts.append(",".join(map(str, labels)).encode())
        return Classes(known.names, by_number=True), texts

    def _classes(self) -> Classes:
        names = {part for parts in self._codes for part in parts}
        numbers = all(map(_is_number, names))
        if self._given is not None and (self._count is None or numbers):
            return self._given
        if numbers:
            return Classes.numbered(1 + max(map(int, names), default=0))
        if self._count not in (None, len(names)):
            shown = ", ".join(sorted(names, key=str.encode)[:5]) + (", …" if len(names) > 5 else "")
            raise ClassesError(
                f"{counted(len(names), 'class', 'classes')} by name ({shown}), but data.classes is {self._count}: "
                "remove data.classes, or list the names of all classes there"
            )
        if len(names) > MOST_CLASSES:
            raise ClassesError(f"{len(names)} different labels: at most {MOST_CLASSES} classes are legal")
        return Classes(sorted(names, key=str.encode))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= 9


def _check_name(name: str, place: str) -> None:
    if not name or len(name) > LONGEST_NAME or name != name.strip() or not name.isprintable():
        shown = repr(name if len(name) <= 40 else name[:37] + "…")
        raise RowError(
            f"{place}  label {shown} is neither a number nor a name of one line, at most {LONGEST_NAME} long"
        )
    if name.startswith("-") and name[1:].isdigit():
        raise RowError(f"{place}  label {name} is below 0: labels are 0 … number of classes - 1")


def fits_a_line(path: str) -> bool:
    """Whether a path comes back whole from a line of text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return not ("\n" in path or "\r" in path or "\0" in path or path != path.rstrip(" \t") or path.startswith("\ufeff"))
