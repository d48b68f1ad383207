"""The rows of a source as `pack` wants them: their labels, and a task that fetches an image's bytes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

import numpy as np

from ..errors import OutsideRootError, PackError
from ..formats.format import Record
from ..meta import MetaFile
from ..sources.parquet import ParquetImages
from ..sources.tars import read_span

LARGEST_IMAGE = 1 << 30
ROWS_AT_ONCE = 4096
NEVER_SHRUNK = 1 << 31  # pixels; no image's shorter side is as long

_MAGIC = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    **{b"P%d" % kind: "pgm" if kind in (2, 5) else "ppm" for kind in range(1, 7)},
}


class Item(NamedTuple):
    """A row with its image's bytes and their kind, or with the reason why it can't be read."""

    row: int
    place: str
    labels: tuple[int, ...]
    data: bytes
    extension: str
    reason: str | None


class Packable(Protocol):
    """What can be packed. Equal fingerprints and classes: the same rows."""

    n: int
    classes: tuple[str, ...]

    @property
    def fingerprint(self) -> str: ...

    def rows(self, first: int) -> Iterator[tuple[int, tuple[int, ...], Callable[[], str], Callable[[], bytes]]]:
        """(row, labels, its place, its bytes) from row `first` on; fetching these may raise OSError or ValueError."""
        ...


def packable(source: MetaFile | ParquetImages) -> Packable:
    """A source as something that can be packed; raises PackError for clips."""
    if isinstance(source, ParquetImages):
        return ParquetRows(source)
    if source.kind != "image":
        raise PackError(f"{source.place(0)}: rows are of kind {source.kind!r}, and single images are packed")
    if not source.labelled:
        raise PackError(f"{source.place(0)}: has no label, and every packed image needs one")
    return MetaRows(source)


class MetaRows:
    """The images that a meta file names."""

    def __init__(self, meta: MetaFile) -> None:
        self.meta = meta
        self.n = meta.n
        self.classes = meta.classes
        self._real = lru_cache(1 << 12)(os.path.realpath)

    @property
    def fingerprint(self) -> str:
        root = os.path.realpath(self.meta.root_of(0))
        return hashlib.blake2b(f"{self.meta.fingerprint} {root}".encode("utf-8", "replace"), digest_size=16).hexdigest()

    def rows(self, first: int) -> Iterator[tuple[int, tuple[int, ...], Callable[[], str], Callable[[], bytes]]]:
        for begin in range(first, self.n, ROWS_AT_ONCE):
            wanted = np.arange(begin, min(begin + ROWS_AT_ONCE, self.n))
            for low, _, text, starts, stops in self.meta.gather(wanted):
                for at, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True), begin + low):
                    record = self.meta.record(at, text[start:stop].tobytes())
                    labels = (record.label,) if record.labels is None else record.labels
                    yield at, labels, partial(self.meta.place, at), partial(self._fetch, at, record)

    def _fetch(self, row: int, record: Record) -> bytes:
        root = os.fspath(self.meta.root_of(row))
        full = os.path.join(root, record.path)
        if not self.meta.allow_outside_root:
            real = os.path.realpath(full) if os.path.islink(full) else self._real(os.path.dirname(full))
            inside = os.path.join(self._real(root), "")
            if not os.path.join(real, "").startswith(inside):
                raise OutsideRootError(
                    f"{self.meta.place(row)} leads out of the root {root} by a link "
                    "(data.allow_outside_root=true lifts this)"
                )
        if record.offset is not None and record.length is not None:
            if record.length > LARGEST_IMAGE:
                raise ValueError(f"{record.length} bytes, more than {LARGEST_IMAGE}")
            return read_span(full, record.offset, record.length)
        return _read_file(full)


class ParquetRows:
    """The images that lie in Parquet files."""

    def __init__(self, images: ParquetImages) -> None:
        self.images = images
        self.n = images.n
        self.classes = images.classes

    @property
    def fingerprint(self) -> str:
        return self.images.fingerprint

    def rows(self, first: int) -> Iterator[tuple[int, tuple[int, ...], Callable[[], str], Callable[[], bytes]]]:
        for row, (place, data, labels) in enumerate(self.images.images(first), first):
            yield row, labels, partial(str, place), partial(_present, data)


def tasks(source: Packable, first: int, resize: int | None, *, decode: bool = False) -> Iterator[Callable[[], Item]]:
    """For every row from `first` on a task that reads, checks and scales its image; any thread may do it.

    `decode`: an image that isn't scaled is decoded as well, to see whether it is whole.
    """
    side = NEVER_SHRUNK if resize is None and decode else resize
    for row, labels, place, fetch in source.rows(first):
        if not labels or min(labels) < 0:
            raise PackError(f"{place()}: has no label, and every packed image needs one")
        yield partial(_prepare, row, labels, place, fetch, side)


def _prepare(
    row: int, labels: tuple[int, ...], place: Callable[[], str], fetch: Callable[[], bytes], resize: int | None
) -> Item:
    try:
        data = fetch()
        extension_of(data)
        if resize is not None:
            from .shrink import shrink  # Pillow and torch only where an image is decoded

            data = shrink(data, resize)
        return Item(row, "", labels, data, extension_of(data), None)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Item(row, place(), labels, b"", "", reason)


def extension_of(data: bytes) -> str:
    """The usual ending for an image's bytes, whatever its file was called; raises ValueError for what is none."""
    if not data:
        raise ValueError("the file has zero bytes")
    for magic, extension in _MAGIC.items():
        if data.startswith(magic):
            return extension
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise ValueError(f"no image (it begins with {data[:8]!r})")


def _present(data: bytes | None) -> bytes:
    if data is None:
        raise ValueError("the row has no image")
    return data


def _read_file(path: str) -> bytes:
    """All bytes of a regular file, without ever waiting on a pipe."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("no regular file")
        if facts.st_size > LARGEST_IMAGE:
            raise ValueError(f"{facts.st_size} bytes, more than {LARGEST_IMAGE}")
        with open(fd, "rb", buffering=0, closefd=False) as file:
            return file.readall()
    finally:
        os.close(fd)
