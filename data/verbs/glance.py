"""What a launch looks at in well under a second: both ends of meta files, class folders, the head of a tar."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from operator import or_
from pathlib import Path
from typing import Any, NamedTuple

from ..blocks import choose_blocks
from ..cost import Cost, cost
from ..errors import OutsideRootError, RowError, SplitError, counted
from ..files import Source, is_listed, look, paths_of, refuse_of_listed, tell
from ..index.census import SMALL_BYTES, trusted
from ..index.ends import check_ends
from ..sources.folder import check_folder, doubt_about, is_image
from ..split import Split

# A file without an index is counted (0.12 s for so much), of a larger one the rows are estimated from its beginning.
COUNTED_BYTES, ESTIMATED_FROM_BYTES = 256 << 20, 64 << 20
COUNTED_FILES = 20_000
COUNTED_SAMPLES = 1_000
LABEL_BYTES = 4  # of a listed row: a blank, its label, a line feed
TYPICAL_LINE_BYTES = 40


class Found(NamedTuple):
    told: str
    rows: int
    exact: bool
    size_bytes: int
    indexed: bool


class Glance(NamedTuple):
    """told: how the source is read, in words. rows: their number, an estimate where not `exact`. size_bytes: of their
    lines. indexed: whether the next opening needs to read no file whole. costs: what an epoch costs a rank, by order
    and read ("row shard", …); "block …" only where the files are large enough for that order."""

    told: str
    rows: int
    exact: bool
    size_bytes: int
    indexed: bool
    costs: dict[str, Cost]


def glance(
    source: Source,
    *,
    global_batch: int | None = None,
    world_size: int = 1,
    tail: str = "drop",
    order: str = "row",
    cache: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    **reading: Any,
) -> Glance:
    """Checks the first and last 1,000 lines of every file, or what a source that is no file of lines begins with, and
    that an epoch has a step.

    `cache`, `root` and what is in `reading` are MetaFile's. Raises a DataError with everything that was found; writes
    nothing, and reads no large file whole.
    """
    paths = paths_of(source)
    if is_listed(paths):
        refuse_of_listed(paths, root, reading.get("format"), reading.get("columns"))
        found = _listed(paths, reading.get("classes"), reading.get("columns"))
    else:
        found = _lines(paths, cache, reading)
    told, rows, exact, size, indexed = found
    # an estimate decides nothing that is near
    if global_batch is not None and (exact or rows < global_batch // 2):
        Split(rows, global_batch, world_size, 0, tail)
    orders: dict[str, int | None] = {"row": None}
    try:
        orders["block"] = choose_blocks(size).lanes
    except SplitError:
        if order == "block":
            raise
    costs = {
        f"{name} {read}": cost(rows, size, world_size=world_size, read=read, lanes=lanes)
        for name, lanes in orders.items()
        for read in ("shard", "direct")
    }
    return Glance(told, rows, exact, size, indexed, costs)


def _lines(paths: Sequence[Path], cache: str | os.PathLike[str] | None, reading: dict[str, Any]) -> Found:
    forms = [look(path, format=reading.get("format"), columns=reading.get("columns")) for path in paths]
    facts = [path.stat() for path in paths]
    have_index = [trusted(path, fact, cache) is not None for path, fact in zip(paths, facts, strict=True)]
    small = [fact.st_size <= COUNTED_BYTES for fact in facts]
    # row numbers to leave out must be those of rows that there are
    exact = reading.get("exclude") is not None or all(map(or_, have_index, small))
    try:
        rows = check_ends(paths, cache=cache, most_bytes=None if exact else ESTIMATED_FROM_BYTES, **reading)
    except (RowError, OutsideRootError):
        if exact:
            raise
        rows = check_ends(paths, cache=cache, **reading)  # for the numbers of the lines
    indexed = all(has or fact.st_size < SMALL_BYTES for has, fact in zip(have_index, facts, strict=True))
    return Found(tell(paths, forms), rows, exact, sum(fact.st_size for fact in facts), indexed)


def _listed(paths: Sequence[Path], classes: Any, columns: Any) -> Found:
    """Of a source that is no file of lines; what is large is estimated from its beginning."""
    if paths[0].is_dir():
        check_folder(paths[0], classes=classes)
        return _folder(paths[0])
    if paths[0].suffix.lower() == ".parquet":
        from ..sources.parquet import count_rows

        rows = count_rows(paths, columns=columns)
        return Found(f"{paths[0]}: Parquet", rows, True, rows * TYPICAL_LINE_BYTES, True)
    return _tars(paths, classes)


def _folder(root: Path) -> Found:
    """So many files of class folders are counted; the other folders are taken for alike."""
    folders = [entry for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")]
    files = text = looked = 0
    for folder in folders:
        if files >= COUNTED_FILES:
            break
        looked += 1
        for here, inner, names in os.walk(folder.path):
            inner[:] = [name for name in inner if not name.startswith(".")]
            images = [name for name in names if is_image(name) and not name.startswith(".")]
            files += len(images)
            text += sum(len(os.path.relpath(here, root)) + 1 + len(name) + LABEL_BYTES for name in images)
    share = len(folders) / looked
    doubt = doubt_about(root, sorted(folder.name for folder in folders))
    told = f"{root}: {counted(len(folders), 'class folder')}{doubt}"
    return Found(told, round(files * share), looked == len(folders), round(text * share), True)


def _tars(paths: Sequence[Path], classes: Any) -> Found:
    """The first samples of the first tar are read; the rest is taken for alike."""
    from ..sources.tars import list_tars, samples

    found = list(islice(samples(paths[0], Counter()), COUNTED_SAMPLES))
    if not found or (len(found) < COUNTED_SAMPLES and len(paths) == 1):
        listing = list_tars(paths, classes=classes)  # which says what is wrong where there is nothing
        text = b"".join(listing.text())
        return Found(f"{paths[0]}: {listing.told}", text.count(b"\n"), True, len(text), True)
    size = sum(path.stat().st_size for path in paths)
    last = found[-1].image
    rows = round(size / ((last.offset + last.size) / len(found)))
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    line = len(paths[0].name) + len("@0000000000:000000 ") + LABEL_BYTES
    return Found(f"{paths[0]}{more}: an image and a label by name", rows, False, rows * line, True)
