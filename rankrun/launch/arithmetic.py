"""The batch arithmetic of a run, from its settings and what the data package told of the rows: what `plan` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankrun.errors import OptionError
from rankrun.launch.reading import Facts, describe_reading

if TYPE_CHECKING:
    from rankrun.config import Settings


def shares(global_batch: int, world_size: int, micro_batch: int | None) -> str:
    """How a global batch is cut: `64 = 2 ranks x 32, each in 2 micro-batches of 16`."""
    least, more = divmod(global_batch, world_size)
    share = f"{least}" if more == 0 else f"{least} or {least + 1}"
    text = f"{global_batch:,} = {_counted(world_size, 'rank')} x {share}"
    largest = least + (more > 0)
    if micro_batch is None or micro_batch >= largest:
        return text
    return f"{text}, each in {-(-largest // micro_batch)} micro-batches of at most {micro_batch}"


def describe(settings: Settings, nproc: int, nodes: int, folder: Path, told: Sequence[Facts]) -> list[str]:
    """The lines of `plan`, from what was told of the training and the evaluation data.

    OptionError (exit 2) where no step would be made.
    """
    data, train = settings.data, settings.train
    rows, world_size = told[0], nproc * nodes
    steps, left_out = divmod(rows.rows, train.global_batch)
    about = "" if rows.exact else "~"
    if steps == 0:
        raise OptionError(
            f"{_named(data.train)} has {about}{_counted(rows.rows, 'row')}, fewer than "
            f"train.global_batch={train.global_batch}: an epoch would have no step; "
            f"use train.global_batch={rows.rows} or less"
        )
    total = steps * train.epochs
    every = settings.checkpoint.every_steps
    machines = "on this machine" if nodes == 1 else f"on {nodes} machines, {nproc} on each"
    lines = [
        f"run folder       {folder}",
        f"ranks            {world_size} {machines}",
        *_source("training rows", rows, data.train),
    ]
    if len(told) > 1 and data.val is not None:
        every_epoch = f", after every {_th(settings.eval.every_epochs)}epoch"
        lines += _source("evaluation rows", told[1], data.val, every_epoch)
    left = f"{_counted(left_out, 'row')} of each epoch left out (others each time)"
    if not rows.exact:
        left = "the rows are estimated"
    lines += [
        f"global batch     {shares(train.global_batch, world_size, train.micro_batch)}",
        f"steps per epoch  {about}{steps:,}, {left}",
        f"epochs           {train.epochs:,}, {about}{_counted(total, 'step')} in all, "
        f"{about}{_counted(total * train.global_batch, 'sample')}",
        f"checkpoints      after every epoch{f' and every {every:,} steps' if every else ''}",
    ]
    return lines + describe_reading(rows, world_size, nproc, data.mode, data.order, data.read)


def _named(source: str | list[str]) -> str:
    sources = [source] if isinstance(source, str) else source
    return ", ".join(sources) if len(sources) <= 3 else f"{sources[0]}, … {sources[-1]} ({len(sources)} files)"


def _source(title: str, facts: Facts, source: str | list[str], when: str = "") -> list[str]:
    lines = [f"{title:17}{facts.counted} in {_named(source)}{when}"]
    guess = facts.told.removeprefix(f"{source}: ") if isinstance(source, str) else facts.told
    return [*lines, *textwrap.wrap(f"read as {guess}", 79, initial_indent=" " * 17, subsequent_indent=" " * 19)]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _th(count: int) -> str:
    return "" if count == 1 else f"{count}th "
