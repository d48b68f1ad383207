"""The curves of a run as one picture, from its metrics.jsonl."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rankrun.training.metrics import read_metrics


def draw_curves(metrics_file: Path, picture: Path) -> bool:
    """Draws loss, accuracy and learning rate over the steps into `picture` (PNG); False if there is nothing to draw.

    The picture is replaced in one piece. matplotlib is imported here, since it takes a second.
    """
    kinds = read_metrics(metrics_file)
    train, evaluations = kinds.get("train", []), kinds.get("evaluate", [])
    if not train and not evaluations:
        return False
    # Figure and canvas directly: pyplot keeps global state and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    _line(panels[0], train, "loss", "training")
    _line(panels[0], evaluations, "loss", "validation", marker="o")
    panels[0].set_title("loss")
    _line(panels[1], evaluations, "top1", "top-1", marker="o")
    _line(panels[1], evaluations, "top5", "top-5", marker=".")
    panels[1].set_title("validation accuracy")
    _line(panels[2], train, "lr", "learning rate")
    panels[2].set_title("learning rate")
    for panel in panels:
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(frameon=False)
    temporary = picture.with_name(f".{picture.name}.tmp-{os.getpid()}")
    try:
        figure.savefig(temporary, format="png", dpi=110)
        os.replace(temporary, picture)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _line(panel: Any, lines: list[dict[str, Any]], key: str, label: str, marker: str = "") -> None:
    points = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), (int, float))]
    if points:
        panel.plot([step for step, _ in points], [value for _, value in points], label=label, marker=marker)
