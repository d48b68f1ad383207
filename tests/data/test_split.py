from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError, SplitError
from data.split import Split


def drawing(tail: str) -> list[list[list[int]]]:
    return [
        [np.concatenate(Split(10, 4, 3, rank, tail).micro_batches(p)).tolist() for rank in range(3)]
        for p in range(0, Split(10, 4, 3, 0, tail).cut, 4)
    ]


def test_the_drawing() -> None:
    assert drawing("mask") == [[[0, 3], [1], [2]], [[6], [4, 7], [5]], [[9], [10], [8]]]
    assert drawing("drop") == [[[0, 3], [1], [2]], [[6], [4, 7], [5]]]
    assert drawing("pad") == [[[0, 3], [1], [2]], [[6], [4, 7], [5]], [[9], [10], [8, 11]]]


@settings(max_examples=300, deadline=None)
@given(
    n=st.integers(1, 400),
    global_batch=st.integers(1, 60),
    world_size=st.integers(1, 17),
    tail=st.sampled_from(["drop", "pad", "mask"]),
    micro_batch=st.none() | st.integers(1, 9),
)
def test_every_position_once_and_every_rank_in_every_step(
    n: int, global_batch: int, world_size: int, tail: str, micro_batch: int | None
) -> None:
    try:
        splits = [Split(n, global_batch, world_size, rank, tail, micro_batch) for rank in range(world_size)]
    except SplitError:
        assert global_batch < world_size or (tail == "drop" and n < global_batch)
        return
    one = splits[0]
    assert one.cut == {"drop": n // global_batch, "pad": -(-n // global_batch)}.get(tail, 0) * global_batch or n
    served: list[int] = []
    for step in range(one.steps):
        position = step * global_batch
        weight = 0.0
        for split in splits:
            parts = split.micro_batches(position)
            assert parts
            assert all(part.size for part in parts)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            assert micro_batch is None or max(map(len, parts)) <= micro_batch
            mine = np.concatenate(parts)
            assert (mine % world_size == split.rank).all()
            assert (np.diff(mine) == world_size).all()
            weights = split.weights(mine)
            weight += float(weights.sum())
            served += mine[weights > 0].tolist()
        assert weight == one.step_weight(position)
        assert one.after(position) == min(position + global_batch, one.cut)
    assert sorted(served) == list(range(one.cut))


def test_the_steps_do_not_depend_on_the_world() -> None:
    def steps(world_size: int) -> list[list[int]]:
        ranks = [Split(103, 10, world_size, rank, "mask") for rank in range(world_size)]
        found = [
            sorted(g for split in ranks for part in split.micro_batches(p) for g in part.tolist() if g < 103)
            for p in range(0, 103, 10)
        ]
        return found

    assert steps(1) == steps(3) == steps(7) == steps(10)


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ((10, 2, 3, 0), "a global batch of 2 is smaller than the 3 ranks"),
        ((3, 4, 2, 0), "an epoch without a single step: 3 rows, but a global batch of 4"),
        ((10, 4, 2, 2), "rank 2 of world size 2: rank is 0 … 1"),
        ((10, 4, 0, 0), "rank 0 of world size 0: a world has at least 1 rank"),
        ((10, 4, 2, 0, "keep"), "tail 'keep': legal are drop, pad, mask"),
        ((10, 4, 2, 0, "drop", 0), "micro_batch 0 is not"),
    ],
)
def test_refusals(numbers: tuple[object, ...], told: str) -> None:
    with pytest.raises(SplitError, match=told) as caught:
        Split(*numbers)  # type: ignore[arg-type]
    assert isinstance(caught.value, DataError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("start", "fine"), [(0, True), (4, True), (8, True), (10, True), (3, False), (12, False), (-4, False)]
)
def test_starts_lie_between_steps(start: int, fine: bool) -> None:
    split = Split(10, 4, 2, 0, "mask")
    if fine:
        split.check_start(start)
    else:
        with pytest.raises(SplitError, match=f"start {start} is no place between steps"):
            split.check_start(start)
