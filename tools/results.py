"""Says where a finished run left everything and what to type next; the last lines of `make demo`.

    python tools/results.py runs/digits

It reads final.json, so a run that is not finished is told as such.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def lines(run: Path) -> list[str]:
    """What `run` holds, one line each; raises OSError where it has no final.json."""
    final = json.loads((run / "final.json").read_text())
    metrics = {name: value for name, value in final["metrics"].items() if isinstance(value, float)}
    said = [f"{run} is finished: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())]
    if best := final.get("best"):
        said[0] += f" (best, at step {best['step']}: {best['value']:.4f})"
    places = {
        "checkpoint": run / "best",
        "curves": run / "curves.png",
        "predictions": run / "predictions.csv",
        "measurements": run / "metrics.jsonl",
        "configuration": run / "config.yaml",
    }
    for what, place in places.items():
        if place.exists():
            target = f" -> {place.readlink()}" if place.is_symlink() else ""
            said.append(f"  {what:14} {place}{target}")
    said += [
        "next:",
        f"  {shown(sys.executable)} predict.py {run} PICTURE.png",
        "  make run CONFIG=configs/digits.yaml ARGS='--name mine optim.lr=0.05'",
        "  make fashion EPOCHS=5",
    ]
    return said


def shown(python: str) -> str:
    """The interpreter as one would type it here."""
    path = Path(python)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else python


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python tools/results.py RUN_FOLDER")
    try:
        said = lines(Path(sys.argv[1]))
    except OSError as error:
        print(f"results.py: {sys.argv[1]} is not a finished run ({error})", file=sys.stderr)
        raise SystemExit(2) from None
    print("\n".join(said))


if __name__ == "__main__":
    main()
