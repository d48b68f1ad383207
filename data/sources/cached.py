"""Class folders, tars and Parquet files, read as a file of lines `path label` that is made once.

With a cache folder the list is written there and found again as long as nothing changed: the times of all listed
folders, or size and time of the tars or Parquet files, are those of its making. Without one it stays in memory.

    <stem>-<key>.json             what was listed, when, with which stamps and classes; published last
    <stem>-<key>-<content>.txt    the lines; equal content keeps its file and with it its index
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ClassesError, MetaFileError
from ..formats.classes import Classes, Given, read_classes
from ..index.lines import LineFile, LineText
from ..index.unfinished import TORN, Unfinished, publish, sync_folder
from .listing import Listing, Stamp, unchanged

VERSION = 1
MAGIC = "rankrun-lines"
# A list that nothing points to any more stays this long for runs that began with it.
KEEP_S = 30 * 86_400
TORN_S = 86_400

_log = logging.getLogger("rankrun.data")
Columns = dict[str, str | int] | None


@dataclass(frozen=True)
class Opened:
    """A source as lines `path label` with numbers for labels, relative to `root`, which have these classes.

    `several`: a row may have more than one label, written `3,7`. `told` is one line for people. `file` lies in the
    cache, or is a LineText in memory.
    """

    file: LineFile
    root: Path
    classes: Classes
    told: str
    several: bool


def is_source(path: str | os.PathLike[str]) -> bool:
    """Whether open_lines is for this path: a folder, or a name that ends in .tar or .parquet."""
    return os.path.splitext(path)[1].lower() in (".tar", ".parquet") or os.path.isdir(path)


def open_lines(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    cache: str | os.PathLike[str] | None = None,
    classes: Given = None,
    columns: Columns = None,
) -> Opened:
    """One folder of class folders, or tars, or Parquet files (several share their classes), as lines.

    `classes` fixes the labels; otherwise whole numbers are labels, and names are numbered in the order of their bytes.
    `columns` ({"path": name, "label": name}) is for Parquet. A cache that can't be written costs a warning and the
    memory for the list. Raises ClassesError, MetaFileError, RowError.
    """
    paths = [Path(source)] if isinstance(source, str | os.PathLike) else [Path(path) for path in source]
    if not paths:
        raise MetaFileError("no folder, tar or Parquet file is given")
    if cache is None:
        return _in_memory(paths, _list(paths, classes, columns))
    known = read_classes(classes)
    key = _key(paths, known, isinstance(classes, int), columns)
    if (opened := _warm(Path(cache), key, paths)) is not None:
        return opened
    began_ns = time.time_ns()
    listing = _list(paths, classes, columns)
    try:
        opened = _publish(Path(cache), key, paths, listing, began_ns)
    except OSError as error:
        _log.warning(f"{cache}: {error.strerror}: the list of {paths[0]} is not kept and stays in memory")
        return _in_memory(paths, listing)
    return opened


def _list(paths: list[Path], classes: Given, columns: Columns) -> Listing:
    # imported here: numpy alone serves whoever has only lines
    from .folder import list_folder
    from .parquet import list_parquet
    from .tars import list_tars

    kinds = {"folder" if path.is_dir() else path.suffix.lower() for path in paths}
    if kinds == {"folder"} and len(paths) == 1:
        return list_folder(paths[0], classes=classes)
    if kinds == {".tar"}:
        return list_tars(paths, classes=classes)
    if kinds == {".parquet"}:
        return list_parquet(paths, classes=classes, columns=columns)
    told = ", ".join(map(str, paths[:5])) + (", …" if len(paths) > 5 else "")
    raise MetaFileError(f"{told}: give one folder of class folders, or tars alone, or Parquet files alone")


def _in_memory(paths: list[Path], listing: Listing) -> Opened:
    return _opened(LineText(paths[0], b"".join(listing.text())), paths, listing)


def _opened(file: LineFile, paths: list[Path], listing: Listing) -> Opened:
    return Opened(file, root_of(paths), listing.classes, f"{paths[0]}: {listing.told}", listing.several)


def root_of(paths: Sequence[Path]) -> Path:
    """The folder that lines about these sources are relative to: the folder itself, or the one that holds all files."""
    if len(paths) == 1:
        return paths[0] if paths[0].is_dir() else paths[0].parent
    parents = {path.parent for path in paths}
    return parents.pop() if len(parents) == 1 else Path(os.path.commonpath([os.path.abspath(path) for path in parents]))


def _key(paths: list[Path], known: Classes | None, counted: bool, columns: Columns) -> str:
    """The name under which a source is kept: where it lies and what was asked of it."""
    asked: list[Any] = [os.path.realpath(path) for path in paths]
    asked += [os.path.abspath(path) for path in paths]
    if known is not None:
        asked += [counted, known.by_number, len(known) if known.is_numbered else list(known.names)]
        asked += ["by name"] * known.by_name
    asked.append(columns)
    digest = hashlib.blake2b(json.dumps(asked).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", paths[0].stem)[:40] or "list"
    return f"{stem}-{digest}"


def _warm(cache: Path, key: str, paths: list[Path]) -> Opened | None:
    """What the cache holds of a source, if it is whole and the source is still the same."""
    try:
        about = json.loads((cache / f"{key}.json").read_bytes())
        if about["magic"] != MAGIC or about["version"] != VERSION or not about["list"].startswith(f"{key}-"):
            return None
        path = cache / os.path.basename(about["list"])
        stamps = [Stamp(*entry) for entry in about["stamps"]]
        if path.stat().st_size != about["size_bytes"] or not unchanged(stamps, about["began_ns"]):
            return None
        names = about["classes"]
        classes = Classes.numbered(names) if isinstance(names, int) else Classes(names, by_number=True)
        listing = Listing(tuple, classes, str(about["told"]), bool(about["several"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ClassesError):
        return None
    return _opened(LineFile(path), paths, listing)


def _publish(cache: Path, key: str, paths: list[Path], listing: Listing, began_ns: int) -> Opened:
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.blake2b(digest_size=12)
    with Unfinished(cache, key) as unfinished:
        for piece in listing.text():
            digest.update(piece)
            unfinished.file.write(piece)
        size = unfinished.file.tell()
        path = cache / f"{key}-{digest.hexdigest()}.txt"
        # an equal list stays as it is: its index tells by its time that it is the same
        if not (path.is_file() and path.stat().st_size == size):
            unfinished.publish(path)
    classes = listing.classes
    about = {
        "magic": MAGIC,
        "version": VERSION,
        "list": path.name,
        "size_bytes": size,
        "began_ns": began_ns,
        "told": listing.told,
        "several": listing.several,
        "classes": len(classes) if classes.is_numbered else classes.names,
        "stamps": listing.stamps,
    }
    publish(cache / f"{key}.json", [json.dumps(about).encode()])
    sync_folder(cache)
    _sweep(cache, key, path.name)
    return _opened(LineFile(path), paths, listing)


def _sweep(cache: Path, key: str, kept: str) -> None:
    """Removes what killed makers left, and old lists of this source with their indexes."""
    now = time.time()
    for path in cache.glob(f"{key}[.-]*"):
        limit = TORN_S if TORN in path.name else KEEP_S
        if path.name.startswith(kept) or path.name == f"{key}.json":
            continue
        try:
            if now - path.stat().st_mtime > limit:
                path.unlink()
        except OSError:
            continue  # another maker sweeps as well
