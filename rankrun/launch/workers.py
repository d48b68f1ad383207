"""The agent's view of its ranks: start them through the warm parent, hear of their ends, stop them."""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rankrun.beat import SIZE_BYTES, Reading
from rankrun.launch.channel import Channel
from rankrun.launch.process import LINUX, kill_family, send
from rankrun.launch.signals import Signals
from rankrun.launch.waiting import Waiter
from rankrun.launch.warm import RankStart

TERM_TO_KILL_S = 1.0  # a Python handler does not run inside a blocked gloo collective, so waiting longer is no use
_PARENT_ANSWERS_S = 7.0  # longer than it takes the warm parent to give up on processes that can't be killed
_PARENT_LEAVES_S = 7.0
_UNKILLABLE_S = 1.0


@dataclass(frozen=True)
class Exit:
    """How a rank ended: its exit code (negative: the signal that killed it) and when the warm parent saw it."""

    local_rank: int
    pid: int
    code: int
    ns: int
    stopped: bool  # after we had sent SIGTERM


class BeatMap:
    """The memory in which one rank beats. Anonymous where the kernel has memfd, so nothing is left of a killed run."""

    def __init__(self, folder: Path, rank: int) -> None:
        if LINUX:
            self._fd = os.memfd_create("rankrun-beat")
            self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        else:
            self.path = str(folder / f"beat-{rank:05d}")
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._fd, SIZE_BYTES)
        self._memory = mmap.mmap(self._fd, SIZE_BYTES)

    def read(self) -> Reading:
        """What the rank says now."""
        return Reading.of(self._memory[:])

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        os.close(self._fd)
        if not LINUX:
            os.unlink(self.path)


@dataclass
class Workers:
    """The ranks of one node over all attempts. Every wait in here also ends when a signal comes for the agent."""

    channel: Channel
    parent_pid: int
    signals: Signals
    strangers: frozenset[int] = frozenset()  # children of this process that it has not started
    waiter: Waiter = field(default_factory=Waiter)
    ready: bool = False  # the warm parent has imported what it shares
    exits: dict[int, Exit] = field(default_factory=dict)  # of this attempt, by local rank
    pids: dict[int, int] = field(default_factory=dict)  # of this attempt, by local rank
    unkillable: list[int] = field(default_factory=list)  # pids that outlived SIGKILL, another user's or in the kernel
    _wanted: list[int] = field(default_factory=list)
    _stopping: bool = False
    _stopped: bool = True

    def __post_init__(self) -> None:
        self.waiter.watch(self.channel)
        self.waiter.watch(self.signals)

    @property
    def running(self) -> list[int]:
        """Local ranks that were to start and have not ended."""
        return [local_rank for local_rank in self._wanted if local_rank not in self.exits]

    @property
    def parent_gone(self) -> bool:
        """Whether the warm parent is dead, and with it, by the kernel's hand, every rank."""
        return self.channel.closed

    def wait_until_ready(self) -> bool:
        """Whether ranks can be started now; False if a signal or the warm parent's end came first."""
        while not self.ready and not self.parent_gone and not self.interrupted:
            self.wait(1.0)
        return self.ready and not self.interrupted

    @property
    def interrupted(self) -> bool:
        """Whether a signal has come after which nothing new is begun."""
        return self.signals.told_to_leave is not None

    def start(self, starts: Iterable[RankStart]) -> dict[int, int]:
        """Start one attempt; returns pids by local rank, fewer where the warm parent ended meanwhile."""
        wanted = list(starts)
        self.exits, self.pids, self._wanted = {}, {}, [start.local_rank for start in wanted]
        self._stopping, self._stopped = False, False
        self.channel.send({"start": [asdict(start) for start in wanted]})
        while len(self.pids) < len(wanted) and not self.parent_gone:
            self.wait(1.0)
        return dict(self.pids)

    def wait(self, timeout_s: float) -> None:
        """Wait for news of a rank, the warm parent, a signal or whatever else `waiter` watches, at most `timeout_s`."""
        self.waiter.wait(timeout_s)
        self.signals.drain()
        for message in self.channel.receive():
            if "started" in message:
                self.pids[message["started"]] = message["pid"]
            elif "exited" in message:
                local_rank = message["exited"]
                self.exits[local_rank] = Exit(
                    local_rank, message["pid"], message["code"], message["ns"], self._stopping
                )
            elif "stopped" in message:
                self._stopped = True
                self.unkillable = message["left"]
            elif "ready" in message:
                self.ready = True
        if self.parent_gone:
            self.waiter.forget(self.channel)  # its end would wake us for ever

    def signal_ranks(self, number: int, *, only_if_heard: bool) -> None:
        """Send a signal to every rank, or to those that have a handler for it."""
        self.channel.send({"signal": int(number), "only_if_heard": only_if_heard})

    def notice(self, fallback: signal.Signals) -> None:
        """Pass a notice on: SIGUSR2 to a rank that listens for it, `fallback` to one that does not."""
        self.channel.send({"notice": int(fallback)})

    def stop(self, grace_s: float = TERM_TO_KILL_S) -> None:
        """SIGTERM to all ranks, SIGKILL to all their descendants after the grace; returns when none is left."""
        if self._stopped:
            return
        self._stopping = True
        self.channel.send({"stop": grace_s})
        deadline = time.monotonic() + grace_s + _PARENT_ANSWERS_S
        while not self._stopped and not self.parent_gone:
            self.wait(0.5)
            if time.monotonic() > deadline:
                # The warm parent itself is stopped or stuck; ranks die with it, `end` takes the rest.
                send([self.parent_pid], signal.SIGKILL)
        self._stopped = True

    def end(self) -> None:
        """Stop whatever runs, end the warm parent, and kill what either may have left behind."""
        self.stop()
        self.channel.close()
        if not self.ready:
            send([self.parent_pid], signal.SIGKILL)  # it is in the middle of an import, and nothing has started
        deadline = time.monotonic() + _PARENT_LEAVES_S
        while not _reaped(self.parent_pid) and time.monotonic() < deadline:
            time.sleep(0.002)  # waitpid has no time limit of its own
        self.unkillable = kill_family(_UNKILLABLE_S, self.strangers)
        self.waiter.close()


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True
