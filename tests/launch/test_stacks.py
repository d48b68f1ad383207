"""Stacks of real processes, stuck in every way; the rest on texts as faulthandler and py-spy write them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rankrun.beat import Phase
from rankrun.launch import stacks
from rankrun.launch.process import descendants, listens_for, send
from rankrun.launch.stacks import STACKS_SIGNAL, Stack, StacksFile, allow_tracer, attended, gather, narrow, summary
from rankrun.launch.watch import Hang

pytestmark = pytest.mark.needs("linux")

LIMIT_S = 20.0

# A rank, as far as stacks go. Then it is stuck, at line 8, as the test says.
PROGRAM = """\
import faulthandler, os, subprocess, sys, threading, time
if sys.argv[1]:
    place = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
    faulthandler.register({signal}, file=place, all_threads=True, chain=False)
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
{before}
def stuck():
    print("ready", flush=True); {stuck}
stuck()
"""


class Ranks:
    """Processes that are stuck, and what the agent has for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[int, StacksFile] = {}
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.logs: dict[int, Path] = {}

    def add(self, stuck: str, *, before: str = "", answers: bool = True) -> int:
        rank = len(self.processes)
        program = self.folder / f"job{rank}.py"
        program.write_text(PROGRAM.format(signal=int(STACKS_SIGNAL), before=before, stuck=stuck))
        self.files[rank] = StacksFile(self.folder, rank)
        self.logs[rank] = self.folder / f"log{rank}"
        self.logs[rank].write_text("earlier lines\n")
        with self.logs[rank].open("a") as log:
            process = self.processes[rank] = subprocess.Popen(
                [sys.executable, str(program), self.files[rank].path if answers else ""],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert process.stdout is not None
        assert process.stdout.readline().endswith("ready\n")
        return rank

    @property
    def pids(self) -> dict[int, int]:
        return {rank: process.pid for rank, process in self.processes.items()}

    def ask(self) -> None:
        send([pid for pid in self.pids.values() if listens_for(pid, STACKS_SIGNAL)], STACKS_SIGNAL)

    def gather(self, **how: object) -> dict[int, Stack]:
        return gather(self.pids, self.files, self.ask, self.folder / "attempt/stacks", **how)  # type: ignore[arg-type]

    def until(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not happened():
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stacks.shutil, "which", lambda *_, **__: None)  # py-spy may or may not be installed here
    opened = Ranks(tmp_path)
    yield opened
    for process in opened.processes.values():
        for child in descendants(process.pid):
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.communicate()
    for file in opened.files.values():
        file.close()


@pytest.mark.parametrize(
    "stuck",
    [
        "time.sleep(1000)",
        "[0 for _ in iter(int, 1)]",
        "pow(3, 10**9)",
        "import ctypes; [ctypes.PyDLL(None).usleep(10**6) for _ in range(1000)]",
        "lock = threading.Lock(); lock.acquire(); lock.acquire()",
        "os.read(0, 1)",
    ],
)
def test_a_rank_that_is_stuck_shows_where(ranks: Ranks, stuck: str) -> None:
    ranks.add(stuck)
    found = ranks.gather()[0]
    assert found.where in ("job0.py:8 in stuck", "job0.py:8 in <listcomp>")
    assert (found.stopped, found.waits, found.attended) == (False, False, False)
    assert found.path == ranks.folder / "attempt/stacks/rank-00000.txt"
    text = found.path.read_text()
    assert text.startswith(f"rank 0, process {ranks.pids[0]}: ")
    assert text.count("most recent call first") == 2


def test_all_ranks_at_once_each_in_its_file_and_again(ranks: Ranks) -> None:
    for _ in range(3):
        ranks.add("time.sleep(1000)")
    assert [stack.where for stack in ranks.gather().values()] == [f"job{rank}.py:8 in stuck" for rank in range(3)]
    again = ranks.gather()
    assert [path.name for path in sorted((ranks.folder / "attempt/stacks").iterdir())] == [
        "rank-00000.txt", "rank-00001.txt", "rank-00002.txt",
    ]  # fmt: skip
    assert again[0].path is not None
    assert again[0].path.read_text().count("most recent call first") == 2, "of the newest question only"


def test_a_stopped_rank_is_said_to_be_stopped(ranks: Ranks) -> None:
    ranks.add("time.sleep(1000)")
    ranks.add("time.sleep(1000)")
    os.kill(ranks.pids[1], signal.SIGSTOP)
    ranks.until(lambda: "T (" in Path(f"/proc/{ranks.pids[1]}/status").read_text())
    found = ranks.gather()
    assert not found[0].stopped
    assert found[1].stopped
    assert found[1].where == "stopped by a signal (SIGSTOP, or a debugger): no Python stack"
    assert found[1].path is not None
    assert ": T (stopped)" in found[1].path.read_text()


def test_a_stopped_child_is_named(ranks: Ranks) -> None:
    ranks.add("child.wait()", before="child = subprocess.Popen(['sleep', '1000'])")
    (child,) = descendants(ranks.pids[0])
    os.kill(child, signal.SIGSTOP)
    ranks.until(lambda: "T (" in Path(f"/proc/{child}/status").read_text())
    found = ranks.gather()[0]
    assert found.where == f"job0.py:8 in stuck; its child process {child} is stopped by a signal"
    assert found.path is not None
    assert f"  its child {child}: T (stopped)" in found.path.read_text()


def test_a_rank_that_is_gone(ranks: Ranks) -> None:
    ranks.add("sys.exit(0)")
    ranks.until(lambda: ranks.processes[0].poll() is not None)
    assert ranks.gather()[0].where == "it is gone"


def test_a_rank_without_a_handler_is_left_alone_unless_its_log_may_be_used(ranks: Ranks) -> None:
    ranks.add("time.sleep(1000)", before="faulthandler.enable()", answers=False)
    ranks.add("time.sleep(1000)", answers=False)
    found = ranks.gather()
    assert all("no handler that would show its Python stack" in stack.where for stack in found.values())
    assert all(process.poll() is None for process in ranks.processes.values())
    found = ranks.gather(logs=ranks.logs)
    assert found[0].where == "job0.py:8 in stuck"
    assert "no handler" in found[1].where
    assert ranks.processes[0].wait(LIMIT_S) == -signal.SIGABRT
    assert ranks.processes[1].poll() is None, "without faulthandler SIGABRT would only kill it"
    assert found[0].path is not None
    assert "earlier lines" not in found[0].path.read_text()


def test_no_answer_in_time(ranks: Ranks) -> None:
    ranks.add("time.sleep(1000)")
    found = gather(ranks.pids, ranks.files, lambda: None, ranks.folder / "stacks", 0.05)[0]
    assert found.where.startswith("no answer, so no Python stack: ")


def test_a_folder_that_cannot_be_written_costs_only_the_file(ranks: Ranks) -> None:
    ranks.add("time.sleep(1000)")
    (ranks.folder / "attempt").write_text("a file")
    found = ranks.gather()[0]
    assert (found.where, found.path) == ("job0.py:8 in stuck", None)


def test_a_person_in_a_debugger_is_seen_and_nothing_written(ranks: Ranks) -> None:
    ranks.add("time.sleep(1000)")
    assert not attended(ranks.pids, ranks.files, ranks.ask)
    ranks.add("breakpoint(); print()")
    process = ranks.processes[1]
    assert process.stdout is not None
    ranks.until(lambda: process.stdout.read(1) == ")")  # of "(Pdb)"
    assert attended(ranks.pids, ranks.files, ranks.ask)
    assert not (ranks.folder / "attempt").exists()
    assert ranks.gather()[1].attended


def test_py_spy_is_asked_and_helps_out(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    program = ranks.folder / "py-spy"
    program.write_text(
        '#!/bin/sh\necho "Process $5: python job.py"\necho \'Thread 7 (idle): "MainThread"\'\n'
        'echo "    read (selectors.py:3)"\necho "    load ($PWD/mine.py:30)"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(stacks.shutil, "which", lambda *_, **__: str(program))
    ranks.add("time.sleep(1000)", answers=False)
    ranks.add("time.sleep(1000)")
    found = ranks.gather()
    assert found[0].where == "selectors.py:3 in read"
    assert found[1].where == "job1.py:8 in stuck"
    assert found[1].path is not None
    assert f"py-spy:\nProcess {ranks.pids[1]}: python job.py\n" in found[1].path.read_text()


def test_a_py_spy_that_hangs_or_fails_is_not_waited_for(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    program = ranks.folder / "py-spy"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    monkeypatch.setattr(stacks.shutil, "which", lambda *_, **__: str(program))
    monkeypatch.setattr(stacks, "_PY_SPY_LIMIT_S", 0.1)
    ranks.add("time.sleep(1000)")
    found = ranks.gather()[0]
    assert found.where == "job0.py:8 in stuck"
    assert found.path is not None
    assert "py-spy:\ndid not answer" in found.path.read_text()
    program.write_text("no program\n")
    assert ranks.gather()[0].where == "job0.py:8 in stuck"


def test_a_stacks_file_leaves_nothing(tmp_path: Path) -> None:
    file = StacksFile(tmp_path, 3)
    Path(file.path).write_text("half\xff")
    file.forget()
    assert (file.size_bytes, file.read()) == (0, "")
    with open(file.path, "ab") as end:
        end.write(b"new \xff")
    assert file.read() == "new �"
    file.close()
    assert list(tmp_path.iterdir()) == []


def test_any_process_may_be_named_as_tracer() -> None:
    allow_tracer(os.getppid())
    allow_tracer(0)


# texts --------------------------------------------------------------------------------------------------------------

LIBRARY = f"{os.path.dirname(os.__file__)}/threading.py"
TORCH = "/venv/lib/python3.11/site-packages/torch"

DUMP = f"""\
Thread 0x00007f01 (most recent call first):
  File "/home/me/loader.py", line 5 in load

Current thread 0x00007f02 (most recent call first):
  File "{LIBRARY}", line 982 in run
  File "{TORCH}/autograd/graph.py", line 824 in _engine_run_backward
  File "/home/me/train.py", line 130 in main
  File "/home/me/train.py", line 150 in <module>
  File "<frozen runpy>", line 88 in _run_code
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DUMP, "/home/me/train.py:130 in main"),
        (DUMP.replace("Current thread", "Thread"), "/home/me/train.py:130 in main"),
        (DUMP[: DUMP.index("\nCurrent")], "/home/me/loader.py:5 in load"),
        (f'Current thread 0x1 (most recent call first):\n  File "{LIBRARY}", line 9 in run\n', f"{LIBRARY}:9 in run"),
        (f'Thread 0x1 (most recent call first):\n  File "{os.getcwd()}/a b.py", line ??? in f\n', "a b.py:0 in f"),
        ("Fatal Python error: Aborted\n\n" + DUMP, "/home/me/train.py:130 in main"),
        ("Thread 0x1 (most recent call first):\n  <no Python frame>\n", ""),
        ("", ""),
        ("\0\xff garbage\n  File", ""),
        (
            'Process 7: python\nPython v3.11.7 (/usr/bin/python3)\n\nThread 9 (idle): "Thread-1"\n    run (x.py:1)\n'
            'Thread 7 (active+gil): "MainThread"\n    a (/venv/lib/site-packages/t.py:2)\n    f (/home/me/job.py:3)\n',
            "/home/me/job.py:3 in f",
        ),
    ],
)
def test_summary(text: str, words: str) -> None:
    assert summary(text) == words


@pytest.mark.parametrize(
    ("frame", "waits"),
    [
        (f'"{TORCH}/distributed/distributed_c10d.py", line 2940 in all_reduce', True),
        (f'"{TORCH}/autograd/graph.py", line 824 in _engine_run_backward', True),
        (f'"{TORCH}/nn/parallel/distributed.py", line 2219 in _distributed_broadcast_coalesced', True),
        (f'"{TORCH}/nn/modules/conv.py", line 549 in _conv_forward', False),
        ('"{here}/job.py", line 1 in main', True),
        ('"{here}/job.py", line 2 in main', True),
        ('"{here}/job.py", line 3 in main', False),
        ('"{here}/job.py", line 4 in main', False),
        ('"{here}/fifo", line 1 in main', False),
        ('"{here}/missing.py", line 1 in main', False),
    ],
)
def test_who_waits_for_others_is_told_by_the_innermost_frame(tmp_path: Path, frame: str, waits: bool) -> None:
    (tmp_path / "job.py").write_text("work.wait()\nprint(loss.item())\ntime.sleep(3)\n")
    os.mkfifo(tmp_path / "fifo")
    text = f"Current thread 0x1 (most recent call first):\n  File {frame.format(here=tmp_path)}\n"
    assert stacks._waits(stacks._frames_of(text)) is waits


def stack(rank: int, where: str = "train.py:9 in main", **how: bool) -> Stack:
    return Stack(rank, where, **how)


HANG = Hang((0, 1, 2), (3,), 31.0, 30.0, Phase.STEP, 7)


@pytest.mark.parametrize(
    ("found", "suspects"),
    [
        ([stack(0, waits=True), stack(1), stack(2, waits=True), stack(3, waits=True)], (1,)),
        ([stack(0, waits=True), stack(1, waits=True), stack(2, stopped=True), stack(3)], (2,)),
        ([stack(0), stack(1), stack(2), stack(3, stopped=True)], (3,)),
        ([stack(0, waits=True), stack(1, waits=True), stack(2, waits=True), stack(3)], (3,)),
        ([stack(rank, f"train.py:{10 if rank == 1 else 9} in main", waits=True) for rank in range(4)], (1,)),
        ([stack(rank, f"train.py:{10 + rank % 2} in main", waits=True) for rank in range(4)], (0, 1, 2)),
        ([stack(rank, waits=True) for rank in range(4)], (0, 1, 2)),
        ([stack(rank) for rank in range(4)], (0, 1, 2)),
        ([stack(0, waits=True), stack(2, waits=True), stack(3, waits=True)], (1,)),
        ([stack(9, stopped=True)], (0, 1, 2)),
        ([], (0, 1, 2)),
    ],
)
def test_stacks_tell_who_stands_from_who_waits(found: list[Stack], suspects: tuple[int, ...]) -> None:
    narrowed = narrow(HANG, {one.rank: one for one in found})
    assert narrowed.suspects == suspects
    assert sorted(narrowed.suspects + narrowed.waiting) == [0, 1, 2, 3]
    assert replace(narrowed, suspects=HANG.suspects, waiting=HANG.waiting) == HANG


def test_a_stack_travels_as_json_without_its_path() -> None:
    sent = Stack(3, "train.py:1 in f", stopped=True, waits=False, attended=True, path=Path("x"))
    assert Stack.from_message(json.loads(json.dumps(sent.as_message()))) == replace(sent, path=None)


@pytest.mark.parametrize(
    "message", [None, 3, [], {}, {"rank": 1}, {"rank": -1, "where": ""}, {"rank": True, "where": ""}]
)
def test_garbage_is_no_stack(message: object) -> None:
    assert Stack.from_message(message) is None


def test_what_a_peer_says_is_cut() -> None:
    said = Stack.from_message({"rank": 1, "where": "x" * 10**6, "stopped": "yes"})
    assert said is not None
    assert (len(said.where), said.stopped) == (1000, False)


def test_what_a_peer_says_is_printable() -> None:
    said = Stack.from_message({"rank": 1, "where": "\x1b[2Jtrain.py:1\n\ud800"})
    assert said is not None
    assert said.where == r"\x1b[2Jtrain.py:1\n\ud800"
