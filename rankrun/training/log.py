"""The person's log: rank 0 speaks in plain timed lines; others only when something is wrong with them."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import TextIO, TypeVar

T = TypeVar("T")


class Log:
    """Lines with the time of day, flushed one by one, so that a kill loses none."""

    def __init__(self, rank: int, stream: TextIO | None = None) -> None:
        self._rank = rank
        self._stream = stream if stream is not None else sys.stdout

    def say(self, *lines: str | None) -> None:
        """Lines of rank 0; nothing on other ranks, where the same has happened. None is passed over."""
        for text in lines:
            if self._rank == 0 and text is not None:
                self._line(text)

    def warn(self, text: str) -> None:
        """A line of any rank, with its number."""
        self._line(f"warning (rank {self._rank}): {text}")

    def _line(self, text: str) -> None:
        print(f"{datetime.now():%H:%M:%S}  {text}", file=self._stream, flush=True)


class Meter:
    """What the steps since the last reading cost: images per second over all ranks, the share of waiting for data."""

    def __init__(self, steps_left: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._steps_left = steps_left
        self._steps = 0
        self._images = 0
        self._waited_s = 0.0
        self._since = clock()

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """`batches`, with the time that each took to come counted as waiting."""
        iterator = iter(batches)
        while True:
            asked = self._clock()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited_s += self._clock() - asked
            yield batch

    def step(self, images: int) -> None:
        """One step of `images` samples over all ranks is done."""
        self._steps += 1
        self._images += images
        self._steps_left -= 1

    def pause(self) -> None:
        """What happened since the last reading was no training (an evaluation, say) and is not counted."""
        self._steps, self._images, self._waited_s, self._since = 0, 0, 0.0, self._clock()

    def read(self) -> dict[str, float | int]:
        """`images_per_s`, `data_wait` (share of 1), `memory_bytes` (peak of this process), `eta_s`; starts anew."""
        passed_s = max(self._clock() - self._since, 1e-9)
        reading: dict[str, float | int] = {
            "images_per_s": round(self._images / passed_s, 1),
            "data_wait": round(min(1.0, self._waited_s / passed_s), 4),
            "memory_bytes": peak_memory_bytes(),
            "eta_s": round(passed_s / max(1, self._steps) * self._steps_left, 1),
        }
        self.pause()
        return reading


def peak_memory_bytes() -> int:
    """The most memory that this process has held at once, without its loader workers."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def duration(seconds: float) -> str:
    """`1:02:03`: whole seconds for a person."""
    return str(timedelta(seconds=round(seconds)))
