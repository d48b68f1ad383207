"""The audit of delivered rows: what each rank was served at which position, kept by the ranks themselves.

audit/rank-00001.jsonl, world size 2, G = 4:
{"attempt":0,"epoch":0,"step":0,"position":0,"rows":[7,2]}     positions 1 and 3 of the epoch hold rows 7 and 2
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from rankrun.runfolder.lines import JsonLines, read_json_lines
from rankrun.runfolder.paths import RunFolder

__all__ = ["AuditLog", "audit_positions"]

_FILE: Final = re.compile(r"rank-([0-9]{5,})\.jsonl\Z")


class AuditLog:
    """One rank's lines of one attempt. Write a step's line before its checkpoint is saved, never after."""

    def __init__(self, folder: RunFolder | Path, rank: int, attempt: int) -> None:
        place = folder if isinstance(folder, RunFolder) else RunFolder(folder)
        self._attempt = attempt
        self._lines = JsonLines(place.audit_file(rank))

    def write(self, epoch: int, step: int, position: int, rows: Iterable[int]) -> None:
        """Note that this rank served `rows`, in the order of their positions, to the step that began at `position`."""
        self._lines.write({
            "attempt": self._attempt,
            "epoch": int(epoch),
            "step": int(step),
            "position": int(position),
            "rows": [int(row) for row in rows],
        })  # fmt: skip

    def close(self) -> None:
        self._lines.close()


def audit_positions(
    folder: RunFolder | Path, epoch: int, world_sizes: Mapping[int, int] | None = None
) -> dict[int, int]:
    """The row that counts at each position of `epoch`, in the order of positions, from all ranks' files.

    Of the step that began at p, rank r of W holds the positions g >= p with g mod W == r. A position that several
    attempts served belongs to the highest of them. `world_sizes` gives W by attempt; where it doesn't, W is one more
    than the highest rank that wrote in the attempt. That errs only for an attempt that died before its highest rank
    wrote a single line; nothing of such an attempt was saved, so a later one serves the same step again and counts.
    """
    place = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    lines: list[tuple[int, int, int, list[int]]] = []
    seen: dict[int, int] = {}
    names = sorted(entry.name for entry in place.audit.iterdir()) if place.audit.is_dir() else []
    for name in names:
        if (match := _FILE.match(name)) is None:
            continue
        rank = int(match[1])
        for line in read_json_lines(place.audit / name):
            attempt = int(line["attempt"])
            seen[attempt] = max(seen.get(attempt, 0), rank + 1)
            if int(line["epoch"]) == epoch:
                lines.append((attempt, int(line["position"]), rank, list(line["rows"])))
    served: dict[int, tuple[int, int]] = {}
    for attempt, start, rank, rows in sorted(lines, key=lambda line: line[0]):
        world_size = (world_sizes or {}).get(attempt, seen[attempt])
        for i, row in enumerate(rows):
            # Rank r holds the positions g with g mod W == r, also where a step begins at no multiple of W.
            served[start + (rank - start) % world_size + i * world_size] = (attempt, row)
    return {position: served[position][1] for position in sorted(served)}
