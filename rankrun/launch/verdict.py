"""One verdict for a failed attempt: which rank failed first by itself, where and how; the rest is its consequence."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankrun.errors import ExitCode
from rankrun.failure import PEER_GONE

_TAIL_BYTES = 4096
_TAIL_LINES = 20

# Codes with a meaning of ours, which a program that knows nothing of us can't mean.
_OURS = {
    ExitCode.BAD_INPUT, ExitCode.SAVED, ExitCode.NO_PROGRESS, ExitCode.HANG, ExitCode.INTERRUPTED, ExitCode.STOPPED,
}  # fmt: skip


@dataclass(frozen=True)
class RankEnd:
    """How one rank of the attempt ended. `code` is None for one that never started."""

    rank: int
    local_rank: int
    pid: int
    code: int | None
    ns: int  # monotonic, when it failed: its own word where it left one, else when the end was seen
    ordered: bool  # it ended as the launcher had told it to
    message: str | None  # the exception's last line, or a told error's lines
    traceback: str | None
    where: str | None  # file:line
    told: bool  # a mistake that the program put into words, and that this rank was the one to say
    told_code: int | None
    log: Path

    @classmethod
    def read(
        cls,
        *,
        rank: int,
        local_rank: int,
        pid: int,
        code: int | None,
        ns: int,
        ordered: bool,
        error_file: Path,
        log_file: Path,
    ) -> RankEnd:
        """The end of a rank from what the warm parent saw and what the rank itself left in its error file."""
        content = _read_error(error_file)
        message = content.get("message")
        text, stack = (message, None) if isinstance(message, str) else (None, None)
        if isinstance(message, dict):
            text = message.get("message")
            stack = (message.get("extraInfo") or {}).get("py_callstack")
        told_code = content.get("exit_code")
        return cls(
            rank=rank,
            local_rank=local_rank,
            pid=pid,
            code=code,
            ns=int(content.get("ns", ns)),
            ordered=ordered,
            message=str(text) if text is not None else None,
            traceback=str(stack) if stack is not None else None,
            where=content.get("where"),
            told=bool(content.get("told")) and content.get("told_by") in (None, rank),
            told_code=told_code if isinstance(told_code, int) else None,
            log=log_file,
        )

    @property
    def how(self) -> str:
        """The end in words."""
        if self.message is not None:
            return self.message.strip().partition("\n")[0] or "an exception without words"
        if self.code is None:
            return "never started"
        if self.code < 0:
            killed = _signal_name(-self.code)
            by = " (the kernel when memory ran out, or a person)" if self.code == -signal.SIGKILL else ""
            return f"killed by {killed}{by}"
        return f"left with exit code {self.code}"

    @property
    def is_consequence(self) -> bool:
        """Whether this end only says that somebody else is gone, or was ordered by us."""
        if self.ordered and (self.message is None or self.message.startswith("KeyboardInterrupt")):
            return True
        return self.message is not None and not self.told and PEER_GONE.search(self.message) is not None


@dataclass
class Verdict:
    """What `verdict.json` keeps and the person reads."""

    root: RankEnd
    ends: list[RankEnd]
    host: str
    attempt: int
    exit_code: int
    parent_gone: bool
    notice: str | None
    advice: str | None = None
    tail: list[str] = field(default_factory=list)

    @property
    def is_exception(self) -> bool:
        """Whether the root cause is an exception of the program, as against a signal or a silent exit code."""
        return self.root.message is not None and not self.root.is_consequence

    def lines(self, on_screen: Callable[[Path], bool]) -> list[str]:
        """The verdict for a terminal; what stands on the screen already is not said again."""
        if self.parent_gone:
            return ["the warm parent died, and all ranks with it"]
        root = self.root
        if root.told:
            told = [] if on_screen(root.log) else (root.message or "").splitlines()
            return told + self._closing()
        where = f" at {root.where}" if root.where else ""
        lines = [f"rank {root.rank} on {self.host} failed{where}: {root.how}"]
        if not on_screen(root.log):
            lines += [f"  {line}" for line in (root.traceback or "\n".join(self.tail)).splitlines()[-_TAIL_LINES:]]
        others = [str(end.rank) for end in self.ends if end is not root and (end.is_consequence or end.ordered)]
        if others:
            lines.append(f"stopped because of it: rank {', '.join(others)}")
        also = [end for end in self.ends if end is not root and not (end.is_consequence or end.ordered or not end.code)]
        for end in also[:3]:
            lines.append(f"rank {end.rank} failed too: {end.how}")
        lines.append(f"log of rank {root.rank}: {root.log}")
        return lines + self._closing()

    def _closing(self) -> list[str]:
        return [self.advice] if self.advice else []

    def as_dict(self) -> dict[str, Any]:
        """For verdict.json."""
        return {
            "version": 1,
            "attempt": self.attempt,
            "exit_code": int(self.exit_code),
            "rank": self.root.rank,
            "host": self.host,
            "how": self.root.how,
            "where": self.root.where,
            "traceback": self.root.traceback,
            "log": str(self.root.log),
            "log_tail": self.tail,
            "parent_gone": self.parent_gone,
            "notice": self.notice,
            "advice": self.advice,
            "ranks": [
                {"rank": end.rank, "code": end.code, "how": end.how, "ns": end.ns, "consequence": end.is_consequence}
                for end in self.ends
            ],
        }


def judge(
    ends: Sequence[RankEnd],
    *,
    host: str,
    attempt: int,
    cooperating: bool,
    parent_gone: bool,
    notice: str | None,
) -> Verdict:
    """The verdict on an attempt in which at least one rank did not end well.

    The root cause is the earliest end that is bad and no consequence; where there are only consequences, the earliest.
    """
    bad = [end for end in ends if end.code != 0] or list(ends)
    primary = [end for end in bad if not end.is_consequence]
    if any(end.told for end in primary):
        # All ranks raise what one has told, and leave with its code; it is the words of that one we want to hear.
        codes = {end.code for end in primary if end.told}
        primary = [end for end in primary if end.told or end.code not in codes]
    root = min(primary or bad, key=lambda end: end.ns)
    return Verdict(
        root=root,
        ends=list(ends),
        host=host,
        attempt=attempt,
        exit_code=_exit_code(root, cooperating),
        parent_gone=parent_gone,
        notice=notice,
        tail=_tail(root.log),
    )


def _exit_code(root: RankEnd, cooperating: bool) -> int:
    code = root.told_code if root.told and root.told_code is not None else root.code
    if code is None or code == 0:
        return ExitCode.FAILED
    if code < 0:
        return 128 - code
    return ExitCode.FAILED if code in _OURS and not cooperating else code


def _read_error(path: Path) -> dict[str, Any]:
    """A rank's error file; one that is missing, torn or strange says nothing."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(log: Path) -> list[str]:
    """The last lines of a log, as text whatever the bytes are."""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()[-_TAIL_LINES:]
    except OSError:
        return []
