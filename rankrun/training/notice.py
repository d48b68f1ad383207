"""A notice: somebody wants this run to save and leave. Every rank hears it sooner or later; all act at one step."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from rankrun.errors import ExitCode

_NOTHING, _SAVE, _INTERRUPT = range(3)
_EXIT_CODES = {_SAVE: ExitCode.SAVED, _INTERRUPT: ExitCode.INTERRUPTED}


class Ranks(Protocol):
    """What a notice needs of a process group."""

    world_size: int

    def start_max(self, value: int) -> Callable[[], int]: ...


class Notice:
    """Set by a signal at any time, read at the end of steps.

    The ranks agree without waiting for each other: at the end of every step each starts a tiny all-reduce of what it
    has heard, and reads the one that it started a step earlier, which has long arrived (a blocking one costs 0.75 ms
    at four gloo ranks). All read the same value at the same step, however far apart the signals came, even if only
    one rank got one. A notice that comes during a restore, an evaluation or a save waits for the next steps.
    """

    def __init__(self) -> None:
        self._heard = _NOTHING
        self._pending: Callable[[], int] | None = None

    @classmethod
    def install(cls, *, interrupts: bool) -> Notice:
        """Listens for SIGUSR2 (save, leave with 75) and, with `interrupts`, for SIGINT (save, leave with 130).

        `interrupts` is for ranks that a terminal reaches; under rankrun's agent it is the agent that a person
        interrupts. SIGUSR2 is unblocked last: a launcher may fork its ranks with it blocked, so that one sent before
        now stays pending and is heard here. A second SIGINT raises KeyboardInterrupt.
        """
        notice = cls()
        signal.signal(signal.SIGUSR2, notice._hear)
        if interrupts:
            signal.signal(signal.SIGINT, notice._hear)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        for number in (signal.SIGUSR2, signal.SIGTERM):
            # While Python ends it gives signals their default effect back: a notice that comes so late would make a
            # run that has finished, or saved, one that was killed.
            atexit.register(signal.signal, number, signal.SIG_IGN)
        return notice

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._heard == _INTERRUPT:
            raise KeyboardInterrupt
        self._heard = max(self._heard, _INTERRUPT if number == signal.SIGINT else _SAVE)

    def agreed(self, ranks: Ranks) -> ExitCode | None:
        """At the end of a step, on all ranks: what to leave with once this step is saved, or None to go on."""
        if ranks.world_size == 1:
            return _EXIT_CODES.get(self._heard)
        heard = self._pending() if self._pending is not None else _NOTHING
        self._pending = ranks.start_max(self._heard) if heard == _NOTHING else None
        return _EXIT_CODES.get(heard)
