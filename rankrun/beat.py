"""The beat: 64 bytes of shared memory in which a rank says how far it is, so that its agent needs no message to know.

A map of its own per rank, written by the training thread only. The agent reads it at any time, also of a rank that
is stopped, hangs in a collective or is gone. A field may be one step older than its neighbour; nothing is decided on
the agreement of two fields.
"""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SIZE_BYTES = 64
_LAYOUT = struct.Struct("=IIqqqq")  # version, phase, step, position, monotonic ns, agreed stop step
_VERSION = 1
NO_STOP = -1


class Phase(IntEnum):
    """What the training thread is doing."""

    START = 0
    STEP = 1
    EVALUATE = 2
    SAVE = 3


@dataclass(frozen=True)
class Reading:
    """One look at a beat. `opened` is False until the rank's program opens it; a foreign script never does."""

    opened: bool
    phase: Phase
    step: int
    position: int
    monotonic_ns: int
    stop_step: int | None

    @classmethod
    def of(cls, raw: bytes) -> Reading:
        """The reading in the first 40 of `raw`'s 64 bytes."""
        version, phase, step, position, monotonic_ns, stop_step = _LAYOUT.unpack_from(raw)
        return cls(
            opened=version == _VERSION,
            phase=Phase(phase) if phase in Phase._value2member_map_ else Phase.START,
            step=step,
            position=position,
            monotonic_ns=monotonic_ns,
            stop_step=stop_step if version == _VERSION and stop_step != NO_STOP else None,
        )


class Beat:
    """The writing end, held by the training thread of one rank."""

    def __init__(self, memory: mmap.mmap | None) -> None:
        self._memory = memory
        self._stop_step = NO_STOP
        self.write(0, 0, Phase.START)

    @classmethod
    def open(cls, path: str | Path | None) -> Beat:
        """The beat that `RANKRUN_BEAT` names; None (no agent watches) gives one that writes nowhere."""
        if path is None:
            return cls(None)
        with open(path, "r+b") as file:
            return cls(mmap.mmap(file.fileno(), SIZE_BYTES))

    def write(self, step: int, position: int, phase: Phase) -> None:
        """Say that `step` optimiser steps are done, `position` samples of this epoch given, and what comes now."""
        if self._memory is not None:
            _LAYOUT.pack_into(self._memory, 0, _VERSION, phase, step, position, time.monotonic_ns(), self._stop_step)

    def agreed(self, stop_step: int) -> None:
        """Say at which step all ranks have agreed to save and leave; written with the next `write`."""
        self._stop_step = stop_step
