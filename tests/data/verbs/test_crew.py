from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import RowError, WorkerDiedError
from data.verbs.crew import in_processes

ROOT = Path(__file__).resolve().parents[3]


class Square:
    """Work that travels to a process of the crew."""

    def __call__(self, number: int) -> tuple[int, int]:
        return number * number, os.getpid()


class Fails:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, number: int) -> int:
        if number == 3 and self.kind == "told":
            raise RowError("m.txt:4  is blank")
        if number == 3 and self.kind == "bug":
            raise KeyError("x")
        if number == 3 and self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 3 and self.kind == "left":
            os._exit(7)
        return number


def none_is_left() -> bool:
    return multiprocessing.active_children() == []


@pytest.mark.parametrize("processes", [0, 1, 2, 5])
def test_every_task_is_done_once(processes: int) -> None:
    done = dict(in_processes(Square(), range(40), processes))
    assert {task: square for task, (square, _) in done.items()} == {n: n * n for n in range(40)}
    pids = {pid for _, pid in done.values()}
    assert (os.getpid() in pids) == (processes < 2)
    assert none_is_left()


def test_no_task_no_process() -> None:
    assert list(in_processes(Square(), [], 3)) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_what_work_raises_is_raised_here(processes: int) -> None:
    with pytest.raises(RowError, match=r"m\.txt:4  is blank"):
        list(in_processes(Fails("told"), range(9), processes))
    with pytest.raises((RuntimeError, KeyError), match="'x'"):
        list(in_processes(Fails("bug"), range(9), processes))
    assert none_is_left()


def test_a_killed_process_is_missed() -> None:
    with pytest.raises(
        WorkerDiedError, match=r"was killed by SIGKILL: for want of memory\? Fewer --processes need less"
    ):
        list(in_processes(Fails("killed"), range(9), 2))
    with pytest.raises(WorkerDiedError, match="left with 7"):
        list(in_processes(Fails("left"), range(9), 2))
    assert none_is_left()


def test_whoever_stops_early_leaves_no_process() -> None:
    crew = in_processes(Square(), iter(range(1000)), 3)
    next(crew)
    assert not none_is_left()
    crew.close()
    assert none_is_left()


def test_the_crew_ends_with_a_killed_parent() -> None:
    code = (
        "import os, signal, sys\n"
        "from data.verbs.crew import in_processes\n"
        "def work(n):\n"
        "    print(os.getpid(), flush=True)\n"
        "    return n\n"
        "crew = in_processes(work, range(100), 3)\n"
        "next(crew)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # the children hold this pipe too: its end shows that the last of them is gone
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    for pid in map(int, done.stdout.split()):
        assert not Path(f"/proc/{pid}/cwd").exists() or pid == os.getpid()
