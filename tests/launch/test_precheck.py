from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from rankrun.config import resolve
from rankrun.launch import verbs
from rankrun.launch.precheck import DataRefused, check_data, data_words, index_folder
from rankrun.launch.reading import Facts


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("file,kind\n" + "a.png,0\nb.png,1\n" * 10)
    (tmp_path / "v.txt").write_text("a.png 0\n" * 5)
    (tmp_path / "out.txt").write_text("3\n")
    path = Path("c.yaml")
    path.write_text("data: {train: t.csv, val: v.txt, classes: [a, b]}\ntrain: {epochs: 1, global_batch: 4}\nseed: 7\n")
    return path


def test_the_words_of_a_config(config: Path) -> None:
    settings = resolve(
        config,
        [
            *("data.root=r", "data.allow_outside_root=true", "data.format=csv"),
            *("data.columns={path: file, label: 1}", "data.exclude=[out.txt, more.txt]"),
        ],
    )
    training, evaluation = data_words(settings, Path("runs/.index"))
    common = [
        *("--of-config", '--classes=["a", "b"]', "--root=r", "--allow-outside-root", "--format=csv"),
        *('--columns={"path": "file", "label": 1}', "--cache=runs/.index"),
    ]
    # what is left out are rows of the training data
    assert training == ["--exclude=out.txt", "--exclude=more.txt", *common, "--", "t.csv"]
    assert evaluation == [*common, "--", "v.txt"]


def test_no_more_words_than_there_are_keys(config: Path) -> None:
    settings = resolve(config, ["data.classes=null", "data.val=null", "data.train=[a.txt, b.txt]"])
    assert data_words(settings, index_folder(Path("r"))) == [
        ["--of-config", "--cache=r/.index", "--", "a.txt", "b.txt"]
    ]


def test_a_look_at_the_data_tells_facts(config: Path) -> None:
    settings = resolve(config, ["data.exclude=out.txt"])
    train, val = check_data(settings, 2, os.environ, cache=Path("cache"))
    assert isinstance(train, Facts)
    assert (train.rows, val.rows) == (19, 5)
    assert train.told.startswith("t.csv: CSV with a header, path from column 'file', label from 'kind'")
    assert val.told == "v.txt: lines 'path label'"
    assert train.costs["row shard"].rows == 10
    assert not Path("cache").exists(), "a look leaves nothing behind"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data.columns.label=none"], "E201 t.csv has no column 'none' for label"),
        (["data.format=jsonl"], "E201 t.csv: JSON lines hold one object on each line"),
        (["data.exclude=none.txt"], "E201 data.exclude: none.txt: No such file"),
        (["data.exclude=v.txt"], "E202 v.txt:1 "),
        (["data.order=block"], "E205 order=block with 170 bytes of meta file"),
        (["data.val=none*.txt"], "E201 no file is called like none*.txt"),
        (["train.global_batch=21"], "E205 an epoch without a single step: 20 rows"),
    ],
)
def test_refusals(config: Path, words: list[str], told: str) -> None:
    with pytest.raises(DataRefused) as caught:
        check_data(resolve(config, words), 2, os.environ, cache=Path("cache"))
    assert str(caught.value).startswith(told)
    assert len(str(caught.value).splitlines()) <= 2


