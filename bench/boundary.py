"""Does an epoch begin without a stall, do workers start at once, and what does a resume cost?

    python bench/boundary.py --folder /scratch --rows 1000000 10000000 50000000

Rank 0 of 8 serves a meta file; images are not read (`load` gives a constant), so nothing hides a wait. A step of
training is a pause. Three questions, each beside the way without the part that answers it:

  boundary   the wait for the first batch of epoch 1 beside the median wait for a batch; the obvious way builds the
             dataset and the loader anew for each epoch
  workers    from the start of two workers to their first batch, beside that at 1,000 rows
  resume     from the start to the first batch at position n/2, beside position 0
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lists import meta_file
from rounds import bound, compare, interleaved, machine, spread

from data import MetaFile, RankDataset, build_loader
from data.loader import Loader, _Stream

WORLD, BATCH = 8, 64
TAIL_STEPS = 600  # of epoch 0, so that there is time to build the next shard as in a real epoch
PICTURE = torch.zeros(3, 8, 8, dtype=torch.uint8)


def constant(path: str) -> torch.Tensor:
    return PICTURE


def loader_of(meta: MetaFile, workers: int = 2) -> Loader:
    dataset = RankDataset(meta, WORLD, 0, seed=1, load=constant)
    return build_loader(dataset, global_batch=WORLD * BATCH, workers=workers)


def waits(loader: Loader, steps: int, pause_s: float) -> tuple[float, float, list[int]]:
    """(wait for the first batch of epoch 1, median wait within epochs, the first rows of epoch 1)."""
    seen: list[float] = []
    first: list[int] = []
    boundary = 0.0
    for epoch, start in ((0, loader.cut - steps * WORLD * BATCH), (1, 0)):
        batches = loader.epoch(epoch, start, carry={"sums": [0, 0, 0]})
        asked = time.perf_counter()
        for number, batch in enumerate(batches):
            waited = time.perf_counter() - asked
            if number:
                seen.append(waited)
            elif epoch:
                boundary, first = waited, batch.rows.tolist()
            time.sleep(pause_s)
            asked = time.perf_counter()
            if epoch and number == 50:
                break
        batches.close()
    loader.close()
    return boundary, statistics.median(seen), first


def obvious_boundary(meta: MetaFile) -> tuple[float, list[int]]:
    """The wait where dataset and loader are made anew for epoch 1."""
    began = time.perf_counter()
    dataset = RankDataset(meta, WORLD, 0, seed=1, epoch=1, load=constant)
    batches = build_loader(dataset, global_batch=WORLD * BATCH, workers=2).epoch(1)
    rows = next(batches).rows.tolist()
    waited = time.perf_counter() - began
    batches.close()
    return waited, rows


def worker_start(meta: MetaFile) -> float:
    """Seconds from the start of two workers to their first batch, the shard being there."""
    stream = _streaming(loader_of(meta))
    stream._make_ready(0, 0)
    began = time.perf_counter()
    batches = stream.epoch(0, 0)
    next(batches)
    seconds = time.perf_counter() - began
    batches.close()
    stream.close()
    return seconds


def _streaming(loader: Loader) -> _Stream:
    return _Stream(loader._dataset, loader._split, True, 1, loader._workers)


def first_batch(meta: MetaFile, half: bool) -> float:
    loader = loader_of(meta)
    start = loader.steps_per_epoch // 2 * WORLD * BATCH if half else 0
    began = time.perf_counter()
    batches = loader.epoch(0, start, carry={"sums": [0, 0, 0]})
    next(batches)
    seconds = time.perf_counter() - began
    batches.close()
    loader.close()
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="of the meta files")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000, 50_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.01, help="seconds of a step's training")
    options = parser.parse_args()
    print(machine("torch", "numpy"))
    metas = {rows: MetaFile(meta_file(options.folder, rows), classes=1000) for rows in options.rows}
    small = MetaFile(meta_file(options.folder, 1000), classes=1000)

    found: dict[int, list[tuple[float, float]]] = {rows: [] for rows in options.rows}
    theirs: dict[int, list[float]] = {rows: [] for rows in options.rows}
    for _ in range(options.rounds):
        for rows, meta in metas.items():
            boundary, median, first = waits(loader_of(meta), TAIL_STEPS, options.pause)
            anew, first_anew = obvious_boundary(meta)
            if first != first_anew:
                raise SystemExit(f"{rows} rows: the two ways serve different rows: {first[:4]} and {first_anew[:4]}")
            found[rows].append((boundary, median))
            theirs[rows].append(anew)
    for rows, pairs in found.items():
        extra = [boundary - median for boundary, median in pairs]
        batch = statistics.median(median for _, median in pairs) + options.pause
        print(f"boundary, {rows:,} rows:")
        print(f"  {'extra wait':24} {spread(extra)}{bound(statistics.median(extra), at_most=batch + 0.01)}")
        print(f"  {'a batch (step and wait)':24} {1e3 * batch:9.3f} ms")
        print(f"  {'dataset made anew':24} {spread(theirs[rows])}")

    ten = metas.get(10_000_000) or metas[max(metas)]
    times = interleaved(
        {"many rows": lambda: worker_start(ten), "1,000 rows": lambda: worker_start(small)}, options.rounds
    )
    longer = [a - b for a, b in zip(times["many rows"], times["1,000 rows"], strict=True)]
    print(compare(f"workers, {ten.n:,} rows", times, "many rows", "1,000 rows"))
    print(f"  {'longer by':24} {spread(longer)}{bound(statistics.median(longer), at_most=0.05)}")

    most = metas[max(metas)]
    ways = {"at n/2": lambda: first_batch(most, True), "at 0": lambda: first_batch(most, False)}
    print(compare(f"resume, {most.n:,} rows", interleaved(ways, options.rounds), "at n/2", "at 0", at_most=1.1))


if __name__ == "__main__":
    main()
