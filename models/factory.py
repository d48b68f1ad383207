"""A model by name: ours, torchvision's, or anything that a dotted path leads to."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torchvision.models
from torch import nn

from .errors import ModelError
from .initialise import initialise, zero_last_norms
from .small_resnet import small_resnet

OURS: dict[str, Callable[..., nn.Module]] = {"small_resnet": small_resnet}

# These two return a tuple while training unless their auxiliary heads are off, and draw slowly for nothing.
_WITHOUT_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def build(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    *,
    init: str = "default",
    zero_init_last_norm: bool = False,
    allow_dotted: bool = True,
    **args: Any,
) -> nn.Module:
    """A network from images `[B, in_channels, H, W] float32` to logits `[B, num_classes]`, freshly initialised.

    `name` is one of ours, a classification model of torchvision, or a dotted path (`package.module.Thing`) to a
    callable that takes `num_classes` and `in_channels`; `args` are its keyword arguments. All draws come from
    torch's default generator: seed it first and the weights are the same everywhere. ModelError says what is wrong
    with a name or an argument, in one line.

    `allow_dotted=False` is for names that come from a file of somebody else's: importing a module runs it.
    """
    if num_classes < 1 or in_channels < 1:
        raise ModelError(
            f"model: {num_classes} classes and {in_channels} channels were given; both must be at least 1."
        )
    if name in OURS:
        model = _call(OURS[name], name, {"num_classes": num_classes, "in_channels": in_channels, **args})
    elif name in _torchvision_names():
        model = _from_torchvision(name, num_classes, in_channels, args)
    elif "." in name and not allow_dotted:
        raise ModelError(f"model.name: '{name}' is code of somebody's own, which is not imported here")
    elif "." in name:
        model = _call(_at(name), name, {"num_classes": num_classes, "in_channels": in_channels, **args})
    else:
        names = [*OURS, *_torchvision_names()]
        close = get_close_matches(name, names, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ModelError(
            f"model.name: there is no model '{name}'; there are {', '.join(OURS)}, the {len(names) - len(OURS)} "
            f"classification models of torchvision, and dotted paths to models of your own.{hint}"
        )
    initialise(model, init)
    if zero_init_last_norm:
        zero_last_norms(model)
    return model


def _torchvision_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _from_torchvision(name: str, num_classes: int, in_channels: int, args: dict[str, Any]) -> nn.Module:
    for key in ("weights", "pretrained", "weights_backbone"):
        if args.get(key):
            raise ModelError(f"model.args.{key}: models are built without downloaded weights; leave it out.")
    if name in _WITHOUT_AUXILIARY_HEADS:
        args = {"aux_logits": False, "init_weights": False, **args}
    builder = torchvision.models.get_model_builder(name)
    model = _call(builder, name, {"num_classes": num_classes, **args})
    if in_channels != 3:
        _replace_first_convolution(model, name, in_channels)
    return model


def _replace_first_convolution(model: nn.Module, name: str, in_channels: int) -> None:
    """torchvision's models look at three colours; the convolution that does so is built again for `in_channels`."""
    for path, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if module.in_channels != 3 or module.groups != 1:
            break
        parent, _, attribute = path.rpartition(".")
        fresh = nn.Conv2d(
            in_channels,
            module.out_channels,
            (module.kernel_size[0], module.kernel_size[1]),
            stride=(module.stride[0], module.stride[1]),
            padding=module.padding if isinstance(module.padding, str) else (module.padding[0], module.padding[1]),
            dilation=(module.dilation[0], module.dilation[1]),
            bias=module.bias is not None,
            padding_mode=module.padding_mode,
        )
        setattr(model.get_submodule(parent), attribute, fresh)
        return
    raise ModelError(f"model.name: '{name}' has no first convolution over 3 channels to adapt; set data.channels: 3.")


def _at(path: str) -> Callable[..., Any]:
    module_name, _, attribute = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"model.name: '{path}': there is no module '{error.name}' on sys.path (the current folder is first)."
        ) from error
    except (ValueError, TypeError) as error:
        raise ModelError(f"model.name: '{path}' is no dotted path; write package.module.Thing.") from error
    found: Callable[..., Any] | None = getattr(module, attribute, None)
    if found is None or not callable(found):
        names = [key for key, value in vars(module).items() if callable(value)]
        close = get_close_matches(attribute, names, n=1)
        hint = f" Did you mean '{module_name}.{close[0]}'?" if close else ""
        raise ModelError(f"model.name: the module '{module_name}' has nothing callable named '{attribute}'.{hint}")
    return found


def _call(builder: Callable[..., Any], name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        inspect.signature(builder).bind(**arguments)
        model = builder(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        # A TypeError from deep inside is shown as its one line too: a wrong argument is by far the likeliest cause,
        # and --debug shows where it came from.
        raise ModelError(f"model.args: '{name}' can't be built with {arguments}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"model.name: '{name}' gave a {type(model).__name__}, not a torch.nn.Module.")
    return model
