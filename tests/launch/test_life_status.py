from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from rankrun.errors import OptionError
from rankrun.launch.cli import main
from rankrun.launch.life.status import status
from rankrun.runfolder.stopping import StopMarker, want_stop
from tests.launch.runs import DEAD, ELSEWHERE, begin, change_holder, checkpoint, end, log, metrics


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert status(list(words), {}) == 0
    found = capsys.readouterr().out.splitlines()
    assert max(map(len, found)) <= 80
    return found


def test_a_live_run_at_length(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    held = begin(runs / "digits", config=True, host="box", now=lambda: now - 125)
    metrics(
        held,
        {"kind": "train", "step": 20, "epoch": 1, "loss": 0.51234, "images_per_s": 812.4, "eta_s": 185},
        {"kind": "evaluate", "step": 20, "epoch": 1, "rows": 9, "top1": 0.5, "loss": 1.25},
    )
    checkpoint(held, 18)
    log(held, "x\n")
    held.beat("running train step 25")
    shown = lines(capsys, "digits")
    found = dict(line.split(maxsplit=1) for line in shown[:-1])
    launched = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now - 125))
    assert found == {
        "run": "runs/digits",
        "state": "running: train step 25",
        "attempt": "0",
        "progress": "1 of 5 epochs done, step 25, loss 0.5123, 812 images/s, 3 min left",
        "evaluated": "top1 0.5, loss 1.25",
        "saved": "step-00000018",
        "launched": f"{launched}, 2 min ago",
        "host": f"box, pid {held._live.me.pid}",
        "command": "launch.py run x",
        "log": "runs/digits/attempts/0000/logs/rank-00000.log",
        "next": "launch.py logs digits -f",
    }
    assert shown[-1] == "          launch.py stop digits"


def test_a_failed_run_at_length(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a b", now=lambda: 0.0)
    verdict = {"rank": 3, "host": "n7", "where": "train.py:130", "how": "RuntimeError: " + "word " * 40}
    held.folder.verdict_file(0).write_text(json.dumps(verdict))
    end(held, 1)
    found = lines(capsys, "a b")
    assert found[1] == "state     failed (exit code 1): rank 3 on n7 failed at train.py:130:"
    assert found[2].startswith("          RuntimeError: word word")
    assert "launched  1970-01-01 00:00:00" in found
    assert found[-2:] == ["next      launch.py resume 'a b'", "          launch.py logs 'a b' --rank 3"]


def test_a_run_that_was_asked_to_stop_says_by_whom(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a")
    want_stop(held.folder, StopMarker("box", "ann", "2026-11-23T20:14:05Z"))
    found = lines(capsys, "a")
    assert "stop      asked for by ann on box at 2026-11-23 20:14:05" in found
    assert found[-1] == "next      launch.py logs a -f"
    end(held, 143)
    found = lines(capsys, "a")
    assert found[1] == "state     stopped (exit code 143)"
    assert found[-2:] == ["next      launch.py resume a", "          launch.py logs a"]


def test_a_dead_and_an_unknown_run_say_when_they_were_last_seen(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankrun.runfolder.state.WATCH_S", 0.0)
    dead, elsewhere = begin(runs / "dead"), begin(runs / "elsewhere")
    change_holder(dead, **DEAD)
    change_holder(elsewhere, **ELSEWHERE)
    found = lines(capsys, "dead")
    assert found[1] == "state     dead: its launch went without a word"
    assert any(line.startswith("last seen 20") for line in found)
    found = lines(capsys, "elsewhere")
    assert found[1] == "state     unknown: held from host n7, and gives no sign of life"
    assert any(line.startswith("host      n7, pid ") for line in found)


def test_a_finished_run_has_nothing_next(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a", config=True)
    held.folder.final_file.write_text('{"step": 9, "epoch": 5, "metrics": {"top1": 1.0}}')
    want_stop(held.folder, StopMarker())
    end(held, 0)
    found = lines(capsys, "a")
    assert found[1] == "state     finished"
    assert not any(line.startswith(("next", "stop")) for line in found)


def test_without_a_run_it_is_the_only_live_one_or_the_newest(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match="there are no runs in runs; --runs DIR names another place"):
        status([], {})
    first, second = begin(runs / "first", now=lambda: 1000.0), begin(runs / "second", now=lambda: 2000.0)
    found = lines(capsys)
    assert (found[0], found[-1]) == ("run       runs/second", "1 other run is live: launch.py list")
    begin(runs / "third", now=lambda: 3000.0)
    assert lines(capsys)[-1] == "2 other runs are live: launch.py list"
    end(begin(runs / "fourth", now=lambda: 4000.0), 0)
    assert lines(capsys)[0] == "run       runs/third"
    for held in (first, second):
        end(held, 0)
    assert lines(capsys)[0] == "run       runs/third"


def test_a_record_from_a_stranger_moves_no_cursor(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = begin(runs / "a", command=["launch.py", "run", "\x1b[2Jx", "$(touch canary)"])
    held.beat("\x1b]0;title\x07")
    metrics(held, {"kind": "evaluate", "step": 1, "\x1b[31m": 1.0})
    text = "\n".join(lines(capsys, "a"))
    assert text.replace("\n", "").isprintable()
    held.folder.record_file.write_text("[" * 100_000)
    assert lines(capsys, "a")


def test_mistakes_are_one_line(runs: Path) -> None:
    with pytest.raises(OptionError, match="there is no run 'x'"):
        status(["x"], {})
    with pytest.raises(OptionError, match="unrecognized arguments: y"):
        status(["x", "y"], {})


def test_a_disk_that_does_not_answer_is_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(runs / "a")

    def stale(folder: object) -> None:
        raise OSError(116, "Stale file handle", "runs/a/stop")

    monkeypatch.setattr("rankrun.runfolder.stopping.is_stop_wanted", stale)
    assert main(["status", "a"]) == 2
    assert capsys.readouterr().err == "E104 runs/a/stop can't be read: Stale file handle\n"
