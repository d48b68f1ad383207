from __future__ import annotations

from pathlib import Path

from rankrun.config import Settings, resolve
from rankrun.training.process_group import Group
from rankrun.training.progress import Progress, whole_state


def settings(tmp_path: Path, *words: str) -> Settings:
    (tmp_path / "a.yaml").write_text("data: {train: x}\ntrain: {epochs: 5, global_batch: 2}\n")
    return resolve(tmp_path / "a.yaml", words)


def test_from_step_to_step_and_epoch_to_epoch() -> None:
    progress = Progress()
    progress.advance({"epoch": 0, "position": 4, "sums": [4, 6, 14], "replaced": 0})
    assert (progress.step, progress.epoch, progress.position) == (1, 0, 4)
    progress.next_epoch()
    assert (progress.step, progress.epoch, progress.position, progress.loader) == (1, 1, 0, {})


def test_when_to_evaluate(tmp_path: Path) -> None:
    given = settings(tmp_path, "eval.every_epochs=2")
    wanted = [epoch for epoch in range(6) if Progress(step=epoch * 3, epoch=epoch).wants_evaluation(given)]
    assert wanted == [2, 4, 5]
    assert not Progress(step=7, epoch=2, position=2).wants_evaluation(given)
    assert Progress(epoch=5).is_done(given)


def test_when_to_save(tmp_path: Path) -> None:
    given = settings(tmp_path, "checkpoint.every_steps=3")
    assert [step for step in range(1, 8) if Progress(step=step).wants_saving(given)] == [3, 6]
    assert not Progress(step=3).wants_saving(settings(tmp_path))


def test_state_of_one_rank_is_the_whole() -> None:
    state = {"epoch": 1, "position": 8, "sums": [8, -(2**63), 5], "replaced": 2}
    assert whole_state(Group(0, 1), state) == state
