"""One shard for all processes that share a dataset, whoever needs it first."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from data.datasets import RankDataset
from data.errors import OptionError
from data.meta import MetaFile

Write = Callable[..., Path]
ROWS = 20_000


def load_nothing(path: str) -> torch.Tensor:
    return torch.zeros(1, 1, 1, dtype=torch.uint8)


def dataset_over(path: Path, **options: Any) -> RankDataset:
    return RankDataset(path, 1, 0, seed=4, classes=7, load=load_nothing, **options)


def look(dataset: RankDataset, barrier: Any, answers: Any) -> None:
    barrier.wait()
    shard = dataset.shard
    wrong = sum(int(shard.line(i).split()[1]) != row % 7 for i, row in enumerate(dataset.rows.tolist()))
    answers.put((len(shard), wrong))


def test_many_processes_that_need_it_at_once_build_it_once(write: Write) -> None:
    path = write("".join(f"p/{row:06d}.png {row % 7}\n" for row in range(ROWS)))
    context = multiprocessing.get_context("fork")
    for _ in range(8):
        dataset, barrier, answers = dataset_over(path), context.Barrier(5), context.SimpleQueue()
        looks = [context.Process(target=look, args=(dataset, barrier, answers)) for _ in range(5)]
        for process in looks:
            process.start()
        assert [answers.get() for _ in looks] == [(ROWS, 0)] * 5
        for process in looks:
            process.join(10)
            assert process.exitcode == 0


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_loader_of_ones_own(write: Write, start: str) -> None:
    path = write("".join(f"p/{row:06d}.png {row % 7}\n" for row in range(2_000)))
    dataset = dataset_over(path)
    loader = DataLoader(dataset, batch_size=50, num_workers=3, multiprocessing_context=start)
    labels = [label for _, batch in loader for label in batch.tolist()]
    assert labels == [row % 7 for row in dataset.rows.tolist()]


def test_an_epoch_is_not_to_be_changed(write: Write) -> None:
    dataset = dataset_over(write("a.png 0\nb.png 1\n"))
    with pytest.raises(AttributeError, match="epoch"):
        dataset.epoch = 2  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(dataset, protocol=1)).epoch == 0


def test_options_beside_an_open_meta_file_are_refused(write: Write) -> None:
    meta = MetaFile(write("a.png 0\nb.png 1\n"))
    with pytest.raises(OptionError, match="root, classes beside a MetaFile: that has been opened"):
        RankDataset(meta, 1, 0, root="there", classes=7)
