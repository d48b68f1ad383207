"""The files that a source means, and what the first lines of each say about its format."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from .errors import MetaFileError, OptionError
from .formats.format import Format
from .formats.guess import Columns
from .formats.sniff import HEAD_LINES, sniff
from .index.opening import BYTE_ORDER_MARK, WHITESPACE, open_regular, pread, refuse_packed

HEAD_BYTES = 1 << 18
Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def paths_of(source: Source, what: str = "data.train and data.val") -> list[Path]:
    """The files of a source: one, a sequence of several, or those that a glob finds, sorted by bytes."""
    given = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not given or not all(os.fspath(path) for path in given):
        raise MetaFileError(f"no meta file is given: {what} name a file, a list of files, a glob or a folder")
    paths: list[Path] = []
    for path in given:
        text = os.fspath(path)
        if glob.has_magic(text) and not os.path.lexists(text):
            found = sorted(glob.glob(text, recursive=True), key=os.fsencode)
            if not found:
                raise MetaFileError(f"no file is called like {text}")
            paths += map(Path, found)
        else:
            paths.append(Path(text))
    return paths


def is_listed(paths: Sequence[Path]) -> bool:
    """Whether these are folders, tars or Parquet files; raises MetaFileError if only some are."""
    from .sources.cached import is_source

    kinds = [is_source(path) for path in paths]
    if any(kinds) and not all(kinds):
        raise MetaFileError(
            f"{paths[kinds.index(True)]} stands beside {paths[kinds.index(False)]}: give meta files alone, one folder "
            "alone, or tars or Parquet files alone"
        )
    return all(kinds)


def refuse_of_listed(
    paths: Sequence[Path], root: str | os.PathLike[str] | None, format: str | None, columns: Columns | None
) -> None:
    """Raises OptionError for what can't be said of folders, tars or Parquet files."""
    folder, parquet = paths[0].is_dir(), paths[0].suffix.lower() == ".parquet"
    what = f"the folder {paths[0]}" if folder else str(paths[0])
    if root is not None and not parquet:
        told = "a folder of class folders" if folder else "a tar"
        raise OptionError(f"data.root={root} with {what}: {told} is its own root; leave data.root out")
    if format is not None:
        raise OptionError(f"data.format={format} with {what}: that is no file of lines; leave data.format out")
    if columns and not parquet:
        raise OptionError(f"data.columns with {what}: that has no columns; leave data.columns out")


def refuse_missing_root(root: Path | None) -> None:
    """Raises OptionError for a root that is no folder: every path below it would be missing as well."""
    if root is not None and not root.is_dir():
        what = "is no folder" if os.path.lexists(root) else "there is no such folder"
        raise OptionError(f"data.root={root}: {what}; paths in the meta file are relative to it")


def look(path: Path, *, format: str | None = None, columns: Columns | None = None, labelled: bool = True) -> Format:
    """The format of a file, by its first 1,000 lines; raises MetaFileError for what can't be a meta file."""
    fd = open_regular(path)
    with open(fd, "rb", buffering=0):
        head = pread(fd, HEAD_BYTES, 0)
    refuse_packed(path, head)
    if head[257:262] == b"ustar":
        raise MetaFileError(f"{path} is a tar: a tar of images is one whose name ends in .tar")
    whole = len(head) < HEAD_BYTES
    text = head.removeprefix(BYTE_ORDER_MARK)
    lines = (text if whole else text[: text.rfind(b"\n") + 1]).rstrip(WHITESPACE).split(b"\n")[:HEAD_LINES]
    if not any(lines):  # empty, or one endless line: what opens it knows the words
        return Format()
    return sniff(lines, path, format=format, columns=columns, labelled=labelled)


def tell(paths: Sequence[Path], formats: Sequence[Format]) -> str:
    """How these files are read, in one line: `train.csv: CSV with a header, path from column 'file_name', …`."""
    tally: dict[str, list[Path]] = {}
    for path, format in zip(paths, formats, strict=True):
        tally.setdefault(format.told, []).append(path)
    parts = [
        f"{found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}: {told}" for told, found in tally.items()
    ]
    return "; ".join(parts[:3]) + ("; …" if len(parts) > 3 else "")
