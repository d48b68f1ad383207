"""`data inspect`: how many batches there are, and of which shapes. Loads one batch as training would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .datasets import open_dataset
from .loader import build_loader
from .meta import Source
from .transforms import build_transforms

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
    global_batch: int,
    micro_batch: int | None = None,
    world_size: int = 1,
    tail: str = "drop",
    seed: int = 0,
    transforms: str = "train_transforms",
) -> list[str]:
    """Lines that say what one epoch of a source consists of, as rank 0 of `world_size` sees it.

    `settings` holds values of a config's section `data`; keys that are missing have their defaults, keys that don't
    concern this are passed over. Raises the DataError that training would raise.
    """
    built = build_transforms(settings.get(transforms) or [], int(settings.get("channels", 3)))
    options = {key: settings[key] for key in DATASET_KEYS if key in settings}
    dataset = open_dataset(source, rank=0, world_size=world_size, seed=seed, transform=built, tail=tail, **options)
    loader = build_loader(
        dataset, global_batch=global_batch, micro_batch=micro_batch, rank=0, world_size=world_size, tail=tail
    )
    batch = next(loader.epoch(0))
    left = dataset.n - loader.cut
    parts = [
        f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        for name, tensor in (("images", batch.images), ("labels", batch.labels), ("draws", batch.draws))
    ]
    on_device = built.device(batch.images, batch.draws)
    shown = ", ".join(dataset.classes[:5]) + (", …" if dataset.num_classes > 5 else "")
    told = source if isinstance(source, str) else ", ".join(str(path) for path in list(source))  # type: ignore[arg-type]
    return [
        f"{told}: {dataset.n} rows, {dataset.num_classes} classes ({shown}), decoder {dataset.decoder.identity}",
        f"batches: {loader.steps_per_epoch} per epoch, global batch {global_batch} on {world_size} rank(s)"
        + (f", {left} rows left out of each epoch (tail drop)" if left > 0 else f" (tail {tail})"),
        f"rank 0's first batch: {', '.join(parts)}",
        f"on the device: images float32 {list(on_device.shape)}, values {on_device.min():.3f} … {on_device.max():.3f}",
    ]
