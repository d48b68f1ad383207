"""What a script may expect of a rank that was forked warm, beside one that is an interpreter of its own."""

from __future__ import annotations

import json
import os
import pty
import secrets
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.system.doors import ROOT, Command

pytestmark = [pytest.mark.needs("linux"), pytest.mark.slow]

STARTS = pytest.mark.parametrize("start", ["warm", "exec"])


def logs(folder: Path, name: str = "x") -> list[str]:
    return [log.read_text() for log in sorted((folder / f"runs/{name}/attempts/0000/logs").glob("rank-*.log"))]


FACTS = """'''The doc.'''
import json, os, sys
spec = globals().get('__spec__')
print(json.dumps({
    'argv': sys.argv, 'path': sys.path, 'cwd': os.getcwd(), 'flags': list(sys.flags), 'executable': sys.executable,
    'name': __name__, 'file': os.path.normpath(__file__), 'package': __package__, 'doc': __doc__,
    'spec': spec and [spec.name, spec.origin, spec.parent], 'loader': type(__loader__).__name__,
    'main': sys.modules['__main__'].__dict__ is globals(), 'builtins': __builtins__ is __import__('builtins'),
    'umask': os.umask(0), 'nice': os.nice(0), 'group': os.getpgrp() == os.getpid(),
    'own': [sys.excepthook is sys.__excepthook__, sys.stdout is sys.__stdout__, sys.stdin is sys.__stdin__],
}))
"""


