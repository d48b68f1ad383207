"""A rank's rows of one epoch as bytes in one file descriptor: no Python object per row.

    header    64 bytes             magic, version, rows, bytes of text, a token that no other shard has
    offsets   uint32 per row       in the order in which rows are served, in units of 8 bytes of text
    text      8 bytes x …          the rows in the order of the file, each closed by line feeds up to a multiple of 8

The descriptor is memory that processes share (or any file). Rows at multiples of 8 bytes are copied in whole words
and let 32 bits reach 32 GiB. The header is written last: a builder that was killed leaves no shard.
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .errors import SplitError
from .memory import write_all

if TYPE_CHECKING:
    from .meta import MetaFile

MAGIC = b"rankrun-shard-1\0"
HEADER = struct.Struct("<16sQQ16s16x")
MOST_TEXT_BYTES = 8 << 32
BLOCK_ROWS = 1 << 18
TOKEN_BYTES = 16
LINE_FEEDS = np.uint64(0x0A0A0A0A0A0A0A0A)

Rows = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]


def build_shard(meta: MetaFile, rows: Rows, fd: int, threads: int = 1) -> None:
    """Writes the shard of `rows` (in serving order, repeats allowed, overwritten here) to `fd`, each row checked.

    Memory beside the shard itself: a few batches of 1 or 2 MiB. Raises RowError for bad rows among them,
    ChangedError if the file is no longer the one that was opened, SplitError for more than 32 GiB of text.
    """
    os.ftruncate(fd, 0)
    packed, shift = _packed(rows, meta.n)
    text_at = _text_at(packed.size)
    os.ftruncate(fd, text_at)
    written = 0
    with mmap.mmap(fd, text_at) as mapped:
        offsets = np.frombuffer(mapped, "<u4", packed.size, HEADER.size)
        try:
            for begin in range(0, packed.size, BLOCK_ROWS):
                block = packed[begin : begin + BLOCK_ROWS]
                numbers = (block >> shift).view(np.int64)
                fresh = np.concatenate(([True], numbers[1:] != numbers[:-1]))
                wanted = numbers[fresh]
                places = np.empty(wanted.size, np.uint32)
                for low, high, text, starts, stops in meta.gather(wanted, threads):
                    kept, begins, ends = pack_rows(text, starts, stops)
                    meta.check_chunk(wanted[low:high], kept, begins, ends)
                    if written + kept.size > MOST_TEXT_BYTES:
                        raise _too_large(packed.size)
                    places[low:high] = (begins + written) >> 3
                    written = write_all(fd, kept.data, text_at + written) - text_at
                served = block & ((np.uint64(1) << shift) - np.uint64(1))
                offsets[served] = places[np.cumsum(fresh) - 1]
        finally:
            del offsets  # a map that is still looked into can't be closed, and the error would be that one
    write_all(fd, HEADER.pack(MAGIC, packed.size, written, secrets.token_bytes(TOKEN_BYTES)), 0)


class Shard:
    """A finished shard, mapped for reading. `token` tells it from every other one.

    Raises ValueError where the descriptor holds none.
    """

    def __init__(self, fd: int) -> None:
        head = os.pread(fd, HEADER.size, 0).ljust(HEADER.size, b"\0")
        magic, count, text_bytes, token = HEADER.unpack(head)
        if magic != MAGIC:
            raise ValueError("no finished shard: its builder ended half-way")
        self.token: bytes = token
        self._count = int(count)
        text_at = _text_at(self._count)
        self.size_bytes = text_at + int(text_bytes)
        if os.fstat(fd).st_size != self.size_bytes:
            raise ValueError("no finished shard: its length is not what its header says")
        self._map = mmap.mmap(fd, self.size_bytes, access=mmap.ACCESS_READ)
        self._offsets = memoryview(self._map)[HEADER.size : HEADER.size + 4 * self._count].cast("I")
        self._text_at = text_at

    def __len__(self) -> int:
        return self._count

    def line(self, index: int) -> bytes:
        """The bytes of the row that is served as `index`, without its line end."""
        begin = self._text_at + 8 * self._offsets[index]
        return self._map[begin : self._map.find(b"\n", begin)]

    def close(self) -> None:
        """Lets go of the memory; the descriptor stays the caller's."""
        self._offsets.release()
        self._map.close()


def pack_rows(text: Bytes, starts: Rows, stops: Rows) -> tuple[Bytes, Rows, Rows]:
    """(the rows alone, one after the other, each closed by 1 to 8 line feeds up to a multiple of 8 bytes, where each
    starts in them, where it stops). `text` goes on for 8 bytes or more after each row.

    Whole words are moved, wherever they begin: 40 ns for a row of 38 bytes, half of what single bytes would take.
    """
    lengths = stops - starts
    words = (lengths >> 3) + 1
    ends = np.cumsum(words)
    begins = ends - words
    source = np.repeat(starts - 8 * begins, words)
    source += np.arange(0, 8 * source.size, 8)
    kept = np.ndarray((text.size - 7,), "<u8", text.data, strides=(1,))[source]
    # the line's own bytes of its last word, and line feeds after them
    bits = ((lengths & 7) << 3).astype(np.uint64)
    mask = (np.uint64(1) << bits) - np.uint64(1)
    last = ends - 1
    kept[last] = (kept[last] & mask) | (LINE_FEEDS & ~mask)
    begins <<= 3
    return kept.view(np.uint8), begins, begins + lengths


def _packed(rows: Rows, n: int) -> tuple[Words, np.uint64]:
    """Row and serving index in one number each, sorted, in the memory of `rows`; and the bits of the index."""
    bits = max(1, int(rows.size - 1).bit_length()) if rows.size else 1
    if bits + max(1, n - 1).bit_length() > 64:
        raise _too_large(rows.size)
    shift = np.uint64(bits)
    packed = rows.view(np.uint64)
    np.left_shift(packed, shift, out=packed)
    for begin in range(0, packed.size, BLOCK_ROWS):
        stop = min(begin + BLOCK_ROWS, packed.size)
        packed[begin:stop] |= np.arange(begin, stop, dtype=np.uint64)
    packed.sort()
    return packed, shift


def _text_at(count: int) -> int:
    return HEADER.size + -(-4 * count // 8) * 8


def _too_large(count: int) -> SplitError:
    return SplitError(
        f"a shard of {count} rows is more than 32 GiB of text: use more ranks, or data.read=direct, which keeps none"
    )
