"""A launch on this machine: claim the run folder, import torch once, fork the warm parent, be the agent.

One process becomes three kinds here, by fork. The warm parent and the ranks *return* through the frames of this
module up to the door, so that a rank's program runs at the top of an ordinary interpreter and ends as one; therefore
no frame between a fork and the door holds a `with`, a `finally` or anything else that a rank would undo.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rankrun.errors import ExitCode, RankrunError, SetupError
from rankrun.launch.channel import Channel
from rankrun.launch.plan import RunPlan, Target
from rankrun.launch.process import adopt_orphans
from rankrun.launch.rank import run, settle
from rankrun.launch.screen import Screen, say
from rankrun.launch.signals import CODE_OF, Signals
from rankrun.launch.warm import RankStart, WarmParent
from rankrun.launch.workers import Workers
from rankrun.runfolder import Claim, claim, write_atomically


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
    signals = Signals()
    if claimed.finished:
        say(f"this run is finished; {claimed.folder.final_file} has its figures. --name NAME starts another one")
        return ExitCode.DONE
    os.environ.update(plan.environment)
    if claimed.settings is not None:
        plan = _with_frozen_config(plan, claimed)
    problem = _import_torch() if plan.warm else None
    if problem is not None:
        claimed.release()
        raise problem
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = Channel.pair()
    parent_pid = os.fork()
    if parent_pid == 0:
        ours.close()
        start = WarmParent(theirs, plan.preload).serve()
        if start is None:
            os._exit(ExitCode.DONE)
        return Forked(start, plan.target, plan.warm)
    theirs.close()
    return _be_agent(plan, claimed, Workers(ours, parent_pid, signals))


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


def _with_frozen_config(plan: RunPlan, claimed: Claim) -> RunPlan:
    """Every rank reads the one config.yaml of the run folder, and hears which changes were allowed."""
    allowed = (word for key in plan.allow_change for word in ("--allow-change", key))
    arguments = (str(claimed.folder.config_file), *allowed)
    return replace(plan, target=replace(plan.target, arguments=arguments))


def _import_torch() -> RankrunError | None:
    """Import torch, the one import that all processes to come share; the error in words if it can't be."""
    try:
        importlib.import_module("torch")
    except ImportError as error:
        return SetupError(
            f"torch can't be imported by {sys.executable}: {error}; `make setup` installs the tested versions"
        )
    return None


def _be_agent(plan: RunPlan, claimed: Claim, workers: Workers) -> int:
    adopt_orphans()
    screen = Screen()
    screen.start()
    code: int = ExitCode.FAILED
    try:
        code = _watch(plan, claimed, workers, screen)
    finally:
        screen.close()
        _let_go(claimed, code)
    if plan.settings is not None:
        _say_where(code, claimed)
    return code


def _let_go(claimed: Claim, code: int) -> None:
    folder = claimed.folder
    begun = folder.final_file.exists() or folder.metrics_file.exists() or any(folder.checkpoints.glob("step-*"))
    if code == ExitCode.BAD_INPUT and not begun:
        # A mistake that only the ranks could see. The mended config must not meet a run folder of the broken one.
        claimed.withdraw()
        return
    try:
        write_atomically(folder.outcome_file(claimed.attempt), f"{int(code)}\n")
    except OSError as error:  # a full disk: the exit code says it all the same
        say(f"{folder.outcome_file(claimed.attempt)} can't be written: {error.strerror}")
    claimed.release()


def _watch(plan: RunPlan, claimed: Claim, workers: Workers, screen: Screen) -> int:
    """The ranks' whole life; the launcher's exit code."""
    from rankrun.launch.agent import Agent  # after the fork: elastic is the agent's alone

    if workers.signals.seen:  # Ctrl-C while torch was being imported: nothing has started
        workers.end()
        return CODE_OF[workers.signals.seen[0]]
    code = Agent(plan, claimed, workers, screen).launch()
    if code == ExitCode.DONE and plan.settings is not None and not claimed.folder.final_file.exists():
        say(f"all ranks left with 0, but train.py wrote no {claimed.folder.final_file.name}: it did not finish")
        return ExitCode.FAILED
    return code


def _say_where(code: int, claimed: Claim) -> None:
    if code == ExitCode.DONE:
        say(f"done; everything is in {claimed.folder.path}")
    elif code in (ExitCode.SAVED, ExitCode.INTERRUPTED, ExitCode.STOPPED):
        say(f"the same command goes on in {claimed.folder.path}")
