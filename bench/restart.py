"""From the SIGKILL of a rank to the next training step of all ranks: `launch.py run` beside `torchrun`, interleaved.

    python bench/restart.py                                4 ranks, 20 kills each; a quarter of an hour on two cores
    python bench/restart.py --rounds 2 --plain

Every round starts a launch of a small DDP training, waits until all ranks train, kills one of them (each in turn) and
stops the clock when the last rank has finished its first step after the restart. A step's loss is summed over the
ranks and must be what the step number says, else the round is a failure; so is one that does not recover within the
limit. torchrun runs with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, without which its restarted ranks meet the addresses of
dead ones in the shared store and rarely recover on CPU (pytorch#135712).

The script imports torchvision and steps torch.optim.SGD, as vision training does; --plain leaves both out (the first
optimiser of a process imports torch._dynamo, which torchvision brings along).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from rounds import bound, compare, interleaved, machine

ROOT = Path(__file__).resolve().parent.parent
RATIO, SECONDS = 0.4, 2.5
LIMIT_S = 90  # to recover; torchrun that has not by then never does
START_LIMIT_S = 300
_LOOK_S = 0.005

# One line per finished step: restart count, step, time, and whether the sum over all ranks was right.
SCRIPT = """\
import os, sys, time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(64, 8))
restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
with open(os.path.join(sys.argv[1], f"rank-{rank}"), "a", buffering=1) as steps:
    print("pid", os.getpid(), file=steps)
    for step in range(1_000_000):
        model(torch.ones(4, 64)).sum().backward()
        UPDATE
        total = torch.tensor([step + rank])
        dist.all_reduce(total)
        right = total.item() == world_size * step + world_size * (world_size - 1) // 2
        print("step", restarts, time.time(), right, file=steps)
        time.sleep(0.02)
"""
SGD = "optimiser.step(); optimiser.zero_grad()"
BY_HAND = "[p.data.sub_(p.grad, alpha=1e-3) for p in model.parameters()]; model.zero_grad()"


def script(plain: bool) -> str:
    """The training, with an optimiser and torchvision or without both."""
    if plain:
        return SCRIPT.replace("UPDATE", BY_HAND)
    made = "model = DistributedDataParallel(torch.nn.Linear(64, 8))\n"
    text = SCRIPT.replace("import torch\n", "import torch\nimport torchvision\n", 1).replace("UPDATE", SGD)
    return text.replace(made, made + "optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)\n")


class Recovery:
    """Measures one way, a different rank in every round; failures are counted and their reasons kept."""

    def __init__(self, words: list[str], program: Path, nproc: int) -> None:
        self.failures: list[str] = []
        self._words = words
        self._program = program
        self._nproc = nproc
        self._round = 0

    def __call__(self) -> float:
        """Seconds from the kill to the last rank's next step; NaN for a failure."""
        victim = self._round % self._nproc
        self._round += 1
        with tempfile.TemporaryDirectory(dir=self._program.parent) as place:
            folder = Path(place)
            env = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
            with (folder / "output").open("w") as output:
                process = subprocess.Popen(
                    [*self._words, str(self._program), place],
                    cwd=place,
                    env=env,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            try:
                return self._measure(process, folder, victim)
            finally:
                end(process, folder)

    def _measure(self, process: subprocess.Popen[bytes], folder: Path, victim: int) -> float:
        began = time.monotonic()
        while min(self._steps(folder, "0")) < 3:
            if process.poll() is not None or time.monotonic() - began > START_LIMIT_S:
                raise SystemExit(f"{' '.join(self._words)} never trained:\n{(folder / 'output').read_text()}")
            time.sleep(_LOOK_S)
        pid = int((folder / f"rank-{victim}").read_text().split()[1])
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        while min(self._steps(folder, "1")) < 1:
            if process.poll() is not None or time.time() - killed > LIMIT_S:
                what = "it hangs" if process.poll() is None else f"it left with {process.returncode}"
                self.failures.append(f"kill of rank {victim}: {what}")
                return math.nan
            time.sleep(_LOOK_S)
        firsts = [self._lines(folder, rank, "1")[0] for rank in range(self._nproc)]
        if any(right != "True" for _, right in firsts):
            self.failures.append(f"kill of rank {victim}: the sum of the next step is wrong")
            return math.nan
        return max(float(seen) for seen, _ in firsts) - killed

    def _steps(self, folder: Path, restart: str) -> list[int]:
        return [len(self._lines(folder, rank, restart)) for rank in range(self._nproc)]

    def _lines(self, folder: Path, rank: int, restart: str) -> list[list[str]]:
        """(time, right) of every finished step of a rank since that restart."""
        file = folder / f"rank-{rank}"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [line.split()[2:] for line in lines if line.startswith(f"step {restart} ")]


def end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End a launch: SIGTERM, and after ten seconds SIGKILL for it and the ranks that it started."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.terminate()
        process.wait(10)
        return
    process.kill()
    process.wait()
    for file in folder.glob("rank-*"):
        pid = int(file.read_text().rpartition("pid ")[2].split()[0])
        with contextlib.suppress(OSError):
            if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nproc", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--plain", action="store_true", help="a script without torchvision and an optimiser")
    options = parser.parse_args()
    print(machine("torch", "torchvision"), flush=True)
    ours = [sys.executable, str(ROOT / "launch.py"), "run", "--nproc", str(options.nproc), "--max-restarts", "3"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "3"]
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "train.py"
        program.write_text(script(options.plain))
        make = partial(Recovery, program=program, nproc=options.nproc)
        ways = {"ours": make(ours), "torchrun": make([*torchrun, "--nproc-per-node", str(options.nproc)])}
        times = interleaved(ways, options.rounds, warmup=0)
    both = [pair for pair in zip(times["ours"], times["torchrun"], strict=True) if not any(map(math.isnan, pair))]
    print(f"{options.nproc} ranks, a SIGKILL of each in turn, to the next step:")
    for name, way in ways.items():
        recovered = options.rounds - len(way.failures)
        limit = bound(recovered, at_least=options.rounds) if name == "ours" else ""
        print(f"  {name:24} {recovered:9} of {options.rounds} recovered{limit}")
        for line in way.failures:
            print(f"    {line}")
    if both:
        named = dict(zip(("ours", "torchrun"), map(list, zip(*both, strict=True)), strict=True))
        print(compare("rounds in which both recovered", named, "ours", "torchrun", at_most=RATIO))
    seconds = [each for each in times["ours"] if not math.isnan(each)]
    if seconds:
        middle = statistics.median(seconds)
        print(f"  {'ours, median':24} {middle:9.3f} s{bound(middle, at_most=SECONDS)}")


if __name__ == "__main__":
    main()
