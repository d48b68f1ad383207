"""What a run tells while it trains: the person's log, metrics.jsonl, the list of bad samples, and its end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from rankrun.errors import OrderError
from rankrun.runfolder import AuditLog, write_atomically
from rankrun.training.curves import draw_curves
from rankrun.training.hashes import tensors_sha256
from rankrun.training.log import Log, Meter, duration
from rankrun.training.metrics import MetricsLog, finite
from rankrun.training.opening import Run
from rankrun.training.optimiser import optimiser_tensors
from rankrun.training.process_group import Group
from rankrun.training.progress import Progress, whole_state

if TYPE_CHECKING:
    from rankrun.config import Settings


class Epochs(Protocol):
    """What a journal needs of a loader."""

    def expected_sums(self, epoch: int) -> Sequence[int]: ...

    def check_budget(self, replaced: int) -> None: ...


class Rows(Protocol):
    """What a journal needs of a micro-batch."""

    rows: Tensor
    replaced: list[tuple[int, int]]


class Journal:
    """Every rank has one and calls the same methods in the same order; rank 0 writes, and each rank its own audit.

    Lines come every `train.log_every_steps` steps, counted over the run and not over the attempt, so that a run
    that was killed and went on has its lines at the same steps.
    """

    def __init__(
        self, run: Run, group: Group, log: Log, settings: Settings, *, steps_per_epoch: int, done: int
    ) -> None:
        self._run = run
        self._settings = settings
        self._group = group
        self._log = log
        self._every_steps = settings.train.log_every_steps
        self._images = settings.train.global_batch
        self._total_steps = settings.train.epochs * steps_per_epoch
        self._metrics = MetricsLog(run.folder.metrics_file if group.rank == 0 else None, run.attempt)
        self._audit = AuditLog(run.folder, group.rank, run.attempt) if settings.data.audit else None
        self._rows: list[int] = []
        self._replaced: list[tuple[int, int]] = []
        self._loss: Tensor | None = None
        self._steps = 0
        self.meter = Meter(self._total_steps - done)

    def begin(self, model: nn.Module, device: torch.device, facts: Mapping[str, Any]) -> None:
        """Says in one line what is about to be trained on what."""
        ranks, settings = self._group.world_size, self._settings
        count = sum(weight.numel() for weight in model.parameters())
        self._log.say(
            f"{ranks} rank{'s' if ranks > 1 else ''} on {device.type}, {facts['n']:,} rows "
            f"({settings.data.mode} mode), {len(facts['classes'])} classes, {settings.model.name} of {count:,} parameters, "
            f"{settings.train.epochs} epochs of {self._total_steps // settings.train.epochs:,} steps of {self._images}"
        )

    def add(self, batch: Rows, loss: Tensor) -> None:
        """Counts in a micro-batch and its scalar from `share_of_loss`; no rank and no device waits for another."""
        part = loss.detach().double()
        self._loss = part if self._loss is None else self._loss + part
        self._replaced += batch.replaced
        if self._audit is not None:
            self._rows += batch.rows.tolist()

    def step(self, progress: Progress, rate: float) -> None:
        """The step that began at `progress` is done: its audit line, and a line of the log if one is due."""
        if self._audit is not None:
            self._audit.write(progress.epoch, progress.step, progress.position, self._rows)
            self._rows = []
        self._steps += 1
        self.meter.step(self._images)
        done = progress.step + 1
        if done % self._every_steps and done != self._total_steps:
            return
        parts = torch.zeros(1, dtype=torch.float64) if self._loss is None else self._loss.cpu().reshape(1)
        loss = float(self._group.total(parts)) / (self._steps * self._group.world_size)
        self._loss, self._steps = None, 0
        reading = self.meter.read()
        self._metrics.write("train", done, progress.epoch, {"loss": loss, "lr": rate, **reading})
        self._log.say(
            f"epoch {progress.epoch + 1} step {done}/{self._total_steps}  loss {loss:.4f}  lr {rate:.4f}  "
            f"{reading['images_per_s']:.0f} images/s  wait {reading['data_wait']:.0%}  "
            f"{reading['memory_bytes'] / 2**20:.0f} MiB  left {duration(reading['eta_s'])}"
        )

    def evaluated(self, progress: Progress, metrics: Mapping[str, float | int]) -> None:
        """The model was evaluated at `progress`, after as many whole epochs as `progress.epoch` says."""
        self._metrics.write("evaluate", progress.step, progress.epoch, metrics)
        words = "  ".join(
            f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in metrics.items()
        )
        self._log.say(f"epoch {progress.epoch} evaluated  {words}")
        self.meter.pause()

    def check_epoch(self, progress: Progress, loader: Epochs, place: Callable[[int], str]) -> None:
        """At an epoch's end, before it is counted: over all ranks, was every row of its order served once?

        OrderError if not; the data's own error if more samples were replaced than `data.bad_budget` allows. Both
        are raised on all ranks alike and told by rank 0. Replaced samples go to bad_samples.csv, each once;
        `place(row)` is a row's file:line.
        """
        whole = whole_state(self._group, progress.loader)
        expected = list(loader.expected_sums(progress.epoch))
        if whole["sums"] != expected:
            error = OrderError(
                f"epoch {progress.epoch}: the ranks were served other rows than the order says: (count, sum, sum of "
                f"squares) is {tuple(whole['sums'])}, it must be {tuple(expected)}; rows were lost or repeated"
            )
            error.told_by = 0
            raise error
        pairs = [tuple(pair) for of_rank in self._group.gather(self._replaced) for pair in of_rank]
        self._replaced = []
        if pairs:
            self._group.on_rank_zero(lambda: self._write_bad_samples(progress.epoch, sorted(pairs), place))
        self._group.together(lambda: loader.check_budget(whole["replaced"]))

    def _write_bad_samples(self, epoch: int, pairs: list[tuple[int, ...]], place: Callable[[int], str]) -> None:
        path = self._run.folder.bad_samples_file
        lines: list[list[str]] = []
        if path.exists():
            lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))[1:]
        for row, instead in pairs:
            line = [str(epoch), str(row), place(row), str(instead)]
            if line not in lines:  # an epoch's end that is reached again after a kill names the same ones
                lines.append(line)
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([["epoch", "row", "place", "shown_instead"], *lines])
        write_atomically(path, table.getvalue())
        self._log.say(f"{len(pairs)} samples of epoch {epoch + 1} could not be read and were replaced: {path}")

    def finish(
        self,
        progress: Progress,
        metrics: Mapping[str, float | int],
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
    ) -> None:
        """The run is done: curves.png, and then final.json, which says so to every later launch."""
        if self._group.rank != 0:
            return
        folder = self._run.folder
        draw_curves(folder.metrics_file, folder.curves_file)
        weights = tensors_sha256(model.state_dict())
        final = {
            "version": 1,
            "step": progress.step,
            "epoch": progress.epoch,
            "metrics": {key: finite(value) for key, value in metrics.items()},
            "best": progress.best,
            "weights_sha256": weights,
            "optimizer_sha256": tensors_sha256(optimiser_tensors(model, optimiser)),
            "attempt": self._run.attempt,
            "world_size": self._group.world_size,
        }
        write_atomically(folder.final_file, json.dumps(final, indent=1) + "\n")
        self._log.say(f"done: {folder.final_file}  weights {weights[:12]}")
