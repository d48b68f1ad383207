"""What runs in the loader's worker processes, and how their end is noticed."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from .datasets import IndexedDataset, RankDataset, Request
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
    """A dataset of whole batches: DataLoader hands it a Request for each."""

    def __init__(self, dataset: RankDataset | IndexedDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, wanted: Request) -> Loaded:
        """Loads a batch. A DataError comes back as a value: DataLoader would wrap its text into a traceback."""
        try:
            with kept_randomness() if get_worker_info() is None else nullcontext():
                return self._collate(self.dataset.samples(wanted))
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
            labels=self._labels(samples),
            draws=torch.tensor([sample.draws for sample in samples], dtype=torch.float32).reshape(len(samples), -1),
            replaced=[(place, s.replaced_by) for place, s in enumerate(samples) if s.replaced_by is not None],
        )

    def _labels(self, samples: list[Sample]) -> torch.Tensor:
        if not self.dataset.meta.multi_label:
            return torch.tensor([sample.label for sample in samples], dtype=torch.int64)
        several = torch.zeros(len(samples), self.dataset.num_classes)
        for place, sample in enumerate(samples):
            assert isinstance(sample.label, tuple)
            several[place, list(sample.label)] = 1.0
        return several


@dataclass(frozen=True)
class WorkerStart:
    """Run first in every worker: it leaves notices to its rank, and ends with it."""

    parent: int | None

    @classmethod
    def here(cls, start: str) -> WorkerStart:
        # The kernel's signal comes when the *thread* that forked ends, so only the main thread may ask for it.
        is_main = threading.current_thread() is threading.main_thread()
        return cls(os.getpid() if is_main and sys.platform == "linux" and start != "forkserver" else None)

    def __call__(self, worker: int) -> None:
        for number in QUIET_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, QUIET_SIGNALS)
        rank = parent_process()
        if self.parent is None and rank is not None:
            # a forkserver's workers are its children and not the rank's: they watch the pipe that the rank holds
            threading.Thread(target=_leave_with, args=(rank.sentinel,), daemon=True).start()
        if self.parent is not None:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self.parent:  # it ended while this one was still importing torch
                os._exit(1)


def _leave_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


@dataclass(frozen=True)
class WorkerSettings:
    """How many loader processes, how they start, and whether batches come in pinned memory."""

    count: int
    start: str
    pin_memory: bool


class Fetch:
    """What workers have loaded, in the order in which it was asked for.

    `plan` gives Requests; `rows_asked()` the rows of every batch that was asked for and not given out, to name those
    that a dead worker had to load.
    """

    def __init__(
        self,
        reader: BatchReader,
        plan: Iterator[Request],
        settings: WorkerSettings,
        rows_asked: Callable[[], list[list[int]]],
    ) -> None:
        self._rows_asked = rows_asked
        self._number = 0
        count = settings.count
        # A generator of its own: DataLoader draws a seed when it starts, and would take it from the process's
        # default generator, which belongs to the model.
        loader: DataLoader[Loaded] = DataLoader(
            reader,
            batch_sampler=plan,  # type: ignore[arg-type]
            collate_fn=_as_it_is,
            num_workers=count,
            prefetch_factor=PREFETCH if count else None,
            multiprocessing_context=settings.start if count else None,
            worker_init_fn=WorkerStart.here(settings.start) if count else None,
            pin_memory=settings.pin_memory,
            generator=torch.Generator(),
        )
        # Workers inherit the mask: no Ctrl-C and no notice can hit one before it has learnt to ignore them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, QUIET_SIGNALS)
        of_children = signal.getsignal(signal.SIGCHLD)
        # Python's collector writes into every object that it looks at. Under fork those are the rank's pages, some
        # 80 MB with torch imported, of which each worker would soon have a copy: workers start with all that is there
        # left out of the collector's looks.
        leave_out = not gc.get_freeze_count()
        if leave_out:
            gc.freeze()
        try:
            self._iterator: Any = iter(loader)
        finally:
            if leave_out:
                gc.unfreeze()
            # torch's handler raises wherever the main thread is: in a backward pass or an all-reduce. Before the mask
            # is lifted: a Ctrl-C that waited behind it is raised there.
            _handle_children(of_children)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._workers: Sequence[Any] = getattr(self._iterator, "_workers", ())
        if self._workers:
            # Where a DataLoader of the user's own has set torch's handler before, it stays set, and would raise for
            # our workers as well: they come off its list. What is left of DataLoader's look at them is ours, below.
            signal_handling._remove_worker_pids(id(self._iterator))  # type: ignore[attr-defined]
            setattr(self._iterator, "_worker_pids_set", False)  # noqa: B010

    def next(self) -> Loaded:
        """The next batch. Raises what a worker reported, WorkerDiedError for one that is gone, and StopIteration at
        the end of the plan."""
        try:
            with _deaths_raised(self._workers):
                loaded: Loaded = next(self._iterator)
        except (RuntimeError, OSError, EOFError) as error:
            dead = _dead(self._workers, patience_s=DEATH_S)
            if not dead:
                raise
            raise _death(dead[0], self._workers, self._number, self._rows_asked()) from error
        if loaded.error is not None:
            raise loaded.error
        self._number += 1
        return loaded

    def close(self) -> None:
        """Ends the workers."""
        if self._workers:
            self._iterator._shutdown_workers()
            self._workers = ()


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


def _death(index: int, workers: Sequence[Any], number: int, asked: list[list[int]]) -> WorkerDiedError:
    """Names a dead worker and the rows that it had been given and that were not delivered; `number` is that of the
    first batch in `asked`.

    Batches go round the workers in turn: the fatal row is one of theirs.
    """
    code = workers[index].exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"left with code {code}"
    rows = [row for place, batch in enumerate(asked, number) if place % len(workers) == index for row in batch]
    shown = ", ".join(str(row) for row in rows[:8]) + (", …" if len(rows) > 8 else "")
    return WorkerDiedError(
        f"loader worker {index} of {len(workers)} (pid {workers[index].pid}) {how} with rows {shown} in hand; "
        "was the memory of the machine or of the job used up?"
    )


def _as_it_is(loaded: Any) -> Any:
    return loaded
