"""The signals of a launch: noted when they come, acted on by the agent's loop. Only the agent gets the terminal's."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType

from rankrun.errors import ExitCode

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)

# What a run that saved and left because of the signal leaves with.
CODE_OF = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGHUP: ExitCode.INTERRUPTED,  # the terminal was closed: as if interrupted once
    signal.SIGTERM: ExitCode.STOPPED,
    signal.SIGUSR2: ExitCode.SAVED,
}


class Signals:
    """Handlers that only remember. `seen` lists what came, in order; its file number becomes readable with each.

    A signal that this process was told to ignore stays ignored: `nohup` means to outlive the terminal, and a shell's
    `&` means not to hear its Ctrl-C.
    """

    def __init__(self) -> None:
        self.seen: list[signal.Signals] = []
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        for number in HANDLED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.seen.append(signal.Signals(number))

    def fileno(self) -> int:
        """For selectors."""
        return self._read

    def drain(self) -> None:
        """Make the file number wait for the next signal again."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                continue

    def close(self) -> None:
        """Give the pipe back, in a process that has handlers of its own; the handlers are the caller's business."""
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)
