"""What the labels of a meta file are, where no classes were given: one pass over all rows finds it.

Numbers give the largest one, names a vocabulary, sorted by bytes. The result is kept in the file's census.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ClassesError, NamedLabelError, RowError
from .bulk import Bytes, Places, Rows, find_spans, hash_names, pieces, read_numbers
from .format import Format, short

MOST_NAMES = 1_000_000
GIVE_CLASSES = "give data.classes (names or a file of names) for labels that are names"

Chunk = tuple[int, Bytes, Places, Places]
LabelsOf = Callable[[int, bytes], Iterable[str]]  # (row, line) -> its label fields
At = Callable[[int], str]


class Labels(NamedTuple):
    """The largest label of a file, or, where labels are names, all of them, sorted by bytes."""

    largest: int | None
    names: list[str] | None

    def stored(self) -> dict[str, Any]:
        """As plain builtins, for a sidecar."""
        return {"largest": self.largest} if self.names is None else {"names": self.names}

    @classmethod
    def restored(cls, stored: object) -> Labels | None:
        """What `stored` gave; None for anything else."""
        if not isinstance(stored, dict):
            return None
        largest, names = stored.get("largest"), stored.get("names")
        if isinstance(largest, int) and names is None:
            return cls(largest, None)
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return cls(None, names)
        return None


def label_key(format: Format, excluded: str) -> str:
    """The name under which the labels of a file are kept in its census: the same exactly where they are the same.

    `excluded` is a digest of the rows that are left out.
    """
    parts = (format.name, format.delimiter, format.fields, format.label, format.separator, format.skip, excluded)
    return json.dumps(parts, separators=(",", ":"))


def names_unknown(path: Path) -> str:
    """Why labels that are names can't be used as they are."""
    return (
        f"{path}: its labels are names, and so large a file isn't read through at every start: 'data index' lists them "
        "once, beside the file or in the folder of --cache; or give data.classes (names or a file of names)"
    )


def find_labels(
    chunks: Iterable[Chunk], format: Format, labels_of: LabelsOf, at: At, *, lenient: bool = False
) -> Labels:
    """Looks at every label of a file; `labels_of` parses a row, `at` says where it is.

    Raises NamedLabelError where numbers and names are mixed (`lenient` passes over what the first labels are not),
    ClassesError for too many names, what `labels_of` raises.
    """
    if format.named:
        names = _names(chunks, format, labels_of, at, lenient)
        return Labels(None, names) if names else Labels(0, None)  # no row is good, of those that were passed over
    largest = 0
    for first, rows in _pieces(chunks):
        spans = find_spans(rows, format)
        plain = np.zeros(rows.stops.size, np.bool_)
        if spans is not None:
            plain, highest = read_numbers(rows, spans, format.separator)
            largest = max(largest, int(highest[plain].max(initial=0)))
        for index in np.flatnonzero(~plain).tolist():
            for field in labels_of(first + index, rows.line(index)):
                if not lenient or _is_number(field):
                    largest = max(largest, whole_number(field, first + index, at))
    return Labels(largest, None)


def _pieces(chunks: Iterable[Chunk]) -> Iterator[tuple[int, Rows]]:
    for first, text, starts, stops in chunks:
        for at, rows in pieces(text, starts, stops):
            yield first + at, rows


def whole_number(field: str, row: int, at: At) -> int:
    """The number that a label field is; raises NamedLabelError."""
    if not _is_number(field):
        refuse_negative(field, at(row))
        raise NamedLabelError(f"{at(row)}  label {short(field)} is no whole number: {GIVE_CLASSES}")
    return int(field)


def refuse_negative(field: str, place: str) -> None:
    """Raises RowError for a label below 0, which is a number, but none that a class may have."""
    if field.startswith("-") and field[1:].isdigit():
        raise RowError(f"{place}  label {short(field)} is below 0: labels are 0 … number of classes - 1")


def _is_number(field: str) -> bool:
    return field.isascii() and field.isdigit() and len(field) <= 18


def _names(chunks: Iterable[Chunk], format: Format, labels_of: LabelsOf, at: At, lenient: bool) -> list[str]:
    names: set[str] = set()
    known = np.empty(0, np.uint64)
    for first, rows in _pieces(chunks):
        spans = find_spans(rows, format) if format.separator is None else None
        if spans is None:
            strange = np.arange(rows.stops.size)
        else:
            hashes = hash_names(rows, spans.label_starts, spans.label_stops)
            odd = ~spans.plain | (hashes == 0)
            new = np.ones(rows.stops.size, np.bool_)
            if known.size:
                new = known[np.minimum(np.searchsorted(known, hashes), known.size - 1)] != hashes
            # of the new ones one row each, and every row that must be looked at by itself
            fresh, firsts = np.unique(hashes[new & ~odd], return_index=True)
            strange = np.sort(np.concatenate((np.flatnonzero(new & ~odd)[firsts], np.flatnonzero(odd))))
            known = np.union1d(known, fresh)
        for index in strange.tolist():
            for field in labels_of(first + index, rows.line(index)):
                if field not in names:
                    if field.isascii() and field.isdigit():
                        if lenient:
                            continue
                        raise NamedLabelError(
                            f"{at(first + index)}  label {field} is a number, but the first labels are names: "
                            f"{GIVE_CLASSES}"
                        )
                    if not lenient:
                        refuse_negative(field, at(first + index))
                    names.add(field)
        if len(names) > MOST_NAMES:
            raise ClassesError(
                f"{at(first)}: more than {MOST_NAMES} different labels up to here: is this the column of labels? "
                "(data.columns names it)"
            )
    return sorted(names, key=str.encode)
