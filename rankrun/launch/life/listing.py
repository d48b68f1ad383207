"""`list`: all runs of a folder in one table."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rankrun.errors import ExitCode
from rankrun.launch.life.facts import Facts, facts_of
from rankrun.launch.life.finding import runs_in
from rankrun.launch.life.words import clock_time, table
from rankrun.launch.options import Parser
from rankrun.runfolder import RunFolder
from rankrun.runfolder.state import RunState, states_of

_WIDTH = 80


def list_runs(words: list[str], env: Mapping[str, str]) -> int:
    """`list [--runs DIR]`: a line for each run, the one that was launched last at the end."""
    parser = Parser(prog="launch.py list", description="All runs of a folder, the newest last.")
    parser.add_argument("--runs", metavar="DIR", default="runs", help="parent of the run folders (default: runs)")
    parent = Path(parser.parse_args(words).runs)
    folders = runs_in(parent)
    if not folders:
        print(f"there are no runs in {parent}")
        return ExitCode.DONE
    width = shutil.get_terminal_size((_WIDTH, 24)).columns if sys.stdout.isatty() else _WIDTH
    found = [
        (folder, state, facts_of(folder, state)) for folder, state in zip(folders, states_of(folders), strict=True)
    ]
    found.sort(key=lambda each: (each[1].began or 0.0, each[0].name))
    header = ("RUN", "STATE", "ATTEMPT", "EPOCH", "STEP", "TOP1", "SINCE", "HOST")
    rows = [_row(*each, now=time.time()) for each in found]
    print("\n".join(table(header, rows, right=(2, 3, 4, 5), width=width)))
    return ExitCode.DONE


def _row(folder: RunFolder, state: RunState, facts: Facts, now: float) -> tuple[str, ...]:
    epoch = "" if facts.epoch is None else f"{facts.epoch}/{facts.epochs}" if facts.epochs else str(facts.epoch)
    return (
        folder.name,
        state.name,
        "" if state.attempt is None else str(state.attempt),
        epoch,
        "" if facts.step is None else str(facts.step),
        "" if facts.top1 is None else f"{facts.top1:.4f}",
        clock_time(state.since, now),
        state.holder.host.partition(".")[0][:12] if state.holder is not None else "",
    )
