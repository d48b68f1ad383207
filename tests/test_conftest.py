"""What a machine lacks is said in the last lines of a test run, or fails it where RANKRUN_REQUIRE asks for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.needs("slurm")
def test_on_slurm(): pass

@pytest.mark.needs("slurm", "linux")
def test_on_slurm_too(): pass

def test_by_hand(): pytest.skip("no reason")

def test_anywhere(): pass

@pytest.mark.exhaustive
def test_one_more_cell(): pass
"""

# Stands at the end of the copied conftest.py: a machine without SLURM, whatever this one has.
WITHOUT_SLURM = """
NEEDS["slurm"] = Need(lambda: "there is no slurmctld here", "install slurm")
NEEDS["linux"] = Need(lambda: None, "")
"""


def run(folder: Path, require: str, *arguments: str) -> tuple[int, list[str], str]:
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    with (folder / "conftest.py").open("a") as file:
        file.write(WITHOUT_SLURM)
    (folder / "test_it.py").write_text(TESTS)
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    needs(*names): as in the project\n    exhaustive: as well\n"
    )
    environment = {**os.environ, "RANKRUN_REQUIRE": require}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "workers"])
def test_the_last_lines_say_what_was_left_out_why_and_the_cure(tmp_path: Path, workers: list[str]) -> None:
    code, lines, _ = run(tmp_path, "", *workers)
    assert code == 0
    assert lines[-6:] == [
        "2 tests not run, because there is no slurmctld here; cure: install slurm",
        "    test_it.py::test_on_slurm",
        "    test_it.py::test_on_slurm_too",
        "1 test skipped: no reason",
        "    test_it.py::test_by_hand",
        "1 more cells of the failure table: make faults",
    ]
    assert "test_one_more_cell" not in "\n".join(lines)


def test_whole_tables_are_tried_when_asked_for(tmp_path: Path) -> None:
    _, lines, _ = run(tmp_path, "", "--exhaustive")
    assert "2 passed" in "\n".join(lines)
    assert not any("make faults" in line for line in lines)


def test_what_is_required_fails_instead(tmp_path: Path) -> None:
    code, lines, _ = run(tmp_path, "slurm,linux")
    assert code == 1
    assert "not run, because there is no slurmctld here; cure: install slurm" in "\n".join(lines)
    assert "2 errors" in "\n".join(lines)
    assert lines[-3:-1] == ["1 test skipped: no reason", "    test_it.py::test_by_hand"]


@pytest.mark.parametrize(
    ("require", "source", "said"),
    [
        ("slrum", "", "RANKRUN_REQUIRE names slrum; known are linux, slurm, netns"),
        ("", "@pytest.mark.needs('moon')\ndef test_there(): pass", "needs 'moon'; known are linux"),
    ],
)
def test_a_name_that_nobody_knows_is_refused(tmp_path: Path, require: str, source: str, said: str) -> None:
    (tmp_path / "test_more.py").write_text(f"import pytest\n{source}\n")
    code, lines, errors = run(tmp_path, require)
    assert code != 0
    assert said in "\n".join(lines) + errors
