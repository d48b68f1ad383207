from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from rankrun.errors import OptionError, RunFolderBusy, RunFolderError
from rankrun.launch.life.resuming import resume
from rankrun.runfolder.stopping import StopMarker, is_stop_wanted, want_stop
from tests.launch.runs import DEAD, begin, change_holder, end

CONFIG = ("run", "runs/a/config.yaml", "--name", "a", "--nproc", "2")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Relative to a folder that is the current one; every run in it has been asked to stop."""
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return Path("runs")


def stopped(path: Path, code: int = 143, **more: Any) -> Path:
    held = begin(path, **more)
    want_stop(held.folder, StopMarker())
    end(held, code)
    return path


def test_it_goes_on_as_recorded_from_where_it_was_launched(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(runs / "a", config=True, resume=CONFIG)
    folder = (runs / "a").absolute()
    monkeypatch.chdir(tmp_path)
    again = resume([str(folder)], {})
    assert (again.code, again.words) == (None, CONFIG[1:])
    assert Path.cwd() == tmp_path / "home"
    assert not (folder / "stop").exists()
    line = f"rankrun: in {tmp_path / 'home'}: launch.py run runs/a/config.yaml --name a --nproc 2\n"
    assert capsys.readouterr().err == line


def test_the_marker_goes_also_when_the_run_was_named_from_another_folder(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path / "runs" / "a")  # launched in home
    monkeypatch.chdir(tmp_path)
    assert resume(["a"], {}).words
    assert Path.cwd() == tmp_path / "home"
    assert not (tmp_path / "runs" / "a" / "stop").exists()


@pytest.mark.parametrize("code", [1, 75, 93, 124, 130, 143])
def test_every_run_that_has_not_finished_goes_on(runs: Path, code: int) -> None:
    stopped(runs / "a", code)
    assert resume(["a"], {}).words


def test_a_dead_run_goes_on(runs: Path) -> None:
    change_holder(begin(runs / "a"), **DEAD)
    assert resume(["a"], {}).words


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--nproc", "4"], [*CONFIG[1:], "--nproc", "4"]),
        (["train.micro_batch=4", "--allow-change", "train.epochs"],
         [*CONFIG[1:], "train.micro_batch=4", "--allow-change", "train.epochs"]),
    ],
)  # fmt: skip
def test_to_a_config_s_words_more_are_added_at_the_end(runs: Path, more: list[str], words: list[str]) -> None:
    stopped(runs / "a", config=True, resume=CONFIG)
    assert list(resume(["a", *more], {}).words) == words


@pytest.mark.parametrize(
    ("recorded", "more", "words"),
    [
        ("run --nproc 2 s.py --its own", "--nproc 4 --grace=1", "--nproc 2 --nproc 4 --grace=1 s.py --its own"),
        ("run --name a -m mod -x", "--nproc 4", "--name a -m --nproc 4 mod -x"),
        ("run --no-python -- -odd --nproc 9", "--nproc 4", "--no-python --nproc 4 -- -odd --nproc 9"),
        ("run s.py", "", "s.py"),
    ],
)  # fmt: skip
def test_to_a_script_s_words_options_are_added_before_the_script(
    runs: Path, recorded: str, more: str, words: str
) -> None:
    stopped(runs / "a", resume=recorded.split())
    assert list(resume(["a", *more.split()], {}).words) == words.split()


def test_arguments_stay_as_they_were_typed(runs: Path) -> None:
    odd = ["run", "--name", "a", "s.py", "", "a b", "--", "--nproc", "\u00e9\u2603", "x=1:2", "'\""]
    stopped(runs / "a", resume=odd)
    assert list(resume(["a"], {}).words) == odd[1:]


def test_another_program_can_not_slip_in(runs: Path) -> None:
    stopped(runs / "a")
    with pytest.raises(OptionError, match=r"'other\.py': after RUN come options of run; a script's own arguments are"):
        resume(["a", "--nproc", "2", "other.py"], {})
    assert (runs / "a" / "stop").exists()


@pytest.mark.parametrize("word", ["--name", "--name=b", "--log-dir"])
def test_the_folder_can_not_be_changed(runs: Path, word: str) -> None:
    stopped(runs / "a")
    with pytest.raises(OptionError, match=f"{word}: resume goes on in the run's own folder; `run` starts another one"):
        resume(["a", word], {})


def test_a_live_run_is_refused_and_goes_on_stopping(runs: Path) -> None:
    held = begin(runs / "a")
    want_stop(held.folder, StopMarker())
    held.beat("stopping saving step 7")
    with pytest.raises(RunFolderBusy, match=r"a has a live launch \(host .*\): it is stopping; nothing to resume"):
        resume(["a"], {})
    assert is_stop_wanted(held.folder)
    held.release()


def test_a_finished_run_says_so(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped(runs / "a", 0)
    again = resume(["a"], {})
    assert (again.code, again.words) == (0, ())
    assert capsys.readouterr().err == "a is finished; `launch.py run … --name NAME` starts another one\n"
    assert not (runs / "a" / "stop").exists(), "nothing must hinder more epochs"


def test_of_a_config_run_tells_that_it_is_finished_to_all_machines(runs: Path) -> None:
    stopped(runs / "a", 0, config=True, resume=CONFIG)
    again = resume(["a"], {})
    assert (again.code, again.words) == (None, CONFIG[1:])


def test_a_dry_run_takes_no_marker_away(runs: Path) -> None:
    stopped(runs / "a")
    assert "--dry-run" in resume(["a", "--dry-run"], {}).words
    assert (runs / "a" / "stop").exists()


def test_a_secret_was_not_kept_so_the_command_is_asked_for(runs: Path) -> None:
    command = ["launch.py", "run", "--name", "a", "s.py", "--api-key", "abc123"]
    stopped(runs / "a", command=command, resume=command[1:])
    assert "abc123" not in (runs / "a" / "record.json").read_text()
    with pytest.raises(OptionError) as caught:
        resume(["a"], {})
    assert str(caught.value) == (
        "the command of runs/a held a secret, which was not kept (***). Give it again, with the secret; it may start "
        "now: launch.py run --name a s.py --api-key '***'"
    )
    assert not (runs / "a" / "stop").exists()


@pytest.mark.parametrize("kept", [[], None, "run s.py", ["run"], ["rm", "-rf", "/"], [1, 2]])
def test_a_run_without_words_to_go_on_asks_for_its_command(runs: Path, kept: object) -> None:
    stopped(runs / "a", command=["train.py", "c.yaml"])
    record = json.loads((runs / "a" / "record.json").read_text())
    (runs / "a" / "record.json").write_text(json.dumps(record | {"resume": kept}))
    with pytest.raises(OptionError) as caught:
        resume(["a"], {})
    assert str(caught.value) == (
        "runs/a does not say how to go on: it was started without launch.py. Give its command again; it may start now: "
        "train.py c.yaml"
    )


def test_a_record_that_is_torn_asks_for_the_command(runs: Path) -> None:
    stopped(runs / "a")
    (runs / "a" / "record.json").write_text("{")
    with pytest.raises(OptionError, match="it may start now: its command"):
        resume(["a"], {})


def test_a_folder_that_is_gone_is_told(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path / "runs" / "a")
    shutil.rmtree(tmp_path / "home")
    os.mkdir(tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(RunFolderError, match=r"a was launched in .*/home, which is not there any more; .* --name a"):
        resume([str(tmp_path / "runs" / "a")], {})


def test_a_run_that_was_moved_is_told(runs: Path, tmp_path: Path) -> None:
    stopped(runs / "a")
    os.rename(runs, "moved")
    with pytest.raises(RunFolderError, match=r"moved/a was .*/runs/a when it was launched; give the .* --name a"):
        resume(["moved/a"], {})
    assert Path.cwd() == tmp_path / "home"
    os.symlink("moved", "runs")
    assert resume(["moved/a"], {}).words, "a link leads to the same place"


def test_a_marker_that_can_not_go_starts_nothing(runs: Path) -> None:
    stopped(runs / "a")
    (runs / "a" / "stop").unlink()
    (runs / "a" / "stop").mkdir()
    with pytest.raises(
        RunFolderError, match=r"a/stop can't be removed \(.*\), and no attempt begins while it is there"
    ):
        resume(["a"], {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nproc", "2", "a"], "resume needs a RUN before --nproc: launch.py resume RUN"),
        (["--runs", "x"], "resume needs a RUN: launch.py resume RUN"),
        (["--runs=runs"], "resume needs a RUN: launch.py resume RUN"),
        (["b"], "there is no run 'b'"),
    ],
)
def test_mistakes_are_told(runs: Path, words: list[str], said: str) -> None:
    stopped(runs / "a")
    with pytest.raises(OptionError, match=said):
        resume(words, {})


def test_runs_elsewhere_are_found(runs: Path, tmp_path: Path) -> None:
    stopped(tmp_path / "else" / "a")
    assert resume(["--runs", str(tmp_path / "else"), "a"], {}).words
    assert resume([f"--runs={tmp_path / 'else'}", "a"], {}).words


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--help"], 0)])
def test_help(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume(words, {}).code == code
    assert "launch.py resume [--runs DIR] RUN" in capsys.readouterr().out
