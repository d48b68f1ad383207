"""The two datasets. For the same (seed, epoch, position) both give the same sample, to the bit.

    RankDataset("train.txt", world_size=4, rank=1, seed=7, epoch=0, tail="pad")      11 rows
    positions  0 1 2 3 | 4 5 6 7 | 8 9 10 11          rank 1 serves order[1], order[5], order[9]

IndexedDataset reaches every row and is dealt positions by a sampler; RankDataset holds the text of its own rows only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from .decode import DecoderName, ImageDecoder, resolve_decoder
from .errors import OptionError
from .folder import folder_meta
from .meta import MetaFile, Source
from .order import Permutation, rows_at
from .sampling import Sample, SampleReader, kept_randomness
from .shard import Shard, build_shard
from .split import check_tail, check_world
from .transforms import Transforms

Rows = npt.NDArray[np.int64]
Transform = Transforms | Callable[[torch.Tensor], torch.Tensor]
Load = Callable[[str], torch.Tensor]


class ImageRows(Dataset[tuple[Any, int]]):
    """What both datasets share: a meta file, a seed, and the way from a row to a sample.

    `transform` is what build_transforms gives, or any callable from uint8 [C, H, W]; `load(path)` replaces reading
    and decoding. What a Transforms does on the device is left to the caller: `dataset[i]` gives what the loader's
    part of it makes. With on_error="replace" an unreadable image gives way to another row, drawn by (seed, epoch,
    row).
    """

    def __init__(
        self,
        meta_file: Source | MetaFile,
        *,
        seed: int = 0,
        root: str | os.PathLike[str] | None = None,
        classes: int | Sequence[str] | str | os.PathLike[str] | None = None,
        channels: int = 3,
        transform: Transform | None = None,
        tail: str = "drop",
        decoder: str = "auto",
        on_error: str = "raise",
        bad_budget: float = 0.001,
        allow_outside_root: bool = False,
        load: Load | None = None,
    ) -> None:
        check_tail(tail)
        if channels not in (1, 3):
            raise OptionError(f"channels {channels}: legal are 1 (grey) and 3 (RGB) (data.channels)")
        if not 0 <= bad_budget <= 1:
            raise OptionError(f"bad_budget {bad_budget} is a share of the epoch, 0 … 1 (data.bad_budget)")
        if isinstance(meta_file, MetaFile):
            self.meta = meta_file
        else:
            self.meta = MetaFile(meta_file, root=root, classes=classes, allow_outside_root=allow_outside_root)
        self.seed = seed
        self.tail = tail
        self.channels = channels
        self.bad_budget = bad_budget
        self.decoder: DecoderName = resolve_decoder(decoder)
        self._reader = SampleReader(
            self.meta,
            seed=seed,
            transform=transform,
            decoder=ImageDecoder(self.decoder.name, channels),
            on_error=on_error,
            load=load,
        )

    @property
    def n(self) -> int:
        """Rows of the whole meta file, whatever part of them this dataset serves."""
        return self.meta.n

    @property
    def classes(self) -> tuple[str, ...]:
        return self.meta.classes

    @property
    def num_classes(self) -> int:
        return self.meta.num_classes

    @property
    def transform(self) -> Transform | None:
        return self._reader.transform


class IndexedDataset(ImageRows):
    """All rows: `dataset[row]` is (image, label), the row read from the file at that moment.

    With a Draw for an index, as ElasticSampler yields them, augmentation is seeded by (seed, epoch, row); with a
    plain int it is as random as the process.
    """

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -self.n <= index < self.n:
            raise IndexError(f"row {index} of {self.n}")
        with _kept_randomness_if(getattr(index, "epoch", None) is not None):
            sample = self.sample(index if index >= 0 else index + self.n)
        return sample.image, sample.label

    def sample(self, index: int) -> Sample:
        """The sample of a row, leaving the process's generators where the row's augmentation left them."""
        return self._reader.read(int(index), None, getattr(index, "epoch", None))

    def for_epoch(
        self, epoch: int, *, rank: int, world_size: int, start: int, stop: int, shuffle: bool
    ) -> IndexedDataset:
        """Itself: every row is within reach in every epoch."""
        return self

    def indices(self, positions: Rows, rows: Rows) -> Rows:
        """The indices at which this dataset serves these positions, which hold these rows."""
        return rows


class FolderDataset(IndexedDataset):
    """An IndexedDataset over class folders: `root/cat/1.png`, one folder per class.

    Labels are the folders' names where all are whole numbers, else their places among the names sorted by bytes.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        classes: int | Sequence[str] | str | os.PathLike[str] | None = None,
        allow_outside_root: bool = False,
        **options: Any,
    ) -> None:
        meta = folder_meta(folder, classes=classes, allow_outside_root=allow_outside_root)
        super().__init__(meta, **options)


