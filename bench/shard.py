"""One epoch's shard of one rank beside the obvious way, its memory, and what order=block reads.

    python bench/shard.py --folder /scratch --rows 50000000 --world 8 1024
    python bench/shard.py --meta train.txt --part memory blocks

ours      open the meta file (its index is there), the rank's rows from Permutation, build_shard, one thread
obvious   count the lines, permute all of them, read the file through, keep (path, label) of the own rows in a list

Before anything is timed, both take the same rows and must give the same (path, label) for every one of them. Each way
runs in a process of its own, one after the other, and says how long it took; the page cache is warm.

memory    the largest sum of anonymous and memory-file pages of a process while it builds, against
          1.25 x (the shard's text + 8 bytes per row) + 40 MB
blocks    bytes read for a shard in block order against the file's size / world size, counted at every read
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from lists import meta_file
from rounds import bound, compare, interleaved, machine

from data.blocks import BlockOrder, choose_blocks
from data.memory import MemoryFile
from data.meta import MetaFile
from data.order import Order, Permutation, rows_at
from data.shard import Shard, build_shard

CLASSES = 1000


def ours(path: Path, world_size: int, seed: int) -> Shard:
    """The shard of rank 1 of an epoch."""
    meta = MetaFile(path, classes=CLASSES)
    file = MemoryFile()
    build_shard(meta, rows_of(meta.n, world_size, Permutation(meta.n, seed=seed)), file.fd)
    return Shard(file.fd)


def rows_of(n: int, world_size: int, order: Order) -> np.ndarray:
    return rows_at(np.arange(1 % world_size, n, world_size), n, order)


def obvious(path: Path, world_size: int, seed: int, rows: np.ndarray | None = None) -> list[tuple[str, int]]:
    """The same as plain lists; its own permutation unless it is told the rows."""
    with open(path, encoding="utf-8") as file:
        n = sum(1 for _ in file)
    if rows is None:
        rows = np.random.default_rng(seed).permutation(n)[1 % world_size :: world_size]
    place = {row: at for at, row in enumerate(rows.tolist())}
    samples: list[tuple[str, int]] = [("", 0)] * len(place)
    with open(path, encoding="utf-8") as file:
        for row, line in enumerate(file):
            at = place.get(row)
            if at is not None:
                name, label = line.rsplit(" ", 1)
                samples[at] = name, int(label)
    return samples


def same(path: Path, world_size: int, seed: int) -> None:
    """Stops unless both ways give the same samples for the same rows."""
    shard = ours(path, world_size, seed)
    n = MetaFile(path, classes=CLASSES).n
    samples = obvious(path, world_size, seed, rows_of(n, world_size, Permutation(n, seed=seed)))
    assert len(shard) == len(samples)
    told, expected = hashlib.blake2b(), hashlib.blake2b()
    for index, (name, label) in enumerate(samples):
        told.update(shard.line(index) + b"\n")
        expected.update(f"{name} {label}\n".encode())
    if told.digest() != expected.digest():
        raise SystemExit(f"world size {world_size}: the two ways give different samples")
    print(f"world size {world_size}: {len(samples):,} samples, the same both ways", flush=True)


def in_a_process(act: str, path: Path, world_size: int, seed: int) -> float:
    """What this script's own `act` prints, in a fresh interpreter."""
    words = [
        sys.executable,
        __file__,
        "--act",
        act,
        "--meta",
        str(path),
        "--world",
        str(world_size),
        "--seed",
        str(seed),
    ]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])


def timed(way: str, path: Path, world_size: int, seed: int) -> float:
    began = time.perf_counter()
    held = (ours if way == "ours" else obvious)(path, world_size, seed)
    passed = time.perf_counter() - began
    assert len(held) > 0
    return passed


def peak(path: Path, world_size: int, seed: int) -> float:
    """The most anonymous memory and memory-file pages that this process held while it built, in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    file = MemoryFile()
    highest = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            status = Path("/proc/self/status").read_text()
            anonymous = int(status.split("RssAnon:")[1].split()[0]) * 1024
            blocks = -(-os.fstat(file.fd).st_blocks * 512 // page) * page
            highest = max(highest, anonymous + blocks)

    watcher = threading.Thread(target=watch)
    watcher.start()
    meta = MetaFile(path, classes=CLASSES)
    build_shard(meta, rows_of(meta.n, world_size, Permutation(meta.n, seed=seed)), file.fd)
    done.set()
    watcher.join()
    return float(highest)


def own_bytes(path: Path, world_size: int) -> float:
    """Text of a rank's rows: its share of the file."""
    return path.stat().st_size / world_size


def memory(path: Path, worlds: list[int]) -> None:
    for world_size in worlds:
        found = in_a_process("peak", path, world_size, 1)
        rows = MetaFile(path, classes=CLASSES).n / world_size
        found, limit = found / 1e6, 1.25 * (own_bytes(path, world_size) + 8 * rows) / 1e6 + 40
        print(f"world size {world_size:5}: peak {found:8.1f} MB, limit {limit:8.1f} MB{bound(found, round(limit, 1))}")


def blocks(path: Path, worlds: list[int]) -> None:
    meta = MetaFile(path, classes=CLASSES)
    chosen = choose_blocks(meta.size_bytes)
    order = BlockOrder(meta.unit_starts(chosen.unit_bytes), seed=1, lanes=chosen.lanes)
    print(f"order=block: {chosen.lanes} lanes, units of {chosen.unit_bytes >> 10} KiB")
    for world_size in worlds:
        before = meta.read_bytes
        file = MemoryFile()
        build_shard(meta, rows_of(meta.n, world_size, order), file.fd)
        share = (meta.read_bytes - before) / meta.size_bytes * world_size
        held = Shard(file.fd)
        assert held.line(0) == meta.line(int(order[1 % world_size]))
        print(f"  world size {world_size:5}: reads {share:.4f} / W of the file{bound(share, 1.1)}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meta", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--world", type=int, nargs="+", default=[8, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", nargs="+", choices=["time", "memory", "blocks"], default=["time", "memory", "blocks"])
    parser.add_argument("--act", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.meta or meta_file(options.folder, options.rows)
    if options.act:
        act = peak if options.act == "peak" else partial(timed, options.act)
        print(act(path, options.world[0], options.seed))
        return
    print(machine("numpy"))
    print(f"{MetaFile(path, classes=CLASSES).n:,} rows, {path.stat().st_size / 1e9:.2f} GB", flush=True)
    if "blocks" in options.part:
        blocks(path, [8, 16, 90, 720])
    if "memory" in options.part:
        memory(path, options.world)
    for world_size in options.world if "time" in options.part else []:
        same(path, world_size, 1)
        ways = {way: partial(in_a_process, way, path, world_size, 1) for way in ("ours", "obvious")}
        times = interleaved(ways, options.rounds, warmup=0)
        bounds = {8: 8.0, 1024: 50.0}
        print(
            compare(f"world size {world_size}", times, "ours", "obvious", at_least=bounds.get(world_size)), flush=True
        )


if __name__ == "__main__":
    main()
