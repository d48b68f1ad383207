from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from data.blocks import BlockOrder
from data.errors import SplitError
from data.order import Order, Permutation
from data.sampler import Draw, ElasticSampler


def test_a_draw_is_an_int_that_knows_its_place() -> None:
    draw = pickle.loads(pickle.dumps(Draw(5, 2, 17)))
    assert (draw, draw.epoch, draw.position) == (5, 2, 17)
    assert [10, 11, 12, 13, 14, 15][draw] == 15
    assert {5: "x"}[draw] == "x"


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 90), world_size=st.integers(1, 17), drop_last=st.booleans())
def test_padding_and_dropping_are_torchs(n: int, world_size: int, drop_last: bool) -> None:
    for rank in range(world_size):
        ours = ElasticSampler(range(n), world_size, rank, shuffle=False, drop_last=drop_last)
        theirs = DistributedSampler(range(n), world_size, rank, shuffle=False, drop_last=drop_last)  # type: ignore[arg-type]
        assert len(ours) == len(theirs)
        assert list(ours) == list(theirs)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 90), world_size=st.integers(1, 9), drop_last=st.booleans(), data=st.data())
def test_the_order_and_the_start(n: int, world_size: int, drop_last: bool, data: st.DataObject) -> None:
    p = Permutation(n, seed=3, epoch=4)
    whole = ElasticSampler(range(n), world_size, 0, seed=3, drop_last=drop_last)
    start = data.draw(st.integers(0, whole.total_size))
    found = {}
    for rank in range(world_size):
        sampler = ElasticSampler(range(n), world_size, rank, seed=3, drop_last=drop_last, start=start)
        sampler.set_epoch(4)
        draws = list(sampler)
        assert len(draws) == len(sampler)
        found |= {draw.position: int(draw) for draw in draws}
        assert all(draw.position % world_size == rank and draw.epoch == 4 for draw in draws)
        sampler.set_epoch(5)
        assert len(list(sampler)) == len(sampler) == sampler.num_samples, "start is for the first epoch only"
    assert found == {g: p[g % n] for g in range(start, whole.total_size)}


def test_refusals() -> None:
    with pytest.raises(ValueError, match="rank 3 of world size 3"):
        ElasticSampler(range(5), 3, 3)
    with pytest.raises(SplitError, match="start 7 is outside of the epoch's positions, 0 … 6"):
        ElasticSampler(range(5), 3, 0, start=7)


def test_under_a_plain_dataloader() -> None:
    class Rows:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> tuple[int, int]:
            return int(index), index.position  # type: ignore[attr-defined]

    loader = DataLoader(Rows(), batch_size=2, sampler=ElasticSampler(Rows(), 2, 1, shuffle=False))  # type: ignore[arg-type]
    assert [pair[1].tolist() for pair in loader] == [[1, 3], [5, 7], [9]]


def test_no_memory_and_no_time_for_a_billion_rows() -> None:
    sampler = iter(ElasticSampler(range(10**9), 8, 3, seed=1))
    assert next(sampler) == Permutation(10**9, seed=1)[3]


class Dealt:
    """A dataset of 100 rows that knows its order, as IndexedDataset does; `n` rows of it are its own."""

    def __init__(self, n: int = 100) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def order_for(self, epoch: int) -> Order:
        return BlockOrder(np.arange(0, 101, 10), seed=6, epoch=epoch, lanes=4)


def test_the_order_of_the_dataset_under_the_seed_of_the_sampler() -> None:
    for seed in (6, 3):
        order = BlockOrder(np.arange(0, 101, 10), seed=seed, epoch=2, lanes=4)
        found = {}
        for rank in range(3):
            sampler = ElasticSampler(Dealt(), 3, rank, seed=seed)
            sampler.set_epoch(2)
            found |= {draw.position: int(draw) for draw in sampler}
        assert found == {g: order[g % 100] for g in range(102)}
    assert list(ElasticSampler(Dealt(), 2, 1, shuffle=False)) == list(range(1, 100, 2))


def test_a_dataset_that_serves_a_part_of_its_order_is_dealt_by_its_length() -> None:
    assert list(ElasticSampler(Dealt(9), 1, 0, seed=4)) == Permutation(9, seed=4)[:].tolist()


# -- the cases of torch's own tests of DistributedSampler, for every rank of many worlds


@pytest.mark.parametrize("world_size", range(1, 18))
@pytest.mark.parametrize("shuffle", [True, False])
def test_padding_as_torch_tests_it(world_size: int, shuffle: bool) -> None:
    """Sizes that don't divide, with and without drop_last, and a dataset smaller than half the world."""
    casual, tiny = 100 + world_size + 1, max(world_size // 2 - 1, 1)
    for n, drop_last in ((casual, True), (casual, False), (tiny, False)):
        samples = n // world_size if drop_last else math.ceil(n / world_size)
        dealt: list[int] = []
        for rank in range(world_size):
            sampler = ElasticSampler(range(n), world_size, rank, shuffle=shuffle, drop_last=drop_last)
            assert (sampler.num_samples, sampler.total_size) == (samples, samples * world_size)
            mine = [int(draw) for draw in sampler]
            assert len(mine) == len(sampler) == samples
            dealt += mine
        counts = np.bincount(dealt, minlength=n)
        assert counts.sum() == samples * world_size
        if drop_last:
            assert counts.max() == 1
        else:
            assert counts.min() >= 1
            assert counts.max() - counts.min() <= 1, "padding repeats the order from its beginning, evenly"


def test_no_row_twice_where_the_loader_drops_its_last_batch() -> None:
    """torch's test_duplicating_data_with_drop_last: 9 rows, 4 ranks, batches of 2."""
    scanned: list[int] = []
    for rank in range(4):
        loader = DataLoader(range(9), batch_size=9 // 4, drop_last=True, sampler=ElasticSampler(range(9), 4, rank))  # type: ignore[arg-type]
        scanned += [int(row) for batch in loader for row in batch]
    assert len(scanned) == len(set(scanned)) == 8


@pytest.mark.parametrize("rank", [3, -1])
def test_a_rank_outside_of_the_world_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} of world size 3"):
        ElasticSampler(range(10), 3, rank)
