"""What a rank's rows cost before any is read: bytes of memory, and bytes read of the meta file."""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

PAGE = 4096
OFFSET_BYTES = 4  # of a row in a shard
PADDING_BYTES = 4.5  # behind a row there: its newline, and up to a multiple of 8


class Cost(NamedTuple):
    """Per rank. `shard_bytes`: one epoch's shard (two live while an epoch is prepared); 0 where none is held."""

    rows: int
    shard_bytes: int
    read_bytes: int


def cost(n: int, size_bytes: int, *, world_size: int, read: str = "shard", lanes: int | None = None) -> Cost:
    """An estimate from n rows in `size_bytes` bytes; exact where all rows are equally long.

    Reading goes by pages of 4 KiB, two of which may hold a row. With `lanes` (order="block") a rank whose world size
    divides them reads its own part only; any other touches `lanes / gcd(lanes, world_size)` of them.
    """
    rows = -(-n // world_size)
    mean = size_bytes / n
    scattered = min(size_bytes, round(rows * (mean + 2 * PAGE)))
    if read == "direct":
        return Cost(rows, 0, rows * 2 * PAGE)
    of_lanes = size_bytes if lanes is None else size_bytes // gcd(lanes, world_size)
    return Cost(rows, round(rows * (mean + PADDING_BYTES + OFFSET_BYTES)), min(scattered, of_lanes))
