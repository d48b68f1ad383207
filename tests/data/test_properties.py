"""What the data layer promises, for any numbers: each position once, the same batches, the same samples.

One process plays every rank of every world; real workers stand in the last part only, since each costs some 50 ms.
The reference of every test is plain: the order itself, walked from 0 to the cut, and each row's sample of that epoch.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from data import IndexedDataset, MetaFile, RankDataset, build_loader, build_transforms
from data.audit import add_sums
from data.blocks import BlockOrder, Blocks
from data.errors import SplitError
from data.loader import Batch, Loader
from data.order import Permutation
from data.sampler import Draw, ElasticSampler

pytestmark = pytest.mark.usefixtures("untouched_generators")

SEED = 11
MOST_ROWS = 60
KINDS = ["shard", "direct", "indexed"]
ORDERS: list[str | Blocks] = ["row", Blocks(lanes=6, unit_bytes=4096), Blocks(lanes=1, unit_bytes=8192)]
TAILS = ["drop", "pad", "mask"]
RECIPE = [{"RandomCrop": {"size": [3, 3], "padding": 1}}, {"RandomErasing": {"probability": 0.5}}]


def picture(path: str) -> torch.Tensor:
    """A picture that is its row: no file is opened."""
    row = int(path.rpartition("/")[2].partition("-")[0])
    return (torch.arange(27, dtype=torch.int64) * 7 + row).to(torch.uint8).reshape(3, 3, 3)


@pytest.fixture(scope="session")
def metas(tmp_path_factory: pytest.TempPathFactory) -> dict[int, MetaFile]:
    """A meta file of each number of rows; lines are up to 2,000 bytes long, so that 60 rows are a score of units."""
    folder = tmp_path_factory.mktemp("metas")

    def make(n: int) -> MetaFile:
        path = folder / f"{n}.txt"
        path.write_text("".join(f"{row}-{'x' * (row * 37 % 2000)}.png {row % 5}\n" for row in range(n)))
        return MetaFile(path, classes=5)

    class Made(dict[int, MetaFile]):
        def __missing__(self, n: int) -> MetaFile:
            self[n] = make(n)
            return self[n]

    return Made()


@dataclass(frozen=True)
class Case:
    """One run, and any rank of it: everything but who serves it."""

    meta: MetaFile
    order: str | Blocks
    tail: str
    global_batch: int
    micro_batch: int | None = None
    shuffle: bool = True

    def loader(self, kind: str, rank: int, world_size: int, **options: Any) -> Loader:
        own: dict[str, Any] = {
            "seed": SEED,
            "tail": self.tail,
            "order": self.order,
            "load": picture,
            "transform": build_transforms(RECIPE, 3),
        }
        dataset: RankDataset | IndexedDataset
        if kind == "indexed":
            dataset = IndexedDataset(self.meta, **own)
        else:
            dataset = RankDataset(self.meta, world_size, rank, read=kind, shuffle=self.shuffle, **own)
        return build_loader(
            dataset,
            global_batch=self.global_batch,
            micro_batch=self.micro_batch,
            rank=rank,
            world_size=world_size,
            shuffle=self.shuffle,
            **options,
        )

    @property
    def cut(self) -> int:
        n, whole = self.meta.n, self.global_batch
        return {"drop": n // whole * whole, "pad": -(-n // whole) * whole, "mask": n}[self.tail]

    @cache  # noqa: B019  a few hundred lists of sixty numbers, for as long as the tests run
    def rows(self, epoch: int) -> list[int]:
        """The row at every position below the cut."""
        n = self.meta.n
        if not self.shuffle:
            return [g % n for g in range(self.cut)]
        order: Permutation | BlockOrder = Permutation(n, seed=SEED, epoch=epoch)
        if isinstance(self.order, Blocks):
            starts = self.meta.unit_starts(self.order.unit_bytes)
            order = BlockOrder(starts, seed=SEED, epoch=epoch, lanes=self.order.lanes)
        whole = order[:].tolist()
        return [whole[g % n] for g in range(self.cut)]

    def samples(self, epoch: int) -> dict[int, str]:
        """The sample at every position below the cut: each row by itself, drawn as a Draw of that epoch."""
        dataset = IndexedDataset(self.meta, seed=SEED, load=picture, transform=build_transforms(RECIPE, 3))
        return {g: digest(*dataset[Draw(row, epoch, g)]) for g, row in enumerate(self.rows(epoch))}


def digest(image: torch.Tensor, label: int) -> str:
    return hashlib.sha256(image.numpy().tobytes() + bytes([label])).hexdigest()[:16]


def served(case: Case, batches: list[Batch], epoch: int) -> dict[int, str]:
    """position -> sample, of those with weight 1; checks what has to hold within a batch."""
    rows = case.rows(epoch)
    found: dict[int, str] = {}
    for batch in batches:
        assert len(batch) >= 1
        assert case.micro_batch is None or len(batch) <= case.micro_batch
        for i, (g, row) in enumerate(zip(batch.positions.tolist(), batch.rows.tolist(), strict=True)):
            assert batch.weights[i] == (g < case.cut)
            assert int(batch.labels[i]) == row % 5
            if g < case.cut:
                assert row == rows[g]
                assert g not in found
                found[g] = digest(batch.images[i], int(batch.labels[i]))
    return found


def draws_by_row(batches: list[Batch]) -> dict[tuple[int, ...], list[float]]:
    """What is drawn for the device: it belongs to a row, whoever serves it."""
    return {
        (int(row),): draws.tolist() for batch in batches for row, draws in zip(batch.rows, batch.draws, strict=True)
    }


def some_steps(loader: Loader, epoch: int, start: int, stop: int, carry: dict[str, Any] | None) -> list[Batch]:
    """The batches of the steps from `start` up to the one that ends at `stop`, as a run that is stopped there."""
    found: list[Batch] = []
    if start == stop:
        return found
    batches = loader.epoch(epoch, start, carry)
    for batch in batches:
        found.append(batch)
        if batch.state_after is not None and batch.state_after["position"] == stop:
            break
    batches.close()  # type: ignore[attr-defined]
    return found


CASES = {
    "n": st.integers(1, MOST_ROWS),
    "order": st.sampled_from(ORDERS),
    "tail": st.sampled_from(TAILS),
    "global_batch": st.integers(1, 24),
    "micro_batch": st.none() | st.integers(1, 5),
    "epoch": st.integers(0, 4),
    "shuffle": st.sampled_from([True, True, True, False]),
    "worlds": st.lists(st.integers(1, 17), min_size=3, max_size=3),
    "kinds": st.lists(st.sampled_from(KINDS), min_size=3, max_size=3),
}


def exactly_once(metas: dict[int, MetaFile], data: st.DataObject, **drawn: Any) -> None:
    n, epoch = drawn["n"], drawn["epoch"]
    case = Case(metas[n], drawn["order"], drawn["tail"], drawn["global_batch"], drawn["micro_batch"], drawn["shuffle"])
    worlds = [min(world, case.global_batch) for world in drawn["worlds"]]
    assume(case.cut > 0)
    steps = -(-case.cut // case.global_batch)
    cuts = sorted(data.draw(st.lists(st.integers(0, steps), min_size=2, max_size=2), label="cut points"))
    stops = [0, *(min(step * case.global_batch, case.cut) for step in cuts), case.cut]
    found: dict[int, str] = {}
    drawn_for: dict[tuple[int, ...], list[float]] = {}
    carry: dict[str, Any] | None = None
    for world, kind, start, stop in zip(worlds, drawn["kinds"], stops, stops[1:], strict=False):
        sums = (0, 0, 0)
        for rank in range(world):
            loader = case.loader(kind, rank, world)
            assert (loader.cut, loader.steps_per_epoch) == (case.cut, steps)
            batches = some_steps(loader, epoch, start, stop, carry)
            if start == stop:
                continue
            mine = served(case, batches, epoch)
            assert all(g % world == rank for g in mine)
            assert not mine.keys() & found.keys()
            found |= mine
            for row, numbers in draws_by_row(batches).items():
                assert drawn_for.setdefault(row, numbers) == numbers
            state = batches[-1].state_after
            assert state is not None
            assert (state["epoch"], state["position"], state["replaced"]) == (epoch, stop, 0)
            sums = add_sums(sums, state["sums"])
        assert sorted(found) == list(range(stop)), "the steps so far are whole"
        if start < stop:
            assert list(sums) == list(loader.expected_sums(epoch, stop))
            carry = {"sums": list(sums), "replaced": 0}
    assert found == case.samples(epoch)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(**CASES, data=st.data())
def test_each_position_once_through_two_resumes(metas: dict[int, MetaFile], data: st.DataObject, **drawn: Any) -> None:
    """Three worlds, datasets and reads share one epoch; every sample is that of an undisturbed walk over the order."""
    exactly_once(metas, data, **drawn)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(**CASES, data=st.data())
def test_each_position_once_at_length(metas: dict[int, MetaFile], data: st.DataObject, **drawn: Any) -> None:
    exactly_once(metas, data, **drawn)


def same_global_batches(
    metas: dict[int, MetaFile], kinds: list[str], order: str | Blocks, tail: str, world: int
) -> None:
    """53 rows in steps of 17, rank r reading in the way r of `kinds`."""
    case = Case(metas[53], order, tail, 17, micro_batch=3)
    found: dict[int, str] = {}
    lengths = set()
    for rank in range(world):
        batches = list(case.loader(kinds[rank % len(kinds)], rank, world).epoch(2))
        found |= served(case, batches, 2)
        lengths.add(sum(batch.state_after is not None for batch in batches))
    assert found == case.samples(2)
    assert lengths == {-(-case.cut // 17)}, "a rank with another number of steps would hang the others"


@pytest.mark.parametrize("order", ORDERS[:2], ids=["row", "block"])
def test_every_world_from_1_to_17_serves_the_same_global_batches(
    metas: dict[int, MetaFile], order: str | Blocks
) -> None:
    """A table where hypothesis would leave gaps."""
    for world in range(1, 18):
        same_global_batches(metas, KINDS, order, TAILS[world % 3], world)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS[:2], ids=["row", "block"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", TAILS)
def test_every_world_in_every_way(metas: dict[int, MetaFile], tail: str, kind: str, order: str | Blocks) -> None:
    for world in range(1, 18):
        same_global_batches(metas, [kind], order, tail, world)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, MOST_ROWS),
    world_size=st.integers(1, 17),
    order=st.sampled_from(ORDERS),
    tail=st.sampled_from(["drop", "pad"]),
    read=st.sampled_from(["shard", "direct"]),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_a_rank_dataset_is_an_indexed_one_under_an_elastic_sampler(
    metas: dict[int, MetaFile],
    n: int,
    world_size: int,
    order: str | Blocks,
    tail: str,
    read: str,
    epoch: int,
    data: st.DataObject,
) -> None:
    """In somebody else's script, without our loader: the same samples, from any start."""
    indexed = IndexedDataset(metas[n], seed=SEED, order=order, load=picture, transform=build_transforms(RECIPE, 3))
    whole = n // world_size * world_size if tail == "drop" else -(-n // world_size) * world_size
    start = data.draw(st.integers(0, whole), label="start")
    for rank in range(world_size):
        own: dict[str, Any] = {"load": picture, "transform": build_transforms(RECIPE, 3)}
        mine = RankDataset(metas[n], world_size, rank, SEED, epoch, start, tail, order, read, **own)
        drop_last = tail == "drop"
        sampler = ElasticSampler(indexed, world_size, rank, seed=SEED, drop_last=drop_last, start=start)
        sampler.set_epoch(epoch)
        draws = list(sampler)
        # torch pads where dropping would leave nothing to divide; RankDataset serves nothing then
        assume(sampler.total_size == whole)
        assert mine.rows.tolist() == [int(draw) for draw in draws]
        assert len(mine) == len(sampler)
        for i, draw in enumerate(draws):
            assert digest(*mine[i]) == digest(*indexed[draw])


