"""Foreign scripts under `launch.py run`: what they find, how they end, and that nothing is left of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.system.doors import ROOT, children, ended

pytestmark = [pytest.mark.needs("linux"), pytest.mark.slow]

JOIN = "import os, sys, time, signal\nimport torch\nimport torch.distributed as dist\ndist.init_process_group('gloo')\n"
RANK_1 = "if dist.get_rank() == 1:\n    "
AND_SUM = "\ndist.all_reduce(torch.ones(1))\ndist.destroy_process_group()\n"


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def verdict(folder: Path) -> dict:
    return json.loads((only_run(folder) / "attempts/0000/verdict.json").read_text())


@pytest.mark.parametrize("start", ["warm", "exec"])
def test_a_script_finds_what_python_gives_it(doors, start):
    (doors.folder / "sub").mkdir()
    (doors.folder / "sub/beside.py").write_text("HERE = 'beside'\n")
    (doors.folder / "sub/job.py").write_text(
        "import atexit, json, multiprocessing, os, sys\n"
        "import numpy, torch\n"
        "import beside\n"
        "def square(x): return x * x\n"
        "if __name__ == '__main__':\n"
        "    atexit.register(lambda: print('atexit ran'))\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        squares = pool.map(square, [3])\n"
        "    print(json.dumps({'argv': sys.argv, 'file': __file__, 'path': sys.path[0], 'cwd': os.getcwd(),\n"
        "        'squares': squares, 'main': sys.modules['__main__'].__file__, 'stdin': sys.stdin.read(),\n"
        "        'name': multiprocessing.current_process().name, 'draw': float(numpy.random.rand())}))\n"
    )
    done = doors.run("--nproc", 2, "--start", start, "sub/job.py", "a b", "--", "-x", "é'\"", "")
    assert done.process.returncode == 0, done.output
    logs = [only_run(doors.folder) / f"attempts/0000/logs/rank-0000{rank}.log" for rank in range(2)]
    seen = [json.loads(log.read_text().splitlines()[0]) for log in logs]
    script = str(doors.folder / "sub/job.py")
    for one in seen:
        assert one["argv"] == ["sub/job.py", "a b", "--", "-x", "é'\"", ""]
        assert (one["file"], one["main"], one["path"]) == (script, script, str(doors.folder / "sub"))
        assert (one["cwd"], one["squares"], one["stdin"]) == (str(doors.folder), [9], "")
        assert one["name"] == "MainProcess"
    assert seen[0]["draw"] != seen[1]["draw"]
    assert all("atexit ran" in log.read_text() for log in logs)


def test_the_environment_is_torchruns(doors):
    (doors.folder / "job.py").write_text(
        "import json, os, sys\nimport torch\n"
        "open(f'{sys.argv[1]}-{os.environ[\"RANK\"]}.json', 'w').write(json.dumps(dict(os.environ)))\n"
    )
    ours = doors.run("--nproc", 2, "--max-restarts", 1, "job.py", "ours")
    options = ["--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    torchrun = doors.start([sys.executable, "-m", "torch.distributed.run", *options, "job.py", "theirs"])
    assert torchrun.wait() == 0, torchrun.output
    assert ours.process.returncode == 0, ours.output
    chosen = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE", "RANKRUN_TEST_MARK"}
    for rank in range(2):
        mine, its = (json.loads((doors.folder / f"{who}-{rank}.json").read_text()) for who in ("ours", "theirs"))
        assert set(its) - set(mine) == set()
        assert set(mine) - set(its) == {"RANKRUN_RUN_DIR", "RANKRUN_ATTEMPT", "RANKRUN_BEAT"}
        assert {name: mine[name] for name in its if name not in chosen} == {
            name: its[name] for name in its if name not in chosen
        }


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("raise ValueError('on purpose')", 1, "ValueError: on purpose"),
        ("sys.exit(7)", 7, "SystemExit: 7"),
        ("sys.exit(75)", 1, "SystemExit: 75"),
        ("sys.exit('words')", 1, "SystemExit: words"),
        ("os._exit(9)", 9, "left with exit code 9"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "killed by SIGSEGV"),
        ("os.abort()", 134, "killed by SIGABRT"),
        ("import not_there", 1, "No module named 'not_there'"),
    ],
)
def test_the_rank_that_failed_is_the_one_that_is_named(doors, body, code, says):
    (doors.folder / "job.py").write_text(JOIN + RANK_1 + body + AND_SUM)
    done = doors.run("--nproc", 3, "job.py")
    assert done.process.returncode == code, done.output
    found = verdict(doors.folder)
    assert (found["rank"], found["exit_code"]) == (1, code)
    assert says in found["how"]
    (line,) = (line for line in done.output.splitlines() if line.startswith("rankrun: rank 1 on "))
    assert says in line
    assert "stopped because of it: ranks 0, 2" in done.output


def test_children_and_loader_workers_of_a_failed_rank_are_gone_too(doors):
    (doors.folder / "job.py").write_text(
        JOIN
        + "import subprocess\nfrom torch.utils.data import DataLoader\n"
        + "loader = iter(DataLoader(list(range(100)), num_workers=2))\nnext(loader)\n"
        + "subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        + RANK_1
        + "os.kill(os.getpid(), signal.SIGKILL)"
        + AND_SUM
    )
    done = doors.run("--nproc", 2, "job.py")
    assert done.process.returncode == 137
    assert done.family() == []


def test_restarts_start_all_ranks_again_and_count(doors):
    (doors.folder / "job.py").write_text(
        JOIN
        + "attempt = os.environ['RANKRUN_ATTEMPT'], os.environ['TORCHELASTIC_RESTART_COUNT']\n"
        + "print('attempt', *attempt)\n"
        + "if attempt[1] != '2': os._exit(5 if dist.get_rank() == 1 else time.sleep(100))\n"
        + AND_SUM.lstrip()
    )
    done = doors.run("--nproc", 2, "--max-restarts", 2, "--name", "r", "job.py")
    assert done.process.returncode == 0, done.output
    logs = sorted((doors.folder / "runs/r/attempts").glob("*/logs/rank-00000.log"))
    assert [log.read_text().splitlines()[0] for log in logs] == ["attempt 0 0", "attempt 1 1", "attempt 2 2"]


SLEEP = JOIN + "dist.barrier()\nopen(f'up-{dist.get_rank()}', 'w').close()\ntime.sleep(1000)\n"


@pytest.fixture
def sleeping(doors):
    """Two ranks that have joined and then do nothing."""

    def start(script: str = SLEEP, *options: object):
        (doors.folder / "job.py").write_text(script)
        command = doors.launch("run", "--nproc", 2, *options, "job.py")
        command.until(lambda: all((doors.folder / f"up-{rank}").exists() for rank in range(2)), "both ranks are up")
        return command

    return start


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 130)])
def test_a_signal_reaches_a_script_that_knows_nothing_of_us(sleeping, number, code):
    command = sleeping()
    command.process.send_signal(signal.Signals[number])
    assert command.wait() == code, command.output


@pytest.mark.parametrize("listens", [True, False])
def test_sigusr1_is_the_ranks_business_and_ends_nothing(doors, listens):
    """torchrun dies of it."""
    handler = "signal.signal(signal.SIGUSR1, lambda *_: open(f'heard-{os.environ[\"RANK\"]}', 'w').close())\n"
    waiting = SLEEP.replace("time.sleep(1000)", "while not os.path.exists('go'): time.sleep(0.01)")
    (doors.folder / "job.py").write_text("import os, signal\n" + (handler if listens else "") + waiting)
    command = doors.launch("run", "--nproc", 2, "job.py")
    command.until(lambda: all((doors.folder / f"up-{rank}").exists() for rank in range(2)), "both ranks are up")
    command.process.send_signal(signal.SIGUSR1)
    if listens:
        command.until(lambda: len(list(doors.folder.glob("heard-*"))) == 2, "both ranks have heard it")
    (doors.folder / "go").touch()
    assert command.wait() == 0, command.output
    assert "rankrun: SIGUSR1: " in command.output


def test_sigquit_leaves_the_stacks_of_all_ranks_and_stops_at_once(doors, sleeping):
    command = sleeping(SLEEP, "--grace", 100)
    command.process.send_signal(signal.SIGQUIT)
    assert command.wait() == 131, command.output
    stacks = sorted((only_run(doors.folder) / "attempts/0000/stacks").iterdir())
    assert [path.name for path in stacks] == ["rank-00000.txt", "rank-00001.txt"]
    line = 1 + (doors.folder / "job.py").read_text().splitlines().index("time.sleep(1000)")
    assert all(f'job.py", line {line} in <module>' in path.read_text() for path in stacks)


def test_a_signal_that_was_named_is_a_notice_and_has_its_own_code(sleeping):
    command = sleeping(SLEEP, "--signals-to-handle", "SIGALRM")
    command.process.send_signal(signal.SIGALRM)
    assert command.wait() == 128 + signal.SIGALRM, command.output


def test_the_shutdown_timeout_is_what_the_others_get_after_a_failure(doors):
    """Here more than it takes a handler to write a file, which SIGKILL after a second would not let it."""
    (doors.folder / "job.py").write_text(
        "import os, signal, sys, time, torch\n"
        "def slow(*_):\n    time.sleep(2)\n    open('saved', 'w').close()\n    sys.exit(3)\n"
        "if os.environ['RANK'] == '0':\n    signal.signal(signal.SIGTERM, slow)\n    open('up', 'w').close()\n"
        "    time.sleep(1000)\n"
        "while not os.path.exists('up'): time.sleep(0.01)\n"
        "raise ValueError('first')\n"
    )
    done = doors.run("--nproc", 2, "--shutdown-timeout", 60, "job.py")
    assert done.process.returncode == 1, done.output
    assert "ValueError: first" in done.output
    assert (doors.folder / "saved").exists()


def test_a_port_that_is_asked_for_holds_over_restarts_and_is_refused_when_taken(doors):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (doors.folder / "job.py").write_text(
            JOIN
            + "assert os.environ['TORCHELASTIC_RESTART_COUNT'] == '1'\n"
            + f"open('port', 'w').write(os.environ['MASTER_PORT'])\n{AND_SUM}"
        )
        words = ["--nproc", 2, "--max-restarts", 1, "--master-port", port, "job.py"]
        done = doors.run(*words)
        assert done.process.returncode == 2
        assert f"E110 --master-port {port} can't be had: Address already in use. Leave it out" in done.output
        assert "Traceback" not in done.output
    assert doors.run(*words).process.returncode == 0
    assert (doors.folder / "port").read_text() == str(port)


def test_a_second_ctrl_c_stops_ranks_that_ignore_the_first(doors, sleeping):
    command = sleeping("import signal\nsignal.signal(signal.SIGINT, lambda *_: open('heard', 'w').close())\n" + SLEEP)
    command.process.send_signal(signal.SIGINT)
    command.until((doors.folder / "heard").exists, "a rank has heard the first")
    command.process.send_signal(signal.SIGINT)
    assert command.wait() == 130, command.output


def test_the_grace_ends_ranks_that_do_not_listen(sleeping):
    ignoring = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + SLEEP
    command = sleeping(ignoring, "--grace", 0.2)
    command.process.send_signal(signal.SIGINT)
    assert command.wait() == 130, command.output


@pytest.mark.parametrize("victim", ["agent", "warm parent", "rank 0"])
def test_when_one_process_is_killed_all_are_gone(sleeping, victim):
    command = sleeping()
    (warm,) = children(command.process.pid)
    pid = {"agent": command.process.pid, "warm parent": warm, "rank 0": children(warm)[0]}[victim]
    os.kill(pid, signal.SIGKILL)
    assert command.wait() == {"agent": -9, "warm parent": 1, "rank 0": 137}[victim], command.output
    deadline = time.monotonic() + 5
    while command.family() and time.monotonic() < deadline:
        continue
    assert command.family() == []


def test_a_stopped_rank_can_be_killed(sleeping):
    command = sleeping()
    (warm,) = children(command.process.pid)
    os.kill(children(warm)[0], signal.SIGSTOP)
    command.process.send_signal(signal.SIGTERM)
    assert command.wait() == 143, command.output


def test_an_unreadable_terminal_stops_nothing(doors):
    (doors.folder / "job.py").write_text("import torch\nprint('x' * 100_000)\nopen('end', 'w').close()\n")
    command = doors.launch("run", "job.py")
    command.process.stdout.close()
    assert command.process.wait() == 0
    assert (doors.folder / "end").exists()


def test_no_python_command_and_module(doors):
    (doors.folder / "pack").mkdir()
    (doors.folder / "pack/__init__.py").write_text("")
    (doors.folder / "pack/__main__.py").write_text("import sys, torch\nprint('module', __package__, sys.argv[1:])\n")
    done = doors.run("-m", "pack", "x")
    assert "module pack ['x']" in done.output, done.output
    done = doors.run("--no-python", "sh", "-c", "echo rank $RANK of $WORLD_SIZE")
    assert "rank 0 of 1" in done.output, done.output
    for words in (["--no-python", "no-such-command-anywhere"], ["-m", "no_such_module.anywhere"]):
        done = doors.run("--name", "x", *words)
        assert done.process.returncode == 2
        assert done.output.startswith("E101 ")
        assert words[1] in done.output
        assert not (doors.folder / "runs/x").exists()


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR2", 75)])
def test_a_signal_while_the_warm_parent_imports_starts_nothing(doors, number, code):
    stalled = doors.folder / "site/torchvision"
    stalled.mkdir(parents=True)
    (stalled / "__init__.py").write_text("import time\nopen('importing', 'w').close()\ntime.sleep(1000)\n")
    (doors.folder / "job.py").write_text("import torchvision\n")
    command = doors.launch("run", "job.py", env={"PYTHONPATH": str(stalled.parent)})
    command.until((doors.folder / "importing").exists, "the warm parent imports")
    command.process.send_signal(signal.Signals[number])
    assert command.wait() == code, command.output
    assert "nothing was started yet" in command.output


@pytest.mark.parametrize("broken", ["OSError('libcudart.so.13: cannot open')", "RuntimeError('nms does not exist')"])
def test_a_torch_that_does_not_import_is_one_line_and_leaves_nothing(doors, broken):
    (doors.folder / "site/torch").mkdir(parents=True)
    (doors.folder / "site/torch/__init__.py").write_text(f"raise {broken}\n")
    (doors.folder / "job.py").write_text("import torch\n")
    done = doors.run("--name", "x", "job.py", env={"PYTHONPATH": str(doors.folder / "site")})
    assert done.process.returncode == 2
    (line,) = done.output.splitlines()
    assert line.startswith("E110 torch can't be imported by")
    assert not (doors.folder / "runs").exists()


def test_a_rank_that_fails_while_it_is_told_to_leave_is_named(sleeping):
    failing = "import signal\ndef save(*_): raise OSError(28, 'no space left for the checkpoint')\n"
    command = sleeping(failing + "signal.signal(signal.SIGUSR2, save)\n" + SLEEP)
    command.process.send_signal(signal.SIGUSR2)
    assert command.wait() == 1, command.output
    assert "no space left for the checkpoint" in command.output
    assert "rankrun: rank " in command.output


def test_nohup_outlives_the_terminal(doors, sleeping):
    waiting = SLEEP.replace("time.sleep(1000)", "while not os.path.exists('go'): time.sleep(0.01)")
    (doors.folder / "job.py").write_text(waiting)
    command = doors.start(["nohup", sys.executable, str(ROOT / "launch.py"), "run", "--nproc", "2", "job.py"])
    command.until(lambda: all((doors.folder / f"up-{rank}").exists() for rank in range(2)), "both ranks are up")
    command.process.send_signal(signal.SIGHUP)
    (doors.folder / "go").touch()
    assert command.wait() == 0, command.output


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(doors, closed):
    (doors.folder / "job.py").write_text("import torch\nprint('out')\nopen('end', 'w').close()\n")
    command = doors.start(["sh", "-c", f"exec {sys.executable} {ROOT}/launch.py run --name x job.py {closed}"])
    assert command.wait() == 0, command.output
    assert (doors.folder / "end").exists()
    assert (doors.folder / "runs/x/attempts/0000/logs/rank-00000.log").read_text() == "out\n"
    assert not (doors.folder / "runs/x/live").exists()


def test_a_terminal_that_nobody_reads_delays_no_restart(doors):
    (doors.folder / "job.py").write_text(
        "import os, sys, torch\nprint('x' * 1_000_000)\nsys.stdout.flush()\n"
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0': sys.exit(3)\nopen('end', 'w').close()\n"
    )
    command = doors.launch("run", "--max-restarts", 1, "job.py")
    command.until((doors.folder / "end").exists, "the second attempt's end, with nobody reading")
    assert command.wait() == 0


def test_shared_memory_of_a_killed_rank_is_given_back(doors):
    (doors.folder / "job.py").write_text(
        "import os, signal, torch\nfrom multiprocessing.shared_memory import SharedMemory\n"
        "memory = SharedMemory(create=True, size=1000)\nopen('name', 'w').write(memory.name)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert doors.run("job.py").process.returncode == 137
    assert not Path("/dev/shm", (doors.folder / "name").read_text()).exists()


def test_a_forked_child_that_fails_does_not_speak_for_its_rank(doors):
    (doors.folder / "job.py").write_text(
        "import os, torch\nchild = os.fork()\nif child == 0: raise ValueError('of the child')\n"
        "os.waitpid(child, 0)\nraise RuntimeError('of the rank')\n"
    )
    doors.run("job.py")
    assert verdict(doors.folder)["how"] == "RuntimeError: of the rank"


def test_a_linked_script_and_its_interpreters_options(doors):
    (doors.folder / "real").mkdir()
    (doors.folder / "real/beside.py").write_text("")
    (doors.folder / "real/job.py").write_text(
        "import sys, torch, beside\nprint(__file__, __builtins__.len('ab'))\nassert 0\n"
    )
    (doors.folder / "link.py").symlink_to("real/job.py")
    for start in ("warm", "exec"):
        command = doors.start([sys.executable, "-O", str(ROOT / "launch.py"), "run", "--start", start, "link.py"])
        assert command.wait() == 0, command.output
        assert f"{doors.folder}/link.py 2" in command.output


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.needs("tmpfs")
def test_a_full_disk_hides_no_verdict(doors, small_disk):
    (doors.folder / "job.py").write_text(
        "import os, sys, torch\ntry:\n    print('x' * 400_000, flush=True)\nexcept OSError: pass\n"
        "sys.stdout = sys.stderr = open(os.devnull, 'w')  # Python leaves with 120 where it can't flush at its end\n"
        "raise ValueError('the real one')\n"
    )
    done = doors.run("--runs", small_disk, "--name", "x", "job.py")
    assert done.process.returncode == 1
    assert "rankrun: rank 0 on" in done.output, done.output[-2000:]
    assert 'Traceback (most recent call last):\n  File "' + str(ROOT) not in done.output


def test_a_signal_that_torchs_import_swallows_is_heard_after_it(doors):
    """torch's C code imports numpy and clears whatever that raises; here a module of that name waits to be hit."""
    fake = doors.folder / "site/torch"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text(
        "import time\nopen('importing', 'w').close()\ntry:\n    time.sleep(1000)\nexcept KeyboardInterrupt:\n    pass\n"
    )
    (doors.folder / "job.py").write_text("import torch\nopen('ran', 'w').close()\n")
    command = doors.launch("run", "--name", "x", "job.py", env={"PYTHONPATH": str(fake.parent)})
    command.until((doors.folder / "importing").exists, "the launcher imports")
    command.process.send_signal(signal.SIGTERM)
    assert command.wait() == 143, command.output
    assert "SIGTERM; nothing was started" in command.output
    assert not (doors.folder / "ran").exists()
    assert not (doors.folder / "runs").exists()


