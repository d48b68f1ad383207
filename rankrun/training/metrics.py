"""metrics.jsonl: one line per logged step and per evaluation, over all attempts of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankrun.runfolder import JsonLines, read_json_lines


class MetricsLog:
    """Appends lines to `path` on rank 0; other ranks (path None) write nothing.

    A step that a later attempt does again stands there again; `read_metrics` knows which one counts. Lines that the
    disk refuses are missing, which `warn` is told once: no run ends for want of a line to look at.
    """

    def __init__(self, path: Path | None, attempt: int, warn: Callable[[str], None]) -> None:
        self._path = path
        self._attempt = attempt
        self._warn = warn
        self._lines: JsonLines | None = None
        self._warned = False

    def write(self, kind: str, step: int, epoch: int, values: Mapping[str, Any]) -> None:
        """A line of `kind` `train` or `evaluate` after `step` steps, in `epoch`. NaN and infinities become null."""
        if self._path is None:
            return
        line = {"kind": kind, "attempt": self._attempt, "step": step, "epoch": epoch, **values}
        try:
            if self._lines is None:
                self._lines = JsonLines(self._path)
            self._lines.write({key: finite(value) for key, value in line.items()})
        except OSError as error:
            if not self._warned:
                self._warn(f"step {step} and maybe later ones are missing in {self._path} ({error}); the run goes on")
            self._warned = True


def finite(value: Any) -> Any:
    """`value`, or None for a float that JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines that count, by kind, in the order of steps: of several for one step the highest attempt's.

    Lines that a kill tore, or that lack what every line has, are passed over.
    """
    counts: dict[tuple[str, int], dict[str, Any]] = {}
    for line in read_json_lines(path):
        kind, step, attempt = line.get("kind"), line.get("step"), line.get("attempt")
        if not isinstance(kind, str) or not isinstance(step, int) or not isinstance(attempt, int):
            continue
        earlier = counts.get((kind, step))
        if earlier is None or earlier["attempt"] <= attempt:
            counts[kind, step] = line
    kinds: dict[str, list[dict[str, Any]]] = {}
    for kind, step in sorted(counts):
        kinds.setdefault(kind, []).append(counts[kind, step])
    return kinds
