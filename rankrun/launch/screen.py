"""What the person sees of the ranks: rank 0's log as it is, other ranks' lines with their rank in front."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_POLL_S = 0.1
_CHUNK_BYTES = 1 << 16


def say(line: str) -> None:
    """One line of the launcher's own; a closed terminal is no reason to stop."""
    try:
        print(f"rankrun: {line}", file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open("/dev/null", "w")  # noqa: SIM115  # for the rest of the process


@dataclass
class _Shown:
    path: Path
    prefix: bytes | None
    file: BinaryIO | None = None
    begun: bytes = b""  # an unfinished line of a rank that is shown with a prefix


class Screen:
    """Copies logs to the terminal from a thread of its own, so that a slow terminal delays nothing."""

    def __init__(self) -> None:
        self._logs: list[_Shown] = []
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._gone = False
        self._thread = threading.Thread(target=self._follow, name="screen", daemon=True)

    def start(self) -> None:
        """Begin; only after the last fork of this process."""
        self._thread.start()

    def show(self, path: Path, prefix: str | None) -> None:
        """Follow one more log, from its beginning, instead of the one that had this prefix before."""
        mark = prefix.encode() if prefix is not None else None
        with self._lock:
            for log in self._logs:
                self._copy(log, last=True)
                if log.prefix == mark and log.file is not None:
                    log.file.close()
            self._logs = [log for log in self._logs if log.prefix != mark]
            self._logs.append(_Shown(path, mark))

    def shows(self, path: Path) -> bool:
        """Whether a log is on the terminal already."""
        return any(log.path == path for log in self._logs)

    def drain(self) -> None:
        """Show what has been written so far."""
        with self._lock:
            for log in self._logs:
                self._copy(log, last=True)

    def close(self) -> None:
        """Show the rest and end."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        self.drain()
        for log in self._logs:
            if log.file is not None:
                log.file.close()

    def _follow(self) -> None:
        while not self._done.wait(_POLL_S):
            with self._lock:
                for log in self._logs:
                    self._copy(log, last=False)

    def _copy(self, log: _Shown, *, last: bool) -> None:
        if log.file is None:
            try:
                log.file = open(log.path, "rb")  # noqa: SIM115  # open as long as it is followed
            except FileNotFoundError:
                return
        while data := log.file.read(_CHUNK_BYTES):
            self._put(self._marked(log, data))
        if last and log.begun:
            self._put(self._marked(log, b"\n"))

    def _marked(self, log: _Shown, data: bytes) -> bytes:
        if log.prefix is None:
            return data
        *lines, log.begun = (log.begun + data).split(b"\n")
        return b"".join(log.prefix + line + b"\n" for line in lines)

    def _put(self, data: bytes) -> None:
        if self._gone:
            return
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except (OSError, ValueError):
            self._gone = True  # the terminal or the pipe is closed; the logs have everything
