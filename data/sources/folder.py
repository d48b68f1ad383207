"""Class folders (`root/cat/1.png`) as a meta file, listed by every process or kept as a cached list (cached.py).

Labels: if every folder's name is a whole number, that number; else the place of the name among the names, sorted by
bytes. The fingerprint is that of a meta file with the same lines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ClassesError, counted
from ..formats.classes import Classes, Given, read_classes
from ..formats.format import IMAGES
from ..index.lines import LineText
from .listing import Listing, Stamp, fits_a_line, stamp

if TYPE_CHECKING:
    from ..meta import MetaFile


SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def list_folder(folder: str | os.PathLike[str], *, classes: Given = None) -> Listing:
    """The lines of a tree of class folders, sorted by bytes within a class, and the stamps of all its folders.

    `classes` (names, for a validation set those of the training set) fixes the labels; a folder that is not among
    them is refused. A number must be that of the folders, unless these are named by their labels.
    """
    root = Path(folder)
    seen = _stamp(root)
    names = _class_folders(root)
    known, labels = _labels(root, names, classes)
    doubt = doubt_about(root, names)

    def text() -> Iterator[bytes]:
        listing.stamps[:] = [seen]
        for name in names:
            files = _images(root / name, name, listing.stamps)
            if not files:
                raise _no_image(root / name)
            yield b"".join(f"{file} {labels[name]}\n".encode() for file in files)

    # the lines say labels, never names: a class may be named "1" and stand at another place
    listing = Listing(text, Classes(known.names, by_number=True), f"class folders, {known.told}{doubt}")
    return listing


def any_folder_meta(
    folder: str | os.PathLike[str], *, classes: Classes, allow_outside_root: bool = False
) -> tuple[MetaFile, bool]:
    """The meta file of any folder of images, and whether its labels are known.

    They are for a tree of class folders, and for one class folder by itself; other images, at any depth, get label 0.
    """
    from ..meta import MetaFile  # which itself reads folders

    root, known = Path(folder), classes
    inside = _entries(root)
    names = [entry.name for entry in inside if entry.is_dir()]
    if any(label is not None for label in _known_labels(names, known)) and not any(is_image(e.name) for e in inside):
        return MetaFile(root, classes=classes, allow_outside_root=allow_outside_root), True
    files = _images(root, "", [])
    if not files:
        raise ClassesError(f"{root} holds no image ({' '.join(sorted(IMAGES))})")
    (label,) = _known_labels([Path(os.path.abspath(root)).name], known)
    lines = [f"{file} {label or 0}\n".encode() for file in files]
    return in_memory(root, lines, classes, root=root, allow_outside_root=allow_outside_root), label is not None


def in_memory(
    about: Path, lines: Sequence[bytes], classes: Classes, *, root: Path | None, allow_outside_root: bool
) -> MetaFile:
    """The meta file of lines that lie in no file; `about` is what messages call them."""
    from ..meta import MetaFile

    # the lines say labels, never names: a class may be named "1" and stand at another place
    by_number = Classes(classes.names, by_number=True)
    return MetaFile(
        LineText(about, b"".join(lines)), root=root, classes=by_number, allow_outside_root=allow_outside_root
    )


def is_image(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of an image file, by its ending."""
    return os.path.splitext(name)[1].lower() in IMAGES


def check_folder(folder: str | os.PathLike[str], *, classes: Given = None) -> None:
    """Raises ClassesError unless there are class folders, with legal names, none without an image.

    Of each folder only the first image is looked for.
    """
    root = Path(folder)
    names = _class_folders(root)
    _labels(root, names, classes)
    for name in names:
        if next(_walk(root / name, name, []), None) is None:
            raise _no_image(root / name)


def doubt_about(root: Path, names: Sequence[str]) -> str:
    """A remark where not one class folder holds an image itself, and one several folders: these may be the classes."""
    several = None
    for name in names:
        if _holds_images(root / name):
            return ""
        if several is None and sum(entry.is_dir() for entry in _entries(root / name)) > 1:
            several = root / name
    if several is None:  # as in cat/images/1.png
        return ""
    return f"; CAREFUL: they hold no images but folders of images: are those of {several} the classes?"


