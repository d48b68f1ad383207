"""Launches in crowds and launches killed at any moment of their start, in a host of their own where nothing can hide.

Everything that a launch could leave is looked for where only launches of this place can have put it: processes and
listening ports of the host's network, its own /dev/shm, its own folder for temporary files, and, once a killed run
was started again, unfinished files in the run folder.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.system.doors import Command, Doors
from tests.system.hosts import Hosts

# Whom, and with what. A descendant is the warm parent or a rank, whatever there is by then.
LAUNCHER, DESCENDANT = "the launcher", "a descendant"
KILLS = (
    *((LAUNCHER, how) for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)),
    *2 * ((DESCENDANT, signal.SIGKILL),),
)
GONE_LIMIT_S = 30.0  # the contract says 5; a busy machine may need more, and what is left for good is still there
_LOOK_S = 0.05
_OUR_FRAME = 'launch.py", line'  # the outermost frame of a launcher's traceback; a script's own Ctrl-C shows none of it

# The sum of both ranks' numbers tells whether ranks of different launches have met.
SCRIPT = """\
import sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor([int(sys.argv[1])])
dist.all_reduce(total)
print("rank", dist.get_rank(), "of launch", sys.argv[1], "has", total.item(), flush=True)
dist.destroy_process_group()
"""


@dataclass
class Tally:
    """What came of many launches."""

    done: int = 0
    failed: list[str] = field(default_factory=list)  # a launch that did not do its work, with what it said
    left: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # to the end of each, or from the kill until all was gone
    tracebacks: list[str] = field(default_factory=list)  # that a killed launcher showed
    hits: int = 0  # kills that met somebody alive


class Place:
    """One host with a script that joins two ranks. `doors` must stand in an empty folder."""

    def __init__(self, doors: Doors, hosts: Hosts, host: int = 0) -> None:
        self._doors, self._hosts, self._host = doors, hosts, host
        self.temporary = doors.folder / "tmp"
        self.temporary.mkdir()
        self.shared_memory = doors.folder / "shm"  # a folder of the disk does as well: it holds what has a name there
        self.shared_memory.mkdir()
        (doors.folder / "sum.py").write_text(SCRIPT)
        mount = hosts.start(host, ["mount", "--bind", self.shared_memory, "/dev/shm"])
        assert mount.wait() == 0, mount.output

    def launch(self, number: int) -> Command:
        """Start launch `number`, whose run folder is its own."""
        words = ["run", "--nproc", 2, "--name", f"launch-{number}", "sum.py", number]
        return self._hosts.launch(self._host, *words, env={"TMPDIR": str(self.temporary)})

    def end(self, command: Command, number: int, tally: Tally) -> None:
        """Wait for a launch that must succeed."""
        code = command.wait()
        wrong = [line for line in command.output.splitlines() if " has " in line and f"has {2 * number}" not in line]
        if code != 0 or wrong or command.output.count(f"has {2 * number}") != 2:
            tally.failed.append(f"launch {number} ended with {code}:\n{command.output}")
        tally.done += 1

    def left(self) -> list[str]:
        """What is there although every launch has ended."""
        found = [f"process {pid}: {_command_line(pid)}" for pid in self._hosts.processes(self._host)]
        found += [f"port {port}" for port in self._hosts.listening(self._host)]
        return found + [str(path) for folder in (self.temporary, self.shared_memory) for path in folder.iterdir()]

    def unfinished(self) -> list[str]:
        """Files in the run folders that somebody began and did not finish."""
        return [str(path) for path in (self._doors.folder / "runs").rglob("*") if ".tmp-" in path.name]


def start_many(place: Place, count: int, at_once: int) -> Tally:
    """`count` launches, `at_once` of them at a time, all to their ends."""
    tally = Tally()
    for first in range(0, count, at_once):
        began = time.monotonic()
        crowd = [(number, place.launch(number)) for number in range(first, min(first + at_once, count))]
        for number, command in crowd:
            place.end(command, number, tally)
            tally.seconds.append(time.monotonic() - began)
        tally.left += place.left()
    return tally


def kill_many(place: Place, count: int, at_once: int, seed: int, within_s: float) -> Tally:
    """`count` launches, each killed at a random moment of its first `within_s`, then started again to the end.

    One of KILLS is drawn for each; all that is left of the launch must end by itself then.
    """
    tally, draw = Tally(), random.Random(seed)
    for first in range(0, count, at_once):
        crowd = []
        for number in range(first, min(first + at_once, count)):
            moment, (whom, how) = draw.uniform(0, within_s), draw.choice(KILLS)
            which = draw.random()  # of the descendants
            crowd.append((time.monotonic() + moment, number, whom, how, which, place.launch(number)))
        # Killed and looked after beside each other: one whose end takes long keeps no other one waiting.
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda one: _kill(*one, tally), crowd))
        for _, number, _, _, _, command in crowd:
            command.wait()
            if _OUR_FRAME in command.output:
                tally.tracebacks.append(f"launch {number}:\n{command.output}")
        tally.left += place.left()
        for number in range(first, min(first + at_once, count)):
            place.end(place.launch(number), number, tally)
        tally.left += place.left() + place.unfinished()
    return tally


def _kill(
    moment: float, number: int, whom: str, how: signal.Signals, which: float, command: Command, tally: Tally
) -> None:
    """Wait for the moment, kill, and wait until nothing of the launch is left."""
    time.sleep(max(0.0, moment - time.monotonic()))
    launcher = command.process.pid
    targets = [launcher] if whom == LAUNCHER else [pid for pid in command.family() if pid != launcher]
    began, hit = time.monotonic(), command.process.poll() is None and bool(targets)
    if hit:
        with contextlib.suppress(ProcessLookupError):
            os.kill(targets[int(which * len(targets))], how)
    # The launcher's own zombie is no family; whoever started it has not asked for its end yet.
    while left := command.family():
        if time.monotonic() - began > GONE_LIMIT_S:
            words = [f"{pid} ({_command_line(pid)})" for pid in left]
            tally.left.append(f"launch {number}, {how.name} for {whom}: after {GONE_LIMIT_S:g} s {', '.join(words)}")
            command.kill_all()
            return
        time.sleep(_LOOK_S)
    if hit:
        tally.hits += 1
        tally.seconds.append(time.monotonic() - began)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "ended meanwhile"
