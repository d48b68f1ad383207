"""What the benchmarks here share: rounds that interleave the ways compared, medians with their spread, the machine.

    times = interleaved({"ours": ours, "wc": wc})      each way once per round, one round ahead that is not counted
    print(compare("index", times, "ours", "wc", at_most=1.0))

A way is a function that does its work once. It returns its own seconds as a float (a child process that measures
itself), or anything else, and is then timed from the outside. That all ways give the same result is checked by the
script before anything is timed.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int = 5, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every way in every counted round; within a round all ways run one after the other, so that what
    else the machine does meets them alike. Every second round runs them in reverse."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-warmup, rounds):
        order = list(ways) if number % 2 == 0 else list(ways)[::-1]
        for name in order:
            seconds = timed(ways[name])
            if number >= 0:
                times[name].append(seconds)
    return times


def timed(way: Callable[[], object]) -> float:
    """Seconds of one call: what it returns if that is a float, else what the clock says."""
    began = time.perf_counter()
    answer = way()
    passed = time.perf_counter() - began
    return answer if isinstance(answer, float) else passed


def compare(
    title: str,
    times: Mapping[str, Sequence[float]],
    ours: str,
    theirs: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> str:
    """Lines with both medians and the ratio, taken round by round: ours / theirs (held against `at_most`), or, with
    `at_least`, theirs / ours: how many times faster."""
    faster = at_least is not None
    ratios = [b / a if faster else a / b for a, b in zip(times[ours], times[theirs], strict=True)]
    named = f"{theirs} / {ours}" if faster else f"{ours} / {theirs}"
    lines = [f"{title}:", *(f"  {name:24} {spread(times[name])}" for name in (ours, theirs))]
    return "\n".join(
        [*lines, f"  {named:24} {spread(ratios, 'x')}{bound(statistics.median(ratios), at_most, at_least)}"]
    )


def bound(figure: float, at_most: float | None = None, at_least: float | None = None) -> str:
    """' (≤ 1: holds)', ' (≥ 8: MISSED)', or nothing where there is no bound."""
    if at_most is not None:
        return f"   (≤ {at_most:g}: {'holds' if figure <= at_most else 'MISSED'})"
    if at_least is not None:
        return f"   (≥ {at_least:g}: {'holds' if figure >= at_least else 'MISSED'})"
    return ""


def spread(figures: Sequence[float], unit: str = "s") -> str:
    """'median [least … most] n'; seconds below one are told in ms or µs."""
    scale = 1.0
    if unit == "s" and (median := statistics.median(figures)) < 1:
        scale, unit = (1e3, "ms") if median >= 1e-3 else (1e6, "µs")
    low, mid, high = (scale * f(figures) for f in (min, statistics.median, max))
    return f"{mid:9.3f} {unit} [{low:.3f} … {high:.3f}]  n={len(figures)}"


def machine(*packages: str) -> str:
    """One line for the head of every result: processor, cores, memory, Python and the versions of packages."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    with_versions = ", ".join(f"{name} {version(name)}" for name in packages)
    words = [model, f"{os.cpu_count()} cores", f"{memory:.0f} GiB", f"{platform.system()} {platform.release()}"]
    return ", ".join([*words, f"Python {platform.python_version()}", *([with_versions] if with_versions else [])])
