"""Who holds a run folder, and whether that process can still write to it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["Holder", "Life", "is_suspended", "life_of", "this_process"]

Life = Literal["alive", "dead", "unknown"]


@dataclass(frozen=True)
class Holder:
    """A process that holds a run folder. `started` is its start in clock ticks since boot; None where unknown.

    `namespace` is the one that its pid counts in: two containers of one machine share the boot id, not the pids.
    """

    token: str
    host: str
    boot_id: str
    namespace: str
    pid: int
    started: int | None
    job: str | None
    since: str

    def as_json(self) -> str:
        return json.dumps({"version": 1, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Holder | None:
        """The holder that `as_json` wrote, or None for anything else."""
        try:
            data: Any = json.loads(text)
            return cls(
                token=str(data["token"]),
                host=str(data["host"]),
                boot_id=str(data["boot_id"]),
                namespace=str(data["namespace"]),
                pid=int(data["pid"]),
                started=None if data["started"] is None else int(data["started"]),
                job=None if data["job"] is None else str(data["job"]),
                since=str(data["since"]),
            )
        except (ValueError, TypeError, KeyError):
            return None

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"host {self.host}, pid {self.pid}{job}, since {self.since}"


def this_process(token: str, since: str, env: Mapping[str, str], host: str | None = None) -> Holder:
    """This process as a holder."""
    pid = os.getpid()
    return Holder(
        token=token,
        host=host or socket.gethostname(),
        boot_id=_boot_id(),
        namespace=_namespace(),
        pid=pid,
        started=_start(pid),
        job=env.get("SLURM_JOB_ID"),
        since=since,
    )


def life_of(holder: Holder, me: Holder) -> Life:
    """Whether `holder` lives, as far as this machine's process table says; `unknown` when it can't say.

    A pid alone says little: it is reused, it means nothing on another machine or in another container, and a process
    that was killed but not waited for still has one.
    """
    if holder.boot_id and me.boot_id:
        same_table = holder.boot_id == me.boot_id and holder.namespace == me.namespace
    else:
        same_table = not holder.boot_id and not me.boot_id and holder.host == me.host
    if not same_table:
        return "unknown"
    if holder.pid <= 0:
        return "dead"  # to kill(), such numbers are groups of processes
    try:
        os.kill(holder.pid, 0)
    except (ProcessLookupError, OverflowError):
        return "dead"
    except PermissionError:
        pass  # it is there, and another user's
    started = _start(holder.pid)
    if started is None:
        # No /proc, or one that hides other users' processes: nothing tells this pid from a later process's.
        return "unknown"
    if started < 0 or (holder.started is not None and started != holder.started):
        return "dead"
    return "alive"


def is_suspended(holder: Holder) -> bool:
    """Whether a holder that is alive on this machine was stopped (SIGSTOP, Ctrl-Z) and not continued."""
    return _fields(holder.pid)[:1] == [b"T"]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start(pid: int) -> int | None:
    """Start of process `pid` in ticks since boot; -1 for one that is dead but not waited for; None when unknown."""
    fields = _fields(pid)
    try:
        return -1 if fields[0] in (b"Z", b"X", b"x") else int(fields[19])
    except (ValueError, IndexError):
        return None


def _fields(pid: int) -> list[bytes]:
    """What /proc/PID/stat says from the process's state on; empty without it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        # The program's name stands in brackets and may hold anything, brackets too; fields count from the last one.
        return text[text.rindex(b")") + 2 :].split()
    except (OSError, ValueError):
        return []
