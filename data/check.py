"""`data check`: is this meta file, or this tree of class folders, good? Needs numpy only."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .folder import check_folder, folder_meta
from .meta import MetaFile, Source, check_ends
from .split import Split

Classes = int | Sequence[str] | str | None


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
) -> MetaFile:
    """Checks every row (the images themselves are not opened); raises a DataError with the first 20 problems."""
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        meta = folder_meta(source, classes=classes, allow_outside_root=allow_outside_root)
    else:
        meta = MetaFile(source, root=root, classes=classes, allow_outside_root=allow_outside_root)
    meta.check_all()
    return meta