def test_an_import_that_a_signal_breaks_is_no_broken_torch(doors):
    fake = doors.folder / "site/torch"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text(
        "import time\nopen('importing', 'w').close()\ntry:\n    time.sleep(1000)\n"
        "except KeyboardInterrupt:\n    raise ImportError('cannot load module more than once')\n"
    )
    (doors.folder / "job.py").write_text("import torch\n")
    command = doors.launch("run", "--name", "x", "job.py", env={"PYTHONPATH": str(fake.parent)})
    command.until((doors.folder / "importing").exists, "the launcher imports")
    command.process.send_signal(signal.SIGINT)
    assert command.wait() == 130, command.output
    assert "E110" not in command.output


def test_what_was_running_before_the_launch_is_left_alone(doors):
    (doors.folder / "job.py").write_text("import torch\n")
    words = [sys.executable, str(ROOT / "launch.py"), "run", "job.py"]
    command = doors.start(["sh", "-c", 'sleep 1000 & echo $! > monitor; exec "$@"', "sh", *words])
    # The monitor holds the launcher's output open, so only the launcher's own end is waited for.
    assert command.process.wait(60) == 0
    monitor = int((doors.folder / "monitor").read_text())
    assert command.family() == [monitor]
    end = os.pidfd_open(monitor)
    os.kill(monitor, signal.SIGKILL)
    assert ended(end)
    os.close(end)


