"""`data check --clean OUT`: the good rows as a list of its own, whose paths point at the same files."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import DataError, OptionError
from ..formats.format import Format, split_columns
from ..meta import MetaFile
from ..sources.listing import fits_a_line


class CleanList:
    """The rows of a meta file that are good, for a new file `out`.

    Paths are relative to the folder of `out`; where --root was given they stay as they are, relative to that. The rows
    of class folders, tars and Parquet files are written as `path label` with numbers for labels, and the names of their
    classes to a second new file, `<stem>.classes.txt`. `needs` says with which settings the list is to be used.

    Raises OptionError, before anything is looked at, if one of the files is there already, if paths would leave the
    folder of `out`, or if several files have different headers or shapes.
    """

    def __init__(self, meta: MetaFile, out: str | os.PathLike[str]) -> None:
        self.meta, self.path = meta, Path(out)
        self.names: Path | None = None
        self.needs: list[str] = []
        refuse_existing(self.path)
        if not self.path.parent.is_dir():
            raise self._refused(f"there is no folder {self.path.parent}")
        self._head = self._common_head()
        for root in {meta.root_of(0)} if meta.in_memory else {file.path.parent for file in meta.files}:
            self._prefix(root)
        if meta.root is not None:
            self.needs.append(f"the same root, {meta.root}")
        if meta.in_memory and any(name != str(label) for label, name in enumerate(meta.classes)):
            self.names = self.path.with_name(f"{self.path.stem}.classes.txt")
            refuse_existing(self.names)
            if any(name.isascii() and name.isdigit() for name in meta.classes):
                raise self._refused("some classes are named by numbers and some by words, so a number could mean both")
            self.needs.append(f"data.classes: {self.names}")

    def write(self, keep: npt.NDArray[np.bool_]) -> int:
        """Writes the rows of `keep` (bool, one per row), after the header if there is one; returns how many.

        The file appears whole or not at all. Raises OptionError if no row is kept, and what the disk says.
        """
        if not keep.any():
            raise self._refused("not one row is good, so there is nothing to write")
        if self.names is not None:
            self._publish(self.names, "".join(f"{name}\n" for name in self.meta.classes).encode(), None)
        try:
            self._publish(self.path, self._head, keep)
        except DataError:
            if self.names is not None:
                self.names.unlink()
            raise
        return int(np.count_nonzero(keep))

    def _publish(self, path: Path, head: bytes, keep: npt.NDArray[np.bool_] | None) -> None:
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        try:
            with open(unfinished, "xb") as file:
                file.write(head)
                if keep is not None:
                    self._rows(file, keep)
                file.flush()
                os.fsync(file.fileno())
            os.rename(unfinished, path)
        except OSError as error:
            raise self._refused(f"{error.strerror}; nothing was written") from None
        finally:
            unfinished.unlink(missing_ok=True)

    def _rows(self, file: BinaryIO, keep: npt.NDArray[np.bool_]) -> None:
        for first, text, starts, stops in self.meta.chunks():  # each of one file
            format, prefix = self.meta.format_of(first), self._prefix(self.meta.root_of(first))
            whole = text.tobytes()
            for index in np.flatnonzero(keep[first : first + starts.size]).tolist():
                file.write(moved(whole[starts[index] : stops[index]], format, prefix) + b"\n")

    def _prefix(self, root: Path) -> str:
        """What paths relative to `root` need before them."""
        if self.meta.root is not None:
            return ""
        relative = os.path.relpath(os.path.realpath(root), os.path.realpath(self.path.parent))
        if relative == os.curdir:
            return ""
        if relative.split(os.sep)[0] == os.pardir and not self.meta.allow_outside_root:
            raise self._refused(
                f"its paths would leave its folder: write it into {root} or a folder above, or give --root {root}, and "
                "the same root with the list"
            )
        if not fits_a_line(relative):
            raise self._refused(f"the name of the folder {relative!r} can't stand in a line")
        return os.path.join(relative, "")

    def _common_head(self) -> bytes:
        """The header lines of a meta file; of several files, what all have in common must be everything."""
        heads, shapes = set(), set()
        for file, format in zip(self.meta.files, self.meta.formats, strict=True):
            lines = b""
            if file.skip:
                with open(file.path, "rb") as text:
                    lines = b"".join(text.readline() for _ in range(file.skip))
            heads.add(lines)
            shapes.add((format.name, format.path, format.label, format.delimiter, format.fields, format.separator))
        if len(heads) > 1:
            raise self._refused("the files have different header lines; check one file at a time")
        if len(shapes) > 1:
            raise self._refused("the lines of the files have different shapes; check one file at a time")
        return heads.pop()

    def _refused(self, why: str) -> OptionError:
        return OptionError(f"--clean {self.path}: {why}")


def moved(line: bytes, format: Format, prefix: str) -> bytes:
    """A good line with `prefix` before its path; absolute paths stay."""
    if not prefix or format.parse(line).path.startswith("/"):
        return line
    if format.name == "jsonl":
        thing = json.loads(line)
        thing[format.path] = prefix + thing[format.path]
        return json.dumps(thing, ensure_ascii=False).encode()
    if format.name not in ("csv", "tsv"):
        return prefix.encode() + line
    fields = split_columns(line.decode(), format.delimiter)
    fields[int(format.path)] = prefix + fields[int(format.path)]
    text = io.StringIO()
    csv.writer(text, delimiter=format.delimiter, lineterminator="").writerow(fields)
    return text.getvalue().encode()


def refuse_existing(out: Path) -> None:
    """Raises OptionError for a clean list that would take the place of something."""
    if os.path.lexists(out):
        raise OptionError(f"--clean {out}: exists already and is not overwritten; name a new file")
