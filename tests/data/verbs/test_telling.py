from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.meta import MetaFile
from data.verbs.check import check_rows
from data.verbs.telling import bar, describe_labels, describe_report


@pytest.mark.parametrize(
    ("share", "drawn"), [(0, ""), (1, "████"), (0.5, "██"), (0.001, "▏"), (0.99, "████"), (0.9, "███▋")]
)
def test_a_bar(share: float, drawn: str) -> None:
    assert bar(share, 4) == drawn


def test_few_classes_are_all_drawn() -> None:
    assert describe_labels(("cat", "dog", "a name that is longer than others"), np.array([1234, 617, 0])) == [
        "labels: 617 … 1,234 rows per class, median 925; 1 class without a row (a name that is longer than others)",
        "  cat                       1,234  ████████████████████████████████████████",
        "  dog                         617  ████████████████████",
        "  a name that is longer t…      0",
    ]


def test_many_classes_are_drawn_from_both_ends() -> None:
    counts = np.arange(1, 101)
    lines = describe_labels(tuple(map(str, range(100))), counts)
    assert lines[0] == "labels: 1 … 100 rows per class, median 50"
    assert [line.split()[0] for line in lines[1:]] == ["99", "98", "97", "96", "95", "…", "4", "3", "2", "1", "0"]


def test_equal_classes_need_no_bars() -> None:
    assert describe_labels(("a", "b"), np.array([3, 3])) == ["labels: 3 rows in each class"]
    assert describe_labels(("a",), np.array([1])) == ["labels: 1 row in each class"]
    assert describe_labels(("a", "b"), np.array([0, 0])) == ["labels: not one row with a good label"]


def test_a_report(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    meta = tmp_path / "m.txt"
    meta.write_text("0.png 0\n1.png 1\n0.png 0\n1.png 0\n2.png 1\n0.png 0\n0.png 0\nnone.png 0\n")
    train = tmp_path / "t.txt"
    train.write_text("2.png 0\n")
    lines = describe_report(check_rows(MetaFile(meta), against=MetaFile(train)), "m.txt")
    assert lines[0] == "m.txt: 1 of 8 rows is bad (1 missing), 2 classes"
    assert lines[1] == f"read as: {meta}: lines 'path label'"
    assert lines[4] == "labels: 2 … 6 rows per class, median 4"
    assert lines[7:] == [
        "repeats: 4 rows of what an earlier row names already, 1 of them with another label",
        f"  {meta}:3  0.png as in {meta}:1",
        f"  {meta}:4  1.png as in {meta}:2",
        f"  {meta}:6  0.png as in {meta}:1",
        "  … and 1 more",
        "overlap: 1 row of this set is in the other, too",
    ]


def test_a_wrong_root_is_guessed(tmp_path: Path) -> None:
    meta = tmp_path / "m.txt"
    meta.write_text("0.png 0\n1.png 1\n")
    root = tmp_path / "other"
    root.mkdir()
    (error,) = check_rows(MetaFile(meta, root=root)).errors()
    assert error.problems == (
        f"{meta}:1  0.png: none of the first 2 images is in {root}, 2 bad rows in all: is it the folder that paths are "
        "relative to? data.root names it",
    )
    (tmp_path / "1.png").write_bytes(b"x")
    assert [len(error.problems) for error in check_rows(MetaFile(meta)).errors()] == [1]


def test_a_set_that_overlaps_is_not_called_good(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"x")
    meta = tmp_path / "m.txt"
    meta.write_text("0.png 0\n")
    report = check_rows(MetaFile(meta), against=MetaFile(meta))
    lines = describe_report(report, "m.txt")
    assert lines[0] == "m.txt: 1 row of this set is in the other, too; 1 row, 1 class"
    assert not any("good" in line for line in lines)
    assert len(report.errors()) == 1
