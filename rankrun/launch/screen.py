"""What the person sees: rank 0's log as it is, other ranks' lines with their rank in front, and what the launcher says.

One thread does all the writing. A terminal that is stopped (Ctrl-S, a full pipe) blocks it and nothing else: not a
restart, not the heartbeat, not the grace of a notice.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_POLL_S = 0.1
_CHUNK_BYTES = 1 << 16
_LONGEST_LINE_BYTES = 1 << 16  # a longer one is shown in pieces
_STDOUT, _STDERR = 1, 2


def say(line: str) -> None:
    """One line of the launcher's own, for as long as there is no Screen."""
    _write(_STDERR, f"rankrun: {line}\n".encode(errors="backslashreplace"))


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
    fd: int
    file: BinaryIO | None = None
    begun: bytes = b""  # an unfinished line of a rank that is shown with a prefix


class Screen:
    """Follows logs and says lines, in order, from a thread of its own; no method but `close` waits for the terminal."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._logs: dict[Hashable, _Shown] = {}  # the thread's
        self._paths: dict[Hashable, Path] = {}  # the caller's
        self._gone: set[int] = set()
        self._plain_line_begun = False  # on stdout, by a rank that is shown plain
        self._thread = threading.Thread(target=self._work, name="screen", daemon=True)

    def start(self) -> None:
        """Begin; only after the last fork of this process."""
        self._thread.start()

    def show(self, path: Path, prefix: str | None, *, key: Hashable = None, to_stderr: bool = False) -> None:
        """Follow one more log, from its beginning, instead of the one that had this key before.

        Without a key the prefix is it.
        """
        key = prefix if key is None else key
        self._paths[key] = path
        mark = prefix.encode(errors="surrogateescape") if prefix is not None else None
        self._orders.put(lambda: self._exchange(key, _Shown(path, mark, _STDERR if to_stderr else _STDOUT)))

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
            try:
                order()
            except Exception as error:  # one order that can't be followed must not end all that come after it
                say(f"the screen misses something: {type(error).__name__}: {error}")
        self._copy_all(last=True)
        for log in self._logs.values():
            if log.file is not None:
                log.file.close()

    def _exchange(self, key: Hashable, new: _Shown) -> None:
        self._copy_all()
        old = self._logs.get(key)
        if old is not None:
            self._copy(old, last=True)
            if old.file is not None:
                old.file.close()
        self._logs[key] = new

    def _say(self, line: str) -> None:
        self._copy_all()
        if self._plain_line_begun and os.isatty(_STDOUT):  # in a file it would be a byte that no rank has written
            self._end_plain_line()
        say(line)

    def _copy_all(self, *, last: bool = False) -> None:
        for log in self._logs.values():
            self._copy(log, last=last)

    def _copy(self, log: _Shown, *, last: bool) -> None:
        if log.file is None:
            try:
                log.file = open(log.path, "rb")  # noqa: SIM115  # open as long as it is followed
            except OSError:
                return
        with contextlib.suppress(OSError):  # a disk that does not answer may do so the next time
            while data := log.file.read(_CHUNK_BYTES):
                self._show(log, data)
        if last and log.begun:
            self._show(log, b"\n")

    def _show(self, log: _Shown, data: bytes) -> None:
        if log.prefix is None:
            self._put(log.fd, data)
            if log.fd == _STDOUT:
                self._plain_line_begun = not data.endswith((b"\n", b"\r"))
            return
        lines = self._lines(log, data)
        if lines and self._plain_line_begun and log.fd == _STDOUT:
            self._end_plain_line()  # else a progress bar or a prompt and another rank's words were one line
        self._put(log.fd, b"".join(log.prefix + line + b"\n" for line in lines))

    def _lines(self, log: _Shown, data: bytes) -> list[bytes]:
        """The finished lines; a progress bar's carriage return ends a line as well."""
        *lines, log.begun = re.split(rb"[\r\n]+", log.begun + data)
        if len(log.begun) > _LONGEST_LINE_BYTES:
            lines.append(log.begun)
            log.begun = b""
        return [line for line in lines if line]

    def _end_plain_line(self) -> None:
        self._put(_STDOUT, b"\n")
        self._plain_line_begun = False

    def _put(self, fd: int, data: bytes) -> None:
        if data and fd not in self._gone and not _write(fd, data):
            self._gone.add(fd)  # the logs have everything
