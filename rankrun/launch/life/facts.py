"""How far a run is and what it has to show, from the files that its program keeps."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rankrun.runfolder import RunFolder
from rankrun.runfolder.state import RunState, read_json

_TAIL_BYTES: Final = 256 * 1024  # holds hundreds of lines, of which the last of each kind are wanted
_NOT_METRICS: Final = ("attempt", "step", "epoch", "rows")
_CHECKPOINT: Final = re.compile(r"step-([0-9]{8,})\Z")


@dataclass(frozen=True)
class Facts:
    """What is known; None and empty for what isn't. `epoch` counts whole epochs, `left_s` is the program's estimate."""

    step: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    images_per_s: float | None = None
    left_s: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    saved: str | None = None

    @property
    def top1(self) -> float | None:
        """Of the newest evaluation."""
        return self.metrics.get("top1")


def facts_of(folder: RunFolder, state: RunState) -> Facts:
    """What the folder tells; files that are missing, torn or strange tell nothing."""
    epochs, saved = _epochs(folder), newest_checkpoint(folder)
    final = read_json(folder.final_file) if state.name == "finished" else {}
    if final:
        metrics = _metrics(final.get("metrics"))
        return Facts(_whole(final, "step"), _whole(final, "epoch"), epochs, metrics=metrics, saved=saved)
    lines = _last_lines(folder.metrics_file)
    train, evaluated = lines.get("train", {}), lines.get("evaluate", {})
    newest = next(iter(lines.values()), {})
    step, epoch = _whole(newest, "step"), _whole(newest, "epoch")
    is_now = state.is_live and newest.get("attempt") == state.attempt
    if state.is_live and (told := re.search(r"\bstep ([0-9]{1,12})\b", state.detail)) is not None:
        # Its own words are of this second, the files' of the last line that was due; but an attempt that goes on from
        # a checkpoint begins behind what an earlier one has written.
        step = max(int(told[1]), step or 0) if is_now else int(told[1])
    if saved is not None and not state.is_live:
        step = max(step or 0, int(saved.rpartition("-")[2]))  # of lines only some are due, of a save the last one
    rates = _numbers(train) if is_now else {}
    return Facts(
        step,
        epoch,
        epochs,
        loss=_numbers(train).get("loss"),
        images_per_s=rates.get("images_per_s"),
        left_s=rates.get("eta_s"),
        metrics=_metrics(evaluated),
        saved=saved,
    )


def newest_checkpoint(folder: RunFolder) -> str | None:
    """The name of the newest checkpoint that has its manifest, which is written last."""
    try:
        names = [entry.name for entry in folder.checkpoints.iterdir() if _CHECKPOINT.match(entry.name)]
    except OSError:
        return None
    whole = (
        name for name in sorted(names, reverse=True) if os.path.isfile(folder.checkpoints / name / "manifest.json")
    )
    return next(whole, None)


def _last_lines(path: Path) -> dict[str, dict[str, Any]]:
    """The last whole line of each kind near the end of a metrics file, the newer one first."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            content = file.read(_TAIL_BYTES)
    except OSError:
        return {}
    found: dict[str, dict[str, Any]] = {}
    wanted = {"train": b'"train"', "evaluate": b'"evaluate"'}
    for text in reversed(content.split(b"\n")):
        if not any(word in text for word in wanted.values()):  # parsing every line takes five times as long
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue  # torn by a kill, or by where we began to read
        kind = line.get("kind") if isinstance(line, dict) else None
        if isinstance(kind, str) and wanted.pop(kind, None) is not None:
            found[kind] = line
    return found


def _epochs(folder: RunFolder) -> int | None:
    """How many epochs the run is to have. The frozen config is ours, so its shape is known and no YAML is loaded."""
    try:
        with open(folder.config_file, encoding="utf-8") as file:
            text = file.read(1 << 20)
    except (OSError, UnicodeDecodeError):
        return None
    found = re.search(r"^train:\n(?:  .*\n)*?  epochs: ([0-9]{1,9})$", text, re.MULTILINE)
    return int(found[1]) if found else None


def _whole(line: dict[str, Any], name: str) -> int | None:
    value = line.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _metrics(line: object) -> dict[str, float]:
    return {name: value for name, value in _numbers(line).items() if name not in _NOT_METRICS}


def _numbers(line: object) -> dict[str, float]:
    if not isinstance(line, dict):
        return {}
    return {
        str(name): float(value)
        for name, value in line.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
