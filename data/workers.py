"""What runs in the loader's worker processes, and how their end is noticed."""

from __future__ import annotations

import ctypes
import itertools
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from .datasets import IndexedDataset, RankDataset
from .errors import DataError, TransformError, WorkerDiedError
from .sampling import Sample, kept_randomness
from .transforms import Transforms

QUIET_SIGNALS = (signal.SIGINT, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1
PREFETCH = 2  # batches that each worker is given ahead of what was delivered
DEATH_S = 0.5  # the kernel closes a killed worker's sockets, so that a read fails, before the worker counts as dead


@dataclass
class Loaded:
    """The part of a Batch that has to be loaded; `error` is set instead where a row could not be."""

    images: torch.Tensor
    labels: torch.Tensor
    draws: torch.Tensor
    replaced: list[tuple[int, int]]  # (place in the batch, the row shown instead)
    error: DataError | None = None

    def pin_memory(self) -> Loaded:
        """Called by DataLoader's own thread."""
        self.images, self.labels, self.draws = (
            tensor.pin_memory() for tensor in (self.images, self.labels, self.draws)
        )
        return self


class BatchReader(Dataset[Any]):
    """A dataset of whole batches: DataLoader hands it the list of a batch's Draws."""

    def __init__(self, dataset: RankDataset | IndexedDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Sample:
        return self.dataset.sample(index)

    def __getitems__(self, draws: Sequence[int]) -> Loaded:
        """Loads a batch. A DataError comes back as a value: DataLoader would wrap its text into a traceback."""
        try:
            with kept_randomness() if get_worker_info() is None else nullcontext():
                return self._collate([self.dataset.sample(draw) for draw in draws])
        except DataError as error:
            empty = torch.empty(0)
            return Loaded(empty, empty, empty, [], error)

    def _collate(self, samples: list[Sample]) -> Loaded:
        shapes = {tuple(sample.image.shape) for sample in samples}
        if len(shapes) > 1:
            told = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
            transform = self.dataset.transform
            raise TransformError(
                f"images of different shapes in one batch ({told}): add Resize with two sizes, or a crop, to "
                f"{transform.name if isinstance(transform, Transforms) else 'the transform'}"
            )
        return Loaded(
            images=torch.stack([sample.image for sample in samples]),
            labels=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
            draws=torch.tensor([sample.draws for sample in samples], dtype=torch.float32).reshape(len(samples), -1),
            replaced=[(place, s.replaced_by) for place, s in enumerate(samples) if s.replaced_by is not None],
        )


@dataclass(frozen=True)
class WorkerStart:
    """Run first in every worker: it leaves notices to its rank, and ends with it."""

    dies_with_parent: bool

    @classmethod
    def here(cls) -> WorkerStart:
        # The kernel's signal comes when the *thread* that forked ends, so only the main thread may ask for it.
        is_main = threading.current_thread() is threading.main_thread()
        return cls(dies_with_parent=is_main and sys.platform == "linux")

    def __call__(self, worker: int) -> None:
        for number in QUIET_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, QUIET_SIGNALS)
        if self.dies_with_parent:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def fetch_all(loader: DataLoader[Loaded], rows_of: Iterator[list[int]]) -> Iterator[Loaded]:
    """All batches of a loader in order; raises what a worker reported, and WorkerDiedError for one that is gone.

    `rows_of` gives the rows of each batch, to name those that a dead worker had to load.
    """
    # Workers inherit the mask: no Ctrl-C and no notice can hit one before it has learnt to ignore them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, QUIET_SIGNALS)
    of_children = signal.getsignal(signal.SIGCHLD)
    try:
        iterator: Any = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # torch's handler raises wherever the main thread is: in a backward pass or an all-reduce.
        _handle_children(of_children)
    workers: Sequence[Any] = getattr(iterator, "_workers", ())
    number = 0
    try:
        while True:
            try:
                with _deaths_raised(workers):
                    loaded: Loaded = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                dead = _dead(workers, patience_s=DEATH_S)
                if not dead:
                    raise
                raise _death(dead[0], workers, number, rows_of) from error
            if loaded.error is not None:
                raise loaded.error
            next(rows_of)
            number += 1
            yield loaded
    finally:
        if workers:
            iterator._shutdown_workers()


@contextmanager
def _deaths_raised(workers: Sequence[Any]) -> Iterator[None]:
    """Around a wait for workers: ChildProcessError at once if one is dead or dies.

    Outside of the main thread DataLoader's own look every 5 s has to do.
    """

    def look(number: int, frame: FrameType | None) -> None:
        if callable(before):
            before(number, frame)
        if any(process.exitcode for process in workers):  # those that leave at the end leave with 0
            raise ChildProcessError("a loader worker died")

    before = signal.getsignal(signal.SIGCHLD)
    if workers:
        _handle_children(look)
    try:
        if _dead(workers):
            raise ChildProcessError("a loader worker died before")
        yield
    finally:
        if workers:
            _handle_children(before)


def _handle_children(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def _dead(workers: Sequence[Any], patience_s: float = 0.0) -> list[int]:
    """Which workers are gone, as soon as one is, else after `patience_s`."""
    until = time.monotonic() + patience_s
    while not (dead := [index for index, process in enumerate(workers) if not process.is_alive()]):
        if not workers or time.monotonic() >= until:
            break
        time.sleep(0.01)
    return dead


def _death(index: int, workers: Sequence[Any], number: int, rows_of: Iterator[list[int]]) -> WorkerDiedError:
    """Names a dead worker and the rows that it had been given and that were not delivered.

    Batches go round the workers in turn, and each is given PREFETCH ahead: the fatal row is one of theirs.
    """
    code = workers[index].exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"left with code {code}"
    ahead = itertools.islice(rows_of, PREFETCH * len(workers))
    rows = [row for place, batch in enumerate(ahead, number) if place % len(workers) == index for row in batch]
    shown = ", ".join(str(row) for row in rows[:8]) + (", …" if len(rows) > 8 else "")
    return WorkerDiedError(
        f"loader worker {index} of {len(workers)} (pid {workers[index].pid}) {how} with rows {shown} in hand; "
        "was the memory of the machine or of the job used up?"
    )
