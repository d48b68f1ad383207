from __future__ import annotations

import math

import pytest
import torch
import torchvision.models
from torch import nn

from models.initialise import NAMES, initialise, zero_last_norms
from models.small_resnet import SmallResNet


@pytest.mark.parametrize("name", [name for name in NAMES if name != "default"])
def test_every_layer_is_drawn_and_the_rest_is_neutral(name: str) -> None:
    model = SmallResNet(10, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    initialise(model, name)
    for key, value in model.named_parameters():
        if value.ndim > 1:
            assert not torch.equal(value, before[key]), key
        elif "bias" in key:
            assert not value.any(), key
        else:
            assert torch.equal(value, torch.ones_like(value)), key


def test_default_leaves_what_the_model_drew() -> None:
    model = nn.Linear(3, 3)
    before = model.weight.clone()
    initialise(model, "default")
    assert torch.equal(model.weight, before)


def test_spread_of_each() -> None:
    conv = nn.Conv2d(64, 128, 3)
    torch.manual_seed(0)
    spread = {}
    for name in ("kaiming", "xavier", "trunc_normal"):
        initialise(conv, name)
        spread[name] = conv.weight.std().item()
    assert spread["kaiming"] == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    assert spread["xavier"] == pytest.approx(math.sqrt(2 / ((64 + 128) * 9)), rel=0.02)
    assert spread["trunc_normal"] == pytest.approx(0.02 * 0.88, rel=0.02)  # two sigmas are left of the bell
    initialise(conv, "orthogonal")
    rows = conv.weight.flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(128), atol=1e-4)


def test_last_norms_of_ours_and_torchvisions() -> None:
    assert zero_last_norms(SmallResNet(10, 3, blocks=(2, 1))) == 3
    with torch.device("meta"):
        assert zero_last_norms(torchvision.models.resnet18()) == 8
        assert zero_last_norms(torchvision.models.resnet50()) == 16
        assert zero_last_norms(torchvision.models.vgg11()) == 0


def test_a_zeroed_block_is_its_shortcut() -> None:
    model = SmallResNet(10, 4, width=4, blocks=(1,)).eval()
    zero_last_norms(model)
    images = torch.rand(1, 4, 8, 8)
    assert torch.equal(model.stages(images), images)
