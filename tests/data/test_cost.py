"""What is foretold beside what is: shards that are built, and bytes that are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data.blocks import BlockOrder
from data.cost import cost
from data.memory import MemoryFile
from data.meta import MetaFile
from data.order import Order, Permutation
from data.shard import Shard
from data.slots import ShardJob

Write = Callable[..., Path]
ROWS = 600_000


@pytest.fixture
def meta(write: Write) -> MetaFile:
    return MetaFile(
        write("".join(f"train/{row % 7:02d}/{row:07d}.jpeg {row % 100}\n" for row in range(ROWS))), classes=100
    )


def built(meta: MetaFile, order: Order, world_size: int) -> tuple[int, int]:
    """(bytes of the shard of rank 1, bytes read for it)."""
    file, before = MemoryFile(), meta.read_bytes
    ShardJob(meta, order, 1 % world_size, meta.n, world_size).build(file.fd)
    return Shard(file.fd).size_bytes, meta.read_bytes - before


@pytest.mark.parametrize("world_size", [1, 4, 64, 3000])
def test_row_order(meta: MetaFile, world_size: int) -> None:
    foretold = cost(meta.n, meta.size_bytes, world_size=world_size)
    shard, read = built(meta, Permutation(meta.n, seed=3), world_size)
    assert foretold.rows == -(-ROWS // world_size)
    assert foretold.shard_bytes == pytest.approx(shard, rel=0.1, abs=200)
    assert read <= 1.1 * foretold.read_bytes


@pytest.mark.parametrize("world_size", [1, 2, 4, 12, 5])
def test_block_order(meta: MetaFile, world_size: int) -> None:
    order = BlockOrder(meta.unit_starts(65536), seed=3, lanes=12)
    foretold = cost(meta.n, meta.size_bytes, world_size=world_size, lanes=12)
    read = built(meta, order, world_size)[1]
    assert foretold.read_bytes == pytest.approx(
        meta.size_bytes / {1: 1, 2: 2, 4: 4, 12: 12, 5: 1}[world_size], rel=0.01
    )
    assert read == pytest.approx(foretold.read_bytes, rel=0.15)


def test_direct_holds_nothing() -> None:
    assert cost(10**9, 40 * 10**9, world_size=8, read="direct").shard_bytes == 0
