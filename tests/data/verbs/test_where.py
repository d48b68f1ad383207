from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.blocks import BlockOrder, Blocks
from data.errors import OptionError, SplitError
from data.meta import MetaFile
from data.order import Permutation, rows_at
from data.split import Split
from data.verbs.where import Course, Place, course_of, describe_row, describe_step, rows_in_step, where_row


def test_the_drawing() -> None:
    course = Course(n=11, global_batch=4, world_size=2, tail="mask")
    steps = [[[part.tolist() for part in rank] for rank in rows_in_step(step, course)] for step in range(3)]
    assert steps == [[[[0, 2]], [[1, 3]]], [[[4, 6]], [[5, 7]]], [[[8, 10]], [[9]]]]
    assert where_row(9, course) == [
        Place(epoch=0, position=9, step=2, rank=1, micro_batch=0, micro_batches=1, sample=0)
    ]
    assert course.steps_per_epoch == 3


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 80),
    global_batch=st.integers(1, 40),
    world_size=st.integers(1, 17),
    tail=st.sampled_from(["drop", "pad", "mask"]),
    micro_batch=st.none() | st.integers(1, 5),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_rows_and_steps_are_what_the_ranks_serve(
    n: int, global_batch: int, world_size: int, tail: str, micro_batch: int | None, epoch: int, data: st.DataObject
) -> None:
    order_for = data.draw(
        st.sampled_from(
            [
                lambda epoch: None,
                lambda epoch: Permutation(n, seed=3, epoch=epoch),
                lambda epoch: BlockOrder(np.array([0, n // 2, n]), seed=3, epoch=epoch, lanes=3),
            ]
        )
    )
    try:
        course = Course(n, global_batch, world_size, order_for, tail, micro_batch)
    except SplitError:
        return
    served: dict[int, list[Place]] = {row: [] for row in range(n)}
    for step in range(course.steps_per_epoch):
        found = rows_in_step(step, course, epoch=epoch)
        over_the_run = rows_in_step(step + epoch * course.steps_per_epoch, course)
        for rank in range(world_size):
            split = Split(n, global_batch, world_size, rank, tail, micro_batch)
            parts = split.micro_batches(step * global_batch)
            for number, part in enumerate(parts):
                rows = rows_at(part, n, order_for(epoch))[split.weights(part) > 0].tolist()
                assert rows == found[rank][number].tolist() == over_the_run[rank][number].tolist()
                for sample, row in enumerate(rows):
                    where = (step + epoch * course.steps_per_epoch, rank, number, len(parts), sample)
                    served[row].append(Place(epoch, int(part[sample]), *where))
    for row in range(n):
        assert sorted(where_row(row, course, epoch=epoch), key=lambda p: p.position) == sorted(
            served[row], key=lambda p: p.position
        )


def test_no_memory_and_no_time_for_many_rows() -> None:
    n = 10**12
    course = Course(n, 4096, 1000, lambda epoch: Permutation(n, seed=1, epoch=epoch))
    (place,) = where_row(123_456_789_012, course, epoch=5)
    assert Permutation(n, seed=1, epoch=5)[place.position] == 123_456_789_012
    rows = rows_in_step(place.step, course)
    assert rows[place.rank][place.micro_batch][place.sample] == 123_456_789_012


def test_what_is_told() -> None:
    course = Course(n=11, global_batch=4, world_size=2)
    assert describe_row(6, course, epoch=3) == [
        "row 6 in epoch 3: position 6, step 7 of the run (1 of the epoch's 2, from 0 on), rank 0 of 2, "
        "micro-batch 0 of 1, sample 1"
    ]
    assert describe_row(9, course) == [
        "row 9 in epoch 0: position 9, among the last 3, which tail=drop leaves out of this epoch"
    ]
    padded = Course(n=3, global_batch=8, world_size=2, tail="pad")
    assert [line.split(":")[1].split(",")[0] for line in describe_row(1, padded)] == [
        f" position {g}" for g in (1, 4, 7)
    ]
    assert describe_step(3, course) == [
        "step 3 of the run: epoch 1, step 1 of 2, positions 4 … 7",
        "  rank 0: 4 6",
        "  rank 1: 5 7",
    ]
    masked = Course(n=5, global_batch=4, world_size=2, tail="mask", micro_batch=1)
    assert describe_step(1, masked, epoch=0) == [
        "step 1 of the run: epoch 0, step 1 of 2, positions 4 … 4",
        "  rank 0: 4",
        "  rank 1: padding only",
    ]
    assert describe_step(0, masked)[1:3] == ["  rank 0 micro-batch 0: 0", "  rank 0 micro-batch 1: 2"]
    assert describe_step(0, Course(n=99, global_batch=40, world_size=2))[1].endswith(" 28 30 … (20 rows)")


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda c: where_row(11, c), "row 11: there are 11 rows, 0 … 10"),
        (lambda c: where_row(-1, c), "row -1: there are 11 rows"),
        (lambda c: rows_in_step(-1, c), "step -1: 0, 1, 2, …"),
        (lambda c: where_row(1, c, epoch=-1), "epoch -1: epochs count from 0"),
        (lambda c: rows_in_step(0, c, epoch=-1), "epoch -1: epochs count from 0"),
        (lambda c: rows_in_step(2, c, epoch=0), "step 2: an epoch has 2 steps, 0 … 1"),
    ],
)
def test_refusals(ask: Callable[[Course], object], told: str) -> None:
    with pytest.raises(OptionError, match=re.escape(told)):
        ask(Course(n=11, global_batch=4, world_size=2))


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda c: rows_in_step(6, c), "step 6: the run has 6 steps in 3 epochs, 0 … 5"),
        (lambda c: rows_in_step(0, c, epoch=3), "epoch 3: the run has 3 epochs, 0 … 2"),
        (lambda c: where_row(1, c, epoch=3), "epoch 3: the run has 3 epochs, 0 … 2"),
    ],
)
def test_a_run_has_an_end(ask: Callable[[Course], object], told: str) -> None:
    course = Course(n=11, global_batch=4, world_size=2, epochs=3)
    assert where_row(1, course, epoch=2)
    assert rows_in_step(5, course)
    with pytest.raises(OptionError, match=re.escape(told)):
        ask(course)


def test_numbers_that_give_no_epoch_are_refused() -> None:
    with pytest.raises(SplitError, match="an epoch without a single step"):
        Course(n=3, global_batch=4, world_size=2)


def test_the_course_of_a_meta_file(write: Callable[..., Path]) -> None:
    meta = MetaFile(write("".join(f"{row:04d}.png 0\n" for row in range(2000))))
    of = partial(course_of, meta, seed=5, global_batch=4, world_size=2)
    assert of().order_for(3)[:9].tolist() == Permutation(2000, seed=5, epoch=3)[:9].tolist()  # type: ignore[index]
    assert of(shuffle=False).order_for(3) is None
    assert (of(tail="pad", micro_batch=1).tail, of(tail="pad", micro_batch=1).micro_batch) == ("pad", 1)
    with pytest.raises(OptionError, match="order 'column': legal are row, block"):
        of(order="column")
    with pytest.raises(SplitError, match="take order=row"):
        of(order="block")
    course = of(order=Blocks(lanes=3, unit_bytes=4096))
    starts = meta.unit_starts(4096)
    assert course.order_for(1)[:].tolist() == BlockOrder(starts, seed=5, epoch=1, lanes=3)[:].tolist()  # type: ignore[index]
