"""The orders look random (DESIGN section 13), and the same tests fail on orders that are known to be weak.

A statistic is a number of standard deviations: |z| < 4 over 20 seeds is what a random order gives. The seeds are
fixed, so that a test that passes goes on to pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from data import keys, order
from data.blocks import BlockOrder
from data.order import Permutation

N = 1 << 18
SEEDS = range(20)

Rows = np.ndarray
Build = Callable[[int, int], Rows]  # (seed, epoch) -> the rows of the whole order, a power of two of them


# -- the statistics


def z_of_count(found: float, trials: int, share: float) -> float:
    return abs(found - trials * share) / math.sqrt(trials * share * (1 - share))


def z_of_steps(rows: Rows) -> float:
    """Differences of consecutive rows: how many rise, how many are small, and how they spread over their range."""
    n = rows.size
    steps = np.diff(rows)
    # rising steps of a random permutation have variance (n + 1) / 12
    rising = abs(float((steps > 0).sum()) - (n - 1) / 2) / math.sqrt((n + 1) / 12)
    near = z_of_count(float((np.abs(steps) < n // 64).sum()), n - 1, 2 / 64 - 1 / 64**2)
    spread = np.bincount((steps % n) * 64 // n, minlength=64)
    chi = float(((spread - n / 64) ** 2).sum() / (n / 64))
    return max(rising, near, z_of_chi(chi, 63))


def z_of_low_bits(rows: Rows) -> float:
    """Six low bits of the position against six of the row: each pair must agree half of the time."""
    g, bits = np.arange(rows.size), np.arange(6)
    inner = (((g >> bits[:, None]) & 1) * 2 - 1).astype(np.float32)
    outer = (((rows >> bits[:, None]) & 1) * 2 - 1).astype(np.float32)
    return float(np.abs(inner @ outer.T).max()) / math.sqrt(rows.size)


def z_of_classes(rows: Rows) -> float:
    """Classes per batch of 64 when the meta file is sorted by class."""
    labels = rows * 8 // rows.size
    batches = np.arange(rows.size) // 64
    counts = np.bincount(batches * 8 + labels, minlength=rows.size // 64 * 8)
    # both margins of the table are given: all batches together hold every class equally often
    return z_of_chi(float(((counts - 8) ** 2 / 8).sum()), (rows.size // 64 - 1) * 7)


def z_between(rows: Rows, others: Rows) -> float:
    """The same position in two orders: equal and near rows as seldom as by chance."""
    apart = np.abs(rows - others)
    near = z_of_count(float((apart < rows.size // 64).sum()), rows.size, 2 / 64 - 1 / 64**2)
    equal = abs(float((apart == 0).sum()) - 1)  # as many as a Poisson number of mean 1
    return max(near, equal / 2)


def z_of_chi(chi: float, freedom: int) -> float:
    return (chi - freedom) / math.sqrt(2 * freedom)


def worst_z(build: Build, seeds: range = SEEDS) -> float:
    """The largest |z| of all statistics over all seeds; two epochs and two runs are compared as well."""
    worst = 0.0
    for seed in seeds:
        rows, later = build(seed, 0), build(seed, 1)
        worst = max(
            worst,
            z_of_steps(rows),
            z_of_low_bits(rows),
            abs(z_of_classes(rows)),
            z_between(rows, later),
            z_between(later, build(seed + 1, 0)),
        )
    return worst


# -- the orders that are served


def permutation(seed: int, epoch: int) -> Rows:
    return Permutation(N, seed=seed, epoch=epoch)[:]


def one_lane(seed: int, epoch: int) -> Rows:
    return BlockOrder(np.array([0, N]), seed=seed, epoch=epoch, lanes=1)[:]


def shuffled(seed: int, epoch: int) -> Rows:
    """What the statistics are for: numpy's own shuffle."""
    return np.random.default_rng([seed, epoch]).permutation(N)


@pytest.mark.parametrize("build", [permutation, one_lane, shuffled])
def test_the_order_looks_random(build: Build) -> None:
    assert worst_z(build) < 4


