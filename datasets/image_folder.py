"""Writes images as PNG files with meta files beside them; the two data scripts of this folder share it.

    datasets/NAME/train/3/00007.png     8-bit grey; one folder per class number, so also a class folder
    datasets/NAME/val/...
    datasets/NAME/{train,val}.txt       lines `train/3/00007.png 3`
    datasets/NAME/classes.txt           one name per line, line k for label k

All of it is built in a folder beside and renamed into place, so NAME/ is whole or not there, whenever one is
killed.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

Split = tuple[np.ndarray, np.ndarray]  # images [n, height, width] uint8, labels [n] of integers from 0


def stop(message: str) -> NoReturn:
    """One line about a mistake that the user can mend, exit code 2."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    raise SystemExit(2)


def is_complete(target: Path, counts: Mapping[str, int]) -> bool:
    """True when `target` holds what `counts` (split -> images) asks for, False when it isn't there.

    A folder that is there but not whole stops the program: it may hold someone's own work, so it is not
    replaced.
    """
    if not target.exists():
        return False
    for split, count in counts.items():
        try:
            listed = len((target / f"{split}.txt").read_text().splitlines())
            found = sum(len(os.listdir(folder)) for folder in (target / split).iterdir())
        except OSError as error:
            stop(f"{target} is there but incomplete ({error}); remove it and run this again")
        if (listed, found) != (count, count):
            stop(
                f"{target} is there but incomplete: {split}.txt lists {listed} of {count} images and "
                f"{found} are "
                "there; remove it and run this again"
            )
    return True


def write(target: Path, classes: Sequence[str], splits: Callable[[], Mapping[str, Split]]) -> None:
    """Builds `target` from what `splits()` returns and puts it into place in one rename."""
    building = target.with_name(f".{target.name}.tmp-{socket.gethostname()}-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        building.mkdir()
        for split, (images, labels) in splits().items():
            _write_split(building, split, images, labels, len(classes))
        (building / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
        building.rename(target)
    except OSError as error:
        stop(f"could not write {target}: {error}")
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_split(folder: Path, split: str, images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    for label in range(classes):
        (folder / split / str(label)).mkdir(parents=True)
    lines = []
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = f"{split}/{label}/{number:05d}.png"
        # Level 1: a third of the time of the default for files that all fit into one disk block anyway.
        Image.fromarray(image).save(folder / path, compress_level=1)
        lines.append(f"{path} {label}\n")
    (folder / f"{split}.txt").write_text("".join(lines))


def _remove_leftovers(target: Path) -> None:
    """Removes what a killed run of this host left beside `target`; a live one's folder stays."""
    for folder in target.parent.glob(f".{target.name}.tmp-{socket.gethostname()}-*"):
        try:
            os.kill(int(folder.name.rpartition("-")[2]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (PermissionError, ValueError):
            continue  # alive under another user, or not one of ours
