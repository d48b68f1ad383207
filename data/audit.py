"""The checksum of an epoch: was every row served as often as it should be, over all ranks?

Three sums over the rows of weight > 0: how many, their sum, the sum of their squares (mod 2^64). They add up over
ranks, steps and attempts, and what they must come to is known beforehand. All are kept as *signed* 64-bit numbers, so
that an int64 tensor can carry and add them between ranks; the wrap-around is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .feistel import CHUNK
from .order import Order, Permutation, rows_at

Sums = tuple[int, int, int]


class EpochAudit:
    """Running sums of the rows that were served; `sums` is what a checkpoint keeps."""

    def __init__(self, sums: Sequence[int] = (0, 0, 0)) -> None:
        self.sums: Sums = (int(sums[0]), int(sums[1]), int(sums[2]))

    def add(self, rows: npt.NDArray[np.int64]) -> None:
        """Counts rows in; the caller leaves out those of weight 0."""
        self.sums = add_sums(self.sums, _sums_of(rows))


def expected_sums(n: int, *, seed: int, epoch: int, cut: int, shuffle: bool = True, order: Order | None = None) -> Sums:
    """What the sums over all ranks must come to after positions 0 … cut - 1 of an epoch.

    Without an `order` it is the Permutation of (n, seed, epoch), and the file's own unless `shuffle`. Whole passes
    over all rows have a closed form; only what lies between `cut` and the nearest whole pass is walked.
    """
    if order is None and shuffle:
        order = Permutation(n, seed=seed, epoch=epoch)
    passes, left = divmod(cut, n)
    total = n - 1
    whole = (n, n * total // 2, n * total * (2 * n - 1) // 6)
    if left <= n - left:
        sums = tuple(passes * value for value in whole)
        sign, begin, end = 1, 0, left
    else:
        sums = tuple((passes + 1) * value for value in whole)
        sign, begin, end = -1, left, n
    for start in range(begin, end, CHUNK):
        rows = rows_at(range(start, min(start + CHUNK, end)), n, order)
        part = _sums_of(rows)
        sums = tuple(a + sign * b for a, b in zip(sums, part, strict=True))
    return _wrap(sums)


def add_sums(left: Sequence[int], right: Sequence[int]) -> Sums:
    """The sums of two sets of rows taken together."""
    return _wrap([a + b for a, b in zip(left, right, strict=True)])


def _sums_of(rows: npt.NDArray[np.int64]) -> Sums:
    words = rows.astype(np.uint64)
    return _wrap([rows.size, int(words.sum(dtype=np.uint64)), int((words * words).sum(dtype=np.uint64))])


def _wrap(sums: Sequence[int]) -> Sums:
    """Each number mod 2^64, as the signed number with the same bits."""
    first, second, third = ((value + (1 << 63)) % (1 << 64) - (1 << 63) for value in sums)
    return first, second, third