@STARTS
@pytest.mark.parametrize(
    "target",
    [["./sub/../job.py"], ["sub/deep.py"], ["ABSOLUTE/job.py"], ["no extension"], ["-m", "sub.deep"], ["-m", "sub"]],
    ids=" ".join,
)
def test_a_program_finds_all_that_plain_python_gives_it(doors, start, target):
    (doors.folder / "sub").mkdir()
    for name in ("job.py", "sub/deep.py", "sub/__main__.py", "no extension"):
        (doors.folder / name).write_text(FACTS)
    (doors.folder / "sub/__init__.py").write_text("")
    words = [*(word.replace("ABSOLUTE", str(doors.folder)) for word in target), "a b", "--", "-x", "k:v='é\"", ""]
    # As torchrun does, without buffers; its own session is what a rank has in any case.
    plain = subprocess.run(
        [sys.executable, *words],
        cwd=doors.folder,
        env=doors.env,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert plain.returncode == 0, plain.stderr
    done = doors.run("--name", "x", "--start", start, *words)
    assert done.process.returncode == 0, done.output
    ours, theirs = json.loads(logs(doors.folder)[0]), json.loads(plain.stdout)
    assert {key: (ours[key], theirs[key]) for key in theirs if ours[key] != theirs[key]} == {}


@STARTS
@pytest.mark.parametrize("module", [False, True], ids=["script", "module"])
def test_multiprocessing_inside_with_all_start_methods(doors, start, module):
    """The classes that its children unpickle are the program's own, of its `__main__`."""
    (doors.folder / "job.py").write_text(
        "import multiprocessing, sys, torch\n"
        "from torch.utils.data import DataLoader, Dataset\n"
        "class Squares(Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return torch.tensor([i * i, torch.utils.data.get_worker_info().id])\n"
        "def double(x): return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    for method in ('fork', 'forkserver', 'spawn'):\n"
        "        context = multiprocessing.get_context(method)\n"
        "        with context.Pool(1) as pool:\n"
        "            doubled = pool.map(double, [21])\n"
        "        rows = torch.cat(list(DataLoader(Squares(), num_workers=2, multiprocessing_context=method)))\n"
        "        print(method, doubled, rows.tolist())\n"
    )
    target = ["-m", "job"] if module else ["job.py"]
    done = doors.run("--name", "x", "--start", start, *target)
    assert done.process.returncode == 0, done.output
    rows = "[[0, 0], [1, 1], [4, 0], [9, 1]]"
    assert logs(doors.folder) == ["".join(f"{how} [42] {rows}\n" for how in ("fork", "forkserver", "spawn"))]
    assert done.family() == []


@STARTS
@pytest.mark.parametrize("fatal", ["os.kill(os.getpid(), signal.SIGSEGV)", "os.abort()"])
def test_a_fatal_signal_leaves_the_python_stack_in_the_log(doors, start, fatal):
    (doors.folder / "job.py").write_text(
        f"import os, signal, torch\ndef deep():\n    {fatal}\ndef main():\n    deep()\nmain()\n"
    )
    done = doors.run("--name", "x", "--start", start, "job.py")
    assert done.process.returncode in (128 + 11, 128 + 6)
    (text,) = logs(doors.folder)
    assert "Fatal Python error" in text
    assert 'job.py", line 3 in deep' in text
    assert 'job.py", line 6 in <module>' in text


@pytest.mark.parametrize(
    ("body", "code", "start"),
    [
        ("pass", 0, "warm"),
        ("sys.exit(0)", 0, "warm"),
        ("sys.exit()", 0, "warm"),
        ("raise SystemExit(9)", 9, "warm"),
        ("sys.exit(256 + 4)", 4, "warm"),
        ("sys.exit('words')", 1, "warm"),
        ("os._exit(7)", 7, "warm"),
        ("1 / 0", 1, "warm"),
        ("raise SystemExit(9)", 9, "exec"),
        ("1 / 0", 1, "exec"),
    ],
)
def test_exit_codes_are_pythons(doors, start, body, code):
    (doors.folder / "job.py").write_text(f"import os, sys, torch\n{body}\n")
    assert doors.run("--start", start, "job.py").process.returncode == code


@STARTS
def test_what_is_registered_runs_at_the_end_in_pythons_order(doors, start):
    (doors.folder / "job.py").write_text(
        "import atexit, sys, threading, torch, weakref\n"
        "class Thing: pass\n"
        "thing = Thing()\nweakref.finalize(thing, print, 'finalized')\n"
        "atexit.register(print, 'first in, last out')\natexit.register(print, 'last in')\n"
        "threading.Timer(0.1, print, ['a thread that is waited for']).start()\n"
        "print('no newline', end='')\nraise ValueError('the end')\n"
    )
    assert doors.run("--name", "x", "--start", start, "job.py").process.returncode == 1
    (text,) = logs(doors.folder)
    ends = ["ValueError: the end", "a thread that", "last in", "first in, last out", "finalized"]
    places = [text.index(end) for end in ends]
    assert places == sorted(places), text
    assert "no newline" in text


@STARTS
def test_a_traceback_is_the_programs_own_and_its_hook_is_asked(doors, start):
    (doors.folder / "job.py").write_text(
        "import sys, torch\nsys.excepthook = lambda kind, error, trace: print('hook', kind.__name__, trace.tb_lineno)\n"
        "raise KeyError('mine')\n"
    )
    (doors.folder / "plain.py").write_text("import torch\ndef f(): raise KeyError('mine')\nf()\n")
    doors.run("--name", "x", "--start", start, "job.py")
    assert logs(doors.folder) == ["hook KeyError 3\n"]
    doors.run("--name", "y", "--start", start, "plain.py")
    (text,) = logs(doors.folder, "y")
    path = f'File "{doors.folder}/plain.py"' if start == "warm" else 'File "'
    assert text.count("  File ") == 2
    assert path in text
    assert text.endswith("KeyError: 'mine'\n")


@pytest.mark.parametrize(
    ("options", "env", "threads"),
    [(["--nproc", 2], {}, 1), (["--nproc", 2], {"OMP_NUM_THREADS": "2"}, 2), ([], {"OMP_NUM_THREADS": "2"}, 2)],
)
def test_threads_of_each_rank(doors, options, env, threads):
    (doors.folder / "job.py").write_text(
        "import os, torch\nprint(torch.get_num_threads(), os.environ.get('OMP_NUM_THREADS'))\n"
    )
    done = doors.run("--name", "x", *options, "job.py", env=env)
    assert set(logs(doors.folder)) == {f"{threads} {threads}\n"}, done.output


def test_threads_that_a_script_sets_itself(doors):
    (doors.folder / "job.py").write_text(
        "import os\nos.environ['OMP_NUM_THREADS'] = '2'\nimport torch\nprint(torch.get_num_threads())\n"
    )
    done = doors.run("--name", "x", "--nproc", 2, "job.py")
    assert logs(doors.folder) == ["2\n", "2\n"]
    assert "every rank is an interpreter of its own (--start exec): job.py:2 sets OMP_NUM_THREADS" in done.output


@STARTS
def test_one_rank_without_a_world_starts_a_world_of_its_own(doors, start):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (doors.folder / "job.py").write_text(
        "import os, sys, torch\nimport torch.distributed as dist\nimport torch.multiprocessing as mp\n"
        "def work(rank):\n"
        f"    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT='{port}', RANK=str(rank), WORLD_SIZE='2')\n"
        "    dist.init_process_group('gloo')\n"
        "    one = torch.ones(1)\n    dist.all_reduce(one)\n    dist.destroy_process_group()\n"
        "    sys.stdout.write(f'sum {one.item()}\\n')\n"
        "if __name__ == '__main__':\n"
        "    ours = ('RANK', 'WORLD_SIZE', 'MASTER', 'LOCAL', 'GROUP', 'ROLE', 'TORCHELASTIC', 'RANKRUN_')\n"
        "    print([name for name in os.environ if name.startswith(ours) and name != 'RANKRUN_TEST_MARK'])\n"
        "    mp.spawn(work, nprocs=2)\n"
    )
    done = doors.run("--name", "x", "--no-dist-env", "--start", start, "job.py")
    assert done.process.returncode == 0, done.output
    assert logs(doors.folder) == ["[]\nsum 2.0\nsum 2.0\n"]


@STARTS
def test_each_rank_sees_its_own_gpu_as_the_first(doors, start):
    (doors.folder / "job.py").write_text(
        "import os, torch\nprint(os.environ['LOCAL_RANK'], os.environ['RANK'], os.environ['CUDA_VISIBLE_DEVICES'])\n"
    )
    env = {"CUDA_VISIBLE_DEVICES": "5, 7"}
    doors.run("--name", "x", "--nproc", 2, "--virtual-local-rank", "--start", start, "job.py", env=env)
    assert logs(doors.folder) == ["0 0 5\n", "0 1 7\n"]


def test_another_interpreter_for_the_ranks(doors):
    python = doors.folder / "my python"
    python.symlink_to(sys.executable)
    (doors.folder / "job.py").write_text("import sys\nprint(sys.executable)\n")
    done = doors.run("--name", "x", "job.py", env={"PYTHON_EXEC": str(python)})
    assert "is another interpreter than this one" in done.output
    assert logs(doors.folder) == [f"{python}\n"]


@STARTS
def test_a_rank_keeps_the_mask_and_the_handlers_that_python_begins_with(doors, start):
    (doors.folder / "job.py").write_text(
        "import json, os, signal, torch\n"
        "known = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)\n"
        "print(json.dumps([sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),\n"
        "    {int(n): known.index(signal.getsignal(n)) for n in signal.valid_signals()\n"
        "     if signal.getsignal(n) in known[1:]}]))\n"
    )
    doors.run("--name", "x", "--start", start, "job.py")
    mask, handlers = json.loads(logs(doors.folder)[0])
    plain = subprocess.run([sys.executable, "job.py"], cwd=doors.folder, capture_output=True, check=True, text=True)
    assert [mask, handlers] == json.loads(plain.stdout)


def on_a_terminal(doors, *words: object) -> tuple[Command, int]:
    """`launch.py run WORDS` on a pseudo terminal, and its other end."""
    ours, theirs = pty.openpty()
    mark = secrets.token_hex(8)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), "run", *map(str, words)],
        cwd=doors.folder,
        env={**doors.env, "RANKRUN_TEST_MARK": mark, "TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    command = Command(process, mark)
    doors.started.append(command)
    return command, ours


class Typist:
    """A person at the other end of the pseudo terminal."""

    def __init__(self, fd: int) -> None:
        self.fd, self.seen = fd, ""
        self._more = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.fd, 4096)
            except OSError:  # the last process at the terminal has left
                data = b""
            with self._more:
                self.seen += data.decode(errors="replace")
                self._more.notify_all()
            if not data:
                return

    def answers(self, prompt: str, line: str) -> None:
        """Wait until the prompt is there, once more than the last time, and type a line."""
        with self._more:
            assert self._more.wait_for(lambda: prompt in self.seen, timeout=120), self.seen
            self.seen = self.seen[self.seen.index(prompt) + len(prompt) :]
        os.write(self.fd, f"{line}\n".encode())


