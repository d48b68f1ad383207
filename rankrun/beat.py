"""The beat: 64 bytes of shared memory in which a rank says how far it is, so that its agent needs no message to know.

A map of its own per rank, written by the training thread only. The agent reads it at any time, also of a rank that
is stopped, hangs in a collective or is gone. A field may be one step older than its neighbour; nothing is decided on
the agreement of two fields.

Beside where it is, a rank says how long it is usually silent in each phase. It measures that itself, because an agent
that looks once a second would never see a save of 0.3 s, and could not know how long is too long when one hangs.
"""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType

SIZE_BYTES = 64
# version, phase, step, position, monotonic ns, agreed stop step; usual silence in s of START, STEP, EVALUATE, SAVE
_LAYOUT = struct.Struct("=IIqqqq4f")
_VERSION = 1
NO_STOP = -1
_FADE = 0.99  # of the longest step, at each step: a single stall is forgotten after some hundred


class Phase(IntEnum):
    """What the training thread is doing."""

    START = 0  # getting ready: of the run, and of each epoch
    STEP = 1
    EVALUATE = 2
    SAVE = 3
    DONE = 4  # finished, or saved and leaving: all that is left is the end of the process


@dataclass(frozen=True)
class Reading:
    """One look at a beat. `opened` is False until the rank's program opens it; a foreign script never does.

    `usual_s` holds, for START, STEP, EVALUATE and SAVE, the longest silence of late; 0 where it is not known yet.
    """

    opened: bool
    phase: Phase
    step: int
    position: int
    monotonic_ns: int
    stop_step: int | None
    usual_s: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)

    @property
    def started(self) -> bool:
        """Whether the program has been ready once, and gone on to a step, an evaluation or its end."""
        return self.opened and self.usual_s[Phase.START] > 0

    @classmethod
    def of(cls, raw: bytes) -> Reading:
        """The reading in the first 56 of `raw`'s 64 bytes."""
        version, phase, step, position, monotonic_ns, stop_step, *usual_s = _LAYOUT.unpack_from(raw)
        opened = version == _VERSION
        return cls(
            opened=opened,
            phase=Phase(phase) if opened and phase in Phase._value2member_map_ else Phase.START,
            step=step,
            position=position,
            monotonic_ns=monotonic_ns,
            stop_step=stop_step if opened and stop_step != NO_STOP else None,
            usual_s=tuple(usual_s),
        )


class Beat:
    """The writing end, held by the training thread of one rank.

    As a context manager it says DONE when the block is left without an exception. A rank whose program ends with 0
    and has never said so left too early, and counts as failed.
    """

    def __init__(self, memory: mmap.mmap | None) -> None:
        self._memory = memory
        self._stop_step = NO_STOP
        self._step, self._position, self._phase = 0, 0, Phase.START
        self._ns = time.monotonic_ns()
        self._steps = 0  # silences in STEP so far
        self._longest_s = [0.0] * 4
        self._usual_s = [0.0] * 4
        self._publish()

    @classmethod
    def open(cls, path: str | Path | None) -> Beat:
        """The beat that `RANKRUN_BEAT` names; None (no agent watches) gives one that writes nowhere."""
        if path is None:
            return cls(None)
        with open(path, "r+b") as file:
            return cls(mmap.mmap(file.fileno(), SIZE_BYTES))

    def __enter__(self) -> Beat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        if kind is None:
            self.write(self._step, self._position, Phase.DONE)

    def write(self, step: int, position: int, phase: Phase) -> None:
        """Say that `step` optimiser steps are done and what comes now.

        `position` tells how far this epoch, or this evaluation, is; among ranks at one step and in one phase the one
        with the least is behind.
        """
        if self._memory is None:
            return
        now_ns = time.monotonic_ns()
        self._learn((now_ns - self._ns) / 1e9, phase)
        self._step, self._position, self._phase, self._ns = step, position, phase, now_ns
        self._publish()

    def agreed(self, stop_step: int) -> None:
        """Say at which step all ranks have agreed to save and leave; written with the next `write`."""
        self._stop_step = stop_step

    def _learn(self, silent_s: float, phase: Phase) -> None:
        """The silence that ends now belongs to the phase so far; `phase` is what comes.

        A phase other than STEP is known once it was left: its first moments (opening files) and its last (waiting for
        the slowest rank) may take longer than all between them. STEP is known from the first on, which holds
        compilation and tuning, and therefore is forgotten when there is a second.
        """
        before = self._phase
        if before is Phase.DONE:
            return
        if before is Phase.STEP:
            self._steps += 1
            longest_s = 0.0 if self._steps <= 2 else self._longest_s[before] * _FADE
        else:
            longest_s = self._longest_s[before]
        self._longest_s[before] = max(silent_s, longest_s, 1e-6)
        if before is Phase.STEP or phase is not before or self._usual_s[before]:
            self._usual_s[before] = self._longest_s[before]

    def _publish(self) -> None:
        if self._memory is not None:
            head = (_VERSION, self._phase, self._step, self._position, self._ns, self._stop_step)
            _LAYOUT.pack_into(self._memory, 0, *head, *self._usual_s)
