"""One epoch after the other: workers that live on, shards built ahead, and what is left when something dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import data.slots
from data.blocks import Blocks
from data.datasets import IndexedDataset, RankDataset
from data.errors import DataError, OptionError, RowError, SplitError, WorkerDiedError
from data.loader import Batch, Loader, build_loader

ROOT = Path(__file__).resolve().parents[2]
Write = Callable[..., Path]
PICTURE = torch.zeros(3, 2, 2, dtype=torch.uint8)

pytestmark = pytest.mark.usefixtures("untouched_generators")


def tell_pid(image: torch.Tensor) -> torch.Tensor:
    """A picture whose pixels are the pid of the process that loaded it."""
    return torch.tensor(list(os.getpid().to_bytes(4, "little")), dtype=torch.uint8).reshape(1, 2, 2)


def load_nothing(path: str) -> torch.Tensor:
    return PICTURE


def pids_of(batches: list[Batch]) -> set[int]:
    return {int.from_bytes(bytes(batch.images[0].flatten().tolist()), "little") for batch in batches}


def rows_of(batches: Any) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


def checked(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; their labels, which come from the text of a slot, must be those of their rows."""
    for batch in batches:
        assert batch.labels.tolist() == [row % 3 for row in batch.rows.tolist()]
        yield batch


