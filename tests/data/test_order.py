from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import order
from data.errors import SplitError
from data.order import Permutation, rows_at

# Frozen: checkpoints refer to these orders. If one changes, keys.VERSION must change with it.
GOLDEN = [
    (1, 0, 0, [0]),
    (11, 7, 0, [6, 0, 7, 4, 10, 3, 9, 2]),
    (11, 7, 1, [2, 9, 10, 3, 4, 0, 7, 5]),
    (1000, 0, 0, [32, 459, 552, 948, 378, 687, 893, 85]),
    (65536, 2**63, 5, [8609, 39402, 60691, 1555, 17993, 7597, 53860, 28397]),
    (65537, 0, 0, [2529, 25461, 28285, 59433, 20743, 23943, 48266, 16245]),
    (1_000_003, 7, 0, [186567, 231012, 396262, 587562, 457980, 713267, 661327, 620018]),
    (10**9, 1, 2, [976130002, 922458222, 418602936, 213695078, 803731212, 133710090, 861898308, 896873827]),
    (2**40 + 1, 2**64 - 1, 3, [52228385557, 858215447563, 976349231102, 102196964462, 759420439855]),
    (2**62, 9, 0, [4464867790548311072, 4146072770081703952, 1334196538796927260, 4545101466012467466]),
]


@pytest.mark.parametrize(("n", "seed", "epoch", "rows"), GOLDEN)
def test_golden_vectors(n: int, seed: int, epoch: int, rows: list[int]) -> None:
    assert Permutation(n, seed=seed, epoch=epoch)[: len(rows)].tolist() == rows


def test_bijection_at_every_small_n() -> None:
    for n in range(1, 2001):
        assert np.array_equal(np.sort(Permutation(n, seed=n)[:]), np.arange(n)), n


@pytest.mark.parametrize("n", [2**k + d for k in (12, 16, 17, 18, 19) for d in (-1, 0, 1)])
def test_bijection_around_powers_of_two(n: int) -> None:
    p = Permutation(n, seed=3, epoch=1)
    rows = p[:]
    assert np.array_equal(np.bincount(rows, minlength=n), np.ones(n))
    assert np.array_equal(p.inverse(rows), np.arange(n))


@pytest.mark.parametrize("n", [2, 3, 5, 64, 1000])
def test_the_network_is_a_bijection_on_small_domains_too(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "SMALL", 0)
    p = Permutation(n, seed=3)
    assert sorted(p[:].tolist()) == list(range(n))
    assert p.inverse(p[:]).tolist() == list(range(n))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2**62), st.integers(0, 2**64 - 1), st.integers(0, 2**32), st.data())
def test_inverse_and_scalars_agree_with_arrays(n: int, seed: int, epoch: int, data: st.DataObject) -> None:
    p = Permutation(n, seed=seed, epoch=epoch)
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
    rows = p[positions]
    assert rows.dtype == np.int64
    assert [p[g] for g in positions] == rows.tolist()
    assert type(p[positions[0]]) is int
    assert p.inverse(rows).tolist() == positions
    assert p.inverse(int(rows[0])) == positions[0]


def test_shapes_and_kinds_of_indices() -> None:
    p = Permutation(100_000, seed=1)
    grid = np.arange(12, dtype=np.uint16).reshape(3, 4)
    assert p[grid].shape == (3, 4)
    assert p[grid].ravel().tolist() == p[:12].tolist()
    assert p[np.empty(0, np.int64)].tolist() == []
    assert p[99_990::3].size == 4
    assert len(p) == 100_000
    given = np.arange(5)
    p[given]
    assert given.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("n", [10, 100_000])
def test_positions_outside_are_refused(n: int) -> None:
    p = Permutation(n, seed=1)
    for bad in (-1, n, [0, n]):
        with pytest.raises(IndexError, match=f"0 … {n - 1}"):
            p[bad]
    with pytest.raises(TypeError, match="integers, not float64"):
        p[1.5]  # type: ignore[call-overload]
    with pytest.raises(SplitError, match="n must be in"):
        Permutation(0, seed=1)


def test_rows_past_the_end_begin_again() -> None:
    p = Permutation(5, seed=1)
    assert rows_at(np.arange(12), 5, p).tolist() == [*p[:].tolist(), *p[:].tolist(), *p[:2].tolist()]
    assert rows_at([3, 4, 5], 5, None).tolist() == [3, 4, 0]


