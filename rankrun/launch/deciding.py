"""What follows from an attempt's end: the verdict on all nodes' reports, a restart or an end, and with which code."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rankrun.errors import ExitCode
from rankrun.launch import stacks
from rankrun.launch.nodes.messages import Decision
from rankrun.launch.plan import RunPlan
from rankrun.launch.rank_end import RankEnd
from rankrun.launch.screen import Screen
from rankrun.launch.signals import CODE_OF
from rankrun.launch.verdict import Verdict, judge
from rankrun.launch.watch import Hang
from rankrun.runfolder import RunFolder, write_atomically

_NO_PROGRESS_FAILURES = 3


@dataclass(frozen=True)
class Case:
    """A failed attempt as it comes before the Bench.

    A report is what a node says of its ranks when they have ended: `ends` (RankEnd messages), `stacks` (Stack
    messages), `host`, `cooperating`, `started`, `parent_gone`, `oom`, and the time that its ages count from.
    """

    run: RunFolder
    attempt: int
    reports: Mapping[int, dict[str, Any]]  # by node, as the next two
    lost: Mapping[int, str]  # hosts that were gone
    silent: Mapping[int, str]  # hosts that did not report in time
    hang: Hang | None
    cause: signal.Signals | None  # because of which the ranks were to leave
    restarts: int  # so far
    node: int  # who judges

    @property
    def cooperating(self) -> bool:
        """Whether the ranks know of us, all of them."""
        return all(report.get("cooperating") is True for report in self.reports.values())

    @property
    def started(self) -> bool:
        """Whether a rank has come to its first step."""
        return any(report.get("started") is True for report in self.reports.values())


class Bench:
    """Node 0's seat of judgement over all attempts of a launch. Where node 0 is gone, another node sits for itself."""

    def __init__(self, plan: RunPlan, screen: Screen) -> None:
        self._plan = plan
        self._screen = screen
        self._checkpoint_at_failure: str | None = None
        self._failures_without_progress = 0

    def decide(self, case: Case) -> Decision:
        """Judge, say and keep the verdict, and decide for all nodes."""
        verdict = _judge(case)
        restart = (
            case.cause is None and self._could_end_otherwise(case, verdict) and case.restarts < self._plan.max_restarts
        )
        if case.cause is None or verdict.by_itself:
            for line in verdict.lines(self._screen.shows):
                self._screen.say(line)
        if restart:
            self._screen.say(f"restart {case.restarts + 1} of {self._plan.max_restarts}")
        self._keep(case, verdict)
        return Decision(restart, self._code_of_failure(case, verdict), verdict.what)

    def code_of_success(self, run: RunFolder, saved: bool, cause: signal.Signals | None) -> int:
        """The exit code when all ranks of all nodes have ended well; `saved`: one of them wants to go on."""
        if cause is not None and (saved or self._plan.settings is None):
            return CODE_OF[cause]
        if saved:
            return ExitCode.SAVED
        if self._plan.settings is not None and not run.final_file.exists():
            self._screen.say(f"all ranks left with 0, but train.py wrote no {run.final_file.name}: it did not finish")
            return ExitCode.FAILED
        return ExitCode.DONE

    def _could_end_otherwise(self, case: Case, verdict: Verdict) -> bool:
        if verdict.exit_code == ExitCode.BAD_INPUT:
            return False
        if verdict.parent_gone:
            return False  # that node can start no rank any more
        if not case.cooperating:
            return True
        if not case.started and verdict.is_exception:
            return False  # a mistake in config or code is the same mistake the second time
        return self._makes_progress(case.run, verdict)

    def _makes_progress(self, run: RunFolder, verdict: Verdict) -> bool:
        newest = _newest_checkpoint(run)
        same = newest == self._checkpoint_at_failure
        self._failures_without_progress = self._failures_without_progress + 1 if same else 1
        self._checkpoint_at_failure = newest
        if self._failures_without_progress < _NO_PROGRESS_FAILURES:
            return True
        verdict.exit_code = ExitCode.NO_PROGRESS
        verdict.advice = f"{_NO_PROGRESS_FAILURES} failures in a row without a new checkpoint; not tried again"
        return False

    def _keep(self, case: Case, verdict: Verdict) -> None:
        file = case.run.verdict_file(verdict.attempt)
        if case.node != 0 and file.exists():
            return  # node 0's, on a disk that both see
        try:
            write_atomically(file, json.dumps(verdict.as_dict(), indent=1) + "\n")
        except OSError as error:
            self._screen.say(f"verdict.json could not be written: {error.strerror}")

    def _code_of_failure(self, case: Case, verdict: Verdict) -> int:
        """75, 130 and 143 mean *saved*, so a rank that failed by itself while it was told to leave gives its own."""
        if case.cause is None or verdict.by_itself:
            return verdict.exit_code
        if self._plan.settings is not None:
            newest = _newest_checkpoint(case.run)
            where = f"it goes on from {newest}" if newest else "it begins anew"
            self._screen.say(f"stopped before it had saved; {where}")
        return CODE_OF[case.cause]


def _judge(case: Case) -> Verdict:
    reports = case.reports
    ends = [
        end
        for node, report in reports.items()
        for message in report["ends"]
        if (end := RankEnd.from_message(message, report.get("sent_ns", report["now_ns"]))) is not None
        and end.node == node  # a node speaks for its own ranks
    ]
    said = [stacks.Stack.from_message(one) for report in reports.values() for one in report["stacks"]]
    stood = {stack.rank: stack for stack in said if stack is not None}
    return judge(
        ends,
        attempt=case.attempt,
        cooperating=case.cooperating,
        notice=case.cause.name if case.cause is not None else None,
        parent_gone={node: str(one.get("host")) for node, one in reports.items() if one.get("parent_gone")},
        lost=case.lost,
        silent=case.silent,
        hang=stacks.narrow(case.hang, stood) if case.hang is not None else None,
        stood={rank: stack.where for rank, stack in stood.items()},
        oom={node: report.get("oom") for node, report in reports.items()},
    )


def _newest_checkpoint(run: RunFolder) -> str:
    return max((path.name for path in run.checkpoints.glob("step-????????")), default="")
