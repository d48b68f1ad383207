"""Batches of the frozen global batch, alike from both datasets, for any number of ranks and workers.

Workers live over epochs, and the batches that they are given ahead cross the boundary, so that an epoch begins as any
other step does:

    rank      batch batch batch | batch batch batch | …       consumes, one step after the other
    workers       load ahead ------->|                        are asked for epoch 1 before epoch 0 is consumed
    builder   [shard of 1]      [shard of 2]                  a process of its own, see slots.py
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from .audit import EpochAudit, Sums, expected_sums
from .datasets import IndexedDataset, RankDataset, Request
from .errors import DataError, OptionError, SplitError, TooManyBadError, counted
from .order import Rows, rows_at
from .slots import ShardJob, Shards
from .split import Positions, Split, whole
from .workers import BatchReader, Fetch, Loaded, WorkerSettings

STARTS = ("fork", "forkserver", "spawn")


@dataclass
class Batch:
    """One micro-batch of one rank.

    images uint8 [B, C, H, W], clips [B, T, C, H, W]; labels int64 [B], or multi-hot float32 [B, K] where rows have
    several; weights float32 [B], 0 for padding; rows, positions int64 [B]; draws float32 [B, K], random numbers for
    `Transforms.device`; replaced: pairs (row, the row shown instead). `state_after` stands on a step's last
    micro-batch only: plain builtins, what a checkpoint keeps of the data.
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
class _Service:
    """What is served to one rank, and how; the same for all epochs."""

    dataset: RankDataset | IndexedDataset
    split: Split
    shuffle: bool
    epochs: int | None
    workers: WorkerSettings


class Loader:
    """What build_loader gives; `epoch(e)` may be called for any epoch, in any order.

    Where the calls follow one another (0, 1, 2, …) the workers live on and each epoch is prepared while the one
    before is consumed. `close()`, or the end of the `with` block, ends them; so does the loader's own end.
    """

    def __init__(self, service: _Service) -> None:
        self._service = service
        self._dataset, self._split, self._shuffle = service.dataset, service.split, service.shuffle
        self._idle: list[_Stream] = []  # what waits for the next epoch: one at most
        self._running: list[_Stream] = []  # what an iterator that was not exhausted reads from
        weakref.finalize(self, _close_all, self._idle)

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
        return math.floor(self._dataset.bad_budget * self.cut + 1e-9)  # 0.29 of 100 is 29

    def step_weight(self, position: int) -> float:
        """Sum of the weights, over all ranks, of the step that begins at `position`."""
        self._split.check_start(position)
        return self._split.step_weight(position)

    def expected_sums(self, epoch: int, position: int | None = None) -> Sums:
        """What `state_after["sums"]`, added over ranks, must be at `position` (default: at the end of the epoch)."""
        cut = self.cut if position is None else position
        order = self._dataset.order_for(epoch) if self._shuffle else None
        seed, n = self._dataset.seed, self._dataset.n
        return expected_sums(n, seed=seed, epoch=epoch, cut=cut, shuffle=self._shuffle, order=order)

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
        (the same on all ranks, of any number). Without it the sums are taken from what `start` positions must give,
        which walks over them (some 40 ns each). Raises SplitError at once for a start that is no place between steps.
        """
        epoch, start = whole("epoch", epoch), whole("start", start)
        self._split.check_start(start)
        for name, own in (("epoch", epoch), ("position", start)):
            if carry and start and carry.get(name, own) != own:
                raise SplitError(f"carry is the state of {name} {carry[name]}, but {name} {own} is asked for")
        audit, replaced = EpochAudit(), 0
        if self._split.rank == 0 and start:
            audit = EpochAudit(carry["sums"] if carry and "sums" in carry else self.expected_sums(epoch, start))
            replaced = int(carry.get("replaced", 0)) if carry else 0
        return self._batches(epoch, start, audit, replaced)

    def close(self) -> None:
        """Ends the workers and what is prepared for the next epoch."""
        _close_all(self._idle)
        _close_all(self._running)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batches(self, epoch: int, start: int, audit: EpochAudit, replaced: int) -> Iterator[Batch]:
        if start >= self._split.cut:
            return
        if self._idle and self._idle[0].goes_on_with(epoch, start):
            stream = self._idle.pop()
        else:
            _close_all(self._idle)
            stream = _Stream(self._service)
        self._running.append(stream)
        try:
            for micro, loaded in stream.epoch(epoch, start):
                weights = self._split.weights(micro.positions)
                pairs = [(int(micro.rows[place]), instead) for place, instead in loaded.replaced]
                audit.add(micro.rows[weights > 0])
                replaced += sum(1 for place, _ in loaded.replaced if weights[place] > 0)
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
                        "position": self._split.after(micro.position),
                        "sums": list(audit.sums),
                        "replaced": replaced,
                    }
                    if micro.is_last
                    else None,
                )
        except BaseException:  # left in the middle, by an error or by the caller
            stream.close()
            raise
        finally:
            if stream in self._running:
                self._running.remove(stream)
        _close_all(self._idle)  # of two epochs consumed side by side one stays
        self._idle.append(stream)


@dataclass(frozen=True)
class _Micro:
    """One entry of an epoch's plan."""

    epoch: int
    start: int  # of the epoch's shard
    position: int  # of the step
    positions: Positions
    rows: Rows
    is_last: bool


