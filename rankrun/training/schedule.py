"""The learning rate as a pure function of the step: nothing to save, nothing to restore, nothing to get out of step."""

from __future__ import annotations

import math
from collections.abc import Callable

from rankrun.config.settings import Settings


def learning_rate(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    base: float,
    name: str = "cosine",
    final_fraction: float = 0.0,
) -> float:
    """The rate of step `step` (from 0): a straight rise over `warmup_steps`, then `name` down to its end.

    The rise ends exactly at `base` with its last step, and never begins with 0, which would waste a step. `cosine`
    (Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts) reaches `base * final_fraction` at `total_steps`;
    `constant` stays at `base`. A warm-up longer than the run is cut short by the run's end.

        total 6, warm-up 2, base 1:   0.5  1.0  1.0  0.854  0.5  0.146
    """
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    if name == "constant":
        return base
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return base * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def learning_rates(settings: Settings, steps_per_epoch: int) -> Callable[[int], float]:
    """The run's learning rate by step, as `settings` describe it."""

    def rate(step: int) -> float:
        return learning_rate(
            step,
            total_steps=settings.train.epochs * steps_per_epoch,
            warmup_steps=round(settings.schedule.warmup_epochs * steps_per_epoch),
            base=settings.optim.lr,
            name=settings.schedule.name,
            final_fraction=settings.schedule.final_lr_fraction,
        )

    return rate
