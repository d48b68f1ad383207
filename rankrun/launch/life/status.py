"""`status`: one run, at length."""

from __future__ import annotations

import shlex
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

from rankrun.errors import ExitCode, OptionError, printable
from rankrun.launch.life.facts import Facts, facts_of
from rankrun.launch.life.finding import find_run, runs_in
from rankrun.launch.life.words import date_time, span
from rankrun.launch.options import Parser
from rankrun.runfolder import RunFolder
from rankrun.runfolder.state import RunState, read_json, state_of, states_of
from rankrun.runfolder.stopping import StopMarker, name_for_verbs

_WIDTH = 80
_LABEL = 10


def status(words: list[str], env: Mapping[str, str]) -> int:
    """`status [RUN] [--runs DIR]`: what a run does or how it ended; without RUN the only live one, else the newest."""
    parser = Parser(prog="launch.py status", description="What a run does, or how it ended, from its folder.")
    parser.add_argument(
        "run",
        metavar="RUN",
        nargs="?",
        help="a name below runs/, or a path (default: the only live one, else the newest)",
    )
    parser.add_argument("--runs", metavar="DIR", default="runs", help="parent of the run folders (default: runs)")
    found = parser.parse_args(words)
    parent = Path(found.runs)
    if found.run is None:
        folder, state, others = _the_one(parent)
    else:
        folder = find_run(found.run, parent)
        state, others = state_of(folder), ""
    print("\n".join(describe(folder, state, facts_of(folder, state), now=time.time())))
    if others:
        print(others)
    return ExitCode.DONE


def _the_one(parent: Path) -> tuple[RunFolder, RunState, str]:
    """The only live run of a folder, else the newest; and a line when that was a choice."""
    folders = runs_in(parent)
    if not folders:
        raise OptionError(f"there are no runs in {parent}; --runs DIR names another place")
    pairs = sorted(zip(folders, states_of(folders), strict=True), key=lambda pair: pair[1].began or 0.0)
    live = [pair for pair in pairs if pair[1].is_live]
    folder, state = live[0] if len(live) == 1 else (live or pairs)[-1]
    others = len(live) - 1
    more = f"{others} other run{'s' if others > 1 else ''} are live: launch.py list" if others > 0 else ""
    return folder, state, more.replace("run are", "run is")


def describe(folder: RunFolder, state: RunState, facts: Facts, *, now: float) -> list[str]:
    """The lines of `status`, each of 80 columns at most unless a path or a command is longer."""
    record = read_json(folder.record_file)
    lines = [*_wrapped("run", str(folder.path)), *_wrapped("state", _state(state))]
    if state.note:
        lines += _wrapped("", state.note)
    marker = StopMarker.read(folder)
    if marker is not None and state.name != "finished":
        lines += _wrapped("stop", f"asked for{f' {marker}' if str(marker) else ''}")
    if state.attempt is not None:
        lines += _wrapped("attempt", str(state.attempt))
    if state.name != "starting" and (progress := _progress(facts)):
        lines += _wrapped("progress", progress)
    if facts.metrics:
        shown = ", ".join(f"{printable(name)} {value:.4g}" for name, value in list(facts.metrics.items())[:8])
        lines += _wrapped("evaluated", shown)
    if facts.saved is not None:
        lines += _wrapped("saved", facts.saved)
    lines += _times(state, now)
    if state.holder is not None:
        job = f", SLURM job {state.holder.job}" if state.holder.job else ""
        pid = f", pid {state.holder.pid}" if state.is_live or state.name == "unknown" else ""
        lines += _wrapped("host", printable(f"{state.holder.host}{pid}{job}"))
    command = record.get("command")
    if isinstance(command, list) and command:
        lines += _wrapped("command", printable(shlex.join(str(word) for word in command)))
    rank = _blamed(folder, state)
    if state.attempt is not None and folder.log_file(state.attempt, rank).exists():
        lines.append(f"{'log':{_LABEL}}{folder.log_file(state.attempt, rank)}")
    if state.attempt is not None and any(folder.stacks(state.attempt).glob("rank-*")):
        lines.append(f"{'stacks':{_LABEL}}{folder.stacks(state.attempt)}")
    for label, verb in zip(("next", ""), _next(state, marker is not None, rank), strict=False):
        lines.append(f"{label:{_LABEL}}launch.py {verb.format(shlex.quote(name_for_verbs(folder)))}")
    return lines


def _blamed(folder: RunFolder, state: RunState) -> int:
    """The rank whose log tells most: the one that the verdict names, else rank 0."""
    if state.name != "failed" or state.attempt is None:
        return 0
    rank = read_json(folder.verdict_file(state.attempt)).get("rank")
    return rank if isinstance(rank, int) and rank >= 0 else 0


def _state(state: RunState) -> str:
    code = f" (exit code {state.code})" if state.code and "exit code" not in state.detail else ""
    return f"{state.name}{code}{': ' if state.detail else ''}{state.detail}"


def _progress(facts: Facts) -> str:
    parts = []
    if facts.epoch is not None:
        parts.append(f"{facts.epoch} of {facts.epochs} epochs done" if facts.epochs else f"{facts.epoch} epochs done")
    if facts.step is not None:
        parts.append(f"step {facts.step}")
    if facts.loss is not None:
        parts.append(f"loss {facts.loss:.4f}")
    if facts.images_per_s is not None:
        parts.append(f"{facts.images_per_s:.0f} images/s")
    if facts.left_s is not None:
        parts.append(f"{span(facts.left_s)} left")
    return ", ".join(parts)


def _times(state: RunState, now: float) -> list[str]:
    lines = []
    if state.began is not None:
        running = f", {span(now - state.began)} ago" if state.is_live else ""
        lines.append(f"{'launched':{_LABEL}}{date_time(state.began)}{running}")
    if state.since is not None and not state.is_live:
        label = "last seen" if state.name in ("dead", "unknown") else "ended"
        lines.append(f"{label:{_LABEL}}{date_time(state.since)}")
    return lines


def _next(state: RunState, marked: bool, rank: int) -> list[str]:
    """What a person may want to do now."""
    if state.is_live:
        return ["logs {} -f"] if marked else ["logs {} -f", "stop {}"]
    return [] if state.name == "finished" else ["resume {}", f"logs {{}} --rank {rank}" if rank else "logs {}"]


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{label:{_LABEL}}",
        subsequent_indent=" " * _LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )
