"""Index items that carry their place, and the sampler that deals them in constant memory."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from .errors import SplitError
from .order import Order, Permutation, rows_at
from .split import check_world

CHUNK = 4096


class Draw(int):
    """An index that also carries its epoch and position, so that a loader worker needs no `set_epoch`."""

    epoch: int
    position: int

    def __new__(cls, index: int, epoch: int, position: int) -> Draw:
        draw = super().__new__(cls, index)
        draw.epoch = epoch
        draw.position = position
        return draw

    def __reduce__(self) -> tuple[Any, ...]:
        return Draw, (int(self), self.epoch, self.position)


class ElasticSampler(DistributedSampler[Any]):
    """torch's DistributedSampler with an order in O(1) memory and a start anywhere in the epoch.

    Padding (the order repeated) and `drop_last` are the parent's. Yields Draws: rank r gets the positions g with
    g mod num_replicas == r, from `start` on. `start` belongs to the first epoch that is iterated; once `set_epoch`
    names another one, that begins at 0. Rank and world are required: no process group is ever asked. A dataset with an
    `order_for(epoch)` over all its rows (order="block") is dealt in that order, under this sampler's seed.
    """

    def __init__(
        self,
        dataset: Dataset[Any] | Sized,
        num_replicas: int,
        rank: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        start: int = 0,
    ) -> None:
        check_world(rank, num_replicas)
        super().__init__(dataset, num_replicas, rank, shuffle, seed, drop_last)  # type: ignore[arg-type]
        if not 0 <= start <= self.total_size:
            raise SplitError(f"start {start} is outside of the epoch's positions, 0 … {self.total_size}")
        self.start = start
        self._start_epoch: int | None = None

    def _first(self) -> int:
        """The first position of this rank in the current epoch."""
        start = self.start if self._start_epoch in (None, self.epoch) else 0
        return start + (self.rank - start) % self.num_replicas

    def __len__(self) -> int:
        return max(0, -(-(self.total_size - self._first()) // self.num_replicas))

    def __iter__(self) -> Iterator[Draw]:
        if self._start_epoch is None:
            self._start_epoch = self.epoch
        n = len(self.dataset)  # type: ignore[arg-type]
        epoch = self.epoch
        order = self._order(n, epoch) if self.shuffle and n else None
        step = CHUNK * self.num_replicas
        for begin in range(self._first(), self.total_size, step):
            positions = np.arange(begin, min(begin + step, self.total_size), self.num_replicas)
            for row, position in zip(rows_at(positions, n, order).tolist(), positions.tolist(), strict=True):
                yield Draw(row, epoch, position)

    def _order(self, n: int, epoch: int) -> Order:
        order_for = getattr(self.dataset, "order_for", None)
        if order_for is not None:
            order: Order = order_for(epoch)
            if order.n == n:  # else a RankDataset, which serves a part of its order and has ordered that itself
                return order.with_seed(self.seed)
        return Permutation(n, seed=self.seed, epoch=epoch)
