"""Smaller copies of images, for `data pack`."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..decode import FORMATS, MOST_PIXELS

JPEG_QUALITY = 95


def shrink(data: bytes, side: int) -> bytes:
    """An image whose shorter side is `side` pixels, bicubic, upright; the bytes as they are if it isn't longer.

    JPEG stays JPEG (quality 95), everything else becomes PNG: grey or RGB, 8 bits, the first frame. Raises ValueError
    with a reason for what is no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks about odd headers
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than {MOST_PIXELS}: a decompression bomb?")
            if min(width, height) <= side:
                image.load()  # so that a truncated one is found, whatever its size
                return data
            jpeg = image.format in ("JPEG", "MPO")
            # a JPEG decodes at 1/2, 1/4 or 1/8 for little; twice the wanted size is left to the bicubic filter
            scale = 2 * side / min(width, height)
            image.draft(None, (round(scale * width), round(scale * height)))
            upright = _plain(image)
            scale = side / min(upright.size)
            size = (max(side, round(scale * upright.width)), max(side, round(scale * upright.height)))
            small = upright.resize(size, Image.Resampling.BICUBIC)
            file = io.BytesIO()
            if jpeg:
                small.save(file, "JPEG", quality=JPEG_QUALITY)
            else:
                small.save(file, "PNG")
            return file.getvalue()
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise ValueError(f"no image (it begins with {data[:8]!r})") from None
    except Exception as error:
        # decoders meet hostile bytes with any exception there is; all of them mean the same here
        reason = str(error).strip().splitlines()
        raise ValueError(reason[-1][:160] if reason else type(error).__name__) from None


def _plain(image: Image.Image) -> Image.Image:
    """Upright pixels, grey or RGB, 8 bits."""
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        wide = np.asarray(upright).astype(np.float32)
        if upright.mode == "F" and wide.max(initial=0) <= 1:
            wide *= 65535
        return Image.fromarray(np.round(np.clip(wide, 0, 65535) / 257).astype(np.uint8))
    return upright.convert("L" if upright.mode in ("1", "L", "LA") else "RGB")
