"""A run's life from other shells: list, status, logs, stop, resume, while it runs, after its end, after its death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.runs import begin, end, log
from tests.system.doors import LIMIT_S, ROOT, Command, Doors, clean_environment

pytestmark = [pytest.mark.needs("linux"), pytest.mark.slow]

HEAVY = ("torch", "numpy", "torchvision", "pydantic", "yaml", "rich", "psutil")

# Says of itself what the file `phase` says, as a program does that knows of us, and ends with what `end` says.
BEATING = """
import os, sys, time
from pathlib import Path
from rankrun.beat import Beat, Phase
print("begins", os.environ["RANKRUN_ATTEMPT"], flush=True)
with Beat.open(os.environ["RANKRUN_BEAT"]) as beat:
    while not Path("end").exists():
        phase = Path("phase").read_text() if Path("phase").exists() else "START"
        if phase:
            beat.write(7, 56, Phase[phase])
        time.sleep(0.02)
"""
# Prints, waits for the file `go1`, prints, fails at its first attempt and is done at its second.
TWICE = """
import os, sys, time
from pathlib import Path
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
print("attempt", attempt, "begins", flush=True)
while not Path(f"go{attempt}").exists():
    time.sleep(0.02)
print("attempt", attempt, "ends", end="", flush=True)
sys.exit(1 - attempt)
"""
WAITING = "import time\nprint('waits', flush=True)\nwhile True:\n    time.sleep(1)\n"


@pytest.fixture
def doors(tmp_path) -> Iterator[Doors]:
    opened = Doors(tmp_path, {**clean_environment(), "PYTHONPATH": str(ROOT)})
    yield opened
    left = {command.mark: command.family() for command in opened.started if command.process.poll() is not None}
    for command in opened.started:
        command.kill_all()
        command.process.wait()
    assert not any(left.values()), f"processes left: {left}"


def verb(doors: Doors, *words: object) -> tuple[int, str]:
    """`launch.py WORDS…` in a shell of its own: its exit code and what it printed."""
    command = doors.launch(*words)
    return command.wait(), command.output


def until_status(doors: Doors, run: Command, word: str) -> str:
    """What `status` prints as soon as it tells of this state."""
    told = ""

    def is_told() -> bool:
        nonlocal told
        told = verb(doors, "status", "a")[1] if (doors.folder / "runs/a").exists() else ""
        return f"\nstate     {word}" in told

    run.until(is_told, f"the state {word}")
    return told


def test_status_tells_the_truth_in_each_phase_also_after_a_sigkill_of_everything(doors, tmp_path):
    (tmp_path / "s.py").write_text(BEATING)
    run = doors.launch("run", "--name", "a", "--nproc", 2, "s.py")
    until_status(doors, run, "starting")
    phase = tmp_path / "phase"
    for name, word in [("STEP", "running: train step 7"), ("EVALUATE", "running: evaluation"), ("SAVE", "saving")]:
        (tmp_path / "new").write_text(name)
        os.replace(tmp_path / "new", phase)
        told = until_status(doors, run, word)
        assert f"pid {run.process.pid}" in told
    assert "launch.py stop a" in told
    run.kill_all()
    run.process.wait()
    code, told = verb(doors, "status")
    assert code == 0
    assert "state     dead: its launch went without a word; it was saving step 7" in told
    assert verb(doors, "list")[1].splitlines()[1].split()[:3] == ["a", "dead", "0"]
    assert verb(doors, "stop", "a")[0] == 0
    (tmp_path / "end").touch()
    code, told = verb(doors, "resume", "a")
    assert code == 0, told
    assert "took runs/a over from a dead launch" in told
    assert "begins 1" in told
    assert "state     finished" in verb(doors, "status", "a")[1]
    code, told = verb(doors, "resume", "a")
    assert (code, told) == (0, "a is finished; `launch.py run … --name NAME` starts another one\n")


def test_a_failed_run_is_told_with_its_root_cause(doors, tmp_path):
    (tmp_path / "s.py").write_text("import os\nif os.environ['RANK'] == '1':\n    raise RuntimeError('boom')\n")
    assert doors.run("--name", "a", "--nproc", 2, "s.py").process.returncode == 1
    told = " ".join(verb(doors, "status", "a")[1].split())
    assert "state failed (exit code 1): rank 1 on" in told
    assert "RuntimeError: boom" in told


def test_logs_follow_a_live_run_over_a_restart_until_it_ends(doors, tmp_path):
    (tmp_path / "s.py").write_text(TWICE)
    run = doors.launch("run", "--name", "a", "--max-restarts", 1, "s.py")
    run.until((tmp_path / "runs/a/attempts/0000/logs/rank-00000.log").exists, "a log")
    follower = doors.launch("logs", "a", "-f")
    (tmp_path / "go0").touch()
    run.until((tmp_path / "runs/a/attempts/0001/logs/rank-00000.log").exists, "a second attempt")
    (tmp_path / "go1").touch()
    assert (run.wait(), follower.wait()) == (0, 0)
    assert follower.output == (
        "attempt 0 begins\nattempt 0 ends\nrankrun: attempt 1\nattempt 1 begins\nattempt 1 ends\nrankrun: a: finished\n"
    )
    assert verb(doors, "logs", "a", "--attempt", 0) == (0, "attempt 0 begins\nattempt 0 ends")


def test_following_leaves_quietly_at_ctrl_c_and_when_its_reader_has_gone(doors, tmp_path):
    (tmp_path / "s.py").write_text(WAITING)
    run = doors.launch("run", "--name", "a", "s.py")
    log = tmp_path / "runs/a/attempts/0000/logs/rank-00000.log"
    run.until(lambda: log.exists() and log.read_text() == "waits\n", "its first line")
    words = [sys.executable, str(ROOT / "launch.py"), "logs", "a", "-f"]
    for leave in (lambda follower: follower.send_signal(signal.SIGINT), lambda follower: follower.stdout.close()):
        follower = subprocess.Popen(
            words, cwd=tmp_path, env=doors.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        with follower:
            assert follower.stdout.readline() == b"waits\n"
            leave(follower)
            assert follower.stderr.read() == b""
            assert follower.wait(LIMIT_S) in (0, 130)
    assert verb(doors, "stop", "a")[0] == 0
    assert run.wait() == 143


def test_a_stop_that_comes_while_torch_is_imported_is_heard(doors, tmp_path):
    (tmp_path / "s.py").write_text("import torch\n" + WAITING)
    run = doors.launch("run", "--name", "a", "s.py")
    run.until((tmp_path / "runs/a/attempts/0000").exists, "an attempt")
    code, told = verb(doors, "stop", "a")
    assert (code, told.splitlines()[-2:]) == (0, ["a: stopped", "launch.py resume a goes on"])
    assert run.wait() == 143
    assert run.family() == []


def test_a_program_that_does_not_listen_is_stopped_after_its_grace(doors, tmp_path):
    (tmp_path / "s.py").write_text("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAITING)
    run = doors.launch("run", "--name", "a", "--grace", 1, "s.py")
    log = tmp_path / "runs/a/attempts/0000/logs/rank-00000.log"
    run.until(lambda: log.exists() and log.read_text(), "its first line")
    code, told = verb(doors, "stop", "a")
    assert (code, run.wait()) == (0, 143), told + run.output


def test_of_two_that_resume_at_once_one_goes_on(doors, tmp_path):
    (tmp_path / "s.py").write_text(
        "import time\nfrom pathlib import Path\nwhile not Path('end').exists(): time.sleep(.02)"
    )
    run = doors.launch("run", "--name", "a", "s.py")
    run.until((tmp_path / "runs/a/attempts/0000/logs/rank-00000.log").exists, "a log")
    assert verb(doors, "stop", "a")[0] == 0
    assert run.wait() == 143
    two = [doors.launch("resume", "a") for _ in range(2)]
    deadline = time.monotonic() + LIMIT_S
    while all(each.process.poll() is None for each in two) and time.monotonic() < deadline:
        time.sleep(0.01)
    (tmp_path / "end").touch()
    assert sorted(each.wait() for each in two) == [0, 2], [each.output for each in two]
    (refused,) = (each for each in two if each.process.returncode == 2)
    assert refused.output.splitlines()[-1].startswith("E105 runs/a has a live launch (host ")


def test_a_second_launch_of_a_live_run_is_refused_and_disturbs_nothing(doors, tmp_path):
    (tmp_path / "s.py").write_text(WAITING)
    run = doors.launch("run", "--name", "a", "s.py")
    run.until((tmp_path / "runs/a/live").exists, "its claim")
    code, told = verb(doors, "run", "--name", "a", "s.py")
    assert code == 2
    assert told.startswith("E105 runs/a has a live launch (host ")
    assert verb(doors, "stop", "a")[0] == 0
    assert run.wait() == 143
    assert [entry.name for entry in (tmp_path / "runs/a/attempts").iterdir()] == ["0000"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A folder with real digits and a config for one epoch after the other."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, ROOT / "datasets/digits.py", folder / "all"], check=True, capture_output=True)
    (folder / "c.yaml").write_text(
        f"data: {{train: {folder}/all/train.txt, classes: 10, channels: 1}}\n"
        "model: {args: {width: 8, blocks: [1, 1]}}\n"
        "train: {epochs: 400, global_batch: 64, log_every_steps: 1}\n"
    )
    return folder


def test_a_run_of_ours_is_stopped_with_a_checkpoint_and_resumed(doors, digits, tmp_path):
    at_home = Doors(ROOT, doors.env, doors.started)  # where train.py is
    where = ["--runs", tmp_path / "runs"]
    run = at_home.launch("run", digits / "c.yaml", "--name", "a", "--nproc", 2, *where)
    told = until_status(doors, run, "running: train step")
    assert "of 400 epochs done" in told
    code, told = verb(doors, "stop", "a")
    assert (code, run.wait()) == (0, 143), told + run.output
    saved = max((tmp_path / "runs/a/checkpoints").glob("step-*"))
    assert f"a: stopped; saved: {saved.name}" in told
    assert "state     stopped (exit code 143)" in verb(doors, "status", "a")[1]
    again = at_home.run(digits / "c.yaml", "--name", "a", *where)
    assert again.process.returncode == 143
    assert again.output == (
        f"rankrun: {tmp_path}/runs/a was stopped ({told_by(tmp_path)}) and stays so; nothing was started. "
        f"`launch.py resume {tmp_path}/runs/a` goes on\n"
    )
    assert len(list((tmp_path / "runs/a/attempts").iterdir())) == 1
    resumed = doors.launch("resume", "a")  # from a folder without a train.py
    log_file = tmp_path / "runs/a/attempts/0001/logs/rank-00000.log"
    resumed.until(lambda: log_file.exists() and f"goes on from {saved}" in log_file.read_text(), "its second attempt")
    assert verb(doors, "stop", "a", "--no-wait")[0] == 0
    assert resumed.wait() == 143, resumed.output
    assert "state     stopped (exit code 143)" in verb(doors, "status", "a")[1]


def told_by(folder: Path) -> str:
    from rankrun.runfolder import RunFolder
    from rankrun.runfolder.stopping import StopMarker

    return str(StopMarker.read(RunFolder(folder / "runs/a")))


@pytest.mark.parametrize(
    "words",
    [["list"], ["status", "a"], ["logs", "a"], ["logs", "a", "-f"], ["stop", "a"], ["resume"], ["resume", "b"],
     ["status", "--nope"], ["list", "--help"]],
)  # fmt: skip
def test_these_verbs_import_nothing_heavy(doors, tmp_path, words):
    held = begin(tmp_path / "runs/a")
    log(held, "x\n")
    end(held, 0)
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('heavy', [m for m in {HEAVY!r} if m in sys.modules]))\n"
        "from rankrun.launch.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = doors.start([sys.executable, "-c", code, *words])
    done.wait()
    assert done.output.splitlines()[-1] == "heavy []"


def test_a_launcher_that_is_suspended_is_said_to_be_and_can_still_be_stopped(doors, tmp_path):
    (tmp_path / "s.py").write_text(WAITING)
    run = doors.launch("run", "--name", "a", "s.py")
    log = tmp_path / "runs/a/attempts/0000/logs/rank-00000.log"
    run.until(lambda: log.exists() and log.read_text(), "its first line")
    os.kill(run.process.pid, signal.SIGSTOP)
    told = " ".join(verb(doors, "status", "a")[1].split())
    assert f"its launcher is suspended: nothing is watched or saved until `kill -CONT {run.process.pid}`" in told
    os.kill(run.process.pid, signal.SIGCONT)
    assert verb(doors, "stop", "a")[0] == 0
    assert run.wait() == 143
