from __future__ import annotations

import pickle
import tarfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import keys, sampling
from data.datasets import IndexedDataset, RankDataset
from data.decode import ImageDecoder
from data.errors import DecoderError, ImageError, OptionError, OutsideRootError
from data.sampler import Draw
from data.sampling import SampleReader
from tests.data.conftest import png

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


def packed(pictures: Any, folder: Path, rows: int = 6) -> Path:
    """A meta file over spans of a tar."""
    lines = []
    with tarfile.open(folder / "s.tar", "w") as tar:
        for row in range(rows):
            tar.add(pictures.folder / "p" / f"{row:03d} x.png", f"{row}.png")
    with tarfile.open(folder / "s.tar") as tar:
        for row, member in enumerate(tar):
            lines.append(f"s.tar@{member.offset_data}:{member.size} {row}\n")
    (folder / "packed.txt").write_text("".join(lines))
    return folder / "packed.txt"


def test_spans_of_containers(pictures: Any, tmp_path: Path) -> None:
    meta = packed(pictures, tmp_path)
    plain = IndexedDataset(pictures.meta(6))
    dataset = IndexedDataset(meta)
    for row in range(6):
        assert torch.equal(dataset[row][0], plain[row][0])
        assert dataset[row][1] == row
    own = IndexedDataset(meta, load=lambda path: torch.tensor(len(path)))
    assert int(own[0][0]) == len(f"{tmp_path}/{meta.read_text().split()[0]}")
    copy = pickle.loads(pickle.dumps(dataset._reader))
    assert int(copy.pixels(3, None)[0][0, 0, 0]) == 3


def test_spans_that_are_not_there(pictures: Any, tmp_path: Path) -> None:
    packed(pictures, tmp_path)
    size = (tmp_path / "s.tar").stat().st_size
    bad = tmp_path / "bad.txt"
    spans = [f"s.tar@{size}:1", f"s.tar@{size - 1}:2", "s.tar@0:0", "none.tar@0:9", "s.tar@0:512", f"s.tar@{10**17}:9"]
    bad.write_text("".join(f"{span} 0\n" for span in spans))
    dataset = IndexedDataset(bad, classes=1)
    told = [
        f"the span of 1 bytes from {size} goes past the end of the file, {size}",
        f"the span of 2 bytes from {size - 1} goes past the end of the file, {size}",
        "the file has zero bytes",
        "No such file or directory",
        "no image",
        "goes past the end of the file",
    ]
    for row, reason in enumerate(told):
        with pytest.raises(ImageError, match=rf"bad\.txt:{row + 1}  {spans[row]}: .*{reason}"):
            dataset[row]


def test_several_labels(pictures: Any, tmp_path: Path) -> None:
    meta = pictures.folder / "several.txt"
    meta.write_text("p/000 x.png 0\np/001 x.png 1,2\n")
    dataset = IndexedDataset(meta)
    assert dataset.sample(0).label == (0,)
    assert dataset.sample(Draw(1, 0, 0)).label == (1, 2)
    assert IndexedDataset(meta, columns={"path": 0, "labels": 1}).meta.multi_label


def clips_of(folder: Path, spare: bool = False) -> Path:
    """A frame list over two folders of 6 frames; frame k of folder i is filled with 10 i + k."""
    for index in range(2):
        (folder / f"v{index}").mkdir()
        for k in range(6):
            (folder / f"v{index}" / f"img_{k + 1:05}.png").write_bytes(
                png(np.full((4, 5, 3), 10 * index + k, np.uint8))
            )
    (folder / "frames.txt").write_text("v0 6 0\nv1 6 1\n" + "none 6 1\n" * spare)
    return folder / "frames.txt"


def test_clips(tmp_path: Path) -> None:
    meta = clips_of(tmp_path)
    dataset = IndexedDataset(meta, clip_frames=3)
    image, label = dataset[1]
    assert (tuple(image.shape), label) == ((3, 3, 4, 5), 1)
    assert image[:, 0, 0, 0].tolist() == [11, 13, 15], "without an epoch the middle of each part"
    draws = [dataset.sample(Draw(1, epoch, 0)).image[:, 0, 0, 0].tolist() for epoch in range(20)]
    assert draws[4] == IndexedDataset(meta, clip_frames=3).sample(Draw(1, 4, 0)).image[:, 0, 0, 0].tolist()
    assert len({tuple(draw) for draw in draws}) > 4
    assert all((value - 10) // 2 == part for draw in draws for part, value in enumerate(draw))
    reader = SampleReader(
        dataset.meta, seed=0, transform=None, decoder=ImageDecoder("pillow"), clip_frames=3, centred=True
    )
    assert torch.equal(reader.pixels(1, None, epoch=5)[0], image)
    half = IndexedDataset(meta, clip_frames=2, transform=lambda clip: clip[:, :, :2])
    assert tuple(half[0][0].shape) == (2, 3, 2, 5)


def test_clips_that_are_not_there(tmp_path: Path) -> None:
    meta = clips_of(tmp_path, spare=True)
    with pytest.raises(ImageError, match=r"frames\.txt:3  none: No such file or directory"):
        IndexedDataset(meta, clip_frames=3)[2]
    replaced = IndexedDataset(meta, clip_frames=3, on_error="replace").sample(Draw(2, 0, 0))
    assert replaced.replaced_by in (0, 1)
    outside = tmp_path.parent / f"{tmp_path.name}-outside.png"
    outside.write_bytes((tmp_path / "v0" / "img_00001.png").read_bytes())
    (tmp_path / "v0" / "img_00002.png").unlink()
    (tmp_path / "v0" / "img_00002.png").symlink_to(outside)
    with pytest.raises(OutsideRootError, match=r"frames\.txt:1  v0 leads out of the root .* by a link"):
        IndexedDataset(meta, clip_frames=3, on_error="replace")[0]
    assert len(IndexedDataset(meta, clip_frames=3, allow_outside_root=True)[0][0]) == 3


def test_options_of_clips(pictures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = clips_of(tmp_path)
    video = tmp_path / "v.txt"
    video.write_text("a.mp4 0\n")
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (
            meta,
            {},
            r"frames\.txt: frame folders .*: of folders of frames clip_frames says how many frames make a sample, "
            r"which isn't given \(train\.py can't train on clips yet: README, 'The data package alone'\)$",
        ),
        (video, {}, "of videos clip_frames says how many"),
        (pictures.meta(3), {"clip_frames": 3}, "clip_frames 3: the rows are single images; leave it out"),
        (meta, {"clip_frames": 0}, r"clip_frames 0: legal are 1 … 1024"),
        (meta, {"clip_frames": 3, "load": len}, "clip_frames 3: 'load' reads the rows; leave it out"),
        (meta, {"clip_frames": 3, "on_error": "skip"}, "on_error 'skip': legal are raise, replace"),
    ]
    for source, options, told in cases:
        with pytest.raises(OptionError, match=told):
            IndexedDataset(source, **options)
    assert IndexedDataset(video, load=lambda path: path)[0] == (str(tmp_path / "a.mp4"), 0)  # type: ignore[arg-type, return-value]

    def broken() -> None:
        raise DecoderError("no FFmpeg")

    monkeypatch.setattr(sampling, "require_video", broken)
    with pytest.raises(DecoderError, match="no FFmpeg"):
        IndexedDataset(video, clip_frames=2)
