from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

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
    assert Permutation(np.int64(100_000), seed=np.int64(1))[np.int64(5)] == p[5]  # type: ignore[arg-type]
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
    assert rows_at(np.int64(7), 5, p) == p[2]
    assert rows_at([[-1, 1], [2, 8]], 5, p).tolist() == [[p[4], p[1]], [p[2], p[3]]]
    assert rows_at([], 5, p).tolist() == rows_at(range(3, 3), 5, p).tolist() == []


def test_rows_at_leaves_what_it_was_given() -> None:
    given = np.arange(5)
    for p in (None, Permutation(5, seed=1)):
        rows = rows_at(given, 5, p)
        rows[:] = 9
        assert given.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("n", [100, 200_000])
def test_a_range_of_positions_costs_its_rows_alone(n: int) -> None:
    """Positions of a rank are no second array, and what a walk needs at a time does not grow."""
    p = Permutation(n, seed=1)
    assert rows_at(range(3, 2 * n, 7), n, p).tolist() == rows_at(np.arange(3, 2 * n, 7), n, p).tolist()
    wide = Permutation(10**9, seed=1)
    tracemalloc.start()
    rows = rows_at(range(3, 8 * 10**6, 4), 10**9, wide)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows.nbytes + 4e6


def test_two_threads_share_an_order() -> None:
    p = Permutation(10**6, seed=1)
    whole = p[:]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda first: p[first::8], range(8)))
    assert all(np.array_equal(part, whole[first::8]) for first, part in enumerate(parts))
