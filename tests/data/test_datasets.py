from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.blocks import Blocks
from data.datasets import IndexedDataset, RankDataset, open_dataset
from data.errors import DataError, ImageError, OptionError, OutsideRootError, RowError, SplitError
from data.order import Permutation
from data.sampler import Draw, ElasticSampler
from data.transforms import build_transforms

pytestmark = pytest.mark.usefixtures("untouched_generators")
Write = Callable[..., Path]


def noise(image: torch.Tensor) -> torch.Tensor:
    """Draws from all three generators."""
    jitter = int(torch.randint(0, 50, ())) + random.randrange(50) + int(np.random.randint(50))
    return (image.to(torch.int32) + jitter).clamp(0, 255).to(torch.uint8)


def test_the_drawing(pictures: Any) -> None:
    ranks = [RankDataset(pictures.meta(11), world_size=4, rank=r, seed=7, epoch=0, tail="pad") for r in range(4)]
    order = Permutation(11, seed=7)
    assert [len(rank) for rank in ranks] == [3, 3, 3, 3]
    assert ranks[1].rows.tolist() == [order[1], order[5], order[9]]
    assert ranks[3].rows.tolist() == [order[3], order[7], order[0]]
    image, label = ranks[1][2]
    assert image.dtype == torch.uint8
    assert int(image[0, 0, 0]) == order[9]
    assert label == order[9] % 3
    assert torch.equal(ranks[1][-1][0], image)
    with pytest.raises(IndexError, match="sample 3 of 3"):
        ranks[1][3]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 64), world_size=st.integers(1, 17), tail=st.sampled_from(["drop", "pad", "mask"]), data=st.data()
)
def test_ranks_together_serve_the_epoch(pictures: Any, n: int, world_size: int, tail: str, data: st.DataObject) -> None:
    stop = n // world_size * world_size if tail == "drop" else -(-n // world_size) * world_size
    start = data.draw(st.integers(0, stop))
    order = Permutation(n, seed=5, epoch=2)
    served: dict[int, int] = {}
    for rank in range(world_size):
        rows = RankDataset(pictures.meta(n), world_size, rank, 5, 2, start, tail)
        first = start + (rank - start) % world_size
        assert len(rows) == rows.rows.size
        served |= {first + i * world_size: row for i, row in enumerate(rows.rows.tolist())}
        assert [rows.shard.line(i) for i in range(len(rows))] == [rows.meta.line(row) for row in rows.rows.tolist()]
    assert served == {g: order[g % n] for g in range(start, stop)}


def test_both_datasets_give_the_same_samples_with_augmentation(pictures: Any) -> None:
    meta = pictures.meta(23)
    indexed = IndexedDataset(meta, seed=9, transform=noise)
    sampler = ElasticSampler(indexed, 3, 1, seed=9)
    sampler.set_epoch(4)
    rank = RankDataset(meta, 3, 1, 9, 4, tail="pad", transform=noise)
    pairs = [(indexed[draw], rank[i]) for i, draw in enumerate(sampler)]
    assert len(pairs) == len(rank) == 8
    assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in pairs)
    other = RankDataset(meta, 3, 1, 9, 5, tail="pad", transform=noise)
    assert other.rows.tolist() != rank.rows.tolist()


def test_augmentation_hangs_on_seed_epoch_and_row_only(pictures: Any) -> None:
    def look(seed: int, epoch: int, row: int, position: int) -> list[int]:
        found: list[int] = (
            IndexedDataset(pictures.meta(9), seed=seed, transform=noise)[Draw(row, epoch, position)][0]
            .flatten()
            .tolist()
        )
        return found

    assert look(1, 2, 3, 4) == look(1, 2, 3, 5)
    assert look(1, 2, 3, 4) != look(1, 3, 3, 4)
    assert look(1, 2, 3, 4) != look(2, 2, 3, 4)


def test_a_plain_index_is_as_random_as_the_process(pictures: Any) -> None:
    dataset = IndexedDataset(pictures.meta(9), seed=1, transform=noise)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    assert len({tuple(dataset[-1][0].flatten().tolist()) for _ in range(8)}) > 1
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])
    with pytest.raises(IndexError, match="row 9 of 9"):
        dataset[9]


def test_a_rank_dataset_is_pickled_with_its_shard(pictures: Any) -> None:
    dataset = RankDataset(pictures.meta(20), 2, 1, 3, transform=build_transforms(["RandomHorizontalFlip"], 3))
    first = dataset[4]
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[4][0], first[0])
    assert copy.rows.tolist() == dataset.rows.tolist()


def test_a_loader_of_ones_own(pictures: Any) -> None:
    seen = []

    def load(path: str) -> torch.Tensor:
        seen.append(os.path.basename(path))
        return torch.zeros(1, 2, 2, dtype=torch.uint8)

    assert IndexedDataset(pictures.meta(5), load=load)[3][0].shape == (1, 2, 2)
    assert seen == ["003 x.png"]


def test_grey_pictures(pictures: Any) -> None:
    assert tuple(IndexedDataset(pictures.meta(5), channels=1)[0][0].shape) == (1, 6, 5)


