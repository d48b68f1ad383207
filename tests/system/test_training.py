"""train.py under every launcher, killed, told to leave, and given again: always the same weights, every row once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankrun.runfolder import audit_positions
from tests.system.doors import ROOT, Command, Doors, children, clean_environment

pytestmark = [pytest.mark.needs("linux"), pytest.mark.slow]

ROWS, BATCH, EPOCHS = 331, 12, 3
STEPS_PER_EPOCH = ROWS // BATCH


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """331 real digits as PNG with a meta file, 60 more to evaluate on, and a config with random augmentation."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, ROOT / "datasets/digits.py", folder / "all"], check=True, capture_output=True)
    for name, rows in (("train", ROWS), ("val", 60)):
        lines = (folder / f"all/{name}.txt").read_text().splitlines()
        (folder / f"{name}.txt").write_text("".join(f"all/{line}\n" for line in lines[:: len(lines) // rows][:rows]))
    (folder / "small.yaml").write_text(
        f"""\
seed: 5
data:
  train: {folder}/train.txt
  val: {folder}/val.txt
  classes: 10
  channels: 1
  audit: true
  train_transforms:
    - Pad: {{padding: 1, padding_mode: edge}}
    - RandomCrop: {{size: 8}}
    - Normalize: {{mean: [0.3], std: [0.4]}}
    - RandomErasing: {{probability: 0.5, sl: 0.02, sh: 0.4, r1: 0.3, mean: [0.0]}}
  eval_transforms:
    - Normalize: {{mean: [0.3], std: [0.4]}}
model:
  args: {{width: 8, blocks: [1, 1], dropout: 0.1}}
train: {{epochs: {EPOCHS}, global_batch: {BATCH}}}
checkpoint: {{every_steps: 5}}
"""
    )
    return folder


@pytest.fixture
def doors(tmp_path) -> Iterator[Doors]:
    """Commands in the clone, where train.py is; their run folders are the test's own."""
    opened = Doors(ROOT, clean_environment())
    yield opened
    for command in opened.started:
        command.kill_all()
        command.process.wait()


def launch(doors: Doors, digits: Path, runs: Path, name: str, nproc: int, *words: str) -> Command:
    options = ["--nproc", nproc, "--runs", runs, "--name", name]
    return doors.launch("run", digits / "small.yaml", *options, *words)


def hashes(run: Path) -> tuple[str, str]:
    final = json.loads((run / "final.json").read_text())
    assert final["step"] == EPOCHS * STEPS_PER_EPOCH
    return final["weights_sha256"], final["optimizer_sha256"]


def finished(command: Command, run: Path) -> tuple[str, str]:
    assert command.wait() == 0, command.output
    assert command.family() == []
    return hashes(run)


def assert_each_position_once(run: Path, reference: Path) -> None:
    """Each position below the cut is there once, with the row that the undisturbed run had, and no row twice."""
    for epoch in range(EPOCHS):
        served = audit_positions(run, epoch)
        assert sorted(served) == list(range(STEPS_PER_EPOCH * BATCH))
        assert len(set(served.values())) == len(served)
        assert served == audit_positions(reference, epoch)


def under_torchrun(doors: Doors, digits: Path, runs: Path, name: str, nproc: int, *words: str) -> Command:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    return doors.start([*torchrun, "train.py", digits / "small.yaml", "--runs", runs, "--name", name, *words])


def under_slurm(doors: Doors, digits: Path, runs: Path, name: str, nproc: int, *words: str) -> list[Command]:
    """As srun starts them: one process a rank, told by SLURM's variables alone."""
    job = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(nproc), "SLURM_NNODES": "1"}
    job |= {"SLURM_STEP_TASKS_PER_NODE": str(nproc), "SLURM_STEP_NODELIST": "localhost", "SLURM_NODEID": "0"}
    command = [sys.executable, "train.py", digits / "small.yaml", "--runs", runs, "--name", name, *words]
    return [doors.start(command, {**job, "SLURM_PROCID": str(r), "SLURM_LOCALID": str(r)}) for r in range(nproc)]


def test_the_weights_are_the_same_under_every_launcher_and_from_both_datasets(doors, digits, tmp_path):
    expected = finished(launch(doors, digits, tmp_path, "launch", 2), tmp_path / "launch")
    indexed = launch(doors, digits, tmp_path, "indexed", 2, "data.mode=indexed", "data.workers=3")
    assert finished(indexed, tmp_path / "indexed") == expected
    apart = launch(doors, digits, tmp_path, "exec", 2, "--start", "exec", "data.workers=0")
    assert finished(apart, tmp_path / "exec") == expected
    torchrun = under_torchrun(doors, digits, tmp_path, "torchrun", 2, "data.workers=1", "data.worker_start=spawn")
    assert finished(torchrun, tmp_path / "torchrun") == expected
    ranks = under_slurm(doors, digits, tmp_path, "slurm", 2, "data.mode=indexed", "data.workers=0")
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    assert hashes(tmp_path / "slurm") == expected
    assert list((tmp_path / ".rendezvous").iterdir()) == []
    for name in ("indexed", "exec", "torchrun", "slurm"):
        assert_each_position_once(tmp_path / name, tmp_path / "launch")


def test_one_process_alone_and_three_ranks(doors, digits, tmp_path):
    alone = doors.start([sys.executable, "train.py", digits / "small.yaml", "--runs", tmp_path, "--name", "alone"])
    expected = finished(alone, tmp_path / "alone")
    one = launch(doors, digits, tmp_path, "one", 1, "data.mode=indexed", "data.workers=1")
    assert finished(one, tmp_path / "one") == expected
    expected = finished(launch(doors, digits, tmp_path, "rank", 3, "data.workers=0"), tmp_path / "rank")
    indexed = launch(doors, digits, tmp_path, "indexed", 3, "data.mode=indexed", "data.workers=1")
    assert finished(indexed, tmp_path / "indexed") == expected


def at_step(command: Command, run: Path, step: int) -> None:
    """Return as soon as every rank has said in its audit that it gave `step` to the optimiser."""
    marks = f'"step":{step},', f'"step": {step},'
    logs = [run / f"audit/rank-{rank:05d}.jsonl" for rank in range(2)]

    def there() -> bool:
        return all(log.exists() and any(mark in log.read_text() for mark in marks) for log in logs)

    command.until(there, f"step {step}")


@pytest.mark.parametrize("nproc", [2, 4])
def test_a_run_that_is_killed_three_times_and_told_to_leave_once_ends_with_the_same_weights(
    doors, digits, tmp_path, nproc
):
    workers = "data.workers=1"
    expected = finished(launch(doors, digits, tmp_path, "calm", nproc, workers), tmp_path / "calm")
    run = tmp_path / "hit"
    for step in (7, STEPS_PER_EPOCH + 9, STEPS_PER_EPOCH + 18):
        command = launch(doors, digits, tmp_path, "hit", nproc, workers)
        at_step(command, run, step)
        command.kill_all()
        assert command.wait() == -signal.SIGKILL
        assert not (run / "final.json").exists(), "it was over before it could be killed"
    command = launch(doors, digits, tmp_path, "hit", nproc, workers)
    at_step(command, run, 2 * STEPS_PER_EPOCH + 4)
    command.process.send_signal(signal.SIGUSR2)
    assert command.wait() == 75, command.output
    assert "the same command goes on" in command.output
    newest = max(path.name for path in (run / "checkpoints").iterdir())
    told_at = 2 * STEPS_PER_EPOCH + 4
    assert told_at <= int(newest.removeprefix("step-")) < EPOCHS * STEPS_PER_EPOCH
    assert finished(launch(doors, digits, tmp_path, "hit", nproc, workers), run) == expected
    assert_each_position_once(run, tmp_path / "calm")
    again = launch(doors, digits, tmp_path, "hit", nproc, workers)
    assert again.wait() == 0
    assert "this run is finished" in again.output


def test_a_killed_rank_is_restarted_and_the_weights_are_the_same(doors, digits, tmp_path):
    expected = finished(launch(doors, digits, tmp_path, "calm", 2), tmp_path / "calm")
    command = launch(doors, digits, tmp_path, "hit", 2)
    at_step(command, tmp_path / "hit", STEPS_PER_EPOCH + 7)
    (warm_parent,) = children(command.process.pid)
    os.kill(children(warm_parent)[1], signal.SIGKILL)
    assert finished(command, tmp_path / "hit") == expected
    assert "rank 1 on" in command.output
    assert "restart 1 of 3" in command.output
    assert_each_position_once(tmp_path / "hit", tmp_path / "calm")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_save_and_leave(doors, digits, tmp_path, number, code):
    command = launch(doors, digits, tmp_path, "run", 2, "checkpoint.every_steps=null")
    at_step(command, tmp_path / "run", 3)
    command.process.send_signal(number)
    assert command.wait() == code, command.output
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    assert int(saved.name.removeprefix("step-")) % STEPS_PER_EPOCH != 0


@pytest.mark.parametrize("audit", ["true", "false"])
def test_a_mistake_before_the_first_step_leaves_nothing_and_one_after_it_a_run_that_goes_on(
    doors, digits, tmp_path, audit
):
    lines = (digits / "train.txt").read_text().splitlines()[:48]
    (tmp_path / "train.txt").write_text("".join(f"{digits}/{line}\n" for line in [*lines[:-1], "no-such.png 1"]))
    words = [f"data.train={tmp_path}/train.txt", "data.allow_outside_root=true", f"data.audit={audit}"]
    words += ["data.workers=0", "train.log_every_steps=1"]
    early = launch(doors, digits, tmp_path / "early", "run", 1, *words, "train.global_batch=48")
    assert early.wait() == 2, early.output
    assert not (tmp_path / "early").exists()
    for _ in range(2):
        late = launch(doors, digits, tmp_path / "late", "run", 1, *words, "train.global_batch=2", "train.epochs=9")
        assert late.wait() == 2, late.output
        assert "no-such.png" in late.output
        assert (tmp_path / "late/run/config.yaml").exists()
