"""Random erasing: the worked example of a transform of one's own that works on the device.

Such a transform has two halves, so that what it does depends on the row alone and never on the device, the rank or
the number of workers. `draw(rng, size)` runs beside the loading, once per row, and gives `draws` plain numbers; they
travel in `Batch.draws`. Calling it with a batch and those numbers does the work. In a config it stands as

    train_transforms: [..., {Normalize: {mean: [0.5], std: [0.5]}}, {RandomErasing: {probability: 0.5}}]

and one of your own by its dotted path: `{mypackage.mymodule.MyTransform: {strength: 2}}`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .errors import TransformError
from .keys import RowRandom

MOST_TRIES = 100


class RandomErasing:
    """Fills a random rectangle of an image with `mean`, with a given probability.

    Algorithm 1 of Zhong, Zheng, Kang, Li and Yang, "Random Erasing Data Augmentation", arXiv 1708.04896: the erased
    area is uniform in [sl, sh] of the image's, its aspect ratio uniform in [r1, 1/r1], height sqrt(area x ratio),
    width sqrt(area / ratio), its upper left corner uniform over the image; a rectangle that doesn't fit is drawn
    again. (Algorithm 1 draws until one fits; after 100 misses we leave the image as it is.)

    `mean`, one number or one per channel, is in the units of the image as it stands there: behind Normalize 0 is the
    data set's mean. Images are float [B, C, H, W] and come back as a new tensor.
    """

    draws = 4  # top, left, height, width in pixels; height 0: nothing is erased

    def __init__(
        self,
        probability: float = 0.5,
        sl: float = 0.02,
        sh: float = 0.4,
        r1: float = 0.3,
        mean: float | Sequence[float] = 0.0,
    ) -> None:
        if not 0 <= probability <= 1:
            raise TransformError(f"RandomErasing: probability {probability} is outside 0 … 1")
        if not 0 < sl <= sh < 1:
            raise TransformError(f"RandomErasing: sl {sl} and sh {sh} are shares of the area, 0 < sl <= sh < 1")
        if not 0 < r1 <= 1:
            raise TransformError(f"RandomErasing: r1 {r1} is the smallest aspect ratio, 0 < r1 <= 1")
        self.probability, self.sl, self.sh, self.r1 = probability, sl, sh, r1
        self.mean = [float(value) for value in (mean if isinstance(mean, Sequence) else [mean])]

    def draw(self, rng: RowRandom, size: tuple[int, int]) -> tuple[float, ...]:
        """(top, left, height, width) for an image of `size` (H, W)."""
        height, width = size
        if rng.random() >= self.probability:
            return (0.0, 0.0, 0.0, 0.0)
        for _ in range(MOST_TRIES):
            area = rng.uniform(self.sl, self.sh) * height * width
            ratio = rng.uniform(self.r1, 1 / self.r1)
            tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            top, left = rng.integer(height), rng.integer(width)
            if 1 <= tall <= height - top and 1 <= wide <= width - left:
                return (float(top), float(left), float(tall), float(wide))
        return (0.0, 0.0, 0.0, 0.0)

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Erases from each image of float [B, C, H, W] the rectangle in its row of `draws` [B, 4]."""
        channels, height, width = images.shape[1:]
        if len(self.mean) not in (1, channels):
            raise TransformError(
                f"RandomErasing: mean has {len(self.mean)} values for images of {channels} channels; "
                "give one, or one each"
            )
        top, left, tall, wide = (column[:, None] for column in draws.unbind(1))
        y = torch.arange(height, device=images.device)
        x = torch.arange(width, device=images.device)
        rows = (y >= top) & (y < top + tall)
        columns = (x >= left) & (x < left + wide)
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]
        fill = torch.tensor(self.mean, dtype=images.dtype, device=images.device).reshape(1, -1, 1, 1)
        return torch.where(inside, fill, images)
