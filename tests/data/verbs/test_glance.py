from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.cost import cost
from data.errors import ClassesError, MetaFileError, OptionError, RowError, SplitError
from data.index import lines
from data.index.census import open_census
from data.verbs import glance as module
from data.verbs.glance import glance

Write = Callable[..., Path]


def test_a_meta_file(write: Write) -> None:
    path = write("a.png 0\nb.png 1\n" * 10)
    found = glance(path, world_size=4)
    assert found == (f"{path}: lines 'path label'", 20, True, 160, True, found.costs)
    assert found.costs == {
        "row shard": cost(20, 160, world_size=4),
        "row direct": cost(20, 160, world_size=4, read="direct"),
    }
    assert glance([path, path], classes=2).rows == 40
    assert glance(write("file,class\na.png,cat\n", "m.csv")).rows == 1
    assert glance(path, exclude=write("3\n4\n", "out.txt")).rows == 18


def test_bad_ends_are_told(write: Write) -> None:
    with pytest.raises(RowError, match=r"m\.txt:2  'b\.png' has no label"):
        glance(write("a.png 0\nb.png\n"))
    with pytest.raises(MetaFileError, match="No such file"):
        glance("none.txt")
    with pytest.raises(MetaFileError, match="no file is called like none"):
        glance("none*.txt")
    fifo = write("", "there.txt").with_name("fifo")
    os.mkfifo(fifo)
    with pytest.raises(MetaFileError, match="is no regular file"):
        glance(fifo)


def test_an_epoch_without_a_step(write: Write) -> None:
    path = write("a.png 0\n" * 5)
    with pytest.raises(SplitError, match="an epoch without a single step: 5 rows"):
        glance(path, global_batch=6)
    assert glance(path, global_batch=6, tail="mask").rows == 5
    with pytest.raises(SplitError, match="smaller than the 4 ranks"):
        glance(path, global_batch=3, world_size=4)


def test_block_order_wants_a_large_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.png 0\n" * 5000)
    with pytest.raises(SplitError, match=r"order=block with 40,000 bytes .* take order=row"):
        glance(path, order="block")

    class Small:
        lanes = 12

    monkeypatch.setattr(module, "choose_blocks", lambda size: Small)
    found = glance(path, order="block", world_size=4)
    assert found.costs["block shard"] == cost(5000, 40_000, world_size=4, lanes=12)


def test_a_huge_file_is_estimated_until_it_has_an_index(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(module, "COUNTED_BYTES", 1 << 15)
    monkeypatch.setattr(module, "ESTIMATED_FROM_BYTES", 1 << 14)
    monkeypatch.setattr(module, "SMALL_BYTES", 1 << 15)
    path = write("".join(f"images/{row:06d}.png {row % 7}\n" for row in range(20_000)))
    os.utime(path, (1, 1))
    found = glance(path)
    assert (found.exact, found.indexed) == (False, False)
    assert abs(found.rows - 20_000) < 200
    # far from the estimate a batch is refused, near it isn't
    assert glance(path, global_batch=30_000).rows == found.rows
    with pytest.raises(SplitError, match="an epoch without a single step"):
        glance(path, global_batch=50_000)
    # a bad line gets its true number
    bad = write(path.read_text() + "last.png\n", "bad.txt")
    with pytest.raises(RowError, match=r"bad\.txt:20001  'last\.png' has no label"):
        glance(bad)
    # numbers of rows to leave out need all rows to be counted
    assert glance(path, exclude=write("19999\n", "out.txt")).rows == 19_999
    open_census(path, force=True)
    found = glance(path)
    assert (found.rows, found.exact, found.indexed) == (20_000, True, True)
    unwritten = write(path.read_text(), "sub/m.txt")
    os.utime(unwritten, (1, 1))
    assert not glance(unwritten, cache=tmp_path / "cache").indexed


def test_class_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        (tmp_path / f"c{number}" / "deep").mkdir(parents=True)
        (tmp_path / f"c{number}" / ".hidden.png").write_bytes(b"x")
        (tmp_path / f"c{number}" / "notes.txt").write_bytes(b"x")
        for image in range(3):
            (tmp_path / f"c{number}" / "deep" / f"{image}.png").write_bytes(b"x")
    found = glance(tmp_path)
    line = len("c0/deep/0.png 0\n")
    assert found[:5] == (f"{tmp_path}: 4 class folders", 12, True, 12 * (line + 1), True)
    monkeypatch.setattr(module, "COUNTED_FILES", 5)
    assert glance(tmp_path)[1:4] == (12, False, 12 * (line + 1))
    with pytest.raises(OptionError, match="a folder of class folders is its own root"):
        glance(tmp_path, root="x")
    with pytest.raises(ClassesError, match="4 class folders"):
        glance(tmp_path, classes=3)


def test_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.tar", "b.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            for number in range(50):
                for kind, content in (("png", b"x" * 100), ("cls", b"3")):
                    member = tmp_path / f"{number:03d}.{kind}"
                    member.write_bytes(content)
                    tar.add(member, member.name)
    one, two = tmp_path / "a.tar", tmp_path / "b.tar"
    assert glance(one)[1:3] == (50, True)
    assert glance(one).told.startswith(f"{one}: 1 tar, an image and a label by name, 50 rows")
    found = glance([one, two])
    assert not found.exact
    assert 95 <= found.rows <= 110
    assert glance(str(tmp_path / "*.tar")).told == f"{one} and 1 more: an image and a label by name"
    monkeypatch.setattr(module, "COUNTED_SAMPLES", 10)
    assert not glance(one).exact
    with pytest.raises(OptionError, match=r"data\.columns with .*a\.tar: that has no columns"):
        glance(one, columns={"path": 0})
    with tarfile.open(tmp_path / "empty.tar", "w") as tar:
        tar.add(tmp_path / "000.cls", "000.cls")
    with pytest.raises(MetaFileError, match="no image with a label"):
        glance(tmp_path / "empty.tar")


def test_parquet(tmp_path: Path) -> None:
    pa: Any = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"path": ["a.png", "b.png"], "label": [0, 1]}), path)
    assert glance(path)[:3] == (f"{path}: Parquet", 2, True)
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": [0, 1]}), path)
    with pytest.raises(MetaFileError, match="holds images, not paths: 'data pack"):
        glance(path)
