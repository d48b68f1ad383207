"""What a run tells while it trains: the person's log, metrics.jsonl, the list of bad samples, and its end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from rankrun.beat import Beat, Phase
from rankrun.errors import OrderError
from rankrun.runfolder import AuditLog, write_atomically
from rankrun.training.checkpoint import must_be_written
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

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def bad_limit(self) -> int: ...

    def expected_sums(self, epoch: int) -> Sequence[int]: ...

    def check_budget(self, replaced: int) -> None: ...


class Rows(Protocol):
    """What a journal needs of a micro-batch."""

    rows: Tensor
    replaced: list[tuple[int, int]]
    state_after: dict[str, Any] | None


class Journal:
    """Every rank has one and calls the same methods in the same order; rank 0 writes, and each rank its own audit.

    Lines come every `train.log_every_steps` steps, counted over the run and not over the attempt, so that a run
    that was killed and went on has its lines at the same steps. What happened to one rank alone (a disk that refuses
    its audit, too many bad samples) becomes known to all at the next such line, or before the next save.
    """

    def __init__(
        self,
        run: Run,
        group: Group,
        log: Log,
        beat: Beat,
        settings: Settings,
        loader: Epochs,
        place: Callable[[int], str],
        *,
        done: int,
    ) -> None:
        """`place(row)` is a row's file:line; `done` steps were done by earlier attempts."""
        self._run = run
        self._settings = settings
        self._group = group
        self._log = log
        self._beat = beat
        self._loader = loader
        self._place = place
        self._every_steps = settings.train.log_every_steps
        self._images = settings.train.global_batch
        self._total_steps = settings.train.epochs * loader.steps_per_epoch
        self._metrics = MetricsLog(run.folder.metrics_file if group.rank == 0 else None, run.attempt, log.warn)
        self._audit = group.together(self._open_audit) if settings.data.audit else None
        self._audit_error: OSError | None = None
        self._rows: list[int] = []
        self._replaced: list[tuple[int, int]] = []  # on this rank, since the last `settle`
        self._replaced_in_epoch = 0  # on this rank
        self._unlisted: list[list[str]] = []  # of all ranks: rank 0 has yet to write them to bad_samples.csv
        self._loss: Tensor | None = None
        self._steps = 0
        self.meter = Meter(self._total_steps - done)

    def _open_audit(self) -> AuditLog:
        with must_be_written("the audit could not be opened"):
            return AuditLog(self._run.folder, self._group.rank, self._run.attempt)

    def begin(self, model: nn.Module, device: torch.device, facts: Mapping[str, Any]) -> None:
        """Says in one line what is about to be trained on what."""
        ranks, settings = self._group.world_size, self._settings
        count = sum(weight.numel() for weight in model.parameters())
        self._log.say(
            f"{ranks} rank{'s' if ranks > 1 else ''} on {device.type}, {facts['n']:,} rows "
            f"({settings.data.mode} mode), {len(facts['classes'])} classes, {settings.model.name} of {count:,} "
            f"parameters, {settings.train.epochs} epochs of {self._loader.steps_per_epoch:,} steps of {self._images}"
        )

    def add(self, batch: Rows, loss: Tensor) -> None:
        """Counts in a micro-batch and its scalar from `share_of_loss`; no rank and no device waits for another."""
        part = loss.detach().double()
        self._loss = part if self._loss is None else self._loss + part
        self._replaced += batch.replaced
        if batch.state_after is not None:
            self._replaced_in_epoch = batch.state_after["replaced"]
        if self._audit is not None:
            self._rows += batch.rows.tolist()

    def step(self, progress: Progress, rate: float) -> None:
        """The step that began at `progress` is done: its audit line, and a line of the log if one is due.

        With a line of the log it raises on all ranks what `settle` and `check_epoch` would raise at their time.
        """
        if self._audit is not None and self._audit_error is None:
            try:
                self._audit.write(progress.epoch, progress.step, progress.position, self._rows)
            except OSError as error:
                self._audit_error = error
        self._rows = []
        self._steps += 1
        self.meter.step(self._images)
        done = progress.step + 1
        if done % self._every_steps and done != self._total_steps:
            return
        part = float(self._loss) if self._loss is not None else 0.0
        own = [part, self._replaced_in_epoch, self._audit_error is not None]
        total_loss, replaced, without_audit = self._group.total(torch.tensor(own, dtype=torch.float64)).tolist()
        loss = total_loss / (self._steps * self._group.world_size)
        self._loss, self._steps = None, 0
        if without_audit or replaced > self._loader.bad_limit:
            self.settle(progress)
            self._group.together(lambda: self._loader.check_budget(int(replaced)))
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

    def settle(self, progress: Progress) -> None:
        """Before every save: a checkpoint must know of no step whose rows are not in the audit.

        SaveError on all ranks if a rank could not write its audit. Samples that were replaced since the last call go
        to bad_samples.csv, each once.
        """
        if self._audit is not None:
            self._group.together(self._check_audit)
        pairs = [pair for of_rank in self._group.gather(self._replaced) for pair in of_rank]
        self._replaced = []
        if self._group.rank == 0 and (pairs or self._unlisted):
            self._list_bad_samples(progress.epoch, sorted(pairs))

    def _check_audit(self) -> None:
        if self._audit_error is not None:
            with must_be_written(f"the audit of rank {self._group.rank} could not be written"):
                raise self._audit_error

    def check_epoch(self, progress: Progress) -> None:
        """At an epoch's end, before it is counted: over all ranks, was every row of its order served once?

        OrderError if not; the data's own error if more samples were replaced than `data.bad_budget` allows. Both
        are raised on all ranks alike and told by rank 0.
        """
        whole = whole_state(self._group, progress.loader)
        expected = list(self._loader.expected_sums(progress.epoch))
        if whole["sums"] != expected:
            error = OrderError(
                f"epoch {progress.epoch}: the ranks were served other rows than the order says: (count, sum, sum of "
                f"squares) is {tuple(whole['sums'])}, it must be {tuple(expected)}; rows were lost or repeated"
            )
            error.told_by = 0
            raise error
        self.settle(progress)
        self._group.together(lambda: self._loader.check_budget(whole["replaced"]))

    def _list_bad_samples(self, epoch: int, pairs: Sequence[tuple[int, int]]) -> None:
        path = self._run.folder.bad_samples_file
        if pairs:
            self._log.say(f"{len(pairs)} samples of epoch {epoch + 1} could not be read and were replaced: {path}")
        self._unlisted += [[str(epoch), str(row), self._place(row), str(instead)] for row, instead in pairs]
        try:
            lines: list[list[str]] = []
            if path.exists():
                lines = list(csv.reader(path.read_text(encoding="utf-8", errors="replace").splitlines()))[1:]
            lines += [line for line in self._unlisted if line not in lines]  # steps done again name the same ones
            table = io.StringIO()
            csv.writer(table, lineterminator="\n").writerows([["epoch", "row", "place", "shown_instead"], *lines])
            write_atomically(path, table.getvalue())
            self._unlisted = []
        except OSError as error:
            self._log.warn(f"{path} could not be written ({error}); the run goes on, and tries again at the next save")

    def finish(
        self,
        progress: Progress,
        metrics: Mapping[str, float | int],
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
    ) -> None:
        """The run is done: curves.png, and then final.json, which says so to every later launch.

        SaveError on all ranks if final.json can't be written.
        """
        self._beat.write(progress.step, progress.position, Phase.SAVE)
        self._group.on_rank_zero(lambda: self._finish(progress, metrics, model, optimiser))

    def _finish(
        self,
        progress: Progress,
        metrics: Mapping[str, float | int],
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
    ) -> None:
        folder = self._run.folder
        try:
            draw_curves(folder.metrics_file, folder.curves_file)
        except OSError as error:
            self._log.warn(f"{folder.curves_file} could not be drawn: {error}")
        self._beat.write(progress.step, progress.position, Phase.SAVE)
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
        with must_be_written(f"{folder.final_file} could not be written"):
            write_atomically(folder.final_file, json.dumps(final, indent=1) + "\n")
        self._log.say(f"done: {folder.final_file}  weights {weights[:12]}")
