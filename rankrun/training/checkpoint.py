"""What a run is at the boundary of a step, saved by rank 0 and given back to all ranks, to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as tensors_as_bytes
from torch import Tensor, nn

from rankrun.beat import Beat, Phase
from rankrun.errors import CheckpointError, SaveError
from rankrun.runfolder import RunFolder
from rankrun.training.log import Log
from rankrun.training.opening import Run
from rankrun.training.optimiser import optimiser_tensors, restore_optimiser
from rankrun.training.process_group import Group
from rankrun.training.progress import Progress, whole_state
from rankrun.training.snapshot import (
    begin_attempt,
    newest_snapshot,
    point_at,
    prune_snapshots,
    snapshot_path,
    verify_snapshot,
    write_snapshot,
)

if TYPE_CHECKING:
    from rankrun.config import Settings

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
VERSION = 1


class Checkpoints:
    """The checkpoints of one run, as one attempt writes and finds them. Methods are called on all ranks."""

    def __init__(self, run: Run, group: Group, log: Log, beat: Beat, *, keep: int = 2) -> None:
        self._folder = run.folder
        self._attempt = run.attempt
        self._group = group
        self._log = log
        self._beat = beat
        self._keep = keep
        self._good: set[int] = set()  # steps whose checkpoints this attempt wrote or went on from

    def resume(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        frozen: Mapping[str, Any],
        *,
        allow_change: Sequence[str] = (),
    ) -> Progress:
        """Puts the latest whole checkpoint into `model` and `optimiser` and says where it was; a fresh start if none.

        Rank 0 finds it and tells the others. `frozen` holds what must not change within a run (about the data, the
        device); CheckpointError names what differs, unless `allow_change` names it.
        """
        self._beat.write(0, 0, Phase.START)
        found = self._group.on_rank_zero(lambda: _text(newest_snapshot(self._folder, self._log.warn)))
        progress = Progress()
        if found is not None:
            self._beat.write(0, 0, Phase.START)
            progress = self._group.together(lambda: self._load(Path(found), model, optimiser, frozen, allow_change))
            self._good = {progress.step}
            self._log.say(
                f"goes on from {found}: step {progress.step}, epoch {progress.epoch + 1}, position {progress.position}"
            )
        self._group.on_rank_zero(lambda: self._begin(progress.step))
        self._beat.write(progress.step, progress.position, Phase.START)
        return progress

    def _begin(self, step: int) -> None:
        with must_be_written(f"attempt {self._attempt} could not begin"):
            begin_attempt(self._folder, self._attempt, step)

    def _load(
        self,
        path: Path,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        frozen: Mapping[str, Any],
        allow_change: Sequence[str],
    ) -> Progress:
        state = read_state(path)
        refuse_changes(path, state["frozen"], frozen, allow_change)
        load_weights(path, model)
        try:
            restore_optimiser(model, optimiser, read_tensors(path / OPTIMIZER))
        except KeyError as error:
            raise CheckpointError(f"{path}: {OPTIMIZER} holds state of {error}, which the model has not") from error
        where = state["progress"]
        return Progress(where["step"], where["epoch"], where["position"], where["loader"], where["best"])

    def save(
        self,
        progress: Progress,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        about: Mapping[str, Any],
        *,
        must: bool = False,
    ) -> bool:
        """Saves the run at `progress`; True if that worked. `about` holds `frozen` and what prediction needs.

        Rank 0 writes; no other rank waits for the disk. If the disk refuses, a warning says so and the run goes on with
        the older checkpoints, unless it `must` be saved now (before leaving): then all wait, and all fail together.
        """
        self._beat.write(progress.step, progress.position, Phase.SAVE)
        if progress.loader:
            progress = replace(progress, loader=whole_state(self._group, progress.loader))
        if must:
            self._group.on_rank_zero(lambda: self._write_now(progress, model, optimiser, about))
            self._log.say(f"saved: {snapshot_path(self._folder, progress.step)}")
            return True
        if self._group.rank != 0:
            return True
        try:
            self._write(progress, model, optimiser, about)
        except OSError as error:
            self._log.warn(f"step {progress.step} could not be saved ({error}); the run goes on")
            return False
        return True

    def _write_now(
        self, progress: Progress, model: nn.Module, optimiser: torch.optim.Optimizer, about: Mapping[str, Any]
    ) -> None:
        with must_be_written(f"step {progress.step} could not be saved"):
            self._write(progress, model, optimiser, about)

    def _write(
        self, progress: Progress, model: nn.Module, optimiser: torch.optim.Optimizer, about: Mapping[str, Any]
    ) -> None:
        weights = _on_host(model.state_dict())
        moments = _on_host(optimiser_tensors(model, optimiser))
        state = {
            "version": VERSION,
            "progress": vars(progress),
            # Nothing random has a state: all of it is drawn from (seed, epoch, row) or (seed, step, rank, micro-batch).
            "random": {"rule": "seeded per row and per micro-batch", "seed": about["settings"]["seed"]},
            "made_by": {"attempt": self._attempt, "world_size": self._group.world_size, "torch": torch.__version__},
            **about,
        }
        text = json.dumps(state, indent=1)
        write_snapshot(self._folder, progress.step, self._attempt, {
            # Not save_file: it writes by itself and raises an error of its own, no OSError, when the disk is full.
            MODEL: lambda path: path.write_bytes(tensors_as_bytes(weights)),
            OPTIMIZER: lambda path: path.write_bytes(tensors_as_bytes(moments)),
            STATE: lambda path: path.write_bytes(text.encode()),
        })  # fmt: skip
        self._good.add(progress.step)
        self._beat.write(progress.step, progress.position, Phase.SAVE)  # to read it back may take as long again
        best = progress.best["step"] if progress.best is not None else None
        try:
            prune_snapshots(self._folder, progress.step, self._keep, best, self._good)
        except CheckpointError as error:
            self._good.remove(progress.step)
            self._log.warn(f"nothing older is removed, since what was just saved does not read back: {error}")
        except OSError as error:
            self._log.warn(f"older checkpoints could not be removed: {error}")

    def note_best(self, progress: Progress, metrics: Mapping[str, float | int], metric: str = "top1") -> None:
        """If the evaluation at `progress` is the best so far, keeps that in mind and points `best` at its checkpoint.

        The first of equals stays the best. A run that is killed here evaluates again when it goes on, with the same
        outcome, since the checkpoint was made before.
        """
        value = metrics[metric]
        if progress.best is not None and not value > progress.best["value"]:
            return
        target = snapshot_path(self._folder, progress.step)
        if self._group.rank == 0:
            if not target.is_dir():
                return  # the disk refused it; the best is the best of what was saved
            try:
                point_at(self._folder.best, target)
            except OSError as error:
                self._log.warn(f"{self._folder.best} could not be pointed at {target} ({error}) and stays as it is")
                return
        progress.best = {"step": progress.step, "epoch": progress.epoch, "metric": metric, "value": value}


@contextmanager
def must_be_written(failed: str) -> Iterator[None]:
    """Around writes that the run can't go on without: an OSError becomes a SaveError that begins with `failed`."""
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{failed}: {error}; the older checkpoints are whole, the same command goes on from the latest"
        ) from error


