"""`stop`: ask a run, wherever it runs, to save and end; wait until it has, and say what is left."""

from __future__ import annotations

import os
import pwd
import shlex
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rankrun.errors import ExitCode, RunFolderError
from rankrun.launch.life.facts import newest_checkpoint
from rankrun.launch.life.finding import find_run
from rankrun.launch.life.vigil import Vigil
from rankrun.launch.options import Parser
from rankrun.runfolder import RunFolder
from rankrun.runfolder.live import heartbeat_of, status_in
from rankrun.runfolder.state import RunState, is_run_folder, state_of
from rankrun.runfolder.stopping import StopMarker, name_for_verbs, remove_stop, want_stop

_LOOK_S = 0.2
_SILENT_S = 60.0  # a launch that beats and then doesn't for so long is suspended, or its disk hangs, or it is gone
_STARTING_S = 600.0  # before its first beat it imports torch, which from a cold network disk takes minutes
_DEAF_BEATS = 10  # whoever beats so often without hearing the marker does not look for it


def stop(
    words: list[str],
    env: Mapping[str, str],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """`stop RUN [--no-wait] [--runs DIR]`: 0 when the run has ended, 1 when something is still there."""
    parser = Parser(
        prog="launch.py stop",
        description="Ask a run to save and end. No attempt of it begins any more until `launch.py resume RUN`.",
    )
    parser.add_argument("run", metavar="RUN", help="a name below runs/, or a path")
    parser.add_argument("--no-wait", action="store_true", help="ask, and do not wait for the end")
    parser.add_argument("--runs", metavar="DIR", default="runs", help="parent of the run folders (default: runs)")
    found = parser.parse_args(words)
    folder = find_run(found.run, Path(found.runs))
    state = state_of(folder)
    if not state.is_live and state.name != "unknown" and not _may_come_back(state):
        print(f"{folder.name} is not running: {state.name}{f' ({state.detail})' if state.detail else ''}")
        return ExitCode.DONE
    vigil = Vigil(folder, clock)
    try:
        want_stop(folder, _marker())
    except OSError as error:
        hint = f"; SIGTERM does the same to {_holder(vigil)}" if vigil.holder is not None else ""
        raise RunFolderError(
            f"{folder.stop_marker} can't be written: {error.strerror}; nothing was stopped{hint}"
        ) from error
    if not state.is_live and state.name != "unknown":
        print(f"{folder.name} is not running now ({state.name}), and will not begin again")
        return ExitCode.DONE
    asked = f"{folder.name} is asked to stop ({_holder(vigil)})"
    if found.no_wait:
        print(f"{asked}; launch.py status {shlex.quote(name_for_verbs(folder))} tells when it has")
        return ExitCode.DONE
    print(f"{asked}; waiting for it to save and leave", flush=True)
    try:
        why = _wait(folder, vigil, sleep)
    except KeyboardInterrupt:
        print(
            f"{folder.name} goes on stopping; launch.py status {shlex.quote(name_for_verbs(folder))} tells when it has"
        )
        return ExitCode.INTERRUPTED
    if why is not None:
        print(f"{folder.name} is still there ({_holder(vigil)}): {why}")
        return ExitCode.FAILED
    _tell_end(folder)
    return ExitCode.DONE


def _may_come_back(state: RunState) -> bool:
    """Whether SLURM may start a run again that does not run now: its job saved and wants to go on, or was killed."""
    in_job = state.holder is not None and state.holder.job is not None
    return in_job and (state.name == "dead" or state.code == ExitCode.SAVED)


def _marker() -> StopMarker:
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return StopMarker(socket.gethostname(), user, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def _holder(vigil: Vigil) -> str:
    holder = vigil.holder
    return f"pid {holder.pid} on {holder.host}" if holder is not None else "its launch gives no name"


def _wait(folder: RunFolder, vigil: Vigil, sleep: Callable[[float], None]) -> str | None:
    """None when the launch has let go of the run, else why nobody should wait any longer."""
    heard = False
    while vigil.look():
        heartbeat = heartbeat_of(folder)
        heard = heard or status_in(heartbeat).startswith("stopping")
        if not heard and vigil.beats > _DEAF_BEATS:
            remove_stop(folder)  # nobody would ever hear it, and it would only hinder a later launch
            return "it was started without launch.py, which alone hears of this; end it as it was started"
        limit = _SILENT_S if heartbeat[:20].strip(b"0") else _STARTING_S
        if vigil.silent_s > limit:
            note = state_of(folder, watch_s=0.0).note or f"it has given no sign of life for {limit:.0f} s"
            return f"{note}. It ends as soon as it goes on"
        sleep(_LOOK_S)
    return None


def _tell_end(folder: RunFolder) -> None:
    if not is_run_folder(folder.path):
        print(f"{folder.name} is gone: its launch was refused before it had begun")
        return
    state = state_of(folder)
    if state.name == "finished":
        remove_stop(folder)  # it was faster
        print(f"{folder.name} finished before it could be stopped")
        return
    saved = newest_checkpoint(folder)
    what = f"; saved: {saved}" if saved else "; it has no checkpoint" if folder.config_file.exists() else ""
    how = "" if state.name == "stopped" else f" ({state.detail})" if state.detail else ""
    print(f"{folder.name}: {state.name}{how}{what}")
    print(f"launch.py resume {shlex.quote(name_for_verbs(folder))} goes on")
