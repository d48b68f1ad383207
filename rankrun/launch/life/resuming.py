"""`resume`: go on with a run as it was launched, from the folder that it was launched in."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rankrun.errors import ExitCode, OptionError, RunFolderBusy, RunFolderError
from rankrun.launch.life.finding import find_run
from rankrun.launch.options import Parser, run_parser, split_at_target
from rankrun.runfolder import RunFolder
from rankrun.runfolder.secrets import HIDDEN
from rankrun.runfolder.state import read_json, state_of
from rankrun.runfolder.stopping import remove_stop

_WATCH_S = 15.0  # of a launch elsewhere: taking the marker away from one that is slow to stop would undo the stop
_IN_PLACE = ("--name", "--log-dir", "--log_dir")


@dataclass(frozen=True)
class Again:
    """What `resume` comes to: an exit code when there is nothing to start, else the words after `launch.py run`."""

    code: int | None = None
    words: tuple[str, ...] = ()


def resume(words: list[str], env: Mapping[str, str]) -> Again:
    """`resume RUN [options] [key=value …]`: the words to run, from the folder that is now the current one.

    The stop marker is gone when this returns words or says that the command must be given by hand.
    """
    if not words or words[0] in ("-h", "--help"):
        _parser().print_help()
        return Again(ExitCode.DONE if words else ExitCode.BAD_INPUT)
    parent, word, more = _read(words)
    folder = find_run(word, parent)
    state = state_of(folder, watch_s=_WATCH_S)
    if state.is_live:
        raise RunFolderBusy(f"{folder.path} has a live launch ({state.holder}): it is {state.name}; nothing to resume")
    # Of a config it is `run` that says so: on several machines it also sends away those who wait for this one.
    if state.name == "finished" and not folder.config_file.exists():
        _forget_stop(folder)
        print(f"{folder.name} is finished; `launch.py run … --name NAME` starts another one", file=sys.stderr)
        return Again(ExitCode.DONE)
    record = read_json(folder.record_file)
    run_words = _joined(folder, _recorded(folder, record), more)
    place = _place(folder, record)
    if "--dry-run" not in more and "--dry_run" not in more:
        _forget_stop(folder)
    os.chdir(place)  # what has a relative path has had its turn
    print(f"rankrun: in {os.getcwd()}: launch.py run {shlex.join(run_words)}", file=sys.stderr)
    return Again(words=tuple(run_words))


def _parser() -> Parser:
    parser = Parser(
        prog="launch.py resume",
        usage="launch.py resume [--runs DIR] RUN [options of run] [key=value …]",
        description="Go on with a run that was stopped or has failed: the command of its last launch, from its folder.",
        epilog="Options given here come after the recorded ones: launch.py resume digits --nproc 4",
    )
    parser.add_argument("run", metavar="RUN", help="a name below runs/, or a path")
    parser.add_argument("--runs", metavar="DIR", default="runs", help="parent of the run folders (default: runs)")
    return parser


def _read(words: list[str]) -> tuple[Path, str, list[str]]:
    """Where to look, which run, and what is given for it; all after RUN is for `run`."""
    parent, rest, remaining = "runs", [], list(words)
    while remaining:
        word = remaining.pop(0)
        if word == "--runs" and remaining:
            parent = remaining.pop(0)
        elif word.startswith("--runs="):
            parent = word.partition("=")[2]
        else:
            rest.append(word)
    if not rest or rest[0].startswith("-"):
        raise OptionError(f"resume needs a RUN{f' before {rest[0]}' if rest else ''}: launch.py resume RUN [options]")
    for word in rest[1:]:
        if word.partition("=")[0] in _IN_PLACE:
            raise OptionError(f"{word}: resume goes on in the run's own folder; `run` starts another one")
    return Path(parent), rest[0], rest[1:]


def _recorded(folder: RunFolder, record: Mapping[str, object]) -> list[str]:
    """The words that go on, as the last launch has recorded them."""
    kept = record.get("resume")
    words = [word for word in kept if isinstance(word, str)] if isinstance(kept, list) else []
    command = record.get("command")
    shown = shlex.join(str(word) for word in command) if isinstance(command, list) and command else "its command"
    if words[:1] != ["run"] or len(words) < 2:
        _forget_stop(folder)
        raise OptionError(
            f"{folder.path} does not say how to go on: it was started without launch.py. Give its command again; "
            f"it may start now: {shown}"
        )
    if any(HIDDEN in word for word in words):
        _forget_stop(folder)
        raise OptionError(
            f"the command of {folder.path} held a secret, which was not kept ({HIDDEN}). Give it again, with the "
            f"secret; it may start now: {shown}"
        )
    return words[1:]


def _joined(folder: RunFolder, recorded: list[str], more: list[str]) -> list[str]:
    """The recorded words and the new ones after them, where `run` takes them for its own."""
    parser = run_parser()
    ahead, rest = split_at_target(parser, recorded)
    if folder.config_file.exists():  # after a config come options and key=value words in any order
        return [*recorded, *more]
    _, strange = split_at_target(parser, more)
    if strange:
        raise OptionError(
            f"{strange[0]!r}: after RUN come options of run; a script's own arguments are those of its first launch"
        )
    between = ["--"] if rest and rest[0].startswith("-") else []
    return [*ahead, *more, *between, *rest]


def _place(folder: RunFolder, record: Mapping[str, object]) -> str:
    """The folder of the last launch, from which relative paths of the command count."""
    place = record.get("folder")
    if not isinstance(place, str) or not Path(place).is_dir():
        raise RunFolderError(
            f"{folder.path} was launched in {place}, which is not there any more; give the command again from where "
            f"its program lies now, with --runs {folder.path.absolute().parent} --name {folder.name}"
        )
    recorded, here = record.get("path"), folder.path.resolve()
    if isinstance(recorded, str) and Path(recorded).resolve() != here:
        raise RunFolderError(
            f"{here} was {recorded} when it was launched; give the command again with --runs {here.parent} "
            f"--name {folder.name}"
        )
    return place


def _forget_stop(folder: RunFolder) -> None:
    try:
        remove_stop(folder)
    except OSError as error:
        raise RunFolderError(
            f"{folder.stop_marker} can't be removed ({error.strerror}), and no attempt begins while it is there"
        ) from error
