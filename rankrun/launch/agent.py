"""The agent: torch elastic's loop over our processes and our rendezvous. The one module of the launcher with torch.

elastic decides when to start, restart and end; what is here tells it how the ranks are and does what it decides.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from rankrun.beat import Phase
from rankrun.errors import ExitCode, MachineError, SaveError
from rankrun.launch.plan import RunPlan
from rankrun.launch.rendezvous import FreshStoreRendezvous
from rankrun.launch.screen import Screen
from rankrun.launch.signals import CODE_OF
from rankrun.launch.verdict import RankEnd, Verdict, judge
from rankrun.launch.warm import RankStart
from rankrun.launch.workers import BeatMap, Exit, Workers
from rankrun.runfolder import Claim, write_atomically

_TICK_S = 1.0  # heartbeat and deadlines; ends of ranks and signals wake the agent at once
_SETTLE_S = 0.3  # after a first failure, for ranks that fail by themselves to say so before they are stopped
_NO_PROGRESS_FAILURES = 3


@dataclass
class Attempt:
    """One start of all ranks."""

    number: int
    folder: Path
    beats: dict[int, BeatMap] = field(default_factory=dict)

    @property
    def errors(self) -> Path:
        return self.folder / "errors"

    def error_file(self, rank: int) -> Path:
        """Where a rank says what ended it."""
        return self.errors / f"rank-{rank:05d}.json"


class Agent(SimpleElasticAgent):
    """Runs a plan's ranks on this machine until they are done, have failed for good, or have been told to leave."""

    def __init__(self, plan: RunPlan, claim: Claim, workers: Workers, screen: Screen) -> None:
        spec = WorkerSpec(
            role="default",
            local_world_size=plan.nproc,
            rdzv_handler=FreshStoreRendezvous(plan.name),
            entrypoint=plan.target.path,
            max_restarts=plan.max_restarts,
            monitor_interval=1e-3,  # elastic sleeps this long before it asks; our answer waits for events
        )
        super().__init__(spec)
        self.verdict: Verdict | None = None
        self._plan = plan
        self._claim = claim
        self._workers = workers
        self._screen = screen
        self._attempt: Attempt | None = None
        self._heeded = 0  # signals acted on
        self._cause: signal.Signals | None = None  # of the notice
        self._grace_ends = 0.0
        self._checkpoint_at_failure: str | None = None
        self._failures_without_progress = 0

    def launch(self) -> int:
        """Run to the end; returns the launcher's exit code."""
        try:
            result = self.run()
        finally:
            self._workers.end()
        return self._exit_code(result)

    # elastic's interface -----------------------------------------------------------------------------------------

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        try:
            starts = self._prepare_attempt(worker_group)
        except OSError as error:
            kind = MachineError if error.errno in (errno.EMFILE, errno.ENFILE) else SaveError
            raise kind(f"an attempt of {self._plan.nproc} ranks can't be begun: {error}") from error
        return self._workers.start(starts)

    def _prepare_attempt(self, worker_group: WorkerGroup) -> list[RankStart]:
        """The folder, logs and beats of one more attempt, and what each rank is told."""
        number = self._claim.attempt if self._attempt is None else self._claim.next_attempt()
        folder = self._claim.folder
        attempt = self._attempt = Attempt(number, folder.attempt(number))
        attempt.errors.mkdir()
        starts = []
        for worker in worker_group.workers:
            rank, log = worker.global_rank, folder.log_file(number, worker.global_rank)
            beat = attempt.beats[worker.local_rank] = BeatMap(attempt.folder, rank)
            environment = self._torchrun_environment(worker_group, worker.local_rank) | {
                "TORCHELASTIC_ERROR_FILE": str(attempt.error_file(rank).absolute()),
                "RANKRUN_RUN_DIR": str(folder.path.absolute()),
                "RANKRUN_ATTEMPT": str(number),
                "RANKRUN_BEAT": beat.path,
            }
            is_ours = self._plan.settings is not None
            starts.append(RankStart(worker.local_rank, environment, str(log), rank == 0, holds_notices=is_ours))
            if rank == 0 or not is_ours:
                self._screen.show(log, prefix=None if rank == 0 else f"[{rank}] ")
        return starts

    def _torchrun_environment(self, group: WorkerGroup, local_rank: int) -> dict[str, str]:
        """What torchrun sets for this rank, with its values; a test compares them with a real torchrun's."""
        worker, spec = group.workers[local_rank], group.spec
        return {
            "RANK": str(worker.global_rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(worker.world_size),
            "LOCAL_WORLD_SIZE": str(spec.local_world_size),
            "GROUP_RANK": str(group.group_rank),
            "GROUP_WORLD_SIZE": str(group.group_world_size),
            "ROLE_RANK": str(worker.role_rank),
            "ROLE_WORLD_SIZE": str(worker.role_world_size),
            "ROLE_NAME": spec.role,
            "MASTER_ADDR": str(group.master_addr),
            "MASTER_PORT": str(group.master_port),
            "TORCHELASTIC_RESTART_COUNT": str(spec.max_restarts - self._remaining_restarts),
            "TORCHELASTIC_MAX_RESTARTS": str(spec.max_restarts),
            "TORCHELASTIC_RUN_ID": spec.rdzv_handler.get_run_id(),
            "TORCHELASTIC_USE_AGENT_STORE": str(spec.rdzv_handler.use_agent_store),
            "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        }

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._workers.wait(_TICK_S)
        with contextlib.suppress(OSError):  # a hiccup of the file system; the next beat comes in a second
            self._claim.beat()
        self._heed_signals()
        if self._cause is not None and time.monotonic() >= self._grace_ends:
            self._remaining_restarts = 0
            self._workers.stop()
        if self._workers.parent_gone or self._failures():
            self._settle()
            return self._failed(worker_group)
        if self._workers.running:
            return RunResult(WorkerState.HEALTHY)
        return RunResult(WorkerState.SUCCEEDED, {w.global_rank: None for w in worker_group.workers})

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        self._workers.stop()
        if self._attempt is not None:
            for beat in self._attempt.beats.values():
                beat.close()
            self._attempt.beats.clear()

    # what happened -----------------------------------------------------------------------------------------------

    def _heed_signals(self) -> None:
        """The first signal is a notice: save and leave. A second SIGINT, or any other one after it, is an order."""
        for number in self._workers.signals.seen[self._heeded :]:
            self._heeded += 1
            if self._cause is None:
                self._cause = number
                self._grace_ends = time.monotonic() + self._plan.grace_s
                self._remaining_restarts = 0
                self._workers.notice(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
                self._screen.say(self._notice_in_words(number))
            elif number != signal.SIGUSR2:
                self._screen.say(f"{_NOTICE[number]} again: stopping now")
                self._grace_ends = 0.0

    def _notice_in_words(self, number: signal.Signals) -> str:
        what = "saving and leaving" if self._plan.settings is not None else "passed on to the ranks, which may leave"
        more = "; once more leaves now" if number == signal.SIGINT else ""
        return f"{_NOTICE[number]}: {what} within {self._plan.grace_s:g} s{more}"

    def _failures(self) -> list[Exit]:
        """Ranks that ended badly by themselves. 75 is no failure of a program that cooperates."""
        fine = {0, ExitCode.SAVED}
        return [
            end
            for end in self._workers.exits.values()
            if end.code not in (fine if self._cooperates(end.local_rank) else {0})
        ]

    def _cooperates(self, local_rank: int) -> bool:
        """Whether this rank knows of us: a config's train.py, or any program that has opened its beat."""
        if self._plan.settings is not None:
            return True
        beat = self._attempt.beats.get(local_rank) if self._attempt is not None else None
        return beat is not None and beat.read().opened

    def _settle(self) -> None:
        deadline = time.monotonic() + _SETTLE_S
        while self._workers.running and not self._workers.parent_gone and time.monotonic() < deadline:
            self._workers.wait(max(0.0, deadline - time.monotonic()))

    def _failed(self, worker_group: WorkerGroup) -> RunResult:
        """Judge the attempt while its evidence is fresh, and take back restarts that could not help."""
        attempt = self._attempt
        assert attempt is not None
        cooperating = all(self._cooperates(worker.local_rank) for worker in worker_group.workers)
        started = any(beat.read().phase != Phase.START for beat in attempt.beats.values())
        if self._workers.parent_gone:
            self._remaining_restarts = 0
        self._workers.stop()
        verdict = judge(
            [self._rank_end(worker.global_rank, worker.local_rank) for worker in worker_group.workers],
            host=socket.gethostname(),
            attempt=attempt.number,
            cooperating=cooperating,
            parent_gone=self._workers.parent_gone,
            notice=self._cause.name if self._cause is not None else None,
        )
        self._count_progress(verdict, cooperating)
        if verdict.exit_code == ExitCode.BAD_INPUT or (cooperating and not started and verdict.is_exception):
            self._remaining_restarts = 0  # a mistake in config or code is the same mistake the second time
        self.verdict = verdict
        if self._cause is None or not verdict.root.is_consequence:
            for line in verdict.lines(self._screen.shows):
                self._screen.say(line)
        if self._remaining_restarts > 0:
            most = self._worker_group.spec.max_restarts
            self._screen.say(f"restart {most - self._remaining_restarts + 1} of {most}")
        try:
            write_atomically(
                self._claim.folder.verdict_file(attempt.number), json.dumps(verdict.as_dict(), indent=1) + "\n"
            )
        except OSError as error:
            self._screen.say(f"verdict.json could not be written: {error.strerror}")
        failures = {
            end.rank: ProcessFailure(end.local_rank, end.pid, end.code, error_file="")
            for end in verdict.ends
            if end.code not in (0, None)
        }
        return RunResult(WorkerState.FAILED, failures=failures)

    def _count_progress(self, verdict: Verdict, cooperating: bool) -> None:
        if not cooperating:
            return
        newest = self._newest_checkpoint()
        same = newest == self._checkpoint_at_failure
        self._failures_without_progress = self._failures_without_progress + 1 if same else 1
        self._checkpoint_at_failure = newest
        if self._failures_without_progress >= _NO_PROGRESS_FAILURES and verdict.exit_code != ExitCode.BAD_INPUT:
            self._remaining_restarts = 0
            verdict.exit_code = ExitCode.NO_PROGRESS
            verdict.advice = f"{_NO_PROGRESS_FAILURES} failures in a row without a new checkpoint; not tried again"

    def _newest_checkpoint(self) -> str:
        return max((path.name for path in self._claim.folder.checkpoints.glob("step-????????")), default="")

    def _rank_end(self, rank: int, local_rank: int) -> RankEnd:
        assert self._attempt is not None
        end = self._workers.exits.get(local_rank)
        code = end.code if end is not None else None
        return RankEnd.read(
            rank=rank,
            local_rank=local_rank,
            pid=self._workers.pids.get(local_rank, 0),
            code=code,
            ns=end.ns if end is not None else time.monotonic_ns(),
            ordered=end is None or end.stopped or (self._cause is not None and code in _OBEYED),
            error_file=self._attempt.error_file(rank),
            log_file=self._claim.folder.log_file(self._attempt.number, rank),
        )

    def _exit_code(self, result: RunResult) -> int:
        """75, 130 and 143 mean *saved*, so a rank that failed by itself while it was told to leave gives its own."""
        if result.is_failed():
            assert self.verdict is not None
            if self._cause is None or not self.verdict.root.is_consequence:
                return self.verdict.exit_code
            if self._plan.settings is not None:
                newest = self._newest_checkpoint()
                where = f"it goes on from {newest}" if newest else "it begins anew"
                self._screen.say(f"stopped before it had saved; {where}")
            return CODE_OF[self._cause]
        saved = any(end.code == ExitCode.SAVED for end in self._workers.exits.values())
        if self._cause is not None and (saved or self._plan.settings is None):
            return CODE_OF[self._cause]
        return ExitCode.SAVED if saved else ExitCode.DONE


_NOTICE = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGHUP: "the terminal was closed",
    signal.SIGTERM: "SIGTERM",
    signal.SIGUSR2: "SIGUSR2",
}

# How a program ends that obeys a signal which was passed on to it.
_OBEYED = (-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP, 128 + signal.SIGINT)
