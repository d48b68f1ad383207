"""Small pictures and meta files for the tests of `data`."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@dataclass(frozen=True)
class Pictures:
    """A folder of n 6 x 5 pictures; picture i has the value i in its red channel, so a pixel tells its row."""

    folder: Path
    n: int

    def meta(self, rows: int, name: str | None = None) -> Path:
        """A meta file over the first `rows` pictures, label = row mod 3."""
        path = self.folder / (name or f"meta-{rows}.txt")
        if not path.exists():
            path.write_text("".join(f"p/{row:03d} x.png {row % 3}\n" for row in range(rows)))
        return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "p").mkdir()
    for row in range(64):
        pixels = np.random.default_rng(row).integers(0, 255, (6, 5, 3), dtype=np.uint8)
        pixels[..., 0] = row
        (folder / "p" / f"{row:03d} x.png").write_bytes(png(pixels))
    return Pictures(folder, 64)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write("text or bytes", name="m.txt") -> the path of a new file."""

    def make(content: str | bytes, name: str = "m.txt") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


@pytest.fixture
def as_world() -> Callable[[int, Callable[..., object]], list[object]]:
    """Runs f(rank, gather) as every rank of a world, in threads; returns each rank's result or exception."""

    def run(world_size: int, act: Callable[..., object]) -> list[object]:
        barrier = threading.Barrier(world_size)
        slots: list[object] = [None] * world_size
        results: list[object] = [None] * world_size

        def rank_main(rank: int) -> None:
            def gather(thing: object) -> list[object]:
                slots[rank] = thing
                barrier.wait(20)
                found = list(slots)
                barrier.wait(20)
                return found

            try:
                results[rank] = act(rank, gather)
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return results

    return run


@pytest.fixture
def untouched_generators() -> Iterator[None]:
    """Nothing in `data` may leave the process's generators elsewhere than it found them."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    yield
    assert random.getstate() == before[1], "Python's generator was moved"
    assert torch.equal(torch.get_rng_state(), before[0]), "torch's default generator was moved"
    assert np.random.get_state()[1].tolist() == before[2], "numpy's global generator was moved"
