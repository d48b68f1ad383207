""".ci/run: everything runs that still can, and the exit code is the first failure's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Stands for make: writes down its words, fails where FAIL says so.
MAKE = """#!/bin/sh
echo "$1 $RANKRUN_REQUIRE" >> asked
[ "$1" = test ] && echo "FAILED tests/test_x.py::test_y" && echo "=== 1 failed, 2 passed in 3.21s ==="
[ "$1" != "$FAIL" ] || exit 7
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="not run, because there is no bash here; cure: install it")
@pytest.mark.parametrize(
    ("fail", "code", "stages"),
    [
        ("", 0, ["setup", "lint", "types", "test", "demo"]),
        ("lint", 7, ["setup", "lint", "types", "test", "demo"]),
        ("test", 7, ["setup", "lint", "types", "test", "demo"]),
        ("setup", 7, ["setup"]),
    ],
)
def test_stages_and_exit_code(tmp_path: Path, fail: str, code: int, stages: list[str]) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    tools = tmp_path / "bin"
    tools.mkdir()
    # Not as root, so that no package is installed here.
    for name, body in (("make", MAKE), ("id", "#!/bin/sh\necho 1000\n")):
        (tools / name).write_text(body)
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "FAIL": fail}
    done = subprocess.run([tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "asked").read_text().splitlines() == [f"{stage} slurm,netns,tmpfs,ffmpeg" for stage in stages]
    summary = done.stdout.partition("=== summary")[2]
    if "test" in stages:
        assert "FAILED tests/test_x.py::test_y" in summary
        assert "1 failed, 2 passed" in summary
    if fail:
        assert "exit 7" in summary