@pytest.mark.parametrize("size", [256, 1024, 4096])
def test_every_lane_looks_random_and_no_two_look_alike(size: int) -> None:
    """64 lanes of a power of two of rows: with 24 rounds below 1,024 of them, with 6 from there on."""
    lanes = (
        BlockOrder(np.array([0, 64 * size]), seed=1, lanes=64)[:].reshape(size, 64).T - np.arange(64)[:, None] * size
    )
    assert np.array_equal(np.sort(lanes[5]), np.arange(size))
    every = range(64)
    assert max(z_of_low_bits(lanes[lane]) for lane in every) < 5
    # few rows of a lane: sums over the lanes, which are independent, have the normal shape that one lane lacks
    assert abs(sum(z_of_classes(lanes[lane]) for lane in every)) / 8 < 4
    near = sum(int((np.abs(lanes[lane] - lanes[lane - 1]) < size // 64).sum()) for lane in every)
    share = (2 * sum(size - d for d in range(1, size // 64)) + size) / size**2
    assert z_of_count(near, 64 * size, share) < 4
    rising = sum(int((np.diff(lanes[lane]) > 0).sum()) for lane in every)
    assert abs(rising - 64 * (size - 1) / 2) / math.sqrt(64 * (size + 1) / 12) < 4


def test_classes_of_a_sorted_file_are_as_mixed_with_blocks() -> None:
    """Per batch of 64 and of 1,024, 100 classes, 720 lanes of 16 units: the counts vary no more than at random."""
    units, rows_per_unit, classes = 720 * 16, 60, 100
    n = units * rows_per_unit
    labels = BlockOrder(np.arange(units + 1) * rows_per_unit, seed=1)[:] * classes // n
    for batch in (64, 1024):
        batches = n // batch
        places = np.arange(batches * batch) // batch * classes
        counts = np.bincount(places + labels[: places.size], minlength=batches * classes)
        expected = batch / classes
        assert 0.9 < ((counts - expected) ** 2).sum() / expected / (batches * (classes - 1)) < 1.01


def z_of_all_orders(orders: Rows) -> float:
    """χ² over all n! orders of n rows; `orders` holds one per line."""
    n = orders.shape[1]
    codes = orders @ (n ** np.arange(n))
    legal = [sum(row * n**place for place, row in enumerate(rows)) for rows in itertools.permutations(range(n))]
    counts = np.bincount(codes, minlength=n**n)[legal]
    assert counts.sum() == orders.shape[0]
    expected = orders.shape[0] / len(legal)
    return z_of_chi(float(((counts - expected) ** 2 / expected).sum()), len(legal) - 1)


@pytest.mark.parametrize(("n", "each"), [(2, 100), (3, 100), (4, 100), (5, 40), (6, 10)])
def test_all_orders_of_few_rows_are_alike_likely(n: int, each: int) -> None:
    lanes = each * math.factorial(n)
    by_seed = np.stack([Permutation(n, seed=seed)[:] for seed in range(lanes)])
    # χ² of few degrees of freedom has a heavy right tail
    limit = 4 + 4 / math.sqrt(math.factorial(n))
    assert -4 < z_of_all_orders(by_seed) < limit
    # ten times as many lanes, which cost nothing; in front of them, lanes of one row more
    starts = np.array([0, 2 * 10 * lanes * n + 10 * lanes])
    in_lanes = BlockOrder(starts, seed=1, lanes=2 * 10 * lanes)
    shorter = np.stack([in_lanes[place * 20 * lanes + 10 * lanes : (place + 1) * 20 * lanes] for place in range(n)], 1)
    assert -4 < z_of_all_orders(shorter - shorter.min(axis=1, keepdims=True)) < limit


# -- the same statistics on weak orders


def affine(seed: int, epoch: int) -> Rows:
    a, b = keys.make_keys(seed, epoch, "affine", 2)
    return (np.arange(N, dtype=np.uint64) * np.uint64(a | 1) + np.uint64(b)).astype(np.int64) % N


def network(rounds: int, function: Callable[[Rows, int], Rows], width: int = 9) -> Build:
    """A balanced Feistel network on N = 2^18 words; `function` gives `width` bits."""

    def build(seed: int, epoch: int) -> Rows:
        words = np.arange(N, dtype=np.uint64)
        left, right = words >> np.uint64(width), words & np.uint64((1 << width) - 1)
        for key in keys.make_keys(seed, epoch, "weak", rounds):
            left, right = right, left ^ function(right, key)
        return ((left << np.uint64(width)) | right).astype(np.int64)

    return build


def mixed(half: Rows, key: int) -> Rows:
    return keys.mix_words(half ^ np.uint64(key)) >> np.uint64(64 - 9)


def multiplied(half: Rows, key: int) -> Rows:
    return (half * np.uint64(key | 1)) & np.uint64((1 << 9) - 1)


def simon(half: Rows, key: int) -> Rows:
    """Simon's round function (Beaulieu et al. 2013) on words of 9 bits."""

    def turned(by: int) -> Rows:
        return ((half << np.uint64(by)) | (half >> np.uint64(9 - by))) & np.uint64((1 << 9) - 1)

    return (turned(1) & turned(8)) ^ turned(2) ^ np.uint64(key >> 55)


def by_sum(seed: int, epoch: int) -> Rows:
    return Permutation(N, seed=seed + epoch)[:]


WEAK = {
    "affine map": affine,
    "2 rounds": network(2, mixed),
    "multiply-only round function": network(6, multiplied),
    "Simon, 4 rounds": network(4, simon),
    "keyed by seed + epoch": by_sum,
}


@pytest.mark.parametrize("name", WEAK)
def test_the_statistics_fail_on_weak_orders(name: str) -> None:
    rows = WEAK[name](1, 0)
    assert np.array_equal(np.sort(rows), np.arange(N)), "weak, but an order"
    assert worst_z(WEAK[name], range(3)) > 8


def test_the_statistics_pass_on_the_same_network_with_a_strong_round_function() -> None:
    assert worst_z(network(6, mixed)) < 4


@pytest.mark.parametrize("build", [permutation, one_lane])
def test_the_statistics_fail_on_our_own_network_with_two_rounds(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "ROUNDS", 2)
    monkeypatch.setattr("data.blocks.ROUNDS", 2)
    assert worst_z(build, range(3)) > 8


def test_short_lanes_with_six_rounds_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.blocks.SHORT_ROUNDS", 6)
    lanes = BlockOrder(np.array([0, 2400 * 4]), seed=1, lanes=2400)[:].reshape(4, -1).T
    assert z_of_all_orders(lanes - lanes.min(axis=1, keepdims=True)) > 20


def test_rows_that_stay_where_they_are_are_seen() -> None:
    def beginning_kept(seed: int, epoch: int) -> Rows:
        rows = permutation(seed, epoch)
        rows[: N // 256] = np.arange(N // 256)
        return rows

    assert worst_z(beginning_kept, range(2)) > 8
