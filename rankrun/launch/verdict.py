"""One verdict for a failed attempt, over all nodes: what failed first by itself, where and how; the rest followed."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rankrun.errors import ExitCode, printable
from rankrun.launch.causes import Cause, likely
from rankrun.launch.rank_end import RankEnd
from rankrun.launch.tracebacks import any_exception
from rankrun.launch.watch import Hang, ranks_in_words

__all__ = ["SETTLE_S", "RankEnd", "Verdict", "judge"]

SETTLE_S = 0.3  # from the first end to the order to stop: ranks that fail by themselves say so meanwhile

_TAIL_LINES = 20
_ALSO = 3
_FILE_AND_LINE = re.compile(r":\d+ in ")
_SEEN_LATER_NS = 1_000_000_000
_TOLD_LATER_NS = 5_000_000_000  # an end on another node: its age counts from when node 0 came to read the report
_NO_CAUSE = "During handling of the above exception, another exception occurred:"

# Codes with a meaning of ours, which a program that knows nothing of us can't mean.
_OURS = {
    ExitCode.BAD_INPUT, ExitCode.SAVED, ExitCode.NO_PROGRESS, ExitCode.HANG, ExitCode.INTERRUPTED, ExitCode.STOPPED,
}  # fmt: skip


@dataclass
class Verdict:
    """What `verdict.json` keeps and the person reads."""

    what: str  # the root cause in one line, with its host and place
    exit_code: int
    by_itself: bool  # something failed by itself, as against ranks that only followed an order or missed a peer
    root: RankEnd | None  # the rank that is the root cause; None for a lost node, a dead warm parent, a hang
    rank: int | None
    host: str | None
    where: str | None  # file:line
    ends: list[RankEnd]
    attempt: int
    consequences: frozenset[int]  # ranks whose ends only follow from something else
    silent: Mapping[int, str] = field(default_factory=dict)  # hosts by node, of which nothing was heard in time
    notice: str | None = None
    parent_gone: bool = False
    cause: Cause | None = None
    advice: str | None = None

    @property
    def is_exception(self) -> bool:
        """Whether the root cause is an exception of the program, as against a signal, a hang or a silent exit code."""
        root = self.root
        return self.by_itself and root is not None and root.message is not None and not root.early

    def lines(self, on_screen: Callable[[Path], bool]) -> list[str]:
        """The verdict for a terminal, printable; what stands on the screen already is not said again."""
        return [printable(line.expandtabs()) for line in self._lines(on_screen)]

    def _lines(self, on_screen: Callable[[Path], bool]) -> list[str]:
        root, closing = self.root, [self.advice] if self.advice else []
        if root is None:
            return [self.what, *self._others(), *closing]
        if root.told:
            return ([] if on_screen(root.log) else (root.message or "").splitlines()) + closing
        lines = [self.what]
        if not on_screen(root.log):
            last = root.traceback.splitlines() if root.traceback else root.tail
            lines += [f"  {line}" for line in last[-_TAIL_LINES:]]
        lines += self._others()
        if self.cause is not None:
            lines += [f"likely cause: {self.cause.what}", f"what to do: {self.cause.cure}"]
        where = f" on {root.host}" if len({end.host for end in self.ends}) > 1 else ""
        return [*lines, f"log of rank {root.rank}{where}: {root.log}", *closing]

    def _others(self) -> list[str]:
        """What became of the other ranks, in as few lines for a thousand as for two."""
        root, others = self.root, [end for end in self.ends if end.rank != self.rank and end.code is not None]
        followed = [end for end in others if end.rank in self.consequences or end.ordered]
        lines = [f"node {node} ({host}) did not say how its ranks ended" for node, host in sorted(self.silent.items())]
        if followed and not self.by_itself:
            # Who was still at work when the others gave up is the one to look at.
            working = [end for end in followed if end.obeyed]
            gave_up = [end.rank for end in followed if not end.obeyed]
            lines += [f"{ranks_in_words(gave_up)} gave up too"] if gave_up else []
            if working:
                on = ", ".join(sorted({end.host for end in working})[:_ALSO])
                lines.append(f"still running, and perhaps what they waited for: {_ranks(working)} on {on}")
        elif followed:
            lines.append(f"stopped because of it: {_ranks(followed)}")
        also = [end for end in others if end not in followed and end.code != 0]
        alike = [end for end in also if root is not None and end.how == root.how]
        lines += [f"the same on {_ranks(alike)}"] if alike else []
        rest = [end for end in also if end not in alike]
        lines += [f"rank {end.rank} on {end.host} failed too: {end.how}" for end in rest[:_ALSO]]
        return lines + ([f"and so did {_ranks(rest[_ALSO:])}"] if rest[_ALSO:] else [])

    def as_dict(self) -> dict[str, Any]:
        """For verdict.json."""
        root = self.root
        return {
            "version": 1,
            "attempt": self.attempt,
            "exit_code": int(self.exit_code),
            "line": self.what,
            "rank": self.rank,
            "host": self.host,
            "how": root.how if root is not None else self.what,
            "where": self.where,
            "traceback": root.traceback if root is not None else None,
            "log": str(root.log) if root is not None else None,
            "log_tail": root.tail[-_TAIL_LINES:] if root is not None else [],
            "cause": {"what": self.cause.what, "cure": self.cause.cure} if self.cause is not None else None,
            "by_itself": self.by_itself,
            "parent_gone": self.parent_gone,
            "notice": self.notice,
            "advice": self.advice,
            "silent": dict(self.silent),
            "ranks": [
                {
                    "rank": end.rank,
                    "host": end.host,
                    "code": end.code,
                    "how": end.how,
                    "where": end.where,
                    "ns": end.ns,
                    "consequence": end.rank in self.consequences,
                }
                for end in self.ends
            ],
        }


def judge(
    ends: Sequence[RankEnd],
    *,
    attempt: int,
    cooperating: bool,
    notice: str | None = None,
    parent_gone: Mapping[int, str] | None = None,
    lost: Mapping[int, str] | None = None,
    silent: Mapping[int, str] | None = None,
    hang: Hang | None = None,
    stood: Mapping[int, str] | None = None,
    oom: Mapping[int, object] | None = None,
) -> Verdict:
    """The verdict on an attempt in which at least one rank, node or warm parent did not end well.

    `parent_gone`, `lost` and `silent` name, by node, the hosts whose warm parent died, which were gone, or which did
    not report in time after a failure; `stood` says, by rank, at which line a rank of a hang was; `oom` holds, by node,
    what `OomKiller.killed_since` said there.

    The root cause is a hang, else a lost node, else a dead warm parent, else the earliest end that is bad and no
    consequence, one that nobody had ordered before one that was, one that is surely none before a doubtful one; else a
    silent node; where there are only consequences, the earliest.
    """
    ends = sorted(ends, key=lambda end: end.rank)
    silent = silent or {}
    alone = len(ends) == 1 and not (lost or silent or parent_gone)  # who has no peers can't miss one
    consequences = frozenset(end.rank for end in ends if end.obeyed or (end.misses_a_peer and not alone))
    root, by_itself = _first(ends, consequences, cooperating)
    # A node or a warm parent that goes takes its ranks along before they can speak: what one of them said came first.
    spoke = root.node if root is not None and by_itself and root.code is not None else None
    lost = lost if lost and spoke not in lost else {}
    parents = parent_gone if parent_gone and spoke not in parent_gone and not lost else {}
    if silent and not (by_itself or lost or parents or hang is not None):
        lost, silent = silent, {}
    verdict = Verdict("", ExitCode.FAILED, True, None, None, None, None, ends, attempt, consequences, silent, notice)
    if hang is not None:
        suspect = next((end for end in ends if end.rank in hang.suspects), None)
        verdict.rank, verdict.host = hang.suspects[0], suspect.host if suspect is not None else None
        place = (stood or {}).get(hang.suspects[0], "")
        verdict.where = place if _FILE_AND_LINE.search(place) else None
        verdict.what, verdict.exit_code = _hang_in_words(hang, ends, stood or {}), ExitCode.HANG
    elif lost:
        verdict.host = lost[min(lost)]
        verdict.what = f"{_nodes(lost)} can't be reached any more: its launcher or the machine died, or the network did"
    elif parents:
        verdict.host, verdict.parent_gone = parents[min(parents)], True
        verdict.what = f"the warm parent on {' and '.join(sorted(set(parents.values())))} died, and its ranks with it"
    elif root is None:
        verdict.what, verdict.by_itself = "no rank has said how it ended", False
    else:
        killer = oom.get(root.node) if oom is not None else None
        verdict.root, verdict.rank, verdict.host, verdict.where = root, root.rank, root.host, root.where
        verdict.by_itself = by_itself
        verdict.exit_code = _exit_code(root, cooperating)
        verdict.what = _in_words(root, by_itself, killer, asked=oom is not None and root.node in oom)
        if root.message is None and not root.obeyed and (older := any_exception(root.tail)) is not None:
            at = f" at {older.where}" if older.where else ""
            verdict.advice = f"the last traceback in its log was {older.error}{at}"
        if not (root.told or root.early or root.obeyed):
            verdict.cause = likely(
                _text(root), code=root.code, by_itself=by_itself, ours=cooperating, oom=isinstance(killer, str)
            )
    verdict.what = printable(verdict.what.expandtabs())
    return verdict


def _first(ends: Sequence[RankEnd], consequences: frozenset[int], cooperating: bool) -> tuple[RankEnd | None, bool]:
    """The end that came first of those that count most, and whether that rank failed by itself."""
    fine = {0, ExitCode.SAVED} if cooperating else {0}
    bad = [end for end in ends if end.code not in fine or end.early]
    freely = min((end.ns for end in bad if not end.ordered), default=None)

    def is_ordered(end: RankEnd) -> bool:
        """Whether the order came before this end's own words: who is slow to die may have said first why."""
        return end.ordered and freely is not None and end.ns >= freely + SETTLE_S * 1e9

    primary = [end for end in bad if end.rank not in consequences and not is_ordered(end)]
    if any(end.told for end in primary):
        # All ranks raise what one has told, and leave with its code; it is the words of that one we want to hear.
        codes = {end.code for end in primary if end.told}
        primary = [end for end in primary if end.told or end.code not in codes]
    # One that never started, or was not seen to end, tells less than one that was.
    order = sorted(primary or bad or ends, key=lambda end: (end.code is None, end.ordered, end.is_doubtful, end.ns))
    if primary or not order:
        return (order[0] if order else None), bool(primary)
    first = min(order, key=lambda end: (end.ordered, end.obeyed, end.ns))
    # Nobody failed but for missing another one, and somebody had left: by itself that is no failure of a program that
    # knows nothing of us, but here it is what the others missed. Its end is seen a little after they notice it.
    left = [end for end in ends if end.code == 0 and not end.ordered and end.ns <= first.ns + _later_ns(end, first)]
    if left and bad and not first.ordered:
        early = min(left, key=lambda end: end.ns)
        return replace(early, early=True, message="left with exit code 0 while other ranks still needed it"), True
    return first, False


