from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from rankrun.errors import RankrunError
from rankrun.runfolder import Claim, RunFolder
from rankrun.runfolder.live import heartbeat_of, status_in
from rankrun.runfolder.state import is_run_folder, state_of, states_of
from tests.launch.runs import DEAD, ELSEWHERE, another_process, begin, change_holder, end


@pytest.fixture
def held(tmp_path: Path) -> Claim:
    return begin(tmp_path / "a")


def told(folder: RunFolder) -> tuple[str, str]:
    state = state_of(folder, watch_s=0.0)
    return state.name, state.detail


@pytest.mark.parametrize(
    ("status", "name", "detail"),
    [
        ("starting", "starting", ""),
        ("running train step 1200", "running", "train step 1200"),
        ("train step 1200", "running", "train step 1200"),
        ("evaluate step 7", "running", "evaluate step 7"),
        ("saving step 7", "saving", "step 7"),
        ("restarting 1 of 3", "restarting", "1 of 3"),
        ("stopping running train step 7", "stopping", "train step 7"),
        ("stopping saving step 7", "stopping", "saving step 7"),
        ("stopping", "stopping", ""),
        ("", "running", ""),
        ("x\x1b[2J\ny\u00e9", "running", "x?[2J?y?"),
        ("s" * 500, "running", "s" * 106),
    ],
)
def test_a_live_launch_is_believed(held: Claim, status: str, name: str, detail: str) -> None:
    held.beat(status)
    state = state_of(held.folder)
    assert (state.name, state.detail, state.is_live, state.attempt) == (name, detail, True, 0)
    assert state.holder is not None
    assert state.holder.pid == os.getpid()
    assert len(heartbeat_of(held.folder)) == 128


def test_a_launch_that_has_not_beaten_yet_is_starting(held: Claim) -> None:
    assert told(held.folder) == ("starting", "")


@pytest.mark.parametrize(
    ("code", "name", "detail"),
    [
        (0, "finished", ""),
        (143, "stopped", ""),
        (75, "stopped", "saved at a notice, and wants to go on"),
        (130, "interrupted", ""),
        (1, "failed", "exit code 1"),
        (139, "failed", "exit code 139"),
    ],
)
def test_a_launch_that_has_ended_is_told_by_its_outcome(held: Claim, code: int, name: str, detail: str) -> None:
    end(held, code)
    state = state_of(held.folder)
    assert (state.name, state.detail, state.code, state.is_live) == (name, detail, code, False)
    assert state.since is not None
    assert state.began is not None
    assert state.holder is not None


def test_a_failure_is_told_with_its_verdict(held: Claim) -> None:
    verdict = {"rank": 3, "host": "n7", "where": "train.py:130", "how": "RuntimeError: \x1b[2Jboom"}
    held.folder.verdict_file(0).write_text(json.dumps(verdict))
    end(held, 1)
    assert told(held.folder) == ("failed", "rank 3 on n7 failed at train.py:130: RuntimeError: \\x1b[2Jboom")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"how": 3}', b"\xff", b"[" * 100_000])
def test_a_verdict_that_says_nothing_is_no_hindrance(held: Claim, content: bytes) -> None:
    held.folder.verdict_file(0).write_bytes(content)
    end(held, 9)
    assert told(held.folder) == ("failed", "exit code 9")


def test_only_the_newest_attempt_counts(held: Claim) -> None:
    held.folder.verdict_file(0).write_text(json.dumps({"rank": 0, "host": "h", "how": "x"}))
    held.next_attempt()
    end(held, 0)
    assert told(held.folder) == ("finished", "")
    begin(held.folder.path)
    assert told(held.folder) == ("starting", "")


def test_final_json_says_that_a_run_is_finished_whatever_came_after(held: Claim) -> None:
    held.folder.final_file.write_text("{}")
    assert told(held.folder)[0] == "starting", "its launch is still there"
    change_holder(held, **DEAD)
    assert told(held.folder) == ("finished", "")
    held.release()
    assert told(held.folder) == ("finished", "")


def test_a_launch_whose_process_is_gone_is_dead_with_its_last_words(held: Claim) -> None:
    held.beat("running train step 1200")
    change_holder(held, **DEAD)
    assert told(held.folder) == ("dead", "its launch went without a word; it was running train step 1200")
    held.folder.verdict_file(0).write_text(json.dumps({"rank": 0, "host": "h", "how": "x"}))
    assert told(held.folder)[1].endswith("; before that: rank 0 on h failed: x")


def test_a_dead_launch_that_was_taken_over_by_a_refused_one_is_still_dead(held: Claim) -> None:
    held.beat("running")
    change_holder(held, **DEAD)
    begin(held.folder.path).withdraw()
    assert told(held.folder) == ("dead", "its launch went without a word")


def test_a_machine_that_was_switched_off_leaves_a_dead_run(held: Claim) -> None:
    """Its host is this one, but in another boot, so that its pid says nothing."""
    held.beat("saving step 9")
    change_holder(held, boot_id="an earlier boot")
    assert told(held.folder) == ("dead", "its machine went down; it was saving step 9")


