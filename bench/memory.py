"""What a meta file costs in memory, over all processes of a node: 8 ranks with 4 loader workers each.

    python bench/memory.py --folder /scratch --starts fork forkserver spawn

For every way of starting workers: the proportional set size (PSS) of all processes of the run over 10 million rows,
with the shards of two epochs alive, minus that of the same run over 16 rows; and its growth over 5 whole epochs of
400,000 rows. Beside it the obvious way: every rank holds a list of (path, label), which its workers copy page by page
as Python counts references. Shared memory that no process has mapped at the moment is counted as well.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lists import meta_file
from rounds import bound, machine

RANKS, WORKERS, BATCH = 8, 4, 16
SHARDS = "memfd:rankrun-shard"


def serve(options: argparse.Namespace) -> None:
    """One rank: loads until its workers are busy and the next shard is there, then answers each line of stdin."""
    import torch

    from data import MetaFile, RankDataset, build_loader

    torch.set_num_threads(1)
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    if options.way == "lists":
        _serve_lists(options, picture)
        return
    meta = MetaFile(options.meta, classes=1000)
    dataset = RankDataset(meta, RANKS, options.rank, seed=1, load=Constant(picture))
    batch = min(RANKS * BATCH, meta.n)
    loader = build_loader(dataset, global_batch=batch, workers=WORKERS, worker_start=options.start)
    epoch, batches = 0, loader.epoch(0)
    for word in sys.stdin:
        if word.strip() == "some":
            for _ in range(20):
                if next(batches, None) is None:
                    epoch += 1
                    batches = loader.epoch(epoch)
            building = loader_builder(batches)
            if building is not None:
                building._process.wait()
            gc.collect()  # what the collector copies of pages shared by fork has nothing to do with the rows
        else:
            for _ in batches:
                pass
            epoch += 1
            batches = loader.epoch(epoch)
            next(batches)
        print("ready", flush=True)


def loader_builder(batches: Iterator[object]) -> object:
    """The process that builds the next shard, if there is one."""
    stream = batches.gi_frame.f_locals.get("stream")  # type: ignore[attr-defined]
    building = None if stream is None or stream._shards is None else stream._shards._building
    return building and building[1]


class Constant:
    """A picture for every path; can be pickled."""

    def __init__(self, picture: object) -> None:
        self.picture = picture

    def __call__(self, path: str) -> object:
        return self.picture


def _serve_lists(options: argparse.Namespace, picture: object) -> None:
    import torch
    from torch.utils.data import DataLoader, Dataset, DistributedSampler

    class Listed(Dataset):
        def __init__(self) -> None:
            self.rows = []
            with open(options.meta) as file:
                for line in file:
                    path, _, label = line.rstrip("\n").rpartition(" ")
                    self.rows.append((path, int(label)))

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> tuple[object, int]:
            return picture, self.rows[index][1]

    dataset = Listed()
    sampler = DistributedSampler(dataset, RANKS, options.rank, seed=1)
    loader = DataLoader(dataset, BATCH, sampler=sampler, num_workers=WORKERS, persistent_workers=True)
    batches = iter(loader)
    for word in sys.stdin:
        if word.strip() == "some":
            for _ in range(20):
                if next(batches, None) is None:
                    batches = iter(loader)
        else:
            for _ in batches:
                pass
            batches = iter(loader)
        print("ready", flush=True)
    del torch


class Run:
    """The 8 ranks of one run, as processes of their own."""

    def __init__(self, meta: Path, start: str, way: str = "ours") -> None:
        words = [
            sys.executable,
            "-W",
            "ignore",
            __file__,
            "--serve",
            "--meta",
            str(meta),
            "--start",
            start,
            "--way",
            way,
        ]
        self.ranks = [
            subprocess.Popen([*words, "--rank", str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for rank in range(RANKS)
        ]

    def do(self, word: str) -> None:
        for rank in self.ranks:
            assert rank.stdin is not None
            rank.stdin.write(word + "\n")
            rank.stdin.flush()
        for rank in self.ranks:
            assert rank.stdout is not None
            if rank.stdout.readline().strip() != "ready":
                raise SystemExit("a rank ended before its time")

    def processes(self) -> list[int]:
        found = [rank.pid for rank in self.ranks]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def memory(self) -> dict[str, float]:
        """MB of all processes, their number, and MB in the memory files of shards."""
        pss = mapped = 0
        pids = self.processes()
        for pid in pids:
            for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
                if not line.split(None, 1)[0].endswith(":"):  # the head of a mapping
                    inside = SHARDS in line
                elif line.startswith("Pss:"):
                    size = int(line.split()[1]) * 1024
                    pss += size
                    mapped += size if inside else 0
        files: dict[int, int] = {}
        for rank in self.ranks:
            for fd in Path(f"/proc/{rank.pid}/fd").iterdir():
                if SHARDS in os.readlink(fd):
                    facts = os.stat(fd)
                    files[facts.st_ino] = facts.st_blocks * 512
        shards = sum(files.values())
        return {"total": (pss - mapped + shards) / 1e6, "shards": shards / 1e6, "processes": len(pids)}

    def end(self) -> None:
        for rank in self.ranks:
            assert rank.stdin is not None
            rank.stdin.close()
        for rank in self.ranks:
            rank.wait(60)


def settled(meta: Path, start: str, way: str = "ours") -> dict[str, float]:
    """The memory of a run in the middle of an epoch, the next one's shards built."""
    run = Run(meta, start, way)
    try:
        run.do("some")
        run.do("some")
        return run.memory()
    finally:
        run.end()


