"""The optimiser, and its state under the parameters' names instead of numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankrun.config.settings import Optim


def build_optimiser(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """SGD or AdamW over `model`'s parameters; vectors (norms, biases) don't decay where `optim` says so.

    The learning rate is set anew at every step (see schedule.py), so the one in here is only where it starts.
    """
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            keeps = optim.no_decay_on_norm_and_bias and parameter.ndim <= 1
            (plain if keeps else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.betas[0], optim.betas[1]))
    nesterov = optim.nesterov and optim.momentum > 0  # Nesterov's form of no momentum is none
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=nesterov)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Every group of `optimiser` uses `rate` from now on."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def optimiser_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of `optimiser`'s state as `<parameter>/<key>`, e.g. `head.weight/momentum_buffer`.

    Hyperparameters are left out: they follow from the config and the step.
    """
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts back what `optimiser_tensors` gave, to the bit, on each parameter's device.

    KeyError names a tensor whose parameter `model` doesn't have.
    """
    parameters = dict(model.named_parameters())
    state: dict[nn.Parameter, dict[str, Any]] = {}
    for name, value in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters[owner]
        # A state of the parameter's shape lives beside it, in its memory format; Adam's step counts stay on the CPU.
        kept = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape and value.ndim else value
        state.setdefault(parameter, {})[key] = kept.detach()
    optimiser.state.clear()
    for parameter, values in state.items():
        optimiser.state[parameter] = values
