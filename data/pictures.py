"""What a trained model is shown: an image, a folder or a list, as rows like those of training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .errors import RowError
from .folder import any_folder_meta, in_memory, is_image
from .lines import WHITESPACE, LineFile
from .meta import MetaFile


def open_pictures(
    source: Path, *, classes: Sequence[str], root: Path | None = None, allow_outside_root: bool = False
) -> tuple[MetaFile, bool]:
    """The images of a source as a meta file that was checked, and whether its labels are known.

    In a list all lines are `path label`, or all are an image's `path` alone; paths are relative to `root`, by default
    the list's folder. An image that is given by itself may lie anywhere. Where labels are not known they are 0.
    """
    if source.is_dir():
        return any_folder_meta(source, classes=classes, allow_outside_root=allow_outside_root)
    if is_image(source):
        line = os.fsencode(source.name) + b" 0\n"
        return in_memory(source, [line], classes, root=source.parent, allow_outside_root=True), False
    file = LineFile(source)
    lines = [file.read(row).strip(WHITESPACE) for row in range(file.rows)]
    bare = is_image(os.fsdecode(lines[0]))
    if not bare:
        meta = MetaFile(source, root=root, classes=classes, allow_outside_root=allow_outside_root)
    else:
        for number, line in enumerate(lines, 1):
            if not is_image(os.fsdecode(line)):
                raise RowError(
                    f"{source}:{number}  {os.fsdecode(line)!r} is no image's name, but the first line is: a list is of "
                    "one kind, 'path label' or 'path'"
                )
        place = source.parent if root is None else root
        meta = in_memory(
            source, [line + b" 0\n" for line in lines], classes, root=place, allow_outside_root=allow_outside_root
        )
    meta.check_all()
    return meta, not bare
