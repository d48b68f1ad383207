"""Drives the doors as a person would: real processes, whose every descendant can be found again by a mark."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 300.0  # an outer limit: a hang is a failed test and not a stuck suite
_LOOK_S = 0.01
_MARK = "RANKRUN_TEST_MARK"


@dataclass
class Command:
    """A command under way. Every process that it starts inherits its mark."""

    process: subprocess.Popen[str]
    mark: str
    output: str = ""

    def wait(self) -> int:
        """Its exit code; what it printed, both streams, is in `output` then."""
        try:
            self.output += self.process.communicate(timeout=LIMIT_S)[0]
        except subprocess.TimeoutExpired:
            self.kill_all()
            self.output += self.process.communicate()[0]
            raise AssertionError(f"still running after {LIMIT_S:g} s:\n{self.output}") from None
        return self.process.returncode

    def family(self) -> list[int]:
        """The living processes with this command's mark, itself included while it runs."""
        wanted = f"{_MARK}={self.mark}".encode()
        found = []
        for place in Path("/proc").iterdir():
            if not place.name.isdecimal():
                continue
            try:
                if wanted in (place / "environ").read_bytes() and not _is_zombie(place):
                    found.append(int(place.name))
            except OSError:
                continue
        return found

    def kill_all(self) -> None:
        """SIGKILL for the whole family at once, and again until none is left."""
        while pids := self.family():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def until(self, happened: Callable[[], object], what: str) -> None:
        """Wait for something that the command does; fails if it ends or the limit passes first."""
        deadline = time.monotonic() + LIMIT_S
        while not happened():
            # Waiting for its end in between leaves the processor to the processes that are watched.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_LOOK_S)
                if not happened():
                    self.wait()
                    raise AssertionError(f"ended with {self.process.returncode} before {what}:\n{self.output}")
            assert time.monotonic() < deadline, f"no {what} within {LIMIT_S:g} s"


def _is_zombie(place: Path) -> bool:
    return re.search(rb"\) Z ", (place / "stat").read_bytes()) is not None


@dataclass
class Doors:
    """Starts commands in one folder with one environment."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    started: list[Command] = field(default_factory=list)

    def start(self, words: Sequence[str], env: Mapping[str, str] | None = None) -> Command:
        """Start a command with stdin closed, stdout and stderr together."""
        mark = secrets.token_hex(8)
        process = subprocess.Popen(
            [str(word) for word in words],
            cwd=self.folder,
            env={**self.env, **(env or {}), _MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        command = Command(process, mark)
        self.started.append(command)
        return command

    def launch(self, *words: object, env: Mapping[str, str] | None = None) -> Command:
        """Start `python launch.py WORDS…`."""
        return self.start([sys.executable, str(ROOT / "launch.py"), *map(str, words)], env)

    def run(self, *words: object, env: Mapping[str, str] | None = None) -> Command:
        """`python launch.py run WORDS…` to its end."""
        command = self.launch("run", *words, env=env)
        command.wait()
        return command


def clean_environment() -> dict[str, str]:
    """This process's environment without what names a world, and with one thread per rank."""
    foreign = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC", "SLURM", "PET_", "OMP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PYTHONPATH": ""}


def ended(pidfd: int, limit_s: float = 60.0) -> bool:
    """Wait for a process that may be anybody's child, by `os.pidfd_open`; False if it still lives after the limit."""
    return bool(connection.wait([pidfd], limit_s))  # unlike select, for any descriptor's number


def children(pid: int) -> list[int]:
    """The children of a process in the order of their forks: an agent's is the warm parent, its are the ranks."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
