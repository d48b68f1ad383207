from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankrun.launch.life.facts import Facts, facts_of, newest_checkpoint
from rankrun.runfolder import Claim, RunFolder
from rankrun.runfolder.state import state_of
from tests.launch.runs import begin, checkpoint, end, metrics

TRAIN = {"kind": "train", "step": 20, "epoch": 1, "loss": 0.5, "images_per_s": 100.0, "eta_s": 90.0}
EVALUATED = {"kind": "evaluate", "step": 22, "epoch": 2, "top1": 0.75, "rows": 40}


def facts(held: Claim) -> Facts:
    return facts_of(held.folder, state_of(held.folder))


@pytest.fixture
def held(tmp_path: Path) -> Claim:
    return begin(tmp_path / "a", config=True)


def test_of_a_live_run_the_newest_lines_count_and_its_own_words(held: Claim) -> None:
    metrics(held, TRAIN, EVALUATED)
    held.beat("running train step 25")
    found = facts(held)
    assert found == Facts(25, 2, 5, 0.5, 100.0, 90.0, {"top1": 0.75}, None)
    assert found.top1 == 0.75
    held.beat("running train step 21")
    assert facts(held).step == 22, "the status is a second old, the file is not"


def test_an_attempt_that_goes_on_stands_behind_what_the_one_before_has_written(held: Claim) -> None:
    metrics(held, TRAIN)
    held.next_attempt()
    held.beat("running train step 11")
    found = facts(held)
    assert (found.step, found.images_per_s, found.left_s) == (11, None, None)


def test_an_ended_run_has_no_rate(held: Claim) -> None:
    metrics(held, TRAIN)
    checkpoint(held, 18)
    end(held, 143)
    assert facts(held) == Facts(20, 1, 5, 0.5, None, None, {}, "step-00000018")
    checkpoint(held, 23)
    assert facts(held).step == 23


def test_a_finished_run_is_told_by_its_final_json(held: Claim) -> None:
    metrics(held, TRAIN)
    held.folder.final_file.write_text(json.dumps({"step": 30, "epoch": 5, "metrics": {"top1": 0.9, "rows": 40}}))
    end(held, 0)
    assert facts(held) == Facts(30, 5, 5, metrics={"top1": 0.9})


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"\xff\xfe", b"[1]\n3\nnull\n", b'{"kind": []}\n', b"[" * 50_000, b'{"kind":"train","step":"x"}\n',
     b'{"kind":"train","step":true,"loss":null}\n'],
)  # fmt: skip
def test_files_that_say_nothing_are_no_hindrance(held: Claim, content: bytes) -> None:
    held.folder.metrics_file.write_bytes(content)
    assert facts(held) == Facts(epochs=5)
    held.folder.final_file.write_bytes(content)
    held.folder.config_file.write_bytes(content)
    end(held, 0)
    found = facts(held)
    assert (found.step, found.epochs) == (None, None)


def test_a_torn_last_line_and_a_huge_file_cost_nothing(held: Claim) -> None:
    with open(held.folder.metrics_file, "wb") as file:
        file.truncate(1 << 32)  # 4 GiB of nothing before the lines
    metrics(held, {}, TRAIN)
    with open(held.folder.metrics_file, "a") as file:
        file.write('{"kind": "train", "st')
    assert facts(held).step == 20


def test_only_a_checkpoint_with_its_manifest_counts(held: Claim) -> None:
    assert newest_checkpoint(held.folder) is None
    checkpoint(held, 5)
    checkpoint(held, 10)
    checkpoint(held, 15, whole=False)
    (held.folder.checkpoints / "step-00000020.tmp-12").mkdir()
    assert newest_checkpoint(held.folder) == "step-00000010"


def test_a_folder_that_is_gone_tells_nothing(tmp_path: Path) -> None:
    gone = RunFolder(tmp_path / "gone")
    assert facts_of(gone, state_of(gone)) == Facts()
