from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rankrun.runfolder.files import make_folders, remove_tree, write_all, write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "old")
    write_atomically(tmp_path / "a", "né\n")
    assert (tmp_path / "a").read_bytes() == b"n\xc3\xa9\n"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write_atomically(tmp_path / "a", "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_write_of_nothing_is_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda descriptor, content: 0)
    with pytest.raises(OSError, match="No space left"):
        write_all(1, b"x")


def test_folders_are_made_and_named(tmp_path: Path) -> None:
    assert make_folders(tmp_path / "a" / "b") == [tmp_path / "a", tmp_path / "a" / "b"]
    assert make_folders(tmp_path / "a" / "b") == []


def test_folders_below_a_file_are_refused_and_undone(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(NotADirectoryError):
        make_folders(tmp_path / "f" / "a")
    with pytest.raises(NotADirectoryError):
        make_folders(tmp_path / "f")
    assert os.listdir(tmp_path) == ["f"]


def test_removing_a_tree_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "canary").write_text("alive")
    os.makedirs(tmp_path / "tree" / "sub")
    os.symlink(tmp_path, tmp_path / "tree" / "sub" / "link")
    os.symlink(tmp_path / "canary", tmp_path / "tree" / "file")
    remove_tree(tmp_path / "tree")
    assert os.listdir(tmp_path) == ["canary"]
    remove_tree(tmp_path / "tree")
