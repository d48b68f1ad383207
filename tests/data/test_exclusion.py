from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DataError, MetaFileError, RowError
from data.exclusion import Excluded, read_excluded
from data.meta import MetaFile

Write = Callable[..., Path]


def of(*rows: int) -> Excluded:
    return Excluded(np.array(rows, np.int64))


def test_the_drawing() -> None:
    excluded = of(1, 4)
    assert excluded.rows_of(np.arange(5)).tolist() == [0, 2, 3, 5, 6]
    assert excluded.numbers_of(np.array([0, 2, 3, 5, 6, 7])).tolist() == [0, 1, 2, 3, 4, 5]
    kept = excluded.kept(0, 3)
    assert kept is not None
    assert kept.tolist() == [True, False, True]
    assert excluded.kept(2, 4) is None


@given(st.sets(st.integers(0, 30)), st.integers(0, 31), st.integers(0, 31))
def test_numbers_and_rows_are_inverse(gone: set[int], begin: int, end: int) -> None:
    excluded = of(*sorted(gone))
    left = [row for row in range(31) if row not in gone]
    assert excluded.rows_of(np.arange(len(left))).tolist() == left
    assert excluded.numbers_of(np.array(left, np.int64)).tolist() == list(range(len(left)))
    first, stop = min(begin, end), max(begin, end)
    kept = excluded.kept(first, stop)
    expected = [row not in gone for row in range(first, stop)]
    assert (kept is None and all(expected)) or (kept is not None and kept.tolist() == expected)


def test_it_travels_by_handle_and_small() -> None:
    excluded = of(*range(0, 300_000, 3))
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        ((result, first),) = pool.map(_look, [excluded])
    assert (result, first) == (100_000, 1)
    copy = pickle.loads(pickle.dumps(of(3)))
    assert copy.rows.tolist() == [3]
    assert copy.digest == of(3).digest != of(4).digest


def _look(excluded: Excluded) -> tuple[int, int]:
    return excluded.rows.size, int(excluded.rows_of(np.array(0)))


def test_files_of_row_numbers(write: Write) -> None:
    one, two = write("\ufeff5\r\n0\n5\n\n", "1.txt"), write("2 3\n", "2.txt")
    assert read_excluded([one, two], 7).rows.tolist() == [0, 2, 3, 5]
    assert read_excluded([], 7).size == 0
    assert read_excluded([write("\n", "3.txt")], 7).size == 0


REFUSED = [
    (
        "3\n7\n",
        RowError,
        r"x\.txt:2  '7' is no row: data\.exclude names files of row numbers, one per line, 0 … 6 here",
    ),
    ("3\n-1\n", RowError, r"x\.txt:2  '-1' is no row"),
    ("row\n3\n", RowError, r"x\.txt:1  'row' is no row"),
    ("1.5\n", RowError, "'1.5' is no row"),
    ("9" * 40, RowError, "'9{40}' is no row"),
    (b"\xff\n", RowError, "is no row"),
    ("0 1 2 3 4 5 6", MetaFileError, "all 7 rows are left out"),
    (b"\x1f\x8b\x08", MetaFileError, "is gzip-compressed: unpack it first"),
]


@pytest.mark.parametrize(("text", "kind", "told"), REFUSED)
def test_what_is_refused(write: Write, text: str | bytes, kind: type[DataError], told: str) -> None:
    with pytest.raises(kind, match=told) as caught:
        read_excluded([write(text, "x.txt")], 7)
    assert "\n" not in str(caught.value)


def test_no_file_of_row_numbers(tmp_path: Path) -> None:
    with pytest.raises(MetaFileError, match=r"data\.exclude: .*none\.txt: No such file or directory"):
        read_excluded([tmp_path / "none.txt"], 7)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MetaFileError, match=r"data\.exclude: .*pipe is no regular file"):
        read_excluded([tmp_path / "pipe"], 7)


def test_a_meta_file_without_some_rows(write: Write) -> None:
    sources = [write("".join(f"a{i} {i}\n" for i in range(5)), "a.txt"), write("bad\nb1 1\nb2 9\n", "b.txt")]
    exclude = write("0\n5\n3\n", "x.txt")
    meta = MetaFile(sources, exclude=exclude)
    assert (meta.n, meta.num_classes) == (5, 10)
    assert [meta.record(row).path for row in range(5)] == ["a1", "a2", "a4", "b1", "b2"]
    assert [meta.line_of(row).rpartition("/")[2] for row in range(5)] == [
        "a.txt:2",
        "a.txt:3",
        "a.txt:5",
        "b.txt:2",
        "b.txt:3",
    ]
    meta.check()
    meta.check_all()
    chunks = [(first, [text[a:b].tobytes() for a, b in zip(s, e, strict=True)]) for first, text, s, e in meta.chunks()]
    assert chunks == [(0, [b"a1 1", b"a2 2", b"a4 4"]), (3, [b"b1 1", b"b2 9"])]
    found = [
        (lo, hi, [text[a:b].tobytes() for a, b in zip(s, e, strict=True)])
        for lo, hi, text, s, e in meta.gather(np.array([0, 2, 3]))
    ]
    assert found == [(0, 2, [b"a1 1", b"a4 4"]), (2, 3, [b"b1 1"])]
    assert meta.unit_starts(4096).tolist() == [0, 3, 5]
    assert meta.fingerprint != MetaFile(sources, classes=10).fingerprint
    assert meta.fingerprint != MetaFile(sources, classes=10, exclude=write("0\n5\n", "y.txt")).fingerprint
    assert MetaFile(sources[0], exclude=write("4", "z.txt")).num_classes == 4, "what is left out has no say"
