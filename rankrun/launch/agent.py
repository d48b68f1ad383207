"""The agent: torch elastic's loop over our processes and our rendezvous, one agent per node.

elastic decides when to start, restart and end; what is here tells it how the ranks are and does what it decides. What
several nodes have to agree on goes through the team: on a single machine it agrees with itself at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]  # re-exported by a star
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    Worker,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)

from rankrun.beat import Phase, Reading
from rankrun.errors import ExitCode, MachineError, SaveError
from rankrun.launch import stacks
from rankrun.launch.attempt import Attempt
from rankrun.launch.deciding import Bench
from rankrun.launch.keeper import Keeper
from rankrun.launch.meeting import TeamRendezvous
from rankrun.launch.nodes.member import Dismissed
from rankrun.launch.nodes.messages import Decision
from rankrun.launch.nodes.place import Place, gloo_interface
from rankrun.launch.nodes.team import Abandoned, Refused, Team
from rankrun.launch.oom import OomKiller
from rankrun.launch.plan import RunPlan
from rankrun.launch.rank_end import RankEnd
from rankrun.launch.screen import Screen
from rankrun.launch.signals import CODE_OF
from rankrun.launch.watch import Hang, Watch, merge
from rankrun.launch.workers import Exit, Workers
from rankrun.runfolder import Claim, RunFolder

_TICK_S = 1.0  # deadlines and the watch; ends of ranks, signals and other nodes wake the agent at once
_SETTLE_S = 0.3  # after a first failure, for ranks that fail by themselves to say so before they are stopped


class Agent(SimpleElasticAgent):
    """Runs a plan's ranks on this node until they are done, have failed for good, or have been told to leave."""

    def __init__(
        self,
        plan: RunPlan,
        run: RunFolder,
        claim: Claim | None,
        workers: Workers,
        screen: Screen,
        team: Team,
        place: Place | None,
        keeper: Keeper | None,
    ) -> None:
        """`claim` and `keeper` are node 0's: one node holds the run folder for all."""
        self._meeting_place = TeamRendezvous(
            plan.run_id, team, place, self._next_attempt, port=plan.store_port, timeout_s=plan.read_timeout_s
        )
        spec = WorkerSpec(
            role=plan.role,
            local_world_size=plan.nproc,
            rdzv_handler=self._meeting_place,
            entrypoint=plan.target.path,
            max_restarts=plan.max_restarts,
            monitor_interval=1e-3,  # elastic sleeps this long before it asks; our answer waits for events
        )
        super().__init__(spec)
        self._plan = plan
        self._run = run
        self._claim = claim
        self._workers = workers
        self._screen = screen
        self._team = team
        self._keeper = keeper
        self._bench = Bench(plan, screen)
        self._attempt: Attempt | None = None
        self._watch = self._new_watch()
        self._oom = OomKiller()
        self._hang: Hang | None = None  # of all nodes, on node 0
        self._first_attempt = self._first_start = True
        self._heeded = 0  # signals acted on
        self._cause: signal.Signals | None = None  # of the notice
        self._grace_ends = 0.0
        self._code: int = ExitCode.FAILED

    def launch(self) -> int:
        """Run to the end; returns the launcher's exit code, the same on all nodes."""
        try:
            self.run()
        except Abandoned:
            if self._keeper is not None and self._keeper.error is not None:
                self._code = self._keeper.error.exit_code
                raise self._keeper.error from None
            number = self._workers.signals.told_to_leave
            self._screen.say(f"{number.name if number else 'stop'}: the ranks were not started")
            self._code = CODE_OF[number or signal.SIGTERM]
        except Dismissed as end:
            self._screen.say(str(end) or f"node 0 has ended the run (exit code {end.code})")
            self._code = end.code
        except Refused as refusal:
            self._screen.say(f"node 0 refuses this node: {refusal}")
            self._code = ExitCode.BAD_INPUT
        except Exception as error:
            self._code = int(getattr(error, "exit_code", ExitCode.FAILED))
            raise
        finally:
            self._workers.end()
            self._team.leave(self._code)
        return self._code

    # elastic's interface -----------------------------------------------------------------------------------------

    def _assign_worker_ranks(
        self, store: Store, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Worker]:
        """The agents have agreed on all of it already; elastic would ask a store, and wait there for dead nodes."""
        meeting = self._meeting_place.meeting
        assert meeting is not None
        return [
            Worker(
                local_rank=local_rank,
                global_rank=meeting.first_rank + local_rank,
                role_rank=meeting.first_rank + local_rank,
                world_size=meeting.world_size,
                role_world_size=meeting.world_size,
            )
            for local_rank in range(spec.local_world_size)
        ]

    def _exit_barrier(self) -> None:
        """Nothing: `Team.finish` has waited for all nodes, and heard of failures while it did."""

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        meeting = self._meeting_place.meeting
        assert meeting is not None
        if self._team.run_name is not None:  # node 0 has named the folder
            self._run = RunFolder(self._plan.runs / self._team.run_name)
        self._attempt = Attempt(self._plan, meeting, self._run, os.environ, self._network())
        try:
            starts = self._attempt.prepare()
        except OSError as error:
            kind = MachineError if error.errno in (errno.EMFILE, errno.ENFILE) else SaveError
            raise kind(f"an attempt of {self._plan.nproc} ranks can't be begun: {error}") from error
        for local_rank in range(self._plan.nproc):
            self._show(local_rank)
        self._watch, self._hang = self._new_watch(), None
        self._looked_into = False
        self._oom = OomKiller()
        self._say_status()
        return self._workers.start(starts)

    def _network(self) -> dict[str, str]:
        """What gloo has to be told where this machine's own name leads to loopback."""
        interface = gloo_interface(self._team.here, os.environ)
        if interface is None:
            return {}
        if self._first_start:
            self._screen.say(f"GLOO_SOCKET_IFNAME={interface}: this machine's name leads to no address for others")
        self._first_start = False
        return {"GLOO_SOCKET_IFNAME": interface}

    def _new_watch(self) -> Watch:
        return Watch(limit_s=self._plan.hang_timeout_s, cooperates=self._plan.settings is not None)

    def _show(self, local_rank: int) -> None:
        attempt, terminal = self._attempt, self._plan.terminal
        assert attempt is not None
        rank = attempt.rank(local_rank)
        shown = terminal.shown(rank, local_rank)
        if shown == "none":
            return
        log = attempt.error_log(local_rank) if shown == "stderr" else attempt.log_file(local_rank)
        prefix = terminal.prefix(self._plan.role, rank, local_rank, self._team.host)
        to_stderr = shown == "stderr"
        self._screen.show(log or attempt.log_file(local_rank), prefix, key=local_rank, to_stderr=to_stderr)

    def _next_attempt(self) -> int:
        """On node 0. The claim has begun the first one."""
        assert self._claim is not None
        first, self._first_attempt = self._first_attempt, False
        try:
            return self._claim.attempt if first else self._claim.next_attempt()
        except OSError as error:
            raise SaveError(f"an attempt can't be begun: {error}") from error

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._workers.wait(_TICK_S)
        self._heed()
        if self._cause is not None and time.monotonic() >= self._grace_ends:
            self._workers.stop(self._plan.stop_grace_s)
        self._look_for_hang()
        if self._workers.parent_gone or self._failures() or self._hang is not None:
            self._team.announce(hangs=self._hang is not None)
            return self._failed()
        if self._team.failed():
            return self._failed()
        self._say_status()
        if self._workers.running:
            return RunResult(WorkerState.HEALTHY)
        saved = any(end.code == ExitCode.SAVED for end in self._workers.exits.values())
        code = self._team.finish(
            saved, lambda any_saved: self._bench.code_of_success(self._run, any_saved, self._cause)
        )
        if code is None:
            return RunResult(WorkerState.HEALTHY)
        self._code = code
        return RunResult(WorkerState.SUCCEEDED, {worker.global_rank: None for worker in worker_group.workers})

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        self._workers.stop(self._plan.stop_grace_s)
        if self._attempt is not None:
            self._attempt.close()

    # being told to leave -----------------------------------------------------------------------------------------

    def _heed(self) -> None:
        """The first signal is a notice: save and leave. A second SIGINT, or any other one after it, is an order."""
        if self._keeper is not None and self._keeper.error is not None:
            raise self._keeper.error
        for number in self._workers.signals.seen[self._heeded :]:
            self._heeded += 1
            if number == signal.SIGUSR1:
                self._workers.signal_ranks(number, only_if_heard=True)
                self._screen.say("SIGUSR1: passed on to the ranks that listen for it")
            else:
                self._team.tell(number)
                self._leave_for(number, _SIGNAL.get(number, number.name))
        for number in self._team.told():
            self._leave_for(number, f"{number.name} on another node")
        if self._keeper is not None and self._keeper.stop_wanted and self._cause is None:
            self._team.tell(signal.SIGTERM)
            self._leave_for(signal.SIGTERM, "stop")

    def _leave_for(self, number: signal.Signals, words: str) -> None:
        if number == signal.SIGQUIT:
            self._screen.say(f"{words}: stacks of all ranks, then the end")
            self._gather_stacks()
            self._cause, self._grace_ends = number, 0.0
        elif self._cause is None:
            self._cause = number
            self._grace_ends = time.monotonic() + self._plan.grace_s
            self._workers.notice(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
            ours = self._plan.settings is not None
            what = "saving and leaving" if ours else "passed on to the ranks, which may leave"
            more = "; once more leaves now" if number == signal.SIGINT else ""
            self._screen.say(f"{words}: {what} within {self._plan.grace_s:g} s{more}")
        elif number != signal.SIGUSR2:
            self._screen.say(f"{words} again: stopping now")
            self._grace_ends = 0.0

    # how the ranks are -------------------------------------------------------------------------------------------

    def _failures(self) -> list[Exit]:
        """Ranks that ended badly by themselves. 75 is no failure of a program that cooperates."""
        return [end for end in self._workers.exits.values() if self._is_bad(end)]

    def _is_bad(self, end: Exit) -> bool:
        if not self._cooperates(end.local_rank):
            return end.code != 0
        return end.code not in (0, ExitCode.SAVED) or self._left_early(end)

    def _left_early(self, end: Exit) -> bool:
        """Whether a rank that cooperates left with 0 and without the word that its program is done."""
        reading = self._reading(end.local_rank)
        return end.code == 0 and reading is not None and reading.opened and reading.phase != Phase.DONE

    def _reading(self, local_rank: int) -> Reading | None:
        beat = self._attempt.beats.get(local_rank) if self._attempt is not None else None
        return beat.read() if beat is not None else None

    def _cooperates(self, local_rank: int) -> bool:
        """Whether this rank knows of us: a config's train.py, or any program that has opened its beat."""
        reading = self._reading(local_rank)
        return self._plan.settings is not None or (reading is not None and reading.opened)

    def _look_for_hang(self) -> None:
        """Ask the watch, except while a person is attached, or ranks are leaving within their grace."""
        attempt = self._attempt
        if attempt is None or self._plan.terminal.attached or self._cause is not None:
            return
        readings, outputs = {}, {}
        for local_rank in self._workers.running:
            rank = attempt.rank(local_rank)
            if (reading := self._reading(local_rank)) is not None:
                readings[rank] = reading
            outputs[rank] = _size(attempt.log_file(local_rank)) + _size(attempt.error_log(local_rank))
        own = self._watch.look(readings, outputs, time.monotonic_ns())
        if own is not None and not self._looked_into and stacks.attended(*self._stacks_of(attempt)):
            self._watch.excuse()
            own = None
        self._looked_into = own is not None
        said = self._team.all_hang(own.as_message() if own is not None else None, runs=bool(readings))
        hangs = {node: hang for node, one in (said or {}).items() if (hang := Hang.from_message(one)) is not None}
        self._hang = merge(hangs) if hangs else None

    def _stacks_of(self, attempt: Attempt) -> tuple[dict[int, int], dict[int, stacks.StacksFile], Callable[[], None]]:
        running = {attempt.rank(one): one for one in self._workers.running if one in self._workers.pids}
        return (
            {rank: self._workers.pids[local_rank] for rank, local_rank in running.items()},
            {rank: attempt.stacks[local_rank] for rank, local_rank in running.items()},
            lambda: self._workers.signal_ranks(stacks.STACKS_SIGNAL, only_if_heard=True),
        )

    def _gather_stacks(self) -> dict[int, stacks.Stack]:
        """Write what all ranks of this node are doing into the run folder; by global rank."""
        attempt = self._attempt
        if attempt is None or self._workers.parent_gone:
            return {}
        pids, files, ask = self._stacks_of(attempt)
        locals_ = {attempt.rank(one): one for one in self._workers.running}
        logs = {rank: attempt.error_log(locals_[rank]) or attempt.log_file(locals_[rank]) for rank in pids}
        found = stacks.gather(pids, files, ask, self._run.stacks(attempt.number), logs=logs)
        if found:
            self._screen.say(f"stacks of all ranks: {self._run.stacks(attempt.number)}")
        return found

    def _say_status(self) -> None:
        """What `status` and `list` show of this launch, in the keeper's next beat."""
        if self._keeper is None:
            return
        readings = [reading for one in self._workers.running if (reading := self._reading(one)) is not None]
        opened = [reading for reading in readings if reading.opened]
        if not opened:
            known = self._plan.settings is None and bool(self._workers.pids)
            self._keeper.status = "running" if known else "starting"
            return
        last = min(opened, key=lambda reading: reading.step)
        # A run that has started says START once more at the beginning of every epoch.
        word = "running train" if last.started and last.phase == Phase.START else _STATUS[last.phase]
        self._keeper.status = f"{word} step {last.step}"

    # a failure ---------------------------------------------------------------------------------------------------

    def _failed(self) -> RunResult:
        """End the attempt on all nodes while its evidence is fresh, and do what is decided."""
        attempt = self._attempt
        assert attempt is not None
        found: dict[int, stacks.Stack] = {}
        if self._hang is not None or self._team.wants_stacks:
            found = self._gather_stacks()
        else:
            self._settle()
        report = self._report(found)
        self._workers.stop(self._plan.stop_grace_s)
        now = report["now_ns"] = time.monotonic_ns()
        report["ends"] = [end.as_message(now) for end in self._ends(attempt)]
        decision = self._team.conclude(report, self._judge)
        self._code = decision.exit_code
        if self._team.node != 0 and decision.line:
            self._screen.say(decision.line)
        self._remaining_restarts = int(decision.restart)  # all that elastic asks of it
        if decision.restart and self._keeper is not None:
            self._keeper.status = "restarting"
        return RunResult(WorkerState.FAILED)

    def _settle(self) -> None:
        deadline = time.monotonic() + _SETTLE_S
        while self._workers.running and not self._workers.parent_gone and time.monotonic() < deadline:
            self._workers.wait(max(0.0, deadline - time.monotonic()))

    def _report(self, found: Mapping[int, stacks.Stack]) -> dict[str, Any]:
        """What node 0 needs to judge, apart from the ends, while the beats can still be read."""
        readings = {one: reading for one in range(self._plan.nproc) if (reading := self._reading(one)) is not None}
        return {
            "host": self._team.host,
            "cooperating": all(self._cooperates(one) for one in range(self._plan.nproc)),
            "started": any(reading.started for reading in readings.values()),
            "parent_gone": self._workers.parent_gone,
            "oom": self._oom.killed_since(),
            "stacks": [stack.as_message() for stack in found.values()],
        }

    def _ends(self, attempt: Attempt) -> list[RankEnd]:
        return [self._rank_end(attempt, local_rank) for local_rank in range(self._plan.nproc)]

    def _rank_end(self, attempt: Attempt, local_rank: int) -> RankEnd:
        end = self._workers.exits.get(local_rank)
        code = end.code if end is not None else None
        return RankEnd.read(
            rank=attempt.rank(local_rank),
            local_rank=local_rank,
            node=self._team.node,
            host=self._team.host,
            pid=self._workers.pids.get(local_rank, 0),
            code=code,
            ns=end.ns if end is not None else time.monotonic_ns(),
            ordered=end is None or end.stopped or (self._cause is not None and code in _OBEYED),
            early=end is not None and self._left_early(end),
            error_file=attempt.error_file(local_rank),
            log_file=attempt.log_file(local_rank),
            error_log=attempt.error_log(local_rank),
        )

    def _judge(
        self, reports: Mapping[int, dict[str, Any]], lost: Mapping[int, str], silent: Mapping[int, str]
    ) -> Decision:
        assert self._attempt is not None
        return self._bench.decide(
            self._run,
            self._attempt.number,
            reports,
            lost,
            silent,
            hang=self._hang,
            cause=self._cause,
            restarts=self._team.restarts,
            node=self._team.node,
        )


def _size(path: os.PathLike[str] | None) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size if path is not None else 0
    return 0


_SIGNAL = {signal.SIGINT: "Ctrl-C", signal.SIGHUP: "the terminal was closed", signal.SIGQUIT: "Ctrl-\\"}

_STATUS = {
    Phase.START: "starting",
    Phase.STEP: "running train",
    Phase.EVALUATE: "running evaluation after",
    Phase.SAVE: "saving",
    Phase.DONE: "running end of",
}

# How a program ends that obeys a signal which was passed on to it.
_OBEYED = {code for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) for code in (-number, 128 + number)}
