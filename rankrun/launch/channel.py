"""The wire between agent and warm parent: one JSON object a line over a socket pair.

Its end is the life line too: the kernel closes it with its holder, however that died.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

_READ_BYTES = 1 << 16
_AT_ONCE_BYTES = 1 << 20  # of one call: who writes without a pause must not keep the reader from everybody else


class Channel:
    """One end. `closed` is True once the other end is gone; messages sent after that are dropped."""

    def __init__(self, connection: socket.socket, longest_bytes: int = sys.maxsize) -> None:
        """A line that grows beyond `longest_bytes` counts as the end."""
        self._connection = connection
        self._pending = bytearray()  # of a line that has not ended yet
        self._drained = True  # the last call has read all that there was
        self.longest_bytes = longest_bytes
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
        """Messages that have come since the last call; never waits. What is left for the next call stays readable."""
        whole: list[bytes] = []
        read_bytes, self._drained = 0, False
        while not self.closed and read_bytes < _AT_ONCE_BYTES:
            try:
                data = self._connection.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._drained = True
                break
            except ConnectionResetError:
                data = b""
            read_bytes += len(data)
            *lines, rest = data.split(b"\n")
            if lines:
                whole += [bytes(self._pending) + lines[0], *lines[1:]]
                self._pending.clear()
            self._pending += rest
            self.closed = not data or len(self._pending) > self.longest_bytes
        return [json.loads(line) for line in whole]

    def close(self) -> None:
        """Close this end."""
        self._connection.close()
        self.closed = True
