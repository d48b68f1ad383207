from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankrun.beat import Beat
from rankrun.config import resolve
from rankrun.config.settings import Optim
from rankrun.errors import BadInput, OrderError, SaveError
from rankrun.runfolder import RunFolder, read_json_lines
from rankrun.training.hashes import tensors_sha256
from rankrun.training.journal import Journal
from rankrun.training.log import Log
from rankrun.training.opening import Run
from rankrun.training.optimiser import build_optimiser
from rankrun.training.process_group import Group
from rankrun.training.progress import Progress


@dataclass
class Rows:
    rows: torch.Tensor
    replaced: list[tuple[int, int]] = field(default_factory=list)
    state_after: dict[str, Any] | None = None


class Loader:
    steps_per_epoch = 2
    bad_limit = 1

    def expected_sums(self, epoch: int) -> list[int]:
        return [4, 6, 14]

    def check_budget(self, replaced: int) -> None:
        if replaced > 1:
            raise BadInput(f"{replaced} replaced")


def journal(tmp_path: Path, attempt: int = 0) -> tuple[Journal, io.StringIO, RunFolder]:
    (tmp_path / "a.yaml").write_text("data: {train: x, audit: true}\ntrain: {epochs: 2, global_batch: 2}\n")
    settings = resolve(tmp_path / "a.yaml", ["train.log_every_steps=2"])
    folder, stream = RunFolder(tmp_path / "run"), io.StringIO()
    run = Run(folder, attempt)
    log, beat = Log(0, stream), Beat.open(None)
    journal = Journal(run, Group(0, 1), log, beat, settings, Loader(), "train.txt:{}".format, done=0)
    return journal, stream, folder


def test_lines_and_audit(tmp_path: Path) -> None:
    told, stream, folder = journal(tmp_path)
    for step, loss in enumerate((1.0, 3.0, 5.0)):
        told.add(Rows(torch.tensor([step, 7])), torch.tensor(loss / 2))
        told.add(Rows(torch.tensor([9])), torch.tensor(loss / 2))
        told.step(Progress(step, 0, step * 2), 0.1)
    (line,) = read_json_lines(folder.metrics_file)
    assert (line["kind"], line["step"], line["loss"], line["lr"]) == ("train", 2, 2.0, 0.1)
    assert "epoch 1 step 2/4  loss 2.0000  lr 0.1" in stream.getvalue()
    assert read_json_lines(folder.audit_file(0))[1] == {
        "attempt": 0, "epoch": 0, "step": 1, "position": 2, "rows": [1, 7, 9],
    }  # fmt: skip


def test_an_epoch_must_be_what_its_order_says(tmp_path: Path) -> None:
    told, _, _ = journal(tmp_path)
    good = {"epoch": 0, "position": 4, "sums": [4, 6, 14], "replaced": 0}
    told.check_epoch(Progress(2, 0, 4, good))
    with pytest.raises(OrderError, match=r"epoch 0: .* is \(4, 6, 13\), it must be \(4, 6, 14\); rows were lost"):
        told.check_epoch(Progress(2, 0, 4, good | {"sums": [4, 6, 13]}))
    with pytest.raises(BadInput, match="2 replaced"):
        told.check_epoch(Progress(2, 0, 4, good | {"replaced": 2}))


def test_bad_samples_stand_there_once(tmp_path: Path) -> None:
    state = {"epoch": 0, "position": 4, "sums": [4, 6, 14], "replaced": 1}
    for attempt in range(2):
        told, stream, folder = journal(tmp_path, attempt)
        told.add(Rows(torch.tensor([3]), [(3, 1)]), torch.tensor(0.0))
        told.check_epoch(Progress(2, 0, 4, state))
        assert "1 samples of epoch 1 could not be read" in stream.getvalue()
    assert folder.bad_samples_file.read_text() == "epoch,row,place,shown_instead\n0,3,train.txt:3,1\n"


def test_the_end(tmp_path: Path) -> None:
    told, stream, folder = journal(tmp_path)
    model = nn.Linear(1, 1)
    told.evaluated(Progress(4, 2), {"rows": 3, "top1": 0.5})
    assert "epoch 2 evaluated  rows 3  top1 0.5000" in stream.getvalue()
    told.finish(Progress(4, 2), {"top1": 0.5, "loss": float("nan")}, model, build_optimiser(model, Optim()))
    final = json.loads(folder.final_file.read_text())
    assert (final["step"], final["epoch"], final["metrics"]) == (4, 2, {"top1": 0.5, "loss": None})
    assert final["weights_sha256"] == tensors_sha256(model.state_dict())
    assert folder.curves_file.exists()


def test_too_many_bad_samples_end_the_run_at_the_next_line_and_are_listed(tmp_path: Path) -> None:
    told, _, folder = journal(tmp_path)
    told.add(Rows(torch.tensor([3]), [(3, 1)], {"replaced": 1}), torch.tensor(0.0))
    told.step(Progress(0, 0, 0), 0.1)
    told.add(Rows(torch.tensor([4]), [(4, 2)]), torch.tensor(0.0))
    told.add(Rows(torch.tensor([5]), [], {"replaced": 2}), torch.tensor(0.0))
    with pytest.raises(BadInput, match="2 replaced") as caught:
        told.step(Progress(1, 0, 2), 0.1)
    assert caught.value.told_by == 0
    assert folder.bad_samples_file.read_text().splitlines()[1:] == ["0,3,train.txt:3,1", "0,4,train.txt:4,2"]


def test_before_a_save_bad_samples_are_listed_also_late(tmp_path: Path) -> None:
    told, stream, folder = journal(tmp_path)
    told.add(Rows(torch.tensor([3]), [(3, 1)]), torch.tensor(0.0))
    folder.bad_samples_file.mkdir()
    told.settle(Progress(1, 0, 2))
    assert "could not be written" in stream.getvalue()
    folder.bad_samples_file.rmdir()
    told.settle(Progress(2, 1, 0))
    assert folder.bad_samples_file.read_text().splitlines()[1:] == ["0,3,train.txt:3,1"]


def test_without_its_audit_a_run_stops_before_the_next_line_or_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rankrun.runfolder.lines.JsonLines.write", full)
    told, _, _ = journal(tmp_path)
    told.step(Progress(0, 0, 0), 0.1)
    with pytest.raises(SaveError, match=r"the audit of rank 0 could not be written: .*No space") as caught:
        told.settle(Progress(1, 0, 2))
    assert caught.value.told_by == 0
    with pytest.raises(SaveError, match="the audit of rank 0"):
        told.step(Progress(1, 0, 2), 0.1)


def test_a_disk_that_refuses_the_picture_or_the_end(tmp_path: Path) -> None:
    told, stream, folder = journal(tmp_path)
    model = nn.Linear(1, 1)
    optimiser = build_optimiser(model, Optim())
    told.evaluated(Progress(4, 2), {"top1": 0.5})
    folder.curves_file.mkdir()
    told.finish(Progress(4, 2), {}, model, optimiser)
    assert "curves.png could not be drawn" in stream.getvalue()
    folder.final_file.unlink()
    folder.final_file.mkdir()
    with pytest.raises(SaveError, match=r"final.json could not be written: .*the same command goes on"):
        told.finish(Progress(4, 2), {}, model, optimiser)