def growth(meta: Path, start: str, way: str = "ours", epochs: int = 5) -> float:
    """MB per process and epoch, from the end of the first epoch to that of the last."""
    run = Run(meta, start, way)
    try:
        run.do("some")
        run.do("epoch")
        before = run.memory()
        for _ in range(epochs - 1):
            run.do("epoch")
        after = run.memory()
        return (after["total"] - before["total"]) / (epochs - 1) / before["processes"]
    finally:
        run.end()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(tempfile.gettempdir())
    parser.add_argument("--folder", type=Path, default=folder, help="where the meta files lie or are made")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--starts", nargs="+", default=["fork", "forkserver", "spawn"])
    parser.add_argument("--peer-rows", type=int, default=1_000_000, help="of the obvious way; more is more memory")
    parser.add_argument("--growth-rows", type=int, default=400_000)
    for hidden in ("--meta", "--start", "--way"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    print(machine("torch", "numpy"))
    many, few = meta_file(options.folder, options.rows), meta_file(options.folder, 16)
    for start in options.starts:
        began = time.monotonic()
        large, small = settled(many, start), settled(few, start)
        more, processes = large["total"] - small["total"], large["processes"]
        most = 1.1 * large["shards"] + 2 * processes
        print(
            f"{start:10} {options.rows:,} rows: {more:7.0f} MB more than 16 rows, of which {large['shards']:.0f} MB "
            f"two shards per rank, in {processes:.0f} processes{bound(more, at_most=round(most))}"
        )
        slope = growth(meta_file(options.folder, options.growth_rows), start)
        seconds = time.monotonic() - began
        print(f"{'':10} {slope:+7.2f} MB per process and epoch{bound(slope, at_most=1)}  ({seconds:.0f} s)", flush=True)
    peer = meta_file(options.folder, options.peer_rows)
    large, small = settled(peer, "fork", "lists"), settled(few, "fork", "lists")
    ours, ours_small = settled(peer, "fork"), settled(few, "fork")
    after = growth(meta_file(options.folder, options.growth_rows), "fork", "lists")
    print(json.dumps({"lists": large, "ours": ours}), file=sys.stderr)
    print(
        f"lists      {options.peer_rows:,} rows: {large['total'] - small['total']:.0f} MB more than 16 rows, ours "
        f"{ours['total'] - ours_small['total']:.0f} MB; {after:+.2f} MB per process and epoch"
    )


if __name__ == "__main__":
    main()
