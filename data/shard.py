"""A rank's rows of one epoch: one buffer of bytes, and two offsets per row. No Python object per row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .meta import MetaFile

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """The text of chosen rows in the order in which they are served.

    `text` holds the bytes in the order of the file, so that building needs one pass and no sort of bytes; served row
    i is `text[starts[i] : stops[i]]`.
    """

    text: npt.NDArray[np.uint8]
    starts: Offsets
    stops: Offsets

    def __len__(self) -> int:
        return self.starts.size

    def line(self, index: int) -> bytes:
        return self.text[self.starts[index] : self.stops[index]].tobytes()

    @property
    def size_bytes(self) -> int:
        return self.text.nbytes + self.starts.nbytes + self.stops.nbytes


def build_shard(meta: MetaFile, rows: npt.NDArray[np.int64]) -> Shard:
    """Reads the whole file once and keeps `rows` (in serving order, repeats allowed), each one checked.

    Raises RowError for bad rows among them, ChangedError if the file is no longer the one that was opened.
    """
    wanted, served = np.unique(rows, return_inverse=True)
    texts: list[npt.NDArray[np.uint8]] = []
    starts = np.empty(wanted.size, np.int64)
    stops = np.empty(wanted.size, np.int64)
    filled = taken = 0
    for first, text, row_starts, row_stops in meta.chunks():
        until = int(np.searchsorted(wanted, first + row_starts.size))
        mine = wanted[taken:until] - first
        begin, lengths = row_starts[mine], row_stops[mine] - row_starts[mine]
        ends = np.cumsum(lengths)
        # every byte's place in `text`: its row's start there, plus how far it is into the row
        source = np.repeat(begin - ends + lengths, lengths) + np.arange(ends[-1] if ends.size else 0)
        kept = text[source]
        if kept.size or mine.size:
            meta.check_chunk(wanted[taken:until], kept, ends - lengths, ends)
        starts[taken:until] = ends - lengths + filled
        stops[taken:until] = ends + filled
        texts.append(kept)
        filled += kept.size
        taken = until
    text = np.concatenate(texts) if texts else np.empty(0, np.uint8)
    return Shard(text, starts[served.reshape(-1)], stops[served.reshape(-1)])
