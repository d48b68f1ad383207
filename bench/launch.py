"""Command to first all-reduce, and the memory of ranks that wait: `launch.py run` beside `torchrun`, interleaved.

    python bench/launch.py                                 2, 8 and 32 ranks, then memory; an hour on two cores
    python bench/launch.py --nproc 2 8 --rounds 5 --idle 0

Time: the script joins a gloo group and sums one tensor; every rank writes when it had the sum, and the last of them
counts. Both launchers start cold (a new interpreter); the page cache is warm after one round that is not counted.
Every rank's sum is checked in every round before its time counts. Beside 8 ranks stands one bare `import torch`.

Memory: the ranks of the same script wait after their sum. Counted is the proportional set size (Pss of
smaps_rollup: shared pages are divided among those who share them) of the launcher and all its descendants.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from rounds import bound, compare, interleaved, machine, spread

ROOT = Path(__file__).resolve().parent.parent
BOUNDS = {2: 0.60, 8: 0.23, 32: 0.08}  # ours / torchrun
BESIDE_IMPORT = (8, 1.5)  # ranks, ours / one bare import
MEMORY_BOUND = 0.4
LIMIT_S = 600

SCRIPT = """\
import os, sys, time
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
seen = time.time()
place = os.path.join(sys.argv[1], f"rank-{dist.get_rank()}")
with open(place + ".begun", "w") as file:
    file.write(f"{seen} {int(total)}")
os.rename(place + ".begun", place)
while sys.argv[2] == "wait" and not os.path.exists(os.path.join(sys.argv[1], "go")):
    time.sleep(0.05)
dist.destroy_process_group()
"""


def command(launcher: str, nproc: int, script: Path) -> list[str]:
    """What a person would type."""
    if launcher == "ours":
        return [sys.executable, str(ROOT / "launch.py"), "run", "--nproc", str(nproc), str(script)]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}", str(script)]


def to_first_all_reduce(launcher: str, nproc: int, script: Path) -> float:
    """Seconds from the command to the last rank's sum; stops the bench unless every rank's sum is right."""
    with tempfile.TemporaryDirectory(dir=script.parent) as folder:
        words = [*command(launcher, nproc, script), folder, "leave"]
        began = time.time()
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(words)} left with {done.returncode}:\n{done.stdout}{done.stderr}")
        return max(sums(Path(folder), nproc)) - began


def sums(folder: Path, nproc: int) -> list[float]:
    """When each rank had its sum, which must be right."""
    answers = [(folder / f"rank-{rank}").read_text().split() for rank in range(nproc)]
    if any(int(total) != nproc for _, total in answers):
        raise SystemExit(f"the sum over {nproc} ranks is wrong: {answers}")
    return [float(seen) for seen, _ in answers]


def bare_import() -> float:
    """Seconds of one interpreter that imports torch and ends."""
    began = time.time()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.time() - began


def idle_memory(launcher: str, nproc: int, script: Path) -> float:
    """GB that the launcher and all its descendants hold while the ranks wait after their first sum."""
    with tempfile.TemporaryDirectory(dir=script.parent) as place:
        folder = Path(place)
        words = [*command(launcher, nproc, script), place, "wait"]
        process = subprocess.Popen(words, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + LIMIT_S
        while not all((folder / f"rank-{rank}").exists() for rank in range(nproc)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{' '.join(words)}: its ranks never had their sum (exit code {process.poll()})")
            time.sleep(0.05)
        sums(folder, nproc)
        held = sum(map(proportional_bytes, family(process.pid)))
        (folder / "go").touch()
        if process.wait(LIMIT_S) != 0:
            raise SystemExit(f"{' '.join(words)} left with {process.returncode}")
        return held / 1e9


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(below for child in children for below in family(child))]


def proportional_bytes(pid: int) -> int:
    """The proportional set size of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/{pid}/smaps_rollup says no Pss")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nproc", type=int, nargs="*", default=[2, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle", type=int, default=8, help="ranks whose memory is measured; 0 leaves that out")
    options = parser.parse_args()
    print(machine("torch"), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch) / "first_all_reduce.py"
        script.write_text(SCRIPT)
        for nproc in options.nproc:
            ways = {name: partial(to_first_all_reduce, name, nproc, script) for name in ("ours", "torchrun")}
            if nproc == BESIDE_IMPORT[0]:
                ways["import torch"] = bare_import
            times = interleaved(ways, options.rounds)
            print(compare(f"{nproc} ranks", times, "ours", "torchrun", at_most=BOUNDS.get(nproc)))
            if "import torch" in times:
                ratios = [a / b for a, b in zip(times["ours"], times["import torch"], strict=True)]
                print(f"  {'one bare import torch':24} {spread(times['import torch'])}")
                print(f"  {'ours / import torch':24} {spread(ratios, 'x')}", end="")
                print(bound(statistics.median(ratios), at_most=BESIDE_IMPORT[1]))
            sys.stdout.flush()
        if options.idle:
            ways = {name: partial(idle_memory, name, options.idle, script) for name in ("ours", "torchrun")}
            held = interleaved(ways, options.rounds, warmup=0)
            ratios = [a / b for a, b in zip(held["ours"], held["torchrun"], strict=True)]
            print(f"memory of {options.idle} ranks that wait:")
            for name in ways:
                print(f"  {name:24} {spread(held[name], 'GB')}")
            print(f"  {'ours / torchrun':24} {spread(ratios, 'x')}", end="")
            print(bound(statistics.median(ratios), at_most=MEMORY_BOUND))


if __name__ == "__main__":
    main()
