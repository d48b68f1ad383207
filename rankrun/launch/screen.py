"""What the person sees: rank 0's log as it is, other ranks' lines with their rank in front, and what the launcher says.

One thread does all the writing. A terminal that is stopped (Ctrl-S, a full pipe) blocks it and nothing else: not a
restart, not the heartbeat, not the grace of a notice.
"""

from __future__ import annotations

import os
import queue
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_POLL_S = 0.1
_CHUNK_BYTES = 1 << 16
_LONGEST_LINE_BYTES = 1 << 16  # a longer one is shown in pieces
_STDOUT, _STDERR = 1, 2


def say(line: str) -> None:
    """One line of the launcher's own, for as long as there is no Screen."""
    _write(_STDERR, f"rankrun: {line}\n".encode())


def _write(fd: int, data: bytes) -> bool:
    """Write all of it, past Python's buffers, which would make the interpreter's end wait for a blocked thread.

    False if the terminal or the pipe is closed, which is no reason to stop a run.
    """
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        return False
    return True


@dataclass
class _Shown:
    path: Path
    prefix: bytes | None
    file: BinaryIO | None = None
    begun: bytes = b""  # an unfinished line of a rank that is shown with a prefix


class Screen:
    """Follows logs and says lines, in order, from a thread of its own; no method but `close` waits for the terminal."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._logs: list[_Shown] = []  # the thread's
        self._paths: dict[str | None, Path] = {}  # the caller's
        self._gone = False
        self._thread = threading.Thread(target=self._work, name="screen", daemon=True)

    def start(self) -> None:
        """Begin; only after the last fork of this process."""
        self._thread.start()

    def show(self, path: Path, prefix: str | None) -> None:
        """Follow one more log, from its beginning, instead of the one that had this prefix before."""
        self._paths[prefix] = path
        self._orders.put(lambda: self._exchange(path, prefix.encode() if prefix is not None else None))

    def shows(self, path: Path) -> bool:
        """Whether a log is on the terminal."""
        return path in self._paths.values()

    def say(self, line: str) -> None:
        """One line of the launcher's own, after what the logs hold by then."""
        self._orders.put(lambda: self._say(line))

    def close(self, give_up: Callable[[], bool] = lambda: False) -> None:
        """Show the rest and end. Waits for a slow terminal, as every program does, until `give_up` says otherwise."""
        self._orders.put(None)
        while self._thread.is_alive() and not give_up():
            self._thread.join(_POLL_S)

    def _work(self) -> None:
        while True:
            try:
                order = self._orders.get(timeout=_POLL_S)
            except queue.Empty:
                self._copy_all()
                continue
            if order is None:
                break
            order()
        self._copy_all(last=True)
        for log in self._logs:
            if log.file is not None:
                log.file.close()

    def _exchange(self, path: Path, prefix: bytes | None) -> None:
        self._copy_all()
        for log in self._logs:
            if log.prefix == prefix:
                self._copy(log, last=True)
                if log.file is not None:
                    log.file.close()
        self._logs = [*(log for log in self._logs if log.prefix != prefix), _Shown(path, prefix)]

    def _say(self, line: str) -> None:
        self._copy_all()
        say(line)

    def _copy_all(self, *, last: bool = False) -> None:
        for log in self._logs:
            self._copy(log, last=last)

    def _copy(self, log: _Shown, *, last: bool) -> None:
        if log.file is None:
            try:
                log.file = open(log.path, "rb")  # noqa: SIM115  # open as long as it is followed
            except OSError:
                return
        while data := log.file.read(_CHUNK_BYTES):
            self._put(self._marked(log, data))
        if last and log.begun:
            self._put(self._marked(log, b"\n"))

    def _marked(self, log: _Shown, data: bytes) -> bytes:
        """With its prefix before every line; a progress bar's carriage return ends a line as well."""
        if log.prefix is None:
            return data
        *lines, log.begun = re.split(rb"[\r\n]+", log.begun + data)
        if len(log.begun) > _LONGEST_LINE_BYTES:
            lines.append(log.begun)
            log.begun = b""
        return b"".join(log.prefix + line + b"\n" for line in lines if line)

    def _put(self, data: bytes) -> None:
        if data and not self._gone:
            self._gone = not _write(_STDOUT, data)  # the logs have everything
