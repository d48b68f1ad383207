from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
    (images / "sub" / "1.png").write_bytes(b"x")
    assert write_clean(check_rows(MetaFile([one, far])), images / "far.txt") == 2
    assert (images / "far.txt").read_text() == "0.png 0\nsub/1.png 1\n"
    header, other = write("file,label\n0.png,1\n", "a.csv"), write("file,class\n0.png,1\n", "b.csv")
    with pytest.raises(OptionError, match="the files have different header lines; check one file at a time"):
        write_clean(check_rows(MetaFile([header, other])), images / "other.txt")
    bare = write("1.png 0\n2.png 1\n", "c.txt")
    wide = write("1.png,0\n2.png,1\n", "d.csv")
    with pytest.raises(OptionError, match="the lines of the files have different shapes; check one file at a time"):
        write_clean(check_rows(MetaFile([bare, wide])), images / "other.txt")


def test_no_clean_list(images: Path, write: Write) -> None:
    report = check_rows(MetaFile(write("none.png 0\n")))
    with pytest.raises(OptionError, match="not one row is good, so there is nothing to write"):
        write_clean(report, images / "clean.txt")
    good = check_rows(MetaFile(write("0.png 0\n", "good.txt")))
    with pytest.raises(OptionError, match=r"none/clean\.txt: there is no folder .*/none$"):
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


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("m.txt", "0.png 0\nnone.png 0\n1.png 1\n", "a,b/0.png 0\na,b/1.png 1\n"),
        ("m.csv", 'file,label\n0.png,"x, y"\n1.png,z\n', 'file,label\n"a,b/0.png","x, y"\n"a,b/1.png",z\n'),
        ("m.tsv", "0.png\tx\n1.png\ty\n", "a,b/0.png\tx\na,b/1.png\ty\n"),
        (
            "m.jsonl",
            '{"file": "0.png", "label": "ö", "more": 1}\n{"file": "1.png", "label": "b"}\n',
            '{"file": "a,b/0.png", "label": "ö", "more": 1}\n{"file": "a,b/1.png", "label": "b"}\n',
        ),
    ],
)
def test_paths_point_at_the_same_files_from_another_folder(tmp_path: Path, name: str, text: str, told: str) -> None:
    folder = tmp_path / "a,b"
    folder.mkdir()
    for image in ("0.png", "1.png"):
        (folder / image).write_bytes(b"x")
    (folder / name).write_text(text)
    report, out = check_rows(MetaFile(folder / name)), tmp_path / f"clean{Path(name).suffix}"
    assert write_clean(report, out) == 2
    assert out.read_text() == told
    again = check_rows(MetaFile(out))
    assert (again.errors(), again.meta.classes, again.counts.tolist()) == ([], report.meta.classes, [1, 1])


def test_a_list_may_lie_where_its_paths_are_told(images: Path, write: Write, tmp_path_factory: Any) -> None:
    far = tmp_path_factory.mktemp("far")
    meta = write("0.png 0\n1.png 1\n", "good.txt")
    with pytest.raises(OptionError, match=rf"c\.txt: its paths would leave its folder: write it into {images} or a"):
        CleanList(MetaFile(meta), far / "c.txt")
    rooted = CleanList(MetaFile(meta, root=images), far / "rooted.txt")
    assert (rooted.needs, rooted.write(np.ones(2, np.bool_))) == ([f"the same root, {images}"], 2)
    assert (far / "rooted.txt").read_text() == meta.read_text()
    assert check_rows(MetaFile(far / "rooted.txt", root=images)).errors() == []
    meta.write_text(f"0.png 0\n{images}/1.png 1\n")
    free = check_rows(MetaFile(meta, allow_outside_root=True))
    assert write_clean(free, far / "free.txt") == 2
    assert (far / "free.txt").read_text().endswith(f"{images}/1.png 1\n"), "absolute paths stay"
    assert check_rows(MetaFile(far / "free.txt", allow_outside_root=True)).errors() == []
    (images / "odd\nname").mkdir()
    inner = write("../0.png 0\n", "odd\nname/m.txt")
    with pytest.raises(OptionError, match=r"the name of the folder 'odd\\nname' can't stand in a line"):
        CleanList(MetaFile(inner, allow_outside_root=True), images / "c.txt")


def test_class_folders_become_a_list_with_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for image in ("set/cat/1.png", "set/dog/2.png", "set/dog/3.png"):
        (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / image).write_bytes(b"x")
    (tmp_path / "set" / "dog" / "3.png").write_bytes(b"")
    report = check_rows(MetaFile(tmp_path / "set", cache=tmp_path / "cache"))
    full = CleanList(report.meta, tmp_path / "clean.txt")
    real = os.rename

    def rename(old: Any, new: Path) -> None:
        if new.name == "clean.txt":
            raise OSError(28, "No space left on device")
        real(old, new)

    monkeypatch.setattr(clean.os, "rename", rename)
    with pytest.raises(OptionError, match="No space left on device; nothing was written"):
        full.write(~report.left_out)
    assert sorted(os.listdir(tmp_path)) == ["cache", "set"]
    monkeypatch.undo()
    names = tmp_path / "clean.classes.txt"
    assert full.write(~report.left_out) == 2
    assert full.needs == [f"data.classes: {names}"]
    assert (tmp_path / "clean.txt").read_text() == "set/cat/1.png 0\nset/dog/2.png 1\n"
    assert MetaFile(tmp_path / "clean.txt", classes=names).classes == ("cat", "dog")
    (tmp_path / "clean.txt").unlink()
    with pytest.raises(OptionError, match=r"clean\.classes\.txt: exists already"):
        CleanList(report.meta, tmp_path / "clean.txt")
    os.rename(tmp_path / "set" / "dog", tmp_path / "set" / "7")
    with pytest.raises(OptionError, match="some classes are named by numbers and some by words"):
        CleanList(MetaFile(tmp_path / "set"), tmp_path / "other.txt")


def test_numbered_class_folders_need_no_names(tmp_path: Path) -> None:
    for image in ("set/0/1.png", "set/1/2.png"):
        (tmp_path / image).parent.mkdir(parents=True)
        (tmp_path / image).write_bytes(b"x")
    made = CleanList(MetaFile(tmp_path / "set"), tmp_path / "clean.txt")
    assert (made.write(np.ones(2, np.bool_)), made.needs, made.names) == (2, [], None)
