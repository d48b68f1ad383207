from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data._utils import signal_handling

from data.datasets import IndexedDataset
from data.errors import WorkerDiedError
from data.loader import build_loader


@pytest.fixture(params=["", "torch's"])
def handler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The handler of SIGCHLD that a loader finds: none, or the one that a DataLoader of the user's own has set."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    if request.param:
        signal_handling._set_SIGCHLD_handler()
    yield signal.getsignal(signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, before)


def states(image: torch.Tensor) -> torch.Tensor:
    """Tells from inside a worker what it does with the two signals: 1 where it ignores both and blocks none."""
    ignored = all(signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGINT, signal.SIGUSR2))
    free = not {signal.SIGINT, signal.SIGUSR2} & set(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGUSR2)
    return torch.full_like(image, int(ignored and free))


def die(image: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return image


def test_workers_leave_notices_to_their_rank(pictures: Any) -> None:
    before = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    dataset = IndexedDataset(pictures.meta(8), transform=states)
    batches = list(build_loader(dataset, global_batch=4, rank=0, world_size=1, workers=2).epoch(0))
    assert all(int(batch.images.min()) == 1 for batch in batches)
    assert (signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, [])) == before


def count_collected(image: torch.Tensor) -> torch.Tensor:
    """Tells from inside a worker how many of the objects that it inherited the collector would look at."""
    return torch.full_like(image, min(255, len(gc.get_objects()) // 1000))


def test_workers_leave_what_they_inherit_out_of_the_collectors_looks(pictures: Any) -> None:
    """Under fork a look is a copy: the collector writes into every object that it visits."""
    before = gc.get_freeze_count()
    assert len(gc.get_objects()) > 50_000  # torch alone
    dataset = IndexedDataset(pictures.meta(8), transform=count_collected)
    batches = list(build_loader(dataset, global_batch=4, rank=0, world_size=1, workers=1).epoch(0))
    assert max(int(batch.images.max()) for batch in batches) < 20
    assert gc.get_freeze_count() == before


def test_a_dead_worker_is_an_error_that_names_it_and_its_rows(pictures: Any, handler: Any) -> None:
    dataset = IndexedDataset(pictures.meta(8), transform=die)
    loader = build_loader(dataset, global_batch=4, rank=0, world_size=1, workers=1)
    with pytest.raises(
        WorkerDiedError, match=r"loader worker 0 of 1 \(pid \d+\) was killed by signal 9 with rows"
    ) as caught:
        list(loader.epoch(0))
    assert caught.value.exit_code == 1
    assert multiprocessing.active_children() == []


def test_a_death_while_the_consumer_computes_is_told_at_the_next_batch(pictures: Any, handler: Any) -> None:
    """Not by an exception in the middle of a backward pass, which is what torch's handler of SIGCHLD gives."""
    epoch = build_loader(IndexedDataset(pictures.meta(40)), global_batch=2, rank=0, world_size=1, workers=2).epoch(0)
    next(epoch)
    victim = multiprocessing.active_children()[0]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(10)
    until = time.monotonic() + 0.3
    while time.monotonic() < until:  # computing
        sum(range(1000))
    began = time.monotonic()
    with pytest.raises(WorkerDiedError, match=rf"\(pid {victim.pid}\) was killed by signal 9 with rows \d+"):
        list(epoch)
    assert time.monotonic() - began < 4
    assert signal.getsignal(signal.SIGCHLD) == handler
    assert multiprocessing.active_children() == []


def test_a_death_while_the_consumer_waits_is_told_at_once(pictures: Any, handler: Any) -> None:
    def stall(image: torch.Tensor) -> torch.Tensor:
        time.sleep(60)
        return image

    dataset = IndexedDataset(pictures.meta(8), transform=stall)
    epoch = build_loader(dataset, global_batch=2, rank=0, world_size=1, workers=1).epoch(0)
    ends: list[float] = []

    def kill() -> None:
        (worker,) = multiprocessing.active_children()
        ends.append(time.monotonic())
        worker.kill()

    timer = threading.Timer(1.5, kill)
    timer.start()
    try:
        with pytest.raises(WorkerDiedError, match=r"worker 0 of 1 .* killed by signal 9"):
            next(epoch)
    finally:
        timer.join()
    assert time.monotonic() - ends[0] < 3


def test_a_worker_killed_later_names_the_rows_in_hand(pictures: Any) -> None:
    """Worker 1 of 2 dies at its second batch: the fourth of the epoch."""
    rows = build_loader(IndexedDataset(pictures.meta(16)), global_batch=2, rank=0, world_size=1)
    fourth = [batch.rows.tolist() for batch in rows.epoch(0)][3]

    def fatal(image: torch.Tensor) -> torch.Tensor:
        return die(image) if int(image[0, 0, 0]) == fourth[0] else image

    dataset = IndexedDataset(pictures.meta(16), transform=fatal)
    with pytest.raises(WorkerDiedError, match=rf"worker 1 of 2 .* with rows .*{fourth[0]}, {fourth[1]}.* in hand"):
        list(build_loader(dataset, global_batch=2, rank=0, world_size=1, workers=2).epoch(0))