class _Stream:
    """Workers, and what they are asked for: one epoch after the other.

    It is an iterator for DataLoader, which asks for one more batch whenever it gives one out. A StopIteration may be
    for the moment (the slot of the epoch after next is still read from): DataLoader asks again at its next batch, and
    there always is one, since the epoch that follows the consumed one is never held back.
    """

    def __init__(self, service: _Service) -> None:
        dataset, split = service.dataset, service.split
        self._split, self._shuffle = split, service.shuffle
        self._epochs, self._workers = service.epochs, service.workers
        self._shards: Shards | None = None
        if isinstance(dataset, RankDataset):
            last = (split.steps - 1) * split.global_batch
            dataset = dataset.for_loader(stop=split.stop(last), shuffle=service.shuffle)
            if dataset.slots is not None:
                self._shards = Shards(dataset.slots)
        self._dataset = dataset
        self._fetch: Fetch | None = None
        self._next: tuple[int, int] | None = None
        self._consumed = 0  # the epoch whose batches are being given out
        self._planned = 0  # the epoch of which batches are being asked for
        self._micros: Iterator[_Micro] = iter(())
        self._asked: deque[_Micro] = deque()  # asked for and not given out yet
        self._failed: DataError | None = None  # what was found while an epoch was prepared

    def goes_on_with(self, epoch: int, start: int) -> bool:
        """Whether an epoch is what this stream has prepared. Without a shuffle all epochs have the same rows."""
        if self._next is None:
            return False
        return self._next == (epoch, start) if self._shuffle else self._next[1] == start

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[_Micro, Loaded]]:
        """The batches of an epoch, in order, loaded."""
        self._consumed, self._next = epoch, None
        if self._failed is not None:
            raise self._failed
        if self._fetch is None:
            self._make_ready(epoch, start)  # before the workers start: what is wrong is told before they are there
            self._planned, self._micros = epoch, self._micros_of(epoch, start)
            self._fetch = Fetch(BatchReader(self._dataset), self, self._workers, self._rows_asked)
        is_first, is_done = True, False
        while not is_done:
            if self._fetch is None:
                raise OptionError(f"the loader was closed in the middle of epoch {epoch}")
            try:
                loaded = self._fetch.next()
            except StopIteration:
                assert self._failed is not None
                raise self._failed from None
            micro = self._asked.popleft()
            is_done = micro.is_last and self._split.after(micro.position) == self._split.cut
            if is_first and self._shards is not None and self._has(epoch + 1):
                self._shards.begin(epoch + 1, self._job(epoch + 1, 0))
            is_first = False
            yield micro, loaded
        if self._has(epoch + 1):
            self._next = epoch + 1, 0
        else:
            self._next = (epoch, start) if not self._shuffle else None
            self._stop_workers()

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> Request:
        while (micro := next(self._micros, None)) is None:
            following = self._planned + 1
            if self._failed is not None or not self._has(following) or following > self._consumed + 1:
                raise StopIteration
            try:
                self._make_ready(following, 0)
            except DataError as error:  # belongs to that epoch; this one is whole
                self._failed = error
                raise StopIteration from None
            self._planned, self._micros = following, self._micros_of(following, 0)
        self._asked.append(micro)
        start = micro.start
        return Request(micro.epoch, micro.rows, self._dataset.indices(micro.positions, micro.rows, start))

    def close(self) -> None:
        """Ends the workers and the builder."""
        self._next = None
        self._stop_workers()
        if self._shards is not None:
            self._shards.close()

    def _stop_workers(self) -> None:
        fetch, self._fetch = self._fetch, None
        self._asked.clear()
        if fetch is not None:
            fetch.close()

    def _has(self, epoch: int) -> bool:
        """Whether an epoch is to be prepared that nobody has asked for yet."""
        return self._shuffle and (self._epochs is None or epoch < self._epochs)

    def _make_ready(self, epoch: int, start: int) -> None:
        if self._shards is not None:
            self._shards.ready(epoch if self._shuffle else 0, self._job(epoch, start))

    def _job(self, epoch: int, start: int) -> ShardJob:
        assert isinstance(self._dataset, RankDataset)
        return self._dataset.job(epoch, start)

    def _micros_of(self, epoch: int, start: int) -> Iterator[_Micro]:
        split = self._split
        order = self._dataset.order_for(epoch) if self._shuffle else None
        for position in range(start, split.cut, split.global_batch):
            parts = split.micro_batches(position)
            for number, positions in enumerate(parts, 1):
                rows = rows_at(positions, self._dataset.n, order)
                yield _Micro(epoch, start, position, positions, rows, number == len(parts))

    def _rows_asked(self) -> list[list[int]]:
        return [micro.rows.tolist() for micro in self._asked]


