from __future__ import annotations

import os
from pathlib import Path

import pytest

from rankrun.errors import OptionError
from rankrun.launch.life.finding import find_run, runs_in
from tests.launch.runs import begin


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "b", "-odd"):
        begin(tmp_path / "runs" / name).release()
    (tmp_path / "runs" / ".rendezvous").mkdir()
    (tmp_path / "runs" / "photos").mkdir()
    (tmp_path / "runs" / "file").write_text("x")
    begin(tmp_path / "elsewhere" / "c").release()
    return Path("runs")


def test_only_run_folders_are_runs(runs: Path) -> None:
    assert [folder.name for folder in runs_in(runs)] == ["-odd", "b", "digits"]
    assert runs_in(Path("none")) == []


def test_a_parent_that_is_a_file_is_told(runs: Path) -> None:
    with pytest.raises(OptionError, match="--runs runs/file: Not a directory"):
        runs_in(runs / "file")


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ("digits", "runs/digits"),
        ("runs/digits", "runs/digits"),
        ("runs/digits/", "runs/digits"),
        ("elsewhere/c", "elsewhere/c"),
        ("-odd", "runs/-odd"),
    ],
)
def test_a_run_is_found_by_name_and_by_path(runs: Path, word: str, path: str) -> None:
    assert find_run(word, runs).path == Path(path)
    assert find_run(os.path.abspath(path), runs).path == Path(path).absolute()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("digit", "there is no run 'digit'. Did you mean 'digits'?"),
        ("zzzzzzzz", "there is no run 'zzzzzzzz'. `launch.py list` shows what there is."),
        ("photos", "there is no run 'photos'. `launch.py list` shows what there is."),
        ("", "there is no run ''. `launch.py list` shows what there is."),
        (".", "there is no run '.'. `launch.py list` shows what there is."),
        ("a\0b", "there is no run 'a\\\\x00b'. `launch.py list` shows what there is."),
        ("n" * 5000, f"there is no run '{'n' * 80}'. `launch.py list` shows what there is."),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(runs: Path, word: str, said: str) -> None:
    with pytest.raises(OptionError) as caught:
        find_run(word, runs)
    assert str(caught.value) == said


def test_an_empty_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no run 'a'\. .*/none holds none; --runs DIR names another place"):
        find_run("a", tmp_path / "none")
