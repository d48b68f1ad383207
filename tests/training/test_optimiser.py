from __future__ import annotations

import pytest
import torch
from torch import nn

from rankrun.config.settings import Optim
from rankrun.training.optimiser import build_optimiser, optimiser_tensors, restore_optimiser, set_learning_rate


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))


def train(net: nn.Module, optimiser: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        set_learning_rate(optimiser, 0.01 * (step + 1))
        images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        net(images).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("optim", [Optim(), Optim(momentum=0.0), Optim(nesterov=False), Optim(name="adamw", lr=0.01)])
def test_restored_state_goes_on_to_the_bit(optim: Optim) -> None:
    straight = model()
    optimiser = build_optimiser(straight, optim)
    train(straight, optimiser, range(6))

    net = model()
    first = build_optimiser(net, optim)
    train(net, first, range(3))
    saved = {name: tensor.clone() for name, tensor in optimiser_tensors(net, first).items()}
    again = build_optimiser(net, optim)
    restore_optimiser(net, again, saved)
    train(net, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), net.parameters(), strict=True))
    ours, theirs = optimiser_tensors(straight, optimiser), optimiser_tensors(net, again)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_vectors_do_not_decay() -> None:
    groups = build_optimiser(model(), Optim(weight_decay=0.1)).param_groups
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [
        (0.1, {2, 4}),
        (0.0, {1}),
    ]
    groups = build_optimiser(model(), Optim(weight_decay=0.1, no_decay_on_norm_and_bias=False)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1]


def test_frozen_parameters_are_left_out_and_names_are_known() -> None:
    net = model()
    net[0].weight.requires_grad_(False)
    optimiser = build_optimiser(net, Optim())
    train(net, optimiser, range(1))
    assert "3.weight/momentum_buffer" in optimiser_tensors(net, optimiser)
    assert "0.weight/momentum_buffer" not in optimiser_tensors(net, optimiser)
    with pytest.raises(KeyError, match="unknown"):
        restore_optimiser(net, optimiser, {"unknown/momentum_buffer": torch.zeros(1)})
