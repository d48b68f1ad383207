"""Single tar shards of a pack: written, kept with a table of their rows, read back and compared."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from ..index.unfinished import Unfinished, sync_folder
from ..sources.tars import BLOCK, read_span, samples
from .packable import Item

RECORD_BYTES = 20 * BLOCK  # tar pads its files to that
_OURS = re.compile(r"shard-(\d{6,})\.tar", re.ASCII)


class Row(NamedTuple):
    """One line of a table: the row's number in the source, where its image lies in the shard, labels, a hash."""

    row: int
    offset: int
    length: int
    labels: str
    digest: str


@dataclass(frozen=True)
class Table:
    """A whole shard: the rows `first` … `stop - 1` of the source without those that were `skipped`.

    Its rows stay in a file beside it and are read when they are wanted.
    """

    number: int
    first: int
    stop: int
    count: int
    skipped: int
    size_bytes: int
    path: Path

    @property
    def shard(self) -> str:
        return shard_name(self.number)

    def rows(self) -> Iterator[Row]:
        with open(self.path, encoding="ascii") as file:
            for _ in range(1 + self.skipped):
                next(file)
            for line in file:
                row, offset, length, labels, digest = line.split()
                yield Row(int(row), int(offset), int(length), labels, digest)

    def left_out(self) -> Iterator[tuple[int, str]]:
        """(row, reason) of what was skipped."""
        with open(self.path, encoding="ascii") as file:
            next(file)
            for _ in range(self.skipped):
                row, reason = json.loads(next(file))
                yield row, reason

    def lines(self) -> Iterator[bytes]:
        """Its lines of the meta file."""
        for row in self.rows():
            yield f"{self.shard}@{row.offset}:{row.length} {row.labels}\n".encode()


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


class ShardWriter:
    """A shard that is being written: `000000012.jpg` and `000000012.cls` (`.json` for several labels) per row.

    Nothing in it tells when or by whom it was made. Its rows' table is published after it.
    """

    def __init__(self, work: Path, number: int, first: int) -> None:
        self.number = number
        self.first = first
        self._work = work
        self._tar = Unfinished(work, shard_name(number))
        self._rows: list[Row] = []
        self._at = 0

    def fits(self, item: Item, shard_bytes: int) -> bool:
        """Whether a row still fits; an empty shard takes any."""
        size = self._at + 2 * BLOCK + _padded(len(item.data)) + _padded(len(_label_file(item)[1]))
        return not self._rows or _ended(size) <= shard_bytes

    def add(self, item: Item) -> None:
        key = f"{item.row:09d}"
        extension, labels = _label_file(item)
        offset = self._member(f"{key}.{item.extension}", item.data)
        self._member(f"{key}.{extension}", labels)
        told = ",".join(map(str, item.labels))
        self._rows.append(Row(item.row, offset, len(item.data), told, _digest(item.data)))

    def close(self, out: Path, skipped: list[tuple[int, str]]) -> Table:
        """Publishes the shard and then its table; `skipped` rows lie before its end."""
        self._write(b"\0" * (_ended(self._at) - self._at))
        size = self._tar.publish(out / shard_name(self.number))
        sync_folder(out)
        stop = 1 + max([self._rows[-1].row, *(row for row, _ in skipped)])
        path = self._work / f"{shard_name(self.number).removesuffix('.tar')}.rows"
        table = Table(self.number, self.first, stop, len(self._rows), len(skipped), size, path)
        head = {"first": self.first, "stop": stop, "count": table.count, "skipped": table.skipped, "size_bytes": size}
        with Unfinished(self._work, path.name) as unfinished:
            for thing in (head, *skipped):
                unfinished.file.write(json.dumps(thing).encode("ascii") + b"\n")
            unfinished.file.writelines(f"{' '.join(map(str, row))}\n".encode("ascii") for row in self._rows)
            unfinished.publish(path)
        sync_folder(self._work)
        return table

    def drop(self) -> None:
        """Removes what was not published."""
        self._tar.drop()

    def _member(self, name: str, content: bytes) -> int:
        """Returns where the content begins."""
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self._at
        self._write(content)
        self._write(b"\0" * (_padded(len(content)) - len(content)))
        return offset

    def _write(self, content: bytes) -> None:
        self._tar.file.write(content)
        self._at += len(content)


def read_table(out: Path, work: Path, number: int, first: int) -> Table | None:
    """The table of a whole shard that begins at row `first`, or None where there is none."""
    path = work / f"{shard_name(number).removesuffix('.tar')}.rows"
    try:
        with open(path, encoding="ascii") as file:
            head = json.loads(next(file))
        table = Table(number, **head, path=path)
        size = os.stat(out / table.shard).st_size
    except (OSError, ValueError, TypeError, StopIteration):
        return None
    return table if table.first == first and table.size_bytes == size else None


def remove_from(out: Path, number: int) -> None:
    """Removes the shards from a number on."""
    for path in out.iterdir():
        if (found := _OURS.fullmatch(path.name)) and int(found[1]) >= number:
            path.unlink(missing_ok=True)


def verify_shard(out: Path, table: Table) -> str | None:
    """Reads a shard back from the disk, as WebDataset would; returns what isn't as it was written, or None."""
    path = out / table.shard
    try:
        if hasattr(os, "posix_fadvise"):  # what the page cache holds says little about the disk
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found = samples(path, Counter())
        for row in table.rows():
            sample = next(found, None)
            span = (row.offset, row.length)
            if sample is None or sample.key != f"{row.row:09d}" or sample.image[1:] != span:
                return f"{path}: row {row.row} of the source is not at {row.offset}:{row.length}"
            if ",".join(sample.labels) != row.labels or _digest(read_span(path, *span)) != row.digest:
                return f"{path}: row {row.row} of the source is not what was written"
        if next(found, None) is not None:
            return f"{path} holds more than was written"
    except (DataError, OSError, ValueError) as error:
        return f"{path} can't be read back: {error}"
    return None


def _label_file(item: Item) -> tuple[str, bytes]:
    if len(item.labels) == 1:
        return "cls", b"%d" % item.labels[0]
    return "json", json.dumps({"labels": item.labels}).encode()


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _ended(size: int) -> int:
    """The size of a tar whose members take `size` bytes: two empty blocks end it."""
    return -(-(size + 2 * BLOCK) // RECORD_BYTES) * RECORD_BYTES


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
