"""Tar shards of a data set, with a meta file that says where every image lies in them.

    out/shard-000000.tar   000000000.jpg 000000000.cls 000000001.jpg …: row numbers of the source
    out/meta.txt           shard-000000.tar@512:20480 3
    out/classes.txt        one name per label
    out/pack.json          what was packed and how; written last
    out/skipped.txt        rows that were left out, if any
    out/.packing/          while it is made: for every whole shard a table of its rows and hashes, and the lock

A shard and its table are published by renames, the table last, so a pack that was killed goes on after its last whole
shard. Shards depend on the source and the settings alone: however often a pack was interrupted, and however many
threads read, the bytes are the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ImageError, OptionError, PackError, counted
from ..index.unfinished import TORN, publish, sync_folder
from ..meta import MetaFile
from ..sources.parquet import ParquetImages
from .packable import Item, Packable, packable, tasks
from .shards import ShardWriter, Table, read_table, remove_from, shard_name, verify_shard

SHARD_BYTES = 256 << 20
LEAST_SHARD_BYTES = 64 << 10
POLICIES = ("raise", "skip")
WORK = ".packing"
MAGIC = "rankrun-pack"
VERSION = 1


@dataclass(frozen=True)
class Packed:
    """What a pack made: `meta` is the new meta file, of `rows` rows in `shards` tars of `size_bytes` together.

    `kept` of the shards were there already, whole; `skipped` rows of the source were left out.
    """

    meta: Path
    rows: int
    shards: int
    size_bytes: int
    kept: int
    skipped: int


def pack(
    source: MetaFile | ParquetImages,
    out_dir: str | os.PathLike[str],
    *,
    shard_bytes: int = SHARD_BYTES,
    resize: int | None = None,
    on_error: str = "raise",
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Packed:
    """Copies all images of a source into tar shards of at most `shard_bytes`, in the order of its rows.

    `resize`: images whose shorter side is longer are scaled to it (see shrink.py). on_error "skip" decodes all
    images and leaves out those that can't be; an unfinished pack with another on_error is begun anew. `workers`
    threads read ahead. `progress` is told after every row how many are done, and again from 0 while all shards are
    read back and compared. Given again after a kill it goes on; given again when all is done it only says so.
    Raises PackError, ImageError, OptionError, ChangedError.
    """
    threads = _checked(shard_bytes, resize, on_error, workers)
    out = Path(out_dir)
    images = packable(source)
    _refuse_inside(source, out)
    about = _about(images, shard_bytes, resize, on_error)
    try:
        with _locked(out, about) as finished:
            if finished is not None:
                return finished
            return _Pack(images, out, about, threads, progress or (lambda done: None)).run()
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise PackError(
            f"{out}: {error.strerror or error}{place}: what is whole is kept; mend that, give the same command again "
            "and it goes on"
        ) from None


def _refuse_inside(source: MetaFile | ParquetImages, out: Path) -> None:
    """A folder among class folders would be a class itself from then on."""
    folder = source.files[0].path if isinstance(source, MetaFile) else None
    if folder is not None and folder.is_dir() and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)):
        raise PackError(f"{out} lies among the class folders of {folder} and would be one: give a folder elsewhere")


def _checked(shard_bytes: int, resize: int | None, on_error: str, workers: int | None) -> int:
    """The number of threads; raises OptionError."""
    if shard_bytes < LEAST_SHARD_BYTES:
        raise OptionError(f"shard_bytes {shard_bytes}: legal are {LEAST_SHARD_BYTES} and more")
    if resize is not None and not 1 <= resize <= 1 << 16:
        raise OptionError(f"resize {resize}: legal are 1 … {1 << 16} pixels")
    if on_error not in POLICIES:
        raise OptionError(f"on_error {on_error!r}: legal are {', '.join(POLICIES)}")
    if workers is not None and workers < 1:
        raise OptionError(f"workers {workers}: legal are 1 and more")
    return workers or os.cpu_count() or 1


def _about(images: Packable, shard_bytes: int, resize: int | None, on_error: str) -> dict[str, Any]:
    """What makes two packs the same."""
    names = "\n".join(images.classes)
    return {
        "magic": MAGIC,
        "version": VERSION,
        "fingerprint": images.fingerprint,
        "rows": images.n,
        "classes": hashlib.blake2b(names.encode(), digest_size=16).hexdigest(),
        "shard_bytes": shard_bytes,
        "resize": resize,
        "on_error": on_error,
    }


class _Pack:
    """One pack under its lock."""

    def __init__(
        self,
        images: Packable,
        out: Path,
        about: dict[str, Any],
        threads: int,
        progress: Callable[[int], object],
    ) -> None:
        self.images = images
        self.out = out
        self.work = out / WORK
        self.about = about
        self.threads = threads
        self.progress = progress

    def run(self) -> Packed:
        tables = self._whole()
        kept = len(tables)
        left = self._write(tables)
        rows = sum(table.count for table in tables)
        if rows == 0:
            raise PackError(f"{self.out}: none of {counted(self.images.n, 'image')} could be read; {left[0][1]}")
        self._verify(tables)
        self._finish(tables, left)
        size = sum(table.size_bytes for table in tables)
        skipped = sum(table.skipped for table in tables) + len(left)
        return Packed(self.out / "meta.txt", rows, len(tables), size, kept, skipped)

    def _whole(self) -> list[Table]:
        """The tables of the whole shards there are, from the first on."""
        tables: list[Table] = []
        first = 0
        while (table := read_table(self.out, self.work, len(tables), first)) is not None:
            tables.append(table)
            first = table.stop
        return tables

    def _write(self, tables: list[Table]) -> list[tuple[int, str]]:
        """Writes the rows behind the last table into new shards; returns what was skipped behind the last of these."""
        first = tables[-1].stop if tables else 0
        skipped: list[tuple[int, str]] = []
        shard: ShardWriter | None = None
        try:
            for item in _loaded(self.images, first, self.threads, self.about):
                if item.reason is not None:
                    self._skip(item, skipped)
                else:
                    if shard is not None and not shard.fits(item, self.about["shard_bytes"]):
                        # what was skipped behind its last row is its as well, so that the next one begins behind that
                        tables.append(shard.close(self.out, skipped))
                        shard, skipped = None, []
                    if shard is None:
                        shard = ShardWriter(self.work, len(tables), tables[-1].stop if tables else 0)
                    shard.add(item)
                self.progress(item.row + 1)
            if shard is not None:
                tables.append(shard.close(self.out, skipped))
                skipped = []
            return skipped
        finally:
            if shard is not None:
                shard.drop()

    def _skip(self, item: Item, skipped: list[tuple[int, str]]) -> None:
        told = f"{item.place}: {item.reason}"
        if self.about["on_error"] == "raise":
            raise ImageError(f"{told} (mend it and give the same command again; on_error 'skip' leaves such rows out)")
        skipped.append((item.row, told))

    def _verify(self, tables: list[Table]) -> None:
        """Reads every shard back; one that is not what was written loses its table, so that it is made anew."""
        with ThreadPoolExecutor(self.threads) as pool:
            done = 0
            self.progress(done)
            problems = pool.map(lambda table: verify_shard(self.out, table), tables)
            for table, problem in zip(tables, problems, strict=True):
                if problem is not None:
                    pool.shutdown(cancel_futures=True)
                    table.path.unlink(missing_ok=True)
                    raise PackError(f"{problem}: the same command, given again, makes anew what follows from there")
                done += table.count
                self.progress(done)

    def _finish(self, tables: list[Table], left: list[tuple[int, str]]) -> None:
        """The files for people, each whole or not there; pack.json says that all is done.

        Shards behind the last are of an earlier try, before images changed. They went no sooner: where there are no
        locks they may be another's, and they cost nothing.
        """
        remove_from(self.out, len(tables))
        skipped = [pair for table in tables for pair in table.left_out()] + left
        if skipped:
            lines = (f"{row}\t{told}\n".encode("utf-8", "replace") for row, told in skipped)
            publish(self.out / "skipped.txt", lines, self.work)
        publish(self.out / "classes.txt", (f"{name}\n".encode() for name in self.images.classes), self.work)
        publish(self.out / "meta.txt", (line for table in tables for line in table.lines()), self.work)
        done = {
            **self.about,
            "packed": sum(table.count for table in tables),
            "skipped": len(skipped),
            "sizes_bytes": [table.size_bytes for table in tables],
        }
        publish(self.out / "pack.json", [json.dumps(done).encode() + b"\n"], self.work)
        sync_folder(self.out)
        shutil.rmtree(self.work)


def _loaded(images: Packable, first: int, threads: int, about: dict[str, Any]) -> Iterator[Item]:
    """All rows from `first` on in their order, with their bytes; `threads` of them are worked on at a time."""
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[Item]] = deque()
    try:
        for task in tasks(images, first, about["resize"], decode=about["on_error"] == "skip"):
            pending.append(pool.submit(task))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _locked(out: Path, about: dict[str, Any]) -> Iterator[Packed | None]:
    """The folder for this pack alone; yields what was packed if it is finished already, else None.

    Raises PackError where the folder holds anything else, or somebody packs there now.
    """
    work = out / WORK
    out.mkdir(parents=True, exist_ok=True)
    while True:
        if (finished := _read_json(out / "pack.json")) is not None:
            _compare(out, finished, about)
            shutil.rmtree(work, ignore_errors=True)  # one that was killed in its last step leaves it
            yield _packed(out, finished)
            return
        if not work.is_dir() and (inside := sorted(os.listdir(out))):
            raise PackError(f"{out} holds {inside[0]!r} and is no pack: give a new or an empty folder")
        work.mkdir(exist_ok=True)
        if (lock := _lock(out, work / "lock")) is not None:
            break
    try:
        if (begun := _read_json(work / "pack.json")) is not None:
            _compare(out, {**begun, "on_error": about["on_error"]}, about)
            if begun.get("on_error") != about["on_error"]:  # other rows may be left out: nothing of it is kept
                for table in work.glob("*.rows"):
                    table.unlink()
        publish(work / "pack.json", [json.dumps(about).encode()])
        yield None
    finally:
        os.close(lock)


def _lock(out: Path, path: Path) -> int | None:
    """The lock as an open file, or None where its holder has just finished and removed it.

    It is the kernel's and ends with its holder. On file systems that have none nothing is lost: two packs at once write
    the same bytes under names of their own and rename them to the same files.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return None
    alone = True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 200, 0).decode(errors="replace") or "another process"
        os.close(fd)
        raise PackError(f"{out} is being packed by {holder}: wait until it is done, or stop it") from None
    except OSError:
        alone = False  # a file system without locks
    try:
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            for torn in path.parent.glob(f"*{TORN}*") if alone else ():
                torn.unlink(missing_ok=True)
            return fd
    except FileNotFoundError:
        pass
    os.close(fd)
    return None


