from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import MetaFileError
from data.index.lines import LineFile, ends
from data.index.opening import end_of_text, open_regular, pread

Write = Callable[..., Path]


def refused(path: Path, told: str) -> None:
    with pytest.raises(MetaFileError, match=told):
        LineFile(path)
    with pytest.raises(MetaFileError, match=told):
        ends(path, 10)


def test_what_is_no_text_file(write: Write, tmp_path: Path) -> None:
    refused(tmp_path / "none.txt", r"none\.txt: No such file or directory; is the path right")
    refused(Path("none.txt"), f"right\\? Paths are relative to the current folder {Path.cwd()}$")
    refused(tmp_path, "is a folder where a meta file is wanted")
    refused(write(""), "is empty: a meta file has one line")
    refused(write("\n \r\n\n"), "is empty")
    refused(write(b"\xef\xbb\xbf\n"), "is empty")
    refused(write(b"\x1f\x8b\x08abc", "z.txt"), r"z\.txt is gzip-compressed: unpack it")
    refused(write(b"PK\x03\x04abc"), "is zip-compressed")
    refused(write("a 0\n".encode("utf-16")), "is UTF-16 text: a meta file is UTF-8")
    refused(Path("a\0b"), "null byte")


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "no regular file")


def test_a_device_is_no_meta_file() -> None:
    with pytest.raises(MetaFileError, match="no regular file"):
        open_regular(Path("/dev/null"))


def test_reading_at_an_offset(write: Write) -> None:
    fd = open_regular(write("0123456789"))
    try:
        assert pread(fd, 4, 2) == b"2345"
        assert pread(fd, 100, 8) == b"89"
        assert pread(fd, 100, 10) == b""
    finally:
        os.close(fd)


@pytest.mark.parametrize("blank", [0, 1, 4095, 4096, 5000, 3_000_000])
@pytest.mark.parametrize("text", [0, 1, 4096, 5000])
def test_the_end_of_text(text: int, blank: int) -> None:
    content = b"..." + b"x" * text + b" \n\t\r"[: min(4, blank)] + b"\n" * max(0, blank - 4)
    assert end_of_text(lambda count, at: content[at : at + count], 3, len(content)) == 3 + text
