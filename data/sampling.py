"""From a row to a sample: read the file, decode, augment, and replace what can't be read.

Everything random about a sample is a function of (seed, epoch, row).
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from . import keys
from .decode import ImageDecoder, UnreadableImage
from .errors import ImageError, OptionError, OutsideRootError
from .meta import MetaFile
from .transforms import Transforms

LARGEST_FILE = 1 << 30
MOST_CANDIDATES = 32
POLICIES = ("raise", "replace")


class Sample(NamedTuple):
    """One loaded row. `image` is uint8 [C, H, W] unless a loader of one's own gives something else."""

    image: torch.Tensor
    label: int
    draws: list[float]
    replaced_by: int | None


class SampleReader:
    """Turns rows into samples; the same in every process. `load(path)` may replace reading and decoding."""

    def __init__(
        self,
        meta: MetaFile,
        *,
        seed: int,
        transform: Transforms | Callable[[torch.Tensor], torch.Tensor] | None,
        decoder: ImageDecoder,
        on_error: str = "raise",
        load: Callable[[str], torch.Tensor] | None = None,
    ) -> None:
        if on_error not in POLICIES:
            raise OptionError(f"on_error {on_error!r}: legal are {', '.join(POLICIES)} (data.on_error)")
        self.meta = meta
        self.seed = seed
        self.transform = transform
        self.decoder = decoder
        self.on_error = on_error
        self.load = load
        self._real_roots: dict[str, str] = {}

    def read(self, row: int, line: bytes | None, epoch: int | None) -> Sample:
        """The sample of a row, whose text is `line` if it is known already.

        With an epoch its randomness is seeded by (seed, epoch, row), and it is left so: whoever shares the process
        wraps this in `kept_randomness`. Without one it is as random as the process.
        """
        replaced_by: int | None = None
        try:
            pixels, label = self.pixels(row, line)
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

    def _replacement(self, row: int, epoch: int, first: UnreadableImage) -> tuple[torch.Tensor, int, int]:
        for k in range(MOST_CANDIDATES):
            candidate = keys.replacement_row(self.seed, epoch, row, k, self.meta.n)
            try:
                return *self.pixels(candidate, None), candidate
            except UnreadableImage:
                continue
        raise ImageError(f"{first}; {MOST_CANDIDATES} other rows drawn in its place can't be read either")

    def pixels(self, row: int, line: bytes | None) -> tuple[torch.Tensor, int]:
        """Pixels and label of a row as they lie on the disk; raises UnreadableImage with the row's place."""
        path, label = self.meta.parse(row, line)
        try:
            full = self._full_path(row, path)
            if self.load is not None:
                return self.load(full), label
            return self.decoder(read_file(full)), label
        except UnreadableImage as error:
            raise UnreadableImage(f"{self.meta.place(row)}: {error}") from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UnreadableImage(f"{self.meta.place(row)}: {reason}") from error

    def _full_path(self, row: int, path: str) -> str:
        root = os.fspath(self.meta.root_of(row))
        full = os.path.join(root, path)
        if not self.meta.allow_outside_root:
            real = self._real_roots.get(root)
            if real is None:
                real = self._real_roots.setdefault(root, os.path.join(os.path.realpath(root), ""))
            if not os.path.realpath(full).startswith(real):
                raise OutsideRootError(
                    f"{self.meta.place(row)} leads out of the root {root} by a link "
                    "(data.allow_outside_root=true lifts this)"
                )
        return full


def read_file(path: str) -> bytes:
    """All bytes of a regular file; raises OSError or UnreadableImage, and never waits on a pipe."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise UnreadableImage("no regular file")
        if facts.st_size > LARGEST_FILE:
            raise UnreadableImage(f"{facts.st_size} bytes, more than {LARGEST_FILE}")
        return file.readall()


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