def _later_ns(end: RankEnd, first: RankEnd) -> int:
    return _SEEN_LATER_NS if end.node == first.node else _TOLD_LATER_NS


def _in_words(root: RankEnd, by_itself: bool, killer: object, *, asked: bool) -> str:
    where, how = f" at {root.where}" if root.where else "", root.how
    if root.code == -signal.SIGKILL and root.message is None:
        if isinstance(killer, str):
            who = printable(killer[:200])
        elif asked:
            who = "by a person or a program: the kernel counted no kill for want of memory"
        else:
            who = "by the kernel when memory ran out, or by a person"
        how += f" ({who})"
    if by_itself:
        return f"rank {root.rank} on {root.host} failed{where}: {how}"
    return f"no rank failed by itself; the first to give up was rank {root.rank} on {root.host}{where}: {how}"


def _hang_in_words(hang: Hang, ends: Sequence[RankEnd], stood: Mapping[int, str]) -> str:
    hosts = sorted({end.host for end in ends if end.rank in hang.suspects})
    on = f" on {', '.join(hosts[:_ALSO])}" if hosts else ""
    places = sorted({stood[rank] for rank in hang.suspects if rank in stood})
    lines = [place for place in places if _FILE_AND_LINE.search(place)]
    at = f" at {' and '.join(lines[:_ALSO])}" if lines else ""
    facts = [place for place in places if place not in lines]  # why there is no stack
    waiting = f"; {ranks_in_words(hang.waiting)} waited for it" if hang.waiting else ""
    return f"{ranks_in_words(hang.suspects)}{on}{at} {hang.how}{''.join(f'; {fact}' for fact in facts[:1])}{waiting}"


def _nodes(hosts: Mapping[int, str]) -> str:
    return " and ".join(f"node {node} ({host})" for node, host in sorted(hosts.items()))


def _ranks(ends: Sequence[RankEnd]) -> str:
    return ranks_in_words(end.rank for end in ends)


def _text(root: RankEnd) -> str:
    """What a cause may be read from: the error's own words; the log only of a rank that left no error."""
    if root.message is not None:
        # What an error was raised *from* explains it; what was being handled when it came up need not.
        return f"{root.message}\n{(root.traceback or '').rpartition(_NO_CAUSE)[2]}"
    return "\n".join(root.tail)


def _exit_code(root: RankEnd, cooperating: bool) -> int:
    code = root.told_code if root.told and root.told_code is not None else root.code
    if code is None or code == 0:
        return ExitCode.FAILED
    if code < 0:
        return 128 - code
    return ExitCode.FAILED if code in _OURS and not cooperating else code