def _holds_images(folder: Path) -> bool:
    return any(is_image(entry.name) for entry in _entries(folder))


def _class_folders(root: Path) -> list[str]:
    names = [entry.name for entry in _entries(root) if entry.is_dir()]
    if not names:
        for ending in (".tar", ".parquet"):
            if held := sum(entry.name.endswith(ending) for entry in _entries(root)):
                told = counted(held, f"{ending.removeprefix('.')} file")
                raise ClassesError(f"{root} holds no class folders, but {told}: give '{root}/*{ending}'")
        raise ClassesError(f"{root} holds no class folders: images lie in one folder per class, as in {root}/cat/1.png")
    return sorted(names, key=os.fsencode)


def _entries(root: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ClassesError(f"class folder {root}: {error.strerror}") from None


def _labels(root: Path, names: list[str], classes: Given) -> tuple[Classes, dict[str, int]]:
    known = read_classes(classes)
    parts = (classes is None or isinstance(classes, int)) and set(map(str.lower, names)) <= SPLITS
    if parts and (len(names) > 1 or not _holds_images(root / names[0])):
        one = root / ("train" if "train" in names else names[-1])
        raise ClassesError(
            f"{root} holds {' and '.join(names)}, which are parts of a data set and no classes: give one of them, as "
            f"data.train: {one} (data.classes with these names takes them for classes)"
        )
    numbered = _numbered(names)
    fields = {name: str(int(name)) if numbered else name for name in names}
    if len(set(fields.values())) < len(names):
        raise ClassesError(f"{root}: two class folders are the same number, such as '1' and '01': rename one")
    if isinstance(classes, int) and not numbered:
        if len(names) != classes:
            told = counted(len(names), "class folder")
            raise ClassesError(
                f"{root} holds {told} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''}), but data.classes is "
                f"{classes}: remove data.classes, or list the names of all classes there"
            )
        known = None
    if known is None and numbered:
        labels = {name: int(fields[name]) for name in names}
        return Classes.numbered(max(labels.values()) + 1), labels
    if known is None:
        return Classes(names), {name: place for place, name in enumerate(names)}
    found = {name: known.label(fields[name]) for name in names}
    strange = [name for name, label in found.items() if label is None]
    if strange:
        raise ClassesError(
            f"class folder {root / strange[0]} is none of the {known.told}; these are data.classes, or else the "
            "training set's: list the names of all classes in data.classes, or remove it"
        )
    return known, {name: label for name, label in found.items() if label is not None}


def _numbered(names: list[str]) -> bool:
    return all(name.isascii() and name.isdigit() and len(name) <= 7 for name in names)


def _known_labels(names: list[str], known: Classes) -> list[int | None]:
    numbered = _numbered(names)
    return [known.label(str(int(name)) if numbered else name) for name in names]


def _images(folder: Path, name: str, stamps: list[Stamp]) -> list[str]:
    """Paths of the images under a class folder at any depth, relative to the root, sorted by bytes."""
    found = list(_walk(folder, name, stamps))
    for path in found:
        if not fits_a_line(path):
            raise ClassesError(f"{folder}: the file name {os.fsencode(path)!r} can't stand in a meta file: rename it")
    return sorted(found, key=os.fsencode)


def _walk(folder: Path, name: str, stamps: list[Stamp]) -> Iterator[str]:
    """Image files at any depth, with `name` before their paths; links to folders are followed for `folder` alone.

    Every folder's stamp is taken before it is listed, so that what comes later shows in its time.
    """
    pending = [(os.fspath(folder), name)]
    while pending:
        here, prefix = pending.pop()
        try:
            stamps.append(_stamp(here))
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((entry.path, os.path.join(prefix, entry.name)))
                    elif is_image(entry.name) and not entry.is_dir():
                        yield os.path.join(prefix, entry.name)
        except OSError as error:
            raise ClassesError(f"class folder {here}: {error.strerror}") from None


def _stamp(folder: str | os.PathLike[str]) -> Stamp:
    try:
        return stamp(folder)
    except OSError as error:
        raise ClassesError(f"class folder {folder}: {error.strerror}") from None


def _no_image(folder: Path) -> ClassesError:
    return ClassesError(f"class folder {folder} holds no image ({' '.join(sorted(IMAGES))})")
