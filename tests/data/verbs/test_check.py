from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import ChangedError, ImageError, OutsideRootError, RowError, WorkerDiedError
from data.meta import MetaFile
from data.verbs import looking
from data.verbs.check import Report, check_rows, repeats_in

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


def told(report: Report) -> list[str]:
    return [line for error in report.errors() for line in error.problems]


def test_a_good_file(images: Path, write: Write) -> None:
    meta = MetaFile(write("0.png 0\n1.png 1\nin.png 2\n2.png 1\n"))
    report = check_rows(meta)
    assert (report.bad, report.found, report.errors()) == (0, {}, [])
    assert report.counts.tolist() == [1, 2, 1]
    assert report.repeats.size == report.overlaps.size == 0


def test_every_kind_of_bad_row(images: Path, write: Write) -> None:
    path = write(
        "0.png 0\nnone.png 0\nempty.png 0\nsub 1\nout.png 1\n../x.png 1\n1.png\n2.png 7\nfar/hostname 0\n3.png 1\n"
    )
    report = check_rows(MetaFile(path, classes=2))
    assert report.bad == 8
    assert report.found == {
        **{"malformed": 2, "outside of the root": 3, "missing": 1, "no regular file": 1, "empty": 1},
    }
    assert [type(error) for error in report.errors()] == [
        *(ImageError, ImageError, ImageError, OutsideRootError, OutsideRootError, RowError, RowError, OutsideRootError)
    ]
    out = f"leads out of the root {images}/ by a link (data.allow_outside_root=true lifts this)"
    assert told(report) == [
        f"{path}:2  none.png: No such file or directory",
        f"{path}:3  empty.png: the file has zero bytes",
        f"{path}:4  sub: no regular file",
        f"{path}:5  out.png: {out}",
        f"{path}:6  '../x.png' leaves the root: paths are relative to it "
        "(data.root=… sets it, data.allow_outside_root=true lifts this)",
        f"{path}:7  '1.png' has no label: a line is 'path label'",
        f"{path}:8  label 7 is out of range: there are 2 classes (0, 1), labels 0 … 1",
        f"{path}:9  far/hostname: {out}",
    ]
    assert report.counts.tolist() == [4, 3], "a row with a good label counts, whatever its image is like"
    free = check_rows(MetaFile(path, classes=2, allow_outside_root=True))
    assert "outside of the root" not in free.found


def test_only_the_first_problems_are_told(images: Path, write: Write) -> None:
    report = check_rows(MetaFile(write("0.png 0\n" + "none.png 0\n" * 149)))
    lines = told(report)
    assert (report.bad, len(lines), lines[-1]) == (149, 21, "… and 129 more")


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_change_nothing(images: Path, write: Write, processes: int) -> None:
    text = "".join(f"{row % 11}.png {row % 3}\n" for row in range(9000))  # every eleventh is missing
    report = check_rows(MetaFile(write(text)), processes=processes)
    assert report.bad == len(range(10, 9000, 11))
    assert np.flatnonzero(report.kinds).tolist() == list(range(10, 9000, 11))
    assert set(report.kinds.tolist()) == {looking.GOOD, looking.MISSING}
    assert told(report)[0].endswith("m.txt:11  10.png: No such file or directory")
    assert told(report)[20] == f"… and {report.bad - 20} more"
    assert report.repeats.tolist() == list(range(11, 9000))
    assert report.repeated.tolist() == [row % 11 for row in range(11, 9000)]


def test_files_on_a_slow_disk_are_looked_at_by_threads(
    images: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "SLOW_S", 0.0)
    report = check_rows(MetaFile(write("".join(f"{row % 11}.png 0\n" for row in range(3000)))))
    assert np.flatnonzero(report.kinds).tolist() == list(range(10, 3000, 11))


def test_repeats(images: Path, write: Write) -> None:
    path = write("0.png 0\n1.png 1\n./0.png 0\nsub/../1.png 0\n2.png 1\n0.png 1\n")
    report = check_rows(MetaFile(path, allow_outside_root=True))
    assert (report.repeats.tolist(), report.repeated.tolist()) == ([2, 3, 5], [0, 1, 0])
    assert report.conflicts == 2


def test_spans_of_one_container_are_not_repeats(images: Path, write: Write) -> None:
    (images / "a.tar").write_bytes(b"x" * 100)
    path = write("a.tar@0:50 0\na.tar@50:50 0\na.tar@0:50 0\na.tar@60:41 0\n")
    report = check_rows(MetaFile(path))
    assert report.repeats.tolist() == [2]
    assert told(report) == [f"{path}:4  a.tar@60:41: bytes 60 … 101 are wanted, but the file ends at 100"]