def _read_json(path: Path) -> dict[str, Any] | None:
    """A pack.json of ours, or None where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("magic") != MAGIC or found.get("version") != VERSION:
        raise PackError(f"{path} is no file of this version of 'data pack': give a new or an empty folder")
    return found


_WORDS = {"fingerprint": "other rows", "rows": "another number of rows", "classes": "other classes"}


def _compare(out: Path, found: dict[str, Any], about: dict[str, Any]) -> None:
    """Raises PackError unless the folder's pack is the one that is asked for."""
    differing = [key for key in about if found.get(key) != about[key]]
    if differing:
        told = [_WORDS.get(key, f"{key} {found.get(key)} and not {about[key]}") for key in differing]
        raise PackError(f"{out} is a pack of {', '.join(told)}: give another folder, or remove that one")


def _packed(out: Path, finished: dict[str, Any]) -> Packed:
    """What a finished pack is; raises PackError if a part of it is missing."""
    sizes: list[int] = finished["sizes_bytes"]
    for number, size in enumerate(sizes):
        path = out / shard_name(number)
        if not path.is_file() or path.stat().st_size != size:
            raise PackError(f"{path} is not the {size} bytes that were packed: remove {out} and pack again")
    if not (out / "meta.txt").is_file():
        raise PackError(f"{out / 'meta.txt'} is missing: remove {out} and pack again")
    count, skipped = int(finished["packed"]), int(finished["skipped"])
    return Packed(out / "meta.txt", count, len(sizes), sum(sizes), len(sizes), skipped)
