from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torchvision.models
from torch import nn

from models import build
from models.errors import ModelError


class OneLayer(nn.Module):
    """A user's own model, reached by its dotted path."""

    def __init__(self, num_classes: int, in_channels: int, hidden: int = 4) -> None:
        super().__init__()
        self.hidden = hidden
        self.head = nn.Linear(in_channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.mean(dim=(2, 3)))


def not_a_model(num_classes: int, in_channels: int) -> str:
    return "text"


@pytest.mark.parametrize("size", [8, 9, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_resnet_takes_small_images(size: int, channels: int) -> None:
    model = build("small_resnet", 10, channels, init="kaiming", zero_init_last_norm=True)
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 10)


def test_small_resnet_has_the_size_that_its_docstring_says() -> None:
    parameters = sum(parameter.numel() for parameter in build("small_resnet", 10, 1).parameters())
    assert round(parameters, -3) == 78_000


def test_small_resnet_arguments() -> None:
    small = build("small_resnet", 3, 1, width=4, blocks=[2, 1], stem_stride=2, dropout=0.5)
    assert small(torch.zeros(2, 1, 28, 28)).shape == (2, 3)
    assert small.head.in_features == 8
    assert len(small.stages) == 3


def test_torchvision_model_equals_torchvisions_own() -> None:
    torch.manual_seed(3)
    ours = build("resnet18", 7, 3)
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18(num_classes=7)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_32", "squeezenet1_1"])
def test_torchvision_models_take_one_channel(name: str) -> None:
    with torch.device("meta"):
        model = build(name, 5, 1)
        assert model.eval()(torch.zeros(2, 1, 224, 224)).shape == (2, 5)


def test_models_with_auxiliary_heads_give_one_output_while_training() -> None:
    with torch.device("meta"):
        assert isinstance(build("googlenet", 5, 3)(torch.zeros(2, 3, 224, 224)), torch.Tensor)


def test_dotted_path() -> None:
    model = build(f"{__name__}.OneLayer", 5, 2, hidden=9)
    assert isinstance(model, OneLayer)
    assert model.hidden == 9


def test_same_seed_same_weights() -> None:
    def weights() -> OrderedDict[str, torch.Tensor]:
        torch.manual_seed(5)
        return build("small_resnet", 10, 1, init="kaiming").state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("small_resnt", {}, ["no model 'small_resnt'", "Did you mean small_resnet"]),
        ("resnet81", {}, ["no model 'resnet81'", "resnet18"]),
        ("nowhere.Net", {}, ["no module 'nowhere'"]),
        (".Net", {}, ["'.Net' is no dotted path"]),
        ("torch.nn.Linera", {}, ["nothing callable named 'Linera'", "torch.nn.Linear"]),
        ("small_resnet", {"widht": 3}, ["can't be built", "widht"]),
        ("small_resnet", {"width": "wide"}, ["can't be built", "wide"]),
        ("resnet18", {"widht": 3}, ["can't be built", "widht"]),
        ("resnet18", {"weights": "DEFAULT"}, ["model.args.weights", "leave it out"]),
        ("small_resnet", {"init": "kaimin"}, ["no initialisation 'kaimin'", "Did you mean 'kaiming'"]),
        (f"{__name__}.not_a_model", {}, ["gave a str, not a torch.nn.Module"]),
    ],
)
def test_mistakes_are_one_clear_line(name: str, arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        build(name, 10, 3, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert caught.value.exit_code == 2
    assert caught.value.code == "E301"


def test_numbers_of_classes_and_channels_are_checked() -> None:
    with pytest.raises(ModelError, match="0 classes and 3 channels"):
        build("small_resnet", 0, 3)


def test_no_convolution_to_adapt() -> None:
    with pytest.raises(ModelError, match=r"'swin3d_t' has no first convolution|can't be built|no model"):
        build("swin3d_t", 4, 1)


def test_dotted_names_of_somebody_elses_are_not_imported() -> None:
    with pytest.raises(ModelError, match=r"'os\.system' is code of somebody's own, which is not imported here"):
        build("os.system", 3, allow_dotted=False)
    assert build("small_resnet", 3, allow_dotted=False) is not None


@pytest.mark.parametrize(("name", "args"), [("..x", {}), ("small_resnet", {"width": -2})])
def test_what_torch_or_python_would_trace_back_is_one_line(name: str, args: dict[str, int]) -> None:
    with pytest.raises(ModelError) as caught:
        build(name, 3, **args)
    assert "\n" not in str(caught.value)
