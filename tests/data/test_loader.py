"""The loader as any rank of any world, in one process; real workers in few tests, as they cost time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.audit import add_sums
from data.datasets import IndexedDataset, RankDataset, open_dataset
from data.errors import ImageError, OptionError, RowError, SplitError, TooManyBadError, TransformError
from data.loader import Batch, Loader, build_loader
from data.meta import MetaFile
from data.order import Permutation
from data.transforms import build_transforms

pytestmark = pytest.mark.usefixtures("untouched_generators")
Write = Callable[..., Path]

RECIPE = [
    {"Pad": {"padding": 1, "padding_mode": "edge"}},
    {"RandomCrop": {"size": [6, 5]}},
    {"ColorJitter": {"brightness": 0.3}},
    {"RandomErasing": {"probability": 0.5}},
]


def loader(meta: Path, mode: str, rank: int, world_size: int, seed: int = 3, **options: Any) -> Loader:
    more = {key: options.pop(key) for key in ("on_error", "bad_budget", "classes") if key in options}
    built = build_transforms(options.pop("recipe", []), 3)
    dataset = open_dataset(meta, mode=mode, rank=rank, world_size=world_size, seed=seed, transform=built, **more)
    return build_loader(dataset, rank=rank, world_size=world_size, seed=seed, **options)


def stream(batches: list[Batch]) -> dict[int, tuple[int, str]]:
    """position -> (row, hash of everything that the sample is)."""
    found: dict[int, tuple[int, str]] = {}
    for batch in batches:
        for i in range(len(batch)):
            parts = (batch.images[i], batch.labels[i], batch.draws[i], batch.weights[i])
            text = b"".join(part.numpy().tobytes() for part in parts)
            position = int(batch.positions[i])
            assert position not in found
            found[position] = int(batch.rows[i]), hashlib.sha256(text).hexdigest()
    return found


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40),
    global_batch=st.integers(1, 12),
    worlds=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    modes=st.lists(st.sampled_from(["rank", "indexed"]), min_size=3, max_size=3),
    tail=st.sampled_from(["drop", "pad", "mask"]),
    micro_batch=st.none() | st.integers(1, 4),
    data=st.data(),
)
def test_each_position_once_through_two_resumes_with_other_worlds(
    pictures: Any,
    n: int,
    global_batch: int,
    worlds: list[int],
    modes: list[str],
    tail: str,
    micro_batch: int | None,
    data: st.DataObject,
) -> None:
    worlds = [min(world, global_batch) for world in worlds]
    if tail == "drop":
        n = max(n, global_batch)
    meta = pictures.meta(n)
    options = {"global_batch": global_batch, "tail": tail, "recipe": RECIPE}
    whole = loader(meta, "indexed", 0, 1, **options)
    reference = stream(list(whole.epoch(2)))
    starts = sorted(data.draw(st.lists(st.integers(0, whole.steps_per_epoch), min_size=2, max_size=2)))
    cuts = [0, *(min(step * global_batch, whole.cut) for step in starts), whole.cut]
    served: dict[int, tuple[int, str]] = {}
    carry: dict[str, Any] | None = None
    for world, mode, start, stop in zip(worlds, modes, cuts, cuts[1:], strict=False):
        states: list[dict[str, Any]] = []
        for rank in range(world):
            mine = loader(meta, mode, rank, world, micro_batch=micro_batch, **options)
            assert (mine.cut, mine.steps_per_epoch) == (whole.cut, whole.steps_per_epoch)
            kept: list[Batch] = []
            for batch in mine.epoch(2, start, carry if start else None):
                if batch.positions.min() >= stop < whole.cut:  # beyond the cut stands padding
                    break
                assert micro_batch is None or len(batch) <= micro_batch
                kept.append(batch)
            served |= {g: value for g, value in stream(kept).items() if g < whole.cut}
            assert all(int(batch.weights.sum()) == int((batch.positions < whole.cut).sum()) for batch in kept)
            states += [batch.state_after for batch in kept if batch.state_after][-1:]
        if start < stop:
            assert {(state["epoch"], state["position"]) for state in states} == {(2, stop)}
            assert len(states) == world
            sums = (0, 0, 0)
            for state in states:
                sums = add_sums(sums, state["sums"])
            assert sums == whole.expected_sums(2, stop)
            carry = {"sums": list(sums), "replaced": 0}
    assert served == {g: value for g, value in reference.items() if g < whole.cut}
    order = Permutation(n, seed=3, epoch=2)
    assert {g: row for g, (row, _) in served.items()} == {g: order[g % n] for g in range(whole.cut)}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize(
    ("mode", "workers", "start"),
    [
        ("rank", 1, "fork"),
        ("rank", 3, "fork"),
        ("indexed", 3, "fork"),
        # a fresh interpreter imports torch first
        pytest.param("rank", 1, "spawn", marks=pytest.mark.slow),
        pytest.param("indexed", 1, "forkserver", marks=pytest.mark.slow),
    ],
)
def test_workers_change_nothing(pictures: Any, mode: str, workers: int, start: str) -> None:
    options = {"global_batch": 10, "micro_batch": 3, "recipe": RECIPE}
    meta = pictures.meta(43)
    none = list(loader(meta, "indexed", 1, 2, **options).epoch(1))
    some = list(loader(meta, mode, 1, 2, workers=workers, worker_start=start, **options).epoch(1))
    assert stream(some) == stream(none)
    assert [batch.state_after for batch in some] == [batch.state_after for batch in none]
    assert [len(batch) for batch in some] == [3, 2] * 4
    assert some[0].images.is_contiguous()


def test_a_batch(pictures: Any) -> None:
    mine = loader(pictures.meta(43), "rank", 0, 2, global_batch=10, micro_batch=3, recipe=RECIPE)
    batches = list(mine.epoch(0))
    batch = batches[1]
    assert batch.images.dtype == torch.uint8
    assert tuple(batch.images.shape) == (2, 3, 6, 5)
    assert (batch.labels.dtype, batch.rows.dtype, batch.positions.dtype) == (torch.int64,) * 3
    assert (batch.weights.dtype, batch.draws.dtype) == (torch.float32,) * 2
    assert tuple(batch.draws.shape) == (2, 4)
    assert batches[0].state_after is None
    assert batch.state_after == {"epoch": 0, "position": 10, "sums": batch.state_after["sums"], "replaced": 0}
    assert batch.state_after["sums"][0] == 5
    assert batch.positions.tolist() == [6, 8]
    moved = batch.to("cpu")
    assert torch.equal(moved.images, batch.images)
    assert mine.step_weight(0) == 10


def test_an_evaluation_set_is_read_once(pictures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import data.slots

    built: list[int] = []
    build = data.slots.build_shard

    def counted(meta: MetaFile, rows: np.ndarray, fd: int, threads: int = 1) -> None:
        built.append(len(rows))
        build(meta, rows, fd, threads)

    monkeypatch.setattr(data.slots, "build_shard", counted)
    mine = loader(pictures.meta(11), "rank", 0, 2, global_batch=4, tail="mask", shuffle=False)
    first, *others = (stream(list(mine.epoch(0))) for _ in range(3))
    assert others == [first, first]
    assert built == [6]
    again = stream(list(mine.epoch(0, 4)))
    assert again == {position: value for position, value in first.items() if position >= 4}


def test_masks_and_the_files_own_order(pictures: Any) -> None:
    ranks = [loader(pictures.meta(11), "rank", r, 3, global_batch=4, tail="mask", shuffle=False) for r in range(3)]
    rows = [
        (row, w)
        for rank in ranks
        for b in rank.epoch(0)
        for row, w in zip(b.rows.tolist(), b.weights.tolist(), strict=True)
    ]
    assert sorted(row for row, weight in rows if weight) == list(range(11))
    assert ranks[0].cut == 11
    assert [ranks[0].step_weight(p) for p in (0, 4, 8)] == [4, 4, 3]
    tiny = [loader(pictures.meta(1), "indexed", r, 4, global_batch=8, tail="mask") for r in range(4)]
    assert [[b.weights.tolist() for b in rank.epoch(0)] for rank in tiny] == [[[1.0]], [[0.0]], [[0.0]], [[0.0]]]


def test_epochs_differ_and_can_be_had_in_any_order(pictures: Any) -> None:
    mine = loader(pictures.meta(20), "rank", 0, 1, global_batch=5)
    later, first, again = (stream(list(mine.epoch(e))) for e in (7, 0, 7))
    assert later == again
    assert later != first


def test_an_epoch_left_early_leaves_no_worker(pictures: Any) -> None:
    epoch = loader(pictures.meta(40), "indexed", 0, 1, global_batch=4, workers=2).epoch(0)
    next(epoch)
    import multiprocessing

    assert len(multiprocessing.active_children()) == 2
    epoch.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_an_epoch_that_is_over_gives_nothing(pictures: Any) -> None:
    mine = loader(pictures.meta(11), "rank", 0, 2, global_batch=4, tail="mask")
    assert list(mine.epoch(0, 11)) == []
    with pytest.raises(SplitError, match="start 12 is no place between steps"):
        mine.epoch(0, 12)


def test_a_restart_without_carry_takes_the_sums_from_the_order(pictures: Any) -> None:
    sums = (0, 0, 0)
    for rank in range(3):
        mine = loader(pictures.meta(29), "rank", rank, 3, global_batch=7)
        last = [batch.state_after for batch in mine.epoch(1, 14) if batch.state_after][-1]
        sums = add_sums(sums, last["sums"])
    assert sums == mine.expected_sums(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_replacements_are_listed_counted_and_deterministic(pictures: Any, workers: int) -> None:
    meta = pictures.folder / "replace.txt"
    meta.write_text("".join(f"p/{'no' if r in (3, 8) else ''}{r:03d} x.png {r % 3}\n" for r in range(20)))
    options = {"global_batch": 4, "on_error": "replace", "bad_budget": 0.1, "recipe": RECIPE}
    seen: set[tuple[int, int]] = set()
    steps, counts = set(), 0
    for rank in range(2):
        batches = list(loader(meta, "rank" if rank else "indexed", rank, 2, workers=workers, **options).epoch(0))
        steps.add(len(batches))
        seen |= {pair for batch in batches for pair in batch.replaced}
        assert batches[-1].state_after is not None
        counts += batches[-1].state_after["replaced"]
        assert {3, 8} & {int(r) for b in batches for r in b.rows} == {pair[0] for b in batches for pair in b.replaced}
    assert steps == {5}
    assert {row for row, _ in seen} == {3, 8}
    assert counts == 2
    one = list(loader(meta, "rank", 0, 1, **options).epoch(0))
    assert {pair for batch in one for pair in batch.replaced} == seen


def test_padding_of_an_evaluation_counts_no_replacement(pictures: Any) -> None:
    """n = 9 on 8 ranks: the last step's padding repeats rows 1 … 7, and one of them can't be read."""
    meta = pictures.folder / "padded.txt"
    meta.write_text("".join(f"p/{'no' if r == 3 else ''}{r:03d} x.png {r % 3}\n" for r in range(9)))
    for world_size in (1, 2, 8):
        counts = 0
        for rank in range(world_size):
            mine = loader(
                meta, "rank", rank, world_size, global_batch=8, tail="mask", shuffle=False, on_error="replace"
            )
            counts += [batch.state_after for batch in mine.epoch(0) if batch.state_after][-1]["replaced"]
        assert counts == 1


def test_the_budget(pictures: Any) -> None:
    meta = pictures.folder / "budget.txt"
    meta.write_text("".join(f"p/{'no' if r < 3 else ''}{r:03d} x.png {r % 3}\n" for r in range(20)))
    mine = loader(meta, "rank", 0, 1, global_batch=4, on_error="replace", bad_budget=0.1)
    assert mine.bad_limit == 2
    hundred = pictures.folder / "hundred.txt"
    hundred.write_text("a.png 0\n" * 100)
    assert loader(hundred, "rank", 0, 1, global_batch=100, bad_budget=0.29).bad_limit == 29  # 0.29 * 100 is below it
    with pytest.raises(
        TooManyBadError,
        match=r"3 samples of this epoch .* data\.bad_budget=0\.1 of 20 allows 2: 'data check --decode' names",
    ):
        mine.check_budget([b.state_after for b in mine.epoch(0) if b.state_after][-1]["replaced"])
    with pytest.raises(TooManyBadError, match=r"^1 sample of this epoch"):
        loader(meta, "rank", 0, 1, global_batch=4, bad_budget=0.0).check_budget(1)
    mine.check_budget(2)
    last = loader(meta, "rank", 0, 1, global_batch=4, on_error="replace", bad_budget=1.0)
    state = [b.state_after for b in last.epoch(0, 16, {"sums": last.expected_sums(0, 16), "replaced": 2})][-1]
    assert state is not None
    assert state["replaced"] >= 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_clear_line(pictures: Any, workers: int) -> None:
    meta = pictures.folder / "raise.txt"
    meta.write_text("p/000 x.png 0\np/nowhere.png 1\n")
    with pytest.raises(ImageError) as caught:
        list(loader(meta, "rank", 0, 1, global_batch=2, workers=workers).epoch(0))
    (line,) = str(caught.value).splitlines()
    assert "raise.txt:2  p/nowhere.png: No such file or directory" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_ones_own_transform_is_shown_whole(pictures: Any, workers: int) -> None:
    dataset = IndexedDataset(pictures.meta(8), transform=lambda image: image / [])  # type: ignore[operator]
    with pytest.raises(TypeError) as caught:
        list(build_loader(dataset, global_batch=4, rank=0, world_size=1, workers=workers).epoch(0))
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "while transforming row" in told


def test_images_of_different_shapes(pictures: Any, write: Write) -> None:
    from PIL import Image

    meta = write("a.png 0\nb.png 0\n")
    Image.new("RGB", (4, 5)).save(meta.parent / "a.png")
    Image.new("RGB", (4, 4)).save(meta.parent / "b.png")
    with pytest.raises(
        TransformError,
        match=r"different shapes in one batch \(\[3, 4, 4\] and \[3, 5, 4\]\): add Resize .* to transforms$",
    ):
        list(loader(meta, "rank", 0, 1, global_batch=2).epoch(0))
    built = build_transforms([], 3, "data.train_transforms")
    for transform, told in ((built, r"data\.train_transforms"), (None, "the transform")):
        dataset = IndexedDataset(meta, transform=transform)
        with pytest.raises(TransformError, match=rf"or a crop, to {told}$"):
            list(build_loader(dataset, global_batch=2, rank=0, world_size=1).epoch(0))


def test_a_bad_row_of_ones_own_shard(write: Write) -> None:
    mine = loader(write("a 0\nb\n"), "rank", 0, 1, global_batch=2, classes=1)
    with pytest.raises(RowError, match=r"m\.txt:2  'b' has no label"):
        next(mine.epoch(0))


def test_refusals(pictures: Any) -> None:
    meta = pictures.meta(10)
    ranked = RankDataset(meta, 2, 1, 3)
    with pytest.raises(SplitError, match="rank 0, but the RankDataset was made for rank 1"):
        build_loader(ranked, global_batch=4, rank=0)
    with pytest.raises(SplitError, match="world_size 3, but the RankDataset was made for world_size 2"):
        build_loader(ranked, global_batch=4, world_size=3)
    with pytest.raises(SplitError, match="seed 4, but the dataset was made with seed 3"):
        build_loader(ranked, global_batch=4, seed=4)
    with pytest.raises(SplitError, match="give build_loader rank and world_size"):
        build_loader(IndexedDataset(meta), global_batch=4)
    with pytest.raises(OptionError, match="workers -1"):
        build_loader(ranked, global_batch=4, workers=-1)
    with pytest.raises(OptionError, match="worker_start 'thread': legal are fork, forkserver, spawn"):
        build_loader(ranked, global_batch=4, worker_start="thread")
    with pytest.raises(SplitError, match="an epoch without a single step"):
        build_loader(ranked, global_batch=11)
    assert build_loader(ranked, global_batch=4).cut == 8
    assert np.isclose(build_loader(ranked, global_batch=4, tail="pad").cut, 12)
