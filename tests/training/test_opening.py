from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rankrun.config import resolve
from rankrun.errors import ConfigError, OptionError, RunFolderBusy, RunFolderError, WorldError
from rankrun.training.opening import Options, _heartbeat, open_run, read_options, read_settings
from rankrun.training.process_group import Group

ALONE = Group(0, 1)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    config = tmp_path / "a.yaml"
    config.write_text("data: {train: x}\ntrain: {epochs: 4, global_batch: 2}\n")
    return Options(config, runs=tmp_path / "runs")


def test_options() -> None:
    given = read_options(["c/a.yaml", "optim.lr=1", "--runs", "r", "seed=2", "--allow-change", "seed", "--debug"])
    assert given == Options(Path("c/a.yaml"), ("optim.lr=1", "seed=2"), None, Path("r"), ("seed",), True)
    assert given.run_path == Path("r/a")
    assert read_options(["a.yaml", "--name", "b"]).run_path == Path("runs/b")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "required: CONFIG"),
        (["a.yaml", "--nmae", "x"], "unrecognized arguments: --nmae x"),
        (["a.yaml", "--name", "../x"], "a name without '/' is needed"),
        (["a.yaml", "--name", ""], "a name without '/' is needed"),
    ],
)
def test_wrong_options_are_told(argv: list[str], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        read_options(argv)


def test_settings_come_from_the_launchers_folder_or_from_the_options(options: Options, tmp_path: Path) -> None:
    assert read_settings(options, {}).train.epochs == 4
    (tmp_path / "config.yaml").write_text("data: {train: x}\ntrain: {epochs: 9, global_batch: 2}\n")
    assert read_settings(options, {"RANKRUN_RUN_DIR": str(tmp_path)}).train.epochs == 9
    with pytest.raises(ConfigError, match="no such file"):
        read_settings(Options(tmp_path / "none.yaml"), {})


def test_claims_lets_go_and_counts_attempts(options: Options) -> None:
    settings = resolve(options.config)
    for attempt in range(2):
        with open_run(options, settings, {}, ALONE, ["train.py"]) as run:
            assert (run.attempt, run.finished) == (attempt, False)
            assert run.folder.live.exists()
        assert not run.folder.live.exists()
    run.folder.final_file.write_text("{}")
    with open_run(options, settings, {}, ALONE, ["train.py"]) as run:
        assert run.finished
        assert "is finished" in run.notes[-1]
    with (
        pytest.raises(RunFolderError, match=r"another config.*train.epochs"),
        open_run(options, resolve(options.config, ["train.epochs=5"]), {}, ALONE, ["train.py"]),
    ):
        pass


def test_under_a_launcher_nothing_is_claimed(options: Options, tmp_path: Path) -> None:
    settings = resolve(options.config)
    environ = {"RANKRUN_RUN_DIR": str(tmp_path / "given"), "RANKRUN_ATTEMPT": "7"}
    with open_run(options, settings, environ, ALONE, []) as run:
        assert (run.folder.path, run.attempt) == (tmp_path / "given", 7)
    assert not (tmp_path / "given").exists()
    with (
        pytest.raises(WorldError, match="RANKRUN_ATTEMPT='' is not the number of an attempt"),
        open_run(options, settings, {"RANKRUN_RUN_DIR": "x"}, ALONE, []),
    ):
        pass


def test_the_heart_beats_on_until_another_launch_holds_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left: list[int] = []
    monkeypatch.setattr("rankrun.training.opening._HEARTBEAT_S", 0.001)
    monkeypatch.setattr("rankrun.training.opening.leave", lambda code: (left.append(code), ended.set()))
    answers: list[Exception | None] = [OSError(5, "Input/output error"), None, OSError(5, "Input/output error")]
    answers += [RunFolderBusy("another launch holds it")]
    ended = threading.Event()

    def beat() -> None:
        if answers and (answer := answers.pop(0)) is not None:
            raise answer

    with _heartbeat(beat):
        assert ended.wait(10)
    assert left == [2]
    assert "E105 another launch holds it" in capsys.readouterr().err


def test_a_folder_that_can_not_be_let_go_of_is_no_failure(
    options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rankrun.runfolder.Claim.release", full)
    with open_run(options, resolve(options.config), {}, ALONE, ["train.py"]):
        pass
    assert "could not be let go of" in capsys.readouterr().err
