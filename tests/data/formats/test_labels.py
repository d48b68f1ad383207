from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from data.errors import ClassesError, NamedLabelError
from data.formats import labels as formats_labels
from data.formats.format import Format
from data.formats.labels import Labels, find_labels, label_key

NAMED = Format(named=True)


def find(lines: Sequence[str], format: Format, at_once: int = 3, *, lenient: bool = False) -> Labels:
    def chunks() -> Iterable[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        for first in range(0, len(lines), at_once):
            part = [line.encode() for line in lines[first : first + at_once]]
            stops = np.cumsum([len(line) + 1 for line in part]) - 1
            yield first, np.frombuffer(b"\n".join(part), np.uint8), stops - [len(line) for line in part], stops

    def labels_of(row: int, line: bytes) -> Sequence[str]:
        assert line == lines[row].encode()
        return format.parse(line).labels

    return find_labels(chunks(), format, labels_of, lambda row: f"m.txt:{row + 1}", lenient=lenient)


def test_the_largest_number() -> None:
    assert find(["a 0", "b 12", "c 3", "d  9 ", "e 000013"], Format()) == Labels(13, None)
    assert find(["a 123456789"], Format()) == Labels(123456789, None)
    assert find(["a 1,77", "b 3", "c 2,5,6", "d 7 , 9"[:3]], Format(separator=",")) == Labels(77, None)
    assert find(['{"f": "a", "l": 7}'], Format(name="jsonl", path="f", label="l")) == Labels(7, None)


def test_all_names() -> None:
    lines = [f"a{i} {name}" for i, name in enumerate(["dog", "cat", "dog", "x" * 70, "Kü", "cat", "x" * 70, "eel "])]
    names = sorted(["dog", "cat", "x" * 70, "Kü", "eel"])
    for at_once in (1, 3, 100):
        assert find(lines, NAMED, at_once) == Labels(None, names)
    several = Format(name="csv", delimiter=",", fields=2, separator="|", named=True)
    assert find(["a,x|y", "b,y", "c,"], several) == Labels(None, ["x", "y"])


def test_mixed_and_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NamedLabelError, match=r"^m\.txt:4  label 'cat' is no whole number: give data\.classes \(names"):
        find(["a 1", "b 2", "c 3", "d cat"], Format())
    with pytest.raises(NamedLabelError, match=r"^m\.txt:2  label 7 is a number, but the first labels are names: give"):
        find(["a cat", "b 7"], NAMED)
    monkeypatch.setattr(formats_labels, "MOST_NAMES", 4)
    with pytest.raises(ClassesError, match=r"more than 4 different labels up to here: is this the column of labels"):
        find([f"a n{i}" for i in range(9)], NAMED)


def test_who_looks_at_every_row_passes_over_what_is_mixed() -> None:
    assert find(["a 1", "b cat", "c 3"], Format(), lenient=True) == Labels(3, None)
    assert find(["a cat", "b 7", "c dog"], NAMED, lenient=True) == Labels(None, ["cat", "dog"])
    assert find(["a 7"], NAMED, lenient=True) == Labels(0, None)


def test_what_is_kept() -> None:
    for labels in (Labels(7, None), Labels(None, ["a", "b"])):
        assert Labels.restored(labels.stored()) == labels
    for broken in (None, 3, {}, {"largest": "7"}, {"names": []}, {"names": [1]}, {"names": "ab"}):
        assert Labels.restored(broken) is None


def test_keys_of_what_is_kept() -> None:
    csv = Format(name="csv", delimiter=",", fields=4, path=1, label=2, skip=1)
    others = [
        Format(),
        Format(name="csv", delimiter=",", fields=4, path=1, label=3, skip=1),
        Format(name="csv", delimiter=";", fields=4, path=1, label=2, skip=1),
        Format(name="csv", delimiter=",", fields=4, path=1, label=2, skip=0),
        Format(name="csv", delimiter=",", fields=4, path=1, label=2, skip=1, separator="|"),
    ]
    keys = {label_key(format, "") for format in [csv, *others]} | {label_key(csv, "ab")}
    assert len(keys) == 7
    assert label_key(csv, "") == label_key(Format(name="csv", delimiter=",", fields=4, path=0, label=2, skip=1), "")
