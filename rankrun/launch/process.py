"""What the kernel offers to keep a family of processes together: orphans come home, children die with their parent.

Linux has both as prctl options. Elsewhere (macOS) they are missing: what dies with the agent there is only what the
warm parent still finds as a descendant.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection, Iterable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_RESCAN_S = 0.005

LINUX = sys.platform == "linux"


def adopt_orphans() -> None:
    """Make this process the new parent of every descendant that loses its own, so that none can slip away."""
    if LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel SIGKILL this process when its parent ends; leaves at once if `parent_pid` is gone already."""
    if LINUX:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(128 + signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def descendants(pid: int) -> list[int]:
    """Process ids of all living descendants of `pid`; zombies are not counted, they hold nothing any more."""
    import psutil

    try:
        family = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = []
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def children() -> frozenset[int]:
    """Process ids of this process's own children."""
    import psutil

    return frozenset(child.pid for child in psutil.Process().children())


def send(pids: Iterable[int], number: int) -> None:
    """Send a signal to processes that may be gone by now, or another user's (a child that went through sudo)."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill_family(limit_s: float, strangers: Collection[int] = ()) -> list[int]:
    """SIGKILL all descendants of this process, those they leave behind too, until none is left; reaps its children.

    `strangers` and what descends from them are left alone: `sh -c 'monitor & exec launch.py …'` gives us children that
    we have not started. Returns the ones that outlived the limit: another user's, or stuck in the kernel.
    """
    deadline = time.monotonic() + limit_s
    while left := _family(strangers):
        send(left, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        if time.monotonic() > deadline:
            break
        time.sleep(_RESCAN_S)
    return left


def _family(strangers: Collection[int]) -> list[int]:
    spared = {*strangers, *(pid for stranger in strangers for pid in descendants(stranger))}
    return [pid for pid in descendants(os.getpid()) if pid not in spared]


def listens_for(pid: int, number: int) -> bool:
    """Whether `pid` has a handler for the signal, or holds it blocked until its handler stands.

    Sending SIGUSR2 to a program that does neither would kill it. Without /proc the answer is no.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    bit = 1 << (number - 1)
    return any(int(fields[name], 16) & bit for name in ("SigCgt", "SigBlk"))
