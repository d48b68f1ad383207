"""A launch on this node: claim the run folder (on node 0), import torch once, fork the warm parent, be the agent.

One process becomes three kinds here, by fork. The warm parent and the ranks *return* through the frames of this
module up to the door, so that a rank's program runs at the top of an ordinary interpreter and ends as one; therefore
no frame between a fork and the door holds a `with`, a `finally` or anything else that a rank would undo.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rankrun.errors import ExitCode, MachineError, RankrunError, RunFolderBusy
from rankrun.launch import rank
from rankrun.launch.channel import Channel
from rankrun.launch.keeper import Keeper
from rankrun.launch.launching import Launch
from rankrun.launch.nodes.forming import form
from rankrun.launch.nodes.head import send_away
from rankrun.launch.nodes.place import Place, take_place
from rankrun.launch.plan import ASKED_FOR, RunPlan, Target, shadowed_by
from rankrun.launch.process import adopt_orphans, children
from rankrun.launch.screen import Screen, say
from rankrun.launch.signals import CODE_OF, EarlySignals, Signals
from rankrun.launch.warm import RankStart, WarmParent
from rankrun.launch.workers import Workers
from rankrun.runfolder import Claim, RunFolder, claim, stopped_before, write_atomically
from rankrun.runfolder.stopping import name_for_verbs

_LAST_WORDS_S = 2.0
_GOODBYE_S = 10.0  # for nodes that still import torch when this one finds that there is nothing to do


@dataclass(frozen=True)
class Forked:
    """What `launch` returns in a rank: who it is and what it runs."""

    start: RankStart
    target: Target
    warm: bool

    def run(self) -> int:
        """Become the rank and run its program; returns its exit code."""
        rank.settle(self.start)
        return rank.run(self.target, warm=self.warm)


def launch(plan: RunPlan, argv: list[str], env: Mapping[str, str]) -> int | Forked:
    """Run the plan. Returns the launcher's exit code, and a Forked in each rank; the warm parent never comes back."""
    early = EarlySignals()
    strangers = children()  # of the shell that has become this process
    place = take_place(plan)
    claimed, run = None, RunFolder(plan.folder)
    if place is None or place.is_head:
        # One node holds the folder for all; the others hear from it what the run is.
        try:
            outcome = _open_folder(plan, argv, env)
        except RankrunError as error:
            _send_others_away(plan, place, error.exit_code, str(error))
            raise
        if isinstance(outcome, int):
            _send_others_away(plan, place, outcome, f"node 0 has nothing to begin in {plan.folder}")
            return outcome
        claimed, run = outcome, outcome.folder
    try:
        plan = _prepare(plan, run, early)
        signals = Signals(plan.signals)
        early.check()
    except BaseException:  # Ctrl-C during the import of torch too: nothing has started, so nothing is left
        if claimed is not None:
            claimed.withdraw()
        raise
    ours, theirs = Channel.pair()
    parent_pid = os.fork()
    if parent_pid == 0:
        ours.close()
        signals.close()
        if place is not None:
            place.close_in_child()
        start = WarmParent(theirs, plan.preload).serve()
        if start is None:
            os._exit(ExitCode.DONE)
        return Forked(start, plan.target, plan.warm)
    theirs.close()
    workers = Workers(ours, parent_pid, signals, strangers)
    keeper = Keeper(claimed, run, signals.wake) if claimed is not None else None
    return _be_agent(Launch(plan, env, run, claimed, place, workers, Screen(), keeper))


def _send_others_away(plan: RunPlan, place: Place | None, code: int, line: str) -> None:
    if place is not None and place.listener is not None:
        send_away(place.listener, plan.nnodes - 1, code, line, _GOODBYE_S)
        place.withdraw()


def _open_folder(plan: RunPlan, argv: list[str], env: Mapping[str, str]) -> Claim | int:
    """The run folder, held; or the exit code of a launch that has nothing to do."""
    if not plan.new_folder and (line := stopped_before(RunFolder(plan.folder))) is not None:
        say(line)
        return ExitCode.STOPPED
    claimed = _claim(plan, argv, env)
    if claimed.finished:
        say(f"this run is finished; {claimed.folder.final_file} has its figures. --name NAME starts another one")
        return ExitCode.DONE
    return claimed


