"""One pass over the bytes of a file: line feeds counted per page, contents summed per span.

    page    4 KiB      counts uint16: its line feeds
    span    64 KiB     totals int64: line feeds of the file before it; sums uint64: its bytes, in their order

The passes are numpy's, over buffers that stay in the processor's second cache and are used again. numpy lets go of
the interpreter lock in each of its calls, so threads share the work; few calls over large buffers, because every one
of them may have to wait for that lock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

PAGE = 1 << 12
SPAN = 1 << 16
PAGES_PER_SPAN = SPAN // PAGE
LINE_FEED = np.uint8(10)
# Measured with 2 MiB of second cache per core: 256 KiB and 1 MiB take 10 % longer.
BLOCK = 1 << 19
GROUP = 1 << 24

Bytes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.uint16]
Sums = npt.NDArray[np.uint64]
Fill = Callable[[memoryview, int], int]  # (buffer, at) -> bytes read into it from there; fewer only at the end


@dataclass(frozen=True)
class Counted:
    """What a pass found, in the order of the file; `size_bytes` is what could be read."""

    counts: Counts
    totals: npt.NDArray[np.int64]
    sums: Sums
    size_bytes: int

    @property
    def line_feeds(self) -> int:
        return int(self.counts.sum(dtype=np.int64))

    def fingerprint(self) -> str:
        """32 hex digits over size, counts and sums."""
        digest = hashlib.blake2b(b"rankrun census 1 %d " % self.size_bytes, digest_size=16)
        digest.update(self.counts.astype("<u2").data)
        digest.update(self.sums.astype("<u8").data)
        return digest.hexdigest()


def scan(fill: Fill, size: int, threads: int = 1) -> Counted:
    """Counts and sums `size` bytes, read through `fill`, which `threads` threads call at a time."""
    counts = np.zeros(-(-size // PAGE), np.uint16)
    sums = np.zeros(-(-size // SPAN), np.uint64)
    groups = list(range(0, size, GROUP))[::-1]
    threads = max(1, min(threads, len(groups)))

    def work(_: int) -> int:
        scanner, read = _Scanner(), 0
        with suppress(IndexError):
            while True:  # whoever is free takes the next one, until the list is empty
                at = groups.pop()
                read += scanner.group(fill, at, min(GROUP, size - at), counts[at // PAGE :], sums[at // SPAN :])
        return read

    if threads == 1:
        read = work(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            read = sum(pool.map(work, range(threads)))
    per_span = np.add.reduceat(counts, np.arange(0, counts.size, PAGES_PER_SPAN), dtype=np.int64)
    return Counted(counts, np.cumsum(per_span) - per_span, sums, read)


class _Scanner:
    """The buffers of one thread.

    Content of a span: its 8,192 words of 64 bits times odd numbers that differ from place to place, modulo 2^64, so
    that any change of one word shows and two changes cancel once in 2^40. Products carry upwards only: two changed
    top bytes would cancel once in 256. So each half word is xor-ed with the next one first, which loses nothing and
    brings every bit into the lower half of some word.
    """

    def __init__(self) -> None:
        self._bytes = np.zeros(BLOCK, np.uint8)
        self._is_feed = np.empty(BLOCK, np.bool_)
        self._lanes = np.empty((GROUP // 2048, 2), np.uint64)
        self._sums = np.empty(GROUP // SPAN, np.uint64)
        # Everything is cut to size here: what is done between two of numpy's calls is done under the interpreter's
        # lock, and the other thread sleeps and has to be woken whenever it asks for it at that moment.
        words = self._is_feed.view(np.uint64)
        lanes = self._lanes.reshape(GROUP // BLOCK, -1, 2)
        sums = self._sums.reshape(GROUP // BLOCK, -1)
        halves = self._bytes.view(np.uint32).reshape(-1, SPAN // 4)
        mixed = self._is_feed.view(np.uint32).reshape(-1, SPAN // 4)
        self._view = self._bytes.data
        self._results = [(lanes[at, :, 0], lanes[at, :, 1], sums[at]) for at in range(GROUP // BLOCK)]
        self._by_lanes = words.reshape(-1, 256)[:, :255], words[255::256]
        self._mixing = halves[:, :-1], halves[:, 1:], mixed[:, :-1], halves[:, -1], mixed[:, -1]
        self._mixed = words.reshape(-1, SPAN // 8)

    def group(self, fill: Fill, begin: int, count: int, counts: Counts, sums: Sums) -> int:
        """Reads `count` bytes from `begin` (at most GROUP), writes what they have to the fronts of the arrays and
        returns how many there were."""
        block, is_feed, view, odd = self._bytes, self._is_feed, self._view, multipliers()
        (lanes, last_lane), (now, following, mixed, last, last_mixed) = self._by_lanes, self._mixing
        read = 0
        for at, (of_lanes, of_last, of_spans) in zip(range(0, count, BLOCK), self._results, strict=False):
            got = fill(view if count - at >= BLOCK else view[: count - at], begin + at)
            if got < BLOCK:
                block[got:] = 0  # what follows the end of the file counts as zeros
            read += got
            np.equal(block, LINE_FEED, out=is_feed)
            # eight lanes of bytes are added at once; 255 ones are what a lane holds
            np.add.reduce(lanes, axis=1, out=of_lanes)
            of_last[...] = last_lane
            np.bitwise_xor(now, following, out=mixed)
            last_mixed[...] = last
            np.einsum("sw,w->s", self._mixed, odd, out=of_spans)
        pages, spans = -(-count // PAGE), -(-count // SPAN)
        counts[:pages] = _lane_sums(self._lanes.reshape(-1, 4)[:pages])
        sums[:spans] = self._sums[:spans]
        return read


def _lane_sums(lanes: npt.NDArray[np.uint64]) -> Counts:
    """The sum of all bytes of each row of four words."""
    low = np.uint64(0x00FF00FF00FF00FF)
    pairs = (lanes & low) + ((lanes >> np.uint64(8)) & low)
    per_page = pairs[:, 0] + pairs[:, 1] + pairs[:, 2] + pairs[:, 3]
    # the product's top 16 bits are the sum of the four lanes of 16 bits
    return ((per_page * np.uint64(0x0001000100010001)) >> np.uint64(48)).astype(np.uint16)


@cache
def multipliers() -> Sums:
    """The odd numbers of a span's words; part of the format, never to be changed. [8192]"""
    drawn = np.frombuffer(hashlib.shake_128(b"rankrun census 1").digest(SPAN), "<u8")
    return drawn.astype(np.uint64) | np.uint64(1)
