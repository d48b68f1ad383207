"""The batch arithmetic of a run, from its settings and the number of rows alone: what `plan` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankrun.errors import OptionError

if TYPE_CHECKING:
    from rankrun.config import Settings

_CHUNK_BYTES = 1 << 20
_COUNTED_BYTES = 256 << 20  # a larger file is estimated from its beginning


@dataclass(frozen=True)
class Rows:
    """A number of rows; `exact` is False where it was estimated from the size of the files."""

    count: int
    exact: bool

    def __str__(self) -> str:
        return f"{'' if self.exact else '~'}{self.count:,}"


def count_rows(sources: Sequence[str]) -> Rows:
    """The rows of meta files, or the files in the class folders of a folder."""
    total, exact = 0, True
    for source in sources:
        path = Path(source)
        if path.is_dir():
            total += sum(1 for file in path.glob("[!.]*/**/*") if file.suffix and not file.name.startswith("."))
            exact = False  # not every file need be an image
            continue
        size = path.stat().st_size
        lines, read_bytes, last = 0, 0, b"\n"
        with open(path, "rb") as file:
            while read_bytes < _COUNTED_BYTES and (chunk := file.read(_CHUNK_BYTES)):
                lines += chunk.count(b"\n")
                read_bytes += len(chunk)
                last = chunk[-1:]
        if read_bytes < size:
            total, exact = total + round(lines * size / read_bytes), False
        else:
            total += lines + (last != b"\n")
    return Rows(total, exact)


def shares(global_batch: int, world_size: int, micro_batch: int | None) -> str:
    """How a global batch is cut: `64 = 2 ranks x 32, each in 2 micro-batches of 16`."""
    least, more = divmod(global_batch, world_size)
    share = f"{least}" if more == 0 else f"{least} or {least + 1}"
    text = f"{global_batch:,} = {world_size} ranks x {share}"
    largest = least + (more > 0)
    if micro_batch is None or micro_batch >= largest:
        return text
    return f"{text}, each in {-(-largest // micro_batch)} micro-batches of at most {micro_batch}"


def describe(settings: Settings, nproc: int, folder: Path) -> list[str]:
    """The lines of `plan`. OptionError (exit 2) where no step would be made."""
    data, train = settings.data, settings.train
    sources = [data.train] if isinstance(data.train, str) else list(data.train)
    rows = count_rows(sources)
    steps, left_out = divmod(rows.count, train.global_batch)
    if steps == 0:
        raise OptionError(
            f"{', '.join(sources)} has {rows} rows, fewer than train.global_batch={train.global_batch}: an epoch would "
            f"have no step; use train.global_batch={rows.count} or less"
        )
    total = steps * train.epochs
    every = settings.checkpoint.every_steps
    lines = [
        f"run folder       {folder}",
        f"ranks            {nproc} on this machine",
        f"data             {data.mode}: {_MODES[data.mode]}",
        f"training rows    {rows} in {', '.join(sources)}",
        f"global batch     {shares(train.global_batch, nproc, train.micro_batch)}",
        f"steps per epoch  {steps:,}, {left_out:,} rows of each epoch left out (others each time)",
        f"epochs           {train.epochs:,}, {total:,} steps in all, {total * train.global_batch:,} samples",
        f"checkpoints      after every epoch{f' and every {every:,} steps' if every else ''}",
    ]
    if data.val is not None:
        val = [data.val] if isinstance(data.val, str) else list(data.val)
        every_epoch = f"after every {_th(settings.eval.every_epochs)}epoch"
        lines.append(f"evaluation rows  {count_rows(val)} in {', '.join(val)}, {every_epoch}")
    return lines


def _th(count: int) -> str:
    return "" if count == 1 else f"{count}th "


_MODES = {
    "rank": "every rank holds only its own rows of an epoch",
    "indexed": "every rank reaches all rows, a sampler deals the positions",
}
