"""Where a run is: the little that says everything about what comes next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rankrun.training.process_group import Group

if TYPE_CHECKING:
    from rankrun.config import Settings


@dataclass
class Progress:
    """`step` optimiser steps are done, `position` samples of `epoch` are given to finished steps.

    `loader` is what the loader said after the last step of this epoch (this rank's part; right after a resume the
    sum over all ranks, which is what the loader takes to go on). `best` is `{"step", "epoch", "metric", "value"}`.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    loader: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] | None = None

    def advance(self, state_after: Mapping[str, Any]) -> None:
        """One more step is done, after which the loader said `state_after`."""
        self.step += 1
        self.position = state_after["position"]
        self.loader = dict(state_after)

    def next_epoch(self) -> None:
        """This epoch is done: the run stands at the beginning of the next."""
        self.epoch += 1
        self.position = 0
        self.loader = {}

    def is_done(self, settings: Settings) -> bool:
        """All epochs are trained."""
        return self.epoch >= settings.train.epochs

    def wants_evaluation(self, settings: Settings) -> bool:
        """Between two epochs, if this is one of every `eval.every_epochs`, and always after the last."""
        between = self.step > 0 and self.position == 0
        return between and (self.epoch % settings.eval.every_epochs == 0 or self.is_done(settings))

    def wants_saving(self, settings: Settings) -> bool:
        """After a step, if this is one of every `checkpoint.every_steps`."""
        every = settings.checkpoint.every_steps
        return every is not None and self.step % every == 0


def whole_state(group: Group, state: Mapping[str, Any]) -> dict[str, Any]:
    """The loader's state over all ranks: `sums` and `replaced` added up, epoch and position as they are.

    The sums are mod 2^64, kept as signed numbers; int64 tensors add them with the same wrap-around.
    """
    parts = group.total(torch.tensor([*state["sums"], state["replaced"]], dtype=torch.int64))
    *sums, replaced = parts.tolist()
    return {"epoch": state["epoch"], "position": state["position"], "sums": sums, "replaced": replaced}