# -- statistics (DESIGN section 13); each is shown to fail on a broken build below

N = 1 << 17
SEEDS = range(20)


def z_of_steps(rows: np.ndarray) -> float:
    """Consecutive rows: the share of rising steps against 1/2, and of small steps against their expectation."""
    gaps = np.abs(np.diff(rows))
    near = gaps < N // 64
    share = 2 / 64 - 1 / 64**2
    z_near = (near.mean() - share) / (share * (1 - share) / near.size) ** 0.5
    # rising steps of a random permutation have variance (n + 1) / 12
    z_rise = ((np.diff(rows) > 0).sum() - (N - 1) / 2) / ((N + 1) / 12) ** 0.5
    return float(max(abs(z_near), abs(z_rise)))


def z_of_low_bits(rows: np.ndarray) -> float:
    """Low bits of the position against low bits of the row: every pair of bits must agree half of the time."""
    g = np.arange(N)
    worst = 0.0
    for a, b in itertools.product(range(6), range(6)):
        same = ((g >> a) ^ (rows >> b)) & 1
        worst = max(worst, abs(float(same.mean()) - 0.5) / (0.25 / N) ** 0.5)
    return worst


def z_of_classes(rows: np.ndarray) -> float:
    """Classes per batch of 64 when the meta file is sorted by class: variance as when drawn at random."""
    labels = rows * 8 // N
    counts = np.stack([np.bincount(batch, minlength=8) for batch in labels.reshape(-1, 64)])
    chi = ((counts - 8) ** 2 / 8).sum()
    freedom = counts.shape[0] * 7
    return float(abs(chi - freedom) / (2 * freedom) ** 0.5)


def z_of_epochs(rows: np.ndarray, later: np.ndarray) -> float:
    """The same position in two epochs: near rows as seldom as by chance."""
    share = 2 / 64 - 1 / 64**2
    near = np.abs(rows - later) < N // 64
    return float(abs(near.mean() - share) / (share * (1 - share) / N) ** 0.5)


STATISTICS: list[Callable[[np.ndarray], float]] = [z_of_steps, z_of_low_bits, z_of_classes]


def worst_z(build: Callable[[int, int], np.ndarray]) -> float:
    """The largest |z| of all statistics over all seeds."""
    worst = 0.0
    for seed in SEEDS:
        rows, later = build(seed, 0), build(seed, 1)
        worst = max(worst, z_of_epochs(rows, later), *(statistic(rows) for statistic in STATISTICS))
    return worst


def test_the_order_looks_random() -> None:
    assert worst_z(lambda seed, epoch: Permutation(N, seed=seed, epoch=epoch)[:]) < 4


def test_the_statistics_fail_on_an_affine_map() -> None:
    assert worst_z(lambda seed, epoch: (np.arange(N) * (4001 + 2 * seed) + 977 * epoch) % N) > 20


def test_the_statistics_fail_on_two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "ROUNDS", 2)
    assert worst_z(lambda seed, epoch: Permutation(N, seed=seed, epoch=epoch)[:]) > 20


def test_the_statistics_fail_on_seed_plus_epoch() -> None:
    """Keyed by seed + epoch, epoch 1 of seed s is epoch 0 of seed s + 1: no run is a run of its own."""
    a = Permutation(N, seed=3, epoch=1)[:]
    assert z_of_epochs(a, Permutation(N, seed=4, epoch=0)[:]) < 5
    assert z_of_epochs(Permutation(N, seed=3 + 1)[:], Permutation(N, seed=4 + 0)[:]) > 20


@pytest.mark.parametrize(("n", "each"), [(2, 100), (3, 100), (4, 100), (5, 40), (6, 10)])
def test_all_orders_of_few_rows_are_alike_likely(n: int, each: int) -> None:
    counts = dict.fromkeys(itertools.permutations(range(n)), 0)
    for seed in range(each * len(counts)):
        counts[tuple(Permutation(n, seed=seed)[:].tolist())] += 1
    chi = sum((count - each) ** 2 / each for count in counts.values())
    freedom = len(counts) - 1
    # chi square of one degree of freedom has a heavy right tail: 4 more for n = 2
    assert abs(chi - freedom) < 4 * (2 * freedom) ** 0.5 + 4
