"""From the bytes of an image file to pixels: uint8 [C, H, W].

torchcodec decodes JPEG, PNG and still WebP; Pillow decodes every other format, and everything where torchcodec is
missing or broken. Both turn an image by its EXIF orientation, drop alpha, and scale 16 bits to 8. Their pixels differ
(grey from a colour JPEG by up to 8 of 255), so which one is used is part of a run's identity: `DecoderName.identity`.

Pillow reads the header first in either case. Only the formats named here are ever tried: an EPS would start
Ghostscript, and an SVG or an HTML page under the name .jpg is refused by its first bytes.
"""

from __future__ import annotations

import functools
import importlib
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps

from .errors import DecoderError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MOST_PIXELS = 89_478_485  # Pillow's own limit of 256 MiB / 3 bytes: beyond it a file of 100 KB can fill the memory
DECODERS = ("auto", "torchcodec", "pillow")

_log = logging.getLogger("rankrun.data")


class UnreadableImage(Exception):
    """Why some bytes are no image; internal: becomes an ImageError with its row, or a replacement."""


@dataclass(frozen=True)
class DecoderName:
    """Which decoder was resolved, in which version; `note` says why it isn't the first choice."""

    name: str
    identity: str
    note: str | None = None


@functools.cache  # the log says once per process what was found
def resolve_decoder(wanted: str = "auto") -> DecoderName:
    """The decoder that works here. "auto" prefers torchcodec and says so (log, `note`) where it has to fall back."""
    if wanted not in DECODERS:
        raise DecoderError(f"decoder {wanted!r}: legal are {', '.join(DECODERS)} (data.decoder)")
    pillow = f"pillow {PIL.__version__}"
    if wanted == "pillow":
        return DecoderName("pillow", pillow)
    why = _why_torchcodec_fails()
    if why is None:
        # without the local part: +cu130 and +cpu hold the same image decoders
        version = metadata.version("torchcodec").partition("+")[0]
        return DecoderName("torchcodec", f"torchcodec {version}, {pillow}")
    if wanted == "torchcodec":
        raise DecoderError(f"decoder 'torchcodec' does not work here ({why}); data.decoder=pillow needs nothing more")
    note = (
        f"torchcodec does not work here ({why}): Pillow decodes, "
        "with other pixels, and slower (500 x 375: JPEG 2.7x, PNG 1.3x)"
    )
    _log.warning(note)
    return DecoderName("pillow", pillow, note)


def _why_torchcodec_fails() -> str | None:
    """None if torchcodec gives the right pixels for a tiny PNG and reads a tiny JPEG, else one line."""
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    try:
        decode = _torchcodec_decoder()
        for kind in ("PNG", "JPEG"):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, kind)
            found = decode(file.getvalue(), 3)
            if tuple(found.shape) != (3, 4, 4) or (
                kind == "PNG" and not np.array_equal(found.permute(1, 2, 0).numpy(), pixels)
            ):
                return f"it decodes a test {kind} wrongly"
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
    return None


def _torchcodec_decoder() -> Callable[[bytes, int], torch.Tensor]:
    decoders = importlib.import_module("torchcodec.decoders")

    def decode(data: bytes, channels: int) -> torch.Tensor:
        pixels: torch.Tensor = decoders.decode_image(data, mode="GRAY" if channels == 1 else "RGB")
        return pixels

    return decode


class ImageDecoder:
    """`decoder(data)` gives uint8 [channels, H, W]; raises UnreadableImage with a reason and nothing else.

    It travels to loader workers by its name; each process imports what it needs at its first image.
    """

    def __init__(self, name: str = "pillow", channels: int = 3) -> None:
        self.name = name
        self.channels = channels
        self._torchcodec: Callable[[bytes, int], torch.Tensor] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_torchcodec": None}

    def __call__(self, data: bytes) -> torch.Tensor:
        if not data:
            raise UnreadableImage("the file has zero bytes")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks about odd headers, and its softer bomb warning
                image = Image.open(io.BytesIO(data), formats=FORMATS)
                if image.width * image.height > MOST_PIXELS:
                    raise UnreadableImage(
                        f"{image.width} x {image.height} pixels are more than {MOST_PIXELS}: a decompression bomb?"
                    )
                if self.name == "torchcodec" and _is_torchcodecs(image):
                    if self._torchcodec is None:
                        self._torchcodec = _torchcodec_decoder()
                    # torchcodec's memory is channels-last; one layout for all, since kernels differ by layout
                    return self._torchcodec(data, self.channels).contiguous()
                return _pillow_pixels(image, self.channels)
        except (UnreadableImage, MemoryError):
            raise
        except PIL.UnidentifiedImageError:
            raise UnreadableImage(f"no image ({_looks_like(data)}); read are {', '.join(FORMATS)}") from None
        except Exception as error:
            # Decoders meet hostile bytes with any exception there is (OSError, SyntaxError, struct.error, …).
            # All of them mean the same to us, and the reason goes on.
            reason = str(error).strip().splitlines()
            raise UnreadableImage(
                f"broken or truncated ({reason[-1][:160] if reason else type(error).__name__})"
            ) from error


def _is_torchcodecs(image: Image.Image) -> bool:
    """Not animated WebP: torchcodec decodes all frames of it, and a thousand frames would be a bomb."""
    if image.format == "WEBP":
        return not getattr(image, "is_animated", False)
    return image.format in ("JPEG", "MPO", "PNG")


def _pillow_pixels(image: Image.Image, channels: int) -> torch.Tensor:
    """The first frame, turned upright, as uint8."""
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        # 16 bits (Pillow's convert() would clip them at 255); as torchcodec does it: 65535 -> 255, rounded
        wide = np.asarray(upright).astype(np.float32)
        if upright.mode == "F" and wide.max(initial=0) <= 1:
            wide *= 65535
        pixels = np.round(np.clip(wide, 0, 65535) / 257).astype(np.uint8)[None]
        return torch.from_numpy(np.repeat(pixels, channels, axis=0))
    array = np.array(upright.convert("L" if channels == 1 else "RGB"))
    if channels == 1:
        return torch.from_numpy(array)[None]
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def _looks_like(data: bytes) -> str:
    start = data[:256].lstrip().lower()
    for sign, name in (
        (b"<!doctype html", "an HTML page"),
        (b"<html", "an HTML page"),
        (b"<svg", "SVG"),
        (b"<?xml", "XML or SVG"),
        (b"%!ps", "PostScript"),
        (b"%pdf", "PDF"),
        (b"version https://git-lfs", "a Git LFS pointer"),
    ):
        if start.startswith(sign):
            return f"it looks like {name}"
    return f"it begins with {data[:8]!r}"
