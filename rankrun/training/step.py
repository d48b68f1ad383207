"""What makes one step the same mathematics, and the same bits, for any split and after any start."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rankrun.training.process_group import Group


def distribute(model: nn.Module, group: Group, device: torch.device) -> nn.Module:
    """`model` with its gradients averaged over the ranks in every backward pass; itself where there is one rank.

    All ranks start from rank 0's weights. Rank 0's buffers (BatchNorm's running means) go to all at the start of
    every step, so that at the boundary of a step there is one state of the model, the one that rank 0 saves, and a
    rank that is restored from it goes on like one that never stopped.
    """
    if group.world_size == 1:
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)


def gradients_wait(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Around the forward and backward pass of a micro-batch: ranks talk only in a step's last one."""
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


class Rehearsal:
    """Two passes forward and backward whose results are thrown away, before a start's first step.

    After its first backward pass DDP regroups the gradients into buckets by the order in which they became ready, and
    with three ranks or more another grouping is another order of summation, hence other bits. A run that starts
    anew at step 1200 would do steps 1200 and 1201 with the groups that an undisturbed run had at 0 and 1 only
    (tried: without this, 3 ranks and 1.2 million parameters end with another hash after a kill). So every start gets
    it over with. Weights are not touched, since no optimiser step is taken; buffers, random state and gradients are
    put back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model: nn.Module | None = model if isinstance(model, DistributedDataParallel) else None

    def once(self, loss: Callable[[], Tensor]) -> None:
        """The rehearsal with the loss of this attempt's first batch; nothing when called again, or without DDP."""
        model, self._model = self._model, None
        if model is None:
            return
        buffers = [buffer.clone() for buffer in model.buffers()]
        gpus = sorted({parameter.device.index for parameter in model.parameters() if parameter.is_cuda})
        with torch.random.fork_rng(gpus):
            for _ in range(2):
                loss().backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)


def seed_micro_batch(seed: int, step: int, rank: int, index: int, device: torch.device) -> None:
    """Seeds torch's default generators for the `index`-th micro-batch of this rank in `step`: what dropout draws.

    So the random state before any step is known from the step alone: nothing has to be saved or restored, and what
    the loader drew in this process (it may run in it) makes no difference.
    """
    packed = struct.pack("<QQQQ", seed, step, rank, index)
    value = int.from_bytes(hashlib.blake2b(packed, digest_size=8, person=b"micro-batch").digest(), "little")
    # The generators themselves: torch.manual_seed visits every backend, 0.4 ms per call.
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


def share_of_loss(losses: Tensor, weights: Tensor, step_weight: float, world_size: int) -> Tensor:
    """This micro-batch's part of the step's loss, a scalar: `W · Σ wᵢ lᵢ / Σ_step w`.

    `losses` and `weights` are `[B]`; `step_weight` is the sum of weights of the whole step over all ranks. DDP then
    takes the mean over `W` ranks, so that the gradient is that of the mean over the global batch, however it is split
    into ranks and micro-batches and whether or not the parts are equal.
    """
    return (losses * weights).sum() * (world_size / step_weight)
