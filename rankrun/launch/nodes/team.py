"""The other nodes of a launch as one agent sees them; this one is for a launch on a single machine."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rankrun.launch.nodes.messages import Decision, Hello, Meeting
from rankrun.launch.nodes.wire import Wire
from rankrun.launch.signals import NOTICES
from rankrun.launch.waiting import Waiter

BEAT_S = 1.0
SILENT_S = 10.0  # a dead process closes its connection at once; this is for cut links and machines without power
ANSWER_S = 9.0  # beyond the grace of a stop: what a node needs to kill what it can and to say how it ended
_AWAKE_NS = 3_000_000_000

Begin = Callable[[], tuple[int, str, int]]  # a new attempt: its number, the address and the port of its store
# From all reports by node, the nodes that were gone, and those that did not report in time (node -> host).
Judge = Callable[[Mapping[int, dict[str, Any]], Mapping[int, str], Mapping[int, str]], Decision]


class Abandoned(Exception):
    """A signal came while nodes were waited for; nothing of this attempt has started."""


class Refused(Exception):
    """Node 0 does not want this node, and says why."""


class Team:
    """One machine alone: everybody is always there, and agrees."""

    node = 0
    nnodes = 1
    here = ""  # this node's address towards the others
    run_name: str | None = None  # of the run folder, where another node has named it

    def __init__(self, nproc: int, host: str) -> None:
        self.nproc = nproc
        self.host = host
        self.restarts = 0

    def meet(self, begin: Begin) -> Meeting:
        """Wait until all nodes are here, begin an attempt (on node 0), and tell what all know of it.

        Abandoned when a signal comes first; Refused or SetupError when it can't be.
        """
        attempt, address, port = begin()
        return Meeting(0, (self.nproc,), (self.host,), attempt, self.restarts, address, port)

    def failed(self) -> bool:
        """Whether another node has failed or is gone, so that this one has to stop as well."""
        return False

    @property
    def wants_stacks(self) -> bool:
        """Whether another node hangs, so that this one's stacks are wanted before it stops."""
        return False

    def announce(self, *, hangs: bool = False) -> None:
        """Say at once that ranks of this node have failed (or hang), before they are stopped."""

    def tell(self, number: signal.Signals) -> None:
        """Pass a signal that this agent got on to all others."""

    def told(self) -> list[signal.Signals]:
        """Signals that other agents got, since the last call."""
        return []

    def all_hang(self, own: dict[str, Any] | None, *, runs: bool) -> dict[int, Any] | None:
        """The hangs of all nodes by node, on node 0, once every node whose ranks still run has one; None before.

        A single node can't tell: its ranks may be silent because another node's rank 0 saves for minutes.
        """
        return {0: own} if own is not None else None

    def conclude(self, report: dict[str, Any], judge: Judge) -> Decision:
        """After a failure, with this node's ranks stopped: what all nodes do now. Node 0 judges."""
        decision = judge({0: report}, {}, {})
        self.restarts += decision.restart
        return decision

    def finish(self, saved: bool, code_of: Callable[[bool], int]) -> int | None:
        """Once this node's ranks have ended well: the exit code of all nodes, None as long as others go on.

        `code_of` is asked on node 0, with whether any rank has saved and left.
        """
        return code_of(saved)

    def leave(self, code: int) -> None:
        """The end: say goodbye to whoever is still there, and close everything. A second call does nothing."""


@dataclass(frozen=True)
class Surroundings:
    """What a node that meets others has around it. `wait` waits for anything that `waiter` watches."""

    place: str  # what people know node 0's address by
    join_timeout_s: float
    stop_grace_s: float
    waiter: Waiter
    wait: Callable[[float], None]
    interrupted: Callable[[], bool]  # a signal has come after which nothing new is begun
    say: Callable[[str], None]
    signals: frozenset[signal.Signals] = frozenset()  # handled besides the usual ones; a peer passes on no others


class Connected(Team, ABC):
    """What head and members share: signals, and beats from a thread, so that a busy agent is not taken for dead."""

    def __init__(self, hello: Hello, around: Surroundings) -> None:
        super().__init__(hello.nproc, hello.host)
        self.nnodes = hello.nnodes
        self._hello = hello
        self._around = around
        # SIGUSR1 is for a node's own ranks.
        self._passed_on = {*NOTICES, signal.SIGQUIT, *around.signals} - {signal.SIGUSR1}
        self._heard: list[signal.Signals] = []
        self._looked_ns = time.monotonic_ns()
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="beat", daemon=True)
        self._beating.start()

    def told(self) -> list[signal.Signals]:
        """Signals that other agents got, since the last call."""
        heard, self._heard = self._heard, []
        return heard

    def _hear(self, name: object) -> signal.Signals | None:
        """Take note of a signal that another agent got; None if it is none that agents pass on."""
        for number in self._passed_on:
            if number.name == name:
                self._heard.append(number)
                return number
        return None

    @abstractmethod
    def _wires(self) -> list[Wire]:
        """Every connection that beats go out on."""

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            for wire in self._wires():
                wire.send({"beat": 1, "now_ns": time.monotonic_ns()})

    def _awake(self) -> None:
        """Forgive all peers their silence while this process itself was stopped or suspended."""
        now = time.monotonic_ns()
        asleep = now - self._looked_ns
        if asleep > _AWAKE_NS:
            for wire in self._wires():
                wire.heard_ns += asleep
        self._looked_ns = now

    @staticmethod
    def _gone(wire: Wire) -> bool:
        return wire.closed or time.monotonic_ns() - wire.heard_ns > SILENT_S * 1e9

    def leave(self, code: int) -> None:
        """End the beats."""
        self._ended.set()
        with contextlib.suppress(RuntimeError):  # joined by itself
            self._beating.join(BEAT_S)
