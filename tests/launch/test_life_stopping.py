from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankrun.errors import OptionError, RunFolderError
from rankrun.launch.life.stopping import stop
from rankrun.runfolder import Claim
from rankrun.runfolder.stopping import StopMarker, is_stop_wanted
from tests.launch.runs import DEAD, ELSEWHERE, another_process, begin, change_holder, checkpoint, end


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rankrun.runfolder.state.WATCH_S", 0.0)
    return Path("runs")


class Launch:
    """What a launch does while somebody waits for its end: one act at every sleep, then it only beats."""

    def __init__(self, held: Claim, *acts: Callable[[], object]) -> None:
        self.held, self.now, self._acts = held, 0.0, iter(acts)

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 10_000, "it waits for ever"
        next(self._acts, lambda: None)()

    def stop(self, *words: str) -> int:
        return stop(["a", *words], {}, clock=self.time, sleep=self.sleep)

    def hears(self) -> None:
        self.held.beat("stopping running train step 7")


def out(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_it_waits_until_the_run_has_saved_and_ended(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a", config=True)
    launch = Launch(held)

    def ends() -> None:
        assert is_stop_wanted(held.folder)
        checkpoint(held, 7)
        end(held, 143)

    launch = Launch(held, launch.hears, launch.hears, ends)
    assert launch.stop() == 0
    host = os.uname().nodename
    assert out(capsys) == [
        f"a is asked to stop (pid {os.getpid()} on {host}); waiting for it to save and leave",
        "a: stopped; saved: step-00000007",
        "launch.py resume a goes on",
    ]
    marker = StopMarker.read(held.folder)
    assert marker is not None
    assert marker.host == host
    assert marker.user
    assert stop(["a"], {}) == 0
    assert out(capsys) == ["a is not running: stopped"]


@pytest.mark.parametrize(
    ("code", "config", "line"),
    [
        (143, True, "a: stopped; it has no checkpoint"),
        (143, False, "a: stopped"),
        (1, False, "a: failed (exit code 1)"),
    ],
)
def test_what_it_says_of_the_end(
    runs: Path, capsys: pytest.CaptureFixture[str], code: int, config: bool, line: str
) -> None:
    held = begin(runs / "a", config=config)
    assert Launch(held, lambda: end(held, code)).stop() == 0
    assert out(capsys)[1:] == [line, "launch.py resume a goes on"]


def test_a_run_that_was_faster_is_finished_and_not_marked(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    assert Launch(held, lambda: end(held, 0)).stop() == 0
    assert out(capsys)[1:] == ["a finished before it could be stopped"]
    assert not is_stop_wanted(held.folder)


def test_a_launch_that_is_refused_meanwhile_leaves_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    assert Launch(held, held.withdraw).stop() == 0
    assert out(capsys)[1:] == ["a is gone: its launch was refused before it had begun"]
    assert not (runs / "a").exists()


@pytest.mark.parametrize("code", [0, 1, 75, 143])
def test_a_run_that_is_not_running_is_left_alone(runs: Path, capsys: pytest.CaptureFixture[str], code: int) -> None:
    held = begin(runs / "a")
    end(held, code)
    assert stop(["a"], {}) == 0
    assert out(capsys)[0].startswith("a is not running: ")
    assert not is_stop_wanted(held.folder)


def test_a_dead_run_is_left_alone(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    change_holder(held, **DEAD)
    assert stop(["a"], {}) == 0
    assert out(capsys) == ["a is not running: dead (its launch went without a word)"]
    assert not is_stop_wanted(held.folder)


def test_a_run_that_slurm_may_start_again_is_marked(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    change_holder(held, job="77", **DEAD)
    assert stop(["a"], {}) == 0
    assert out(capsys) == ["a is not running now (dead), and will not begin again"]
    assert is_stop_wanted(held.folder)


def test_without_waiting_it_only_asks(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    assert stop(["a", "--no-wait"], {}, sleep=lambda s: pytest.fail("it waits")) == 0
    (line,) = out(capsys)
    assert line.endswith("; launch.py status a tells when it has")
    assert is_stop_wanted(held.folder)
    held.release()


def test_who_beats_without_hearing_is_told_from_who_listens(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    assert Launch(held, *[held.beat] * 20).stop() == 1
    assert out(capsys)[1].endswith(
        "it was started without launch.py, which alone hears of this; end it as it was started"
    )
    assert not is_stop_wanted(held.folder)
    held.release()


def test_a_launch_that_takes_long_to_save_is_waited_for(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    launch = Launch(held)
    launch = Launch(held, *[launch.hears] * 3000, lambda: end(held, 143))
    assert launch.stop() == 0
    assert launch.now > 500


def test_a_launch_that_falls_silent_is_still_there(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    change_holder(held, **ELSEWHERE)
    launch = Launch(held, held.beat)
    assert launch.stop() == 1
    assert 60 < launch.now < 62
    assert out(capsys)[1] == (
        f"a is still there (pid {os.getpid()} on n7): it has given no sign of life for 60 s. "
        "It ends as soon as it goes on"
    )
    held.release()


def test_a_launch_that_imports_torch_from_a_cold_disk_is_given_time(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = begin(runs / "a")
    launch = Launch(held, *[lambda: None] * 1000, lambda: end(held, 143))
    assert launch.stop() == 0
    assert launch.now > 200


@pytest.mark.needs("linux")
def test_a_suspended_launcher_is_told_with_the_cure(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    held.beat("running")
    with another_process() as process:
        change_holder(held, pid=process.pid, started=None)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert Launch(held).stop() == 1
        assert out(capsys)[1].endswith(f"until `kill -CONT {process.pid}`. It ends as soon as it goes on")
        assert Launch(held, process.kill, process.wait).stop() == 0
    assert out(capsys)[1].startswith("a: dead (its launch went without a word; it was running)")


def test_another_launch_that_follows_is_not_waited_for(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    later: list[Claim] = []

    def next_one() -> None:
        end(held, 143)
        later.append(begin(runs / "a"))

    assert Launch(held, next_one).stop() == 0
    later[0].release()


def test_ctrl_c_leaves_the_run_stopping(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert Launch(held, interrupt).stop() == 130
    assert out(capsys)[1] == "a goes on stopping; launch.py status a tells when it has"
    assert is_stop_wanted(held.folder)
    held.release()


def test_a_folder_that_can_not_be_written_stops_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = begin(runs / "a")

    def full(*anything: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rankrun.runfolder.stopping.write_atomically", full)
    with pytest.raises(
        RunFolderError,
        match="a/stop can't be written: No space left on device; nothing was stopped; SIGTERM does the same to pid ",
    ):
        stop(["a"], {})
    held.release()


def test_names_are_quoted_for_the_shell(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a b$(touch canary)"
    held = begin(runs / name)
    assert stop([name, "--no-wait"], {}) == 0
    assert f"launch.py status {shlex.quote(name)} tells" in out(capsys)[0]
    held.release()


@pytest.mark.parametrize("words", [[], ["b"], ["a", "b"], ["--wait", "a"]])
def test_mistakes_are_told(runs: Path, words: list[str]) -> None:
    begin(runs / "a").release()
    with pytest.raises(OptionError, match=r"required: RUN|no run 'b'|unrecognized arguments: (b|--wait)"):
        stop(words, {})
