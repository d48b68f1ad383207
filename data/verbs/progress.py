"""A bar that says how far a long look at data has come: on a terminal only, and gone when it is done."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

_REDRAWN_S = 0.1
_QUIET_S = 0.3  # what is done by then needs no bar
_WIDE_COLUMNS = 100


class Progress:
    """A context in which `to(done)` redraws the bar, ten times a second at most.

        checking  ━━━━━━━━━━━━         62%   9 s left   620,000 of 1,000,000 rows

    Where the stream is no terminal, nothing is written. Parts that a narrow terminal has no room for are left out,
    and the bar's line is wiped at the end, so that what is printed next stands where it was.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        *,
        shows: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._begun = self._drawn = clock()
        self._width = 0
        self._shows = shows and self._stream.isatty()

    def to(self, done: int, note: str = "") -> None:
        """`done` of the total are done; `note` stands at the end of the line."""
        now = self._clock()
        if not self._shows or now - self._begun < _QUIET_S or now - self._drawn < _REDRAWN_S:
            return
        self._drawn = now
        self._draw(self._line(done, now - self._begun, note))

    def begin(self, title: str) -> None:
        """Another pass over the same, under another title."""
        self.title, self._begun = title, self._clock()

    def wait(self) -> None:
        """Says the title alone, for what can't tell how far it is."""
        self._draw(f"{self.title} …")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw("")

    def _draw(self, line: str) -> None:
        """Blanks and not an escape sequence wipe what was longer: every terminal knows those."""
        if not self._shows or not (line or self._width):
            return
        blanks = " " * max(0, self._width - len(line))
        try:
            self._stream.write(f"\r{line}{blanks}" + ("" if line else "\r"))
            self._stream.flush()
        except OSError:  # the terminal is gone; the work isn't
            self._shows = False
        self._width = len(line)

    def _line(self, done: int, passed_s: float, note: str) -> str:
        share = min(1.0, done / self.total) if self.total > 0 else 0.0
        room = self._columns - 1
        bar = _bar(share, 32 if room >= _WIDE_COLUMNS else 20, self._encoding)
        parts = [f"{self.title}  {bar} {int(100 * share):3d}%"]
        rate = done / passed_s if passed_s > 0 else 0.0
        left = f"{_duration((self.total - done) / rate)} left" if rate > 0 else ""
        # the most wanted first: what doesn't fit is left out from the end
        more = [left, note, f"{done:,} of {self.total:,} {self.unit}", f"{rate:,.0f}/s"]
        for part in filter(None, more):
            if len(parts[0]) + sum(len(p) + 3 for p in parts[1:]) + 3 + len(part) <= room:
                parts.append(part)
        return "   ".join(parts)[:room]

    @property
    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    @property
    def _encoding(self) -> str:
        return (self._stream.encoding or "ascii").lower().replace("-", "")


def rows(number: int) -> str:
    """ "1 row", "1,281,167 rows"."""
    return f"{number:,} row{'' if number == 1 else 's'}"


def _bar(share: float, columns: int, encoding: str) -> str:
    halves = int(share * 2 * columns)
    if encoding != "utf8":
        return ("#" * (halves // 2)).ljust(columns, "-")
    return ("━" * (halves // 2) + "╸" * (halves % 2)).ljust(columns)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36 * 3600 else f"{seconds / 86400:.1f} days"
