from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rankrun.errors import OptionError
from rankrun.launch.life.logs import logs
from tests.launch.runs import ELSEWHERE, another_process, begin, change_holder, end, log


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("runs")


class Story:
    """A clock whose sleeps do one thing after the other; the last thing must end what waits."""

    def __init__(self, *acts: Callable[[], object], between_s: float = 1.0) -> None:
        self.now, self._acts, self._between_s = 0.0, iter(acts), between_s
        self._due = between_s

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 10_000, "it waits for ever"
        while self.now >= self._due:
            self._due += self._between_s
            next(self._acts, lambda: None)()

    def follow(self, *words: str) -> int:
        return logs([*words, "-f"], {}, clock=self.time, sleep=self.sleep)


def test_a_log_is_printed_to_the_byte(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    log(held, "")
    log(held, "first\r\x1b[1mbar\x1b[0m\nno end")
    log(held, "one\n", rank=1)
    held.next_attempt()
    log(held, "second\n")
    for words, text in [
        (["--attempt", "0"], "first\r\x1b[1mbar\x1b[0m\nno end"),
        ([], "second\n"),
        (["--rank", "1", "--attempt=0"], "one\n"),
    ]:
        assert logs(["a", *words], {}) == 0
        assert capsys.readouterr().out == text
    held.release()


def test_a_log_that_grows_faster_than_it_is_shown_has_an_end(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = begin(runs / "a")
    file = log(held, "x" * 3_000_000)

    class Growing(io.BytesIO):
        def write(self, data) -> int:  # type: ignore[no-untyped-def]
            with open(file, "a") as opened:
                opened.write("y" * 3_000_000)
            return super().write(data)

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(Growing()))
    assert logs(["a"], {}) == 0
    held.release()


@pytest.mark.needs("linux")
def test_a_full_disk_behind_stdout_is_told(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = begin(runs / "a")
    log(held, "x\n")
    held.release()
    full = os.open("/dev/full", os.O_WRONLY)
    raw = io.FileIO(full, "w")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(Unbuffered(raw)))
    with pytest.raises(OptionError, match="stdout can't be written: No space left on device"):
        logs(["a"], {})
    raw.close()


class Unbuffered(io.BytesIO):
    """Hands every write on at once, so that nothing is left to be flushed when the test is over."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__()
        self.raw = raw

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        return self.raw.write(data)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "--rank", "7"], "attempt 1 of runs/a has no log of rank 7: it has ranks 0-2, 5"),
        (["a", "--rank", "0", "--attempt", "0"], "has no log of rank 0: it has none; its ranks never started"),
        (["a", "--attempt", "2"], "--attempt 2: runs/a has attempts 0-1"),
        (["a", "--rank", "-1"], "--rank -1: a whole number from 0"),
        (["a", "--rank", "x" * 99], f"--rank {'x' * 40}: a whole number from 0"),
        (["a", "--attempt", "1.5"], "--attempt 1.5: a whole number from 0"),
        (["torn"], "runs/torn has no attempt yet"),
        (["b"], "there is no run 'b'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("more", [[], ["-f"]])
def test_what_is_not_there_is_told(runs: Path, words: list[str], said: str, more: list[str]) -> None:
    held = begin(runs / "a")
    held.next_attempt()
    for rank in (0, 1, 2, 5):
        log(held, "x\n", rank=rank)
    held.release()
    (runs / "torn").mkdir()
    (runs / "torn" / "record.json").touch()
    with pytest.raises(OptionError) as caught:
        logs([*words, *more], {}, sleep=lambda s: pytest.fail("nothing will come"))
    assert said in str(caught.value)


def test_following_goes_on_over_restarts_until_the_launch_has_ended(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = begin(runs / "a")
    log(held, "begin\n")

    def restart() -> None:
        log(held, "torn by a kill")
        held.next_attempt()
        log(held, "again\n")

    def done() -> None:
        log(held, "last words")
        end(held, 0)

    story = Story(lambda: log(held, "tick\n"), restart, lambda: log(held, "tock\n"), done)
    assert story.follow("a") == 0
    assert capsys.readouterr() == (
        "begin\ntick\ntorn by a kill\nagain\ntock\nlast words\n",
        "rankrun: attempt 1\nrankrun: a: finished\n",
    )
    assert story.now < 8


def test_following_one_attempt_ends_with_it(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    log(held, "first\n")

    def restart() -> None:
        held.next_attempt()
        log(held, "again\n")

    assert Story(lambda: log(held, "x\n"), restart).follow("a", "--attempt", "0") == 0
    assert capsys.readouterr() == ("first\nx\n", "")
    held.release()


def test_following_a_run_that_has_ended_prints_and_says_how(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    log(held, "x\n")
    end(held, 7)
    assert logs(["a", "-f"], {}, sleep=lambda s: pytest.fail("it has ended")) == 0
    assert capsys.readouterr() == ("x\n", "rankrun: a: failed (exit code 7)\n")


def test_a_launch_that_dies_without_a_word_ends_the_following(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    log(held, "x\n")
    with another_process() as process:
        change_holder(held, pid=process.pid, started=None)
        assert Story(process.kill, process.wait).follow("a") == 0
    assert capsys.readouterr().err == "rankrun: a: dead (its launch went without a word)\n"


def test_a_launch_elsewhere_counts_as_gone_after_a_minute_of_silence(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankrun.runfolder.state.WATCH_S", 0.0)
    held = begin(runs / "a")
    change_holder(held, **ELSEWHERE)
    log(held, "x\n")
    heartbeat = held.folder.live / "heartbeat"
    beats: Iterator[int] = iter(range(1, 100))
    story = Story(*[lambda: heartbeat.write_text(f"{next(beats):020d}\n")] * 30)
    assert story.follow("a") == 0
    assert 88 < story.now < 95
    assert capsys.readouterr().err.startswith("rankrun: a: unknown (held from host n7, and gives no sign of life")


def test_a_launch_here_may_be_silent_for_long_while_it_imports_torch(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = begin(runs / "a")
    log(held, "x\n")
    story = Story(lambda: end(held, 0), between_s=500.0)
    assert story.follow("a") == 0
    assert story.now > 490


def test_a_log_that_comes_late_is_waited_for(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")

    def beat() -> None:
        held.beat("starting")

    acts = [beat] * 5 + [lambda: log(held, "at last\n"), lambda: end(held, 0)]
    assert Story(*acts).follow("a") == 0
    assert capsys.readouterr().out == "at last\n"


def test_a_rank_that_there_is_not_is_told_once_the_others_have_their_logs(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = begin(runs / "a")
    log(held, "x\n")
    with pytest.raises(OptionError, match="has no log of rank 9: it has ranks 0"):
        Story(*[lambda: held.beat("running")] * 9).follow("a", "--rank", "9")
    held.release()


def test_a_log_that_is_cut_or_replaced_is_read_from_its_beginning(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = begin(runs / "a")
    file = log(held, "a long first line\n")

    def replaced() -> None:
        other = file.with_suffix(".new")
        other.write_text("another file, which is longer than the one before it was\n")
        os.replace(other, file)

    story = Story(lambda: file.write_text("cut\n"), lambda: log(held, "more\n"), replaced, lambda: end(held, 0))
    assert story.follow("a") == 0
    assert capsys.readouterr().out == (
        "a long first line\ncut\nmore\nanother file, which is longer than the one before it was\n"
    )


def test_a_launch_that_is_refused_takes_its_folder_away(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    assert Story(held.withdraw).follow("a") == 0
    assert capsys.readouterr().err == "rankrun: runs/a is gone: its launch was refused, or somebody removed it\n"
    held = begin(runs / "b")
    assert Story(lambda: shutil.rmtree(runs)).follow("b") == 0


def test_a_stderr_that_is_apart_is_pointed_to(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    log(held, "x\n").with_suffix(".err").write_text("oh\n")
    end(held, 0)
    said = "rankrun: its stderr is in runs/a/attempts/0000/logs/rank-00000.err\n"
    assert logs(["a"], {}) == 0
    assert capsys.readouterr() == ("x\n", said)
    assert logs(["a", "-f"], {}) == 0
    assert capsys.readouterr() == ("x\n", f"{said}rankrun: a: finished\n")


def test_ctrl_c_leaves_quietly(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    log(held, "x\n")

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert Story(interrupt).follow("a") == 130
    assert capsys.readouterr().err == ""
    held.release()


def test_a_reader_that_left_is_noticed_while_nothing_comes(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = begin(runs / "a")
    log(held, "")
    read, write = os.pipe()
    with open(write, "w") as opened:
        monkeypatch.setattr(sys, "stdout", opened)
        assert Story(lambda: os.close(read)).follow("a") == 0
        monkeypatch.undo()
    held.release()
