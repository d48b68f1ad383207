"""Which step and rank sees a row, and which rows were in a step: arithmetic, at no cost that grows with the file.

    Course(n=11, global_batch=4, world_size=2, tail="mask"), rows in the order of the file
    step 0   positions 0 1 2 3     rank 0: rows 0 2      rank 1: rows 1 3
    step 1   positions 4 5 6 7     rank 0: rows 4 6      rank 1: rows 5 7
    step 2   positions 8 9 10      rank 0: rows 8 10     rank 1: row  9        row 9 is at position 9: step 2, rank 1

Steps, epochs, ranks and micro-batches count from 0, steps over the whole run as in the run folder's audit. Which step
a row is in doesn't depend on the world size; which rank of that step, on the world size at that time alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..blocks import BlockOrder, Blocks, choose_blocks
from ..errors import OptionError, counted
from ..meta import MetaFile
from ..order import Order, Permutation, Rows, rows_at
from ..split import Split

ORDERS = ("row", "block")
SHOWN = 16  # rows of one micro-batch that are written out


@dataclass(frozen=True)
class Course:
    """The numbers that decide who serves what; `order_for(epoch)` is None for the file's own order. Of a run of
    `epochs`, where that is known, there are no others.

    Raises SplitError where the numbers give no epoch.
    """

    n: int
    global_batch: int
    world_size: int
    order_for: Callable[[int], Order | None] = lambda epoch: None
    tail: str = "drop"
    micro_batch: int | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        self.split(0)

    def split(self, rank: int) -> Split:
        return Split(self.n, self.global_batch, self.world_size, rank, self.tail, self.micro_batch)

    @property
    def steps_per_epoch(self) -> int:
        return self.split(0).steps


@dataclass(frozen=True)
class Place:
    """Where one position of an epoch is served: `step` of the run, `rank`, `micro_batch` of `micro_batches`, and
    `sample` in it."""

    epoch: int
    position: int
    step: int
    rank: int
    micro_batch: int
    micro_batches: int
    sample: int


def course_of(
    meta: MetaFile,
    *,
    seed: int,
    global_batch: int,
    world_size: int,
    order: str | Blocks = "row",
    tail: str = "drop",
    micro_batch: int | None = None,
    shuffle: bool = True,
    epochs: int | None = None,
) -> Course:
    """The course of a run over a meta file. Raises OptionError and SplitError."""

    def order_for(epoch: int) -> Order | None:
        if not shuffle:
            return None
        if blocks is None:
            return Permutation(meta.n, seed=seed, epoch=epoch)
        return BlockOrder(meta.unit_starts(blocks.unit_bytes), seed=seed, epoch=epoch, lanes=blocks.lanes)

    if isinstance(order, str) and order not in ORDERS:
        raise OptionError(f"order {order!r}: legal are {', '.join(ORDERS)} (data.order)")
    blocks = order if isinstance(order, Blocks) else choose_blocks(meta.size_bytes) if order == "block" else None
    return Course(meta.n, global_batch, world_size, order_for, tail, micro_batch, epochs)


def where_row(row: int, course: Course, *, epoch: int = 0) -> list[Place]:
    """Where a row is served in an epoch: once, or not at all (in a dropped tail), or again (padding repeats rows).

    Raises OptionError for a row that there is not.
    """
    _check_epoch(epoch, course)
    if not 0 <= row < course.n:
        raise OptionError(f"row {row}: there are {counted(course.n, 'row')}, 0 … {course.n - 1}")
    cut = course.split(0).cut
    return [_place(position, epoch, course) for position in range(_position(row, epoch, course), cut, course.n)]


def rows_in_step(step: int, course: Course, *, epoch: int | None = None) -> list[list[Rows]]:
    """The rows of a step of the run (of an epoch, where one is given): per rank, per micro-batch, as they are served.

    Padding of tail "mask" is left out. Raises OptionError for a step that there is not.
    """
    epoch, within = _epoch_of(step, course, epoch)
    order = course.order_for(epoch)
    position = within * course.global_batch
    found = []
    for rank in range(course.world_size):
        split = course.split(rank)
        parts = split.micro_batches(position)
        found.append([rows_at(part[part < split.cut], course.n, order) for part in parts])
    return found


def describe_row(row: int, course: Course, *, epoch: int = 0) -> list[str]:
    """One line per place at which a row is served in an epoch."""
    places = where_row(row, course, epoch=epoch)
    if not places:
        position = _position(row, epoch, course)
        left = course.n - course.split(0).cut
        return [
            f"row {row} in epoch {epoch}: position {position}, among the last {left}, which tail=drop leaves out of "
            "this epoch"
        ]
    first = epoch * course.steps_per_epoch
    return [
        f"row {row} in epoch {epoch}: position {place.position}, step {place.step} of the run "
        f"({place.step - first} of the epoch's {course.steps_per_epoch}, from 0 on), rank {place.rank} of "
        f"{course.world_size}, micro-batch {place.micro_batch} of {place.micro_batches}, sample {place.sample}"
        for place in places
    ]


def describe_step(step: int, course: Course, *, epoch: int | None = None) -> list[str]:
    """What a step consists of: one line for the step, then one per rank and micro-batch."""
    ranks = rows_in_step(step, course, epoch=epoch)
    epoch, within = _epoch_of(step, course, epoch)
    split = course.split(0)
    position = within * course.global_batch
    lines = [
        f"step {epoch * course.steps_per_epoch + within} of the run: epoch {epoch}, step {within} of "
        f"{course.steps_per_epoch}, positions {position} … {split.after(position) - 1}"
    ]
    for rank, parts in enumerate(ranks):
        for number, rows in enumerate(parts):
            named = f"  rank {rank}" + (f" micro-batch {number}" if len(parts) > 1 else "")
            shown = " ".join(map(str, rows[:SHOWN].tolist()))
            more = f" … ({rows.size} rows)" if rows.size > SHOWN else ""
            lines.append(f"{named}: {shown}{more}" if rows.size else f"{named}: padding only")
    return lines


def _position(row: int, epoch: int, course: Course) -> int:
    """The first position of a row in an epoch, dropped or not."""
    order = course.order_for(epoch)
    return row if order is None else order.inverse(row)


def _place(position: int, epoch: int, course: Course) -> Place:
    within = position // course.global_batch
    rank = position % course.world_size
    parts = course.split(rank).micro_batches(within * course.global_batch)
    number, sample = next(
        (number, int(np.searchsorted(part, position))) for number, part in enumerate(parts) if position in part
    )
    step = epoch * course.steps_per_epoch + within
    return Place(epoch, position, step, rank, number, len(parts), sample)


def _epoch_of(step: int, course: Course, epoch: int | None) -> tuple[int, int]:
    """(epoch, step within it)."""
    _check_epoch(epoch or 0, course)
    per_epoch = course.steps_per_epoch
    if step < 0 or (epoch is not None and step >= per_epoch):
        told = "0, 1, 2, …" if epoch is None else f"an epoch has {counted(per_epoch, 'step')}, 0 … {per_epoch - 1}"
        raise OptionError(f"step {step}: {told}")
    if course.epochs is not None and epoch is None and step >= (steps := course.epochs * per_epoch):
        epochs = counted(course.epochs, "epoch")
        raise OptionError(f"step {step}: the run has {counted(steps, 'step')} in {epochs}, 0 … {steps - 1}")
    return divmod(step, per_epoch) if epoch is None else (epoch, step)


def _check_epoch(epoch: int, course: Course) -> None:
    if epoch < 0:
        raise OptionError(f"epoch {epoch}: epochs count from 0")
    if course.epochs is not None and epoch >= course.epochs:
        raise OptionError(f"epoch {epoch}: the run has {counted(course.epochs, 'epoch')}, 0 … {course.epochs - 1}")
