"""Which device this rank computes on, and what makes its arithmetic repeatable there."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch

from rankrun.errors import ConfigError, WorldError
from rankrun.world import World


def choose_device(name: str, world: World) -> torch.device:
    """`cpu`, or the GPU of this rank's local rank. `auto` takes GPUs where there are any.

    ConfigError if `cuda` is asked for and there is none; WorldError if the ranks of this node outnumber its GPUs
    (two ranks on one GPU would wait for each other for ever in NCCL).
    """
    count = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    if count == 0:
        raise ConfigError("train.device: cuda was asked for, but torch sees no GPU here; legal here: cpu, auto")
    if world.launcher == "srun" and count == 1:
        return torch.device("cuda", 0)  # SLURM has already shown each task a GPU of its own
    if world.local_world_size > count:
        raise WorldError(
            f"this node has {world.local_world_size} ranks and {count} GPU{'s' if count > 1 else ''}; start at most "
            f"{count} per node, or set train.device=cpu"
        )
    return torch.device("cuda", world.local_rank)


def settle(device: torch.device, threads: int, environ: MutableMapping[str, str]) -> None:
    """Makes the same operation on the same input give the same bits, now and after a restart.

    Sums depend on how many threads share them, so `threads` comes from the config and is part of a run's identity.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every fresh tensor with NaN is for finding bugs; it costs time and changes no result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda":
        environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS makes its handle, not at import
        torch.backends.cudnn.benchmark = False
        torch.cuda.set_device(device)
