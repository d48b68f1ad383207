from __future__ import annotations

import os
from pathlib import Path

import pytest

from data.index.unfinished import TORN, Unfinished, publish, sync_folder


def test_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with Unfinished(tmp_path, "x") as unfinished:
        unfinished.file.write(b"12")
        assert not path.exists()
        assert TORN in unfinished.path.name
        assert unfinished.publish(path) == 2
    assert path.read_bytes() == b"12"
    assert os.listdir(tmp_path) == ["x"]
    with Unfinished(tmp_path, "x") as unfinished:
        unfinished.file.write(b"3")
    assert path.read_bytes() == b"12"
    assert os.listdir(tmp_path) == ["x"]


def test_two_of_one_name_do_not_meet(tmp_path: Path) -> None:
    with Unfinished(tmp_path, "x") as one, Unfinished(tmp_path, "x") as two:
        one.file.write(b"1")
        two.file.write(b"2")
        one.publish(tmp_path / "x")
        two.publish(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"2"
    assert os.listdir(tmp_path) == ["x"]


def test_a_disk_that_is_full_at_closing_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished = Unfinished(tmp_path, "x")
    unfinished.file.write(b"never flushed")
    os.close(unfinished.file.fileno())  # any write to it fails from now on
    unfinished.drop()
    unfinished.drop()
    assert os.listdir(tmp_path) == []


def test_publish(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    publish(tmp_path / "x", iter([b"1", b"2"]), tmp_path / "work")
    publish(tmp_path / "y", [b"3"])
    sync_folder(tmp_path)
    assert (tmp_path / "x").read_bytes() + (tmp_path / "y").read_bytes() == b"123"
    assert os.listdir(tmp_path / "work") == []
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "none" / "z", [b""])
