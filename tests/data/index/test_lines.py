from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import ChangedError, MetaFileError, RowError
from data.index import census, lines
from data.index.lines import LineFile, LineText
from data.index.scan import PAGE

Write = Callable[..., Path]


def rows_of(batches: Iterator[lines.Batch]) -> list[bytes]:
    """The rows of `gather`'s batches, whose numbers must follow each other."""
    found: list[bytes] = []
    for low, high, text, starts, stops in batches:
        assert (low, high - low) == (len(found), starts.size)
        assert text.ctypes.data % 8 == 0
        assert stops[-1] + 8 <= text.size
        found += [text[a:b].tobytes() for a, b in zip(starts, stops, strict=True)]
    return found


def all_rows(file: LineFile) -> list[bytes]:
    found: list[bytes] = []
    for first, text, starts, stops in file.chunks():
        assert first == len(found)
        found += [text[a:b].tobytes() for a, b in zip(starts, stops, strict=True)]
    return found


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
    for row in (-1, 2):
        with pytest.raises(IndexError, match=f"row {row} of 2"):
            file.read(row)


lengths = st.lists(st.sampled_from([0, 1, 3, 30, 31, 32, 300, 4095, 4096, 4097, 9000]), min_size=1, max_size=40)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), lengths=lengths, times=st.sampled_from([1, 1, 60]), in_memory=st.booleans())
def test_any_rows_of_any_file(
    data: st.DataObject,
    lengths: list[int],
    times: int,
    in_memory: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ending = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    rows = [(b"%d" % at).ljust(length, b"x") for at, length in enumerate(lengths * times)]
    skip = 0 if in_memory else data.draw(st.integers(0, min(2, len(rows) - 1)))
    head = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    tail = data.draw(st.sampled_from([b"", ending, b"\n\n", b" \t", b"\n" * 5000]))
    path = tmp_path / "any.txt"
    path.write_bytes(head + ending.join(rows) + tail)
    rows = rows[skip:]
    with monkeypatch.context() as patch:
        patch.setattr(lines, "BATCH_BYTES", data.draw(st.sampled_from([1, 5000, 1 << 20])))
        patch.setattr(lines, "CHUNK_BYTES", data.draw(st.sampled_from([1, 5000, 1 << 22])))
        patch.setattr(lines, "GAP_PAGES", data.draw(st.sampled_from([0, 4])))
        patch.setattr(lines, "DENSE_ROWS", data.draw(st.sampled_from([1, 8, 1000])))
        file = LineText(path, path.read_bytes()) if in_memory else LineFile(path, skip=skip)
        assert file.rows == len(rows)
        assert all_rows(file) == rows
        wanted = np.array(sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=50))), np.int64)
        for threads in (1, 2):
            assert rows_of(file.gather(wanted, threads)) == [rows[row] for row in wanted]
        for row in wanted[:3].tolist():
            assert file.read(row) == rows[row]


def test_line_numbers_count_header_lines(write: Write) -> None:
    file = LineFile(write("path,label\na,0\nb,1\n"), skip=1)
    assert (file.rows, file.read(0), file.read(1)) == (2, b"a,0", b"b,1")
    assert [file.line_number(row) for row in range(2)] == [2, 3]
    with pytest.raises(MetaFileError, match=r"m\.txt has a header and no row below it"):
        LineFile(write("path,label\n"), skip=1)


def big(rows: int = 100_000) -> bytes:
    return b"".join(b"n%08d/picture-%d.JPEG %d\n" % (row % 997, row, row % 1000) for row in range(rows))


def test_only_the_pages_of_the_rows_are_read(write: Write) -> None:
    file = LineFile(write(big()))
    assert file.read_bytes == 0
    file.read(50_000)
    assert file.read_bytes <= 2 * PAGE
    before = file.read_bytes
    list(file.gather(np.array([0, 30_000, 60_000, 99_999])))
    assert file.read_bytes - before <= 8 * PAGE
    before = file.read_bytes
    list(file.gather(np.arange(20_000, 40_000)))  # a fifth of the rows, side by side
    assert file.read_bytes - before <= 0.2 * file.size_bytes + 2 * PAGE
    before = file.read_bytes
    list(file.chunks())
    assert file.read_bytes - before <= 1.01 * file.size_bytes


def test_batches_are_small_whatever_is_asked_for(write: Write) -> None:
    file = LineFile(write(big(200_000)))
    sizes = [text.size for _, _, text, _, _ in file.gather(np.arange(0, 200_000, 3))]
    assert len(sizes) >= 6
    assert max(sizes) <= lines.BATCH_BYTES + 4 * (1 << 16)
    assert list(file.gather(np.empty(0, np.int64))) == []


