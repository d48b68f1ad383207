"""Transforms by name: torchvision's v2, ours, and a user's own by dotted path.

A list has two parts. What comes first works on one uint8 image in the loader (resize, pad, crop, flip). From
ToTensor, Normalize or the first transform with a `draw` method on, the rest works on a whole batch on the device:
there images become float32 in 0 … 1, are normalised, erased. So images travel as uint8, a quarter of the bytes.

    [{Resize: {size: 32, interpolation: bicubic}}, {Pad: {padding: 4, padding_mode: edge}}, {RandomCrop: {size: 32}},
     RandomHorizontalFlip,          | from here on the device |
     ToTensor, {Normalize: {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}, {RandomErasing: {probability: 0.5}}]
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from .erasing import RandomErasing
from .errors import TransformError, counted
from .keys import RowRandom

Spec = str | Mapping[str, Mapping[str, object] | None]

_NOT_FROM_TEXT = frozenset(
    {"Compose", "Lambda", "RandomApply", "RandomChoice", "RandomOrder", "MixUp", "CutMix", "Transform", "Identity"}
)
_CONVERSIONS = frozenset({"ToImage", "ToDtype", "PILToTensor", "ConvertImageDtype", "ToPILImage", "ToPureTensor"})


class ToTensor:
    """Where the loader's part ends: behind it images are float32 in 0 … 1, on the device."""


class Normalize:
    """`(images - mean) / std` per channel, for float images [B, C, H, W] in 0 … 1; one value serves all channels."""

    draws = 0

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        self.mean, self.std = (
            [float(value) for value in (given if isinstance(given, Sequence) else [given])] for given in (mean, std)
        )
        if min(self.std) <= 0:
            raise TransformError(f"Normalize: std {self.std} must be above 0")
        if len(self.mean) != len(self.std):
            raise TransformError(f"Normalize: {counted(len(self.mean), 'value')} of mean, but {len(self.std)} of std")

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        mean, std = (
            torch.tensor(values, dtype=images.dtype, device=images.device).reshape(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (images - mean) / std


_OURS: dict[str, type] = {"ToTensor": ToTensor, "Normalize": Normalize, "RandomErasing": RandomErasing}


class Transforms:
    """A built list: `sample(image)` in the loader, `draw(rng, size)` beside it, `device(images, draws)` on batches.

    Picklable. `spec` is the list it was built from, as builtins, for a checkpoint; `name` is what messages call it.
    """

    def __init__(
        self,
        samplewise: Sequence[Callable[..., Any]],
        batchwise: Sequence[Any],
        channels: int,
        spec: Sequence[Spec] = (),
        name: str = "transforms",
    ) -> None:
        self.samplewise = list(samplewise)
        self.batchwise = list(batchwise)
        self.channels = channels
        self.name = name
        self.spec = [
            entry if isinstance(entry, str) else {k: dict(v or {}) for k, v in entry.items()} for entry in spec
        ]

    @property
    def draws(self) -> int:
        """How many numbers a row draws for the device."""
        return sum(step.draws for step in self.batchwise)

    def sample(self, image: torch.Tensor | Image.Image) -> torch.Tensor:
        """uint8 [C, H, W] from a PIL image or uint8 [C, H, W]; random numbers come from the process's generators."""
        pixels = F.pil_to_tensor(image) if isinstance(image, Image.Image) else image
        for step in self.samplewise:
            pixels = step(pixels)
        if not isinstance(pixels, torch.Tensor) or pixels.dtype != torch.uint8 or pixels.ndim != 3:
            told = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, torch.Tensor) else type(pixels).__name__
            raise TransformError(
                f"{self.name}: the loader's part gave {told} instead of uint8 [C, H, W]: "
                "scaling and normalising belong behind them, on the device"
            )
        if pixels.shape[0] != self.channels:
            raise TransformError(
                f"{self.name}: the loader's part gave {counted(pixels.shape[0], 'channel')}, "
                f"data.channels is {self.channels}"
            )
        return pixels

    def draw(self, rng: RowRandom, size: tuple[int, int]) -> list[float]:
        """The numbers of one row for the device's part, for an image of `size` (H, W): `self.draws` of them."""
        numbers: list[float] = []
        for step in self.batchwise:
            if step.draws:
                mine = list(step.draw(rng, size))
                if len(mine) != step.draws:
                    raise TransformError(
                        f"{self.name}: {type(step).__name__}.draw gave {counted(len(mine), 'number')}, "
                        f"its draws is {step.draws}"
                    )
                numbers += mine
        return numbers

    def device(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """float32 [B, C, H, W] from uint8 [B, C, H, W] and `Batch.draws` [B, draws], both on any one device."""
        floats = images.to(torch.float32) / 255
        at = 0
        for step in self.batchwise:
            floats = step(floats, draws[:, at : at + step.draws])
            at += step.draws
        return floats


def build_transforms(
    specs: Sequence[Spec], channels: int = 3, name: str = "transforms", *, allow_dotted: bool | Collection[str] = True
) -> Transforms:
    """Builds a list of transforms; all problems of it are raised at once as TransformError.

    An entry is a name, or a mapping of one name to its arguments. `name` is what messages call the list, such as
    data.train_transforms; entries are counted from [0].

    `allow_dotted=False` is for names that come from a file of somebody else's: importing a module runs it. A
    collection allows exactly the dotted names in it.
    """
    problems: list[str] = []
    samplewise: list[Callable[..., Any]] = []
    batchwise: list[Any] = []
    on_device = False
    for number, spec in enumerate(specs):
        try:
            kind, step = _build(spec, allow_dotted)
            if isinstance(step, ToTensor):
                if on_device:
                    raise TransformError("ToTensor stands behind the border it marks: put it before Normalize")
                on_device = True
            elif hasattr(step, "draws"):
                on_device = True
                _check_channels(kind, step, channels)
                batchwise.append(step)
            elif on_device:
                raise TransformError(
                    f"{kind} works on one image at a time: put it before ToTensor, Normalize and RandomErasing, "
                    "which work on the device"
                )
            else:
                samplewise.append(step)
        except TransformError as error:
            problems += [f"{name}[{number}]: {line}" for line in error.problems]
    if problems:
        raise TransformError(*problems)
    return Transforms(samplewise, batchwise, channels, specs, name)


def _build(spec: Spec, allow_dotted: bool | Collection[str]) -> tuple[str, Any]:
    if isinstance(spec, str):
        name, arguments = spec, {}
    elif isinstance(spec, Mapping) and len(spec) == 1:
        name, given = next(iter(spec.items()))
        if given is not None and not isinstance(given, Mapping):
            raise TransformError(f"{name}: its arguments are a mapping, as in {{{name}: {{size: 28}}}}, not {given!r}")
        arguments = dict(given or {})
    else:
        raise TransformError(
            f"{spec!r} is neither a name nor one name with its arguments, as in {{Resize: {{size: 32}}}}"
        )
    kind = _find(str(name), allow_dotted)
    legal = _arguments(kind)
    for key in arguments:
        if key not in legal and legal:
            raise TransformError(f"{name} has no argument {key!r}; legal are {', '.join(legal)}{_guess(key, legal)}")
    try:
        step = kind(**{key: _value(key, value) for key, value in arguments.items()})
    except TransformError:
        raise
    except Exception as error:
        # a constructor of torchvision's or of the user's says no in whatever way it likes
        raise TransformError(f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())}): {error}") from error
    if not callable(step) and not isinstance(step, ToTensor):
        raise TransformError(f"{name} gave a {type(step).__name__}, which can't be called with an image")
    return str(name), step


