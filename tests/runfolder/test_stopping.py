from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rankrun.runfolder import RunFolder, stopped_before
from rankrun.runfolder.stopping import StopMarker, is_stop_wanted, name_for_verbs, remove_stop, want_stop
from tests.launch.runs import begin

MARKER = StopMarker("box", "ann", "2026-11-23T20:14:05Z")


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    with begin(tmp_path / "a") as held:
        return held.folder


def test_a_marker_comes_says_who_and_goes(folder: RunFolder) -> None:
    assert not is_stop_wanted(folder)
    assert StopMarker.read(folder) is None
    assert stopped_before(folder) is None
    want_stop(folder, MARKER)
    assert is_stop_wanted(folder)
    assert StopMarker.read(folder) == MARKER
    assert str(MARKER) == "by ann on box at 2026-11-23 20:14:05"
    assert stopped_before(folder) == (
        f"{folder.path} was stopped (by ann on box at 2026-11-23 20:14:05) and stays so; nothing was started. "
        f"`launch.py resume {folder.path}` goes on"
    )
    assert remove_stop(folder)
    assert not remove_stop(folder)
    assert not is_stop_wanted(folder)


def test_the_first_of_two_markers_stays(folder: RunFolder) -> None:
    want_stop(folder, MARKER)
    want_stop(folder, StopMarker("other"))
    assert StopMarker.read(folder) == MARKER


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"host": 1e999}', b"\0"])
def test_a_file_that_a_person_made_is_a_marker_too(folder: RunFolder, content: bytes) -> None:
    folder.stop_marker.write_bytes(content)
    assert is_stop_wanted(folder)
    line = stopped_before(folder)
    assert line is not None
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_what_is_no_file_is_a_marker_that_nobody_waits_for(folder: RunFolder, make) -> None:
    make(folder.stop_marker)
    assert is_stop_wanted(folder)
    assert StopMarker.read(folder) == StopMarker()
    assert "was stopped and stays so" in str(stopped_before(folder))


def test_a_hostile_marker_moves_no_cursor(folder: RunFolder) -> None:
    want_stop(folder, StopMarker("\x1b[2J\nE101 forged", "x" * 5000, "\x07"))
    line = stopped_before(folder)
    assert line is not None
    assert line.isprintable()
    assert len(line) < 1000


def test_a_finished_run_is_not_stopped_and_no_run_is_neither(folder: RunFolder, tmp_path: Path) -> None:
    want_stop(folder, MARKER)
    folder.final_file.write_text("{}")
    assert stopped_before(folder) is None
    assert stopped_before(RunFolder(tmp_path / "none")) is None
    assert stopped_before(RunFolder(folder.final_file)) is None


def test_a_run_is_called_by_its_name_below_runs_and_by_its_path_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_for_verbs(RunFolder(Path("runs/a"))) == "a"
    assert name_for_verbs(RunFolder(Path("other/a"))) == "other/a"
    assert name_for_verbs(RunFolder(Path("/x/runs/a"))) == "/x/runs/a"


def test_a_launch_that_was_refused_leaves_no_marker_behind(tmp_path: Path) -> None:
    held = begin(tmp_path / "b")
    want_stop(held.folder, MARKER)
    held.withdraw()
    assert not (tmp_path / "b").exists()
    begin(tmp_path / "c").release()
    held = begin(tmp_path / "c")
    want_stop(held.folder, MARKER)
    held.withdraw()
    assert is_stop_wanted(held.folder), "an older run that is to stop stays stopped"
