"""A channel between two agents over TCP, where the other end may be slow, silent, cut off, or nobody of ours."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from typing import Any

from rankrun.launch.channel import Channel

_LONGEST_BYTES = 16 << 20  # a report of hundreds of ranks with their last lines
_SEND_LIMIT_S = 2


class Wire(Channel):
    """One end. It counts as closed after nonsense from its peer, and when the peer takes nothing any more."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        connection.setblocking(True)
        # A full buffer means a peer that has read nothing for minutes. Python's own time limits count for recv as well.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_LIMIT_S, 0))
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sending = threading.Lock()  # beats go out from a thread of their own
        self.heard_ns = time.monotonic_ns()
        self.peer = _address(connection.getpeername())
        self.here = _address(connection.getsockname())

    def send(self, message: dict[str, Any]) -> None:
        """Send one message whole; `closed` tells if that failed."""
        with self._sending:
            if self.closed:
                return
            try:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                self.closed = True  # whoever owns it closes it: this may be the thread that beats

    def receive(self) -> list[dict[str, Any]]:
        """Messages that have come since the last call; never waits. After nonsense the wire counts as closed."""
        try:
            messages = super().receive()
        except (ValueError, RecursionError, OSError):
            self.closed = True
            return []
        if len(self._pending) > _LONGEST_BYTES or not all(isinstance(message, dict) for message in messages):
            self.closed = True
            return []
        if messages:
            self.heard_ns = time.monotonic_ns()
        return messages


def _address(name: object) -> str:
    return str(name[0]) if isinstance(name, tuple) else ""
