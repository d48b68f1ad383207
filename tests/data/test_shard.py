from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import shard
from data.errors import ChangedError, RowError, SplitError
from data.index import lines
from data.memory import MemoryFile
from data.meta import MetaFile
from data.shard import Shard, build_shard, pack_rows

Write = Callable[..., Path]


def built(meta: MetaFile, rows: list[int] | np.ndarray, threads: int = 1) -> Shard:
    file = MemoryFile()
    build_shard(meta, np.array(rows, np.int64), file.fd, threads)
    return Shard(file.fd)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 300), data=st.data())
def test_a_shard_holds_the_chosen_rows_in_serving_order(
    n: int, data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shard.txt"
    path.write_text("\r\n".join(f"a{'b' * (row % 23)}-{row} {row % 5}" for row in range(n)))
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=50)), np.int64)
    with monkeypatch.context() as patch:
        patch.setattr(lines, "BATCH_BYTES", data.draw(st.integers(1, 4096)))
        patch.setattr(shard, "BLOCK_ROWS", block_rows := data.draw(st.sampled_from([1, 3, 1000])))
        meta = MetaFile([path, path], classes=5)
        found = built(meta, np.concatenate([rows, rows + n]), data.draw(st.integers(1, 2)))
    assert len(found) == 2 * rows.size
    assert [found.line(i) for i in range(len(found))] == [meta.line(int(row)) for row in [*rows, *(rows + n)]]
    distinct = len({*rows.tolist()})
    if block_rows == 1000:  # a row that is served often lies there once, but for a border between blocks
        assert found.size_bytes <= 64 + 4 * len(found) + 8 + 2 * distinct * 40


def test_what_it_takes(write: Write) -> None:
    meta = MetaFile(write("".join(f"n{row:08d}/{row}.JPEG {row % 10}\n" for row in range(10_000))), classes=10)
    rows = np.random.default_rng(0).permutation(10_000)[:5_000]
    text = sum(len(meta.line(int(row))) for row in rows[:500]) * 10
    found = built(meta, rows)
    # a line end and 3.5 bytes up to a multiple of 8, and an offset
    assert found.size_bytes == pytest.approx(text + 5_000 * (1 + 3.5 + 4), rel=0.05)
    assert found.line(17) == meta.line(int(rows[17]))


def test_every_build_has_a_token_of_its_own(write: Write) -> None:
    meta = MetaFile(write("a 0\nb 1\n"), classes=2)
    file = MemoryFile()
    tokens = set()
    for _ in range(3):
        build_shard(meta, np.array([1, 0]), file.fd)
        found = Shard(file.fd)
        assert [found.line(0), found.line(1)] == [b"b 1", b"a 0"]
        tokens.add(found.token)
        found.close()
    assert len(tokens) == 3
    assert {len(token) for token in tokens} == {16}


def test_a_shard_of_nothing(write: Write) -> None:
    found = built(MetaFile(write("a 0\n"), classes=1), [])
    assert len(found) == 0
    with pytest.raises(IndexError):
        found.line(0)


def test_only_own_rows_are_checked(write: Write) -> None:
    meta = MetaFile(write("a 0\nbad\nc 1\nd 9\ne\0f 1\n"), classes=2)
    assert len(built(meta, [2, 0])) == 2
    with pytest.raises(RowError, match=r"m\.txt:4  label 9 is out of range"):
        built(meta, [0, 3])
    with pytest.raises(RowError, match=r"m\.txt:2  'bad' has no label"):
        built(meta, [1])
    with pytest.raises(RowError, match=r"m\.txt:5  holds a NUL byte"):
        built(meta, [4])


@pytest.mark.parametrize("kept", [False, True])
def test_a_changed_file_gives_no_shard(write: Write, kept: bool) -> None:
    path = write("a 0\nb 1\n")
    meta = MetaFile(path, classes=2)
    if kept:
        built(meta, [0])
    path.write_text("a 1\nb 0\n")
    os.utime(path, ns=(0, 10**18))
    with pytest.raises(ChangedError, match="changed after it was opened"):
        built(meta, [0])


def test_a_build_that_ends_half_way_leaves_no_shard(write: Write) -> None:
    meta = MetaFile(write("a 0\nbad\n"), classes=2)
    file = MemoryFile()
    build_shard(meta, np.array([0]), file.fd)
    with pytest.raises(RowError):
        build_shard(meta, np.array([0, 1]), file.fd)
    with pytest.raises(ValueError, match="no finished shard: its builder ended half-way"):
        Shard(file.fd)
    build_shard(meta, np.array([0]), file.fd)
    assert Shard(file.fd).line(0) == b"a 0"
    os.ftruncate(file.fd, len(file) - 1)
    with pytest.raises(ValueError, match="its length is not what its header says"):
        Shard(file.fd)
    empty = MemoryFile()
    with pytest.raises(ValueError, match="no finished shard"):
        Shard(empty.fd)


def test_what_is_too_large_says_what_to_do(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = MetaFile(write("a 0\nb 1\nc 1\n"), classes=2)
    monkeypatch.setattr(shard, "MOST_TEXT_BYTES", 16)
    assert len(built(meta, [2, 0])) == 2
    with pytest.raises(
        SplitError, match=r"a shard of 3 rows is more than 32 GiB of text: use more ranks, or data\.read=d"
    ):
        built(meta, [2, 0, 1])
    monkeypatch.setattr(meta, "n", 1 << 63)
    with pytest.raises(SplitError, match="more than 32 GiB"):
        built(meta, [2, 0, 1])


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(0, 20))
def test_packed_rows(sizes: list[int], apart: int) -> None:
    rows = [bytes([65 + at % 26]) * size for at, size in enumerate(sizes)]
    text = np.frombuffer((b"." * apart).join(rows) + b"." * 8, np.uint8)
    starts = np.cumsum([0, *(size + apart for size in sizes[:-1])])
    kept, begins, ends = pack_rows(text, starts, starts + sizes)
    assert [kept[a:b].tobytes() for a, b in zip(begins, ends, strict=True)] == rows
    assert kept.tobytes() == b"".join(row.ljust(len(row) // 8 * 8 + 8, b"\n") for row in rows)
