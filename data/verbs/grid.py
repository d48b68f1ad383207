"""A picture of samples: a grid of images with their labels, for people to look at."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from ..errors import OptionError

MOST_SAMPLES = 64
CELL = 112  # pixels of an image's longer side, at least: smaller ones are enlarged, larger ones shrunk to twice that
GAP, EDGE = 14, 28
PAPER, INK, FAINT, FRAME = (250, 250, 248), (32, 33, 36), (112, 117, 122), (218, 220, 224)
TEXT, TITLE = 13, 17
MOST_LETTERS = 200


def draw_grid(
    images: torch.Tensor | Sequence[torch.Tensor], labels: Sequence[str], title: str, note: str
) -> Image.Image:
    """A picture of images (uint8 [C, H, W] each, grey or RGB), with a label below each, a title and a note above.

    Small images are enlarged by whole numbers, so that a pixel stays a pixel; large ones are shrunk.
    """
    pictures = [_picture(image) for image in images]
    title, note = _words(title), _words(note)
    wide = max(picture.width for picture in pictures)
    high = max(picture.height for picture in pictures)
    columns = _columns(len(pictures), wide, high)
    lines = -(-len(pictures) // columns)
    body, heading = ImageFont.load_default(TEXT), ImageFont.load_default(TITLE)
    top = EDGE + TITLE + TEXT + 24
    below = TEXT + 10
    least = 2 * EDGE + int(max(heading.getlength(title), body.getlength(note)))
    width = max(2 * EDGE + columns * wide + (columns - 1) * GAP, min(least, 1600))
    height = top + lines * (high + below) + (lines - 1) * GAP + EDGE - 8
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((EDGE, EDGE - 4), _cut(title, heading, width - 2 * EDGE), INK, heading)
    pen.text((EDGE, EDGE + TITLE + 6), _cut(note, body, width - 2 * EDGE), FAINT, body)
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        row, column = divmod(number, columns)
        left, up = EDGE + column * (wide + GAP), top + row * (high + below + GAP)
        inner = (left + (wide - picture.width) // 2, up + (high - picture.height) // 2)
        pen.rectangle((inner[0] - 1, inner[1] - 1, inner[0] + picture.width, inner[1] + picture.height), outline=FRAME)
        sheet.paste(picture, inner)
        pen.text((left + wide / 2, up + high + 6), _cut(_words(label), body, wide), INK, body, anchor="ma")
    return sheet


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes a picture as PNG under its name, at once and whole; raises OptionError with what the disk says."""
    to = Path(path)
    if to.suffix.lower() != ".png":
        raise OptionError(f"--grid {to}: is drawn as PNG; give it a name that ends in .png")
    unfinished = to.with_name(f".{to.name}.{os.getpid()}.unfinished")
    try:
        with open(unfinished, "xb") as file:
            picture.save(file, "PNG", optimize=True)
        os.replace(unfinished, to)
    except OSError as error:
        raise OptionError(f"--grid {to}: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _picture(image: torch.Tensor) -> Image.Image:
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    longer = max(picture.size)
    if longer < CELL:
        factor = -(-CELL // longer)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((2 * CELL, 2 * CELL), Image.Resampling.LANCZOS)
    return picture


def _columns(count: int, wide: int, high: int) -> int:
    """As many as make a sheet about one and a half times as wide as high."""
    columns = round(math.sqrt(1.5 * count * (high + TEXT + 10 + GAP) / (wide + GAP)))
    return min(count, max(1, min(16, columns)))


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text as far as there is room for it."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _words(text: str) -> str:
    """Text that can be drawn: printable, and not endless."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:MOST_LETTERS])