def test_a_plain_dataloader_gives_the_same(metas: dict[int, MetaFile]) -> None:
    recipe = build_transforms(RECIPE, 3)
    own = torch.Generator()  # DataLoader draws a number when it starts, from the process's generator if it has none
    for order in ORDERS:
        indexed = IndexedDataset(metas[40], seed=SEED, order=order, load=picture, transform=recipe)
        mine = RankDataset(metas[40], 4, 1, SEED, order=order, load=picture, transform=recipe)
        dealt = DataLoader(indexed, batch_size=5, sampler=ElasticSampler(indexed, 4, 1, seed=SEED), generator=own)
        held = DataLoader(mine, batch_size=5, generator=own)
        for (images, labels), (others, theirs) in zip(dealt, held, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, theirs)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, MOST_ROWS),
    world_size=st.integers(1, 17),
    global_batch=st.integers(1, 70),
    tail=st.sampled_from(TAILS),
    kind=st.sampled_from(KINDS),
)
def test_no_epoch_without_a_step_for_every_rank(
    metas: dict[int, MetaFile], n: int, world_size: int, global_batch: int, tail: str, kind: str
) -> None:
    """Refused on every rank, or served by every rank; never by some of them."""
    case = Case(metas[n], "row", tail, global_batch)
    answers = []
    for rank in range(world_size):
        try:
            answers.append(case.loader(kind, rank, world_size).steps_per_epoch)
        except SplitError as error:
            answers.append(str(error))
    assert len(set(answers)) == 1
    fine = global_batch >= world_size and case.cut > 0
    assert isinstance(answers[0], int) == fine


