"""The last lines of `make demo`: where everything is and what to type next."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[1] / "tools" / "results.py"

FINAL = {"metrics": {"rows": 355, "loss": 0.1, "top1": 0.98765}, "best": {"step": 440, "value": 0.9915}}


def results(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], cwd=folder, capture_output=True, text=True)


def test_names_what_is_there_and_the_next_commands(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "digits"
    (run / "checkpoints" / "step-00000440").mkdir(parents=True)
    (run / "best").symlink_to("checkpoints/step-00000440")
    (run / "curves.png").touch()
    (run / "final.json").write_text(json.dumps(FINAL))
    lines = results(tmp_path, "runs/digits").stdout.splitlines()
    assert lines[:3] == [
        "runs/digits is finished: loss 0.1000, top1 0.9877 (best, at step 440: 0.9915)",
        "  checkpoint     runs/digits/best -> checkpoints/step-00000440",
        "  curves         runs/digits/curves.png",
    ]
    assert lines[3] == "next:"
    assert any("predict.py runs/digits PICTURE.png" in line for line in lines[4:])
    assert not any("predictions.csv" in line for line in lines)


def test_a_run_that_is_not_finished_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    stopped = results(tmp_path, "digits")
    assert stopped.returncode == 2
    assert "digits is not a finished run" in stopped.stderr
    assert stopped.stderr.count("\n") == 1


def test_without_a_folder_it_says_how(tmp_path: Path) -> None:
    assert "usage: python tools/results.py RUN_FOLDER" in results(tmp_path).stderr
