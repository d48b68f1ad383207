from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ClassesError, DataError, MetaFileError, OutsideRootError, RowError
from data.meta import MetaFile, check_ends, plain_labels

Write = Callable[..., Path]


def test_paths_may_hold_blanks(write: Write) -> None:
    meta = MetaFile(write("a b/c  d.png 1\ne.png\t0\nf.png \t 12  \n"))
    assert [meta.parse(row) for row in range(3)] == [("a b/c  d.png", 1), ("e.png", 0), ("f.png", 12)]
    assert meta.num_classes == 13
    assert meta.classes[:2] == ("0", "1")
    assert meta.line_of(2).endswith("m.txt:3")


def test_labels_by_name(write: Write) -> None:
    meta = MetaFile(write("a.png cat\nb.png dog\nc.png 1\n"), classes=["cat", "dog"])
    assert [meta.parse(row)[1] for row in range(3)] == [0, 1, 1]
    meta.check_all()
    odd = MetaFile(write("a.png 7\nb.png 3\n"), classes=["7", "3"])
    assert [odd.parse(row)[1] for row in range(2)] == [0, 1]
    odd.check_all()


def test_several_files_are_one(write: Write) -> None:
    meta = MetaFile([write("a 0\nb 1\n", "x/1.txt"), write("c 2\n", "y/2.txt")])
    assert meta.n == len(meta) == 3
    assert meta.line(2) == b"c 2"
    assert meta.place(2) == f"{meta.files[1].path}:1  c"
    assert meta.root_of(2).name == "y"
    assert meta.num_classes == 3
    with pytest.raises(IndexError, match="row 3 of 3"):
        meta.line(3)
    assert MetaFile(meta.files[0].path, root="/r").root_of(0) == Path("/r")


def test_the_fingerprint_is_the_content(write: Write) -> None:
    one = MetaFile(write("a 0\nb 1\n", "1.txt"))
    assert one.fingerprint == MetaFile(write("a 0\nb 1\n", "2.txt")).fingerprint
    assert one.fingerprint != MetaFile(write("a 0\nb 0\n", "3.txt")).fingerprint
    assert len(one.fingerprint) == 32
    assert one.size_bytes == 8


BAD = [
    ("b.png\n", RowError, r"m\.txt:2  'b\.png' has no label: a line is 'path label'$"),
    ("b.png,1\n", RowError, r"has no label.*CSV and JSON lines are not read"),
    ('{"a":1}\n', RowError, "CSV and JSON lines are not read"),
    ("\n", RowError, r"m\.txt:2  is blank: every line is 'path label'"),
    ("  \t\n", RowError, r"m\.txt:2  is blank"),
    (" 1\n", RowError, "has no label"),
    ("b.png 3\n", RowError, r"m\.txt:2  label 3 is out of range: there are 3 classes \(0, 1, 2\), labels 0 … 2"),
    ("b.png 99999999999999999999\n", RowError, "is neither a number nor one of the 3 classes"),
    ("b.png -1\n", RowError, "label '-1' is below 0"),
    ("b.png 1.5\n", RowError, "label '1.5' is neither a number nor one of"),
    ("b.png \uff12\n", RowError, "neither a number"),
    ("b.png cat\n", RowError, "label 'cat' is neither a number nor one of the 3 classes"),
    (b"b\xff.png 1\n", RowError, r"m\.txt:2  byte 2 \(0xff\) is not UTF-8"),
    ("../b.png 1\n", OutsideRootError, r"m\.txt:2  '\.\./b\.png' leaves the root"),
    ("x/../../b.png 1\n", OutsideRootError, "leaves the root"),
    ("/etc/b.png 1\n", OutsideRootError, r"'/etc/b\.png' leaves the root.*data.allow_outside_root=true"),
]


