"""Command to first all-reduce: `launch.py run` beside `torchrun`, the same script, interleaved.

    python bench/launch.py --nproc 2 8 --rounds 5

The script joins a gloo group and sums one tensor; rank 0 then writes the time. Both launchers start cold each round
(a new interpreter), the page cache is warm after one round that is not counted. Every rank's sum is checked in every
round before its time counts. Printed: each median, the ratio ours / torchrun round by round and its median.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """\
import os, sys, time
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
seen = time.time()
with open(os.path.join(sys.argv[1], f"rank-{dist.get_rank()}"), "w") as file:
    file.write(f"{seen} {int(total)}")
dist.destroy_process_group()
"""


def seconds_to_first_all_reduce(command: list[str], nproc: int, folder: Path) -> float:
    """From the start of `command` to the last rank's finished all-reduce; fails unless every rank's sum is right."""
    began = time.time()
    done = subprocess.run([*command, str(folder)], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} left with {done.returncode}:\n{done.stdout}{done.stderr}")
    answers = [(folder / f"rank-{rank}").read_text().split() for rank in range(nproc)]
    if any(int(total) != nproc for _, total in answers):
        raise SystemExit(f"{' '.join(command)}: the sum over {nproc} ranks is wrong: {answers}")
    return max(float(seen) for seen, _ in answers) - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nproc", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        script = folder / "first_all_reduce.py"
        script.write_text(SCRIPT)
        for nproc in options.nproc:
            ours = [sys.executable, str(ROOT / "launch.py"), "run", "--nproc", str(nproc), str(script)]
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            theirs = [*torchrun, "--nproc-per-node", str(nproc), str(script)]
            pairs = []
            for number in range(options.rounds + 1):
                a = seconds_to_first_all_reduce(ours, nproc, folder)
                b = seconds_to_first_all_reduce(theirs, nproc, folder)
                if number > 0:
                    pairs.append((a, b))
            report(nproc, pairs)
    from importlib.metadata import version

    print(f"torch {version('torch')}, Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}")


def report(nproc: int, pairs: list[tuple[float, float]]) -> None:
    """Medians, spread and the ratio of one number of ranks."""
    ratios = sorted(a / b for a, b in pairs)
    ours, theirs = sorted(a for a, _ in pairs), sorted(b for _, b in pairs)
    print(
        f"{nproc:3} ranks   ours {statistics.median(ours):6.2f} s [{ours[0]:.2f} … {ours[-1]:.2f}]   "
        f"torchrun {statistics.median(theirs):6.2f} s [{theirs[0]:.2f} … {theirs[-1]:.2f}]   "
        f"ratio {statistics.median(ratios):.3f} [{ratios[0]:.3f} … {ratios[-1]:.3f}]   n={len(pairs)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