@pytest.mark.parametrize("mode", ["rank", "indexed"])
def test_open_dataset(pictures: Any, mode: str) -> None:
    dataset = open_dataset(
        str(pictures.meta(10)),
        mode=mode,
        rank=1,
        world_size=2,
        seed=3,
        classes=["x", "y", "z"],
        transform=None,
        tail="mask",
    )
    assert dataset.n == 10
    assert dataset.classes == ("x", "y", "z")
    assert (dataset.num_classes, dataset.tail, dataset.channels, dataset.transform) == (3, "mask", 3, None)
    assert dataset.decoder.name == "torchcodec"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mode": "both"}, "mode 'both': legal are rank, indexed"),
        ({"channels": 2}, "channels 2: legal are 1"),
        ({"on_error": "skip"}, "on_error 'skip': legal are raise, replace"),
        ({"bad_budget": 2.0}, "bad_budget 2.0 is a share of the epoch"),
        ({"tail": "keep"}, "tail 'keep'"),
        ({"rank": 2, "world_size": 2}, "rank 2 of world size 2"),
    ],
)
def test_refusals(pictures: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises((OptionError, SplitError), match=told):
        open_dataset(pictures.meta(10), **options)
    with pytest.raises(OptionError, match="start 11 is outside of the epoch's positions, 0 … 10"):
        RankDataset(pictures.meta(10), 2, 0, start=11)


def test_a_bad_row_is_told_by_the_rank_that_takes_it(write: Write) -> None:
    path = write("a 0\nb\nc 1\nd 1\n")
    order = Permutation(4, seed=1)
    owner = order.inverse(1) % 2
    assert RankDataset(path, 2, 1 - owner, 1, classes=2).shard
    with pytest.raises(RowError, match=r"m\.txt:2  'b' has no label"):
        _ = RankDataset(path, 2, owner, 1, classes=2).shard


def test_images_that_cannot_be_read_are_told_with_their_line(write: Write, tmp_path: Path) -> None:
    (tmp_path / "dir.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    write("<html></html>", "page.jpg")
    dataset = IndexedDataset(write("none.png 0\ndir.png 0\npipe.png 0\npage.jpg 0\n"))
    for row, told in enumerate(("No such file", "no regular file|Is a directory", "no regular file", "an HTML page")):
        with pytest.raises(ImageError, match=rf"m\.txt:{row + 1}  .*: .*({told}).*data\.on_error=replace"):
            dataset[row]


def test_links_out_of_the_root_are_refused_and_never_replaced(write: Write, tmp_path: Path) -> None:
    secret = write("secret", "outside/secret.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.png").symlink_to(secret)
    (root / "folder").symlink_to(secret.parent)
    (root / "ok.png").write_bytes(b"x")
    (root / "inner.png").symlink_to(root / "ok.png")
    meta = write("link.png 0\nfolder/secret.png 0\ninner.png 0\n", "root/m.txt")
    for on_error in ("raise", "replace"):
        dataset = IndexedDataset(meta, on_error=on_error)
        for row in (0, 1):
            with pytest.raises(OutsideRootError, match=r"leads out of the root .* by a link"):
                dataset[Draw(row, 0, row)]
    with pytest.raises(ImageError):
        IndexedDataset(meta)[2]  # read, and then no image
    with pytest.raises(ImageError, match="no image"):
        IndexedDataset(meta, allow_outside_root=True)[0]


def test_what_is_said_of_an_order_and_its_cost(write: Write) -> None:
    path = write("".join(f"p/{row:05d}.png {row % 3}\n" for row in range(4000)))
    ranked = RankDataset(path, 4, 1, classes=3)
    assert ranked.told == (
        f"{path}: lines 'path label'",
        "order row: a rank takes 1,000 of 4,000 rows and reads 54.7 KiB of 54.7 KiB",
        "read shard: 22.0 KiB per rank and epoch, twice that while the next is prepared",
    )
    direct = RankDataset(path, 4, 1, classes=3, read="direct", order=Blocks(8, 4096))
    assert direct.order == "block of 4096 bytes in 8 lanes"
    assert direct.told[2] == "read direct: no shard: rows are fetched when they are served"
    assert "indexed: every row is read" in IndexedDataset(path, classes=3).told[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "blocks"}, "order 'blocks': legal are row, block"),
        ({"read": "all"}, "read 'all': legal are shard, direct"),
        ({"order": "block"}, "order=block with .* take order=row"),
    ],
)
def test_refused_orders_and_reads(write: Write, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        RankDataset(write("a.png 0\nb.png 1\n"), 2, 1, **options)


def test_a_pickled_dataset_is_small_and_whole(write: Write) -> None:
    path = write("".join(f"p/{row:05d}.png {row}\n" for row in range(1000)))
    dataset = RankDataset(path, 4, 1, seed=3)
    lines = [dataset.shard.line(i) for i in range(len(dataset))]
    text = pickle.dumps(dataset)
    assert len(text) <= 10_000
    copy = pickle.loads(text)
    assert [copy.shard.line(i) for i in range(len(copy))] == lines