@pytest.mark.parametrize(("bad", "kind", "told"), BAD)
def test_bad_rows(write: Write, bad: str | bytes, kind: type[DataError], told: str) -> None:
    line = bad if isinstance(bad, bytes) else bad.encode()
    path = write(b"a.png 0\n" + line + b"c.png 2\n")
    meta = MetaFile(path, classes=3)
    with pytest.raises(kind, match=told):
        meta.parse(1)
    with pytest.raises(kind, match=told):
        meta.check()
    with pytest.raises(kind, match=told):
        meta.check_all()
    with pytest.raises(DataError, match=told):
        check_ends(path, classes=3)


def test_labels_without_classes(write: Write) -> None:
    with pytest.raises(RowError, match=r"m\.txt:2  label 'cat' is no whole number: give data\.classes"):
        MetaFile(write("a 0\nb cat\n"))
    with pytest.raises(ClassesError, match="999999999999 classes"):
        MetaFile(write("a 999999999998\n"))


def test_names_without_classes_are_one_problem_and_not_forty(write: Write) -> None:
    path = write("a 0\nb cat\nc dog\nd eel\n")
    with pytest.raises(RowError) as caught:
        check_ends(path)
    assert str(caught.value) == (
        f"{path}:2  label 'cat' is no whole number, nor is that of 2 other lines: "
        "give data.classes (names or a file of names) for labels that are names"
    )
    with pytest.raises(RowError, match=r"m\.txt:2  label 'cat' is no whole number: give data\.classes"):
        check_ends(write("a 0\nb cat\n"))
    with pytest.raises(RowError) as caught:
        check_ends(write("a cat\nb\nc dog\n"))
    assert len(str(caught.value).splitlines()) == 3, "two causes are told line by line"


def test_a_place_is_told_though_the_file_has_changed(write: Write) -> None:
    path = write("a 0\nb 1\n")
    meta = MetaFile(path)
    path.write_text("gone\n")
    assert meta.place(1) == f"{path}:2"


def test_paths_outside_may_be_allowed(write: Write) -> None:
    meta = MetaFile(write("../a.png 0\n/b/c.png 1\n"), allow_outside_root=True)
    meta.check_all()
    assert meta.parse(1) == ("/b/c.png", 1)
    MetaFile(write("a..b.png 0\n"), classes=1).check_all()  # two dots in a name climb nowhere


def test_all_problems_at_once_but_no_more_than_twenty(write: Write) -> None:
    path = write("good 0\n" + "bad\n" * 50)
    for check in (MetaFile(path, classes=2).check, MetaFile(path, classes=2).check_all):
        with pytest.raises(RowError) as caught:
            check()
        assert len(str(caught.value).splitlines()) == 21
    with pytest.raises(RowError) as caught:
        check_ends(path, classes=2)
    assert str(caught.value).splitlines()[20] == "… and 30 more"


def test_deep_rows_are_left_to_the_full_check(write: Write) -> None:
    rows = [f"a{i} 0" for i in range(2_500)]
    rows[1_200] = "bad"
    path = write("\n".join(rows))
    meta = MetaFile(path, classes=1)
    meta.check()
    assert check_ends(path, classes=1) == 2_500
    with pytest.raises(RowError, match=r":1201  'bad' has no label"):
        meta.check_all()


def test_no_file_at_all() -> None:
    with pytest.raises(MetaFileError, match="no meta file is given"):
        MetaFile([])
    with pytest.raises(MetaFileError, match="no meta file is given"):
        MetaFile("")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab 01239\t.-", max_size=12), min_size=1, max_size=8))
def test_plain_labels_are_never_wrong(rows: list[str]) -> None:
    """Bulk and single reading agree: a label from the bulk is what the slow way finds."""
    text = "\n".join(rows).encode()
    stops = np.cumsum([len(row) + 1 for row in rows]) - 1
    starts = stops - [len(row) for row in rows]
    labels = plain_labels(np.frombuffer(text, np.uint8), starts, stops)
    for row, label in zip(rows, labels.tolist(), strict=True):
        path, _, field = row.replace("\t", " ").rpartition(" ")
        if label >= 0:
            assert path.strip()
            assert int(field) == label
        elif path and not path.endswith(" ") and field.isdigit() and len(field) <= 9:
            raise AssertionError(f"{row!r} is plain")
