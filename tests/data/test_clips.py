from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import clips
from data.clips import frame_names, read_clip, require_video
from data.decode import ImageDecoder, UnreadableImage
from data.errors import DecoderError
from data.formats.format import Record
from data.keys import RowRandom
from tests.data.conftest import png

DECODER = ImageDecoder("pillow")


def folder(root: Path, names: Sequence[str], shape: tuple[int, int] = (4, 6)) -> str:
    """Frame i is filled with the value 10 i."""
    root.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        (root / name).write_bytes(png(np.full((*shape, 3), 10 * index, np.uint8)))
    return str(root)


def shown(clip: torch.Tensor) -> list[int]:
    """Which frames a clip consists of."""
    return [int(value) // 10 for value in clip[:, 0, 0, 0]]


def test_the_drawing(tmp_path: Path) -> None:
    path = folder(tmp_path, [f"img_{i:05}.png" for i in range(1, 11)])
    clip = read_clip(Record(path, 0, frames=10), path, frames=3, decoder=DECODER)
    assert (tuple(clip.shape), clip.dtype) == ((3, 3, 4, 6), torch.uint8)
    assert shown(clip) == [1, 5, 8]


def test_which_frames(tmp_path: Path) -> None:
    path = folder(tmp_path, [f"img_{i:05}.png" for i in range(1, 11)])

    def look(count: int, frames: int, rng: RowRandom | None = None) -> list[int]:
        record = Record(path, 0, frames=count)
        return shown(read_clip(record, path, frames=frames, decoder=DECODER, positions=rng))

    assert look(10, 10) == list(range(10))
    assert look(10, 1) == [5]
    assert look(4, 2) == [1, 3], "the row says how many of them count"
    assert look(3, 6) == [0, 0, 1, 1, 2, 2], "some more than once"
    draws = [look(10, 5, RowRandom(1, 0, row, purpose="clip")) for row in range(40)]
    assert look(10, 5, RowRandom(1, 0, 7, purpose="clip")) == draws[7]
    assert {frame for draw in draws for frame in draw} == set(range(10))
    assert all(frame // 2 == part for draw in draws for part, frame in enumerate(draw))
    grey = read_clip(Record(path, 0, frames=10), path, frames=2, decoder=ImageDecoder("pillow", 1))
    assert tuple(grey.shape) == (2, 1, 4, 6)


NAMES = [
    (
        ["frame000002.jpg", "frame000010.jpg", "frame000001.jpg"],
        ["frame000001.jpg", "frame000002.jpg", "frame000010.jpg"],
    ),
    (["2.png", "10.png", "1.png"], ["1.png", "2.png", "10.png"]),
    (["v_1_9.png", "v_1_10.png"], ["v_1_9.png", "v_1_10.png"]),
    (["img_1.jpg", "flow_x_1.jpg", "flow_y_1.jpg", "img_2.jpg"], ["img_1.jpg", "img_2.jpg"]),
    (["a.png"], ["a.png"]),
    (["1.png", "notes.txt", ".2.png", "list.csv"], ["1.png"]),
]


@pytest.mark.parametrize(("there", "found"), NAMES)
def test_names_of_frames(there: list[str], found: list[str], tmp_path: Path) -> None:
    for name in there:
        (tmp_path / name).touch()
    assert frame_names(str(tmp_path)) == found


def test_bad_folders(tmp_path: Path) -> None:
    def refused(path: str, told: str, **record: Any) -> None:
        with pytest.raises(UnreadableImage, match=told):
            read_clip(Record(path, 0, **{"frames": 2, **record}), path, frames=2, decoder=DECODER)

    refused(folder(tmp_path / "few", ["1.png"]), "the folder holds 1 frames, but its row says 2")
    refused(folder(tmp_path / "none", []), "the folder holds no images")
    refused(folder(tmp_path / "two", ["left_1.png", "right_1.png"]), r"several series of images \(left_….png, right_…")
    mixed = folder(tmp_path / "mixed", ["1.png"])
    (tmp_path / "mixed" / "2.png").write_bytes(png(np.zeros((9, 9, 3), np.uint8)))
    refused(mixed, r"its frames differ in size: \(3, 4, 6\) and \(3, 9, 9\)")
    (tmp_path / "mixed" / "2.png").write_bytes(b"")
    refused(mixed, r"2\.png: the file has zero bytes")
    (tmp_path / "mixed" / "2.png").unlink()
    os.mkfifo(tmp_path / "mixed" / "2.png")
    refused(mixed, r"2\.png: no regular file")
    with pytest.raises(NotADirectoryError):
        read_clip(Record("x", 0, frames=2), str(tmp_path / "mixed" / "1.png"), frames=2, decoder=DECODER)
    with pytest.raises(FileNotFoundError):
        read_clip(Record("x", 0, frames=2), str(tmp_path / "nowhere"), frames=2, decoder=DECODER)


def test_clips_that_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "MOST_BYTES", 3 * 24 * 5)
    path = folder(tmp_path, [f"{i}.png" for i in range(9)])
    assert len(read_clip(Record(path, 0, frames=9), path, frames=5, decoder=DECODER)) == 5
    with pytest.raises(UnreadableImage, match="6 frames of 6 x 4 pixels are too many to hold in memory"):
        read_clip(Record(path, 0, frames=9), path, frames=6, decoder=DECODER)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """videos("mp4") -> a video of 50 frames, 10 per second; frame i is grey of value 5 i."""
    from torchcodec.encoders import VideoEncoder

    place = tmp_path_factory.mktemp("videos")
    frames = (torch.arange(50) * 5).to(torch.uint8).reshape(50, 1, 1, 1).expand(50, 3, 32, 48).contiguous()

    def make(suffix: str) -> str:
        path = place / f"a.{suffix}"
        if not path.exists():
            VideoEncoder(frames, frame_rate=10).to_file(str(path))
        return str(path)

    return make


def seen(clip: torch.Tensor) -> list[float]:
    """The time of each frame, in seconds."""
    return [round(float(frame.float().mean()) / 50, 1) for frame in clip]


@pytest.mark.needs("ffmpeg")
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov"])
def test_spans_of_videos(videos: Callable[[str], str], suffix: str) -> None:
    path = videos(suffix)

    def look(frames: int, start: float | None = None, stop: float | None = None, **options: Any) -> list[float]:
        record = Record(path, 0, start_s=start, stop_s=stop)
        return seen(read_clip(record, path, frames=frames, decoder=DECODER, **options))

    assert look(5) == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5], abs=0.11)
    assert look(2, 1.0, 3.0) == pytest.approx([1.5, 2.5], abs=0.11)
    assert look(2, 4.0) == pytest.approx([4.25, 4.75], abs=0.11)
    assert look(2, None, 1.0) == pytest.approx([0.25, 0.75], abs=0.11)
    assert look(1, 4.9, 99.0) == pytest.approx([4.9], abs=0.11), "a span may end behind the video"
    assert len(look(80)) == 80
    draws = [look(2, positions=RowRandom(1, 0, row, purpose="clip")) for row in range(12)]
    assert draws[3] == look(2, positions=RowRandom(1, 0, 3, purpose="clip"))
    assert len({tuple(draw) for draw in draws}) > 6
    assert all(first < 2.6 and second > 2.4 for first, second in draws)
    clip = read_clip(Record(path, 0), path, frames=3, decoder=DECODER)
    assert (tuple(clip.shape), clip.dtype, clip.is_contiguous()) == ((3, 3, 32, 48), torch.uint8, True)
    grey = read_clip(Record(path, 0), path, frames=3, decoder=ImageDecoder("pillow", 1))
    assert tuple(grey.shape) == (3, 1, 32, 48)
    assert (grey.float() - clip[:, :1].float()).abs().max() <= 2


