"""What the tests of training share: a tiny data set of real files, and real ranks as processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
LIMIT_S = 120


def write_digits(folder: Path, rows: int = 44, val_rows: int = 13) -> Path:
    """A config at `folder/tiny.yaml` for drawn pictures of two kinds, 8 x 8 grey."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", rows), ("val", val_rows)):
        lines = []
        for number in range(count):
            pixels = rng.integers(0, 120, (8, 8), dtype=np.uint8)
            pixels[:, (number % 2) * 4 : (number % 2) * 4 + 4] += 100
            Image.fromarray(pixels).save(folder / f"{name}{number}.png")
            lines.append(f"{name}{number}.png {number % 2}\n")
        (folder / f"{name}.txt").write_text("".join(lines))
    (folder / "tiny.yaml").write_text(
        f"""
data:
  train: {folder}/train.txt
  val: {folder}/val.txt
  classes: [left, right]
  channels: 1
  decoder: pillow
  audit: true
  workers: 0
  train_transforms: [{{Pad: {{padding: 1}}}}, {{RandomCrop: {{size: 8}}}}, {{RandomErasing: {{probability: 0.5}}}}]
  eval_transforms: [ToTensor]
model: {{args: {{width: 4, blocks: [1], dropout: 0.2}}}}
train: {{epochs: 2, global_batch: 9, micro_batch: 3, log_every_steps: 2}}
"""
    )
    return folder / "tiny.yaml"


def start_ranks(
    arguments: Sequence[str],
    world_size: int,
    *,
    cwd: Path = ROOT,
    launcher: str = "torchrun",
    extra: Mapping[str, str] | None = None,
) -> list[subprocess.Popen[str]]:
    """One Python process per rank, with the variables of `launcher`; output is captured, stderr into stdout."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(world_size):
        env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "RANKRUN_"))}
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'training'}"}
        if launcher == "single":
            pass
        elif launcher == "srun":
            env |= {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_NODEID": "0"}
            env |= {"SLURM_NTASKS": str(world_size), "SLURM_LOCALID": str(rank), "SLURM_NNODES": "1"}
        else:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            env |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
        ranks.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                cwd=cwd,
                env=env | dict(extra or {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return ranks


def end_of(ranks: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """(exit code, output) of each rank; all are killed if one is still there after two minutes."""
    try:
        return [(rank.returncode, output) for rank in ranks for output in [rank.communicate(timeout=LIMIT_S)[0]]]
    finally:
        for rank in ranks:
            rank.kill()