class RankDataset(ImageRows):
    """One rank's rows of one epoch: `dataset[i]` is the i-th sample that the rank serves.

    The rank serves the positions g >= start with g mod world_size == rank. The tail is cut at the world size: "drop"
    leaves the last n mod W positions out, "pad" and "mask" repeat `order[g mod n]` (build_loader cuts at the global
    batch instead, and gives masked positions weight 0). Lengths are equal over ranks if `start` is a multiple of W.
    Memory: the text of the own rows and 16 bytes per row, read from the file at the first use, where every one of
    them is checked (RowError).
    """

    def __init__(
        self,
        meta_file: Source | MetaFile,
        world_size: int,
        rank: int,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        tail: str = "drop",
        *,
        shuffle: bool = True,
        **options: Any,
    ) -> None:
        check_world(rank, world_size)
        super().__init__(meta_file, seed=seed, tail=tail, **options)
        self.world_size = world_size
        self.rank = rank
        stop = self.n // world_size * world_size if tail == "drop" else -(-self.n // world_size) * world_size
        if not 0 <= start <= stop:
            raise OptionError(f"start {start} is outside of the epoch's positions, 0 … {stop}")
        self._place(epoch, rank, world_size, start, stop, shuffle)

    def _place(self, epoch: int, rank: int, world_size: int, start: int, stop: int, shuffle: bool) -> None:
        self.epoch = epoch
        self.shuffle = shuffle
        self._extent = (rank, world_size, start, stop)
        self._first = start + (rank - start) % world_size

    @cached_property
    def rows(self) -> Rows:
        """Row numbers in serving order, int64."""
        _, world_size, _, stop = self._extent
        order = Permutation(self.n, seed=self.seed, epoch=self.epoch) if self.shuffle else None
        return rows_at(np.arange(self._first, stop, world_size), self.n, order)

    @cached_property
    def shard(self) -> Shard:
        """The text of those rows."""
        return build_shard(self.meta, self.rows)

    def __len__(self) -> int:
        _, world_size, _, stop = self._extent
        return len(range(self._first, stop, world_size))

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        with kept_randomness():
            sample = self.sample(index if index >= 0 else index + len(self))
        return sample.image, sample.label

    def sample(self, index: int) -> Sample:
        """The i-th served sample, leaving the process's generators where the row's augmentation left them."""
        return self._reader.read(int(self.rows[index]), self.shard.line(int(index)), self.epoch)

    def for_epoch(self, epoch: int, *, rank: int, world_size: int, start: int, stop: int, shuffle: bool) -> RankDataset:
        """The dataset of another epoch or extent (positions start … stop - 1), its shard read and checked.

        Keeps this one if it is the same already; a Loader that doesn't shuffle keeps what it served last, so that an
        evaluation set is read once.
        """
        if (epoch, (rank, world_size, start, stop), shuffle) != (self.epoch, self._extent, self.shuffle):
            fresh = object.__new__(type(self))
            fresh.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("rows", "shard")})
            fresh._place(epoch, rank, world_size, start, stop, shuffle)
            return fresh.for_epoch(epoch, rank=rank, world_size=world_size, start=start, stop=stop, shuffle=shuffle)
        assert self.shard is not None
        return self

    def indices(self, positions: Rows, rows: Rows) -> Rows:
        """The indices at which this dataset serves these positions, which hold these rows."""
        found = (positions - self._first) // self._extent[1]
        assert np.array_equal(self.rows[found], rows)
        return found


def _kept_randomness_if(wanted: bool) -> AbstractContextManager[None]:
    """`kept_randomness` where a sample is seeded, nothing where it isn't."""
    return kept_randomness() if wanted else nullcontext()


def open_dataset(
    source: Source,
    *,
    mode: str = "rank",
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
    classes: int | Sequence[str] | str | os.PathLike[str] | None = None,
    channels: int = 3,
    transform: Transform | None = None,
    tail: str = "drop",
    decoder: str = "auto",
    on_error: str = "raise",
    bad_budget: float = 0.001,
    allow_outside_root: bool = False,
) -> RankDataset | IndexedDataset:
    """The dataset of a config's values: a meta file, several, or a folder of class folders, in either mode.

    Raises a DataError of what is wrong. Nothing of an image is read yet.
    """
    check_world(rank, world_size)
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        if root is not None:
            raise OptionError(f"data.root={root} with the folder {source}: a folder of class folders is its own root")
        meta = folder_meta(source, classes=classes, allow_outside_root=allow_outside_root)
    else:
        meta = MetaFile(source, root=root, classes=classes, allow_outside_root=allow_outside_root)
    options: dict[str, Any] = {
        "channels": channels,
        "transform": transform,
        "decoder": decoder,
        "on_error": on_error,
        "bad_budget": bad_budget,
    }
    if mode == "rank":
        return RankDataset(meta, world_size, rank, seed, tail=tail, **options)
    if mode == "indexed":
        return IndexedDataset(meta, seed=seed, tail=tail, **options)
    raise OptionError(f"mode {mode!r}: legal are rank, indexed (data.mode)")
