"""The signals of a launch: noted when they come, acted on by the agent's loop. Only the agent gets the terminal's."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from types import FrameType

from rankrun.errors import ExitCode

# A signal that says "save and leave" by its nature, then those that have a meaning of their own: SIGUSR1 is passed on
# to ranks that listen for it, SIGUSR2 is a notice, SIGQUIT dumps all stacks and stops.
NOTICES = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
HANDLED = (*NOTICES, signal.SIGUSR1, signal.SIGQUIT)

# What a run that saved and left because of the signal leaves with; 128 + n, as a shell says it, for all others.
CODE_OF: dict[signal.Signals, int] = {
    **{number: 128 + number for number in signal.Signals},
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGHUP: ExitCode.INTERRUPTED,  # the terminal was closed: as if interrupted once
    signal.SIGTERM: ExitCode.STOPPED,
    signal.SIGUSR2: ExitCode.SAVED,
}

# How a program ends that obeys a signal which was passed on to it.
OBEYED = frozenset(
    code for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) for code in (-number, 128 + number)
)


class Interrupted(KeyboardInterrupt):
    """A signal came before anything was started: whatever was begun is undone on the way out."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.exit_code = CODE_OF[number]


class EarlySignals:
    """Until there are Signals: notices raise Interrupted, so that none of them leaves a claimed folder behind."""

    def __init__(self) -> None:
        self._seen: signal.Signals | None = None
        for number in NOTICES:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._interrupt)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # for ranks, and there are none

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        self._seen = self._seen or signal.Signals(number)
        raise Interrupted(self._seen)

    def check(self) -> None:
        """Raise Interrupted if a signal has come. What is raised while torch's C code imports numpy is swallowed."""
        if self._seen is not None:
            raise Interrupted(self._seen)


class Signals:
    """Handlers that only remember. `seen` lists what came, in order; its file number becomes readable with each.

    A signal that this process was told to ignore stays ignored: `nohup` means to outlive the terminal, and a shell's
    `&` means not to hear its Ctrl-C.
    """

    def __init__(self, named: Iterable[str] | None = None) -> None:
        """Handle HANDLED and the `named` ones; without any only NOTICES."""
        wanted = NOTICES if named is None else {*HANDLED, *(signal.Signals[name] for name in named)}
        self.seen: list[signal.Signals] = []
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        for number in wanted:
            if number == signal.SIGUSR1 or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.seen.append(signal.Signals(number))

    @property
    def told_to_leave(self) -> signal.Signals | None:
        """The first signal that means to leave; SIGUSR1 is the ranks' business."""
        return next((number for number in self.seen if number != signal.SIGUSR1), None)

    def fileno(self) -> int:
        """For selectors."""
        return self._read

    def wake(self) -> None:
        """Make the file number readable from another thread, for news that is no signal."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\0")

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
