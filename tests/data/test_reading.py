from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import pytest

from data import reading
from data.decode import UnreadableImage
from data.reading import OpenFiles, open_file, read_file


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LARGEST_FILE", 3)
    (tmp_path / "a").write_bytes(b"1234")
    with pytest.raises(UnreadableImage, match="4 bytes, more than 3"):
        read_file(str(tmp_path / "a"))
    with pytest.raises(UnreadableImage, match="a span of 4 bytes, more than 3"):
        OpenFiles().read(str(tmp_path / "a"), 0, 4)
    (tmp_path / "a").write_bytes(b"123")
    assert read_file(str(tmp_path / "a")) == b"123"


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(UnreadableImage, match="no regular file"):
            open_file(str(path))
    with pytest.raises(FileNotFoundError):
        OpenFiles().read(str(tmp_path / "none"), 0, 1)
    with pytest.raises(ValueError, match="null"):
        open_file("a\0")


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_OPEN", 3)
    before = len(os.listdir("/proc/self/fd"))
    files = OpenFiles()
    for index in range(20):
        (tmp_path / str(index)).write_bytes(bytes([index]) * 9)
        assert files.read(str(tmp_path / str(index)), 3, 4) == bytes([index]) * 4
    assert len(os.listdir("/proc/self/fd")) - before <= 3
    copy = pickle.loads(pickle.dumps(files))
    assert copy.read(str(tmp_path / "7"), 0, 1) == b"\x07"
    assert len(os.listdir("/proc/self/fd")) - before <= 4


def test_threads_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_OPEN", 2)
    files = OpenFiles()
    for index in range(6):
        (tmp_path / str(index)).write_bytes(bytes([index]) * 100)
    wrong: list[object] = []

    def read(first: int) -> None:
        for step in range(300):
            index = (first + step) % 6
            try:
                if files.read(str(tmp_path / str(index)), step % 50, 50) != bytes([index]) * 50:
                    wrong.append(index)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
