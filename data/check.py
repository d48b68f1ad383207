"""`data check`: is this meta file, or this tree of class folders, good? Needs numpy only, but to decode images."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from .errors import ImageError, OutsideRootError
from .folder import check_folder, folder_meta
from .meta import MetaFile, Source, check_ends
from .split import Split

Classes = int | Sequence[str] | str | None
Rows = list[tuple[int, bytes]]  # (row, its line)

# A network's file system answers many at once. On a local disk threads only cost: 300,000 files took 2.6 s with one,
# 5 s with 8, 9 s with 32, which wait for the interpreter's lock.
STAT_THREADS = 8
ROWS_AT_ONCE = 64


def check_head(
    source: Source,
    *,
    classes: Classes = None,
    allow_outside_root: bool = False,
    global_batch: int | None = None,
    world_size: int = 1,
    tail: str = "drop",
) -> int | None:
    """What a launch checks, in well under a second: the first and last 1,000 lines, or the class folders.

    With a global batch it is also made sure that an epoch has a step. Returns the number of rows, for class folders
    None. Raises a DataError with everything that was found.
    """
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        check_folder(source, classes=classes)
        return None
    rows = check_ends(source, classes=classes, allow_outside_root=allow_outside_root)
    if global_batch is not None:
        Split(rows, global_batch, world_size, 0, tail)
    return rows


def check_whole(
    source: Source,
    *,
    root: str | None = None,
    classes: Classes = None,
    allow_outside_root: bool = False,
    decode: bool = False,
) -> MetaFile:
    """Checks every row, and then every image: that it is there, and with `decode` that it can be decoded.

    Writes nothing. Raises a DataError with the first 20 problems.
    """
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        meta = folder_meta(source, classes=classes, allow_outside_root=allow_outside_root)
    else:
        meta = MetaFile(source, root=root, classes=classes, allow_outside_root=allow_outside_root)
    meta.check_all()
    check_images(meta, decode=decode)
    return meta


def check_images(meta: MetaFile, *, decode: bool = False) -> None:
    """Looks for the image of every row, or decodes it; raises ImageError with all that are not as they should be."""
    look = _decoder(meta) if decode else _finder(meta)

    def look_at(rows: Rows) -> list[str]:
        return [problem for row, line in rows if (problem := look(row, line)) is not None]

    problems: list[str] = []
    threads = os.cpu_count() if decode else STAT_THREADS
    # warnings are the process's: the decoder's own silence ends in one thread while another still decodes
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")
        for batches in _batches(meta):
            for found in pool.map(look_at, batches):
                problems += found
    if problems:
        raise ImageError(*problems)


def _batches(meta: MetaFile) -> Iterator[list[Rows]]:
    """All rows, a few for each task, and the tasks of one chunk of the file at a time."""
    for first, text, starts, stops in meta.chunks():
        whole = text.tobytes()
        rows = [
            (first + index, whole[start:stop])
            for index, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True))
        ]
        yield [rows[at : at + ROWS_AT_ONCE] for at in range(0, len(rows), ROWS_AT_ONCE)]


def _finder(meta: MetaFile) -> Callable[[int, bytes], str | None]:
    def look(row: int, line: bytes) -> str | None:
        try:
            facts = os.stat(os.path.join(meta.root_of(row), meta.parse(row, line)[0]))
        except OSError as error:
            return f"{meta.place(row)}: {error.strerror}"
        if not stat.S_ISREG(facts.st_mode):
            return f"{meta.place(row)}: no regular file"
        return None if facts.st_size else f"{meta.place(row)}: the file has zero bytes"

    return look


def _decoder(meta: MetaFile) -> Callable[[int, bytes], str | None]:
    from .decode import ImageDecoder, UnreadableImage, resolve_decoder
    from .sampling import SampleReader

    reader = SampleReader(meta, seed=0, transform=None, decoder=ImageDecoder(resolve_decoder().name))

    def look(row: int, line: bytes) -> str | None:
        try:
            reader.pixels(row, line)
        except (UnreadableImage, OutsideRootError) as error:
            return str(error)
        return None

    return look