def test_folders_of_frames(images: Path, write: Write) -> None:
    for number in range(3):
        (images / "sub" / f"img_{number:05d}.jpg").write_bytes(b"x")
    path = write("sub 3 0\nsub 4 0\n1.png 3 1\nnone 3 1\n")
    report = check_rows(MetaFile(path, format="frames"))
    assert told(report) == [
        f"{path}:2  sub: 4 frames are wanted, but the folder holds 3 files",
        f"{path}:3  1.png: no folder of frames",
        f"{path}:4  none: No such file or directory",
    ]


def test_several_labels(images: Path, write: Write) -> None:
    report = check_rows(MetaFile(write("0.png 0,2\n1.png 2\n2.png 1,2\n0.png 2,0\n")))
    assert report.counts.tolist() == [2, 1, 4]
    assert (report.repeats.tolist(), report.conflicts) == ([3], 1)


@given(st.lists(st.integers(0, 9), max_size=60))
def test_repeats_in_any_keys(values: list[int]) -> None:
    # spread over all parts; 0 is no key
    keys = np.array([value * (1 << 60) + 3 if value else 0 for value in values], np.uint64)
    expected = [(row, values.index(value)) for row, value in enumerate(values) if value and values.index(value) < row]
    later, first = repeats_in(keys)
    assert list(zip(later.tolist(), first.tolist(), strict=True)) == expected


def test_overlap(images: Path, write: Write) -> None:
    (images / "other").mkdir()
    train = write("../2.png 0\n../0.png 0\n../0.png 1\nbad\n", "other/train.txt")
    val = write("0.png 0\n1.png 1\n2.png 0\nnone.png 0\n", "val.txt")
    report = check_rows(MetaFile(val), against=MetaFile(train, allow_outside_root=True, classes=2))
    assert (report.overlaps.tolist(), report.overlapped.tolist()) == ([0, 2], [1, 0])
    assert told(report) == [
        f"{val}:4  none.png: No such file or directory",
        f"{val}:1  0.png: also is {train}:2  ../0.png",
        f"{val}:3  2.png: also is {train}:1  ../2.png",
    ]
    many = write("".join(f"{row % 10}.png 0\n" for row in range(5000)), "many.txt")
    lines = told(check_rows(MetaFile(many), against=MetaFile(val), processes=2))
    assert len(lines) == 21
    assert lines[-1] == "… and 1480 more"


def test_decoding(pictures: Any) -> None:
    meta = pictures.folder / "decoding.txt"
    (pictures.folder / "page.png").write_bytes(b"<html>")
    whole = (pictures.folder / "p" / "000 x.png").read_bytes()
    (pictures.folder / "half.png").write_bytes(whole[: len(whole) // 2])
    meta.write_text("p/000 x.png 0\npage.png 0\nhalf.png 0\nempty-not-there.png 0\n")
    lines = told(check_rows(MetaFile(meta), decode=True))
    assert lines[0].startswith(f"{meta}:2  page.png: no image (it looks like an HTML page)")
    assert lines[1].startswith(f"{meta}:3  half.png: broken or truncated (")
    assert lines[2] == f"{meta}:4  empty-not-there.png: No such file or directory"
    assert len(lines) == 3


def test_decoding_in_processes(pictures: Any) -> None:
    meta = pictures.folder / "decoding-many.txt"
    meta.write_text("".join(f"p/{row % 64:03d} x.png 0\n" for row in range(300)) + "page.png 0\n")
    (pictures.folder / "page.png").write_bytes(b"<html>")
    report = check_rows(MetaFile(meta), decode=True, processes=2)
    assert report.found == {"unreadable": 1}


def test_a_file_that_changes_meanwhile(images: Path, write: Write) -> None:
    path = write("0.png 0\n" * 9000)
    meta = MetaFile(path)
    path.write_text("0.png\n0" * 9000)
    with pytest.raises(ChangedError, match="changed after it was opened"):
        check_rows(meta)


def test_a_killed_process_is_told(images: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), 9)

    monkeypatch.setattr(looking.Look, "__call__", die)
    with pytest.raises(WorkerDiedError, match="was killed by SIGKILL"):
        check_rows(MetaFile(write("0.png 0\n" * 9000)), processes=2)
