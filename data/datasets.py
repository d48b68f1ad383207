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
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from .blocks import BlockOrder, Blocks, Order, choose_blocks
from .cost import cost
from .decode import DecoderName, ImageDecoder, resolve_decoder
from .errors import ClassesError, OptionError, sized
from .meta import MetaFile, Source
from .order import Permutation, rows_at
from .sampling import Sample, SampleReader, kept_randomness
from .shard import Shard
from .slots import ShardJob, Slots
from .split import check_tail, check_world
from .transforms import Transforms

Rows = npt.NDArray[np.int64]
Transform = Transforms | Callable[[torch.Tensor], torch.Tensor]
Load = Callable[[str], torch.Tensor]

READS = ("shard", "direct")


class Request(NamedTuple):
    """What a loader asks of a dataset for one batch: rows int64 [B] of one epoch, at indices int64 [B] of it."""

    epoch: int
    rows: Rows
    indices: Rows


class ImageRows(Dataset[tuple[Any, Any]]):
    """What both datasets share: a meta file, a seed, an order, and the way from a row to a sample.

    `order` is "row" (every row by itself), "block" (see blocks.py; for slow shared disks and huge files), or the
    Blocks that an earlier launch chose. `transform` is what build_transforms gives, or any callable from uint8
    [C, H, W]; `load(path)` replaces reading and decoding. What a Transforms does on the device is left to the caller:
    `dataset[i]` gives what the loader's part of it makes. With on_error="replace" an unreadable image gives way to
    another row, drawn by (seed, epoch, row). `clip_frames` is the number of frames taken of a video or frame folder,
    each at random within its part of it, or, `centred`, in the middle for evaluation. The other options are MetaFile's.
    """

    def __init__(
        self,
        meta_file: Source | MetaFile,
        *,
        seed: int = 0,
        order: str | Blocks = "row",
        root: str | os.PathLike[str] | None = None,
        classes: int | Sequence[str] | str | os.PathLike[str] | None = None,
        format: str | None = None,
        columns: dict[str, str | int] | None = None,
        exclude: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        cache: str | os.PathLike[str] | None = None,
        channels: int = 3,
        transform: Transform | None = None,
        tail: str = "drop",
        decoder: str = "auto",
        on_error: str = "raise",
        bad_budget: float = 0.001,
        allow_outside_root: bool = False,
        clip_frames: int | None = None,
        centred: bool = False,
        load: Load | None = None,
    ) -> None:
        check_tail(tail)
        if channels not in (1, 3):
            raise OptionError(f"channels {channels}: legal are 1 (grey) and 3 (RGB) (data.channels)")
        if not 0 <= bad_budget <= 1:
            raise OptionError(f"bad_budget {bad_budget} is a share of the epoch, 0 … 1 (data.bad_budget)")
        reading: dict[str, Any] = {"root": root, "classes": classes, "format": format, "columns": columns}
        reading |= {"exclude": exclude, "cache": cache, "allow_outside_root": allow_outside_root or None}
        given = {name: value for name, value in reading.items() if value is not None}
        if isinstance(meta_file, MetaFile):
            if given:
                raise OptionError(f"{', '.join(given)} beside a MetaFile: that has been opened; give it there")
            self.meta = meta_file
        else:
            self.meta = MetaFile(meta_file, **given)
        self.seed = seed
        self.blocks = _blocks(order, self.meta)
        self.tail = tail
        self.channels = channels
        self.bad_budget = bad_budget
        self.decoder: DecoderName = resolve_decoder(decoder)
        self._orders: dict[int, Order] = {}
        self._reader = SampleReader(
            self.meta,
            seed=seed,
            transform=transform,
            decoder=ImageDecoder(self.decoder.name, channels),
            on_error=on_error,
            load=load,
            clip_frames=clip_frames,
            centred=centred,
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

    @property
    def order(self) -> str:
        """The order in words that a checkpoint keeps: "row", or "block" with its lanes and unit."""
        if self.blocks is None:
            return "row"
        return f"block of {self.blocks.unit_bytes} bytes in {self.blocks.lanes} lanes"

    @property
    def told(self) -> tuple[str, ...]:
        """For people: how the meta file was understood, and what reading it costs a rank."""
        return self.meta.told, f"order {self.order}, indexed: every row is read from the file when it is served"

    def order_for(self, epoch: int) -> Order:
        """The order of an epoch: position -> row. Those of two epochs are kept, as a boundary needs them."""
        found = self._orders.get(epoch)
        if found is None:
            if self.blocks is None:
                found = Permutation(self.n, seed=self.seed, epoch=epoch)
            else:
                starts = self.meta.unit_starts(self.blocks.unit_bytes)
                found = BlockOrder(starts, seed=self.seed, epoch=epoch, lanes=self.blocks.lanes)
            while len(self._orders) > 1:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": {}}


class IndexedDataset(ImageRows):
    """All rows: `dataset[row]` is (image, label), the row read from the file at that moment.

    With a Draw for an index, as ElasticSampler yields them, augmentation is seeded by (seed, epoch, row); with a
    plain int it is as random as the process.
    """

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not -self.n <= index < self.n:
            raise IndexError(f"row {index} of {self.n}")
        with _kept_randomness_if(getattr(index, "epoch", None) is not None):
            sample = self.sample(index if index >= 0 else index + self.n)
        return sample.image, sample.label

    def sample(self, index: int) -> Sample:
        """The sample of a row, leaving the process's generators where the row's augmentation left them."""
        return self._reader.read(int(index), None, getattr(index, "epoch", None))

    def samples(self, wanted: Request) -> list[Sample]:
        """The samples of a batch."""
        return [self._reader.read(row, None, wanted.epoch) for row in wanted.rows.tolist()]

    def indices(self, positions: Rows, rows: Rows, start: int) -> Rows:
        """The indices at which this dataset serves these positions, which hold these rows."""
        return rows


class FolderDataset(IndexedDataset):
    """An IndexedDataset over class folders: `root/cat/1.png`, one folder per class.

    Labels are the folders' names where all are whole numbers, else their places among the names sorted by bytes.
    """

    def __init__(self, folder: str | os.PathLike[str], **options: Any) -> None:
        if not os.path.isdir(folder):
            raise ClassesError(f"{os.fspath(folder)} is no folder: a FolderDataset reads one folder per class")
        super().__init__(folder, **options)


class RankDataset(ImageRows):
    """One rank's rows of one epoch: `dataset[i]` is the i-th sample that the rank serves.

    The rank serves the positions g >= start with g mod world_size == rank. The tail is cut at the world size: "drop"
    leaves the last n mod W positions out, "pad" and "mask" repeat `order[g mod n]` (build_loader cuts at the global
    batch instead, and gives masked positions weight 0). Lengths are equal over ranks if `start` is a multiple of W.

    read="shard" takes the text of the own rows out of the file at the first use, checks each of them (RowError), and
    holds it in memory that workers share: its bytes and about 8 more per row. read="direct" fetches a row when it is
    served (some 70 µs each); its memory does not grow with n.
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
        order: str | Blocks = "row",
        read: str = "shard",
        load: Load | None = None,
        *,
        shuffle: bool = True,
        **options: Any,
    ) -> None:
        check_world(rank, world_size)
        _check_read(read)
        super().__init__(meta_file, seed=seed, tail=tail, order=order, load=load, **options)
        self.world_size = world_size
        self.rank = rank
        self.read = read
        self._epoch = epoch
        self.shuffle = shuffle
        self._stop = self.n // world_size * world_size if tail == "drop" else -(-self.n // world_size) * world_size
        if not 0 <= start <= self._stop:
            raise OptionError(f"start {start} is outside of the epoch's positions, 0 … {self._stop}")
        self._start = start
        self._slots = Slots()

    @property
    def epoch(self) -> int:
        """The epoch of this dataset; another epoch is another RankDataset, or a Loader's affair."""
        return self._epoch

    @cached_property
    def rows(self) -> Rows:
        """Row numbers in serving order, int64."""
        return self.job(self.epoch, self._start).rows()

    @property
    def shard(self) -> Shard:
        """The text of those rows, built at the first call in any process that shares this dataset."""
        return self._slots.shard_of(self.epoch, self.job(self.epoch, self._start))

    def __len__(self) -> int:
        return len(range(self._first(self._start), self._stop, self.world_size))

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        with kept_randomness():
            sample = self.sample(index if index >= 0 else index + len(self))
        return sample.image, sample.label

    def sample(self, index: int) -> Sample:
        """The i-th served sample, leaving the process's generators where the row's augmentation left them."""
        position = self._first(self._start) + int(index) * self.world_size
        row = int(rows_at(position, self.n, self._order(self.epoch)))
        line = self.shard.line(int(index)) if self.read == "shard" else None
        return self._reader.read(row, line, self.epoch)

    @property
    def told(self) -> tuple[str, ...]:
        lanes = None if self.blocks is None else self.blocks.lanes
        size = self.meta.size_bytes
        rows, shard, read = cost(self.n, size, world_size=self.world_size, read=self.read, lanes=lanes)
        held = "no shard: rows are fetched when they are served"
        if self.read == "shard":
            held = f"{sized(shard)} per rank and epoch, twice that while the next is prepared"
        return (
            self.meta.told,
            f"order {self.order}: a rank takes {rows:,} of {self.n:,} rows and reads {sized(read)} of {sized(size)}",
            f"read {self.read}: {held}",
        )

    # -- what a Loader asks of it

    def for_loader(self, *, stop: int, shuffle: bool) -> Self:
        """A dataset over the same rows with slots of its own, whose epochs end before position `stop`."""
        fresh = object.__new__(type(self))
        fresh.__dict__.update({name: value for name, value in self.__dict__.items() if name != "rows"})
        fresh._orders = {}
        fresh._slots = Slots()
        fresh._stop = stop
        fresh.shuffle = shuffle
        return fresh

    @property
    def slots(self) -> Slots | None:
        """Where its shards lie; None where it holds none."""
        return self._slots if self.read == "shard" else None

    def job(self, epoch: int, start: int) -> ShardJob:
        """Which rows the shard of an epoch holds that begins at position `start`."""
        return ShardJob(self.meta, self._order(epoch), self._first(start), self._stop, self.world_size)

    def samples(self, wanted: Request) -> list[Sample]:
        """The samples of a batch, of an epoch whose shard is in its slot."""
        rows = wanted.rows.tolist()
        if self.read == "direct":
            return [self._reader.read(row, None, wanted.epoch) for row in rows]
        shard = self._slots.shard(wanted.epoch if self.shuffle else 0)
        lines = map(shard.line, wanted.indices.tolist())
        return [self._reader.read(row, line, wanted.epoch) for row, line in zip(rows, lines, strict=True)]

    def indices(self, positions: Rows, rows: Rows, start: int) -> Rows:
        """The indices at which the shard of an epoch that begins at `start` serves these positions."""
        return (positions - self._first(start)) // self.world_size

    def _first(self, start: int) -> int:
        return start + (self.rank - start) % self.world_size

    def _order(self, epoch: int) -> Order | None:
        return self.order_for(epoch) if self.shuffle else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "rows"}


