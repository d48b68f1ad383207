"""The stop marker: a file `stop` in the run folder. While it is there, the run saves and ends, and none begins."""

from __future__ import annotations

import calendar
import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankrun.errors import printable
from rankrun.runfolder.files import write_atomically
from rankrun.runfolder.paths import RunFolder

__all__ = ["StopMarker", "is_stop_wanted", "name_for_verbs", "remove_stop", "stopped_before", "want_stop"]


@dataclass(frozen=True)
class StopMarker:
    """Who asked for the end, from where and when; empty where a person made the file by hand."""

    host: str = ""
    user: str = ""
    since: str = ""

    @classmethod
    def read(cls, folder: RunFolder) -> StopMarker | None:
        """The marker of `folder`, whatever it holds; None when there is none. OSError when the disk does not answer."""
        if not is_stop_wanted(folder):
            return None
        try:
            if not folder.stop_marker.is_file():  # a pipe, say, would never be read to its end
                return cls()
            data: Any = json.loads(folder.stop_marker.read_bytes())
            return cls(*(str(data.get(name, ""))[:200] for name in ("host", "user", "since")))
        except (OSError, ValueError, AttributeError, RecursionError):
            return cls()

    def __str__(self) -> str:
        by = f" by {self.user}" if self.user else ""
        host = f" on {self.host}" if self.host else ""
        since = f" at {_local(self.since)}" if self.since else ""
        return printable(f"{by}{host}{since}".strip())


def _local(since: str) -> str:
    """A time of ours, which is UTC, on this machine's clock; what is no time, as it is."""
    try:
        seconds = calendar.timegm(time.strptime(since, "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return since
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def want_stop(folder: RunFolder, marker: StopMarker) -> None:
    """Ask the launch that holds `folder`, and every later one, to end; an older marker stays. OSError if it can't."""
    if not is_stop_wanted(folder):
        content = {"version": 1, "host": marker.host, "user": marker.user, "since": marker.since}
        write_atomically(folder.stop_marker, json.dumps(content) + "\n")


def is_stop_wanted(folder: RunFolder) -> bool:
    """Whether the marker is there, of whatever kind. OSError when the disk does not answer."""
    try:
        folder.stop_marker.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def remove_stop(folder: RunFolder) -> bool:
    """Take the marker away; whether there was one. OSError when that is not allowed."""
    try:
        folder.stop_marker.unlink()
    except FileNotFoundError:
        return False
    return True


def stopped_before(folder: RunFolder) -> str | None:
    """The line with which an attempt ends that finds the marker at its beginning; None when it may begin.

    A finished run is not stopped: that it is finished is what a person must hear.
    """
    with contextlib.suppress(OSError):  # what can't be read now is told better by the claim
        if folder.final_file.exists():
            return None
        marker = StopMarker.read(folder)
        if marker is not None:
            words = f" ({marker})" if str(marker) else ""
            return (
                f"{folder.path} was stopped{words} and stays so; nothing was started. "
                f"`launch.py resume {name_for_verbs(folder)}` goes on"
            )
    return None


def name_for_verbs(folder: RunFolder) -> str:
    """What a person types for this run after `status`, `stop` and the like: its name below runs/, else its path."""
    return folder.name if folder.path == Path("runs") / folder.name else str(folder.path)
