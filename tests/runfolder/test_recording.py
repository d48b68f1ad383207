from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rankrun.runfolder import record, recording

ENV = {"PATH": os.environ.get("PATH", os.defpath), "SLURM_JOB_ID": "42", "SECRET_TOKEN": "canary0canary0"}


def take(folder: Path) -> dict[str, object]:
    return record(
        ["launch.py", "--token", "canary0canary0"], env=ENV, host="n1", since="2026-01-01T00:00:00Z", cwd=str(folder)
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    (tmp_path / "a.py").write_text("x = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    return tmp_path


def test_a_record_is_json_without_secrets(tmp_path: Path) -> None:
    made = take(tmp_path)
    text = json.dumps(made)
    assert "canary" not in text
    assert made["command"] == ["launch.py", "--token", "***"]
    assert (made["host"], made["job"], made["since"]) == ("n1", "42", "2026-01-01T00:00:00Z")
    assert isinstance(made["packages"], dict)
    assert "pyyaml" in made["packages"]


def test_a_clean_clone_has_a_commit_and_no_diff(clone: Path) -> None:
    git = take(clone)["git"]
    assert isinstance(git, dict)
    assert len(git["commit"]) == 40
    assert (git["dirty"], git["diff"], git["diff_is_cut"]) == (False, "", False)


def test_a_dirty_clone_keeps_its_diff_masked_and_bounded(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / "a.py").write_text('x = 2\npassword = "canary0canary0"\n')
    git = take(clone)["git"]
    assert isinstance(git, dict)
    assert git["dirty"] is True
    assert "+x = 2" in git["diff"]
    assert "canary" not in git["diff"]
    monkeypatch.setattr(recording, "MOST_DIFF_BYTES", 50)
    cut = take(clone)["git"]
    assert isinstance(cut, dict)
    assert (len(cut["diff"]), cut["diff_is_cut"]) == (51, True)


def test_programs_that_a_clone_names_are_not_started(clone: Path) -> None:
    canary = clone / "canary"
    script = clone / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {canary}\n")
    script.chmod(0o755)
    for key in ("core.fsmonitor", "diff.external", "diff.evil.textconv", "diff.evil.command", "core.pager"):
        subprocess.run(["git", "config", key, str(script)], cwd=clone, check=True)
    (clone / ".gitattributes").write_text("*.py diff=evil\n")
    (clone / "a.py").write_text("x = 3\n")
    git = take(clone)["git"]
    assert isinstance(git, dict)
    assert "+x = 3" in git["diff"]
    assert not canary.exists()


def test_no_clone_and_no_git_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert take(tmp_path)["git"] is None
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(ENV, "PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert take(tmp_path)["git"] is None


def test_a_git_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 1000\n")
    (tmp_path / "git").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{ENV['PATH']}"
    monkeypatch.setitem(ENV, "PATH", path)
    monkeypatch.setenv("PATH", path)
    monkeypatch.setattr(recording, "GIT_LIMIT_S", 0.05)
    assert take(tmp_path)["git"] is None
