from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.verbs import shrink as shrinking
from data.verbs.shrink import shrink


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth, so that a smaller copy is known: red grows to the right, green downwards."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 0 * down], -1).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize(
    ("kind", "wanted"), [("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "PNG"), ("GIF", "PNG"), ("BMP", "PNG")]
)
@pytest.mark.parametrize(("size", "small"), [((300, 200), (96, 64)), ((200, 300), (64, 96)), ((640, 640), (64, 64))])
def test_the_shorter_side_is_scaled(kind: str, wanted: str, size: tuple[int, int], small: tuple[int, int]) -> None:
    image = Image.open(io.BytesIO(shrink(encoded(gradient(*size), kind), 64)))
    assert (image.format, image.size, image.mode) == (wanted, small, "RGB")
    pixels = np.asarray(image).astype(int)
    expected = np.asarray(gradient(*small)).astype(int)
    assert np.abs(pixels - expected).mean() < 5


def test_small_images_are_not_touched() -> None:
    for kind in ("JPEG", "PNG"):
        data = encoded(gradient(64, 100), kind)
        assert shrink(data, 64) is data
        assert len(shrink(data, 63)) != len(data)


def test_long_images_keep_a_pixel() -> None:
    assert Image.open(io.BytesIO(shrink(encoded(gradient(3000, 2), "PNG"), 1))).size == (1500, 1)


@pytest.mark.parametrize(
    ("mode", "kind", "wanted"),
    [
        ("L", "JPEG", "L"),
        ("L", "PNG", "L"),
        ("1", "PNG", "L"),
        ("LA", "PNG", "L"),
        ("P", "PNG", "RGB"),
        ("RGBA", "PNG", "RGB"),
        ("CMYK", "JPEG", "RGB"),
    ],
)
def test_modes(mode: str, kind: str, wanted: str) -> None:
    assert Image.open(io.BytesIO(shrink(encoded(gradient(90, 90, mode), kind), 30))).mode == wanted


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    wide = Image.fromarray(np.full((60, 60), 32896, np.uint16))
    image = Image.open(io.BytesIO(shrink(encoded(wide, "PNG"), 30)))
    assert image.mode == "L"
    assert np.unique(np.asarray(image)).tolist() == [128]


def test_images_stand_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    data = encoded(gradient(300, 200), "JPEG", exif=exif)
    image = Image.open(io.BytesIO(shrink(data, 64)))
    assert image.size == (64, 96)
    assert image.getexif().get(0x0112, 1) == 1, "turned once, not again by whoever reads it"
    assert np.asarray(image)[10, 60, 0] < np.asarray(image)[90, 60, 0]


def test_what_is_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(gradient(200, 200), "JPEG")
    for data, told in [
        (b"<svg/>", "no image"),
        (b"", "no image"),
        (os.urandom(100).replace(b"\xff", b""), "no image"),
        (whole[: len(whole) // 2], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
    ]:
        for side in (50, 500):
            with pytest.raises(ValueError, match=told):
                shrink(data, side)
    monkeypatch.setattr(shrinking, "MOST_PIXELS", 30_000)
    with pytest.raises(ValueError, match=r"200 x 200 pixels are more than 30000: a decompression bomb"):
        shrink(whole, 50)