# -- several epochs, and workers


def epochs_of(case: Case, kind: str, rank: int, world: int, count: int, **options: Any) -> Iterator[list[Batch]]:
    loader = case.loader(kind, rank, world, epochs=count, **options)
    for epoch in range(count):
        yield list(loader.epoch(epoch))
    loader.close()


def check_epochs(case: Case, kinds: list[str], world: int, count: int, **options: Any) -> None:
    streams = [epochs_of(case, kinds[rank % len(kinds)], rank, world, count, **options) for rank in range(world)]
    for epoch in range(count):
        found: dict[int, str] = {}
        for stream in streams:
            found |= served(case, next(stream), epoch)
        assert found == case.samples(epoch)
    for stream in streams:
        assert next(stream, None) is None


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    world=st.integers(1, 6),
    each=st.integers(1, 3),
    left=st.integers(0, 2),
    order=st.sampled_from(ORDERS),
    tail=st.sampled_from(TAILS),
)
def test_epochs_of_two_batches(
    metas: dict[int, MetaFile], world: int, each: int, left: int, order: str | Blocks, tail: str
) -> None:
    """What is prepared ahead reaches past the end of the epoch at once, for all ways of reading side by side."""
    global_batch = world * each
    check_epochs(Case(metas[2 * global_batch + left], order, tail, global_batch), KINDS, world, 4)


