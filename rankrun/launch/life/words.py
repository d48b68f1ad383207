"""Times and tables in words, for people whose terminals have 80 columns."""

from __future__ import annotations

import time
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int], width: int) -> list[str]:
    """Lines of aligned columns, those numbered in `right` to the right; a column that is empty in all rows is left out.

    The first column is what makes a row too wide for `width`, if anything does: such a one gets a line of its own.
    """
    kept = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    sizes = {i: max(len(header[i]), *(len(row[i]) for row in rows)) for i in kept}
    sizes[0] = min(sizes[0], max(len(header[0]), width - sum(sizes[i] + 2 for i in kept[1:])))
    lines = []
    for row in (header, *rows):
        first = row[0]
        if len(first) > sizes[0]:
            lines.append(first)
            first = ""
        cells = [first.ljust(sizes[0])]
        cells += [row[i].rjust(sizes[i]) if i in right else row[i].ljust(sizes[i]) for i in kept[1:]]
        lines.append("  ".join(cells).rstrip())
    return lines


def clock_time(seconds: float | None, now: float) -> str:
    """`20:14` for a time of today, `Nov 23` for one of the last half year, else `2026-11`; local time."""
    if seconds is None:
        return ""
    then, today = time.localtime(seconds), time.localtime(now)
    if then[:3] == today[:3]:
        return time.strftime("%H:%M", then)
    if abs(now - seconds) < 182 * 86400:
        return f"{_MONTHS[then.tm_mon - 1]} {then.tm_mday:2}"
    return time.strftime("%Y-%m", then)


def date_time(seconds: float) -> str:
    """`2026-11-23 20:14:05`, local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def span(seconds: float) -> str:
    """`5 s`, `12 min`, `3 h 20 min`, `4 days`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days"


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
