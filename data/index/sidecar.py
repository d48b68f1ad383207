"""The file in which a census is kept: `train.txt.rankrun-index`, beside the meta file or in a cache folder.

    header    4 KiB     one line of JSON, padded with blanks: what `Header` names
    totals    int64     per 64 KiB of the meta file: line feeds before it
    sums      uint64    per 64 KiB: its content
    counts    uint16    per 4 KiB: its line feeds
    labels    JSON      what a pass over the labels found, for whoever made it

Numbers are little-endian. It appears under its name at once and whole; a file of that name that is somebody else's
is left alone.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import stat
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from ..memory import write_all
from .scan import PAGE, SPAN

SUFFIX = ".rankrun-index"
VERSION = 1
HEADER_BYTES = 4096

_MAGIC = b'{"magic": "rankrun-index", '


@dataclass(frozen=True)
class Header:
    """The first line of a sidecar, in this order after `magic`.

    `rows` counts lines without blank ones at the end; `first` is where the first one begins (after a byte order
    mark), `end` where the last one ends. `read_ns` is when the reading of the file began, by the clock of the
    sidecar's file system; `body_hash` covers all that is in the sidecar.
    """

    version: int
    size_bytes: int
    mtime_ns: int
    read_ns: int
    rows: int
    first: int
    end: int
    fingerprint: str
    pages: int
    labels_bytes: int
    body_hash: str = ""

    @property
    def spans(self) -> int:
        return -(-self.pages * PAGE // SPAN)

    @property
    def body_bytes(self) -> int:
        return 16 * self.spans + 2 * self.pages + self.labels_bytes

    def encode(self) -> bytes:
        line = _MAGIC[:-2] + b", " + json.dumps(asdict(self)).encode()[1:]
        return line.ljust(HEADER_BYTES - 1) + b"\n"

    def signed(self, body: bytes | memoryview) -> Header:
        """The same header over this body."""
        digest = hashlib.blake2b(replace(self, body_hash="").encode(), digest_size=16)
        digest.update(body)
        return replace(self, body_hash=digest.hexdigest())


@dataclass(frozen=True)
class Found:
    """What lies under a sidecar's name: nothing, a sidecar that can be read (header and body), one that can't, or
    (`foreign`) something that isn't ours."""

    foreign: bool = False
    header: Header | None = None
    body: memoryview = field(default_factory=lambda: memoryview(b""))

    @property
    def whole(self) -> bool:
        """Whether it is byte for byte what was written."""
        return self.header is not None and self.header.signed(self.body) == self.header


def places(path: Path, cache: Path | None) -> list[Path]:
    """Where the sidecar of a file may lie, the best one first."""
    beside = path.with_name(path.name + SUFFIX)
    if cache is None:
        return [beside]
    where = hashlib.blake2b(os.fsencode(path.absolute()), digest_size=8).hexdigest()
    # cut: a file's name may have 255 bytes at most
    return [beside, cache / f"{where}-{path.name[-48:]}{SUFFIX}"]


def look(place: Path) -> Found:
    """What lies there, its lengths checked; the body is mapped, not read."""
    try:
        # O_NONBLOCK: a FIFO of that name must not hang anybody
        fd = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Found()
    except OSError:
        return Found(foreign=True)
    try:
        status = os.fstat(fd)
        head = os.pread(fd, HEADER_BYTES, 0) if stat.S_ISREG(status.st_mode) else b"?"
        # an empty or cut file is what a disk that filled up or lost its power leaves of a sidecar
        if head[: len(_MAGIC)] != _MAGIC[: len(head)]:
            return Found(foreign=True)
        header = _decode(head)
        if header is None or status.st_size != HEADER_BYTES + header.body_bytes:
            return Found()
        mapped = mmap.mmap(fd, status.st_size, access=mmap.ACCESS_READ)
        return Found(False, header, memoryview(mapped)[HEADER_BYTES:])
    except OSError:
        return Found(foreign=True)
    finally:
        os.close(fd)


def publish(place: Path, header: Header, body: bytes, *, began: float | None = None) -> Header | None:
    """Writes a sidecar under its name, at once and whole; the header as written, or None where it can't be.

    With `began` (time.monotonic) the header's `read_ns` becomes that moment, by the clock of the file system.
    """
    draft = place.with_name(f"{place.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    try:
        with open(fd, "wb", buffering=0):
            write_all(fd, body, HEADER_BYTES)
            if began is not None:
                passed = round((time.monotonic() - began) * 1e9)
                header = replace(header, read_ns=os.fstat(fd).st_mtime_ns - passed)
            header = header.signed(body)
            write_all(fd, header.encode(), 0)
            os.fsync(fd)
        if look(place).foreign:
            return None
        os.replace(draft, place)
        return header
    except OSError:
        return None
    finally:
        draft.unlink(missing_ok=True)


def _decode(head: bytes) -> Header | None:
    try:
        found = json.loads(head)
        del found["magic"]
        header = Header(**found)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    kinds = {"fingerprint": str, "body_hash": str}
    right = all(type(getattr(header, one.name)) is kinds.get(one.name, int) for one in fields(Header))
    known = right and header.version == VERSION and header.pages == -(-header.size_bytes // PAGE)
    return header if known and header.labels_bytes >= 0 else None
