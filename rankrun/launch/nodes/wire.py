"""A channel between two agents over TCP, where the other end may be slow, silent, cut off, or nobody of ours."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

from rankrun.launch.channel import Channel

LONGEST_BYTES = 16 << 20  # a report of hundreds of ranks with their last lines
_SEND_LIMIT_S = 2
_LOOK_S = 0.01


class Wire(Channel):
    """One end. It counts as closed after nonsense from its peer, and when the peer takes nothing any more."""

    def __init__(self, connection: socket.socket, longest_bytes: int = LONGEST_BYTES) -> None:
        super().__init__(connection, longest_bytes)
        connection.setblocking(True)
        # A full buffer means a peer that has read nothing for minutes. Python's own time limits count for recv as well.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_LIMIT_S, 0))
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sending = threading.Lock()  # beats go out from a thread of their own
        self._send_failed = False
        self.heard_ns = time.monotonic_ns()
        self.peer = _address(connection.getpeername())
        self.here = _address(connection.getsockname())

    def send(self, message: dict[str, Any]) -> None:
        """Send one message whole. After a failure nothing more is sent; `receive` has the last words, then the end."""
        with self._sending:
            if self.closed or self._send_failed:
                return
            try:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                self._send_failed = True  # whoever owns it closes it: this may be the thread that beats

    def receive(self) -> list[dict[str, Any]]:
        """Messages that have come since the last call; never waits. After nonsense the wire counts as closed."""
        failed = self._send_failed  # asked first: what had come by then is read below
        try:
            messages = super().receive()
        except (ValueError, RecursionError, OSError):
            self.closed = True
            return []
        self.closed |= failed and self._drained
        if not all(isinstance(message, dict) for message in messages):
            self.closed = True
            return []
        if messages:
            self.heard_ns = time.monotonic_ns()
        return messages

    def say_no_more(self) -> None:
        """Let the peer read what was sent and then the end."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close this end. What lies unread would make the kernel take back what was sent last, so it is read."""
        self.say_no_more()
        self.receive()
        with self._sending:  # the number of the socket may be another file's a moment later
            super().close()


def part(wires: Sequence[Wire], limit_s: float) -> None:
    """Close all once their peers have read the last words and closed as well, at the latest after `limit_s`."""
    deadline = time.monotonic() + limit_s
    for wire in wires:
        wire.say_no_more()
    for wire in wires:
        while not wire.closed and time.monotonic() < deadline:
            if not wire.receive():
                time.sleep(_LOOK_S)
        wire.close()


def _address(name: object) -> str:
    return str(name[0]) if isinstance(name, tuple) else ""
