"""The classes of a data set: where their names come from and which label a name has."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import ClassesError, counted

MOST_CLASSES = 10_000_000


class Classes:
    """Class names in the order of their labels. `by_number`: a label field is a number, whatever the names are;
    `by_name`: it is a name, and a number means nothing.

    Numbered classes ("0", "1", …) are kept, and pickled, as their number.
    """

    def __init__(self, names: Iterable[str], *, by_number: bool = False, by_name: bool = False) -> None:
        self.by_number = by_number
        self._names: tuple[str, ...] | None = tuple(names)
        self._count = len(self._names)
        if all(name == str(label) for label, name in enumerate(self._names)):
            self._names = None
        self.by_name = by_name and self._names is not None
        self._labels: dict[str, int] | None = None
        # Digits in a label field mean that label, unless a class is *named* by them and stands at another place.
        self.numbers_are_labels = by_number or (
            not self.by_name
            and all(
                not (name.isascii() and name.isdigit()) or name == str(label)
                for label, name in enumerate(self._names or ())
            )
        )

    @classmethod
    def numbered(cls, count: int) -> Classes:
        """Classes "0" … "count - 1"."""
        if not 1 <= count <= MOST_CLASSES:
            raise ClassesError(f"{counted(count, 'class', 'classes')}: legal are 1 … {MOST_CLASSES}")
        classes = cls(())
        classes._count = count
        return classes

    @property
    def is_numbered(self) -> bool:
        """Whether the names are the numbers of the labels."""
        return self._names is None

    @property
    def names(self) -> tuple[str, ...]:
        """All names; of numbered classes they are made anew at every look."""
        return tuple(map(str, range(self._count))) if self._names is None else self._names

    def __len__(self) -> int:
        return self._count

    def label(self, field: str) -> int | None:
        """The label that a field means: a class name first, else a number below the number of classes."""
        if self._names is not None and not self.by_number:
            if self._labels is None:
                self._labels = {name: label for label, name in enumerate(self._names)}
            if (label := self._labels.get(field)) is not None:
                return label
        if self.by_name:
            return None
        if field.isascii() and field.isdigit() and len(field) <= 18 and int(field) < self._count:
            return int(field)
        return None

    @property
    def told(self) -> str:
        """For messages: "3 classes (cat, dog, eel)"."""
        first = map(str, range(min(5, self._count))) if self._names is None else self._names[:5]
        return f"{counted(self._count, 'class', 'classes')} ({', '.join(first)}{', …' if self._count > 5 else ''})"

    def __reduce__(self) -> tuple[object, ...]:
        if self._names is None:
            return _unpacked, (self._count, self.by_number, False)
        # 1,000 names as they stand are more than the 10 KB that a whole dataset should take
        text = json.dumps(self._names, ensure_ascii=False, separators=(",", ":"))
        return _unpacked, (zlib.compress(text.encode("utf-8", "surrogatepass"), 9), self.by_number, self.by_name)


def _unpacked(names: bytes | int, by_number: bool, by_name: bool) -> Classes:
    if isinstance(names, bytes):
        unpacked = json.loads(zlib.decompress(names).decode("utf-8", "surrogatepass"))
        return Classes(unpacked, by_number=by_number, by_name=by_name)
    classes = Classes((), by_number=by_number)
    classes._count = names
    return classes


Given = Classes | int | Sequence[str] | str | os.PathLike[str] | None


def read_classes(given: Given) -> Classes | None:
    """The classes that a setting means: a number, names, a file with one name per line; None stays None."""
    if given is None or isinstance(given, Classes):
        return given
    if isinstance(given, int):
        return Classes.numbered(given)
    if isinstance(given, str) and not given.strip():
        raise ClassesError("data.classes is empty: it is a number, a list of names, or a file with one name per line")
    if isinstance(given, str | os.PathLike):
        return _checked(_read_names(Path(given)), f"class file {given}")
    return _checked([str(name).strip() for name in given], "the list of classes")


def _read_names(path: Path) -> list[str]:
    if path.exists() and not path.is_file():  # a FIFO would be waited on
        raise ClassesError(f"class file {path} is no regular file: it holds one class name per line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ClassesError(
            f"class file {path}: {error.strerror} (data.classes is a number, a list of names, or a file of names)"
        ) from None
    except UnicodeDecodeError:
        raise ClassesError(f"class file {path} is not UTF-8 text: it holds one class name per line") from None
    return [line.strip() for line in text.rstrip().split("\n")]


def _checked(names: list[str], what: str) -> Classes:
    if names in ([], [""]):
        raise ClassesError(f"{what} is empty: it holds one class name for each label")
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise ClassesError(f"{what}, entry {number}: is blank; the number of an entry is its label, counted from 0")
        if name in seen:
            raise ClassesError(f"{what}, entry {number}: {name!r} stands there twice (first as entry {seen[name]})")
        seen[name] = number
    return Classes(names)
