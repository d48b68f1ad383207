from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rankrun.errors import RunFolderBusy
from rankrun.launch.keeper import Keeper
from rankrun.runfolder.live import heartbeat_of, status_in
from rankrun.runfolder.stopping import StopMarker, want_stop
from tests.launch.runs import begin

LIMIT_S = 30.0


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Woken:
    """Counts calls; `event` is set by the first."""

    def __init__(self) -> None:
        self.calls = 0
        self.event = threading.Event()

    def __call__(self) -> None:
        self.calls += 1
        self.event.set()


def test_it_beats_with_the_status_of_the_moment(tmp_path: Path) -> None:
    with begin(tmp_path / "a") as held:
        woken = Woken()
        keeper = Keeper(held, held.folder, woken, every_s=0.001)
        keeper.status = "running train step 7"
        keeper.start()
        until(lambda: status_in(heartbeat_of(held.folder)) == "running train step 7")
        keeper.status = "saving step 8"
        until(lambda: status_in(heartbeat_of(held.folder)) == "saving step 8")
        keeper.close()
        seen = heartbeat_of(held.folder)
        time.sleep(0.01)
        assert heartbeat_of(held.folder) == seen
        assert (woken.calls, keeper.stop_wanted, keeper.error) == (0, False, None)


def test_the_stop_marker_wakes_the_agent_once_and_is_answered_in_the_heartbeat(tmp_path: Path) -> None:
    with begin(tmp_path / "a") as held:
        woken = Woken()
        keeper = Keeper(held, held.folder, woken, every_s=0.001)
        keeper.status = "running train step 7"
        keeper.start()
        want_stop(held.folder, StopMarker())
        assert woken.event.wait(LIMIT_S)
        assert keeper.stop_wanted
        until(lambda: status_in(heartbeat_of(held.folder)) == "stopping running train step 7")
        keeper.status = "saving step 8"
        until(lambda: status_in(heartbeat_of(held.folder)) == "stopping saving step 8")
        keeper.close()
        assert woken.calls == 1


def test_a_marker_that_was_there_before_is_seen_at_the_first_look(tmp_path: Path) -> None:
    with begin(tmp_path / "a") as held:
        want_stop(held.folder, StopMarker())
        woken = Woken()
        keeper = Keeper(held, held.folder, woken, every_s=LIMIT_S)
        keeper.start()
        assert woken.event.wait(LIMIT_S)
        keeper.close()


def test_a_takeover_is_told_once_and_ends_the_beats(tmp_path: Path) -> None:
    held = begin(tmp_path / "a")
    woken = Woken()
    keeper = Keeper(held, held.folder, woken, every_s=0.001)
    keeper.start()
    os.rename(held.folder.live, tmp_path / "gone")
    assert woken.event.wait(LIMIT_S)
    assert isinstance(keeper.error, RunFolderBusy)
    assert "its live/ folder is gone" in str(keeper.error)
    keeper.close()
    assert woken.calls == 1


class Disk:
    """Stands for a claim whose disk does not answer: each beat raises, or hangs until it is let go."""

    def __init__(self, raises: OSError | None = None) -> None:
        self.beats = 0
        self.raises = raises
        self.hangs = threading.Event()
        self.answers = threading.Event()

    def beat(self, status: str = "") -> None:
        self.beats += 1
        if self.raises is not None:
            raise self.raises
        self.hangs.set()
        self.answers.wait(LIMIT_S)
        raise RunFolderBusy("the folder was let go of meanwhile")


def test_a_disk_that_fails_is_tried_again(tmp_path: Path) -> None:
    held = begin(tmp_path / "a")
    disk, woken = Disk(OSError(5, "Input/output error")), Woken()
    keeper = Keeper(disk, held.folder, woken, every_s=0.001)  # type: ignore[arg-type]
    keeper.start()
    until(lambda: disk.beats > 3)
    keeper.close()
    assert (woken.calls, keeper.error) == (0, None)
    held.release()


def test_a_disk_that_hangs_holds_nobody_and_what_it_says_later_is_not_heard(tmp_path: Path) -> None:
    held = begin(tmp_path / "a")
    disk, woken = Disk(), Woken()
    keeper = Keeper(disk, held.folder, woken, every_s=0.001)  # type: ignore[arg-type]
    keeper.start()
    assert disk.hangs.wait(LIMIT_S)
    keeper.close(limit_s=0.01)
    disk.answers.set()
    keeper._thread.join(LIMIT_S)
    assert (woken.calls, keeper.error) == (0, None)
    held.release()


@pytest.mark.parametrize("started", [True, False])
def test_closing_twice_or_without_a_start_is_fine(tmp_path: Path, started: bool) -> None:
    with begin(tmp_path / "a") as held:
        keeper = Keeper(held, held.folder, Woken())
        if started:
            keeper.start()
        keeper.close()
        keeper.close()
