"""A clip: some frames of a folder of images, or of a span of a video, as uint8 [T, C, H, W].

Which frames: the clip is cut into T equal parts, and one frame is taken of each (Wang et al., "Temporal Segment
Networks", 2016): the middle one, or in training a random one. A clip of fewer frames than T shows some of them more
than once.

    frames 0 1 2 3 4 5 6 7 8 9, T = 3     parts 0-3.3 | 3.3-6.7 | 6.7-10     middles 1 5 8
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from typing import Any

import torch

from .decode import MOST_PIXELS, ImageDecoder, UnreadableImage
from .errors import DecoderError
from .formats.format import IMAGES, Record
from .keys import RowRandom
from .reading import open_file, read_file

MOST_FRAMES = 1024
MOST_BYTES = 1 << 30  # of one clip, decoded

_NUMBERED = re.compile(r"(.*?)(\d{1,18})(\.[^.]+)", re.ASCII | re.DOTALL)
# Folders of frames may hold the flow between them as well; these are the names of pictures.
_PICTURES = ("img", "image", "frame", "im", "rgb", "")
_VIDEO_SIGNS = (
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska, WebM
    (0, b"RIFF"),  # AVI
    (0, b"FLV"),
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
    (0, b"\x00\x00\x01\xb3"),
    (0, b"\x30\x26\xb2\x75"),  # ASF, WMV
    (0, b"OggS"),
    (0, b"\x47"),  # MPEG transport stream
    (4, b"ftyp"),  # MP4, QuickTime
    (4, b"moov"),
    (4, b"mdat"),
    (4, b"wide"),
    (4, b"free"),
    (4, b"skip"),
)


def read_clip(
    record: Record,
    path: str,
    *,
    frames: int,
    decoder: ImageDecoder,
    positions: RowRandom | None = None,
    confine: Callable[[str], None] | None = None,
) -> torch.Tensor:
    """uint8 [frames, C, H, W] of the folder of images or the video at `path`, as `record` describes it.

    `positions` gives a random place in each part, None the middle. `confine` is called with the path of every frame
    before it is opened, and may raise. Raises UnreadableImage, or OSError.
    """
    places = [(part + (0.5 if positions is None else positions.random())) / frames for part in range(frames)]
    if record.frames is not None:
        return _of_folder(path, record.frames, places, decoder, confine)
    return _of_video(path, record, places, decoder.channels)


def require_video() -> None:
    """Raises DecoderError where no video can be decoded at all."""
    try:
        importlib.import_module("torchcodec.decoders").VideoDecoder(b"no video")
    except (ImportError, OSError) as error:
        why = str(error)
    except Exception as error:  # a decoder that works says that this is no video, in words that change
        why = str(error) if "load libtorchcodec" in str(error) else ""
    else:
        why = ""
    if why:
        raise DecoderError(
            "videos are decoded by torchcodec with FFmpeg's libraries, which don't load here: "
            f"'apt-get install ffmpeg' brings them ({why.strip().splitlines()[0][:120]})"
        )


def _of_folder(
    path: str, count: int, places: list[float], decoder: ImageDecoder, confine: Callable[[str], None] | None
) -> torch.Tensor:
    names = frame_names(path)
    if len(names) < count:
        raise UnreadableImage(f"the folder holds {len(names)} frames, but its row says {count}")
    chosen = [names[min(int(place * count), count - 1)] for place in places]
    known: dict[str, torch.Tensor] = {}
    for name in chosen:
        if name not in known:
            full = os.path.join(path, name)
            if confine is not None:
                confine(full)
            try:
                known[name] = decoder(read_file(full))
            except UnreadableImage as error:
                raise UnreadableImage(f"{name}: {error}") from error
            _check_size(known[name].shape[-1], known[name].shape[-2], len(places))
    shapes = {tuple(image.shape) for image in known.values()}
    if len(shapes) > 1:
        raise UnreadableImage(f"its frames differ in size: {' and '.join(map(str, sorted(shapes)[:2]))}")
    return torch.stack([known[name] for name in chosen])


def frame_names(folder: str) -> list[str]:
    """The images of a folder that are the frames of one clip, in the order of their numbers.

    Any names do (img_00001.jpg, frame000001.jpg, 1.png); where the folder holds several series, those that are called
    like pictures are taken. Raises UnreadableImage where there are none, or several such series.
    """
    series: dict[tuple[str, str], list[tuple[int, str]]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            match = _NUMBERED.fullmatch(entry.name)
            if os.path.splitext(entry.name)[1].lower() not in IMAGES or entry.name.startswith("."):
                continue
            kind, number = ((match[1], match[3]), int(match[2])) if match else ((entry.name, ""), 0)
            series.setdefault(kind, []).append((number, entry.name))
    if len(series) > 1:
        pictures = {kind: names for kind, names in series.items() if kind[0].rstrip("_-. ").lower() in _PICTURES}
        if len(pictures) != 1:
            told = ", ".join(sorted(f"{kind[0]}…{kind[1]}" for kind in series)[:5])
            raise UnreadableImage(f"the folder holds several series of images ({told}): which are the frames?")
        series = pictures
    if not series:
        raise UnreadableImage("the folder holds no images")
    return [name for _, name in sorted(next(iter(series.values())))]


def _of_video(path: str, record: Record, places: list[float], channels: int) -> torch.Tensor:
    _refuse_other(path)
    try:
        decoders = importlib.import_module("torchcodec.decoders")
        # approximate: the index of the file is believed; to scan it costs as much as decoding the whole of it
        video: Any = decoders.VideoDecoder(path, num_ffmpeg_threads=1, seek_mode="approximate", device="cpu")
        about = video.metadata
        _check_size(int(about.width or 0), int(about.height or 0), len(places))
        first, last = float(about.begin_stream_seconds or 0.0), float(about.end_stream_seconds or 0.0)
        start = first if record.start_s is None else max(first, record.start_s)
        stop = last if record.stop_s is None else min(last, record.stop_s)
        if not start < stop:
            raise UnreadableImage(f"the video lasts from {first:.2f} s to {last:.2f} s: its row's span lies outside")
        # of the last frame the end is not shown any more
        seconds = [min(start + place * (stop - start), last - 1e-6) for place in places]
        frames: torch.Tensor = video.get_frames_played_at(seconds).data
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:
        # FFmpeg meets hostile bytes through torchcodec with RuntimeError, ValueError, IndexError and others
        reason = str(error).strip().splitlines()
        told = reason[-1][:160] if reason else type(error).__name__
        raise UnreadableImage(f"no video that torchcodec can read ({told})") from error
    if channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114])  # of ITU-R BT.601, as Pillow's conversion to grey has it
        frames = (frames.float() * weights.reshape(1, 3, 1, 1)).sum(1, keepdim=True).round().to(torch.uint8)
    return frames.contiguous()


def _refuse_other(path: str) -> None:
    """Refuses what doesn't begin as a video: FFmpeg would take a playlist for one and open what that names."""
    with open_file(path) as file:
        head = file.read(16) or b""
    if not head:
        raise UnreadableImage("the file has zero bytes")
    if not any(head[at : at + len(sign)] == sign for at, sign in _VIDEO_SIGNS):
        raise UnreadableImage(f"no video (it begins with {head[:8]!r})")


def _check_size(width: int, height: int, frames: int) -> None:
    if width * height > MOST_PIXELS or 3 * width * height * frames > MOST_BYTES:
        raise UnreadableImage(f"{frames} frames of {width} x {height} pixels are too many to hold in memory")
