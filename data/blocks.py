"""order="block": an order that reads 1/W of the file per rank, for slow shared disks and huge files.

The file is cut into units of some hundred KiB; the units are permuted, the row sequence that results is cut into L
lanes equal to ±1, each lane is permuted, and position g is item `g div L` of lane `g mod L`. A rank of a world whose
size divides L then serves whole lanes, which are whole units but for their ends.

    BlockOrder([0, 3, 5, 10, 11], seed=20, lanes=2)     11 rows in 4 units
    units      0 1 2 | 3 4 | 5 6 7 8 9 | 10              permuted: 2 0 3 1
    sequence   5 6 7 8 9 0 | 1 2 10 3 4                  cut into two lanes
    lanes      7 8 6 0 5 9 | 4 3 1 2 10                  each one permuted
    order      7 4 8 3 6 1 0 2 5 10 9                    the lanes' items in turn

A global batch takes one row from each of many lanes, so also on a meta file that is sorted by class its classes are as
mixed as in the order of all rows (their counts vary 0.94 to 1.00 times as much, tests/data/test_statistics.py). What
*one rank* serves in an epoch comes from L / gcd(W, L) lanes, at least 16 units each: of a sorted file a rank of a
large world sees few classes per epoch. A file that is shuffled once has none of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from . import keys
from .errors import SplitError
from .feistel import ROUNDS, Feistel, bits_of
from .keys import Words
from .order import Order, Rows

__all__ = ["LANES", "BlockOrder", "Blocks", "Order", "choose_blocks"]

LANES = 720  # divided by 1 … 6, 8, 9, 10, 12, 15, 16, 18, 20, 24, 30, 36, 40, 45, 48, 60, 72, 80, 90, …
PAGE = 4096
SMALLEST_UNIT, LARGEST_UNIT = 64 << 10, 4 << 20
UNITS_PER_LANE = 16
# Six rounds on a few rows leave some of their orders four times as likely as others (chi square over all orders of 4
# rows, 24,000 lanes: 660 standard deviations off); 24 rounds none, up to 300 rows (tests/data/test_statistics.py).
SHORT_LANE, SHORT_ROUNDS = 1 << 10, 24


@dataclass(frozen=True)
class Blocks:
    """What a run with order="block" freezes: the number of lanes and the size of a unit, a multiple of 4 KiB."""

    lanes: int = LANES
    unit_bytes: int = SMALLEST_UNIT

    def __post_init__(self) -> None:
        if self.lanes < 1:
            raise SplitError(f"{self.lanes} lanes: order=block needs a whole number from 1 on")
        if self.unit_bytes < PAGE or self.unit_bytes % PAGE:
            raise SplitError(f"unit_bytes {self.unit_bytes}: a unit of order=block is a multiple of {PAGE} bytes")


def choose_blocks(size_bytes: int, *, lanes: int = LANES) -> Blocks:
    """The largest unit (a power of two, 64 KiB … 4 MiB) that gives every lane of a file at least 16 units.

    Raises SplitError for a file that is too small for that.
    """
    unit = LARGEST_UNIT
    while unit > SMALLEST_UNIT and size_bytes < unit * UNITS_PER_LANE * lanes:
        unit //= 2
    needed = unit * UNITS_PER_LANE * lanes
    if size_bytes < needed:
        raise SplitError(
            f"order=block with {size_bytes:,} bytes of meta file: {lanes} lanes of at least {UNITS_PER_LANE} units of "
            f"{unit >> 10} KiB need {needed:,}; take order=row (data.order=row), which is fast enough for a file of "
            "this size"
        )
    return Blocks(lanes, unit)


class BlockOrder(Order):
    """The order of one epoch over a file in units; a pure function of (unit_starts, seed, epoch, lanes).

    `unit_starts` int64 [U + 1]: the first row of every unit, and n. Memory: a few words per unit and per lane. The
    values are frozen by golden vectors.
    """

    def __init__(self, unit_starts: npt.NDArray[np.int64], *, seed: int, epoch: int = 0, lanes: int = LANES) -> None:
        starts = np.ascontiguousarray(unit_starts, dtype=np.int64)
        if starts.ndim != 1 or starts.size < 2 or starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] < 1:
            raise SplitError("unit_starts of a block order are row numbers that begin at 0, never fall, and end at n")
        if lanes < 1:
            raise SplitError(f"{lanes} lanes: order=block needs a whole number from 1 on")
        super().__init__(int(starts[-1]), seed=seed, epoch=epoch)
        self.lanes = lanes
        self._starts = starts
        # the first `longer` lanes have one row more than the others
        self._short, self._longer = divmod(self.n, lanes)
        rounds = ROUNDS if self._short >= SHORT_LANE else SHORT_ROUNDS
        self._network = Feistel(bits_of(self._short + 1), keys.make_keys(seed, epoch, "block.lanes", rounds))
        numbers = np.arange(lanes, dtype=np.uint64) * np.uint64(keys.GOLDEN)
        self._tweaks = keys.mix_words(numbers + np.uint64(keys.make_keys(seed, epoch, "block.tweaks")[0]))

    def with_seed(self, seed: int) -> BlockOrder:
        return self if seed == self.seed else BlockOrder(self._starts, seed=seed, epoch=self.epoch, lanes=self.lanes)

    @cached_property
    def _units(self) -> Rows:
        """The units in the order in which they are joined: sorted by a word of each, no two of which are equal."""
        numbers = np.arange(self._starts.size - 1, dtype=np.uint64) * np.uint64(keys.GOLDEN)
        key = keys.make_keys(self.seed, self.epoch, "block.units")[0]
        return np.argsort(keys.mix_words(numbers + np.uint64(key)))

    @cached_property
    def _begins(self) -> Rows:
        """Where each place of the joined units begins among all rows."""
        lengths = np.diff(self._starts)[self._units]
        return np.cumsum(lengths) - lengths

    @cached_property
    def _shifts(self) -> Rows:
        """Per place: what to add to a row's place in the sequence to get the row."""
        return self._starts[self._units] - self._begins

    @cached_property
    def _shifts_of_units(self) -> Rows:
        shifts = np.empty_like(self._shifts)
        shifts[self._units] = self._shifts
        return shifts

    @cached_property
    def _lane_units(self) -> tuple[Rows, list[int], Rows]:
        """Per lane the place of its first unit; the powers of two that a search from there on needs, falling; and
        _begins with that many ends behind."""
        edges = self._lane_start(np.arange(self.lanes + 1))
        first = np.searchsorted(self._begins, edges[:-1], side="right") - 1
        last = np.searchsorted(self._begins, edges[1:] - 1, side="right") - 1
        steps = [1 << bit for bit in reversed(range(int((last - first).max()).bit_length()))]
        return first, steps, np.concatenate([self._begins, np.full(2 * sum(steps[:1]), self.n)])

    def _walk(self, words: Words, forward: bool) -> None:
        values = words.view(np.int64)
        if forward:
            item, lane = np.divmod(values, self.lanes)
            self._walk_lanes(item, lane, forward)
            item += self._lane_start(lane)
            np.add(item, self._shifts[self._unit_place(item, lane)], out=values)
        else:
            unit = np.searchsorted(self._starts, values, side="right") - 1
            item = values - self._shifts_of_units[unit]
            lane = self._lane_of(item)
            item -= self._lane_start(lane)
            self._walk_lanes(item, lane, forward)
            np.add(item * self.lanes, lane, out=values)

    def _unit_place(self, item: Rows, lane: Rows) -> Rows:
        """The last place that begins at or before each item of the sequence.

        A lane has a score of units, so this takes five steps: 15 ns an item, where np.searchsorted over all units
        takes 44 (at 11,520 units)."""
        first, steps, begins = self._lane_units
        place = first[lane]
        for step in steps:
            place += (begins[step:][place] <= item) * step
        return place

    def _walk_lanes(self, item: Rows, lane: Rows, forward: bool) -> None:
        sizes = (lane < self._longer) + np.uint64(self._short)
        self._network.walk(item.view(np.uint64), sizes, self._tweaks[lane], forward=forward)

    def _lane_start(self, lane: Rows) -> Rows:
        return lane * self._short + np.minimum(lane, self._longer)

    def _lane_of(self, place: Rows) -> Rows:
        in_longer = place // (self._short + 1)
        if self._short == 0:
            return in_longer
        return np.where(in_longer < self._longer, in_longer, (place - self._longer) // self._short)
