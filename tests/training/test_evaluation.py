from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

from rankrun.errors import BadInput
from rankrun.training.evaluation import evaluate
from rankrun.training.process_group import Group

CPU = torch.device("cpu")


@dataclass
class Batch:
    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    draws: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    replaced: tuple[tuple[int, int], ...] = ()

    def to(self, device: torch.device) -> Batch:
        return self


@dataclass
class Loader:
    batches: list[Batch]
    limit: int = 0

    def epoch(self, epoch: int) -> list[Batch]:
        return self.batches

    def check_budget(self, replaced: int) -> None:
        if replaced > self.limit:
            raise BadInput(f"{replaced} replaced")


def evaluated(logits: torch.Tensor, labels: torch.Tensor, sizes: list[int], padding: int = 0) -> dict[str, float | int]:
    images = torch.cat([logits, logits[:padding]])
    wrong = torch.cat([labels, labels[:padding]])
    weights = torch.cat([torch.ones(len(labels)), torch.zeros(padding)])
    sizes = [*sizes, len(images) - sum(sizes)]
    batches = [
        Batch(*parts) for parts in zip(images.split(sizes), wrong.split(sizes), weights.split(sizes), strict=True)
    ]
    return evaluate(nn.Identity(), Loader(batches), lambda images, draws: images, Group(0, 1), CPU)


def test_against_torchs_own_figures() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(103, 9), torch.randint(9, (103,))
    result = evaluated(logits, labels, [40, 40], padding=7)
    assert result["rows"] == 103
    assert result["loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), abs=1e-6)
    assert result["top1"] == (logits.argmax(1) == labels).sum().item() / 103
    five = (logits.topk(5).indices == labels[:, None]).any(1)
    assert result["top5"] == five.sum().item() / 103


def test_any_split_gives_the_same_figures_exactly() -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(53, 4), torch.randint(4, (53,))
    whole = evaluated(logits, labels, [])
    assert "top5" not in whole
    for sizes, padding in (([1] * 52, 0), ([20, 20], 3), ([50], 1)):
        assert evaluated(logits, labels, sizes, padding) == whole


def test_a_loss_that_is_not_finite_shows() -> None:
    logits = torch.zeros(3, 2)
    logits[1, 0] = float("nan")
    result = evaluated(logits, torch.zeros(3, dtype=torch.int64), [])
    assert math.isnan(result["loss"])
    assert result["rows"] == 3
    # but not when it belongs to padding
    logits = torch.zeros(3, 2)
    batch = Batch(torch.full((1, 2), float("nan")), torch.zeros(1, dtype=torch.int64), torch.zeros(1))
    good = Batch(logits, torch.zeros(3, dtype=torch.int64), torch.ones(3))
    result = evaluate(nn.Identity(), Loader([good, batch]), lambda images, draws: images, Group(0, 1), CPU)
    assert result["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_mode_comes_back_and_the_batches_tick() -> None:
    model, ticks = nn.Dropout(0.5).train(), []
    batch = Batch(torch.rand(2, 3), torch.zeros(2, dtype=torch.int64), torch.ones(2))
    evaluate(model, Loader([batch] * 3), lambda images, draws: images, Group(0, 1), CPU, ticks.append)
    assert model.training
    assert ticks == [0, 0, 1, 2]


def test_replaced_rows_are_counted_once_and_kept_to_the_budget() -> None:
    rows, weights = torch.tensor([5, 6, 7, 5]), torch.tensor([1.0, 1.0, 1.0, 0.0])  # 5 once more, as padding
    batch = Batch(torch.rand(4, 2), torch.zeros(4, dtype=torch.int64), weights, None, rows, ((5, 1), (7, 2), (5, 1)))
    result = evaluate(nn.Identity(), Loader([batch], 2), lambda images, draws: images, Group(0, 1), CPU)
    assert result["replaced"] == 2
    with pytest.raises(BadInput, match="2 replaced") as caught:
        evaluate(nn.Identity(), Loader([batch], 1), lambda images, draws: images, Group(0, 1), CPU)
    assert caught.value.told_by == 0
    good = Batch(torch.rand(2, 2), torch.zeros(2, dtype=torch.int64), torch.ones(2))
    assert "replaced" not in evaluate(nn.Identity(), Loader([good]), lambda images, draws: images, Group(0, 1), CPU)