@STARTS
@pytest.mark.parametrize(("options", "rank"), [([], 0), (["--nproc", 2, "--attach", 1], 1)])
def test_a_breakpoint_talks_to_the_person(doors, start, options, rank):
    (doors.folder / "job.py").write_text(
        "import os, torch\nsecret = 40\n"
        f"if os.environ['RANK'] == '{rank}':\n    breakpoint()\n    print('after', secret, input('name? '))\n"
    )
    command, fd = on_a_terminal(doors, "--name", "x", "--start", start, *options, "job.py")
    person = Typist(fd)
    person.answers("(Pdb) ", "secret = secret + 2")
    person.answers("(Pdb) ", "p secret * 100")
    with person._more:
        assert person._more.wait_for(lambda: "4200" in person.seen, timeout=120), person.seen
    person.answers("(Pdb) ", "continue")
    person.answers("name? ", "Ada")
    assert command.process.wait(120) == 0, person.seen
    assert "after 42 Ada" in logs(doors.folder)[rank]
    os.close(fd)


NOISE = "import os, sys, torch\nprint('out', os.environ['RANK'])\nprint('err', os.environ['RANK'], file=sys.stderr)\n"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], ["out 0", "err 0", "[1] out 1", "[1] err 1"]),
        (["--redirects", "3"], []),
        (["-r", "3", "-t", "0:1"], ["out 0"]),
        (["-r", "1:2"], ["out 0", "err 0", "[1] out 1"]),
        (["--local-ranks-filter", "1"], ["[1] out 1", "[1] err 1"]),
        (["--attach", "1"], ["[0] out 0", "[0] err 0", "out 1", "err 1"]),
        (
            ["--role", "t", "--log-line-prefix-template", "${role_name}${local_rank}/${rank}: "],
            ["t0/0: out 0", "t0/0: err 0", "t1/1: out 1", "t1/1: err 1"],
        ),
    ],
)
def test_what_the_terminal_shows_and_that_the_logs_hold_everything(doors, options, shown):
    (doors.folder / "job.py").write_text(NOISE)
    done = doors.run("--name", "x", "--nproc", 2, *options, "job.py")
    assert done.process.returncode == 0, done.output
    assert sorted(done.output.splitlines()) == sorted(shown)
    kept = "".join(file.read_text() for file in (doors.folder / "runs/x/attempts/0000/logs").iterdir())
    assert sorted(kept.splitlines()) == ["err 0", "err 1", "out 0", "out 1"]


