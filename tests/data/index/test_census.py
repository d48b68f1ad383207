from __future__ import annotations

import errno
import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.errors import ChangedError, MetaFileError, RowError
from data.index import census, sidecar
from data.index.census import Census, cpus, open_census, trusted
from data.index.scan import PAGE

Write = Callable[..., Path]

LINES = b"".join(b"picture-%06d.png %d\n" % (row, row % 5) for row in range(20_000))


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the files that are read for a census, as they are read."""
    read: list[int] = []
    scan = census.scan

    def counting(fill: census.Fill, size: int, threads: int = 1) -> census.Counted:
        read.append(size)
        return scan(fill, size, threads)

    monkeypatch.setattr(census, "scan", counting)
    return read


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files get a sidecar by themselves too."""
    monkeypatch.setattr(census, "SMALL_BYTES", 1)


def aged(path: Path, seconds: float = 60) -> Path:
    """The same file, last changed some time ago."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - round(seconds * 1e9)))
    return path


def beside(path: Path) -> Path:
    return path.with_name(path.name + ".rankrun-index")


def test_what_it_says_of_a_file(write: Write) -> None:
    text = b"\xef\xbb\xbf" + LINES + b"\r\n \n"
    found = open_census(write(text))
    assert (found.rows, found.size_bytes) == (20_000, len(text))
    assert (found.header.first, found.header.end) == (3, 3 + len(LINES) - 1)
    assert found.counts.tolist() == [text[at : at + PAGE].count(b"\n") for at in range(0, len(text), PAGE)]
    assert found.totals.tolist() == [text[:at].count(b"\n") for at in range(0, len(text), 1 << 16)]
    assert found.sums.size == found.totals.size
    assert found.labels is None
    assert found.sidecar is None


def test_equal_bytes_have_equal_fingerprints(write: Write) -> None:
    one, same = open_census(write(LINES, "a/m.txt")), open_census(write(LINES, "b/other"))
    assert one.fingerprint == same.fingerprint
    assert len(one.fingerprint) == 32
    assert open_census(write(LINES.replace(b"7.png 2", b"7.png 3", 1), "c")).fingerprint != one.fingerprint
    rows = LINES.splitlines(keepends=True)
    rows[3], rows[18_000] = rows[18_000], rows[3]
    assert open_census(write(b"".join(rows), "d")).fingerprint != one.fingerprint


def test_a_small_file_gets_a_sidecar_only_by_force(write: Write, scans: list[int]) -> None:
    path = aged(write(LINES))
    assert open_census(path).sidecar is None
    assert not beside(path).exists()
    made = open_census(path, force=True)
    assert made.sidecar == beside(path)
    assert open_census(path).sidecar == beside(path)
    assert len(scans) == 2


def test_a_large_file_is_read_once(write: Write, scans: list[int]) -> None:
    path = aged(write(LINES * 20))
    assert path.stat().st_size > census.SMALL_BYTES
    made = open_census(path, threads=2)
    again = open_census(path)
    assert len(scans) == 1
    assert made.header == again.header
    assert again.counts.tolist() == made.counts.tolist()
    assert beside(path).stat().st_size <= 0.0008 * path.stat().st_size + 4096 + 34
    known = trusted(path, path.stat())
    assert known is not None
    assert known.rows == 400_000


@pytest.mark.usefixtures("every_size")
def test_another_time_of_change_alone_renews_only_the_header(write: Write, scans: list[int]) -> None:
    path = aged(write(LINES))
    first = open_census(path).with_labels({"lines": 5})
    os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
    assert trusted(path, path.stat()) is None
    second = open_census(path)
    assert len(scans) == 2
    assert second.fingerprint == first.fingerprint
    assert second.labels == {"lines": 5}
    assert second.header.mtime_ns == path.stat().st_mtime_ns
    open_census(path)
    assert len(scans) == 2


@pytest.mark.usefixtures("every_size")
def test_a_changed_file_is_read_again(write: Write, scans: list[int]) -> None:
    path = aged(write(LINES))
    first = open_census(path).with_labels({"lines": 5})
    path.write_bytes(LINES.replace(b" 1\n", b" 2\n"))
    second = open_census(aged(path, 30))
    assert second.fingerprint != first.fingerprint
    assert second.labels is None
    path.write_bytes(LINES + LINES)
    assert open_census(path).rows == 40_000
    assert len(scans) == 3


@pytest.mark.usefixtures("every_size")
def test_a_file_that_was_just_written_is_not_believed_by_its_time(write: Write, scans: list[int]) -> None:
    # a second write within the clock's grain would leave the time as it is
    path = write(LINES)
    before = path.stat()
    first = open_census(path)
    path.write_bytes(LINES.replace(b" 1\n", b" 2\n"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert open_census(path).fingerprint != first.fingerprint
    assert trusted(path, path.stat()) is None
    assert len(scans) == 2


@pytest.mark.usefixtures("every_size")
def test_a_torn_sidecar_is_made_anew(write: Write, scans: list[int]) -> None:
    path = aged(write(LINES))
    first = open_census(path)
    whole = beside(path).read_bytes()
    for length in [0, 10, 4096, 4200, len(whole) - 1]:
        beside(path).write_bytes(whole[:length])
        assert open_census(path).fingerprint == first.fingerprint
        assert beside(path).stat().st_size == len(whole)
    damaged = bytearray(whole)
    damaged[4200] ^= 1
    beside(path).write_bytes(damaged)
    assert open_census(path).totals.tolist() == first.totals.tolist()
    assert len(scans) == 7
    assert trusted(path, path.stat()) is not None


@pytest.mark.usefixtures("every_size")
def test_a_foreign_file_stays_and_the_cache_serves(write: Write, scans: list[int], tmp_path: Path) -> None:
    path = aged(write(LINES))
    beside(path).write_text("these are my notes\n")
    assert open_census(path).sidecar is None
    cached = open_census(path, cache=tmp_path / "cache" / "index")
    assert cached.sidecar is not None
    assert cached.sidecar.parent == tmp_path / "cache" / "index"
    assert open_census(path, cache=tmp_path / "cache" / "index").header == cached.header
    assert len(scans) == 2
    assert beside(path).read_text() == "these are my notes\n"


@pytest.mark.usefixtures("every_size")
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_where_nothing_can_be_written_memory_does(
    write: Write, monkeypatch: pytest.MonkeyPatch, number: int, tmp_path: Path
) -> None:
    path = aged(write(LINES))
    written: list[Path] = []
    real = os.open

    def refusing(name: str | Path, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT:
            written.append(Path(name))
            raise OSError(number, os.strerror(number))
        return real(name, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    found = open_census(path, cache=tmp_path / "cache")
    assert found.sidecar is None
    assert [place.parent for place in written] == [path.parent, tmp_path / "cache"]
    assert found.with_labels({"a": 1}).labels == {"a": 1}
    assert sorted(os.listdir(tmp_path)) == ["cache", "m.txt"]


@pytest.mark.usefixtures("every_size")
def test_many_builders_at_once_all_succeed(write: Write) -> None:
    path = aged(write(LINES))
    found: list[Census] = []
    threads = [threading.Thread(target=lambda: found.append(open_census(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({one.fingerprint for one in found}) == 1
    assert all(one.counts.sum() == 20_000 for one in found)
    assert sorted(os.listdir(path.parent)) == ["m.txt", "m.txt.rankrun-index"]


def test_labels_travel_in_the_sidecar(write: Write) -> None:
    path = aged(write(LINES))
    names = [f"class {number}" for number in range(5_000)]
    made = open_census(path, force=True).with_labels({"lines by name": names})
    assert made.labels == {"lines by name": names}
    again = open_census(path)
    assert again.labels == {"lines by name": names}
    assert again.counts.tolist() == open_census(write(LINES, "n.txt")).counts.tolist()
    assert again.with_labels({"other": 1}).labels == {"other": 1}
    held = open_census(write(LINES, "n.txt"))
    assert held.with_labels({"a": [1]}).labels == {"a": [1]}
    assert not beside(path.with_name("n.txt")).exists()
    with open(beside(path), "rb") as file:
        assert json.loads(file.readline())["labels_bytes"] == len('{"other": 1}')


@pytest.mark.parametrize("force", [True, False])
def test_it_travels_small_and_is_not_made_again(write: Write, scans: list[int], force: bool) -> None:
    path = aged(write(LINES * 20))
    made = open_census(path, force=force)
    packed = pickle.dumps(made)
    assert len(packed) < 1000
    copy = pickle.loads(packed)
    assert copy.counts.tolist() == made.counts.tolist()
    assert copy.identity == made.identity
    assert len(scans) == 1


def test_a_small_file_is_read_again_where_it_arrives(write: Write) -> None:
    path = write(LINES)
    packed = pickle.dumps(open_census(path))
    assert len(packed) < 1000
    assert pickle.loads(packed).counts.sum() == 20_000
    path.write_bytes(LINES[:-1] + b"1")
    with pytest.raises(ChangedError, match=r"m\.txt changed after it was opened: start the run again"):
        _ = pickle.loads(packed).counts


@pytest.mark.usefixtures("every_size")
def test_a_sidecar_that_went_away_is_made_again(write: Write) -> None:
    path = aged(write(LINES))
    packed = pickle.dumps(open_census(path))
    beside(path).unlink()
    assert pickle.loads(packed).counts.sum() == 20_000
    path.write_bytes(LINES + b"x 1\n")
    open_census(path)
    with pytest.raises(ChangedError, match="changed after it was opened"):
        _ = pickle.loads(packed).counts


def test_a_file_that_is_still_written_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(LINES)
    scan = census.scan

    def growing(fill: census.Fill, size: int, threads: int = 1) -> census.Counted:
        with open(path, "ab") as file:
            file.write(b"one 1\n")
        return scan(fill, size, threads)

    def shrinking(fill: census.Fill, size: int, threads: int = 1) -> census.Counted:
        os.truncate(path, size // 2)
        return scan(fill, size, threads)

    for act in (growing, shrinking):
        monkeypatch.setattr(census, "scan", act)
        with pytest.raises(ChangedError, match=r"m\.txt changed while it was read: is something still writing it\?"):
            open_census(path, force=True)
    assert not beside(path).exists()


def test_endless_lines_name_their_line(write: Write) -> None:
    def refused(content: bytes, line: int) -> None:
        with pytest.raises(RowError, match=rf"m\.txt:{line}  a line of more than 65536 bytes: .*is this a meta file"):
            open_census(write(content))

    refused(b"a 0\n" + b"x" * 10_000_000 + b" 1\nb 1\n", 2)
    refused(b"a 0\nb 0\n" + b"x" * 70_000, 3)
    refused(b"x" * 65_537 + b"\n", 1)
    for before in range(0, 9000, 450):  # wherever it lies among the pages
        text = (b"%d\n" % before).rjust(before + 1, b"\n")
        refused(text + b"x" * 65_537 + b"\nb 0\n", text.count(b"\n") + 1)
        assert open_census(write(text + b"x" * 65_536 + b"\nb 0\n")).rows == text.count(b"\n") + 2
        refused(text + b"x" * 65_537, text.count(b"\n") + 1)


def test_numbers_of_line_feeds_lead_to_pages(write: Write) -> None:
    rng = np.random.default_rng(3)
    text = b"".join(b"x" * int(length) + b"\n" for length in rng.integers(1, 9000, 150)) + b"last 1"
    found = open_census(write(text))
    feeds = [at for at, byte in enumerate(text) if byte == 10]
    numbers = np.arange(0, len(feeds) + 2)
    expected = [0, *(at // PAGE for at in feeds), (len(text) - 1) // PAGE]
    assert found.pages_of(numbers).tolist() == expected
    pages = np.arange(len(text) // PAGE + 1)
    assert found.before_pages(pages).tolist() == [text[: page * PAGE].count(b"\n") for page in pages]


def test_what_can_not_be_opened(tmp_path: Path) -> None:
    with pytest.raises(MetaFileError, match="No such file or directory"):
        open_census(tmp_path / "none.txt")
    assert 1 <= cpus(4) <= 4
    assert sidecar.VERSION == 1
