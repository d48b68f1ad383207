from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import lines
from data.errors import ChangedError, MetaFileError, RowError
from data.lines import LineFile

Write = Callable[..., Path]


@pytest.mark.parametrize(
    "content", [b"a 0\nb 1\n", b"a 0\nb 1", b"\xef\xbb\xbfa 0\r\nb 1\r\n", b"a 0\nb 1\n\n \t\r\n\n"]
)
def test_line_ends_byte_order_mark_and_blank_end(write: Write, content: bytes) -> None:
    file = LineFile(write(content))
    assert file.rows == 2
    assert [file.read(row) for row in range(2)] == [b"a 0", b"b 1"]
    ((first, text, starts, stops),) = list(file.chunks())
    assert first == 0
    assert [text[a:b].tobytes() for a, b in zip(starts, stops, strict=True)] == [b"a 0", b"b 1"]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), chunk=st.integers(1, 40), ending=st.sampled_from([b"\n", b"\r\n"]), mark=st.booleans())
def test_any_chunking_finds_the_same_rows(
    data: st.DataObject, chunk: int, ending: bytes, mark: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = data.draw(
        st.lists(st.binary(min_size=1, max_size=9).map(lambda b: b"x" + b.hex().encode()), min_size=1, max_size=200)
    )
    path = tmp_path_factory.getbasetemp() / "chunked.txt"
    path.write_bytes(
        (b"\xef\xbb\xbf" if mark else b"") + ending.join(rows) + data.draw(st.sampled_from([b"", ending, b"\n\n"]))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_BYTES", chunk)
        file = LineFile(path)
        assert file.rows == len(rows)
        assert [file.read(row) for row in range(len(rows))] == rows
        found = []
        for first, text, starts, stops in file.chunks():
            assert first == len(found)
            found += [text[a:b].tobytes() for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
        assert found == rows
    assert LineFile(path).digest == file.digest


def test_every_64th_offset_is_all_that_is_kept(write: Write) -> None:
    file = LineFile(write("".join(f"picture-{row:06d}.png 1\n" for row in range(10_000))))
    assert file._starts.nbytes == 8 * -(-10_000 // 64)
    assert file.read(9_999) == b"picture-009999.png 1"
    assert file.read(64) == b"picture-000064.png 1"


def test_lines_in_memory_are_those_of_a_file(write: Write) -> None:
    text = b"".join(b"a%03d 0\n" % row for row in range(300))
    file, held = LineFile(write(text)), lines.LineText("some/folder", text)
    assert (held.rows, held.digest, held.size_bytes) == (file.rows, file.digest, file.size_bytes)
    copy = pickle.loads(pickle.dumps(held))
    assert copy.read(299) == b"a299 0"
    assert [first for first, *_ in copy.chunks()] == [first for first, *_ in file.chunks()]
    assert str(copy.path) == "some/folder"


def refused(path: Path, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        LineFile(path)
    with pytest.raises(kind, match=told):
        lines.ends(path, 10)


def test_what_is_no_text_file(write: Write, tmp_path: Path) -> None:
    refused(tmp_path / "none.txt", MetaFileError, r"none\.txt: No such file or directory; is the path right")
    refused(Path("none.txt"), MetaFileError, f"right\\? Paths are relative to the current folder {Path.cwd()}$")
    refused(tmp_path, MetaFileError, "is a folder where a meta file is wanted")
    refused(write(""), MetaFileError, "is empty: a meta file has one line")
    refused(write("\n \r\n\n"), MetaFileError, "is empty")
    refused(write(b"\x1f\x8b\x08abc", "z.txt"), MetaFileError, r"z\.txt is gzip-compressed: unpack it")
    refused(write(b"PK\x03\x04abc"), MetaFileError, "is zip-compressed")
    refused(write("a 0\n".encode("utf-16")), MetaFileError, "is UTF-16 text: a meta file is UTF-8")
    refused(Path("a\0b"), MetaFileError, "null byte")


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", MetaFileError, "no regular file")


def test_nul_and_endless_lines_name_their_line(write: Write) -> None:
    with pytest.raises(RowError, match=r"m\.txt:3  holds a NUL byte"):
        LineFile(write(b"a 0\nb 0\nc\0 0\n"))
    with pytest.raises(RowError, match=r"m\.txt:2  a line of more than 65536 bytes"):
        LineFile(write(b"a 0\n" + b"x" * 10_000_000 + b" 1\nb 1\n"))
    with pytest.raises(RowError, match=r"m\.txt:3  a line of more than 65536 bytes"):
        LineFile(write(b"a 0\nb 0\n" + b"x" * 70_000))
    assert LineFile(write(b"a 0\n" + b"x" * 65_536 + b"\nb 0\n")).rows == 3


def test_a_file_that_changes_is_noticed(write: Write) -> None:
    path = write("".join(f"a{row:03d} 0\n" for row in range(300)))
    file = LineFile(path)
    assert file.read(3) == b"a003 0"
    with open(path, "r+b") as handle:
        handle.seek(21 * 7)
        handle.write(b"b")
    with pytest.raises(ChangedError, match="changed after it was opened"):
        list(file.chunks())
    with open(path, "r+b") as handle:
        handle.seek(6)
        handle.write(b"b")  # a line end is gone
    with pytest.raises(ChangedError, match="changed after it was opened"):
        file.read(3)
    path.write_text("a 0\n")
    with pytest.raises(ChangedError, match="changed after it was opened"):
        pickle.loads(pickle.dumps(file)).read(0)


def test_both_ends_of_a_large_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"a{row} 0".encode() for row in range(5_000)]
    path = write(b"\xef\xbb\xbf" + b"\n".join(rows) + b"\n\n")
    small, total = lines.ends(path, 7)
    monkeypatch.setattr(lines, "CHUNK_BYTES", 100)
    large, total_large = lines.ends(path, 7)
    assert small == large
    assert total == total_large == 5_000
    assert large == [(i + 1, rows[i]) for i in [*range(7), *range(4_993, 5_000)]]


def test_an_open_file_travels_without_its_descriptor(write: Write) -> None:
    file = LineFile(write("a 0\nb 1\n"))
    assert file.read(0) == b"a 0"
    copy = pickle.loads(pickle.dumps(file))
    assert copy._fd is None
    assert copy.read(1) == b"b 1"
    assert np.array_equal(copy._starts, file._starts)
