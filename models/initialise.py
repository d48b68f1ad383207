"""Initialisation by name: weights as a function of the layer's kind, drawn from torch's default generator."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

from torch import Tensor, nn
from torchvision.models import resnet

from .errors import ModelError

Draw = Callable[[Tensor], Tensor]

# He et al. 2015 (arXiv 1502.01852) with fan_out, so that the gradients keep their scale on the way back; Glorot and
# Bengio 2010; Saxe et al. 2013 (arXiv 1312.6120); 0.02 is what the transformers of the field begin with.
DRAWS: dict[str, Draw] = {
    "kaiming": partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
    "xavier": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
    "trunc_normal": partial(nn.init.trunc_normal_, std=0.02, a=-0.04, b=0.04),
}
NAMES = ("default", *DRAWS)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


def initialise(model: nn.Module, name: str) -> None:
    """Draws the weights of every convolution and linear layer anew, in the order of `model.modules()`.

    Biases become 0, norms 1 and 0; a linear layer (the head above all) is drawn with its fan_in. `default` leaves
    what the model's own constructors drew. Parameters of other kinds stay as they are.
    """
    if name == "default":
        return
    if name not in DRAWS:
        close = get_close_matches(name, NAMES, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ModelError(f"model.init: there is no initialisation '{name}'; there are {', '.join(NAMES)}.{hint}")
    draw = DRAWS[name]
    draw_linear = partial(nn.init.kaiming_normal_, mode="fan_in", nonlinearity="linear") if name == "kaiming" else draw
    for module in model.modules():
        if isinstance(module, _CONVOLUTIONS):
            draw(module.weight)
        elif isinstance(module, nn.Linear):
            draw_linear(module.weight)
        elif isinstance(module, _NORMS) and module.weight is not None:
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def zero_last_norms(model: nn.Module) -> int:
    """Sets the last norm's weight of every residual block to 0, so that the block starts as its shortcut
    (Goyal et al. 2017, arXiv 1706.02677, section 5.1), and returns how many there were.

    A block is one of torchvision's ResNets or any module with an attribute `last_norm`.
    """
    count = 0
    for module in model.modules():
        norm = getattr(module, "last_norm", None)
        if isinstance(module, resnet.BasicBlock):
            norm = module.bn2
        elif isinstance(module, resnet.Bottleneck):
            norm = module.bn3
        if isinstance(norm, nn.Module) and isinstance(norm.weight, Tensor):
            nn.init.zeros_(norm.weight)
            count += 1
    return count
