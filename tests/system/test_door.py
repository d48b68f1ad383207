"""The door without a run: what it answers, what it imports for that, and what it leaves behind (nothing)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.doors import ROOT, clean_environment

HEAVY = ("torch", "numpy", "torchvision", "pydantic", "yaml")


def door(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`launch.py WORDS…`, with the heavy modules that it has imported as the last line of stdout."""
    code = (
        "import atexit, json, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"atexit.register(lambda: print(json.dumps([m for m in {HEAVY!r} if m in sys.modules])))\n"
        "from rankrun.launch.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=False)


def imported(done: subprocess.CompletedProcess[str]) -> list[str]:
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a train.py, a meta file of 25 rows without images, and a config of five mistakes."""
    (tmp_path / "train.py").write_text("raise SystemExit('must not run')\n")
    (tmp_path / "meta.txt").write_text("".join(f"{row}.png {row % 3}\n" for row in range(25)))
    (tmp_path / "good.yaml").write_text("data: {train: meta.txt}\ntrain: {epochs: 4, global_batch: 8}\n")
    (tmp_path / "bad.yaml").write_text(
        "data:\n  trian: meta.txt\n  mode: ranks\ntrain:\n  epochs: ten\n  global_batch: 8\n"
        "  micro_batch: 0\noptim:\n  lr: -1\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [["--help"], ["run", "--help"], ["--version"], ["explain", "75"], ["run", "--nprok", "2", "x.py"], ["stauts"]],
)
def test_help_and_refusals_of_options_import_nothing_heavy(words):
    done = door(*words)
    assert done.returncode == (2 if words[0] == "stauts" or "--nprok" in words else 0)
    assert imported(done) == []


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_five_mistakes_are_five_lines_before_torch_or_numpy(project, verb):
    done = door(verb, "bad.yaml", cwd=project)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "E102 bad.yaml:2  data.trian: is not a key of data. Did you mean 'train'?",
        "E102 bad.yaml:3  data.mode: must be rank or indexed, not 'ranks'. Did you mean 'rank'?",
        "E102 bad.yaml:5  train.epochs: must be a whole number >= 1, not 'ten'",
        "E102 bad.yaml:7  train.micro_batch: must be a whole number >= 1 or null, not 0",
        "E102 bad.yaml:9  optim.lr: must be a number > 0, not -1",
    ]
    assert not {"torch", "numpy"} & set(imported(done))
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["none.yaml"], "E102 none.yaml  no such file"),
        (["good.yaml", "data.train=none.txt"], "E201 meta file none.txt: No such file or directory"),
        (["good.yaml", "train.global_batch=26"], "E205 an epoch without a single step: 25 rows"),
        (["good.yaml", "data.classes=2"], "E202 meta.txt:3  label 2 is out of range"),
        (["good.yaml", "--nproc", "9"], "E101 train.global_batch=8 is less than 9 ranks"),
        (["good.yaml", "--nproc", "2", "train.device=cuda"], "E101 2 ranks with train.device=cuda, but this machine"),
        (["good.yaml", "--name", "a/b"], "E101 --name 'a/b': a run's name is 1 to 128 letters"),
    ],
)
def test_bad_input_is_told_before_anything_is_made(project, words, line):
    done = door("run", *words, cwd=project)
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert not {"torch", "numpy"} & set(imported(done))
    assert not (project / "runs").exists()


def test_a_config_where_there_is_no_train_py(project):
    (project / "train.py").unlink()
    done = door("run", "good.yaml", cwd=project)
    assert done.returncode == 2
    assert f"there is none in {project}; go to the folder that holds it (cd {ROOT})" in done.stderr


def test_plan_is_the_arithmetic_of_the_run(project):
    done = door("plan", "good.yaml", "--nproc", "3", "train.micro_batch=2", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "global batch     8 = 3 ranks x 2 or 3, each in 2 micro-batches of at most 2" in done.stdout
    assert "steps per epoch  3, 1 row of each epoch left out (others each time)" in done.stdout
    assert "epochs           4, 12 steps in all, 96 samples" in done.stdout
    assert not {"torch", "numpy"} & set(imported(done))


def test_dry_run_makes_nothing(project):
    done = door("run", "good.yaml", "--nproc", "2", "--dry-run", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "ranks        2 on this machine" in done.stdout
    assert not (project / "runs").exists()


def test_config_show_says_where_each_value_came_from(project):
    done = door("config", "show", "good.yaml", "optim.lr=0.5", cwd=project)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["optim.lr:", "0.5", "argument", "'optim.lr=0.5'"] in lines
    assert ["train.epochs:", "4", "good.yaml:2"] in lines
    assert ["seed:", "0", "default"] in lines
    assert '"properties"' in door("config", "schema").stdout
    assert "train.epochs: 4" in door("config", "diff", "good.yaml", cwd=project).stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["configs/digits.yaml"], "Did you mean launch.py run configs/digits.yaml?"),
        (["submit"], "'submit' is not built yet"),
        (["rnu"], "unknown verb 'rnu'. Did you mean 'run'?"),
        (["explain", "E999"], "there is no code 'E999'"),
        (["config", "help", "lr"], "Did you mean 'optim.lr'?"),
        (["plan"], "CONFIG"),
    ],
)
def test_words_that_are_no_command(words, says):
    done = door(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_config_stands_for_its_meta_files(project):
    done = door("data", "check", "--head", "good.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    assert (
        "25 rows"
        in subprocess.run(
            [sys.executable, ROOT / "launch.py", "data", "check", "--head", "good.yaml"],
            cwd=project,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


def test_what_data_says_of_a_config(project):
    done = door("data", "where", "good.yaml", "--row", "3", cwd=project)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "numpy"} & set(imported(done)), "only the data package's own process needs them"

    def said(*words: str) -> list[str]:
        command = [sys.executable, ROOT / "launch.py", "data", *words]
        told = subprocess.run(command, cwd=project, env=clean_environment(), capture_output=True, text=True, check=True)
        return told.stdout.splitlines()

    where = said("where", "good.yaml", "--row", "3", "--world-size", "2")
    assert where[0] == "meta.txt:4  3.png"
    assert "of the run" in where[1]
    assert "rank" in where[1]
    assert said("where", "good.yaml", "--step", "4")[0] == "step 4 of the run: epoch 1, step 1 of 3, positions 8 … 15"
    index = said("index", "good.yaml")
    assert index[0] == "meta.txt: lines 'path label'"
    assert index[3].startswith("index: meta.txt.rankrun-index, ")
    assert (project / "meta.txt.rankrun-index").exists()
    assert not (project / "runs").exists()
