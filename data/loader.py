"""Batches of the frozen global batch, alike from both datasets, for any number of ranks and workers.

The plan of an epoch (which step, which micro-batch, which positions, which rows) is arithmetic, so the main process
and the loader's workers walk the same one: workers load, the main process adds what it knows anyway.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader

from .audit import EpochAudit, Sums, expected_sums
from .datasets import IndexedDataset, RankDataset
from .errors import OptionError, SplitError, TooManyBadError, counted
from .order import Permutation, Rows, rows_at
from .sampler import Draw
from .split import Positions, Split
from .workers import PREFETCH, BatchReader, Loaded, WorkerStart, fetch_all

STARTS = ("fork", "forkserver", "spawn")


@dataclass
class Batch:
    """One micro-batch of one rank.

    images uint8 [B, C, H, W]; labels int64 [B]; weights float32 [B], 0 for padding; rows, positions int64 [B];
    draws float32 [B, K], random numbers for `Transforms.device`; replaced: pairs (row, the row shown instead).
    `state_after` stands on a step's last micro-batch only: plain builtins, what a checkpoint keeps of the data.
    """

    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    draws: torch.Tensor
    replaced: list[tuple[int, int]]
    state_after: dict[str, Any] | None

    def __len__(self) -> int:
        return int(self.rows.numel())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with what the model needs (images, labels, weights, draws) on a device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=non_blocking)
            for name in ("images", "labels", "weights", "draws")
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class _Micro:
    """One entry of an epoch's plan."""

    position: int
    positions: Positions
    rows: Rows
    is_last: bool


class Loader:
    """What build_loader gives; `epoch(e)` may be called for any epoch, in any order."""

    def __init__(
        self,
        dataset: RankDataset | IndexedDataset,
        split: Split,
        *,
        shuffle: bool,
        workers: int,
        worker_start: str,
        pin_memory: bool,
    ) -> None:
        self._dataset = dataset
        self._split = split
        self._shuffle = shuffle
        self._workers = workers
        self._worker_start = worker_start
        self._pin_memory = pin_memory

    @property
    def cut(self) -> int:
        """Positions of an epoch that count."""
        return self._split.cut

    @property
    def steps_per_epoch(self) -> int:
        return self._split.steps

    @property
    def bad_limit(self) -> int:
        """How many samples of an epoch may be replaced, over all ranks."""
        return math.floor(self._dataset.bad_budget * self.cut)

    def step_weight(self, position: int) -> float:
        """Sum of the weights, over all ranks, of the step that begins at `position`."""
        self._split.check_start(position)
        return self._split.step_weight(position)

    def expected_sums(self, epoch: int, position: int | None = None) -> Sums:
        """What `state_after["sums"]`, added over ranks, must be at `position` (default: at the end of the epoch)."""
        cut = self.cut if position is None else position
        return expected_sums(self._dataset.n, seed=self._dataset.seed, epoch=epoch, cut=cut, shuffle=self._shuffle)

    def check_budget(self, replaced: int) -> None:
        """Raises TooManyBadError if `replaced` samples, over all ranks, are more than the budget of an epoch."""
        if replaced > self.bad_limit:
            raise TooManyBadError(
                f"{counted(replaced, 'sample')} of this epoch could not be read and had to be replaced; "
                f"data.bad_budget={self._dataset.bad_budget:g} of {self.cut} allows {self.bad_limit}: "
                "'data check --decode' names every one, or raise the budget"
            )

    def epoch(self, epoch: int, start: int = 0, carry: Mapping[str, Any] | None = None) -> Iterator[Batch]:
        """Yields this rank's micro-batches of an epoch from position `start` on; as many *steps* on every rank.

        The last micro-batch of a step carries `state_after`: {"epoch", "position", "sums", "replaced"}, where sums
        and replaced are this rank's part; added over ranks they belong into a checkpoint and come back as `carry`
        (the same on all ranks, of any number). Without it the sums are taken from what `start` positions must give.
        Raises SplitError at once for a start that is no place between steps.
        """
        self._split.check_start(start)
        audit, replaced = EpochAudit(), 0
        if self._split.rank == 0 and start:
            audit = EpochAudit(carry["sums"] if carry and "sums" in carry else self.expected_sums(epoch, start))
            replaced = int(carry.get("replaced", 0)) if carry else 0
        return self._batches(epoch, start, audit, replaced)

    def _batches(self, epoch: int, start: int, audit: EpochAudit, replaced: int) -> Iterator[Batch]:
        split = self._split
        if start >= split.cut:
            return
        last = (split.steps - 1) * split.global_batch
        order = Permutation(self._dataset.n, seed=self._dataset.seed, epoch=epoch) if self._shuffle else None
        served = self._dataset.for_epoch(
            epoch,
            rank=split.rank,
            world_size=split.world_size,
            start=start,
            stop=split.stop(last),
            shuffle=self._shuffle,
        )
        if not self._shuffle:
            self._dataset = served  # the next evaluation's rows are the same: read once
        sampler = (
            [
                Draw(index, epoch, position)
                for index, position in zip(
                    served.indices(micro.positions, micro.rows).tolist(), micro.positions.tolist(), strict=True
                )
            ]
            for micro in self._plan(order, start)
        )
        # A generator of its own: DataLoader draws a seed when it starts, and would take it from the process's
        # default generator, which belongs to the model.
        loader: DataLoader[Loaded] = DataLoader(
            BatchReader(served),
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=self._workers,
            prefetch_factor=PREFETCH if self._workers else None,
            multiprocessing_context=self._worker_start if self._workers else None,
            worker_init_fn=WorkerStart.here() if self._workers else None,
            pin_memory=self._pin_memory,
            generator=torch.Generator(),
        )
        plan = self._plan(order, start)
        rows_of = (micro.rows.tolist() for micro in self._plan(order, start))
        for micro, loaded in zip(plan, fetch_all(loader, rows_of), strict=True):
            weights = split.weights(micro.positions)
            pairs = [(int(micro.rows[place]), instead) for place, instead in loaded.replaced]
            audit.add(micro.rows[weights > 0])
            replaced += len(pairs)
            yield Batch(
                images=loaded.images,
                labels=loaded.labels,
                weights=torch.from_numpy(weights),
                rows=torch.from_numpy(micro.rows),
                positions=torch.from_numpy(micro.positions),
                draws=loaded.draws,
                replaced=pairs,
                state_after={
                    "epoch": epoch,
                    "position": split.after(micro.position),
                    "sums": list(audit.sums),
                    "replaced": replaced,
                }
                if micro.is_last
                else None,
            )

    def _plan(self, order: Permutation | None, start: int) -> Iterator[_Micro]:
        split = self._split
        for position in range(start, split.cut, split.global_batch):
            parts = split.micro_batches(position)
            for number, positions in enumerate(parts, 1):
                rows = rows_at(positions, self._dataset.n, order)
                yield _Micro(position, positions, rows, number == len(parts))


