"""What a run is doing, or how it ended, told from its folder alone: the one place that decides.

live/ and its launch lives        starting  running  saving  restarting  stopping      as it says of itself
live/ and nobody can tell         unknown: held from another machine, and its heart stands still
final.json                        finished
attempts/N/outcome                finished (0)  stopped (143, 75)  interrupted (130)  failed (any other)
none of these                     dead: the launch went without a word
"""

from __future__ import annotations

import calendar
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rankrun.errors import ExitCode, printable
from rankrun.runfolder.holder import Holder, Life, is_suspended, life_of, this_process
from rankrun.runfolder.live import HEARTBEAT, heartbeat_of, holder_of, status_in
from rankrun.runfolder.paths import RunFolder

__all__ = ["LIVE", "RunState", "is_run_folder", "state_of", "states_of"]

# What a launch may say of itself; anything else that it says is told as "running".
LIVE: Final = ("starting", "running", "saving", "restarting", "stopping")
WATCH_S: Final = 2.5  # a launch beats every second; network file systems show it a little later
_LOOK_S: Final = 0.1
_OLD_S: Final = 600.0
_MOST_BYTES: Final = 8 << 20  # a record holds a diff


@dataclass(frozen=True)
class RunState:
    """`name` is a word of the table above, `detail` what there is to say beside it, without line breaks.

    `since` is the time of this state in seconds since 1970: of the launch's begin while it is live, of its end or last
    sign of life else; `began` that of the newest launch. None where the folder does not say. `code` is the exit code
    of a launch that has ended.
    """

    name: str
    detail: str = ""
    attempt: int | None = None
    began: float | None = None
    since: float | None = None
    holder: Holder | None = None
    code: int | None = None
    note: str = ""

    @property
    def is_live(self) -> bool:
        """Whether a launch holds the run for certain."""
        return self.name in LIVE


def is_run_folder(path: Path) -> bool:
    """Whether a launch has been here."""
    return any(os.path.exists(path / name) for name in ("record.json", "live", "attempts"))


def state_of(folder: RunFolder, *, watch_s: float | None = None) -> RunState:
    """The state of one run; see `states_of`."""
    return states_of([folder], watch_s=watch_s)[0]


