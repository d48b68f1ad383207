from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import keys
from data.blocks import LANES, BlockOrder, Blocks, choose_blocks
from data.errors import SplitError

# Frozen, as those of Permutation are: (rows per unit, lanes, seed, epoch, the first rows)
GOLDEN = [
    ([3, 2, 5, 1], 2, 5, 0, [5, 9, 0, 10, 2, 4, 7, 3]),
    ([0, 7, 0, 0, 4], 3, 0, 1, [10, 0, 4, 9, 1, 5, 8, 2]),
    ([1], 720, 2**64 - 1, 0, [0]),
    ([1500] * 64, 40, 7, 3, [61749, 15918, 66601, 12560, 51311, 69847, 84227, 84803]),
    ([5000] * 11520, 720, 11, 2, [39971064, 33434609, 16530545, 8805416, 48370856, 35353123, 20656117, 1524409]),
    ([40] * 70000, 720, 11, 2, [852416, 1635393, 1434350, 1153297, 2263802, 2637606, 1018878, 1768946]),
]


def starts_of(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def test_the_drawing() -> None:
    order = BlockOrder(np.array([0, 3, 5, 10, 11]), seed=20, lanes=2)
    assert order[:].tolist() == [7, 4, 8, 3, 6, 1, 0, 2, 5, 10, 9]
    assert order[0::2].tolist() == [7, 8, 6, 0, 5, 9], "the first lane: rows 5 … 9 and 0"
    assert order[1::2].tolist() == [4, 3, 1, 2, 10]
    assert (order.n, len(order), order.lanes) == (11, 11, 2)


@pytest.mark.parametrize(("lengths", "lanes", "seed", "epoch", "rows"), GOLDEN)
def test_golden_vectors(lengths: list[int], lanes: int, seed: int, epoch: int, rows: list[int]) -> None:
    order = BlockOrder(starts_of(lengths), seed=seed, epoch=epoch, lanes=lanes)
    assert order[: len(rows)].tolist() == rows


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=40).filter(any),
    lanes=st.integers(1, 60),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 9),
)
def test_a_bijection_whose_lanes_are_runs_of_the_permuted_units(
    lengths: list[int], lanes: int, seed: int, epoch: int
) -> None:
    starts = starts_of(lengths)
    order = BlockOrder(starts, seed=seed, epoch=epoch, lanes=lanes)
    rows = order[:]
    n = sum(lengths)
    assert sorted(rows.tolist()) == list(range(n))
    assert order.inverse(rows).tolist() == list(range(n))
    assert [order[g] for g in range(n)] == rows.tolist()
    assert order.inverse(int(rows[-1])) == n - 1
    # sorted by a hash of each: the definition, one unit at a time
    key = keys.make_keys(seed, epoch, "block.units")[0]
    units = sorted(range(len(lengths)), key=lambda unit: keys.mix(unit * keys.GOLDEN + key))
    sequence = [row for unit in units for row in range(starts[unit], starts[unit + 1])]
    for lane in range(lanes):
        mine = rows[lane::lanes].tolist()
        assert sorted(mine) == sorted(sequence[: len(mine)])
        del sequence[: len(mine)]
    assert not sequence


def test_seed_epoch_and_lane_decide() -> None:
    starts = np.arange(0, 10_001, 100)
    first = BlockOrder(starts, seed=1, lanes=10)[:]
    assert not np.array_equal(first, BlockOrder(starts, seed=2, lanes=10)[:])
    assert not np.array_equal(first, BlockOrder(starts, seed=1, epoch=1, lanes=10)[:])
    assert not np.array_equal(BlockOrder(starts, seed=3, epoch=1)[:], BlockOrder(starts, seed=4, epoch=0)[:])
    assert np.array_equal(first, BlockOrder(starts, seed=1, lanes=10)[:])
    again = BlockOrder(starts, seed=1, lanes=10)
    assert again.with_seed(1) is again
    assert np.array_equal(again.with_seed(2)[:], BlockOrder(starts, seed=2, lanes=10)[:])
    one_unit = BlockOrder(np.array([0, 1000]), seed=1, lanes=10)[:].reshape(100, 10) - np.arange(10) * 100
    assert len({tuple(lane) for lane in one_unit.T.tolist()}) == 10, "two lanes have the same order"


@pytest.mark.parametrize("world_size", [8, 16, 90, 720])
def test_a_rank_of_a_world_that_divides_the_lanes_reads_its_share(world_size: int) -> None:
    """Pages of 4 KiB that hold rows of one rank, counted: at most 1.1/W of a file of just the least size."""
    line, size = 48, 720 * 16 * (64 << 10)
    n = size // line
    starts = -(-np.arange(0, size + 1, 64 << 10) // line)
    starts[-1] = n
    order = BlockOrder(starts, seed=1)
    for rank in (0, world_size - 1):
        rows = order[rank::world_size]
        pages = np.zeros(size // 4096, bool)
        pages[rows * line // 4096] = True
        pages[np.minimum((rows * line + line - 1) // 4096, pages.size - 1)] = True
        assert pages.sum() * 4096 <= 1.1 * size / world_size


@pytest.mark.parametrize(
    ("size_bytes", "unit"),
    [
        (720 * 16 * (64 << 10), 64 << 10),
        (2 * 10**9, 128 << 10),
        (10**10, 512 << 10),
        (10**11, 4 << 20),
        (10**13, 4 << 20),
    ],
)
def test_the_largest_unit_that_leaves_sixteen_per_lane(size_bytes: int, unit: int) -> None:
    assert choose_blocks(size_bytes) == Blocks(720, unit)
    assert size_bytes // unit >= 16 * LANES


def test_refusals() -> None:
    with pytest.raises(SplitError, match=r"754,974,719 bytes .* 720 lanes .* need 754,974,720; take order=row"):
        choose_blocks(720 * 16 * (64 << 10) - 1)
    assert choose_blocks(10**7, lanes=8) == Blocks(8, 64 << 10)
    with pytest.raises(SplitError, match="0 lanes: order=block needs a whole number from 1 on"):
        Blocks(lanes=0)
    for unit in (0, -4096, 5000):
        with pytest.raises(SplitError, match=f"unit_bytes {unit}: a unit of order=block is a multiple of 4096"):
            Blocks(unit_bytes=unit)
    for starts in ([0], [0, 0], [1, 5], [0, 5, 4], [[0, 1]], []):
        with pytest.raises(SplitError, match="unit_starts of a block order are row numbers that begin at 0"):
            BlockOrder(np.array(starts), seed=1)
    with pytest.raises(SplitError, match="-1 lanes"):
        BlockOrder(np.array([0, 5]), seed=1, lanes=-1)
    with pytest.raises(SplitError, match="seed -1"):
        BlockOrder(np.array([0, 5]), seed=-1)
    with pytest.raises(IndexError, match="0 … 4"):
        BlockOrder(np.array([0, 5]), seed=1)[5]
