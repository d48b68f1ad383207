"""The watch over hangs: told once a second how far every rank is, it says when none of them goes on any more.

Nothing in here asks a clock, a process or a file, so a test plays an hour of a run in a millisecond.

    rank 0  SAVE  at step 100, silent  70 s, 200 s allowed    (a save usually takes 40 s)
    rank 1  STEP  at step 100, silent  70 s,  30 s allowed    no hang: it may well wait for rank 0

    rank 0  STEP  at step 101, silent  31 s,  30 s allowed
    rank 1  STEP  at step 100, silent  32 s,  30 s allowed    a hang: rank 1 stands, rank 0 waits for it
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rankrun.beat import Phase, Reading

UNSEEN_S = 1800.0  # for what this attempt has not been through yet: start-up, a first step, a first save
LEAST_S = 30.0
TIMES_USUAL = 5.0
LEAVE_S = 60.0  # from DONE to the end of the process
_MOST_BETWEEN_LOOKS_S = 2.0


@dataclass(frozen=True)
class Hang:
    """No rank goes on any more. `suspects` stand furthest behind, `waiting` are the others that run; both in order.

    `silent_s` is how long every suspect has given no sign of life and `limit_s` how long it might have. `phase` and
    `step` are those of the suspects, None for programs that don't say.
    """

    suspects: tuple[int, ...]
    waiting: tuple[int, ...]
    silent_s: float
    limit_s: float
    phase: Phase | None
    step: int | None

    @property
    def how(self) -> str:
        """What is known of it, in words that follow the name of a rank."""
        return f"hung{self._place}: no sign of life for {self.silent_s:.0f} s, at most {self.limit_s:.0f} s are allowed"

    @property
    def _place(self) -> str:
        if self.phase is None:
            return ""
        return {
            Phase.START: " while it got ready",
            Phase.STEP: f" in the step after step {self.step}",
            Phase.EVALUATE: f" in the evaluation at step {self.step}",
            Phase.SAVE: f" while saving step {self.step}",
            Phase.DONE: " after it had said that it was done",
        }[self.phase]

    def as_message(self) -> dict[str, Any]:
        """Builtins for JSON; `from_message` gives the same Hang back."""
        return asdict(self) | {"phase": None if self.phase is None else int(self.phase)}

    @classmethod
    def from_message(cls, message: Any) -> Hang | None:
        """The Hang in a message of another node's agent; None for anything that is not one."""
        try:
            suspects, waiting = (tuple(sorted({_count(rank) for rank in message[key]})) for key in _RANKS)
            silent_s, limit_s = (float(message[key]) for key in ("silent_s", "limit_s"))
            phase = None if message["phase"] is None else Phase(_count(message["phase"]))
            step = None if message["step"] is None else _count(message["step"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        if (
            not suspects
            or not math.isfinite(silent_s)
            or not math.isfinite(limit_s)
            or (phase is None) != (step is None)
        ):
            return None
        return cls(suspects, waiting, silent_s, limit_s, phase, step)


_RANKS = ("suspects", "waiting")


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(value)
    return value


@dataclass
class _Rank:
    """What the watch knows of one rank."""

    reading: Reading
    since_s: float  # on the watch's own clock: when the reading last changed


class Watch:
    """The watch over one attempt's ranks on one node.

    With `limit_s` every phase may be silent for that long, and programs that never open their beat are watched too, by
    what they print: it is a hang if for so long no rank prints anything. Without it a phase may be silent for five
    times what is usual, at least 30 s; 30 min while that is not known. `cooperates` says that the program will open
    its beat, so that a rank which has not yet is one that gets ready.
    """

    def __init__(self, *, limit_s: float | None, cooperates: bool) -> None:
        self._given_s = limit_s
        self._cooperates = cooperates
        self._awake_s = 0.0  # a clock that runs only while somebody looks: a suspended laptop's ranks slept too
        self._looked_ns: int | None = None
        self._ranks: dict[int, _Rank] = {}
        self._outputs: dict[int, int] = {}
        self._printed_s = 0.0

    def look(self, readings: Mapping[int, Reading], outputs: Mapping[int, int], now_ns: int) -> Hang | None:
        """The hang, if there is one now, of the ranks that run; to be called about once a second.

        `readings` has every rank that runs, `outputs` the bytes that each has printed so far; both by global rank.
        It says so again at each look, until a rank goes on.
        """
        if self._looked_ns is not None:
            gap_s = (now_ns - self._looked_ns) / 1e9
            self._awake_s += min(max(gap_s, 0.0), _MOST_BETWEEN_LOOKS_S)
        self._looked_ns = now_ns
        if dict(outputs) != self._outputs:
            self._outputs, self._printed_s = dict(outputs), self._awake_s
        self._ranks = {rank: self._seen(rank, reading) for rank, reading in readings.items()}
        watched = {rank: seen for rank, seen in self._ranks.items() if seen.reading.opened or self._cooperates}
        return self._by_beats(watched) if watched else self._by_outputs()

    def excuse(self) -> None:
        """Begin to count anew: somebody has looked into the silence and found a reason, a person in a debugger."""
        for seen in self._ranks.values():
            seen.since_s = self._awake_s
        self._printed_s = self._awake_s

    def _seen(self, rank: int, reading: Reading) -> _Rank:
        known = self._ranks.get(rank)
        return known if known is not None and known.reading == reading else _Rank(reading, self._awake_s)

    def _by_beats(self, ranks: Mapping[int, _Rank]) -> Hang | None:
        """A rank at a higher step waits for those at the lowest one, so a hang is when all of these are overdue."""
        lowest = min(_progress(seen.reading) for seen in ranks.values())
        behind = {rank: seen for rank, seen in ranks.items() if _progress(seen.reading) == lowest}
        if any(self._awake_s - seen.since_s <= self._limit_s(seen.reading) for seen in behind.values()):
            return None
        # Phases have no fixed order, so the one with the oldest beat (one clock, on one node) comes first; then the
        # position.
        phase = min(behind.values(), key=lambda seen: seen.reading.monotonic_ns).reading.phase
        behind = {rank: seen for rank, seen in behind.items() if seen.reading.phase is phase}
        position = min(seen.reading.position for seen in behind.values())
        behind = {rank: seen for rank, seen in behind.items() if seen.reading.position == position}
        return Hang(
            suspects=tuple(sorted(behind)),
            waiting=tuple(sorted(ranks.keys() - behind.keys())),
            silent_s=min(self._awake_s - seen.since_s for seen in behind.values()),
            limit_s=min(self._limit_s(seen.reading) for seen in behind.values()),
            phase=phase,
            step=next(iter(behind.values())).reading.step,
        )

    def _by_outputs(self) -> Hang | None:
        silent_s = self._awake_s - self._printed_s
        if self._given_s is None or not self._ranks or silent_s <= self._given_s:
            return None
        return Hang(tuple(sorted(self._ranks)), (), silent_s, self._given_s, None, None)

    def _limit_s(self, reading: Reading) -> float:
        if self._given_s is not None:
            return self._given_s
        if reading.phase is Phase.DONE:
            return LEAVE_S
        if not reading.usual_s[reading.phase] > 0:  # whatever the others know: rank 0 is in its first save, they not
            return UNSEEN_S
        # The most of all ranks: those that wait for rank 0 in a save have never been long in one themselves.
        usual_s = max(seen.reading.usual_s[reading.phase] for seen in self._ranks.values())
        limit_s = max(LEAST_S, TIMES_USUAL * usual_s)
        # How long the run took to start says that an epoch may take as long to begin, but not five times that.
        return min(limit_s, UNSEEN_S) if reading.phase is Phase.START else limit_s


def merge(hangs: Mapping[int, Hang]) -> Hang:
    """One Hang for all nodes, when every node that has running ranks says that its own hang; by node rank.

    Clocks of hosts are not compared, durations of silence are.
    """
    facts = list(hangs.values())
    everybody = {rank for hang in facts for rank in (*hang.suspects, *hang.waiting)}
    lowest = min(_place(hang) for hang in facts)
    behind = [hang for hang in facts if _place(hang) == lowest]
    phase = max(behind, key=lambda hang: hang.silent_s).phase
    behind = [hang for hang in behind if hang.phase is phase]
    suspects = {rank for hang in behind for rank in hang.suspects}
    return Hang(
        suspects=tuple(sorted(suspects)),
        waiting=tuple(sorted(everybody - suspects)),
        silent_s=min(hang.silent_s for hang in behind),
        limit_s=max(hang.limit_s for hang in behind),
        phase=phase,
        step=behind[0].step,
    )


def _progress(reading: Reading) -> int:
    """What orders ranks: the step, and before all steps the start, in which the step is not known yet."""
    return -1 if reading.phase is Phase.START and reading.step <= 0 else reading.step


def _place(hang: Hang) -> int:
    if hang.step is None:
        return -1
    return -1 if hang.phase is Phase.START and hang.step <= 0 else hang.step


def ranks_in_words(ranks: Iterable[int]) -> str:
    """`rank 3`, `ranks 0-2, 4`: sorted ranks with runs of three and more drawn together."""
    numbers = sorted(set(ranks))
    parts: list[str] = []
    while numbers:
        run = 1
        while run < len(numbers) and numbers[run] == numbers[0] + run:
            run += 1
        if run > 2:
            parts.append(f"{numbers[0]}-{numbers[run - 1]}")
        else:
            run = 1
            parts.append(str(numbers[0]))
        numbers = numbers[run:]
    return f"{'rank' if len(parts) == 1 and '-' not in parts[0] else 'ranks'} {', '.join(parts)}"
