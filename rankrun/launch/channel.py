"""The wire between agent and warm parent: one JSON object a line over a socket pair.

Its end is the life line too: the kernel closes it with its holder, however that died.
"""

from __future__ import annotations

import json
import socket
from typing import Any

_READ_BYTES = 1 << 16


class Channel:
    """One end. `closed` is True once the other end is gone; messages sent after that are dropped."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pending = b""
        self.closed = False

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two connected ends, for the two sides of a fork."""
        ours, theirs = socket.socketpair()
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        """For selectors: readable when a message or the end has come."""
        return self._connection.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Send one message whole."""
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True

    def receive(self) -> list[dict[str, Any]]:
        """Messages that have come since the last call; never waits."""
        while not self.closed:
            try:
                data = self._connection.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            self._pending += data
            self.closed = not data
        *whole, self._pending = self._pending.split(b"\n")
        return [json.loads(line) for line in whole]

    def close(self) -> None:
        """Close this end."""
        self._connection.close()
        self.closed = True