def _find(name: str, allow_dotted: bool | Collection[str]) -> Callable[..., Any]:
    if name in _OURS:
        return _OURS[name]
    if "." in name:
        if allow_dotted is not True and (allow_dotted is False or name not in allow_dotted):
            raise TransformError(f"{name} is code of somebody's own, which is not imported here")
        return _find_dotted(name)
    known = [key for key, value in vars(v2).items() if inspect.isclass(value) and issubclass(value, v2.Transform)]
    if name in _CONVERSIONS:
        raise TransformError(
            f"{name} is not needed: images are uint8 tensors until ToTensor or Normalize makes them float32 in 0 … 1"
        )
    if name in _NOT_FROM_TEXT:
        raise TransformError(f"{name} can't be written in a config: give your own class by its dotted path")
    if name in known:
        found: Callable[..., Any] = getattr(v2, name)
        return found
    legal = sorted({*known, *_OURS} - _NOT_FROM_TEXT - _CONVERSIONS)
    raise TransformError(
        f"there is no transform {name!r}"
        + (_guess(name, legal) or "; legal are torchvision's v2 names, RandomErasing, and dotted paths of your own")
    )


def _find_dotted(name: str) -> Callable[..., Any]:
    if not all(part.isidentifier() for part in name.split(".")):
        raise TransformError(f"{name} is no dotted path: write package.module.Thing")
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise TransformError(f"{name}: {error}; is its folder on the Python path?") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise TransformError(f"{name}: module {module_name} has no class {attribute!r}{_guess(attribute, dir(module))}")
    # Looked at before it is called: os.system and subprocess.Popen do their work then.
    of_instances = inspect.isclass(found) and any("__call__" in vars(kind) for kind in found.__mro__)
    if not (of_instances or inspect.isfunction(found)):
        raise TransformError(
            f"{name} is neither a class whose instances can be called with an image nor a function that gives one"
        )
    return found  # type: ignore[no-any-return]


def _arguments(kind: Callable[..., Any]) -> list[str]:
    """The names of a constructor's arguments; none where Python can't tell, as for some classes written in C."""
    try:
        return [p for p in inspect.signature(kind).parameters if p not in ("self", "args", "kwargs")]
    except (TypeError, ValueError):
        return []


def _value(key: str, value: object) -> object:
    """Text of a config as what torchvision wants: `interpolation: bicubic`, `policy: cifar10`."""
    if key == "interpolation" and isinstance(value, str):
        modes = {mode.value: mode for mode in v2.InterpolationMode}
        if value not in modes:
            raise TransformError(f"interpolation {value!r}: legal are {', '.join(modes)}{_guess(value, modes)}")
        return modes[value]
    if key == "policy" and isinstance(value, str):
        return v2.AutoAugmentPolicy(value)
    return value


def _check_channels(name: str, step: object, channels: int) -> None:
    for key in ("mean", "std"):
        values = getattr(step, key, None)
        if isinstance(values, list) and len(values) not in (1, channels):
            raise TransformError(
                f"{name}: {key} has {len(values)} values for {counted(channels, 'channel')}; give one, or one each"
            )


def _guess(word: str, legal: Sequence[str] | Mapping[str, object]) -> str:
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in legal}
    close = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", word.lower()), list(plain), n=1, cutoff=0.6)
    return f". Did you mean {plain[close[0]]}?" if close else ""