@pytest.mark.parametrize(
    "words",
    [
        ["--nproc", "0"],
        ["--nproc", "-1"],
        ["--nproc", "abc"],
        ["--nprok", "2"],
        ["--nnodes", "2"],
        ["--nnodes", "1:4"],
        ["--rdzv-backend", "etcd"],
        ["--rdzv-conf", "x=1"],
        ["--numa-binding", "node"],
        ["--grace", "25:61:00"],
        ["--hang-timeout", "0"],
        ["--attach", "1"],
        ["--no-dist-env", "--nproc", "2"],
        ["--name", "$(touch canary)"],
        ["--name", "`touch canary`"],
        ["--name", "a\nb"],
        ["--name", "n" * 300],
        ["--name", "🚀"],
        ["--role", "a\nb"],
        ["--signals-to-handle", "SIGKILL"],
        ["--start", "cold"],
    ],
)
def test_a_mistake_in_the_options_is_one_line_before_torch_is_imported(doors, words):
    (doors.folder / "site/torch").mkdir(parents=True)
    (doors.folder / "site/torch/__init__.py").write_text("open('canary', 'w').close()\n")
    (doors.folder / "job.py").write_text("import torch\n")
    done = doors.run(*words, "job.py", env={"PYTHONPATH": str(doors.folder / "site")})
    assert done.process.returncode == 2
    (line,) = done.output.splitlines()
    assert line.startswith("E101 ")
    assert sorted(path.name for path in doors.folder.iterdir()) == ["job.py", "site"]


def test_a_preflight_looks_at_machines_and_not_at_data(doors):
    (doors.folder / "train.py").write_text("")
    (doors.folder / "c.yaml").write_text("data: {train: not-there.txt}\ntrain: {epochs: 1, global_batch: 8}\n")
    refused = doors.run("--dry-run", "c.yaml")
    assert refused.process.returncode == 2
    assert "not-there.txt" in refused.output
    done = doors.run("--dry-run", "--preflight", "--nproc", 3, "c.yaml")
    assert done.process.returncode == 0, done.output
    assert "target       rankrun.training.preflight --shared\n" in done.output
    assert "run folder   runs/c-preflight-<date>-<time>\n" in done.output
    assert not (doors.folder / "runs").exists()
