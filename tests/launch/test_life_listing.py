from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankrun.errors import OptionError
from rankrun.launch.cli import main
from rankrun.launch.life.listing import list_runs
from tests.launch.runs import DEAD, begin, change_holder, end, metrics


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert list_runs(list(words), {}) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def test_without_runs_it_says_so(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys) == ["there are no runs in runs"]
    assert lines(capsys, "--runs", "else where") == ["there are no runs in else where"]


def test_a_line_for_each_run_the_newest_last(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = begin(runs / "zz", host="n1.cluster.example", now=lambda: 1000.0)
    end(failed, 1)
    done = begin(runs / "digits", config=True, host="n1", now=lambda: 2000.0)
    done.folder.final_file.write_text(json.dumps({"step": 345, "epoch": 15, "metrics": {"top1": 0.98765}}))
    end(done, 0)
    dead = begin(runs / "dead", host="n1")
    change_holder(dead, **DEAD)
    live = begin(runs / "a", config=True, host="n2")
    metrics(live, {"kind": "train", "step": 20, "epoch": 3})
    live.beat("running train step 25")
    found = lines(capsys)
    assert [line.split()[:2] for line in found] == [
        ["RUN", "STATE"], ["zz", "failed"], ["digits", "finished"], ["dead", "dead"], ["a", "running"]
    ]  # fmt: skip
    assert found[0].split() == ["RUN", "STATE", "ATTEMPT", "EPOCH", "STEP", "TOP1", "SINCE", "HOST"]
    assert found[2].split()[2:6] == ["0", "15/5", "345", "0.9877"]
    assert found[1].split()[-1] == "n1"
    assert found[4].split()[2:5] == ["0", "3/5", "25"]
    assert max(map(len, found)) <= 80


def test_it_fits_80_columns_with_names_of_any_length(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "n" * 79
    for name in (long, "m" * 30, "short"):
        held = begin(runs / name, config=True, host="a-host-with-a-very-long-name")
        metrics(held, {"kind": "train", "step": 123456789, "epoch": 1234}, {"kind": "evaluate", "top1": 0.5})
        held.beat("restarting")
    found = lines(capsys)
    assert max(map(len, found)) <= 80
    assert long in found
    assert all(any(line.startswith(name) for line in found) for name in ("m" * 30, "short"))


def test_folders_that_are_no_runs_are_left_out(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / ".index").mkdir(parents=True)
    (runs / "photos").mkdir()
    (runs / "torn").mkdir()
    (runs / "torn" / "record.json").write_text("{")
    assert [line.split() for line in lines(capsys)] == [["RUN", "STATE"], ["torn", "dead"]]


def test_a_mistake_is_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match=r"unrecognized arguments: a b; launch\.py list --help"):
        list_runs(["a", "b"], {})
    assert main(["list", "--runs"]) == 2
    assert "--runs: expected one argument; launch.py list --help lists what there is" in capsys.readouterr().err
