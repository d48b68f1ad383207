"""`data inspect`: how many batches there are, and of which shapes. Loads one batch as training would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .datasets import IndexedDataset, RankDataset, open_dataset
from .errors import TransformError, counted
from .loader import Loader, build_loader
from .meta import Source
from .transforms import Spec, Transforms, build_transforms

DATASET_KEYS = (
    "mode",
    "root",
    "classes",
    "channels",
    "decoder",
    "on_error",
    "bad_budget",
    "allow_outside_root",
)


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
) -> list[str]:
    """Lines that say what one epoch of a source consists of, as rank 0 of `world_size` sees it.

    `settings` holds values of a config's section `data`; keys that are missing have their defaults, keys that don't
    concern this are passed over. `transforms` is a list as a config has it. Raises the DataError that training would
    raise; only without transforms images may differ in size, and are shown by their smallest and largest.
    """
    built = build_transforms(transforms, int(settings.get("channels", 3)), "--transforms")
    options = {key: settings[key] for key in DATASET_KEYS if key in settings}
    dataset = open_dataset(source, rank=0, world_size=world_size, seed=seed, transform=built, tail=tail, **options)
    loader = build_loader(
        dataset, global_batch=global_batch, micro_batch=micro_batch, rank=0, world_size=world_size, tail=tail
    )
    try:
        seen = _batch(loader, built)
    except TransformError:
        if transforms:
            raise
        seen = _sizes(dataset, -(-global_batch // world_size))
    left = dataset.n - loader.cut
    classes = counted(dataset.num_classes, "class", "classes")
    shown = ", ".join(dataset.classes[:5]) + (", …" if dataset.num_classes > 5 else "")
    told = source if isinstance(source, str) else ", ".join(str(path) for path in list(source))  # type: ignore[arg-type]
    return [
        f"{told}: {counted(dataset.n, 'row')}, {classes} ({shown}), decoder {dataset.decoder.identity}",
        f"batches: {loader.steps_per_epoch} per epoch, global batch {global_batch} on {counted(world_size, 'rank')}"
        + (f", {counted(left, 'row')} left out of each epoch (tail drop)" if left > 0 else f" (tail {tail})"),
        *seen,
    ]


def _batch(loader: Loader, built: Transforms) -> list[str]:
    batch = next(loader.epoch(0))
    parts = [
        f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        for name, tensor in (("images", batch.images), ("labels", batch.labels), ("draws", batch.draws))
    ]
    floats = built.device(batch.images, batch.draws)
    return [
        f"rank 0's first batch: {', '.join(parts)}",
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
