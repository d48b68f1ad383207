"""Which positions of an epoch a rank gets, step by step: the frozen global batch.

A step takes the positions [p, p + G), p counted from the start of the epoch; rank r takes those with g mod W == r,
in near-equal micro-batches. Nothing here depends on how often the run was stopped or on how many ranks it had.

    G = 4, W = 3, n = 10, tail "mask"
    step at 0   positions 0 1 2 3     rank 0: 0 3    rank 1: 1      rank 2: 2
    step at 4   positions 4 5 6 7     rank 0: 6      rank 1: 4 7    rank 2: 5
    step at 8   positions 8 9 (10)    rank 0: 9      rank 1: (10)   rank 2: 8       (10) has weight 0
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import OptionError, SplitError, counted

TAILS = ("drop", "pad", "mask")

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """The arithmetic of one rank; raises SplitError for numbers that give no epoch."""

    n: int
    global_batch: int
    world_size: int
    rank: int
    tail: str = "drop"
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        check_world(self.rank, self.world_size)
        check_tail(self.tail)
        if self.micro_batch is not None and self.micro_batch < 1:
            raise SplitError(f"micro_batch {self.micro_batch} is not a whole number from 1 on (train.micro_batch)")
        if self.global_batch < self.world_size:
            raise SplitError(
                f"a global batch of {self.global_batch} is smaller than the {self.world_size} ranks: every rank "
                f"needs at least one sample per step; take train.global_batch >= {self.world_size} or fewer ranks"
            )
        if self.cut == 0:
            raise SplitError(
                f"an epoch without a single step: {counted(self.n, 'row')}, but a global batch of {self.global_batch}; "
                f"take train.global_batch <= {self.n}"
            )

    @property
    def cut(self) -> int:
        """Positions of an epoch that count: all of n with "mask", else whole steps, rounded down or up."""
        if self.tail == "mask":
            return self.n
        steps = self.n // self.global_batch if self.tail == "drop" else -(-self.n // self.global_batch)
        return steps * self.global_batch

    @property
    def steps(self) -> int:
        return -(-self.cut // self.global_batch)

    def stop(self, position: int) -> int:
        """The end of the step that begins at `position`, padding included.

        Only a masked last step is short: it ends at n, or as much later as it takes to give each rank a sample.
        """
        if self.tail == "mask" and position + self.global_batch > self.n:
            return max(self.n, position + self.world_size)
        return position + self.global_batch

    def after(self, position: int) -> int:
        """The position that a checkpoint keeps once the step at `position` is done."""
        return min(position + self.global_batch, self.cut)

    def check_start(self, start: int) -> None:
        if not (0 <= start <= self.cut and (start % self.global_batch == 0 or start == self.cut)):
            raise SplitError(
                f"start {start} is no place between steps: a multiple of the global batch ({self.global_batch}) up "
                f"to {self.cut}, the epoch's end; was the checkpoint made with another global batch?"
            )

    def micro_batches(self, position: int) -> list[Positions]:
        """This rank's positions in the step at `position`, one array per micro-batch, sizes equal to ±1."""
        first = position + (self.rank - position) % self.world_size
        mine = np.arange(first, self.stop(position), self.world_size, dtype=np.int64)
        parts = -(-mine.size // self.micro_batch) if self.micro_batch else 1
        return np.array_split(mine, parts)

    def weights(self, positions: Positions) -> npt.NDArray[np.float32]:
        """1 for a position that counts, 0 for padding of tail "mask"."""
        return (positions < self.cut).astype(np.float32)

    def step_weight(self, position: int) -> float:
        """Sum of the weights of the whole step at `position`, over all ranks."""
        return float(self.after(position) - position)


def whole(name: str, value: int, where: str = "") -> int:
    """`value` as an int; OptionError unless it is a whole number from 0 on (of numpy's, too)."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0 or isinstance(value, bool):
        raise OptionError(f"{name} {value!r}: legal are 0, 1, 2, …{where}")
    return number


def check_world(rank: int, world_size: int) -> None:
    if world_size < 1:
        raise SplitError(f"rank {rank} of world size {world_size}: a world has at least 1 rank")
    if not 0 <= rank < world_size:
        raise SplitError(f"rank {rank} of world size {world_size}: rank is 0 … {world_size - 1}")


def check_tail(tail: str) -> None:
    if tail not in TAILS:
        raise SplitError(f"tail {tail!r}: legal are {', '.join(TAILS)}")