def test_a_launch_elsewhere_that_has_been_still_for_long_is_not_waited_for(held: Claim) -> None:
    change_holder(held, **ELSEWHERE)
    os.utime(held.folder.live / "heartbeat", (0, 0))
    (state,) = states_of([held.folder], sleep=lambda s: pytest.fail("no need to watch"))
    assert (state.name, state.since) == ("unknown", 0.0)


class Clock:
    def __init__(self, meanwhile: Any) -> None:
        self.now, self.meanwhile = 0.0, meanwhile

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile(self.now)


def test_a_launch_elsewhere_lives_if_its_heart_beats(tmp_path: Path) -> None:
    first, second, here = (begin(tmp_path / name) for name in "abc")
    for each in (first, second):
        each.beat("running train step 5")
        change_holder(each, **ELSEWHERE)
    end(here, 0)
    heartbeat = first.folder.live / "heartbeat"
    clock = Clock(lambda now: heartbeat.write_text(f"{7:020d} saving step 6\n") if now > 1.0 else None)
    folders = [first.folder, second.folder, here.folder]
    alive, silent, done = states_of(folders, clock=clock.time, sleep=clock.sleep)
    assert (alive.name, alive.detail, alive.is_live) == ("saving", "step 6", True)
    assert (silent.name, silent.is_live) == ("unknown", False)
    assert silent.detail == "held from host n7, and gives no sign of life; it was running train step 5"
    assert done.name == "finished"
    assert 2.4 < clock.now < 2.7


def test_a_launch_that_ends_while_it_is_watched_has_ended(tmp_path: Path) -> None:
    held = begin(tmp_path / "a")
    change_holder(held, **ELSEWHERE)

    def ends(now: float) -> None:
        if held.folder.live.exists():
            held.folder.outcome_file(0).write_text("0\n")
            os.rename(held.folder.live, tmp_path / "gone")

    clock = Clock(ends)
    (state,) = states_of([held.folder], clock=clock.time, sleep=clock.sleep)
    assert state.name == "finished"


def test_a_folder_that_can_not_be_read_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = begin(tmp_path / "bad"), begin(tmp_path / "good")
    listed = RunFolder.attempt_numbers

    def stale(folder: RunFolder) -> list[int]:
        if folder.name == "bad":
            raise OSError(116, "Stale file handle", str(folder.attempts))
        return listed(folder)

    monkeypatch.setattr(RunFolder, "attempt_numbers", stale)
    states = states_of([bad.folder, good.folder])
    assert [state.name for state in states] == ["unknown", "starting"]
    assert states[0].detail == f"{bad.folder.attempts} can't be read: Stale file handle"


def test_runs_on_this_machine_are_told_without_waiting(tmp_path: Path, held: Claim) -> None:
    states_of([held.folder], sleep=lambda s: pytest.fail("no need to watch"))
    change_holder(held, **DEAD)
    states_of([held.folder], sleep=lambda s: pytest.fail("no need to watch"))


def test_a_live_folder_that_names_nobody_is_unknown(held: Claim) -> None:
    (held.folder.live / "holder.json").unlink()
    assert told(held.folder) == ("unknown", "live/ is there and names nobody")


def test_a_run_without_launch_py_leaves_no_word_on_how_it_ended(tmp_path: Path) -> None:
    held = begin(tmp_path / "t", command=["train.py", "c.yaml"], resume=())
    held.beat()
    assert told(held.folder) == ("running", "")
    held.release()
    assert told(held.folder) == ("unknown", "ended, and how is not known: it was started without launch.py")


@pytest.mark.needs("linux")
def test_a_suspended_launcher_is_said_to_be(held: Claim) -> None:
    with another_process() as process:
        change_holder(held, pid=process.pid, started=None)
        assert state_of(held.folder).note == ""
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert state_of(held.folder).note == (
            f"its launcher is suspended: nothing is watched or saved until `kill -CONT {process.pid}`"
        )
    assert told(held.folder)[0] == "dead"


@pytest.mark.parametrize("content", ["", "x", "1" * 100_000, "\u00e9"])
def test_an_outcome_that_is_no_code_is_none(held: Claim, content: str) -> None:
    held.release()
    held.folder.outcome_file(0).write_text(content)
    assert told(held.folder)[0] in ("dead", "failed")


def test_folders_that_are_torn_apart_raise_nothing(held: Claim, tmp_path: Path) -> None:
    held.release()
    for name in ("attempts", "launches", "record.json"):
        place = held.folder.path / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink()
        try:
            assert state_of(held.folder).name in ("dead", "unknown")
        except RankrunError:
            pytest.fail(f"without {name}")
    assert not is_run_folder(held.folder.path)
    assert state_of(RunFolder(tmp_path / "none")).name == "dead"


@pytest.mark.parametrize("content", [b"", b"\xff" * 200, b"12", b"\n\n\n", b"00000000000000000001 x\x1b[2J\nrest"])
def test_a_strange_heartbeat_says_nothing_bad(content: bytes) -> None:
    assert status_in(content).isprintable()
