"""What an agent sees of its ranks during one attempt: how far they are, which have failed, whether they hang, and where
they stand then."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from rankrun.beat import Phase, Reading
from rankrun.errors import ExitCode
from rankrun.launch import stacks
from rankrun.launch.attempt import Attempt
from rankrun.launch.launching import Launch
from rankrun.launch.nodes.team import Team
from rankrun.launch.watch import Hang, Watch, merge
from rankrun.launch.workers import Exit

_STATUS = {
    Phase.START: "starting",
    Phase.STEP: "running train",
    Phase.EVALUATE: "running evaluation after",
    Phase.SAVE: "saving",
    Phase.DONE: "running end of",
}


class Observer:
    """Looks at the ranks that this node has in `attempt`."""

    def __init__(self, launch: Launch, team: Team, attempt: Attempt) -> None:
        self.hang: Hang | None = None  # of all nodes, on node 0
        self._plan = launch.plan
        self._workers = launch.workers
        self._screen = launch.screen
        self._team = team
        self._attempt = attempt
        self._watch = Watch(limit_s=launch.plan.hang_timeout_s, cooperates=launch.plan.settings is not None)
        self._looked_into = False  # the hang that this node's watch reports

    # how they are ------------------------------------------------------------------------------------------------

    def reading(self, local_rank: int) -> Reading | None:
        """What the rank says of itself; None for one whose memory has been given back."""
        beat = self._attempt.beats.get(local_rank)
        return beat.read() if beat is not None else None

    def cooperates(self, local_rank: int) -> bool:
        """Whether this rank knows of us: a config's train.py, or any program that has opened its beat."""
        reading = self.reading(local_rank)
        return self._plan.settings is not None or (reading is not None and reading.opened)

    def left_early(self, end: Exit) -> bool:
        """Whether a rank that cooperates left with 0 and without the word that its program is done."""
        reading = self.reading(end.local_rank)
        return end.code == 0 and reading is not None and reading.opened and reading.phase != Phase.DONE

    def failures(self) -> list[Exit]:
        """Ranks that ended badly by themselves. 75 is no failure of a program that cooperates."""
        return [end for end in self._workers.exits.values() if self._is_bad(end)]

    def _is_bad(self, end: Exit) -> bool:
        if not self.cooperates(end.local_rank):
            return end.code != 0
        return end.code not in (0, ExitCode.SAVED) or self.left_early(end)

    def status(self) -> str:
        """What `status` and `list` show of this launch."""
        readings = [reading for one in self._workers.running if (reading := self.reading(one)) is not None]
        opened = [reading for reading in readings if reading.opened]
        if not opened:
            return "running" if self._plan.settings is None and self._workers.pids else "starting"
        last = min(opened, key=lambda reading: reading.step)
        # A run that has started says START once more at the beginning of every epoch.
        word = "running train" if last.started and last.phase == Phase.START else _STATUS[last.phase]
        return f"{word} step {last.step}"

    # whether they hang -------------------------------------------------------------------------------------------

    def look_for_hang(self) -> None:
        """Ask the watch, and all nodes' together; `hang` says what they found."""
        attempt, readings, outputs = self._attempt, {}, {}
        for local_rank in self._workers.running:
            rank = attempt.rank(local_rank)
            if (reading := self.reading(local_rank)) is not None:
                readings[rank] = reading
            outputs[rank] = _size(attempt.log_file(local_rank)) + _size(attempt.error_log(local_rank))
        own = self._watch.look(readings, outputs, time.monotonic_ns())
        if own is not None and not self._looked_into and stacks.attended(*self._stacks()):
            self._watch.excuse()
            own = None
        self._looked_into = own is not None
        said = self._team.all_hang(own.as_message() if own is not None else None, runs=bool(readings))
        hangs = {node: hang for node, one in (said or {}).items() if (hang := Hang.from_message(one)) is not None}
        self.hang = merge(hangs) if hangs else None

    def gather_stacks(self) -> dict[int, stacks.Stack]:
        """Write what all ranks of this node are doing into the run folder; by global rank."""
        if self._workers.parent_gone:
            return {}
        attempt = self._attempt
        pids, files, ask = self._stacks()
        locals_ = {attempt.rank(one): one for one in self._workers.running}
        logs = {rank: attempt.error_log(locals_[rank]) or attempt.log_file(locals_[rank]) for rank in pids}
        folder = attempt.run.stacks(attempt.number)
        found = stacks.gather(pids, files, ask, folder, logs=logs)
        if found:
            self._screen.say(f"stacks of all ranks: {folder}")
        return found

    def _stacks(self) -> tuple[dict[int, int], dict[int, stacks.StacksFile], Callable[[], None]]:
        attempt = self._attempt
        running = {attempt.rank(one): one for one in self._workers.running if one in self._workers.pids}
        return (
            {rank: self._workers.pids[local_rank] for rank, local_rank in running.items()},
            {rank: attempt.stacks[local_rank] for rank, local_rank in running.items()},
            lambda: self._workers.signal_ranks(stacks.STACKS_SIGNAL, only_if_heard=True),
        )


def _size(path: os.PathLike[str] | None) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size if path is not None else 0
    return 0
