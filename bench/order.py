"""The order of an epoch: time and memory to the first positions, in bulk, and beside torch's DistributedSampler.

    python bench/order.py                        about three minutes and 6 GB, all of it DistributedSampler's
    python bench/order.py --peer-rows 1000000

1. The first 1,000 positions of a rank at 10^9 rows: at most 2 ms and 20 MB.
2. Nanoseconds per index in bulk: at most 60 x (the power of two that holds n) / n. Blocks beside it.
3. To the first index that a sampler gives, rank 3 of 8: at least 1,000 times sooner than DistributedSampler.

Times of 1 and 3 and all memory are taken in a child process each (a new interpreter, imports not counted), memory as
the growth of its peak. Before anything is timed the orders are checked: inverse to themselves, the same rows one by
one as in bulk, and both samplers deal each row once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from rounds import bound, compare, interleaved, machine, spread  # noqa: E402

from data.blocks import BlockOrder  # noqa: E402
from data.order import Order, Permutation  # noqa: E402
from data.sampler import ElasticSampler  # noqa: E402

BILLION = 10**9
BULK = 4_000_000

# Times `act()` in a child and prints [seconds, MB of peak memory]; the peak is the kernel's.
CHILD = """
import json, sys, time
sys.path.insert(0, {root!r})
import numpy as np
{imports}
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith("VmHWM"))
before = peak()
began = time.perf_counter()
{act}
print(json.dumps([time.perf_counter() - began, peak() - before]))
"""

FIRST_THOUSAND = ("from data.order import Permutation", "Permutation(10**9, seed=1, epoch=2)[3 : 3 + 8000 : 8]")
FIRST_THOUSAND_IN_BLOCKS = (
    "from data.blocks import BlockOrder\nstarts = np.arange(11_521) * 10**9 // 11_520",
    "BlockOrder(starts, seed=1, epoch=2)[3 : 3 + 8000 : 8]",
)
OURS = (
    "from data.sampler import ElasticSampler",
    "next(iter(ElasticSampler(range({n}), 8, 3, seed=1)))",
)
TORCHS = (
    "from torch.utils.data.distributed import DistributedSampler",
    "next(iter(DistributedSampler(range({n}), 8, 3, seed=1)))",
)


class Child:
    """One way, run in a process of its own; keeps what memory each run took."""

    def __init__(self, way: tuple[str, str], **names: int) -> None:
        imports, act = way
        self._program = CHILD.format(root=str(ROOT), imports=imports, act=act.format(**names))
        self.megabytes: list[float] = []

    def __call__(self) -> float:
        done = subprocess.run([sys.executable, "-c", self._program], capture_output=True, text=True, check=True)
        seconds, megabytes = json.loads(done.stdout)
        self.megabytes.append(megabytes)
        return float(seconds)


def check() -> None:
    """Fails unless the orders are what they promise; nothing is timed before."""
    units = np.arange(11_521) * BILLION // 11_520
    orders: list[Order] = [Permutation(BILLION, seed=1, epoch=2), BlockOrder(units, seed=1, epoch=2)]
    for order in orders:
        rows = order[3:8003:8]
        assert np.unique(rows).size == 1000
        assert [order[g] for g in range(3, 83, 8)] == rows[:10].tolist()
        assert order.inverse(rows).tolist() == list(range(3, 8003, 8))
    from torch.utils.data.distributed import DistributedSampler

    for kind in (ElasticSampler, DistributedSampler):
        dealt = [int(row) for rank in range(8) for row in kind(range(80_000), 8, rank, seed=1)]
        assert sorted(dealt) == list(range(80_000))


def bulk(order: Order) -> float:
    """Seconds for the first positions of rank 3 of 8."""
    began = time.perf_counter()
    order[3 : 3 + 8 * BULK : 8]
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-rows", type=int, default=10**8)
    options = parser.parse_args()
    print(machine("numpy", "torch"))
    check()

    rows, blocks = Child(FIRST_THOUSAND), Child(FIRST_THOUSAND_IN_BLOCKS)
    times = interleaved({"rows": rows, "blocks": blocks}, options.rounds)
    print(f"first 1,000 positions of a rank at {BILLION:,} rows:")
    for name, child in (("rows", rows), ("blocks", blocks)):
        memory = max(child.megabytes)
        print(f"  {name:24} {spread(times[name])}{bound(float(np.median(times[name])), at_most=0.002)}")
        print(f"  {'':24} {memory:9.3f} MB at most{bound(memory, at_most=20)}")

    ways: dict[str, Order] = {f"rows n={n:,}": Permutation(n, seed=1) for n in (10**8, 2**27, BILLION)}
    ways["blocks n=1,000,000,000"] = BlockOrder(np.arange(11_521) * BILLION // 11_520, seed=1)
    bulks = interleaved({name: lambda order=order: bulk(order) for name, order in ways.items()}, options.rounds)  # type: ignore[misc]
    print("in bulk, nanoseconds per index:")
    for name, order in ways.items():
        each = [seconds / BULK * 1e9 for seconds in bulks[name]]
        # the domain of a block order is that of a lane
        size = -(-order.n // order.lanes) if isinstance(order, BlockOrder) else order.n
        limit = round(60 * (1 << (size - 1).bit_length()) / size, 1)
        print(f"  {name:24} {spread(each, 'ns')}{bound(float(np.median(each)), at_most=limit)}")

    ours, torchs = Child(OURS, n=options.peer_rows), Child(TORCHS, n=options.peer_rows)
    # a round ahead would cost as much as a round: both start in new interpreters and read no file
    times = interleaved({"ElasticSampler": ours, "DistributedSampler": torchs}, options.rounds, warmup=0)
    title = f"to the first index at {options.peer_rows:,} rows"
    print(compare(title, times, "ElasticSampler", "DistributedSampler", at_least=1000))
    print(f"  memory at most: {max(ours.megabytes):.1f} MB, {max(torchs.megabytes):,.0f} MB")


if __name__ == "__main__":
    main()