def _prepare(plan: RunPlan, run: RunFolder, early: EarlySignals) -> RunPlan:
    """Everything that must have happened before the fork; the plan, now with what only the import could show."""
    os.environ.update(plan.environment)
    if plan.settings is not None:
        # Every rank reads the one config.yaml of the run folder, and hears which changes were allowed.
        allowed = (word for key in plan.allow_change for word in ("--allow-change", key))
        plan = replace(plan, target=replace(plan.target, arguments=(str(run.config_file), *allowed)))
    if plan.warm:
        _import_torch(early)
        shadowed = shadowed_by(plan.target, sys.modules)
        if shadowed is not None:
            plan = replace(plan, warm=False, preload=(), why_not_warm=f"a local {shadowed} stands for a loaded one")
    if not plan.warm and plan.why_not_warm != ASKED_FOR and plan.target.kind != "command":
        say(f"every rank is an interpreter of its own (--start exec): {plan.why_not_warm}")
    sys.stdout.flush()
    sys.stderr.flush()
    return plan


def _claim(plan: RunPlan, argv: list[str], env: Mapping[str, str]) -> Claim:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    while True:
        folder = plan.folder
        if plan.new_folder:
            folder = _unused(folder.with_name(f"{folder.name}-{stamp}"))
        try:
            return claim(
                folder,
                settings=plan.settings,
                command=argv,
                allow_change=plan.allow_change,
                resume=plan.resume_words(folder.name),
                env=env,
                say=say,
            )
        except RunFolderBusy:
            if not plan.new_folder:
                raise
            # Another launch of this second was quicker: its folder is there now, and the next name is free.


def _unused(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, … that is not there."""
    count, free = 1, folder
    while free.exists():
        count += 1
        free = folder.with_name(f"{folder.name}-{count}")
    return free


def _import_torch(early: EarlySignals) -> None:
    """Import torch, the one import that all processes to come share; MachineError in words if it can't be."""
    try:
        importlib.import_module("torch")
    except Exception as error:  # a broken installation raises anything: OSError for a missing library, RuntimeError …
        early.check()  # an interrupted import breaks in its own ways
        raise MachineError(
            f"torch can't be imported by {sys.executable}: {type(error).__name__}: {error}. `make setup` installs the "
            "versions that are tested together"
        ) from error


def _be_agent(launch: Launch) -> int:
    claimed, screen, keeper, signals = launch.claimed, launch.screen, launch.keeper, launch.workers.signals
    adopt_orphans()
    _allow_many_files()
    screen.start()
    if keeper is not None:
        keeper.start()
    code: int = ExitCode.FAILED
    try:
        code = _watch(launch)
    finally:
        if launch.place is not None:
            launch.place.withdraw()
        if keeper is not None:
            keeper.close()
        if claimed is not None:
            _let_go(claimed, code, screen)
            if launch.plan.settings is not None:
                _say_where(code, claimed, screen)
        heard = len(signals.seen)
        # Who was told to leave does not wait for a terminal that nobody reads.
        deadline = time.monotonic() + (_LAST_WORDS_S if heard else math.inf)
        screen.close(lambda: time.monotonic() > deadline or len(signals.seen) > heard)
    return code


def _allow_many_files() -> None:
    """Two descriptors of every rank stay open here; the usual limit of 1,024 is a soft one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _watch(launch: Launch) -> int:
    """The ranks' whole life; the launcher's exit code."""
    from rankrun.launch.agent import Agent  # after the fork: elastic is the agent's alone

    workers, screen = launch.workers, launch.screen
    if not workers.wait_until_ready():  # a signal while the warm parent was still importing: nothing has started
        workers.end()
        number = workers.signals.told_to_leave
        screen.say(f"{number.name}: nothing was started yet" if number else "the warm parent died while it imported")
        return CODE_OF[number] if number else ExitCode.FAILED
    if launch.keeper is not None and launch.keeper.stop_wanted:
        workers.end()
        screen.say("stop: nothing was started yet")
        return ExitCode.STOPPED
    code = Agent(launch, form(launch)).launch()
    if workers.unkillable:
        screen.say(f"processes {workers.unkillable} are left: they can't be killed by this user, or by nobody")
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
    elif claimed.folder.stop_marker.exists():
        screen.say(f"`launch.py resume {name_for_verbs(claimed.folder)}` goes on")
    elif code in (ExitCode.SAVED, ExitCode.INTERRUPTED, ExitCode.STOPPED):
        screen.say(f"the same command goes on in {claimed.folder.path}")