def build_loader(
    dataset: RankDataset | IndexedDataset,
    *,
    global_batch: int,
    micro_batch: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    seed: int | None = None,
    shuffle: bool = True,
    tail: str | None = None,
    workers: int = 0,
    worker_start: str = "fork",
    pin_memory: bool = False,
) -> Loader:
    """A Loader over one rank's share of a dataset, in steps of `global_batch` samples over all ranks.

    rank, world_size, seed and tail default to the dataset's own (a RankDataset knows them all) and may not contradict
    them; an IndexedDataset needs rank and world_size. Raises SplitError where the numbers give no epoch.
    """
    if isinstance(dataset, RankDataset):
        for name, given, own in (("rank", rank, dataset.rank), ("world_size", world_size, dataset.world_size)):
            if given not in (None, own):
                raise SplitError(f"{name} {given}, but the RankDataset was made for {name} {own}")
        rank, world_size = dataset.rank, dataset.world_size
    if rank is None or world_size is None:
        raise SplitError("an IndexedDataset doesn't know its rank: give build_loader rank and world_size")
    if seed not in (None, dataset.seed):
        raise SplitError(f"seed {seed}, but the dataset was made with seed {dataset.seed}")
    if workers < 0:
        raise OptionError(f"workers {workers}: legal are 0, 1, 2, … (data.workers)")
    if worker_start not in STARTS:
        raise OptionError(f"worker_start {worker_start!r}: legal are {', '.join(STARTS)} (data.worker_start)")
    split = Split(dataset.n, global_batch, world_size, rank, tail or dataset.tail, micro_batch)
    return Loader(dataset, split, shuffle=shuffle, workers=workers, worker_start=worker_start, pin_memory=pin_memory)


def _as_it_is(loaded: Any) -> Any:
    return loaded
