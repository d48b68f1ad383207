from __future__ import annotations

import os
from pathlib import Path

import pytest

from data.errors import ClassesError, DataError, OptionError, OutsideRootError, RowError
from data.meta import MetaFile
from data.pictures import open_pictures

CLASSES = ["0", "1", "cat"]


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def rows(source: Path, **options: object) -> list[tuple[str, int | None]]:
    """(path relative to the source's root, label or None) of every row."""
    meta, labelled = open_pictures(source, classes=CLASSES, **options)  # type: ignore[arg-type]
    found = [meta.record(row)[:2] for row in range(meta.n)]
    return [(path, label if labelled else None) for path, label in found]


def test_folders_have_the_labels_of_training(tmp_path: Path) -> None:
    whole = tree(tmp_path / "whole", "00/deep/x/b.PNG", "01/a.jpg", ".git/1.png", "1.txt")
    assert rows(whole) == [("00/deep/x/b.PNG", 0), ("01/a.jpg", 1)]
    assert rows(whole / "01") == [("a.jpg", 1)]
    assert rows(whole / "00") == [("deep/x/b.PNG", 0)]
    assert rows(tree(tmp_path / "album", "2021/cat/a.png", "b.png")) == [("2021/cat/a.png", None), ("b.png", None)]
    assert rows(tree(tmp_path / "cat", "a.png")) == [("a.png", 2)]
    with pytest.raises(ClassesError, match=r"class folder .*/dog is none of the 3 classes"):
        rows(tree(tmp_path / "mixed", "cat/a.png", "dog/a.png"))
    with pytest.raises(ClassesError, match="holds no image"):
        rows(tree(tmp_path / "none", "a/notes.txt"))


def test_an_image_by_itself_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "my pic.png")
    assert rows(tmp_path / "my pic.png") == [("my pic.png", None)]
    monkeypatch.chdir(tmp_path)
    meta, _ = open_pictures(Path("my pic.png"), classes=CLASSES)
    assert (meta.place(0), meta.allow_outside_root) == ("my pic.png", True)
    with pytest.raises(DataError, match="not UTF-8"):
        open_pictures(Path(os.fsdecode(b"\xff.png")), classes=CLASSES)[0].check_all()


def test_lists_are_of_one_kind(tmp_path: Path) -> None:
    text = tmp_path / "list.txt"
    text.write_text("a b.png\r\nd/c.jpg  \n\n")
    assert rows(text) == [("a b.png", None), ("d/c.jpg", None)]
    text.write_text("a b.png cat\nc.jpg 1\n")
    assert rows(text) == [("a b.png", 2), ("c.jpg", 1)]
    assert open_pictures(text, classes=CLASSES, root=Path("/"))[0].root_of(0) == Path("/")
    text.write_text("a.png\nb.png cat\n")
    with pytest.raises(RowError, match=r"list\.txt:2  .* is no image's name, but the first line is: a list is of"):
        rows(text)
    text.write_text("a.png\n\nb.png\n")
    with pytest.raises(RowError, match=r"list\.txt:2  is blank: every line is 'path'"):
        rows(text)
    text.write_text("a.png cat\nb.png\n")
    with pytest.raises(RowError, match=r"list\.txt:2  'b\.png' has no label"):
        rows(text)


def test_the_root_confines_lists(tmp_path: Path) -> None:
    text = tmp_path / "list.txt"
    for line in ("/etc/a.png", "../a.png", "../a.png cat"):
        text.write_text(line)
        with pytest.raises(OutsideRootError, match=r"list\.txt:1  .* (leaves the root|is absolute): paths are"):
            rows(text)
        assert len(rows(text, allow_outside_root=True)) == 1
    text.write_text("a.png")
    meta, _ = open_pictures(text, classes=CLASSES, root=tmp_path.parent)
    assert isinstance(meta, MetaFile)
    assert meta.root_of(0) == tmp_path.parent


def test_other_lists(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text('file_name,label\na.png,cat\n"b,c.png",0\n')
    assert rows(table) == [("a.png", 2), ("b,c.png", 0)]
    table.write_text("file_name,size\na.png,12 kB\n")
    assert rows(table) == [("a.png", None)]
    table.write_text("file_name\na.png\nb.png\n")
    assert rows(table) == [("a.png", None), ("b.png", None)]
    lines = tmp_path / "list.jsonl"
    lines.write_text('{"image": "a.png"}\n')
    assert rows(lines) == [("a.png", None)]
    lines.write_text('{"image": "a.png", "label": "cat"}\n')
    assert rows(lines) == [("a.png", 2)]


def test_clips_are_no_pictures(tmp_path: Path) -> None:
    text = tmp_path / "list.txt"
    text.write_text("v 12 1\n")
    with pytest.raises(OptionError, match=r"list\.txt: frame folders .*: what is looked at here are single images"):
        rows(text)
