"""The agent: torch elastic's loop over our processes and our rendezvous, one agent per node.

elastic decides when to start, restart and end; what is here tells it how the ranks are and does what it decides. What
several nodes have to agree on goes through the team: on a single machine it agrees with itself at once.
"""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Mapping
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

from rankrun.errors import ExitCode, MachineError, SaveError
from rankrun.launch.attempt import Attempt
from rankrun.launch.deciding import Bench, Case
from rankrun.launch.launching import Launch
from rankrun.launch.meeting import TeamRendezvous
from rankrun.launch.nodes.member import Dismissed
from rankrun.launch.nodes.messages import Decision
from rankrun.launch.nodes.place import gloo_interface
from rankrun.launch.nodes.team import Abandoned, Refused, Team
from rankrun.launch.observer import Observer
from rankrun.launch.oom import OomKiller
from rankrun.launch.rank_end import RankEnd
from rankrun.launch.signals import CODE_OF, OBEYED
from rankrun.launch.stacks import Stack
from rankrun.launch.verdict import SETTLE_S
from rankrun.runfolder import RunFolder

_TICK_S = 1.0  # deadlines and the watch; ends of ranks, signals and other nodes wake the agent at once


class Agent(SimpleElasticAgent):
    """Runs a plan's ranks on this node until they are done, have failed for good, or have been told to leave."""

    def __init__(self, launch: Launch, team: Team) -> None:
        plan = launch.plan
        self._meeting_place = TeamRendezvous(
            plan.run_id, team, launch.place, self._next_attempt, port=plan.store_port, timeout_s=plan.read_timeout_s
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
        self._launch = launch
        self._plan = plan
        self._run = launch.run
        self._workers = launch.workers
        self._screen = launch.screen
        self._team = team
        self._keeper = launch.keeper
        self._bench = Bench(plan, launch.screen)
        self._attempt: Attempt | None = None
        self._observer: Observer | None = None  # of this attempt
        self._oom = OomKiller()
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
        self._attempt = Attempt(self._plan, meeting, self._run, self._launch.env, self._network())
        try:
            starts = self._attempt.prepare()
        except OSError as error:
            kind = MachineError if error.errno in (errno.EMFILE, errno.ENFILE) else SaveError
            raise kind(f"an attempt of {self._plan.nproc} ranks can't be begun: {error}") from error
        for local_rank in range(self._plan.nproc):
            self._show(local_rank)
        self._observer = Observer(self._launch, self._team, self._attempt)
        self._oom = OomKiller()
        self._say_status(self._observer)
        return self._workers.start(starts)

    def _network(self) -> dict[str, str]:
        """What gloo has to be told where this machine's own name leads to loopback."""
        interface = gloo_interface(self._team.here, self._launch.env)
        if interface is None:
            return {}
        if self._first_start:
            self._screen.say(f"GLOO_SOCKET_IFNAME={interface}: this machine's name leads to no address for others")
        self._first_start = False
        return {"GLOO_SOCKET_IFNAME": interface}

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
        claimed = self._launch.claimed
        assert claimed is not None
        first, self._first_attempt = self._first_attempt, False
        try:
            return claimed.attempt if first else claimed.next_attempt()
        except OSError as error:
            raise SaveError(f"an attempt can't be begun: {error}") from error

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        observer = self._observer
        assert observer is not None
        self._workers.wait(_TICK_S)
        self._heed(observer)
        if self._cause is not None and time.monotonic() >= self._grace_ends:
            self._workers.stop(self._plan.stop_grace_s)
        if self._cause is None and not self._plan.terminal.attached:  # a person may take any time
            observer.look_for_hang()
        if self._workers.parent_gone or observer.failures() or observer.hang is not None:
            self._team.announce(hangs=observer.hang is not None)
            return self._failed(observer)
        if self._team.failed():
            return self._failed(observer)
        self._say_status(observer)
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

    def _heed(self, observer: Observer) -> None:
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
                self._leave_for(number, _SIGNAL.get(number, number.name), observer)
        for number in self._team.told():
            self._leave_for(number, f"{number.name} on another node", observer)
        if self._keeper is not None and self._keeper.stop_wanted and self._cause is None:
            self._team.tell(signal.SIGTERM)
            self._leave_for(signal.SIGTERM, "stop", observer)

    def _leave_for(self, number: signal.Signals, words: str, observer: Observer) -> None:
        if number == signal.SIGQUIT:
            self._screen.say(f"{words}: stacks of all ranks, then the end")
            observer.gather_stacks()
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

    def _say_status(self, observer: Observer) -> None:
        """In the keeper's next beat."""
        if self._keeper is not None:
            self._keeper.status = observer.status()

    # a failure ---------------------------------------------------------------------------------------------------

    def _failed(self, observer: Observer) -> RunResult:
        """End the attempt on all nodes while its evidence is fresh, and do what is decided."""
        found: dict[int, Stack] = {}
        if observer.hang is not None or self._team.wants_stacks:
            found = observer.gather_stacks()
        else:
            self._settle()
        report = self._report(observer, found)
        self._workers.stop(self._plan.stop_grace_s)
        now = report["now_ns"] = time.monotonic_ns()
        report["ends"] = [end.as_message(now) for end in self._ends(observer)]
        decision = self._team.conclude(report, self._judge)
        self._code = decision.exit_code
        if self._team.node != 0 and decision.line:
            self._screen.say(decision.line)
        self._remaining_restarts = int(decision.restart)  # all that elastic asks of it
        if decision.restart and self._keeper is not None:
            self._keeper.status = "restarting"
        return RunResult(WorkerState.FAILED)

    def _settle(self) -> None:
        deadline = time.monotonic() + SETTLE_S
        while self._workers.running and not self._workers.parent_gone and time.monotonic() < deadline:
            self._workers.wait(max(0.0, deadline - time.monotonic()))

    def _report(self, observer: Observer, found: Mapping[int, Stack]) -> dict[str, Any]:
        """What node 0 needs to judge, apart from the ends, while the beats can still be read."""
        ranks = range(self._plan.nproc)
        readings = [reading for one in ranks if (reading := observer.reading(one)) is not None]
        return {
            "host": self._team.host,
            "cooperating": all(observer.cooperates(one) for one in ranks),
            "started": any(reading.started for reading in readings),
            "parent_gone": self._workers.parent_gone,
            "oom": self._oom.killed_since(),
            "stacks": [stack.as_message() for stack in found.values()],
        }

    def _ends(self, observer: Observer) -> list[RankEnd]:
        attempt = self._attempt
        assert attempt is not None
        return [self._rank_end(attempt, observer, local_rank) for local_rank in range(self._plan.nproc)]

    def _rank_end(self, attempt: Attempt, observer: Observer, local_rank: int) -> RankEnd:
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
            ordered=end is None or end.stopped or (self._cause is not None and code in OBEYED),
            early=end is not None and observer.left_early(end),
            error_file=attempt.error_file(local_rank),
            log_file=attempt.log_file(local_rank),
            error_log=attempt.error_log(local_rank),
        )

    def _judge(
        self, reports: Mapping[int, dict[str, Any]], lost: Mapping[int, str], silent: Mapping[int, str]
    ) -> Decision:
        assert self._attempt is not None
        assert self._observer is not None
        hang, team = self._observer.hang, self._team
        number = self._attempt.number
        return self._bench.decide(
            Case(self._run, number, reports, lost, silent, hang, self._cause, team.restarts, team.node)
        )


_SIGNAL = {signal.SIGINT: "Ctrl-C", signal.SIGHUP: "the terminal was closed", signal.SIGQUIT: "Ctrl-\\"}
