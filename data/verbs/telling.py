"""The words of `data check`: what a look at every row found, with the rows of each class as bars."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import counted
from .check import Report
from .progress import rows

BAR_COLUMNS = 40
NAME_COLUMNS = 24
ALL_CLASSES = 20  # of more, only those with the most and the fewest rows are drawn
SOME_CLASSES = 5
SHOWN_REPEATS = 3

Counts = npt.NDArray[np.int64]


def describe_report(report: Report, named: str, *, decode: bool = False) -> list[str]:
    """Lines about a report: a verdict, then labels, repeats, overlaps."""
    meta = report.meta
    classes = counted(meta.num_classes, "class", "classes")
    overlaps = "" if report.against is None else f"{rows(report.overlaps.size)} of this set"
    overlaps += f" {'is' if report.overlaps.size == 1 else 'are'} in the other, too"
    if report.bad == 0 and report.overlaps.size:
        lines = [f"{named}: {overlaps}; {rows(meta.n)}, {classes}"]
    elif report.bad == 0:
        lines = [f"{named}: good, {rows(meta.n)}, {classes}"]
    else:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in report.found.items())
        lines = [
            f"{named}: {report.bad:,} of {rows(meta.n)} {'is' if report.bad == 1 else 'are'} bad ({kinds}), {classes}"
        ]
    if meta.told:
        lines.append(f"read as: {meta.told.removeprefix(f'{named}: ')}")
    looked = "lines, and every image decoded" if decode else "lines and files; --decode opens every image too"
    lines += [f"looked at: {looked}", f"fingerprint: {meta.fingerprint}"]
    lines += describe_labels(meta.classes, report.counts)
    if report.repeats.size:
        lines += _repeats(report)
    if report.against is not None:
        lines.append(f"overlap: {overlaps}")
    return lines


def describe_labels(names: tuple[str, ...], counts: Counts) -> list[str]:
    """How many rows each class has: a line of numbers, then bars, of many classes for the largest and smallest."""
    held = counts[counts > 0]
    if held.size == 0:
        return ["labels: not one row with a good label"]
    least, most, middle = int(held.min()), int(held.max()), int(np.median(held))
    spread = (
        f"{rows(most)} in each class" if least == most else f"{least:,} … {most:,} rows per class, median {middle:,}"
    )
    without = np.flatnonzero(counts == 0)
    if without.size:
        few = ", ".join(names[label] for label in without[:SOME_CLASSES].tolist())
        more = ", …" if without.size > SOME_CLASSES else ""
        spread += f"; {counted(without.size, 'class', 'classes')} without a row ({few}{more})"
    lines = [f"labels: {spread}"]
    if counts.size <= 1 or (least == most and not without.size):
        return lines
    drawn: list[int | None] = list(range(counts.size))
    if counts.size > ALL_CLASSES:
        order = np.argsort(-counts, kind="stable").tolist()
        drawn = [*order[:SOME_CLASSES], None, *order[-SOME_CLASSES:]]
    shown = [label for label in drawn if label is not None]
    wide = min(NAME_COLUMNS, max(len(names[label]) for label in shown))
    digits = max(len(f"{counts[label]:,}") for label in shown)
    for label in drawn:
        if label is None:
            lines.append(f"  {'…':<{wide}}")
            continue
        name = names[label] if len(names[label]) <= wide else names[label][: wide - 1] + "…"
        lines.append(f"  {name:<{wide}}  {counts[label]:>{digits},}  {bar(int(counts[label]) / most)}".rstrip())
    return lines


def bar(share: float, columns: int = BAR_COLUMNS) -> str:
    """A bar of eighths of a column; something, however small, is never drawn as nothing."""
    eighths = max(round(share * columns * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _repeats(report: Report) -> list[str]:
    meta = report.meta
    conflicts = f", {report.conflicts:,} of them with another label" if report.conflicts else ""
    lines = [f"repeats: {rows(report.repeats.size)} of what an earlier row names already{conflicts}"]
    pairs = zip(report.repeats[:SHOWN_REPEATS].tolist(), report.repeated[:SHOWN_REPEATS].tolist(), strict=True)
    lines += [f"  {meta.place(row)} as in {meta.line_of(first)}" for row, first in pairs]
    if report.repeats.size > SHOWN_REPEATS:
        lines.append(f"  … and {report.repeats.size - SHOWN_REPEATS:,} more")
    return lines
