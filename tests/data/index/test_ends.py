from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import ClassesError, DataError, MetaFileError, RowError
from data.meta import check_ends

Write = Callable[..., Path]


def test_rows_of_all_formats(write: Write) -> None:
    assert check_ends(write("a 0\nb 1")) == 2
    assert check_ends(write("path,label\na,0\nb,1\n", "m.csv")) == 2
    assert check_ends([write("a 0\n", "1.txt"), write('{"path": "a", "label": 0}\n', "2.jsonl")]) == 2
    assert check_ends(write("x,y\na,0\n", "m.csv"), columns={"path": "x", "label": "y"}) == 1
    assert check_ends(write("a,1 0\n", "m.csv"), format="lines") == 1
    assert check_ends(write("a.png 3,4\n")) == 1


def test_bad_lines_have_their_number(write: Write) -> None:
    with pytest.raises(RowError, match=r"m\.csv:3  has 3 fields parted by commas"):
        check_ends(write("path,label\na,0\nb,1,2\nc,1\n", "m.csv"))
    large = write("path,label\n" + "a.png,0\n" * 5_000 + "b.png,9\n", "large.csv")
    with pytest.raises(RowError, match=r"large\.csv:5002  label 9 is out of range"):
        check_ends(large, classes=3)
    with pytest.raises(MetaFileError, match="has a header and no row below it"):
        check_ends(write("path,label\n", "m.csv"))


def test_what_is_left_out_is_not_looked_at(write: Write) -> None:
    sources = [write("a 0\nbad\n", "1.txt"), write("path,label\nworse\nb,1\n", "2.csv")]
    exclude = write("1\n2\n", "x.txt")
    assert check_ends(sources, exclude=exclude, columns=None) == 2
    with pytest.raises(DataError, match=r"1\.txt:2  'bad' has no label(.|\n)*2\.csv:2  has 1 field"):
        check_ends(sources)
    with pytest.raises(RowError, match="'4' is no row"):
        check_ends(sources, exclude=write("4", "y.txt"))


def test_class_files_are_read(write: Write) -> None:
    with pytest.raises(ClassesError, match=r"none\.txt: No such file"):
        check_ends(write("a 0\n"), classes="none.txt")
    with pytest.raises(RowError, match=r"label 'eel' is neither a number nor one of the 2 classes \(cat, dog\)"):
        check_ends(write("a eel\n"), classes=["cat", "dog"])