def build_loader(
    dataset: RankDataset | IndexedDataset,
    *,
    global_batch: int,
    micro_batch: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    seed: int | None = None,
    shuffle: bool | None = None,
    tail: str | None = None,
    epochs: int | None = None,
    workers: int = 0,
    worker_start: str = "fork",
    pin_memory: bool = False,
) -> Loader:
    """A Loader over one rank's part of the dataset, in steps of `global_batch` samples over all ranks.

    Rank, world size and seed are the dataset's own where it has them, and what is given here may not contradict them;
    an IndexedDataset needs rank and world_size. Tail and shuffle are the dataset's own unless they are given. `epochs`
    is their number, where it is known: nothing is prepared past the last. Raises SplitError where the numbers give no
    epoch.
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
    workers = whole("workers", workers, " (data.workers)")
    global_batch, rank, world_size = (
        whole("global_batch", global_batch),
        whole("rank", rank),
        whole("world_size", world_size),
    )
    micro_batch = None if micro_batch is None else whole("micro_batch", micro_batch)
    epochs = None if epochs is None else whole("epochs", epochs)
    if shuffle is None:
        shuffle = dataset.shuffle if isinstance(dataset, RankDataset) else True
    if worker_start not in STARTS:
        raise OptionError(f"worker_start {worker_start!r}: legal are {', '.join(STARTS)} (data.worker_start)")
    split = Split(dataset.n, global_batch, world_size, rank, tail or dataset.tail, micro_batch)
    settings = WorkerSettings(workers, worker_start, pin_memory)
    return Loader(_Service(dataset, split, shuffle, epochs, settings))


def _close_all(streams: list[_Stream]) -> None:
    while streams:
        streams.pop().close()