def states_of(
    folders: Sequence[RunFolder],
    *,
    watch_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[RunState]:
    """The states of runs, in their order.

    A launch on this machine is looked up among its processes, at once. For those elsewhere the heartbeats of all are
    watched together, for `watch_s` at most (WATCH_S). One that has been still for ten minutes by its file's time is not
    waited for: clocks of two machines may be that far apart, but all that comes of it is the word "unknown".
    """
    me = this_process("", "", {})
    lives: list[Life | None] = []
    for folder in folders:
        holder = holder_of(folder)
        lives.append(
            life_of(holder, me) if holder is not None else ("unknown" if os.path.exists(folder.live) else None)
        )
    watched = {
        i: heartbeat_of(folders[i]) for i, life in enumerate(lives) if life == "unknown" and not _is_old(folders[i])
    }
    end = clock() + (WATCH_S if watch_s is None else watch_s)
    while watched and clock() < end:
        sleep(_LOOK_S)
        for i in list(watched):
            if heartbeat_of(folders[i]) != watched[i]:
                del watched[i]
                lives[i] = "alive"
    return [_readable(folder, life, me) for folder, life in zip(folders, lives, strict=True)]


def _is_old(folder: RunFolder) -> bool:
    changed = _changed(folder.live / HEARTBEAT)
    return changed is not None and time.time() - changed > _OLD_S


def _readable(folder: RunFolder, life: Life | None, me: Holder) -> RunState:
    """One folder that can't be read must not hide the others."""
    try:
        # It may have ended while others were watched.
        return _judged(folder, life if os.path.exists(folder.live) else None, me)
    except OSError as error:
        return RunState("unknown", f"{error.filename or folder.path} can't be read: {error.strerror}")


def _judged(folder: RunFolder, life: Life | None, me: Holder) -> RunState:
    attempt = max(folder.attempt_numbers(), default=None)
    holder = holder_of(folder) if life is not None else None
    newest = holder or _last_holder(folder)
    began = _seconds(newest.since) if newest is not None else None
    heartbeat = heartbeat_of(folder)
    if life == "alive":
        name, detail = _in_words(heartbeat)
        note = ""
        if holder is not None and is_suspended(holder):
            note = f"its launcher is suspended: nothing is watched or saved until `kill -CONT {holder.pid}`"
        return RunState(name, detail, attempt, began, began, holder, note=note)
    rebooted = holder is not None and holder.host == me.host and "" != holder.boot_id != me.boot_id
    if life == "unknown" and not rebooted:
        return _unknown(folder, heartbeat, attempt, began, holder)
    if folder.final_file.exists():
        return RunState("finished", "", attempt, began, _changed(folder.final_file), newest, ExitCode.DONE)
    if attempt is not None:
        code = _outcome(folder.outcome_file(attempt))
        if code is not None:
            name, detail = _ended(folder, attempt, code)
            ended = _changed(folder.outcome_file(attempt))
            return RunState(name, detail, attempt, began, ended, newest, code)
    last = folder.live / HEARTBEAT
    if life is None and newest is not None:
        last = folder.launches / newest.token / HEARTBEAT
        if not _is_launchers(folder):
            words = "ended, and how is not known: it was started without launch.py"
            return RunState("unknown", words, attempt, began, _changed(last), newest)
    why = verdict_in_a_line(folder, attempt) if attempt is not None else ""
    how = "its machine went down" if rebooted else "its launch went without a word"
    words = f"{how}{_was(heartbeat)}{f'; before that: {why}' if why else ''}"
    return RunState("dead", words, attempt, began, _changed(last), newest)


def _unknown(
    folder: RunFolder, heartbeat: bytes, attempt: int | None, began: float | None, holder: Holder | None
) -> RunState:
    last = _changed(folder.live / HEARTBEAT)
    if holder is None:
        return RunState("unknown", "live/ is there and names nobody", attempt, began, last)
    words = f"held from host {holder.host}, and gives no sign of life{_was(heartbeat)}"
    return RunState("unknown", words, attempt, began, last, holder)


def _in_words(heartbeat: bytes) -> tuple[str, str]:
    """What a launch says it does, and the rest of its words."""
    status = status_in(heartbeat)
    word, _, rest = status.partition(" ")
    if word == "stopping":
        # The keeper puts this word before what the agent says.
        inner, _, more = rest.partition(" ")
        return word, (more if inner == "running" else rest).strip()
    if word in LIVE:
        return word, rest.strip()
    if not status and not heartbeat[:20].strip(b"0"):
        return "starting", ""  # it has not beaten yet
    return "running", status


def _was(heartbeat: bytes) -> str:
    """The last that a launch said of itself, which may have been nothing."""
    return f"; it was {' '.join(_in_words(heartbeat)).strip()}" if status_in(heartbeat) else ""


def _ended(folder: RunFolder, attempt: int, code: int) -> tuple[str, str]:
    if code == ExitCode.DONE:
        return "finished", ""
    # 143 is also what a rank gives that somebody sent a SIGTERM.
    if read_json(folder.verdict_file(attempt)).get("by_itself") is True:
        return "failed", verdict_in_a_line(folder, attempt)
    if code == ExitCode.STOPPED:
        return "stopped", ""
    if code == ExitCode.SAVED:
        return "stopped", "saved at a notice, and wants to go on"
    if code == ExitCode.INTERRUPTED:
        return "interrupted", ""
    return "failed", verdict_in_a_line(folder, attempt) or f"exit code {code}"


def verdict_in_a_line(folder: RunFolder, attempt: int) -> str:
    """The root cause of an attempt that failed; empty when there is no verdict."""
    verdict = read_json(folder.verdict_file(attempt))
    how = verdict.get("how")
    if not isinstance(how, str):
        return ""
    line = verdict.get("line")
    if not isinstance(line, str):
        rank, host, where = verdict.get("rank"), verdict.get("host"), verdict.get("where")
        line = f"rank {rank} on {host} failed{f' at {where}' if where else ''}: {how}"
    return printable(line)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of ours; empty for what is missing, torn, strange or endless."""
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _outcome(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii")[:20])
    except (OSError, ValueError):
        return None


def _last_holder(folder: RunFolder) -> Holder | None:
    """Who held the run last; a launch's token begins with its time, so names are in order."""
    try:
        names = sorted((entry.name for entry in folder.launches.iterdir()), reverse=True)
    except OSError:
        return None
    for name in names:
        try:
            holder = Holder.from_json((folder.launches / name / "holder.json").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
        if holder is not None:
            return holder
    return None


def _is_launchers(folder: RunFolder) -> bool:
    """Whether launch.py made the newest attempt: it writes an outcome on every way out, train.py alone none."""
    command = read_json(folder.record_file).get("command")
    return isinstance(command, list) and command[:1] == ["launch.py"]


def _seconds(since: str) -> float | None:
    try:
        return float(calendar.timegm(time.strptime(since, "%Y-%m-%dT%H:%M:%SZ")))
    except ValueError:
        return None


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
