"""Files that are whole or not there: written under a name of their own, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

TORN = ".tmp-"  # stands in the name of every file that is not whole


class Unfinished:
    """A new file in `folder` which `publish` makes the one at a path, on the same file system; else it is removed."""

    def __init__(self, folder: Path, stem: str) -> None:
        self.path = folder / f"{stem}{TORN}{os.getpid()}-{os.urandom(4).hex()}"
        self.file = open(self.path, "xb", buffering=1 << 20)  # noqa: SIM115  (closed by publish or drop)

    def publish(self, path: Path) -> int:
        """Returns the size in bytes; what was at the path is replaced in one step. Raises OSError."""
        self.file.flush()
        os.fsync(self.file.fileno())
        size = self.file.tell()
        self.file.close()
        os.replace(self.path, path)
        return size

    def drop(self) -> None:
        """Removes what was not published; does nothing afterwards."""
        with contextlib.suppress(OSError):  # on a full disk closing writes, and fails, once more
            self.file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()


def publish(path: Path, pieces: Iterable[bytes], folder: Path | None = None) -> None:
    """Writes a file whole; `folder`, on the same file system, is where it lies until then."""
    with Unfinished(folder or path.parent, path.name) as unfinished:
        unfinished.file.writelines(pieces)
        unfinished.publish(path)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder outlive a loss of power."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
