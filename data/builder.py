"""The process that builds the next epoch's shard beside the training: numpy only, no torch, no CUDA, no user code.

A fresh interpreter and not a fork, since a rank has threads and a GPU. It ends with its rank: they are joined by a
pipe, and its end is noticed whatever ended the rank.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError, by_code
from .memory import MemoryFile
from .shard import Shard

if TYPE_CHECKING:
    from .slots import ShardJob

# Blocked in the builder from its first instruction on: they are for its rank.
QUIET_SIGNALS = (signal.SIGINT, signal.SIGUSR2)

# numpy's linear algebra is not used: its threads would only cost memory.
_START = "import os, sys; os.environ.setdefault('OPENBLAS_NUM_THREADS', '1'); sys.path.insert(0, {root!r}); "
_START += "from {package}.builder import main; sys.exit(main({job}, {target}))"


class BuilderDied(Exception):
    """The process is gone without a word; `str` says how."""


class ShardBuilder:
    """Builds one shard into a memory file, in a child process."""

    def __init__(self, job: ShardJob, target: MemoryFile) -> None:
        fds: list[int] = [target.fd]
        text = MemoryFile.of(_pack(job, fds))
        root = Path(__file__).resolve().parents[len((__package__ or "").split("."))]
        start = _START.format(root=str(root), package=__package__, job=text.fd, target=target.fd)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, QUIET_SIGNALS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", start],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(text.fd, *fds),
            )
            self._end = weakref.finalize(self, _end, self._process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._target = target

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> None:
        """Returns once the shard is whole. Raises the DataError that the child found, or BuilderDied."""
        assert self._process.stdout is not None
        said = self._process.stdout.read()
        code = self._process.wait()
        self._end()
        if said:
            kind, problems = json.loads(said)
            raise by_code().get(kind, DataError)(*problems)
        if code:
            raise BuilderDied(f"was killed by signal {-code}" if code < 0 else f"left with code {code}")
        try:
            Shard(self._target.fd)
        except ValueError:  # somebody else has reaped it, and its exit code is lost
            raise BuilderDied("ended half-way") from None

    def close(self) -> None:
        """Ends it, built or not."""
        self._end()


def main(job: int, target: int) -> int:
    """The child: reads its job from one memory file and writes the shard into another."""
    threading.Thread(target=_leave_with_rank, daemon=True).start()
    with open(job, "rb") as file:
        todo: ShardJob = _Unpickler(file).load()
    try:
        todo.build(target)
    except DataError as error:
        json.dump((error.code, [str(problem) for problem in error.args]), sys.stdout)
    return 0


def _leave_with_rank() -> None:
    os.read(0, 1)  # nothing is ever written: this returns when the rank's end of the pipe is gone
    os._exit(1)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _pack(job: ShardJob, fds: list[int]) -> bytes:
    """The job as bytes; memory files in it go as descriptors, which are added to `fds`."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: object) -> int | None:
            if isinstance(thing, MemoryFile):
                fds.append(thing.fd)
                return thing.fd
            return None

    file = io.BytesIO()
    Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(job)
    return file.getvalue()


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, fd: Any) -> MemoryFile:
        return MemoryFile(int(fd))
