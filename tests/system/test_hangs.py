"""Real hangs, found from outside and named; and what only looks like one, left alone."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.doors import ROOT, Command, Doors, children, clean_environment
from tests.training.helpers import write_digits

pytestmark = [pytest.mark.needs("linux"), pytest.mark.slow]

# With a limit that is given, the start-up has to keep to it too, also on a machine that runs other tests besides.
LIMIT_S = 25

JOIN = """
import ctypes, os, sys, time
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
rank, ones = dist.get_rank(), torch.ones(1)
dist.all_reduce(ones)
"""
SKIPS_ONE = """
if rank != 1:
    dist.all_reduce(ones)
dist.barrier()
"""
HOLDS_THE_GIL = """
if rank == 2:
    while True: ctypes.PyDLL(None).usleep(10**9)
dist.all_reduce(ones)
"""
COMPUTES_IN_C = """
if rank == 0:
    pow(3, 10**9)
dist.all_reduce(ones)
"""
NEVER_READS = """
if rank == 1:
    os.read(os.pipe()[0], 1)
dist.all_reduce(ones)
"""
# The same as a program that knows of us: the beat tells the step, and no limit has to be given.
BEATS = """
from rankrun.beat import Beat, Phase
with Beat.open(os.environ["RANKRUN_BEAT"]) as beat:
    for step in range(1000):
        beat.write(step, 0, Phase.STEP)
        if (rank, step) == (2, 5):
            time.sleep(10**6)
        dist.all_reduce(ones)
"""
# Slow and healthy: a first step that takes longer than any other phase may, then one rank that talks now and then.
SLOW_FIRST_STEP = """
from rankrun.beat import Beat, Phase
with Beat.open(os.environ["RANKRUN_BEAT"]) as beat:
    for step in range(3):
        beat.write(step, 0, Phase.STEP)
        time.sleep(40 if step == 0 else 0.1)
        dist.all_reduce(ones)
"""
TALKS_NOW_AND_THEN = """
for _ in range(7):
    time.sleep(5)
    if rank == 1: print("still here", flush=True)
    dist.all_reduce(ones)
"""
# A person at a prompt of rank 0, played by rank 1, who answers long after the limit.
IN_A_DEBUGGER = """
import pdb
typed = open(os.open("typed", os.O_RDWR))
if rank == 0: pdb.Pdb(stdin=typed, stdout=sys.stdout).set_trace()
else:
    time.sleep(40)
    os.write(os.open("typed", os.O_WRONLY), b"c\\n")
dist.all_reduce(ones)
"""
# As a transform it runs in the rank itself, where there are no loader workers.
STUCK = """
import ctypes, os

class Stuck:
    calls = 0

    def __call__(self, image):
        Stuck.calls += 1
        if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and Stuck.calls == 20:
            while True: ctypes.PyDLL(None).usleep(10**9)
        return image
"""


@pytest.fixture
def in_clone(tmp_path: Path) -> Iterator[Doors]:
    """Commands in the clone, where train.py is; their run folders are the test's own."""
    opened = Doors(ROOT, {**clean_environment(), "PYTHONPATH": str(tmp_path)})
    yield opened
    for command in opened.started:
        command.kill_all()
        command.process.wait()


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def stacks(run: Path, attempt: int = 0) -> list[str]:
    return [file.read_text() for file in sorted((run / f"attempts/{attempt:04d}/stacks").glob("rank-*.txt"))]


def verdict(run: Path, attempt: int = 0) -> dict:
    return json.loads((run / f"attempts/{attempt:04d}/verdict.json").read_text())


def train(doors: Doors, folder: Path, nproc: int, *words: object) -> tuple[Command, Path]:
    config = write_digits(folder)
    command = doors.launch("run", config, "--nproc", nproc, "--runs", folder / "runs", "--name", "it", *words)
    return command, folder / "runs/it"


def until_it_trains(command: Command, run: Path) -> None:
    command.until(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text(), "first metrics")


@pytest.mark.parametrize(
    ("body", "stands", "waiting", "stuck_in"),
    [
        (SKIPS_ONE, 1, "ranks 0, 2", "dist.barrier()"),
        (HOLDS_THE_GIL, 2, "ranks 0, 1", "ctypes.PyDLL"),
        (COMPUTES_IN_C, 0, "ranks 1, 2", "pow("),
        (NEVER_READS, 1, "ranks 0, 2", "os.read("),
    ],
    ids=["skips a collective", "holds the GIL", "computes in C", "never reads"],
)
def test_a_script_that_hangs_is_named_and_ended(doors, body, stands, waiting, stuck_in):
    (doors.folder / "job.py").write_text(JOIN + body)
    done = doors.run("--nproc", 3, "--hang-timeout", LIMIT_S, "job.py")
    assert done.process.returncode == 124, done.output
    assert f"rank {stands} on " in done.output
    told = re.search(
        rf"hung: no sign of life for (\d+) s, at most {LIMIT_S} s are allowed; {waiting} waited", done.output
    )
    assert told is not None, done.output
    assert int(told[1]) >= LIMIT_S
    run = only_run(doors.folder)
    assert (verdict(run)["rank"], verdict(run)["exit_code"]) == (stands, 124)
    texts = stacks(run)
    assert len(texts) == 3
    (line,) = [n for n, text in enumerate((JOIN + body).splitlines(), start=1) if stuck_in in text]
    assert f'job.py", line {line} in <module>' in texts[stands]
    assert all("most recent call first" in text for text in texts)
    assert done.family() == []


