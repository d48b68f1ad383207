"""The Makefile's verbs: listed, and saying the right commands, with the features of GNU make 3.81 only."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = ROOT / "Makefile"
VERBS = ["help", "setup", "demo", "fashion", "run", "test", "test-fast", "faults", "lint", "format", "types", "bench"]
VERBS += ["wheel", "clean"]


def environment() -> dict[str, str]:
    """Ours without what an outer `make test VENV=… ARGS=…` hands down to every make below it."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}


def make(*words: str, cwd: Path = ROOT, path: str = "") -> subprocess.CompletedProcess[str]:
    """`make WORDS`; `path` is a folder of tools to prefer."""
    env = environment()
    env["PATH"] = f"{path}:{env['PATH']}" if path else env["PATH"]
    return subprocess.run(["make", *words], cwd=cwd, env=env, capture_output=True, text=True)


def dry(*words: str) -> str:
    """What `make WORDS` would run, in one line per command, without the quotes and runs of spaces."""
    done = make("-n", *words)
    assert done.returncode == 0, done.stderr
    return re.sub(r" +", " ", done.stdout.replace("\\\n", " ").replace('"', ""))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A project whose set-up does nothing and whose Python writes down what it is asked to run."""
    folder = tmp_path / "a clone"
    (folder / "tools").mkdir(parents=True)
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(MAKEFILE, folder)
    (folder / "tools" / "setup.sh").write_text('echo "VENV=$VENV TORCH=$TORCH PYTHON=$PYTHON" >> asked\n')
    python = folder / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@" >> asked\n')
    python.chmod(0o755)
    return folder


def asked(clone: Path) -> list[str]:
    return (clone / "asked").read_text().splitlines()


def test_help_comes_first_and_lists_every_verb() -> None:
    plain, named = make(), make("help")
    assert plain.stdout == named.stdout
    assert re.findall(r"^  make ([a-z-]+)", plain.stdout, re.MULTILINE) == VERBS
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE.read_text(), re.MULTILINE)
    assert phony.split() == VERBS


def test_only_features_of_make_3_81() -> None:
    newer = r"^\.ONESHELL|^\.RECIPEPREFIX|!=|::=|\$\(file |^undefine|^define .*=|\$\(let |\$\(intcmp |^[^\t#]*&:"
    assert re.findall(newer, MAKEFILE.read_text(), re.MULTILINE) == []


def test_demo_says_its_commands_in_order() -> None:
    said = dry("demo", "START=")
    order = [
        "tools/setup.sh",
        "datasets/digits.py",
        "launch.py run configs/digits.yaml --nproc 2",
        "predict.py runs/digits",
    ]
    places = [said.index(part) for part in [*order, "tools/results.py runs/digits"]]
    assert places == sorted(places)


def test_fashion_names_another_folder_for_another_number_of_epochs() -> None:
    assert "--name fashion_mnist-5-epochs train.epochs=5" in dry("fashion", "EPOCHS=5")
    plain = dry("fashion")
    assert "--name fashion_mnist \n" in plain or "--name fashion_mnist\n" in plain
    assert "train.epochs" not in plain
    assert "datasets/fashion_mnist.py --from /data/idx" in dry("fashion", "FASHION=/data/idx")


def test_run_hands_over_config_ranks_and_words(clone: Path) -> None:
    done = make("run", "CONFIG=configs/my run.yaml", "NPROC=3", "ARGS=optim.lr=0.05", "START=", cwd=clone)
    assert done.returncode == 0, done.stderr
    assert asked(clone)[-1] == "launch.py run configs/my run.yaml --nproc 3 optim.lr=0.05"


def test_run_without_a_config_says_how(clone: Path) -> None:
    stopped = make("run", cwd=clone)
    assert stopped.returncode == 2
    assert "make run: which? make run CONFIG=" in stopped.stderr


def test_where_fork_is_not_safe_ranks_are_executed(clone: Path) -> None:
    fake = clone / "bin"
    fake.mkdir()
    (fake / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (fake / "uname").chmod(0o755)
    done = make("run", "CONFIG=c.yaml", cwd=clone, path=str(fake))
    assert done.returncode == 0, done.stderr
    assert asked(clone)[-1] == "launch.py run c.yaml --nproc 2 --start exec"


def test_settings_reach_the_set_up(clone: Path) -> None:
    make("setup", "VENV=/big/my env", "TORCH=system", "PYTHON=python3.12", cwd=clone)
    assert asked(clone) == ["VENV=/big/my env TORCH=system PYTHON=python3.12"]


def test_tests_and_checks_run_what_they_say(clone: Path) -> None:
    for verb in ("test", "test-fast", "faults", "lint", "types"):
        assert make(verb, cwd=clone).returncode == 0
    commands = [line for line in asked(clone) if not line.startswith("VENV=")]
    assert commands == [
        "-m pytest -n 4",
        "-m pytest -n 4 -m not slow",
        "-m pytest -s -q --exhaustive tests/system/test_failures.py",
        "-m ruff check .",
        "-m ruff format --check .",
        "-m mypy",
    ]


def test_a_failing_command_fails_the_verb(clone: Path) -> None:
    (clone / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 7\n")
    for verb in ("demo", "lint", "test", "bench"):
        (clone / "bench").mkdir(exist_ok=True)
        (clone / "bench" / "one.py").touch()
        assert make(verb, cwd=clone).returncode == 2, verb


def test_clean_leaves_runs_datasets_and_the_environment(clone: Path) -> None:
    for name in ("runs/digits", "datasets/digits", "dist", "build", "data/__pycache__", "x.egg-info"):
        (clone / name).mkdir(parents=True)
    assert make("clean", cwd=clone).returncode == 0
    left = sorted(str(path.relative_to(clone)) for path in clone.rglob("*") if path.is_dir())
    assert left == [".venv", ".venv/bin", "data", "datasets", "datasets/digits", "runs", "runs/digits", "tools"]