def test_units_begin_at_the_first_row_behind_their_border(write: Write) -> None:
    text = b"\xef\xbb\xbfhead\n" + big(5_000) + b"\n\n"
    file = LineFile(write(text), skip=1)
    feeds = [at for at, byte in enumerate(text) if byte == 10]
    begins = np.array(feeds[: file.rows])  # the line feed before each row
    for unit in (4096, 8192, 65536, 1 << 20):
        found = file.unit_starts(unit)
        borders = np.arange(-(-len(text) // unit)) * unit
        assert found.tolist() == [0, *np.searchsorted(begins, borders[1:]).tolist(), 5_000]
    for unit in (0, 1000):
        with pytest.raises(ValueError, match=f"unit_bytes {unit} is no multiple of 4096"):
            file.unit_starts(unit)


def test_lines_in_memory_are_those_of_a_file(write: Write) -> None:
    text = b"".join(b"a%03d 0\n" % row for row in range(300))
    file, held = LineFile(write(text)), LineText("some/folder", text)
    assert (held.rows, held.digest, held.size_bytes) == (file.rows, file.digest, file.size_bytes)
    copy = pickle.loads(pickle.dumps(held))
    assert copy.read(299) == b"a299 0"
    assert [first for first, *_ in copy.chunks()] == [first for first, *_ in file.chunks()]
    assert str(copy.path) == "some/folder"


def test_endless_lines_name_their_line(write: Write) -> None:
    with pytest.raises(RowError, match=r"m\.txt:2  a line of more than 65536 bytes"):
        LineFile(write(b"a 0\n" + b"x" * 10_000_000 + b" 1\nb 1\n"))


def test_other_bytes_under_the_same_counts_are_noticed(write: Write) -> None:
    # size and line feeds stay, so only the time tells, and then the sums
    path = write(big(3000))
    file = LineFile(path)
    copy = pickle.dumps(file)
    status = path.stat()
    with open(path, "r+b") as handle:
        handle.seek(21 * 7)
        handle.write(b"b")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    for act in (
        lambda: file.read(0),
        lambda: list(file.chunks()),
        lambda: list(file.gather(np.array([2000]))),
        lambda: pickle.loads(copy).read(0),
    ):
        with pytest.raises(ChangedError, match=r"m\.txt changed after it was opened: start the run again"):
            act()


def test_other_counts_are_noticed_whatever_the_time_says(write: Write) -> None:
    path = write(big(3000))
    file = LineFile(path)
    assert file.read(3) == b"n00000003/picture-3.JPEG 3"
    status = path.stat()
    text = path.read_bytes()
    with open(path, "r+b") as handle:
        handle.seek(text.index(b"\n", 1000))
        handle.write(b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ChangedError, match="changed after it was opened"):
        file.read(3)
    assert file.read(2999) == b"n00000008/picture-2999.JPEG 999"  # of another page


def test_a_file_that_changes_while_rows_are_taken_is_noticed(write: Write) -> None:
    path = write(big(3000))
    batches = LineFile(path).gather(np.arange(3000))
    next(batches)
    path.write_bytes(big(3000).replace(b"7.JPEG", b"8.JPEG"))
    with pytest.raises(ChangedError, match="changed after it was opened"):
        next(batches)


@pytest.mark.parametrize("act", ["cut", "gone"])
def test_a_file_that_shrinks_or_goes_away(write: Write, act: str) -> None:
    path = write(big(3000))
    file = LineFile(path)
    packed = pickle.dumps(file)
    if act == "cut":
        os.truncate(path, 10_000)
        with pytest.raises(ChangedError, match="changed after it was opened"):
            file.read(2999)
        with pytest.raises(ChangedError, match="changed after it was opened"):
            pickle.loads(packed).read(0)
    else:
        path.unlink()
        with pytest.raises(MetaFileError, match="No such file"):
            pickle.loads(packed).read(0)


def test_a_touched_or_copied_file_is_still_the_same(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(big(3000))
    file = LineFile(path)
    os.utime(path, ns=(0, 0))
    assert file.read(5) == b"n00000005/picture-5.JPEG 5"
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)
    fresh = pickle.loads(pickle.dumps(file))
    compared: list[int] = []
    scan = lines.scan
    monkeypatch.setattr(lines, "scan", lambda *given: compared.append(1) or scan(*given))
    for row in range(10):
        assert fresh.read(row).startswith(b"n")
    assert len(compared) == 1  # not at every row


@pytest.mark.parametrize("skip", [0, 1])
def test_an_open_file_travels_without_its_descriptor(write: Write, monkeypatch: pytest.MonkeyPatch, skip: int) -> None:
    monkeypatch.setattr(census, "SMALL_BYTES", 1)
    path = write(big(10_000))
    os.utime(path, ns=(0, 10**18))
    file = LineFile(path, skip=skip)
    assert file.read(0).startswith(b"n")
    packed = pickle.dumps(file)
    assert len(packed) < 1000

    def never(*_: object) -> None:
        raise AssertionError("the file was read again")

    monkeypatch.setattr(census, "scan", never)
    monkeypatch.setattr(lines, "scan", never)
    copy = pickle.loads(packed)
    assert copy._fd is None
    assert copy.read(9_000) == file.read(9_000)
    assert copy.read_bytes <= 2 * PAGE


def test_both_ends_of_a_large_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"a{row} 0".encode() for row in range(5_000)]
    path = write(b"\xef\xbb\xbf" + b"\n".join(rows) + b"\n\n")
    os.utime(path, ns=(0, 10**18))
    small, total = lines.ends(path, 7)
    monkeypatch.setattr(lines, "CHUNK_BYTES", 100)
    large, total_large = lines.ends(path, 7)
    assert small == large
    assert total == total_large == 5_000
    assert large == [(i + 1, rows[i]) for i in [*range(7), *range(4_993, 5_000)]]
    census.open_census(path, force=True)
    monkeypatch.setattr(lines, "LINE_FEED", None)  # with a census nothing is counted
    assert lines.ends(path, 7) == (large, 5_000)


def test_many_rows_of_a_file_in_threads(write: Write) -> None:
    file = LineFile(write(big(150_000)))
    rows = np.arange(0, 150_000, 3)
    assert rows_of(file.gather(rows, 3)) == rows_of(file.gather(rows))
