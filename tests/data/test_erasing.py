from __future__ import annotations

import pytest
import torch

from data.erasing import RandomErasing
from data.errors import TransformError
from data.keys import RowRandom


def boxes(erasing: RandomErasing, size: tuple[int, int], count: int = 500) -> list[tuple[float, ...]]:
    return [erasing.draw(RowRandom(3, 0, row), size) for row in range(count)]


def test_boxes_lie_inside_with_area_and_ratio_in_range() -> None:
    found = boxes(RandomErasing(1.0, sl=0.1, sh=0.3, r1=0.5), (40, 60))
    for top, left, height, width in found:
        assert 0 <= top <= 40 - height
        assert 0 <= left <= 60 - width
        assert 0.1 * 2400 * 0.85 <= height * width <= 0.3 * 2400 * 1.15  # whole pixels: a little off
        assert 0.4 <= height / width <= 2.4
    assert len(set(found)) > 450


def test_probability() -> None:
    erased = sum(box[2] > 0 for box in boxes(RandomErasing(0.3), (32, 32), 2000))
    assert abs(erased - 600) < 4 * (2000 * 0.3 * 0.7) ** 0.5
    assert all(box == (0, 0, 0, 0) for box in boxes(RandomErasing(0.0), (32, 32), 50))


def test_what_is_inside_becomes_the_mean_and_nothing_else() -> None:
    images = torch.rand(3, 3, 8, 9)
    draws = torch.tensor([[2, 3, 4, 5], [0, 0, 0, 0], [7, 8, 1, 1]], dtype=torch.float32)
    given = images.clone()
    erased = RandomErasing(mean=[0.1, 0.2, 0.3])(images, draws)
    assert torch.equal(images, given)
    for channel, mean in enumerate((0.1, 0.2, 0.3)):
        given[0, channel, 2:6, 3:8] = mean
        given[2, channel, 7:8, 8:9] = mean
    assert torch.equal(erased, given)
    assert RandomErasing()(images, draws)[0, :, 3, 4].tolist() == [0, 0, 0]


def test_an_image_too_small_is_left_alone() -> None:
    assert all(box[2] in (0.0, 1.0) for box in boxes(RandomErasing(1.0), (1, 1), 20))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"probability": 1.5}, "probability 1.5 is outside 0 … 1"),
        ({"sl": 0.5, "sh": 0.4}, "0 < sl <= sh < 1"),
        ({"r1": 0}, "r1 0 is the smallest aspect ratio"),
    ],
)
def test_refusals(arguments: dict[str, float], told: str) -> None:
    with pytest.raises(TransformError, match=told):
        RandomErasing(**arguments)
    with pytest.raises(TransformError, match="mean has 2 values for images of 3 channels"):
        RandomErasing(mean=[1, 2])(torch.rand(1, 3, 4, 4), torch.zeros(1, 4))
