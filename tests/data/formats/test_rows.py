from __future__ import annotations

import pytest

from data.errors import OutsideRootError, RowError
from data.formats.classes import Classes
from data.formats.format import Format, Record
from data.formats.rows import parse_line, raise_all

ODD = Classes(["7", "cat"])


def parse(line: str, format: Format = Format(), classes: Classes | None = None, several: bool = False) -> Record:  # noqa: B008
    return parse_line(line.encode(), format, classes, False, several, lambda: "m.txt:4")


def test_a_row() -> None:
    assert parse("a b.png 3") == Record("a b.png", 3)
    assert parse("a.png cat", classes=ODD) == Record("a.png", 1)
    assert parse("a.png 7", classes=ODD) == Record("a.png", 0), "a class of that name comes first"
    assert parse("a.png 1", classes=ODD) == Record("a.png", 1)
    assert parse("s.tar@7:9 1") == Record("s.tar", 1, offset=7, length=9)
    assert parse("a 3,4", Format(separator=","), several=True) == Record("a", 3, (3, 4))
    assert parse("a 3", several=True) == Record("a", 3, (3,))
    assert parse("a.png", Format(label=None)) == Record("a.png", 0)
    assert parse("a cat", Format(named=True)).label == 0, "any name, while classes are not known"


@pytest.mark.parametrize(
    ("line", "classes", "told"),
    [
        ("a -3", None, "m.txt:4  label '-3' is below 0: labels are 0 … number of classes - 1"),
        ("a x", None, "m.txt:4  label 'x' is no whole number: give data.classes (names or a file of names) for labels "
                      "that are names"),
        ("a x", ODD, "m.txt:4  label 'x' is neither a number nor one of the 2 classes (7, cat)"),
        ("a 2", ODD, "m.txt:4  label 2 is out of range: there are 2 classes (7, cat), labels 0 … 1"),
        ("a 1,0", ODD, "m.txt:4  label '1,0' is neither a number nor one of the 2 classes (7, cat) (several labels are "
                       "read where the first 1000 lines show some)"),
        ("a", ODD, "m.txt:4  'a' has no label: a line is 'path label'"),
    ],
)  # fmt: skip
def test_bad_rows(line: str, classes: Classes | None, told: str) -> None:
    with pytest.raises(RowError) as caught:
        parse(line, classes=classes)
    assert str(caught.value) == told


@pytest.mark.parametrize("path", ["/a", "../a", "a/..", "a/../b", ".."])
def test_paths_that_leave_the_root(path: str) -> None:
    why = "is absolute: paths are relative to the root" if path == "/a" else "leaves the root: paths are relative to it"
    with pytest.raises(OutsideRootError, match=rf"^m\.txt:4  '.*' {why} \(data\.root=… sets it"):
        parse(f"{path} 0")
    assert parse_line(f"{path} 0".encode(), Format(), None, True, False, str).path == path


def test_problems_are_raised_together() -> None:
    raise_all([])
    with pytest.raises(OutsideRootError) as caught:
        raise_all([OutsideRootError("one"), RowError("two", "three")])
    assert caught.value.problems == ("one", "two", "three")
    endless = (RowError(str(number)) for number in range(10**9))
    with pytest.raises(RowError) as many:
        raise_all(endless)
    assert many.value.problems[-1] == "… and 1 more"
