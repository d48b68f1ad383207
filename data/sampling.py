"""From a row to a sample: read the file, decode, augment, and replace what can't be read.

Everything random about a sample is a function of (seed, epoch, row).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from . import keys
from .clips import MOST_FRAMES, read_clip, require_video
from .decode import ImageDecoder, UnreadableImage
from .errors import ImageError, OptionError, OutsideRootError
from .formats.format import Record
from .meta import MetaFile
from .reading import OpenFiles, read_file
from .transforms import Transforms

MOST_CANDIDATES = 32
POLICIES = ("raise", "replace")


class Sample(NamedTuple):
    """One loaded row. `image` is uint8 [C, H, W], of a clip [T, C, H, W], unless a loader of one's own gives something
    else; `label` is all labels of the row where rows may have several."""

    image: torch.Tensor
    label: int | tuple[int, ...]
    draws: list[float]
    replaced_by: int | None


class SampleReader:
    """Turns rows into samples; the same in every process.

    `load(path)` may replace reading and decoding; in a container its path ends in `@offset:length`. Else of frame
    folders and videos `clip_frames` frames are taken, one of each of as many equal parts: a random one, a function of
    (seed, epoch, row), or, without an epoch or with `centred`, the middle one.
    """

    def __init__(
        self,
        meta: MetaFile,
        *,
        seed: int,
        transform: Transforms | Callable[[torch.Tensor], torch.Tensor] | None,
        decoder: ImageDecoder,
        on_error: str = "raise",
        load: Callable[[str], torch.Tensor] | None = None,
        clip_frames: int | None = None,
        centred: bool = False,
    ) -> None:
        if on_error not in POLICIES:
            raise OptionError(f"on_error {on_error!r}: legal are {', '.join(POLICIES)} (data.on_error)")
        if clip_frames is not None and not 1 <= clip_frames <= MOST_FRAMES:
            raise OptionError(f"clip_frames {clip_frames}: legal are 1 … {MOST_FRAMES}")
        clips = meta.kind != "image" and load is None
        if clips and clip_frames is None:
            told = "videos" if meta.kind == "video" else "folders of frames"
            raise OptionError(
                f"{meta.told}: of {told} clip_frames says how many frames make a sample, which isn't given (train.py "
                "can't train on clips yet: README, 'The data package alone')"
            )
        if clip_frames is not None and not clips:
            told = "'load' reads the rows" if load is not None else "the rows are single images"
            raise OptionError(f"clip_frames {clip_frames}: {told}; leave it out")
        if clips and meta.kind == "video":
            require_video()
        self.meta = meta
        self.seed = seed
        self.transform = transform
        self.decoder = decoder
        self.on_error = on_error
        self.load = load
        self.clip_frames = clip_frames
        self.centred = centred
        self._containers = OpenFiles()
        self._real_roots: dict[str, str] = {}

    def read(self, row: int, line: bytes | None, epoch: int | None) -> Sample:
        """The sample of a row, whose text is `line` if it is known already.

        With an epoch its randomness is seeded by (seed, epoch, row), and it is left so: whoever shares the process
        wraps this in `kept_randomness`. Without one it is as random as the process.
        """
        replaced_by: int | None = None
        try:
            pixels, label = self.pixels(row, line, epoch)
        except UnreadableImage as error:
            if self.on_error == "raise" or epoch is None:
                raise ImageError(
                    f"{error} (data.on_error=replace takes another image in its place, up to data.bad_budget)"
                ) from None
            pixels, label, replaced_by = self._replacement(row, epoch, error)
        if self.transform is None:
            return Sample(pixels, label, [], replaced_by)
        if epoch is not None:
            seed_all(keys.augmentation_seed(self.seed, epoch, row))
        try:
            if not isinstance(self.transform, Transforms):
                return Sample(self.transform(pixels), label, [], replaced_by)
            image = self.transform.sample(pixels)
            numbers = self.transform.draw(
                keys.RowRandom(self.seed, epoch or 0, row), (int(image.shape[1]), int(image.shape[2]))
            )
        except Exception as error:
            error.add_note(f"while transforming row {row} ({self.meta.place(row)})")
            raise
        return Sample(image, label, numbers, replaced_by)

    def _replacement(
        self, row: int, epoch: int, first: UnreadableImage
    ) -> tuple[torch.Tensor, int | tuple[int, ...], int]:
        for k in range(MOST_CANDIDATES):
            candidate = keys.replacement_row(self.seed, epoch, row, k, self.meta.n)
            try:
                return *self.pixels(candidate, None, epoch), candidate
            except UnreadableImage:
                continue
        raise ImageError(f"{first}; {MOST_CANDIDATES} other rows drawn in its place can't be read either")

    def pixels(
        self, row: int, line: bytes | None, epoch: int | None = None
    ) -> tuple[torch.Tensor, int | tuple[int, ...]]:
        """Pixels and label of a row as they lie on the disk; raises UnreadableImage with the row's place."""
        record = self.meta.record(row, line)
        label = record.label if record.labels is None else record.labels
        try:
            return self._decode(row, record, self._full_path(row, record.path), epoch), label
        except UnreadableImage as error:
            raise UnreadableImage(f"{self.meta.place(row)}: {error}") from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UnreadableImage(f"{self.meta.place(row)}: {reason}") from error

    def _decode(self, row: int, record: Record, full: str, epoch: int | None) -> torch.Tensor:
        if self.load is not None:
            return self.load(record._replace(path=full).written)
        if self.clip_frames is not None:
            rng = None if epoch is None or self.centred else keys.RowRandom(self.seed, epoch, row, purpose="clip")
            return read_clip(
                record,
                full,
                frames=self.clip_frames,
                decoder=self.decoder,
                positions=rng,
                confine=partial(self._confine, row),
            )
        if record.offset is None:
            return self.decoder(read_file(full))
        return self.decoder(self._containers.read(full, record.offset, record.length or 0))

    def _full_path(self, row: int, path: str) -> str:
        full = os.path.join(os.fspath(self.meta.root_of(row)), path)
        self._confine(row, full)
        return full

    def _confine(self, row: int, full: str) -> None:
        """Raises OutsideRootError for a path that leads out of the row's root by a link."""
        if self.meta.allow_outside_root:
            return
        root = os.fspath(self.meta.root_of(row))
        real = self._real_roots.get(root)
        if real is None:
            real = self._real_roots.setdefault(root, os.path.join(os.path.realpath(root), ""))
        if not os.path.realpath(full).startswith(real):
            raise OutsideRootError(
                f"{self.meta.place(row)} leads out of the root {root} by a link "
                "(data.allow_outside_root=true lifts this)"
            )


def seed_all(seed: int) -> None:
    """Seeds the generators that transforms draw from. (`torch.manual_seed` would also visit every device: 377 µs.)"""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Gives the process its random states back: loading without workers must not touch a model's dropout."""
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