def describe(settings: Settings, facts: Mapping[str, Any], device: torch.device, *, decoder: str) -> dict[str, Any]:
    """What a checkpoint holds beside tensors and progress: the config, what must not change, what prediction needs.

    `facts` is what data.prepare agreed on, that of the validation data in `facts["val"]` if there is any. What must
    not change is named by the key of the config that decides it.
    """
    parts = {"data.train": facts} | ({"data.val": facts["val"]} if "val" in facts else {})
    return {
        "settings": settings.model_dump(mode="json"),
        "frozen": {
            **{key: {"rows": part["n"], "fingerprint": part["fingerprint"]} for key, part in parts.items()},
            "data.classes": facts["classes"],
            "data.decoder": facts["decoder"],
            "data.order": facts["order"],
            "train.device": device.type,
        },
        "prediction": {
            "model": settings.model.name,
            "model_args": settings.model.args,
            "classes": facts["classes"],
            "by_name": facts["by_name"],
            "channels": facts["channels"],
            "decoder": decoder,
            "eval_transforms": settings.model_dump(mode="json")["data"]["eval_transforms"],
        },
    }


def read_state(path: Path) -> dict[str, Any]:
    """`state.json` of the checkpoint at `path`; CheckpointError if it can't be read or is of a newer version."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        version = state["version"]
    except OSError as error:
        raise CheckpointError(f"{path}: {STATE} can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {STATE} is damaged") from error
    if not isinstance(version, int) or version > VERSION:
        raise CheckpointError(f"{path}: {STATE} has version {version}; this program reads up to {VERSION}. Update it")
    return dict(state)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Nothing in it is ever executed."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read as safetensors: {error}") from error


def load_weights(path: Path, model: nn.Module) -> None:
    """Copies the weights and buffers of the checkpoint at `path` into `model`.

    CheckpointError names the first ten keys that are missing, unknown or of another shape; `model` is then as before.
    """
    saved, own = read_tensors(path / MODEL), model.state_dict()
    problems = [f"{key} is missing" for key in own if key not in saved]
    problems += [f"{key} is unknown" for key in sorted(saved) if key not in own]
    problems += [
        f"{key} is {tuple(saved[key].shape)}, the model's is {tuple(own[key].shape)}"
        for key in own
        if key in saved and saved[key].shape != own[key].shape
    ]
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(f"{path}: holds the weights of another model: {'; '.join(problems[:10])}{more}")
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(saved[key])


def refuse_changes(path: Path, before: Mapping[str, Any], now: Mapping[str, Any], allowed: Sequence[str] = ()) -> None:
    """CheckpointError with one line for each key of `now` that had another value when `path` was saved."""
    present = json.loads(json.dumps(now))  # as JSON gives it back: no tuples
    lines = [
        f"{path}: this run was trained with {key} = {_short(before[key])}; now it is {_short(value)}. A run goes on "
        f"with what it began with: restore that, or give the new run another --name, or --allow-change {key}"
        for key, value in present.items()
        if key in before and before[key] != value and key not in allowed
    ]
    if lines:
        raise CheckpointError("\n".join(lines))


def find_checkpoint(place: Path, warn: Callable[[str], None]) -> Path:
    """The checkpoint that `place` means: itself, or the best, else the latest, of a run folder. It is verified."""
    if (place / "checkpoints").is_dir():
        folder = RunFolder(place)
        found = folder.best if folder.best.is_dir() else newest_snapshot(folder, warn)
        if found is None:
            raise CheckpointError(f"{place}: this run has no whole checkpoint yet")
        place = found
    elif not place.is_dir():
        raise CheckpointError(f"{place}: there is no such folder; give a checkpoint's folder or a run's")
    verify_snapshot(place)
    return place


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # A copy of each: tied weights, which safetensors refuses, become two; and training may go on beside the write.
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
