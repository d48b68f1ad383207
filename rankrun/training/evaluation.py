"""Evaluation: every row counted once, whatever the world size; sums that don't depend on the order of adding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from rankrun.training.process_group import Group

# Losses are summed as whole numbers of 2^-20: the sum is then the same in any order and for any number of ranks, and
# 2^43 (a billion rows of loss 8,000) fits. A single loss is rounded by 5e-7 at most.
_LOSS_UNIT = 2.0**-20


class Batches(Protocol):
    """What an evaluation needs of a loader."""

    def epoch(self, epoch: int) -> Iterable[Any]: ...

    def check_budget(self, replaced: int) -> None: ...


@torch.no_grad()
def share_buffers(model: nn.Module, group: Group) -> None:
    """Gives rank 0's buffers to all ranks, one message per dtype: BatchNorm's means are then one model's, not W."""
    if group.world_size == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for buffer in model.buffers():
        by_dtype.setdefault(buffer.dtype, []).append(buffer)
    for buffers in by_dtype.values():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.broadcast(flat, src=0)
        start = 0
        for buffer in buffers:
            buffer.copy_(flat[start : start + buffer.numel()].view_as(buffer))
            start += buffer.numel()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Batches,
    to_input: Callable[[Tensor, Tensor], Tensor],
    group: Group,
    device: torch.device,
    tick: Callable[[int], object] = lambda done: None,
) -> dict[str, float | int]:
    """`{"rows", "loss", "top1", "top5"}` of `model` (not wrapped) over epoch 0 of all ranks; top5 from 6 classes on.

    `replaced` stands there too if samples could not be read and others were shown instead; the loader's own error is
    raised on all ranks alike, told by rank 0, if they are more than it allows.

    A batch is moved with `.to(device)`; then `to_input(batch.images, batch.draws)` is what the network gets, `labels`
    are `[B] int64`, and `weights [B]` are 0 for padding. Loss is the mean cross-entropy, NaN if any row's is not
    finite. `tick` hears how many batches are done, before the first one is asked for and when each has come.
    The model is left in training mode if it was in it.
    """
    was_training = model.training
    share_buffers(model, group)
    model.eval()
    # rows, right, right in five, loss units, rows without a finite loss, rows that were replaced
    sums = torch.zeros(6, dtype=torch.int64)
    classes = 0
    tick(0)
    for done, batch in enumerate(loader.epoch(0)):
        tick(done)
        batch = batch.to(device)
        logits = model(to_input(batch.images, batch.draws)).float()
        labels, counts = batch.labels, batch.weights > 0
        classes = logits.shape[1]
        losses = functional.cross_entropy(logits, labels, reduction="none").double()
        finite = losses.isfinite() & counts
        best = logits.topk(min(5, classes), dim=1).indices == labels[:, None]
        sums += torch.stack([
            counts.sum(),
            (best[:, 0] & counts).sum(),
            (best.any(dim=1) & counts).sum(),
            (losses[finite] / _LOSS_UNIT).round().long().sum(),
            (counts & ~finite).sum(),
            torch.tensor(_replaced_rows(batch), device=device),
        ]).cpu()  # fmt: skip
    model.train(was_training)
    rows, right, right_in_five, units, unfinite, replaced = (int(value) for value in group.total(sums))
    group.together(lambda: loader.check_budget(replaced))
    result: dict[str, float | int] = {
        "rows": rows,
        "loss": float("nan") if unfinite else units * _LOSS_UNIT / rows,
        "top1": right / rows,
    }
    if classes > 5:
        result["top5"] = right_in_five / rows
    if replaced:
        result["replaced"] = replaced
    return result


def _replaced_rows(batch: Any) -> int:
    # Padding repeats rows, and how many it repeats depends on the world size.
    if not batch.replaced:
        return 0
    counted = set(batch.rows[batch.weights.cpu() > 0].tolist())
    return len({row for row, _ in batch.replaced} & counted)
