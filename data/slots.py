"""Where a rank's shards lie while its epochs are served: two anonymous memory files, taken in turn.

    epoch        0         1         2         3
    slot 0    [served]  [refilled with 2 ]  [refilled …
    slot 1    [built ]  [served]  [refilled with 3 …

Both files are made before the loader's workers, so every worker holds them by handle, whatever way it was started. A
slot is refilled only after the last batch of what it held was delivered: loading ahead crosses one boundary at most.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from typing import TYPE_CHECKING

from .builder import BuilderDied, ShardBuilder
from .errors import DataError
from .memory import MemoryFile
from .order import Rows, rows_at
from .shard import Shard, build_shard

if TYPE_CHECKING:
    from .blocks import Order
    from .meta import MetaFile

# Below this a shard is built in its turn, in some milliseconds; a process of its own takes 0.15 s to start.
BESIDE_BYTES = 8 << 20

HEADER_BYTES = 64

_log = logging.getLogger("rankrun.data")
_lock = threading.Lock()  # fcntl's locks part processes, not threads


@dataclass(frozen=True)
class ShardJob:
    """Which rows a shard holds: those at positions first, first + step, … < stop of an order (None: the file's)."""

    meta: MetaFile
    order: Order | None
    first: int
    stop: int
    step: int

    def __len__(self) -> int:
        return len(range(self.first, self.stop, self.step))

    def rows(self) -> Rows:
        """Row numbers in serving order, int64 [len]."""
        return rows_at(range(self.first, self.stop, self.step), self.meta.n, self.order)

    def build(self, fd: int, threads: int = 1) -> None:
        """Writes the shard into a memory file. Raises RowError, ChangedError, DataError where there is no room."""
        try:
            build_shard(self.meta, self.rows(), fd, threads=threads)
        except OSError as error:
            raise DataError(
                f"the {len(self):,} rows of a rank's epoch could not be put into memory ({error.strerror}): "
                "data.read=direct holds none, and more ranks hold fewer each"
            ) from error


class Slots:
    """The two memory files, and what a process has mapped of them."""

    def __init__(self) -> None:
        self._files = (MemoryFile(name="rankrun-shard-0"), MemoryFile(name="rankrun-shard-1"))
        # A file of its own, never mapped: closing any descriptor of a file, as a map does at its end, gives up all
        # locks that the process has on that file.
        self._guard = MemoryFile(name="rankrun-lock")
        self._mapped: dict[int, tuple[bytes, Shard]] = {}

    def file(self, epoch: int) -> MemoryFile:
        return self._files[epoch & 1]

    def shard(self, epoch: int) -> Shard:
        """The shard in an epoch's slot, mapped anew if it was refilled."""
        fd = self.file(epoch).fd
        header = os.pread(fd, HEADER_BYTES, 0)  # holds a token of its own for every build
        known, shard = self._mapped.get(epoch & 1, (b"", None))
        if shard is None or known != header:
            shard = Shard(fd)
            self._mapped[epoch & 1] = header, shard
        return shard

    def shard_of(self, epoch: int, job: ShardJob) -> Shard:
        """The same, built here first if no process has done it: workers of a loader of one's own share one shard."""
        with suppress(ValueError):
            return self.shard(epoch)
        with _alone_with(self._guard.fd):
            with suppress(ValueError):  # another one was faster
                return self.shard(epoch)
            job.build(self.file(epoch).fd)
        return self.shard(epoch)

    def __getstate__(self) -> dict[str, object]:
        # by handle to a process that is being started, and empty everywhere else: it can be built again
        return self.__dict__ | {"_mapped": {}} if get_spawning_popen() is not None else {"_mapped": {}}

    def __setstate__(self, state: dict[str, object]) -> None:
        Slots.__init__(self)
        self.__dict__.update(state)


class Shards:
    """The rank's side of the slots: fills them, one epoch ahead, beside the training."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._held: dict[int, int] = {}  # slot -> epoch
        self._building: tuple[int, ShardBuilder] | None = None

    def begin(self, epoch: int, job: ShardJob) -> None:
        """Starts building an epoch's shard in a process of its own, where that is worth it.

        The slot must be free: no batch of the epoch before the last is still to be delivered.
        """
        if self._building is None and self._held.get(epoch & 1) != epoch and job.meta.size_bytes >= BESIDE_BYTES:
            self._held.pop(epoch & 1, None)
            try:
                self._building = epoch, ShardBuilder(job, self._slots.file(epoch))
            except OSError as error:  # no process or no descriptor to be had
                _log.warning(f"no process could be started to build the rows of epoch {epoch} ({error.strerror})")

    def ready(self, epoch: int, job: ShardJob) -> None:
        """Returns once an epoch's shard is in its slot. Raises RowError, ChangedError."""
        if self._held.get(epoch & 1) == epoch:
            return
        if self._building is not None and self._building[0] != epoch:
            self.close()
        self.begin(epoch, job)  # also the first: what building leaves in the allocator's pools is not the rank's then
        building, self._building = self._building, None
        if building is not None:
            try:
                building[1].wait()
                self._held[epoch & 1] = epoch
                return
            except BuilderDied as died:
                _log.warning(f"the process that built the rows of epoch {epoch} {died}: they are built here instead")
        self._held.pop(epoch & 1, None)
        job.build(self._slots.file(epoch).fd)
        self._held[epoch & 1] = epoch

    def close(self) -> None:
        """Ends what is being built."""
        if self._building is not None:
            self._building[1].close()
            self._building = None


@contextmanager
def _alone_with(fd: int) -> Iterator[None]:
    with _lock:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(fd, fcntl.LOCK_UN)
