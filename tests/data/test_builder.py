"""The builder is a real process; it is killed, starved of its rank, and given bad rows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from data.builder import BuilderDied, ShardBuilder
from data.errors import ChangedError, RowError
from data.memory import MemoryFile
from data.meta import MetaFile
from data.order import Permutation
from data.shard import Shard
from data.slots import ShardJob

ROOT = Path(__file__).resolve().parents[2]
Write = Callable[..., Path]


def job_over(path: Path, rows: int) -> ShardJob:
    return ShardJob(MetaFile(path, classes=3), Permutation(rows, seed=5, epoch=2), 1, rows, 4)


def test_it_builds_what_would_be_built_here(write: Write) -> None:
    job = job_over(write("".join(f"p/{row} x.png {row % 3}\n" for row in range(5000))), 5000)
    there, here = MemoryFile(), MemoryFile()
    ShardBuilder(job, there).wait()
    job.build(here.fd)
    theirs, ours = Shard(there.fd), Shard(here.fd)
    assert len(theirs) == len(ours) == 1250
    assert [theirs.line(i) for i in range(1250)] == [ours.line(i) for i in range(1250)]
    assert theirs.line(0) == job.meta.line(int(job.rows()[0]))


def test_lines_that_lie_in_no_file_go_along(pictures: object, tmp_path: Path) -> None:
    folder = tmp_path / "classes"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            (folder / name / f"{number}.png").write_bytes(b"not looked at")
    meta = MetaFile(folder)
    file = MemoryFile()
    ShardBuilder(ShardJob(meta, None, 0, 6, 2), file).wait()
    assert [Shard(file.fd).line(i) for i in range(3)] == [meta.line(0), meta.line(2), meta.line(4)]


def test_a_bad_row_comes_back_as_it_would_be_raised_here(write: Write) -> None:
    rows = [f"p/{row}.png {row % 3}" for row in range(5000)]
    path = write("\n".join(rows) + "\n")
    meta = MetaFile(path, classes=3)
    bad = int(Permutation(5000, seed=5, epoch=2)[1])
    rows[bad] = f"p/{bad}.png 7"
    path.write_text("\n".join(rows) + "\n")
    meta = MetaFile(path, classes=3)
    with pytest.raises(RowError, match=rf"m\.txt:{bad + 1}  label 7 is out of range"):
        ShardBuilder(ShardJob(meta, Permutation(5000, seed=5, epoch=2), 1, 5000, 4), MemoryFile()).wait()


def test_a_file_that_changed_is_refused_by_it(write: Write) -> None:
    path = write("".join(f"p/{row:05d}.png {row % 3}\n" for row in range(5000)))
    job = job_over(path, 5000)
    os.truncate(path, 4000)
    with pytest.raises(ChangedError, match="changed"):
        ShardBuilder(job, MemoryFile()).wait()


def test_a_killed_builder_says_so(write: Write) -> None:
    path = write("".join(f"p/{row}.png {row % 3}\n" for row in range(5000)))
    builder = ShardBuilder(job_over(path, 5000), MemoryFile())
    os.kill(builder.pid, signal.SIGKILL)
    with pytest.raises(BuilderDied, match="was killed by signal 9"):
        builder.wait()


def test_a_dropped_builder_ends(write: Write) -> None:
    path = write("".join(f"p/{row}.png {row % 3}\n" for row in range(5000)))
    builder = ShardBuilder(job_over(path, 5000), MemoryFile())
    process = psutil.Process(builder.pid)
    del builder
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_it_ends_with_its_rank(write: Write, tmp_path: Path) -> None:
    """A rank is killed while its builder waits for a file that never comes to an end: the builder goes too."""
    script = textwrap.dedent(
        """
        import os, sys, time
        from data.builder import ShardBuilder
        from data.memory import MemoryFile

        class Endless:
            def build(self, fd):
                time.sleep(600)

        builder = ShardBuilder(Endless(), MemoryFile())
        print(builder.pid, flush=True)
        time.sleep(600)
        """
    )
    (tmp_path / "rank_of_a_test.py").write_text(script)
    run = "import sys; sys.path.insert(0, '.'); import rank_of_a_test"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    rank = subprocess.Popen([sys.executable, "-c", run], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert rank.stdout is not None
    process = psutil.Process(int(rank.stdout.readline()))
    rank.kill()
    rank.wait()
    rank.stdout.close()
    assert psutil.wait_procs([process], timeout=5)[1] == []


def test_notices_and_interrupts_are_left_to_the_rank(write: Write) -> None:
    path = write("".join(f"p/{row}.png {row % 3}\n" for row in range(5000)))
    file = MemoryFile()
    builder = ShardBuilder(job_over(path, 5000), file)
    for number in (signal.SIGINT, signal.SIGUSR2):
        os.kill(builder.pid, number)
    builder.wait()
    assert len(Shard(file.fd)) == 1250
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
