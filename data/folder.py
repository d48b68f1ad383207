"""Class folders (`root/cat/1.png`) turned into a meta file, once.

Labels: if every folder's name is a whole number, that number; else the place of the name among the names, sorted by
bytes. The file's name is a hash of its content, so that it can't be stale, and it is published by rename, so that
many ranks may make it at once and none reads half of it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .classes import Classes, read_classes
from .errors import ClassesError, OptionError
from .meta import MetaFile

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
CACHE = ".rankrun"


def folder_meta(
    folder: str | os.PathLike[str],
    *,
    classes: int | Sequence[str] | str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    allow_outside_root: bool = False,
) -> MetaFile:
    """The meta file of a tree of class folders, with its classes.

    `classes` (names, for a validation set those of the training set) fixes the labels; a folder that is not among
    them is refused. The line file lies in `cache`, by default in `folder`/.rankrun, or among the temporary files
    where that can't be written.
    """
    root = Path(folder)
    known = read_classes(classes)
    names = _class_folders(root)
    labels = _labels(root, names, known)
    lines: list[bytes] = []
    for name in names:
        files = _images(root / name, name)
        if not files:
            raise _no_image(root / name)
        lines += [f"{file} {labels[name]}\n".encode() for file in files]
    if known is None:
        known = _classes_of(names, labels)
    path = _publish(b"".join(lines), root, None if cache is None else Path(cache))
    return MetaFile(path, root=root, classes=known.names, allow_outside_root=allow_outside_root)


def check_folder(folder: str | os.PathLike[str], *, classes: int | Sequence[str] | str | None = None) -> None:
    """Raises ClassesError unless there are class folders, with legal names, none without an image.

    Of each folder only the first image is looked for.
    """
    root = Path(folder)
    names = _class_folders(root)
    _labels(root, names, read_classes(classes))
    for name in names:
        if next(_walk(root / name, name), None) is None:
            raise _no_image(root / name)


def _class_folders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        raise ClassesError(f"class folder {root}: {error.strerror}") from None
    if not names:
        raise ClassesError(f"{root} holds no class folders: images lie in one folder per class, as in {root}/cat/1.png")
    return sorted(names, key=os.fsencode)


def _labels(root: Path, names: list[str], known: Classes | None) -> dict[str, int]:
    numbered = all(name.isascii() and name.isdigit() and len(name) <= 7 for name in names)
    fields = {name: str(int(name)) if numbered else name for name in names}
    if len(set(fields.values())) < len(names):
        raise ClassesError(f"{root}: two class folders are the same number, such as '1' and '01': rename one")
    if known is None:
        return {name: int(fields[name]) if numbered else place for place, name in enumerate(names)}
    found = {name: known.label(fields[name]) for name in names}
    strange = [name for name, label in found.items() if label is None]
    if strange:
        raise ClassesError(f"class folder {root / strange[0]} is none of the {known.told}")
    return {name: label for name, label in found.items() if label is not None}


def _classes_of(names: list[str], labels: dict[str, int]) -> Classes:
    if list(labels.values()) == list(range(len(names))) and not all(name.isdigit() for name in names):
        return Classes(names)
    return Classes.numbered(max(labels.values()) + 1)


def _images(folder: Path, name: str) -> list[str]:
    """Paths of the images under a class folder at any depth, relative to the root, sorted by bytes."""
    found = list(_walk(folder, name))
    for path in found:
        # such a path would not come back whole from a line of text
        if "\n" in path or "\r" in path or not _is_text(path) or path != path.rstrip(" \t"):
            raise ClassesError(f"{folder}: the file name {os.fsencode(path)!r} can't stand in a meta file: rename it")
    return sorted(found, key=os.fsencode)


def _walk(folder: Path, name: str) -> Iterator[str]:
    for here, folders, files in os.walk(folder):
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        below = os.path.relpath(here, folder)
        prefix = name if below == "." else f"{name}/{below}"
        for file in files:
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith("."):
                yield f"{prefix}/{file}"


def _no_image(folder: Path) -> ClassesError:
    return ClassesError(f"class folder {folder} holds no image ({' '.join(sorted(SUFFIXES))})")


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _publish(text: bytes, root: Path, cache: Path | None) -> Path:
    name = f"{hashlib.blake2b(text, digest_size=12).hexdigest()}.txt"
    places = [root / CACHE, Path(tempfile.gettempdir()) / f"rankrun-data-{os.getuid()}"] if cache is None else [cache]
    problem: OSError | None = None
    for place in places:
        path = place / name
        try:
            if path.is_file() and path.read_bytes() == text:
                return path
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=place, prefix=f"{name}.tmp-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
            return path
        except OSError as error:
            problem = error
    raise OptionError(f"{places[-1]}: {problem}; give a folder that can be written for the list of {root}'s images")
