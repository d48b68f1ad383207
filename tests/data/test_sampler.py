from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from data.errors import SplitError
from data.order import Permutation
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
