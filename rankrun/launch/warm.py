"""The warm parent: one process per node that has imported torch and forks every rank of every attempt from itself.

    agent ──channel──> warm parent ──fork──> rank 0, rank 1, …  ──> their loader workers and other children
      └ starts, notices, stops               └ each leads its own session and dies with the warm parent

It has one thread and never touches a device, so that a fork of it is a fresh interpreter with its imports done. It
is also the one that ends the family: it adopts orphans, and when told to stop, or when the agent is gone, it kills
descendants until none is left. Without warmth (`--start exec`) the same process starts ranks by exec.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import selectors
import signal
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from rankrun.launch.channel import Channel
from rankrun.launch.process import adopt_orphans, descendants, die_with_parent, kill_family, listens_for, send

_RESCAN_S = 0.05  # between two looks for descendants that survived or appeared
_UNKILLABLE_S = 5.0  # what is still there so long after SIGKILL is another user's, or stuck in the kernel
HELD = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}  # until a rank has settled, so that none is lost


@dataclass(frozen=True)
class RankStart:
    """What one rank needs to begin: its place, its environment (on top of the agent's) and where its output goes."""

    local_rank: int
    environment: dict[str, str]
    log_file: str
    keeps_stdin: bool
    holds_notices: bool  # SIGUSR2 stays pending from the fork until the program's handler stands
    error_log: str | None = None  # stderr's own file; None: both streams go to log_file
    stacks: str | None = None  # the file that faulthandler dumps into at STACKS_SIGNAL
    strips: bool = False  # --no-dist-env: takes the variables of torchrun and ours away
    tracer: int | None = None  # the process that may look into this one (py-spy, started by the agent)


@dataclass
class _Stopping:
    """A stop under way: SIGTERM was sent; SIGKILL follows at `kill_at`, and at `give_up_at` what is left is named.

    Up to `kill_at` those whom a rank left behind may end by themselves too: multiprocessing's resource tracker gives
    back the shared memory of a rank that was killed.
    """

    kill_at: float
    give_up_at: float


@dataclass
class WarmParent:
    """Serves one agent. `serve` returns None in the warm parent itself and a RankStart in each forked rank."""

    channel: Channel
    preload: tuple[str, ...] = ()
    _ranks: dict[int, int] = field(default_factory=dict)  # pid -> local rank
    _stopping: _Stopping | None = None

    def serve(self) -> RankStart | None:
        """Work until the agent closes the channel. No frame here holds anything that a rank would have to undo."""
        os.setsid()  # the terminal's signals are the agent's business
        adopt_orphans()
        for number in signal.valid_signals():  # what the agent handles; a rank takes all of it back in `settle`
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_IGN)
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)
        signal.set_wakeup_fd(self._wake_in.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        for module in self.preload:
            with contextlib.suppress(Exception):  # the rank that needs it meets the error where it stands
                importlib.import_module(module)
        gc.collect()
        gc.freeze()  # what is imported now stays shared between the ranks
        self.channel.send({"ready": True})
        selector = selectors.DefaultSelector()
        selector.register(self.channel, selectors.EVENT_READ)
        selector.register(self._wake_out, selectors.EVENT_READ)
        while not self.channel.closed:
            selector.select(self._patience())
            with contextlib.suppress(BlockingIOError):
                self._wake_out.recv(4096)
            for message in self.channel.receive():
                start = self._obey(message)
                if start is not None:
                    selector.close()
                    return start
            self._reap()
            self._go_on_stopping()
        kill_family(_UNKILLABLE_S)
        return None

    def _patience(self) -> float | None:
        return None if self._stopping is None else _RESCAN_S

    def _obey(self, message: dict[str, Any]) -> RankStart | None:
        if "start" in message:
            for fields in message["start"]:
                start = RankStart(**fields)
                pid = self._fork(start)
                if pid == 0:
                    return start
                self._ranks[pid] = start.local_rank
                self.channel.send({"started": start.local_rank, "pid": pid})
        elif "notice" in message:
            # A program that listens for SIGUSR2 saves and leaves; to another one the person's own signal is passed.
            for pid in self._ranks:
                listens = listens_for(pid, signal.SIGUSR2)
                send([pid], signal.SIGUSR2 if listens else message["notice"])
        elif "signal" in message:
            number = message["signal"]
            heard = [pid for pid in self._ranks if not message["only_if_heard"] or listens_for(pid, number)]
            send(heard, number)
            self.channel.send({"signalled": number, "local_ranks": [self._ranks[pid] for pid in heard]})
        elif "stop" in message:
            send(self._ranks, signal.SIGTERM)
            kill_at = time.monotonic() + message["stop"]
            self._stopping = _Stopping(kill_at, kill_at + _UNKILLABLE_S)
        return None

    def _fork(self, start: RankStart) -> int:
        parent = os.getpid()
        # Blocked before the fork, so that not even the first instruction of a rank can be hit; `run` lets them in.
        held = HELD | ({signal.SIGUSR2} if start.holds_notices else set())
        signal.pthread_sigmask(signal.SIG_BLOCK, held)
        pid = os.fork()
        if pid == 0:
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            self._wake_in.close()
            self._wake_out.close()
            self.channel.close()
        else:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
        return pid

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            local_rank = self._ranks.pop(pid, None)
            if local_rank is not None:
                self.channel.send(
                    {
                        "exited": local_rank,
                        "pid": pid,
                        "code": os.waitstatus_to_exitcode(status),
                        "ns": time.monotonic_ns(),
                    }
                )

    def _go_on_stopping(self) -> None:
        stopping, now = self._stopping, time.monotonic()
        if stopping is None:
            return
        left = descendants(os.getpid())
        if now >= stopping.kill_at:
            send(left, signal.SIGKILL)
        if (not left and not self._ranks) or now >= stopping.give_up_at:
            self._stopping = None
            self.channel.send({"stopped": True, "left": left})


def _ignore(*_: object) -> None:
    """A handler that only wakes the selector; SIG_IGN for SIGCHLD would lose the exit codes."""
