"""What a trained model is shown: an image, a folder or a list, as rows like those of training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .errors import OptionError
from .formats.classes import Classes
from .meta import MetaFile
from .sources.folder import any_folder_meta, in_memory, is_image


def open_pictures(
    source: Path, *, classes: Classes | Sequence[str], root: Path | None = None, allow_outside_root: bool = False
) -> tuple[MetaFile, bool]:
    """The images of a source as a meta file that was checked, and whether its labels are known.

    A list is anything that MetaFile reads, but its rows may lack labels: in lines all are `path label`, or all are an
    image's `path` alone; paths are relative to `root`, by default the list's folder. An image that is given by itself
    may lie anywhere. Where labels are not known they are 0.
    """
    known = classes if isinstance(classes, Classes) else Classes(classes)
    if source.is_dir():
        return any_folder_meta(source, classes=known, allow_outside_root=allow_outside_root)
    if is_image(source):
        line = os.fsencode(source.name) + b" 0\n"
        return in_memory(source, [line], known, root=source.parent, allow_outside_root=True), False
    meta = MetaFile(source, root=root, classes=known, allow_outside_root=allow_outside_root, bare=True)
    if meta.kind != "image":
        raise OptionError(f"{meta.told}: what is looked at here are single images")
    meta.check_all()
    return meta, meta.labelled
