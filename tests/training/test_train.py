"""train.py as a whole, with real ranks: what is promised is equality of hashes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankrun.runfolder import RunFolder, read_json_lines
from rankrun.training.metrics import read_metrics
from rankrun.training.snapshot import snapshot_steps
from tests.training.helpers import ROOT, end_of, start_ranks, write_digits

EPOCHS, CUT = 2, 36  # 44 rows in steps of 9


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


def train(config: Path, name: str, world_size: int, *words: str, **how: Any) -> tuple[list[tuple[int, str]], RunFolder]:
    runs = config.parent / "runs"
    arguments = [str(ROOT / "train.py"), str(config), *words, "--runs", str(runs), "--name", name]
    return end_of(start_ranks(arguments, world_size, **how)), RunFolder(runs / name)


def hashes(folder: RunFolder) -> tuple[str, str, dict[str, float]]:
    final = json.loads(folder.final_file.read_text())
    return final["weights_sha256"], final["optimizer_sha256"], final["metrics"]


def assert_each_position_once(folder: RunFolder, world_size: int, rows: int) -> None:
    """Position g belongs to rank g mod W; of several attempts the highest counts."""
    served: dict[tuple[int, int], tuple[int, int]] = {}
    for rank in range(world_size):
        for line in read_json_lines(folder.audit_file(rank)):
            first = line["position"] + (rank - line["position"]) % world_size
            for place, row in enumerate(line["rows"]):
                key = (line["epoch"], first + place * world_size)
                served[key] = max(served.get(key, (-1, -1)), (line["attempt"], row))
    assert sorted(served) == [(epoch, position) for epoch in range(EPOCHS) for position in range(CUT)]
    for epoch in range(EPOCHS):
        assert len({served[epoch, position][1] for position in range(CUT)}) == CUT <= rows


def test_alone_whole_run_and_again(config: Path) -> None:
    ends, folder = train(config, "alone", 1, launcher="single")
    assert ends[0][0] == 0, ends
    final = json.loads(folder.final_file.read_text())
    assert (final["step"], final["epoch"], final["metrics"]["rows"]) == (8, 2, 13)
    assert [line["step"] for line in read_metrics(folder.metrics_file)["train"]] == [2, 4, 6, 8]
    assert [line["step"] for line in read_metrics(folder.metrics_file)["evaluate"]] == [4, 8]
    assert snapshot_steps(folder) == [4, 8]
    assert (folder.best / "model.safetensors").exists()
    assert folder.curves_file.exists()
    assert not folder.live.exists()
    assert_each_position_once(folder, 1, 44)
    before = folder.final_file.read_bytes()
    ends, _ = train(config, "alone", 1, launcher="single")
    assert ends[0][0] == 0
    assert "is finished" in ends[0][1]
    assert folder.final_file.read_bytes() == before


def test_a_mistake_in_the_config_is_told_once_and_leaves_nothing(config: Path) -> None:
    ends, folder = train(config, "wrong", 2, "optim.lr=-1")
    assert [code for code, _ in ends] == [2, 2]
    assert "optim.lr" in ends[0][1]
    assert ends[1][1] == ""
    assert not folder.path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("words", [("data.train=nowhere.txt",), ("model.name=resnte18",), ("train.global_batch=50",)])
def test_a_mistake_found_later_is_told_once_and_leaves_nothing(config: Path, words: tuple[str, ...]) -> None:
    ends, folder = train(config, "later", 2, *words)
    assert [code for code, _ in ends] == [2, 2], ends
    assert len(ends[0][1].splitlines()) == 1, ends
    assert ends[1][1] == ""
    assert not folder.path.exists()


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> tuple[str, str, dict[str, float]]:
    ends, folder = train(config, "undisturbed", 2)
    assert [code for code, _ in ends] == [0, 0], ends
    assert_each_position_once(folder, 2, 44)
    return hashes(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "how"),
    [
        ("indexed", ("data.mode=indexed", "data.workers=1"), {}),
        ("workers", ("data.workers=3",), {}),
        ("srun", (), {"launcher": "srun"}),
    ],
)
def test_hash_does_not_depend_on_how_it_was_run(
    config: Path, undisturbed: object, name: str, words: tuple[str, ...], how: dict[str, Any]
) -> None:
    ends, folder = train(config, name, 2, *words, **how)
    assert [code for code, _ in ends] == [0, 0], ends
    assert hashes(folder) == undisturbed
    assert_each_position_once(folder, 2, 44)


# Ends or signals itself in the middle of a run, at a step that the test names: no clock decides.
DISTURBED = """
import os, runpy, signal, sys
import rankrun.training.progress as progress
number, when, who = int(sys.argv.pop(1)), int(sys.argv.pop(1)), sys.argv.pop(1)
advance = progress.Progress.advance
def disturbed(self, state):
    advance(self, state)
    if self.step == when and os.environ["RANK"] in who:
        os.kill(os.getpid(), number)
progress.Progress.advance = disturbed
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "when", "who", "codes"),
    [
        (signal.SIGKILL, 3, "01", lambda codes: codes == [-9, -9]),
        (signal.SIGKILL, 6, "1", lambda codes: codes[1] == -9 and codes[0] != 0),
        (signal.SIGUSR2, 2, "1", lambda codes: codes == [75, 75]),
        (signal.SIGUSR2, 3, "0", lambda codes: codes == [75, 75]),
        (signal.SIGINT, 5, "0", lambda codes: codes == [130, 130]),
    ],
    ids=["all-killed", "one-killed", "notice-mid-epoch", "notice-at-the-end-of-an-epoch", "interrupt"],
)
def test_hash_does_not_depend_on_what_happened(
    config: Path, undisturbed: object, number: int, when: int, who: str, codes: Callable[[list[int]], bool]
) -> None:
    name, runs = f"{number}-{when}", config.parent / "runs"
    words = [str(config), "checkpoint.every_steps=2", "--runs", str(runs), "--name", name]
    ends = end_of(start_ranks(["-c", DISTURBED, str(int(number)), str(when), who, *words], 2))
    assert codes([code for code, _ in ends]), ends
    ends, folder = train(config, name, 2)
    assert [code for code, _ in ends] == [0, 0], ends
    assert "goes on from" in ends[0][1]
    assert hashes(folder) == undisturbed
    assert_each_position_once(folder, 2, 44)
