from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.training.helpers import end_of, start_ranks

PROGRAM = ["-m", "rankrun.training.preflight", "--megabytes", "1", "--device", "cpu"]


def table(output: str) -> dict[str, str]:
    """Mark and words of each line of the table, by its name."""
    found = re.findall(r"^([✓!✗·]) (.{11}) (.*)$", output, re.MULTILINE)
    return {name.strip(): f"{mark} {words}" for mark, name, words in found}


def test_two_ranks_and_their_run_folder(tmp_path: Path) -> None:
    (tmp_path / "attempts/0003").mkdir(parents=True)
    told = {"RANKRUN_RUN_DIR": str(tmp_path), "RANKRUN_ATTEMPT": "3"}
    (code, output), (other_code, other_output) = end_of(start_ranks(PROGRAM, 2, extra=told))
    assert (code, other_code, other_output) == (0, 0, ""), output + other_output
    lines = table(output)
    names = ["join", "devices", "clock", "run folder", "network", "sum", "bandwidth"]
    assert list(lines) == names
    assert output.startswith("preflight: 2 ranks on ")
    assert lines["sum"] == "✓ right on all 2 ranks (gloo)"
    assert lines["run folder"] == "✓ written and read back"
    assert re.match(r"✓ all-reduce [0-9.]+ GB/s on every link$", lines["bandwidth"])
    assert list((tmp_path / "attempts/0003").iterdir()) == []


def test_a_process_without_any_launcher(tmp_path: Path) -> None:
    ((code, output),) = end_of(start_ranks(PROGRAM, 1, launcher="single"))
    assert code == 0, output
    assert table(output)["run folder"].startswith("· not checked")
    assert table(output)["bandwidth"] == "· one rank sends nothing"


def test_a_run_folder_that_cannot_be_written_fails_and_the_error_says_where(tmp_path: Path) -> None:
    told = {"RANKRUN_RUN_DIR": str(tmp_path / "gone"), "RANKRUN_ATTEMPT": "0"}
    (code, output), (other_code, other_output) = end_of(start_ranks(PROGRAM, 2, extra=told))
    assert (code, other_code, other_output) == (1, 0, ""), output + other_output
    assert table(output)["run folder"].startswith("✗ ")
    assert table(output)["sum"] == "· not tried, after what failed"
    (error,) = (line for line in output.splitlines() if line.startswith("E107 run folder: "))
    assert error.endswith(f"{tmp_path}/gone/attempts/0000: No such file or directory")


def test_a_rank_that_is_stopped_is_named(tmp_path: Path) -> None:
    # Rank 1 stops itself when it is asked for its GPUs, that is after it has joined.
    (tmp_path / "stops.py").write_text(
        "import os, runpy, signal, torch\n"
        "if os.environ['RANK'] == '1': torch.cuda.is_available = lambda: os.kill(os.getpid(), signal.SIGSTOP)\n"
        "runpy.run_module('rankrun.training.preflight', run_name='__main__')\n"
    )
    ranks = start_ranks([str(tmp_path / "stops.py"), "--limit", "4"], 2)
    try:
        output = ranks[0].communicate(timeout=120)[0]
    finally:
        os.kill(ranks[1].pid, signal.SIGKILL)
        ranks[1].communicate()
    assert ranks[0].returncode == 1
    lines = table(output)
    assert lines["devices"].endswith(": no answer of rank 1 within 4 s")
    assert {lines[name] for name in ("clock", "run folder", "network", "sum", "bandwidth")} == {
        "· not tried, after what failed"
    }


@pytest.mark.parametrize("words", [["--limit", "soon"], ["--megabytes", "0"], ["--limit", "-1"], ["x"]])
def test_options_that_cannot_be_are_refused(words: list[str]) -> None:
    ((code, output),) = end_of(start_ranks([*PROGRAM, *words], 1, launcher="single"))
    assert code == 2
    assert words[0].strip("-") in output
