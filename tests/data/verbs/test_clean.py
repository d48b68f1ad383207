from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import OptionError
from data.meta import MetaFile
from data.verbs import clean
from data.verbs.check import Report, check_rows
from data.verbs.clean import CleanList

Write = Callable[..., Path]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with ten files that are as good as images, and a link out of it."""
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    (tmp_path / "out.png").symlink_to("/etc/hostname")
    (tmp_path / "in.png").symlink_to("1.png")
    (tmp_path / "far").symlink_to("/etc")
    return tmp_path


def write_clean(report: Report, out: Path) -> int:
    return CleanList(report.meta, out).write(~report.left_out)


def test_a_clean_list(images: Path, write: Write) -> None:
    path = write("0.png 0\r\nnone.png 0\r\n1.png 1\r\n0.png 0\r\n2.png x\r\n2.png 1\r\n")
    train = write("2.png 1\n3.png 0\n", "t.txt")
    report = check_rows(MetaFile(path, classes=2), against=MetaFile(train))
    out = images / "clean.txt"
    assert write_clean(report, out) == 2
    assert out.read_bytes() == b"0.png 0\n1.png 1\n"
    assert check_rows(MetaFile(out, classes=2), against=MetaFile(train)).errors() == []
    assert [name for name in os.listdir(images) if "unfinished" in name] == []
    with pytest.raises(OptionError, match=r"clean\.txt: exists already and is not overwritten; name a new file"):
        write_clean(report, out)
    with pytest.raises(OptionError, match=r"m\.txt: exists already"):
        write_clean(report, path)


def test_a_clean_list_keeps_the_header(images: Path, write: Write) -> None:
    path = write("file_name,label\n0.png,cat\nnone.png,dog\n1.png,dog\n", "m.csv")
    out = images / "clean.csv"
    assert write_clean(check_rows(MetaFile(path)), out) == 2
    assert out.read_text() == "file_name,label\n0.png,cat\n1.png,dog\n"
    assert MetaFile(out).classes == ("cat", "dog")


def test_a_clean_list_of_several_files(images: Path, write: Write) -> None:
    one, two = write("0.png 0\nnone.png 0\n", "a.txt"), write("1.png 1\n0.png 0\n", "b.txt")
    out = images / "clean.txt"
    assert write_clean(check_rows(MetaFile([one, two])), out) == 2
    assert out.read_text() == "0.png 0\n1.png 1\n"
    far = write("1.png 1\n", "sub/c.txt")
    report = check_rows(MetaFile([one, far]))
    with pytest.raises(OptionError, match=r"the rows are relative to different folders \(.*, .*sub\); check one file"):
        write_clean(report, images / "other.txt")
    header, other = write("file,label\n0.png,1\n", "a.csv"), write("file,class\n0.png,1\n", "b.csv")
    with pytest.raises(OptionError, match="the files have different header lines; check one file at a time"):
        write_clean(check_rows(MetaFile([header, other])), images / "other.txt")


def test_no_clean_list(images: Path, write: Write) -> None:
    report = check_rows(MetaFile(write("none.png 0\n")))
    with pytest.raises(OptionError, match="not one row is good, so there is nothing to write"):
        write_clean(report, images / "clean.txt")
    good = check_rows(MetaFile(write("0.png 0\n", "good.txt")))
    with pytest.raises(OptionError, match=r"none/clean\.txt: No such file or directory; nothing was written"):
        write_clean(good, images / "none" / "clean.txt")


def test_a_full_disk_leaves_no_half_of_a_clean_list(
    images: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    report = check_rows(MetaFile(write("0.png 0\n")))
    monkeypatch.setattr(clean.os, "fsync", full)
    before = sorted(os.listdir(images))
    with pytest.raises(OptionError, match=r"clean\.txt: No space left on device; nothing was written"):
        write_clean(report, images / "clean.txt")
    assert sorted(os.listdir(images)) == before
