"""`data inspect`: how many batches there are, of which shapes, and how samples look. Loads as training would."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..datasets import IndexedDataset, RankDataset, Request, open_dataset
from ..errors import TransformError, counted
from ..loader import Loader, build_loader
from ..meta import Source
from ..sampling import Sample, kept_randomness
from ..transforms import Normalize, Spec, Transforms, build_transforms
from .grid import draw_grid, save_picture
from .progress import rows

DATASET_KEYS = (
    *("mode", "order", "root", "format", "columns", "exclude", "cache", "classes", "channels", "decoder"),
    *("on_error", "bad_budget", "allow_outside_root", "clip_frames"),
)
GRID_SAMPLES = 32


def inspect(
    source: Source,
    settings: Mapping[str, Any],
    *,
    transforms: Sequence[Spec] = (),
    global_batch: int,
    micro_batch: int | None = None,
    world_size: int = 1,
    tail: str = "drop",
    seed: int = 0,
    grid: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Lines that say what one epoch of a source consists of, as rank 0 of `world_size` sees it.

    `settings` holds values of a config's section `data`; keys that are missing have their defaults, keys that don't
    concern this are passed over. `transforms` is a list as a config has it. With `grid` the first samples of epoch 0
    are drawn into that PNG, as the model will see them, but for normalising. Raises the DataError that training would
    raise; only without transforms images may differ in size, and are shown by their smallest and largest.
    """
    built = build_transforms(transforms, int(settings.get("channels", 3)), "--transforms")
    options = {key: settings[key] for key in DATASET_KEYS if settings.get(key) is not None}
    transform = built if transforms or "clip_frames" not in options else None  # ours are made for single images
    # rows are fetched one by one: the samples are those of a shard, and few are wanted
    dataset = open_dataset(
        source, rank=0, world_size=world_size, seed=seed, transform=transform, tail=tail, read="direct", **options
    )
    loader = build_loader(
        dataset, global_batch=global_batch, micro_batch=micro_batch, rank=0, world_size=world_size, tail=tail
    )
    try:
        seen = _batch(loader, transform)
    except TransformError:
        if transforms:
            raise
        seen = _sizes(dataset, -(-global_batch // world_size))
    left = dataset.n - loader.cut
    classes = counted(dataset.num_classes, "class", "classes")
    shown = ", ".join(dataset.classes[:5]) + (", …" if dataset.num_classes > 5 else "")
    told = source if isinstance(source, str) else ", ".join(str(path) for path in list(source))  # type: ignore[arg-type]
    lines = [
        f"{told}: {rows(dataset.n)}, {classes} ({shown}), decoder {dataset.decoder.identity}",
        *([f"read as: {dataset.meta.told.removeprefix(f'{told}: ')}"] if dataset.meta.told else []),
        f"batches: {loader.steps_per_epoch:,} per epoch, global batch {global_batch} on {counted(world_size, 'rank')}"
        + (f", {rows(left)} left out of each epoch (tail drop)" if left > 0 else f" (tail {tail})"),
        *seen,
    ]
    if grid is not None:
        lines.append(_draw(dataset, built, told, grid))
    return lines


def _draw(dataset: RankDataset | IndexedDataset, built: Transforms, told: str, path: str | os.PathLike[str]) -> str:
    first = dataset.order_for(0)[: min(GRID_SAMPLES, dataset.n)]
    with kept_randomness():
        samples = dataset.samples(Request(0, first, first))
    names = dataset.classes
    labels = [", ".join(names[label] for label in _labels(sample)) or "no label" for sample in samples]
    note = f"the first {first.size} positions of epoch 0, seed {dataset.seed}, as the loader and the device leave them"
    save_picture(draw_grid(_as_seen(samples, built), labels, told, note), path)
    return f"grid: {os.fspath(path)}, {counted(first.size, 'sample')}"


def _labels(sample: Sample) -> Sequence[int]:
    return [sample.label] if isinstance(sample.label, int) else sample.label


def _as_seen(samples: Sequence[Sample], built: Transforms) -> list[torch.Tensor]:
    """The images as uint8 [C, H, W], after what happens on the device, normalising undone again; of a clip the middle
    frame."""
    images = [sample.image if sample.image.ndim == 3 else sample.image[len(sample.image) // 2] for sample in samples]
    if not built.batchwise or len({tuple(image.shape) for image in images}) > 1:
        return images
    floats = built.device(torch.stack(images), torch.tensor([sample.draws for sample in samples]))
    for step in reversed(built.batchwise):
        if isinstance(step, Normalize):
            mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (step.mean, step.std))
            floats = floats * std + mean
    return list((floats.clamp(0, 1) * 255).round().to(torch.uint8))


def _batch(loader: Loader, built: Transforms | None) -> list[str]:
    batch = next(loader.epoch(0))
    parts = [
        f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        for name, tensor in (("images", batch.images), ("labels", batch.labels), ("draws", batch.draws))
    ]
    seen = [f"rank 0's first batch: {', '.join(parts)}"]
    if built is None:
        return seen
    floats = built.device(batch.images, batch.draws)
    return [
        *seen,
        f"on the device: images float32 {list(floats.shape)}, values {floats.min():.3f} … {floats.max():.3f}",
    ]


def _sizes(dataset: RankDataset | IndexedDataset, count: int) -> list[str]:
    """The extremes of some images that make no batch as they are."""
    count = min(count, len(dataset))
    shapes = sorted(
        (tuple(dataset.sample(index).image.shape) for index in range(count)), key=lambda s: (s[1] * s[2], s)
    )
    return [
        f"{counted(count, 'image')} of different sizes: the smallest is {list(shapes[0])}, the largest "
        f"{list(shapes[-1])}; a batch needs transforms that make them one (--transforms, or a config)"
    ]
