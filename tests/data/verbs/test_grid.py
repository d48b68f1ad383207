from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from data.errors import OptionError
from data.verbs.grid import CELL, EDGE, GAP, PAPER, draw_grid, save_picture


def solid(red: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    pixels = torch.zeros(channels, height, width, dtype=torch.uint8)
    pixels[0] = red
    return pixels


def test_small_images_are_enlarged_by_whole_numbers() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4) * 20
    sheet = draw_grid([image], ["a label"], "title", "note")
    factor = CELL // 4
    colours = {sheet.getpixel((x, y)) for x in range(sheet.width) for y in range(sheet.height)}
    assert {(value, value, value) for value in range(0, 240, 20)} <= colours, "each pixel keeps its value"
    grey = [(x, y) for x in range(sheet.width) for y in range(sheet.height) if sheet.getpixel((x, y)) == (40, 40, 40)]
    assert len(grey) >= factor * factor


def test_large_images_are_shrunk_and_cells_are_equal() -> None:
    images = [solid(255, 500, 1000), solid(255, 1000, 500), solid(255, 8, 8)]
    sheet = draw_grid(images, ["1", "2", "3"], "t", "n")
    columns = round((sheet.width - 2 * EDGE + GAP) / (2 * CELL + GAP))
    assert sheet.width == 2 * EDGE + columns * 2 * CELL + (columns - 1) * GAP
    assert sheet.getpixel((2, 2)) == PAPER


@pytest.mark.parametrize("count", [1, 2, 7, 32, 64])
def test_a_sheet_is_neither_a_column_nor_a_strip(count: int) -> None:
    sheet = draw_grid([solid(9, 32, 32)] * count, ["x"] * count, "t", "n")
    assert 0.4 < sheet.width / sheet.height < 2.6


def test_hostile_and_endless_words() -> None:
    labels = ["a" * 500, "\x1b[2J\n", "", "Ünïcödé ☃"]
    sheet = draw_grid([solid(9, 32, 32)] * 4, labels, "t" * 5000, "n" * 5000)
    assert sheet.width < 2000


def test_it_is_written_whole_or_not(tmp_path: Path) -> None:
    sheet = draw_grid([solid(9, 8, 8)], ["1"], "t", "n")
    save_picture(sheet, tmp_path / "g.png")
    save_picture(sheet, tmp_path / "g.png")
    with Image.open(tmp_path / "g.png") as again:
        assert again.size == sheet.size
    assert [path.name for path in tmp_path.iterdir()] == ["g.png"]
    with pytest.raises(OptionError, match=r"--grid g\.jpg: is drawn as PNG; give it a name that ends in \.png"):
        save_picture(sheet, "g.jpg")
    with pytest.raises(OptionError, match=r"none/g\.png: No such file or directory"):
        save_picture(sheet, tmp_path / "none" / "g.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OptionError, match=r"folder\.png: Is a directory"):
        save_picture(sheet, tmp_path / "folder.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "g.png"]
