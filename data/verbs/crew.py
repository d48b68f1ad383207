"""Work on many tasks in processes that die with this one, and are missed when they die first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from ..errors import DataError, WorkerDiedError

Task = TypeVar("Task")
Done = TypeVar("Done")


def in_processes(work: Callable[[Task], Done], tasks: Iterable[Task], processes: int) -> Iterator[tuple[Task, Done]]:
    """Yields (task, work(task)) as they are done, in any order; with fewer than two processes here, in order.

    A task is handed to a process only when that one has nothing else, so no more than `processes` of them are read
    ahead. `work` goes to each process once. What it raises is raised here; a process that is killed is a
    WorkerDiedError. At the end, on any way out, no process is left.
    """
    if processes < 2:
        for task in tasks:
            yield task, work(task)
        return
    # macOS forbids its frameworks to a forked process
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    crew: dict[Connection, BaseProcess] = {}
    busy: dict[Connection, Task] = {}
    try:
        coming = iter(tasks)
        for task in coming:
            if len(crew) < processes:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(work, theirs, [ours, *crew]), daemon=True)
                process.start()
                theirs.close()
                crew[ours] = process
                mate: Connection = ours
            else:
                mate = next(iter(_ready(busy)))
                yield busy.pop(mate), _receive(mate, crew[mate])
            busy[mate] = task
            _send(mate, task, crew[mate])
        while busy:
            for mate in _ready(busy):
                yield busy.pop(mate), _receive(mate, crew[mate])
    finally:
        for mate, process in crew.items():
            mate.close()
            process.terminate()
        for process in crew.values():
            process.join()


def _ready(busy: dict[Connection, Task]) -> list[Connection]:
    return [mate for mate in wait(list(busy)) if isinstance(mate, Connection)]


def _send(mate: Connection, task: object, process: BaseProcess) -> None:
    try:
        mate.send(task)
    except OSError:
        raise _died(process) from None


def _receive(mate: Connection, process: BaseProcess) -> Done:  # type: ignore[type-var]
    try:
        done, error = mate.recv()
    except (EOFError, OSError):
        raise _died(process) from None
    if error is not None:
        raise error
    return done  # type: ignore[no-any-return]


def _died(process: BaseProcess) -> WorkerDiedError:
    process.join(5)
    code = process.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"left with {code}"
    return WorkerDiedError(f"a process that looked at the rows {how}: for want of memory? Fewer --processes need less")


def _serve(work: Callable[[Task], Done], mate: Connection, others: list[Connection]) -> None:
    """A process of the crew. It closes the ends that a fork gave it, so that each one's end is seen by the other."""
    for other in others:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    while True:
        try:
            task = mate.recv()
        except (EOFError, OSError):
            os._exit(0)  # the parent has what it wanted, or is gone
        try:
            answer: tuple[Done | None, BaseException | None] = (work(task), None)
        except Exception as error:
            answer = (None, error if isinstance(error, DataError) else RuntimeError(f"{type(error).__name__}: {error}"))
        try:
            mate.send(answer)
        except OSError:
            os._exit(0)