@pytest.mark.needs("ffmpeg")
def test_spans_that_are_not_there(videos: Callable[[str], str]) -> None:
    path = videos("mp4")
    with pytest.raises(UnreadableImage, match=r"the video lasts from 0\.00 s to 5\.00 s: its row's span lies outside"):
        read_clip(Record(path, 0, start_s=7.0, stop_s=9.0), path, frames=2, decoder=DECODER)


@pytest.mark.needs("ffmpeg")
@pytest.mark.parametrize("percent", [1, 10, 50, 99])
def test_truncated_videos(videos: Callable[[str], str], percent: int, tmp_path: Path) -> None:
    """Frames that are there, or one reason; nothing else."""
    for suffix in ("mp4", "mkv"):
        whole = Path(videos(suffix)).read_bytes()
        torn = tmp_path / f"torn.{suffix}"
        torn.write_bytes(whole[: max(9, len(whole) * percent // 100)])
        try:
            clip = read_clip(Record(str(torn), 0), str(torn), frames=3, decoder=DECODER)
        except UnreadableImage as error:
            told = str(error)
            assert told
            assert "\n" not in told
        else:
            assert len(clip) == 3


NO_VIDEOS = {
    "empty": (b"", "the file has zero bytes"),
    "a playlist": (
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n",
        "no video .it begins with b'#EXTM3U",
    ),
    "a list of files": (b"ffconcat version 1.0\nfile /etc/passwd\n", "no video .it begins with b'ffconcat"),
    "a page": (b"<!DOCTYPE html>", "no video .it begins with"),
    "an image": (png(np.zeros((4, 4, 3), np.uint8)), "no video .it begins with"),
}


@pytest.mark.parametrize("case", NO_VIDEOS)
def test_what_is_no_video(case: str, tmp_path: Path) -> None:
    content, told = NO_VIDEOS[case]
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=told):
        read_clip(Record(str(path), 0), str(path), frames=2, decoder=DECODER)


@pytest.mark.needs("ffmpeg")
@pytest.mark.parametrize(
    "head", [b"\0\0\0\x20ftypisom", b"RIFF\0\0\0\0AVI ", b"\x1a\x45\xdf\xa3", b"FLV\x01", b"\x47" * 400]
)
def test_noise_that_begins_like_a_video(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(head + bytes(range(256)) * 20)
    with pytest.raises(UnreadableImage, match="no video that torchcodec can read") as caught:
        read_clip(Record(str(path), 0), str(path), frames=2, decoder=DECODER)
    assert len(str(caught.value).splitlines()) == 1


def test_where_no_video_can_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @staticmethod
        def VideoDecoder(source: object) -> None:
            raise RuntimeError("Could not load libtorchcodec. Likely causes:\n 1. FFmpeg is not properly installed")

    class Working:
        @staticmethod
        def VideoDecoder(source: object) -> None:
            raise RuntimeError("Invalid data found when processing input")

    def missing(name: str) -> object:
        raise ImportError("no module named torchcodec")

    told = r"decoded by torchcodec with FFmpeg's libraries, .*'apt-get install ffmpeg' brings them \({}"
    monkeypatch.setattr(clips.importlib, "import_module", lambda name: Broken)
    with pytest.raises(DecoderError, match=told.format("Could not load libtorchcodec. Likely causes:")) as caught:
        require_video()
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.setattr(clips.importlib, "import_module", missing)
    with pytest.raises(DecoderError, match=told.format("no module named torchcodec")):
        require_video()
    monkeypatch.setattr(clips.importlib, "import_module", lambda name: Working)
    require_video()