# -- `data VERB CONFIG`


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words with which the data package was called, one list per call."""
    calls: list[list[str]] = []

    def call(command: list[str], env: dict[str, str]) -> int:
        calls.append(command[command.index("-m") + 2 :])
        return 0

    monkeypatch.setattr(verbs, "_call", call)
    return calls


COMMON = ["--of-config", '--classes=["a", "b"]', "--cache=runs/.index", "--"]


def test_without_a_config_the_words_are_handed_on(called: list[list[str]]) -> None:
    assert verbs.data(["check", "--head", "m.txt"], os.environ) == 0
    assert verbs.data([], os.environ) == 0
    assert called == [["check", "--head", "m.txt"], []]


def test_check(config: Path, called: list[list[str]]) -> None:
    verbs.data(["check", "--decode", "--clean", "good.txt", "c.yaml", "train.global_batch=5"], os.environ)
    assert called == [
        ["check", "--global-batch=5", "--order=row", "--decode", "--clean", "good.txt", *COMMON, "t.csv"],
        ["check", "--against=t.csv", "--decode", "--clean", "good-val.txt", *COMMON, "v.txt"],
    ]
    called.clear()
    verbs.data(["check", "--head", "c.yaml"], os.environ)
    assert called[1] == ["check", "--head", *COMMON, "v.txt"]


def test_index(config: Path, called: list[list[str]]) -> None:
    verbs.data(["index", "c.yaml"], os.environ)
    assert called == [["index", *COMMON, "t.csv"], ["index", *COMMON, "v.txt"]]


def test_inspect(config: Path, called: list[list[str]]) -> None:
    recipe = "data.train_transforms=[RandomHorizontalFlip]"
    verbs.data(["inspect", "c.yaml", recipe, "eval.global_batch=5", "launch.nproc=2", "--grid=a/g.png"], os.environ)
    train, val = called
    assert f"--transforms={json.dumps(['RandomHorizontalFlip'])}" in train
    assert {"--channels=3", "--seed=7", "--global-batch=4", "--world-size=2", "--grid=a/g.png"} <= set(train)
    assert {"--transforms=[]", "--global-batch=5", "--tail=mask", "--grid=a/g-val.png"} <= set(val)


def test_pack(config: Path, called: list[list[str]]) -> None:
    verbs.data(["pack", "--out", "packed", "c.yaml"], os.environ)
    assert called == [
        ["pack", "--out", "packed/train", *COMMON, "t.csv"],
        ["pack", "--out", "packed/val", *COMMON, "v.txt"],
    ]
    called.clear()
    verbs.data(["pack", "--out=packed", "c.yaml", "data.val=null"], os.environ)
    assert called == [["pack", "--out=packed", *COMMON, "t.csv"]]


def test_where(config: Path, called: list[list[str]]) -> None:
    verbs.data(["where", "c.yaml", "train.micro_batch=2", "--row", "5", "--world-size=3"], os.environ)
    words = ["--global-batch=4", "--world-size=1", "--seed=7", "--order=row", "--epochs=1", "--micro-batch=2"]
    assert called == [["where", *words, "--row", "5", "--world-size=3", *COMMON, "t.csv"]]


@pytest.mark.parametrize("answers", [True, False])
def test_ctrl_c_is_the_process_to_answer(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a terminal it reaches both processes; sent to the launcher alone it is passed on."""
    told: list[int] = []

    class Process:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            self.waits = iter([KeyboardInterrupt(), 130 if answers else subprocess.TimeoutExpired("", 2), 130])

        def wait(self, timeout: float | None = None) -> int:
            outcome = next(self.waits)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        def send_signal(self, number: int) -> None:
            told.append(number)

    monkeypatch.setattr(verbs.subprocess, "Popen", Process)
    assert verbs.data(["check", "m.txt"], os.environ) == 130
    assert told == ([] if answers else [signal.SIGINT])


def test_the_first_refusal_ends_it(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = iter([2])
    monkeypatch.setattr(verbs, "_call", lambda command, env: next(codes))
    assert verbs.data(["check", "c.yaml"], os.environ) == 2


def test_names_are_not_compared_with_numbers(config: Path) -> None:
    Path("t.csv").write_text("file,kind\n" + "a.png,cat\nb.png,dog\n" * 10)
    for words, told in (
        (
            [],
            "E203 the labels of data.train are names, those of data.val numbers: which number means which name? Give ",
        ),
        (["data.train=v.txt", "data.val=t.csv", "train.global_batch=5"], "E203 the labels of data.train are numbers, "),
    ):
        with pytest.raises(DataRefused) as caught:
            check_data(resolve(config, ["data.classes=null", *words]), 1, os.environ, cache=Path("cache"))
        assert str(caught.value).startswith(told)
    with pytest.raises(DataRefused, match=r"^E203 the labels of data\.train are names, those of data\.val numbers"):
        verbs.data(["check", "c.yaml", "data.classes=null"], os.environ)
    train, val = check_data(resolve(config, ["data.classes=[cat, dog]"]), 1, os.environ, cache=Path("cache"))
    assert (train.named, val.named) == (True, False)


def test_a_missing_root_comes_first(config: Path) -> None:
    settings = resolve(config, ["data.root=nowhere", "data.train=none.txt"])
    with pytest.raises(
        DataRefused, match=r"^E213 data\.root=.*nowhere: there is no such folder; paths in the meta files"
    ):
        check_data(settings, 1, os.environ, cache=Path("cache"))


def test_what_is_listed_is_kept_where_a_run_looks(called: list[list[str]]) -> None:
    verbs.data(["index", "tree", "--cache=mine"], os.environ)
    assert called == [["index", "--cache=runs/.index", "tree", "--cache=mine"]]
