"""A launch on this machine: claim the run folder, import torch once, fork the warm parent, be the agent.

One process becomes three kinds here, by fork. The warm parent and the ranks *return* through the frames of this
module up to the door, so that a rank's program runs at the top of an ordinary interpreter and ends as one; therefore
no frame between a fork and the door holds a `with`, a `finally` or anything else that a rank would undo.
"""

from __future__ import annotations

import importlib
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rankrun.errors import ExitCode, MachineError
from rankrun.launch.channel import Channel
from rankrun.launch.plan import ASKED_FOR, RunPlan, Target, shadowed_by
from rankrun.launch.process import adopt_orphans
from rankrun.launch.rank import run, settle
from rankrun.launch.screen import Screen, say
from rankrun.launch.signals import CODE_OF, Signals
from rankrun.launch.warm import RankStart, WarmParent
from rankrun.launch.workers import Workers
from rankrun.runfolder import Claim, claim, write_atomically

_LAST_WORDS_S = 2.0


@dataclass(frozen=True)
class Forked:
    """What `launch` returns in a rank: who it is and what it runs."""

    start: RankStart
    target: Target
    warm: bool

    def run(self) -> int:
        """Become the rank and run its program; returns its exit code."""
        settle(self.start)
        return run(self.target, warm=self.warm)


def launch(plan: RunPlan, argv: list[str], env: Mapping[str, str]) -> int | Forked:
    """Run the plan. Returns the launcher's exit code, and a Forked in each rank; the warm parent never comes back."""
    claimed = _claim(plan, argv, env)
    if claimed.finished:
        say(f"this run is finished; {claimed.folder.final_file} has its figures. --name NAME starts another one")
        return ExitCode.DONE
    try:
        plan = _prepare(plan, claimed)
    except BaseException:  # Ctrl-C during the import of torch too: nothing has started, so nothing is left
        claimed.withdraw()
        raise
    signals = Signals()
    ours, theirs = Channel.pair()
    parent_pid = os.fork()
    if parent_pid == 0:
        ours.close()
        signals.close()
        start = WarmParent(theirs, plan.preload).serve()
        if start is None:
            os._exit(ExitCode.DONE)
        return Forked(start, plan.target, plan.warm)
    theirs.close()
    return _be_agent(plan, claimed, Workers(ours, parent_pid, signals))


def _prepare(plan: RunPlan, claimed: Claim) -> RunPlan:
    """Everything that must have happened before the fork; the plan, now with what only the import could show."""
    os.environ.update(plan.environment)
    if plan.settings is not None:
        # Every rank reads the one config.yaml of the run folder, and hears which changes were allowed.
        allowed = (word for key in plan.allow_change for word in ("--allow-change", key))
        plan = replace(plan, target=replace(plan.target, arguments=(str(claimed.folder.config_file), *allowed)))
    if plan.warm:
        _import_torch()
        shadowed = shadowed_by(plan.target, sys.modules)
        if shadowed is not None:
            plan = replace(plan, warm=False, preload=(), why_not_warm=f"a local {shadowed} stands for a loaded one")
    if not plan.warm and plan.why_not_warm != ASKED_FOR and plan.target.kind != "command":
        say(f"every rank is an interpreter of its own (--start exec): {plan.why_not_warm}")
    sys.stdout.flush()
    sys.stderr.flush()
    return plan


def _claim(plan: RunPlan, argv: list[str], env: Mapping[str, str]) -> Claim:
    folder = plan.folder
    if plan.new_folder:
        folder = _unused(folder.with_name(f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"))
    return claim(folder, settings=plan.settings, command=argv, allow_change=plan.allow_change, env=env, say=say)


def _unused(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, … that is not there; `claim` settles a race between two."""
    count, free = 1, folder
    while free.exists():
        count += 1
        free = folder.with_name(f"{folder.name}-{count}")
    return free


def _import_torch() -> None:
    """Import torch, the one import that all processes to come share; MachineError in words if it can't be."""
    try:
        importlib.import_module("torch")
    except Exception as error:  # a broken installation raises anything: OSError for a missing library, RuntimeError …
        raise MachineError(
            f"torch can't be imported by {sys.executable}: {type(error).__name__}: {error}. `make setup` installs the "
            "versions that are tested together"
        ) from error


def _be_agent(plan: RunPlan, claimed: Claim, workers: Workers) -> int:
    adopt_orphans()
    screen = Screen()
    screen.start()
    code: int = ExitCode.FAILED
    try:
        code = _watch(plan, claimed, workers, screen)
    finally:
        _let_go(claimed, code, screen)
        if plan.settings is not None:
            _say_where(code, claimed, screen)
        heard = len(workers.signals.seen)
        # Who was told to leave does not wait for a terminal that nobody reads.
        deadline = time.monotonic() + (_LAST_WORDS_S if heard else math.inf)
        screen.close(lambda: time.monotonic() > deadline or len(workers.signals.seen) > heard)
    return code


def _watch(plan: RunPlan, claimed: Claim, workers: Workers, screen: Screen) -> int:
    """The ranks' whole life; the launcher's exit code."""
    from rankrun.launch.agent import Agent  # after the fork: elastic is the agent's alone

    if not workers.wait_until_ready():  # a signal while the warm parent was still importing: nothing has started
        workers.end()
        seen = workers.signals.seen
        screen.say(f"{seen[0].name}: nothing was started yet" if seen else "the warm parent died while it imported")
        return CODE_OF[seen[0]] if seen else ExitCode.FAILED
    code = Agent(plan, claimed, workers, screen).launch()
    if workers.unkillable:
        screen.say(f"processes {workers.unkillable} are left: they can't be killed by this user, or by nobody")
    if code == ExitCode.DONE and plan.settings is not None and not claimed.folder.final_file.exists():
        screen.say(f"all ranks left with 0, but train.py wrote no {claimed.folder.final_file.name}: it did not finish")
        return ExitCode.FAILED
    return code


def _let_go(claimed: Claim, code: int, screen: Screen) -> None:
    folder = claimed.folder
    # A line of metrics or audit says that a step was done; such a run is kept.
    written = [folder.final_file, folder.metrics_file, *folder.audit.glob("rank-*.jsonl")]
    begun = any(file.exists() and file.stat().st_size for file in written) or any(folder.checkpoints.glob("step-*"))
    if code == ExitCode.BAD_INPUT and not begun:
        # A mistake that only the ranks could see. The mended config must not meet a run folder of the broken one.
        shutil.rmtree(folder.audit, ignore_errors=True)  # opened, but without a line
        claimed.withdraw()
        return
    try:
        write_atomically(folder.outcome_file(claimed.attempt), f"{int(code)}\n")
        claimed.release()
    except OSError as error:  # a full disk changes no exit code; the next launch finds a dead holder and takes over
        screen.say(f"{folder.path} could not be closed: {error.strerror}")


def _say_where(code: int, claimed: Claim, screen: Screen) -> None:
    if code == ExitCode.DONE:
        screen.say(f"done; everything is in {claimed.folder.path}")
    elif code in (ExitCode.SAVED, ExitCode.INTERRUPTED, ExitCode.STOPPED):
        screen.say(f"the same command goes on in {claimed.folder.path}")