EVERY_WAY = [
    # two for each number of workers; all others take their time
    pytest.param(workers, kind, order, id=f"{workers}-{kind}-{name}", marks=[] if fast else pytest.mark.slow)
    for workers in range(5)
    for place, (kind, (name, order)) in enumerate(itertools.product(KINDS, zip(("row", "block"), ORDERS, strict=False)))
    for fast in (place in (workers % 6, (workers + 3) % 6),)
]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than some machines have cores
@pytest.mark.parametrize(("workers", "kind", "order"), EVERY_WAY)
def test_workers_change_nothing(metas: dict[int, MetaFile], workers: int, kind: str, order: str | Blocks) -> None:
    """Epochs of two batches, three of them, then a resume in the middle of the last one with another world."""
    case = Case(metas[13], order, "mask", 8, micro_batch=4)
    check_epochs(case, [kind], 1, 3, workers=workers)
    found = served(case, some_steps(case.loader(kind, 0, 1, workers=workers), 2, 0, 8, None), 2)
    for rank in range(2):
        found |= served(case, list(case.loader(kind, rank, 2, workers=(workers + 1) % 5).epoch(2, 8)), 2)
    assert found == case.samples(2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("start", "order"), [("forkserver", ORDERS[0]), ("spawn", ORDERS[1])], ids=["forkserver-row", "spawn-block"]
)
def test_workers_of_fresh_interpreters_change_nothing(
    metas: dict[int, MetaFile], kind: str, start: str, order: str | Blocks
) -> None:
    check_epochs(Case(metas[13], order, "pad", 4), [kind], 1, 3, workers=2, worker_start=start)


# -- the tests above fail where something is wrong


def test_a_broken_layer_is_noticed(metas: dict[int, MetaFile], monkeypatch: pytest.MonkeyPatch) -> None:
    """A position served twice, an order by seed + epoch, augmentation that depends on the position."""
    import data.loader as loading
    from data import keys

    case = Case(metas[20], "row", "pad", 4)
    right = partial(check_epochs, case, KINDS, 3, 2)
    right()
    rows_at = loading.rows_at

    def one_twice(positions: Any, n: int, order: Any) -> Any:
        rows = rows_at(positions, n, order)
        rows[np.asarray(positions) == 5] = rows_at([6], n, order)
        return rows

    with monkeypatch.context() as broken:
        broken.setattr(loading, "rows_at", one_twice)
        with pytest.raises(AssertionError):
            right()
    with monkeypatch.context() as broken:
        broken.setattr(IndexedDataset, "order_for", lambda self, epoch: Permutation(self.n, seed=SEED + epoch))
        with pytest.raises(AssertionError):
            right()
    seeds = iter(range(10**6))
    with monkeypatch.context() as broken:
        broken.setattr(keys, "augmentation_seed", lambda seed, epoch, row: next(seeds))
        with pytest.raises(AssertionError):
            right()
