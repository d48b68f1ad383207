from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

from data import keys, sampling
from data.datasets import IndexedDataset, RankDataset
from data.errors import ImageError
from data.sampler import Draw
from data.sampling import UnreadableImage, read_file

pytestmark = pytest.mark.usefixtures("untouched_generators")


def spoilt(pictures: Any, bad: set[int], n: int = 20) -> Path:
    """A meta file in which some rows name a file that isn't there."""
    path: Path = pictures.folder / f"spoilt-{'-'.join(map(str, sorted(bad)))}-{n}.txt"
    path.write_text("".join(f"p/{'x' if row in bad else ''}{row:03d} x.png {row % 3}\n" for row in range(n)))
    return path


def test_a_replacement_is_the_hashed_row_with_its_label(pictures: Any) -> None:
    meta = spoilt(pictures, {4, 5})
    for epoch in range(6):
        expected = next(row for k in range(99) if (row := keys.replacement_row(2, epoch, 5, k, 20)) not in (4, 5))
        indexed = IndexedDataset(meta, seed=2, on_error="replace").sample(Draw(5, epoch, 0))
        assert indexed.replaced_by == expected
        assert int(indexed.image[0, 0, 0]) == expected
        assert indexed.label == expected % 3
        rank = RankDataset(meta, 1, 0, 2, epoch, on_error="replace")
        again = rank.sample(rank.rows.tolist().index(5))
        assert again.replaced_by == expected
        assert torch.equal(again.image, indexed.image)
    assert IndexedDataset(meta, seed=2, on_error="replace").sample(Draw(6, 0, 0)).replaced_by is None


def test_no_endless_search(pictures: Any) -> None:
    meta = spoilt(pictures, set(range(20)))
    with pytest.raises(
        ImageError, match=r":5  p/x004 x\.png: No such file.*; 32 other rows drawn .* can't be read either"
    ):
        IndexedDataset(meta, seed=2, on_error="replace")[Draw(4, 0, 0)]


def test_a_fault_in_a_transform_keeps_its_traceback_and_names_the_row(pictures: Any) -> None:
    def broken(image: torch.Tensor) -> torch.Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        IndexedDataset(pictures.meta(5), transform=broken, on_error="replace")[Draw(2, 0, 0)]
    assert "while transforming row 2 (" in "".join(traceback.format_exception(caught.value))


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "LARGEST_FILE", 3)
    (tmp_path / "a").write_bytes(b"1234")
    with pytest.raises(UnreadableImage, match="4 bytes, more than 3"):
        read_file(str(tmp_path / "a"))
