from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rankrun.beat import Beat
from rankrun.config.settings import Optim
from rankrun.errors import CheckpointError, SaveError
from rankrun.runfolder import RunFolder
from rankrun.training.checkpoint import (
    Checkpoints,
    find_checkpoint,
    load_weights,
    read_state,
    read_tensors,
    refuse_changes,
)
from rankrun.training.log import Log
from rankrun.training.opening import Run
from rankrun.training.optimiser import build_optimiser, optimiser_tensors
from rankrun.training.process_group import Group
from rankrun.training.progress import Progress
from tests.training.helpers import end_of, start_ranks

ABOUT: dict[str, Any] = {"settings": {"seed": 3}, "frozen": {"data.train": {"rows": 4}}, "prediction": {}}


class Bench:
    """A run folder with a model that has been trained for one step."""

    def __init__(self, path: Path, attempt: int = 0, *, width: int = 3) -> None:
        torch.manual_seed(attempt)
        self.folder = RunFolder(path)
        self.folder.attempt(attempt).mkdir(parents=True, exist_ok=True)
        self.said = io.StringIO()
        self.model = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
        self.optimiser = build_optimiser(self.model, Optim())
        self.model(torch.rand(4, 2)).square().sum().backward()
        self.optimiser.step()
        run = Run(self.folder, attempt)
        self.checkpoints = Checkpoints(run, Group(0, 1), Log(0, self.said), Beat.open(None), keep=2)

    def save(self, progress: Progress, must: bool = False) -> bool:
        return self.checkpoints.save(progress, self.model, self.optimiser, ABOUT, must=must)

    def resume(self, frozen: dict[str, Any] | None = None, allow: tuple[str, ...] = ()) -> Progress:
        frozen = ABOUT["frozen"] if frozen is None else frozen
        return self.checkpoints.resume(self.model, self.optimiser, frozen, allow_change=allow)


def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    one = Bench(tmp_path)
    assert one.resume() == Progress()
    state = {"epoch": 1, "position": 8, "sums": [8, 2**63 - 1, -(2**63)], "replaced": 2}
    progress = Progress(5, 1, 8, state, {"step": 4, "epoch": 1, "metric": "top1", "value": 0.5})
    assert one.save(progress)
    other = Bench(tmp_path, attempt=1)
    assert other.resume() == progress
    assert "goes on from" in other.said.getvalue()
    for ours, theirs in (
        (one.model.state_dict(), other.model.state_dict()),
        (optimiser_tensors(one.model, one.optimiser), optimiser_tensors(other.model, other.optimiser)),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_change_of_the_data_is_refused_by_its_key(tmp_path: Path) -> None:
    Bench(tmp_path).save(Progress(5))
    changed = {"data.train": {"rows": 5}, "train.device": "cpu"}
    with pytest.raises(CheckpointError) as caught:
        Bench(tmp_path, 1).resume(changed)
    message = str(caught.value)
    assert 'data.train = {"rows": 4}; now it is {"rows": 5}' in message
    assert "--allow-change data.train" in message
    assert "train.device" not in message  # an older checkpoint knew nothing of it
    assert Bench(tmp_path, 2).resume(changed, allow=("data.train",)).step == 5
    refuse_changes(tmp_path, {"a": [1]}, {"a": (1,)})


# In a process of its own, since the limit is a process's: no file may grow past it, as on a disk that is full.
FULL = """
import resource, signal, sys
from pathlib import Path
from rankrun.errors import SaveError
from rankrun.training.progress import Progress
from tests.training.test_checkpoint import Bench
bench = Bench(Path(sys.argv[1]), width=3000)
bench.save(Progress(5))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, resource.RLIM_INFINITY))
print(bench.save(Progress(6)), bench.said.getvalue())
try:
    bench.save(Progress(6), must=True)
except SaveError as error:
    print(error)
print(sorted(entry.name for entry in bench.folder.checkpoints.iterdir()))
"""


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path: Path) -> None:
    ((code, output),) = end_of(start_ranks(["-c", FULL, str(tmp_path)], 1, launcher="single"))
    assert code == 0, output
    lines = output.splitlines()
    assert lines[0].startswith("False ")
    assert "step 6 could not be saved ([Errno 27] File too large" in lines[0]
    assert "step 6 could not be saved: [Errno 27]" in lines[-2]
    assert "the same command goes on from the latest" in lines[-2]
    assert lines[-1] == "['step-00000005']"