def test_a_program_that_beats_needs_no_limit(doors):
    (doors.folder / "job.py").write_text(JOIN + BEATS)
    done = doors.launch("run", "--nproc", 3, "job.py", env={"PYTHONPATH": str(ROOT)})
    assert done.wait() == 124, done.output
    assert "rank 2 on " in done.output
    assert "hung in the step after step 5: no sign of life for 3" in done.output
    assert "at most 30 s are allowed; ranks 0, 1 waited" in done.output


def test_what_is_slow_but_healthy_is_left_alone(doors):
    (doors.folder / "job.py").write_text(JOIN + SLOW_FIRST_STEP)
    (doors.folder / "talks.py").write_text(JOIN + TALKS_NOW_AND_THEN)
    slow = doors.launch("run", "--nproc", 2, "job.py", env={"PYTHONPATH": str(ROOT)})
    talks = doors.launch("run", "--nproc", 2, "--hang-timeout", LIMIT_S, "talks.py")
    assert slow.wait() == 0, slow.output
    assert talks.wait() == 0, talks.output
    assert not list(doors.folder.glob("runs/*/attempts/*/stacks/*"))


def test_a_person_in_a_debugger_is_not_hurried(doors):
    os.mkfifo(doors.folder / "typed")
    (doors.folder / "job.py").write_text(JOIN + IN_A_DEBUGGER)
    done = doors.run("--nproc", 2, "--hang-timeout", LIMIT_S, "job.py")
    assert done.process.returncode == 0, done.output
    assert "hung" not in done.output


def test_ranks_that_were_not_started_warm_show_their_stacks_too(doors):
    (doors.folder / "job.py").write_text(JOIN + HOLDS_THE_GIL)
    done = doors.run("--nproc", 3, "--start", "exec", "--hang-timeout", LIMIT_S, "job.py")
    assert done.process.returncode == 124, done.output
    assert "rank 2 on " in done.output
    texts = stacks(only_run(doors.folder))
    assert len(texts) == 3
    assert all('job.py", line ' in text for text in texts)


def test_a_stopped_rank_of_ours_is_found_without_any_limit_given(in_clone, tmp_path):
    command, run = train(in_clone, tmp_path, 3, "--max-restarts", 0, "train.epochs=100000", "checkpoint.keep=1")
    until_it_trains(command, run)
    (parent,) = children(command.process.pid)
    os.kill(children(parent)[1], signal.SIGSTOP)
    assert command.wait() == 124, command.output
    assert "rank 1 on " in command.output
    assert "ranks 0, 2 waited" in command.output
    texts = stacks(run)
    assert "T (stopped)" in texts[1]
    assert "train.py" in texts[0]
    assert "train.py" in texts[2]
    assert verdict(run)["rank"] == 1
    assert command.family() == []


def test_a_rank_that_holds_the_gil_is_killed_and_the_run_goes_on(in_clone, tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    transforms = "data.train_transforms=[stuck.Stuck]"
    command, run = train(in_clone, tmp_path, 2, f"launch.hang_timeout_s={LIMIT_S}", transforms)
    assert command.wait() == 0, command.output
    assert "rank 1 on " in command.output
    assert "restart 1 of " in command.output
    assert (verdict(run)["rank"], verdict(run)["exit_code"]) == (1, 124)
    assert "stuck.py" in stacks(run)[1]
    assert stacks(run, 1) == []
    assert json.loads((run / "final.json").read_text())["epoch"] == 2
    assert command.family() == []


def test_a_stopped_loader_worker_is_named(in_clone, tmp_path):
    words = ["--max-restarts", 0, "--hang-timeout", LIMIT_S, "data.workers=1", "train.epochs=100000"]
    command, run = train(in_clone, tmp_path, 2, *words, "checkpoint.keep=1")
    until_it_trains(command, run)
    (parent,) = children(command.process.pid)
    rank = children(parent)[1]
    for child in children(rank):
        os.kill(child, signal.SIGSTOP)
    assert command.wait() == 124, command.output
    assert "rank 1 on " in command.output
    assert "is stopped by a signal" in command.output
    assert verdict(run)["rank"] == 1
    assert command.family() == []