def test_stacks_are_never_written_into_a_file_of_the_program(doors):
    (doors.folder / "job.py").write_text(
        "import os, time, torch\nos.closerange(3, 200)\nfile = open('data', 'w')\nfile.write('mine')\nfile.flush()\n"
        "open('up', 'w').close()\ntime.sleep(1000)\n"
    )
    command = doors.launch("run", "job.py")
    command.until((doors.folder / "up").exists, "the rank is up")
    command.process.send_signal(signal.SIGQUIT)
    assert command.wait() == 131, command.output
    assert (doors.folder / "data").read_text() == "mine"
    stack = only_run(doors.folder) / "attempts/0000/stacks/rank-00000.txt"
    assert "job.py" in stack.read_text()


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_script_that_leaves_with_the_shells_code_for_a_signal_has_obeyed(doors, sleeping, number, code):
    handler = f"import signal, sys\nsignal.signal(signal.{number}, lambda *_: sys.exit({code}))\n"
    command = sleeping(handler + SLEEP)
    command.process.send_signal(signal.Signals[number])
    assert command.wait() == code, command.output
    assert "failed" not in command.output


def test_launches_of_one_second_get_a_folder_each(doors):
    commands = [doors.launch("run", "--no-python", "true") for _ in range(6)]
    assert [command.wait() for command in commands] == [0] * 6, [command.output for command in commands]
    assert len(list((doors.folder / "runs").iterdir())) == 6
