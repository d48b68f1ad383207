from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.audit import EpochAudit, add_sums, expected_sums
from data.blocks import BlockOrder
from data.order import Permutation, rows_at


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(0, 700), st.booleans(), st.integers(1, 5))
def test_running_sums_of_all_ranks_meet_the_closed_form(n: int, cut: int, shuffle: bool, world_size: int) -> None:
    order = Permutation(n, seed=5, epoch=2) if shuffle else None
    total = (0, 0, 0)
    for rank in range(world_size):
        audit = EpochAudit()
        for row in rows_at(np.arange(rank, cut, world_size), n, order):
            audit.add(np.array([row]))
        total = add_sums(total, audit.sums)
    assert total == expected_sums(n, seed=5, epoch=2, cut=cut, shuffle=shuffle)


def test_a_repeated_and_a_missing_row_are_seen() -> None:
    right = expected_sums(100, seed=1, epoch=0, cut=100)
    audit = EpochAudit()
    audit.add(np.array([*range(99), 0]))
    assert audit.sums[0] == right[0]
    assert audit.sums != right
    swapped = EpochAudit()  # 1 + 4 = 2 + 3: only the squares tell
    swapped.add(np.array([r if r not in (1, 4) else {1: 2, 4: 3}[r] for r in range(100)]))
    assert swapped.sums[:2] == right[:2]
    assert swapped.sums[2] != right[2]


def test_sums_wrap_and_fit_an_int64_tensor() -> None:
    n = 10**9
    sums = expected_sums(n, seed=1, epoch=0, cut=n)
    assert sums[2] % 2**64 == (n * (n - 1) * (2 * n - 1) // 6) % 2**64
    torch.tensor(expected_sums(2**62, seed=1, epoch=0, cut=2**62))
    halves = add_sums(expected_sums(n, seed=1, epoch=0, cut=1000), (-1, -1, -1))
    assert halves[0] == 999


def test_sums_go_on_from_a_checkpoint() -> None:
    first = EpochAudit()
    first.add(np.arange(10))
    second = EpochAudit(list(first.sums))
    second.add(np.arange(10, 20))
    assert second.sums == expected_sums(20, seed=0, epoch=0, cut=20)


@pytest.mark.parametrize("cut", [7, 93, 100, 193])
def test_the_shorter_way_is_the_same(cut: int) -> None:
    order = Permutation(100, seed=4, epoch=1)
    audit = EpochAudit()
    audit.add(rows_at(np.arange(cut), 100, order))
    assert expected_sums(100, seed=4, epoch=1, cut=cut) == audit.sums


@pytest.mark.parametrize("cut", [0, 7, 93, 100, 193])
def test_another_order_has_sums_of_its_own(cut: int) -> None:
    order = BlockOrder(np.arange(0, 101, 10), seed=4, lanes=3)
    audit = EpochAudit()
    audit.add(rows_at(np.arange(cut), 100, order))
    assert expected_sums(100, seed=4, epoch=0, cut=cut, order=order) == audit.sums
    assert (expected_sums(100, seed=4, epoch=0, cut=cut) == audit.sums) == (cut % 100 == 0)
    assert expected_sums(100, seed=4, epoch=0, cut=cut, shuffle=False, order=order) == audit.sums