def open_dataset(
    source: Source,
    *,
    mode: str = "rank",
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    read: str = "shard",
    **options: Any,
) -> RankDataset | IndexedDataset:
    """The dataset of a config's values, in either mode; `options` are those of ImageRows.

    `source` is what MetaFile takes. Raises a DataError of what is wrong. Nothing of an image is read yet.
    """
    check_world(rank, world_size)
    if mode == "rank":
        return RankDataset(source, world_size, rank, seed, read=read, **options)
    if mode == "indexed":
        _check_read(read)
        return IndexedDataset(source, seed=seed, **options)
    raise OptionError(f"mode {mode!r}: legal are rank, indexed (data.mode)")


def _kept_randomness_if(wanted: bool) -> AbstractContextManager[None]:
    """`kept_randomness` where a sample is seeded, nothing where it isn't."""
    return kept_randomness() if wanted else nullcontext()


def _check_read(read: str) -> None:
    if read not in READS:
        raise OptionError(f"read {read!r}: legal are {', '.join(READS)} (data.read)")


def _blocks(order: str | Blocks, meta: MetaFile) -> Blocks | None:
    if isinstance(order, Blocks):
        return order
    if order == "block":
        return choose_blocks(meta.size_bytes)
    if order == "row":
        return None
    raise OptionError(f"order {order!r}: legal are row, block (data.order)")