@pytest.fixture
def built_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of every size are built by the process for it."""
    monkeypatch.setattr(data.slots, "BESIDE_BYTES", 0)


def loader_over(path: Path, **options: Any) -> Loader:
    dataset = RankDataset(path, 2, 1, seed=4, classes=3, load=load_nothing)
    return build_loader(dataset, **({"global_batch": 8} | options))


@pytest.fixture
def listing(write: Write) -> Path:
    return write("".join(f"p/{row}.png {row % 3}\n" for row in range(90)))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_live_over_epochs(pictures: Any) -> None:
    dataset = RankDataset(pictures.meta(40), 2, 1, seed=4, transform=tell_pid)
    with build_loader(dataset, global_batch=8, workers=3) as loader:
        seen = [pids_of(list(loader.epoch(epoch))) for epoch in range(4)]
        assert seen == [seen[0]] * 4
        assert len(seen[0]) == 3
        assert seen[0] == {process.pid for process in multiprocessing.active_children()}
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("read", ["shard", "direct"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_however_it_was_come_to(listing: Path, workers: int, read: str) -> None:
    """In a row, by itself, by a dataset that reaches every row, and built beside or in its turn."""
    ranked = RankDataset(listing, 2, 1, seed=4, classes=3, load=load_nothing, read=read)
    indexed = IndexedDataset(listing, seed=4, classes=3, load=load_nothing)
    with build_loader(ranked, global_batch=8, workers=workers) as loader:
        in_a_row = [rows_of(loader.epoch(epoch)) for epoch in range(4)]
    alone = [rows_of(build_loader(ranked, global_batch=8).epoch(epoch)) for epoch in range(4)]
    reached = build_loader(indexed, global_batch=8, rank=1, world_size=2)
    assert in_a_row == alone == [rows_of(reached.epoch(epoch)) for epoch in range(4)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.usefixtures("built_beside")
@pytest.mark.parametrize("global_batch", [90, 45, 30])
def test_epochs_of_one_two_and_three_batches(listing: Path, global_batch: int) -> None:
    """Shorter than what is loaded ahead: no batch may come from a slot that was refilled too early."""
    dataset = IndexedDataset(listing, seed=4, classes=3, load=load_nothing)
    other = build_loader(dataset, global_batch=global_batch, rank=1, world_size=2)
    with loader_over(listing, global_batch=global_batch, workers=4) as loader:
        for epoch in range(5):
            pairs = list(zip(loader.epoch(epoch), other.epoch(epoch), strict=True))
            assert len(pairs) == 90 // global_batch
            for ours, theirs in pairs:
                assert torch.equal(ours.rows, theirs.rows)
                assert torch.equal(ours.labels, theirs.labels)  # the labels come from the text of the slot


def test_nothing_is_prepared_past_the_last_epoch(listing: Path) -> None:
    loader = loader_over(listing, workers=2, epochs=2)
    list(loader.epoch(0))
    assert len(multiprocessing.active_children()) == 2
    list(loader.epoch(1))
    assert multiprocessing.active_children() == []


def test_a_loader_that_is_dropped_ends_its_workers(listing: Path) -> None:
    loader = loader_over(listing, workers=2)
    list(loader.epoch(0))
    assert len(multiprocessing.active_children()) == 2
    del loader
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("built_beside")
def test_two_epochs_consumed_side_by_side(listing: Path) -> None:
    loader = loader_over(listing, workers=1)
    zero, two = loader.epoch(0), loader.epoch(2)
    mixed = [(a.rows.tolist(), b.rows.tolist()) for a, b in zip(*map(checked, (zero, two)), strict=True)]
    with loader_over(listing) as other:
        assert [list(rows) for rows in zip(*mixed, strict=True)] == [rows_of(other.epoch(e)) for e in (0, 2)]
    loader.close()
    assert multiprocessing.active_children() == []


def test_closing_ends_what_is_being_consumed(listing: Path) -> None:
    with loader_over(listing, workers=2) as loader:
        batches = loader.epoch(3)
        next(batches)
    assert multiprocessing.active_children() == []
    with pytest.raises(OptionError, match="the loader was closed in the middle of epoch 3"):
        next(batches)


def test_the_datasets_own_shuffle_counts(listing: Path) -> None:
    dataset = RankDataset(listing, 2, 1, classes=3, load=load_nothing, shuffle=False)
    assert rows_of(build_loader(dataset, global_batch=8).epoch(0))[0] == [1, 3, 5, 7]


def test_whole_numbers_and_states(listing: Path) -> None:
    for name, value in (("global_batch", 8.0), ("micro_batch", "2"), ("epochs", -1), ("global_batch", True)):
        with pytest.raises(OptionError, match=rf"{name} .*: legal are 0, 1, 2"):
            loader_over(listing, **{name: value})
    with pytest.raises(OptionError, match=r"start 8\.0: legal are"):
        loader_over(listing).epoch(0, 8.0)  # type: ignore[arg-type]
    with pytest.raises(SplitError, match="carry is the state of position 16, but position 8 is asked for"):
        loader_over(listing).epoch(0, 8, {"epoch": 0, "position": 16, "sums": [0, 0, 0]})


def test_jumping_about_and_starting_in_the_middle(listing: Path) -> None:
    with loader_over(listing, workers=1) as loader, loader_over(listing) as other:
        whole = {epoch: rows_of(other.epoch(epoch)) for epoch in (0, 1, 5)}
        for epoch, start in ((5, 0), (0, 40), (1, 0), (1, 0), (0, 80), (5, 8)):
            assert rows_of(loader.epoch(epoch, start)) == whole[epoch][start // 8 :]


@pytest.mark.usefixtures("built_beside")
def test_a_bad_row_of_the_next_epoch_ends_that_epoch_and_not_this_one(write: Write) -> None:
    """33 of 34 rows are served: the bad one is left out of epoch 0 and met in a later one."""
    lines = [f"p/{row}.png {row % 3}" for row in range(34)]
    path = write("\n".join(lines) + "\n", "good.txt")
    dataset = IndexedDataset(path, seed=4, classes=3)
    cut_away = set(range(34)) - set(dataset.order_for(0)[range(32)].tolist())
    bad = min(cut_away)
    lines[bad] = f"p/{bad}.png 9"
    ranked = [RankDataset(write("\n".join(lines) + "\n"), 2, r, seed=4, classes=3, load=load_nothing) for r in (0, 1)]
    owner = next(rank for rank in (0, 1) if bad in ranked[rank].job(1, 0).rows().tolist()[:16])
    with build_loader(ranked[owner], global_batch=8, workers=2) as loader:
        assert len(list(loader.epoch(0))) == 4
        with pytest.raises(RowError, match=rf"m\.txt:{bad + 1}  label 9 is out of range"):
            list(loader.epoch(1))
    assert multiprocessing.active_children() == []


# -- killed


@pytest.mark.usefixtures("built_beside")
def test_a_killed_builder_is_made_up_for(listing: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = loader_over(listing, workers=1, epochs=3)
    batches = loader.epoch(0)
    first = next(batches)
    stream = batches.gi_frame.f_locals["stream"]  # type: ignore[attr-defined]
    builder = stream._shards._building[1]
    os.kill(builder.pid, signal.SIGKILL)
    rows = [first.rows.tolist(), *rows_of(batches), *rows_of(loader.epoch(1)), *rows_of(loader.epoch(2))]
    assert rows == [batch for epoch in range(3) for batch in rows_of(loader_over(listing).epoch(epoch))]
    assert "the process that built the rows of epoch 1 was killed by signal 9" in caplog.text


@pytest.mark.usefixtures("built_beside")
def test_a_builder_that_somebody_else_reaped_is_made_up_for(listing: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = loader_over(listing, workers=0, epochs=2)
    batches = loader.epoch(0)
    next(batches)
    builder = batches.gi_frame.f_locals["stream"]._shards._building[1]  # type: ignore[attr-defined]
    os.kill(builder.pid, signal.SIGKILL)
    os.waitpid(builder.pid, 0)
    list(batches)
    assert rows_of(checked(loader.epoch(1))) == rows_of(loader_over(listing).epoch(1))
    assert "ended half-way: they are built here instead" in caplog.text


@pytest.mark.usefixtures("built_beside")
def test_no_process_and_no_room(
    listing: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert len(rows_of(checked(loader_over(listing).epoch(1)))) == 11
    assert "no process could be started to build the rows of epoch 1 (No such file or directory)" in caplog.text

    def full(meta: object, rows: object, fd: int, threads: int = 1) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.slots, "build_shard", full)
    with pytest.raises(DataError, match=r"the 44 rows of a rank's epoch could not be put into memory \(No space left"):
        next(loader_over(listing).epoch(0))


@pytest.mark.usefixtures("built_beside")
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_killed_worker_is_one_clear_error_in_any_epoch(pictures: Any, epoch: int) -> None:
    others = set(psutil.Process().children())  # such as a forkserver of an earlier test
    loader = build_loader(RankDataset(pictures.meta(40), 1, 0, seed=4), global_batch=2, workers=2)
    for before in range(epoch):
        list(loader.epoch(before))
    batches = loader.epoch(epoch)
    next(batches)
    victim = multiprocessing.active_children()[0]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match=rf"\(pid {victim.pid}\) was killed by signal 9 with rows \d+"):
        list(batches)
    assert multiprocessing.active_children() == []
    assert set(psutil.Process().children()) <= others


RANK = """
    import sys, time
    sys.path.insert(0, {root!r})
    import torch
    import data.slots
    from data.datasets import RankDataset
    from data.loader import build_loader

    data.slots.BESIDE_BYTES = 0

    def load(path):
        return torch.zeros(3, 2, 2, dtype=torch.uint8)

    if __name__ == "__main__":
        loader = build_loader(RankDataset({meta!r}, 2, 0, classes=3, load=load), global_batch=4, workers=2,
                              worker_start={start!r})
        batches = loader.epoch(0)
        next(batches)
        print("serving", flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("start", ["fork", *(pytest.param(s, marks=pytest.mark.slow) for s in ("forkserver", "spawn"))])
def test_a_killed_rank_leaves_nothing(listing: Path, tmp_path: Path, start: str) -> None:
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK).format(root=str(ROOT), meta=str(listing), start=start))
    shared = set(os.listdir("/dev/shm"))
    rank = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert rank.stdout is not None
    assert rank.stdout.readline() == "serving\n"
    family = psutil.Process(rank.pid).children(recursive=True)
    assert len(family) >= 2
    rank.kill()
    rank.wait()
    rank.stdout.close()
    assert psutil.wait_procs(family, timeout=30)[1] == []
    left = {name for name in os.listdir("/dev/shm") if name not in shared and "rankrun" in name}
    assert left == set()


# -- order="block"


def test_block_order_is_served_alike_by_both(write: Write) -> None:
    path = write("".join(f"p/{row:05d}.png {row % 3}\n" for row in range(4000)))
    blocks = Blocks(lanes=6, unit_bytes=4096)
    indexed = IndexedDataset(path, seed=4, classes=3, order=blocks, load=load_nothing)
    for world_size in (1, 3, 4):
        for rank in range(world_size):
            ranked = RankDataset(path, world_size, rank, seed=4, classes=3, order=blocks, load=load_nothing)
            ours = build_loader(ranked, global_batch=600).epoch(1, 1200)
            theirs = build_loader(indexed, global_batch=600, rank=rank, world_size=world_size).epoch(1, 1200)
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a.rows, b.rows)
                assert torch.equal(a.labels, b.labels)
                assert a.labels.tolist() == [row % 3 for row in a.rows.tolist()]