def test_everything_is_on_the_disk_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    bench.folder.checkpoints.mkdir()
    calls: list[tuple[str, int]] = []  # (what, inode)
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def recorded_rename(source: Path, target: Path) -> None:
        calls.append(("rename", os.stat(source).st_ino))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    monkeypatch.setattr(os, "replace", recorded_rename)
    bench.save(Progress(5))
    saved = bench.folder.checkpoints / "step-00000005"
    names = {entry.stat().st_ino: entry.name for entry in [*saved.iterdir(), saved, bench.folder.checkpoints]}
    told = [f"{what} {names[inode]}" for what, inode in calls]
    assert sorted(told[:3]) == ["fsync model.safetensors", "fsync optimizer.safetensors", "fsync state.json"]
    assert told[3:] == [
        "fsync manifest.json",
        "fsync step-00000005",
        "rename step-00000005",
        "fsync checkpoints",
    ]


def test_a_damaged_checkpoint_is_none_of_the_kept(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    for step in (40, 50, 57):
        first.save(Progress(step))
    (first.folder.checkpoints / "step-00000057" / "model.safetensors").write_text("damaged")
    second = Bench(tmp_path, 1)
    assert second.resume().step == 50
    second.save(Progress(60))
    assert [step for step in (40, 50, 57, 60) if (tmp_path / f"checkpoints/step-{step:08d}").exists()] == [50, 60]


def test_a_link_that_can_not_be_made_costs_the_link_only(tmp_path: Path) -> None:
    bench, progress = Bench(tmp_path), Progress(5)
    bench.save(progress)
    bench.folder.best.mkdir()
    bench.checkpoints.note_best(progress, {"top1": 0.5})
    assert "stays as it is" in bench.said.getvalue()
    assert progress.best is None
    bench.folder.best.rmdir()
    bench.checkpoints.note_best(progress, {"top1": 0.5})
    assert progress.best is not None


def test_an_attempt_that_can_not_be_noted_is_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.folder.final_file.mkdir()
    with pytest.raises(SaveError, match="attempt 0 could not begin: "):
        bench.resume()


def test_best_is_the_first_of_the_highest(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    progress = Progress()
    for step, value in ((1, 0.5), (2, 0.7), (3, 0.7), (4, 0.6), (5, 0.1)):
        progress.step = step
        bench.save(progress)
        bench.checkpoints.note_best(progress, {"top1": value})
    assert bench.folder.best.resolve().name == "step-00000002"
    assert sorted(entry.name for entry in bench.folder.checkpoints.iterdir()) == [
        "step-00000002",
        "step-00000004",
        "step-00000005",
    ]
    assert find_checkpoint(tmp_path, print) == bench.folder.best


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    Bench(tmp_path).save(Progress(5))
    path = find_checkpoint(tmp_path, print)
    with pytest.raises(CheckpointError, match=r"another model: 0.weight is \(3, 2\), the model's is \(4, 2\)"):
        load_weights(path, Bench(tmp_path, width=4).model)
    with pytest.raises(CheckpointError, match=r"weight is missing; bias is missing; 0.bias is unknown"):
        load_weights(path, nn.Linear(2, 3))


def test_optimiser_state_of_another_model_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    path = bench.folder.checkpoints / "step-00000005"
    bench.save(Progress(5))
    save_file({"elsewhere/momentum_buffer": torch.zeros(1)}, path / "optimizer.safetensors")
    (path / "manifest.json").write_text(json.dumps({"version": 1, "step": 5, "attempt": 0, "files": {}}))
    with pytest.raises(CheckpointError, match="holds state of 'elsewhere', which the model has not"):
        Bench(tmp_path, 1).resume()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        find_checkpoint(tmp_path / "nothing", print)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no whole checkpoint yet"):
        find_checkpoint(tmp_path, print)
    with pytest.raises(CheckpointError, match=r"state.json can't be read"):
        read_state(tmp_path)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state.json is damaged"):
        read_state(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({"version": 2}))
    with pytest.raises(CheckpointError, match="has version 2; this program reads up to 1"):
        read_state(tmp_path)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (canary,)

    for content in (pickle.dumps(Hostile()), b"", b"text"):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="can't be read as safetensors"):
            read_tensors(tmp_path / "model.safetensors")
    assert not canary.exists()
