from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.errors import ImageError, OptionError, TransformError
from data.verbs.inspection import inspect
from tests.data.conftest import png

Write = Callable[..., Path]


def test_with_a_configs_values(pictures: Any) -> None:
    settings = {"workers": 2, "mode": "indexed", "columns": None}
    recipe = [{"RandomCrop": {"size": 4}}, {"RandomErasing": {"probability": 1.0}}]
    lines = inspect([str(pictures.meta(10))], settings, transforms=recipe, global_batch=4, tail="mask")
    assert lines[1] == "read as: lines 'path label'"
    assert "(tail mask)" in lines[2]
    assert "images uint8 [4, 3, 4, 4]" in lines[3]
    assert "draws float32 [4, 4]" in lines[3]
    with pytest.raises(TransformError, match="no transform 'Nonsense'"):
        inspect(str(pictures.meta(10)), settings, global_batch=4, transforms=["Nonsense"])
    with pytest.raises(OptionError, match="mode 'x'"):
        inspect(str(pictures.meta(12)), {"mode": "x"}, global_batch=2)


def test_nothing_of_the_process_is_moved(pictures: Any, tmp_path: Path, untouched_generators: None) -> None:
    inspect(
        *(str(pictures.meta(10)), {}),
        transforms=[{"RandomCrop": {"size": 4}}],
        global_batch=4,
        grid=tmp_path / "g.png",
    )


@pytest.mark.parametrize("mode", ["rank", "indexed"])
def test_a_grid_shows_what_the_model_sees(mode: str, tmp_path: Path) -> None:
    """One blue image with white noise of a known kind: normalised on the device and back it has its own colours."""
    (tmp_path / "a.png").write_bytes(png(np.full((8, 8, 3), (0, 0, 200), np.uint8)))
    meta = tmp_path / "m.txt"
    meta.write_text("a.png cat\n")
    lines = inspect(
        *(str(meta), {"mode": mode}),
        transforms=["ToTensor", {"Normalize": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}],
        global_batch=1,
        grid=tmp_path / "g.png",
    )
    assert lines[-1] == f"grid: {tmp_path / 'g.png'}, 1 sample"
    with Image.open(tmp_path / "g.png") as sheet:
        colours = {colour: number for number, colour in sheet.convert("RGB").getcolors(1 << 20) or ()}
    assert colours.get((0, 0, 200), 0) >= 112 * 112


def test_a_grid_of_erased_and_of_unequal_images(pictures: Any, tmp_path: Path) -> None:
    inspect(
        *(str(pictures.meta(40)), {"channels": 1}),
        transforms=["ToTensor", {"RandomErasing": {"probability": 1.0}}],
        global_batch=4,
        grid=tmp_path / "erased.png",
    )
    for size in (4, 9, 200):
        Image.new("RGB", (size, 5)).save(tmp_path / f"{size}.png")
    (tmp_path / "m.txt").write_text("4.png 0\n9.png 1\n200.png 0\n")
    lines = inspect(str(tmp_path / "m.txt"), {}, global_batch=3, grid=tmp_path / "unequal.png")
    assert lines[-1].endswith("unequal.png, 3 samples")


def test_the_grid_is_of_the_first_positions(pictures: Any, tmp_path: Path) -> None:
    for seed in (1, 2):
        inspect(str(pictures.meta(64)), {}, global_batch=4, seed=seed, grid=tmp_path / f"{seed}.png")
    assert (tmp_path / "1.png").read_bytes() != (tmp_path / "2.png").read_bytes()
    inspect(str(pictures.meta(64)), {}, global_batch=4, seed=1, grid=tmp_path / "again.png")
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_several_labels(pictures: Any, write: Write) -> None:
    meta = pictures.folder / "several.txt"
    meta.write_text("p/000 x.png 0,2\np/001 x.png 1\n")
    lines = inspect(str(meta), {}, global_batch=2, grid=pictures.folder / "several.png")
    assert "labels float32 [2, 3]" in lines[3]


def test_clips_of_frames(pictures: Any) -> None:
    for name in ("a", "b"):
        folder = pictures.folder / f"clip-{name}"
        folder.mkdir(exist_ok=True)
        for number in range(1, 6):
            (folder / f"img_{number:05d}.png").write_bytes(png(np.zeros((6, 7, 3), np.uint8)))
    meta = pictures.folder / "clips.txt"
    meta.write_text("clip-a 5 0\nclip-b 5 1\n")
    lines = inspect(str(meta), {"clip_frames": 3}, global_batch=2, grid=pictures.folder / "clips.png")
    assert "images uint8 [2, 3, 3, 6, 7]" in lines[3]
    with pytest.raises(OptionError, match="clip_frames says how many frames make a sample"):
        inspect(str(meta), {}, global_batch=2)


def test_an_image_that_is_not_there(pictures: Any) -> None:
    meta = pictures.folder / "gone.txt"
    meta.write_text("gone.png 0\n")
    with pytest.raises(ImageError, match=r"gone\.txt:1  gone\.png: No such file or directory"):
        inspect(str(meta), {}, global_batch=1)
