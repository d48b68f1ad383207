"""The table of failures: each kind x {our train.py, a foreign script} x {one node, three}; what the verdict says of it.

`make faults` runs all of it and prints the table, with the seconds from a failure to the last process's end. Without
it every kind is tried with a script on one node, and of the other cells those where something else is at work.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.system import mishaps
from tests.system.doors import ROOT, Command, Doors, children

pytestmark = [pytest.mark.needs("linux"), pytest.mark.slow]

RANKS, VICTIM = 3, 1
TEARDOWN_S = 5.0
SLACK_S = 10.0  # of a machine that does other things besides
HANG_S = 20  # the start-up has to keep to it too
MEMORY_BYTES = 2 << 30

SCRIPT = """\
import mishaps
mishaps.strike("start")
import torch
import torch.distributed as dist
from datetime import timedelta
dist.init_process_group("gloo", timeout=timedelta(seconds={timeout_s}))
for step in range(8):
    if step == 3:
        mishaps.strike("step")
    dist.all_reduce(torch.ones(1))
dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Kind:
    """A failure and what has to be said of it. `says` is part of the root cause; `line` where it must be, if it can."""

    name: str
    says: str
    code: int
    line: str | None = None
    train_says: str | None = None
    train_code: int | None = None
    train_line: str | None = None
    ranks: tuple[int, ...] = (VICTIM,)  # that fail, and of which one has to be named
    hangs: bool = False
    options: tuple[str, ...] = ()
    cause: str = ""

    def __str__(self) -> str:
        return self.name


def raising(name: str, says: str, code: int = 1, **more: object) -> Kind:
    """A kind with a line of its own in mishaps.py."""
    return Kind(name, says, code, mishaps.line_of(name), **more)  # type: ignore[arg-type]


def dying(number: signal.Signals, *, dumps: bool = False, name: str = "") -> Kind:
    """Death by a signal; faulthandler shows where for some."""
    line = mishaps.line_of("signal") if dumps else None
    return Kind(name or number.name.lower(), f"killed by {number.name}", 128 + number, line)


KINDS = [
    raising("exception", "ValueError: on purpose"),
    raising("nested_exception", "RuntimeError: outer"),
    raising("error_in_a_library", "JSONDecodeError: Expecting property name"),
    raising("exception_without_words", "AssertionError"),
    raising("exception_before_joining", "LookupError: too early"),
    raising("exception_on_all", "ValueError: everywhere", ranks=tuple(range(RANKS))),
    raising("recursion", "RecursionError"),
    raising("system_exit", "SystemExit: 7", 7),
    raising("system_exit_with_words", "SystemExit: no such thing"),
    Kind("exit_without_a_word", "left with exit code 9", 9),
    Kind("exit_0_early", "left with exit code 0", 1),
    Kind("polite_exit_0_early", "left with exit code 0", 1),
    raising("import_error", "No module named 'not_there_at_all'", cause="not installed"),
    Kind("syntax_error", "SyntaxError: '(' was never closed", 1, "broken.py:3"),
    dying(signal.SIGKILL),
    dying(signal.SIGKILL, name="early_signal"),
    dying(signal.SIGTERM),
    dying(signal.SIGHUP),
    dying(signal.SIGQUIT),
    dying(signal.SIGSEGV, dumps=True),
    dying(signal.SIGABRT, dumps=True),
    dying(signal.SIGBUS, dumps=True),
    dying(signal.SIGFPE, dumps=True),
    dying(signal.SIGILL, dumps=True),
    raising("segfault_in_c", "killed by SIGSEGV", 139, cause="C or C++ crashed"),
    raising("double_free", "killed by SIGABRT (free(): double free", 134),
    raising("memory_limit", "MemoryError", cause="no more memory"),
    raising("too_many_open_files", "[Errno 24] Too many open files", cause="open files"),
    raising("full_disk", "No space left on device", cause="disk is full"),
    raising("port_taken", "EADDRINUSE", cause="listens on the port"),
    raising("bad_checkpoint", "Error(s) in loading state_dict", cause="another model"),
    raising("worker_raises", "LookupError: row 0 (in DataLoader worker process 0)"),
    raising("worker_killed", "DataLoader worker", cause="loader worker", train_says="E212", train_line=""),
    raising("stubborn_family", "ValueError: with children"),
    raising("deadlock", "hung", 124, hangs=True),
    raising("holds_the_gil", "hung", 124, hangs=True),
    Kind("stopped", "hung", 124, hangs=True),
]  # fmt: skip


@dataclass
class Launched:
    """One launch on one node or several, and the run that it writes."""

    commands: list[Command]
    run: Path
    hosts: list[str]  # by rank
    folder: Path
    codes: list[int] = field(default_factory=list)
    gone: float = 0.0

    @property
    def output(self) -> str:
        return "\n".join(command.output for command in self.commands)

    def wait(self) -> None:
        """To the end of all launchers, and then of all that they have left, which must be nothing."""
        self.codes = [command.wait() for command in self.commands]
        deadline = time.monotonic() + TEARDOWN_S
        while self.left() and time.monotonic() < deadline:
            continue
        self.gone = time.monotonic()

    def left(self) -> list[int]:
        return [pid for command in self.commands for pid in command.family()]

    @property
    def teardown_s(self) -> float:
        """From the failure to the end of the last process."""
        return self.gone - float((self.folder / "struck").read_text())

    @property
    def verdict(self) -> dict:
        return json.loads((self.run / "attempts/0000/verdict.json").read_text())


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """48 small grey images and their meta file."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    for row in range(48):
        Image.new("L", (8, 8), row * 5).save(folder / f"{row}.png")
    (folder / "train.txt").write_text("".join(f"{row}.png {row % 3}\n" for row in range(48)))
    return folder


@pytest.fixture
def launch(doors: Doors, request: pytest.FixtureRequest, images: Path):
    """Starts a target on `nodes` nodes with a mishap, in a folder of its own that they share."""

    def start(target: str, kind: str, nodes: int, *options: object, ranks=(VICTIM,), limit=None, timeout_s=600):
        folder = doors.folder
        shutil.copy(mishaps.__file__, folder)
        environment = {
            "MISHAP": kind,
            "MISHAP_RANK": ",".join(map(str, ranks)),
            "PYTHONPATH": f"{folder}:{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        words = ["run", "--runs", folder / "runs", "--name", "x", "--max-restarts", 0, *options]
        if target == "script":
            (folder / "job.py").write_text(SCRIPT.format(timeout_s=timeout_s))
            words.append("job.py")
        else:
            write_training(folder, images)
            words.append("small.yaml")
            words += ["data.workers=1"] if kind == "worker_killed" else []
        within = limit if limit is not None else lambda command: command
        launcher = [sys.executable, ROOT / "launch.py"]
        if nodes == 1:
            whole = within([*launcher, words[0], "--nproc", RANKS, *words[1:]])
            commands, names = [doors.start(whole, environment)], [socket.gethostname()] * RANKS
        else:
            hosts = request.getfixturevalue("hosts")(nodes)
            joined = ["--nnodes", nodes, "--rdzv-endpoint", f"{hosts.addresses[0]}:29400", "--nproc", RANKS // nodes]
            commands = []
            for host in range(nodes):
                whole = within([*launcher, words[0], *joined, "--node-rank", host, *words[1:]])
                commands.append(hosts.start(host, whole, environment))
            names = hosts.names
        return Launched(commands, folder / "runs/x", names, folder)

    return start


def write_training(folder: Path, images: Path) -> None:
    """train.py with two moments to fail at, and a config of a few small steps."""
    story = (ROOT / "train.py").read_text()
    assert story.count("import sys\n") == 1
    story = story.replace("import sys\n", "import sys\nimport mishaps\nmishaps.strike('start')\n")
    step = "                optimiser.step()\n"
    assert story.count(step) == 1
    strike = "                mishaps.strike('step' if progress.step == 2 else '')\n"
    (folder / "train.py").write_text(story.replace(step, step + strike))
    (folder / "small.yaml").write_text(
        f"data: {{train: {images}/train.txt, classes: 3, channels: 1, workers: 0}}\n"
        "model: {args: {width: 8, blocks: [1]}}\ntrain: {epochs: 2, global_batch: 6, device: cpu}\n"
    )


@pytest.fixture(scope="module", autouse=True)
def table(request) -> Iterator[list[str]]:
    """The lines of the table, printed at the end where output is not captured."""
    rows: list[str] = []
    yield rows
    if request.config.getoption("capture") == "no":
        head = f"{'kind':<26} {'target':<7} {'nodes':>5}  {'rank, host':<14} {'line':<16} {'code':>4}"
        print("\n" + "\n".join([f"{head}   gone in  left", *rows]))


TARGETS = ["script", pytest.param("train", marks=pytest.mark.exhaustive)]
NODES = [1, pytest.param(3, marks=pytest.mark.needs("netns"))]


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What `make test` tries: every way in which a failure is found and named, not every failure.
ALWAYS = {
    ("script", 1): words(
        "exception nested_exception exception_on_all system_exit exit_without_a_word exit_0_early import_error "
        "syntax_error sigkill early_signal sigsegv segfault_in_c double_free too_many_open_files port_taken "
        "worker_raises worker_killed stubborn_family deadlock holds_the_gil stopped"
    ),
    ("train", 1): words("exception system_exit exit_0_early memory_limit full_disk worker_killed deadlock"),
    ("script", 3): words("exit_0_early import_error sigkill deadlock"),
    ("train", 3): words("exception"),
}


def cells() -> Iterator[object]:
    for kind in KINDS:
        for target in ("script", "train"):
            for nodes in (1, 3):
                always = kind.name in ALWAYS[target, nodes]
                marks = [pytest.mark.needs("netns")] if nodes > 1 else []
                marks += [] if always else [pytest.mark.exhaustive]
                yield pytest.param(kind, target, nodes, marks=marks, id=f"{kind.name}-{target}-{nodes}")


@pytest.mark.parametrize(("kind", "target", "nodes"), list(cells()))
def test_the_verdict_on_a_failure(launch, table, kind, target, nodes):
    options = [*kind.options, *(["--hang-timeout", HANG_S] if kind.hangs else [])]
    done = launch(target, kind.name, nodes, *options, ranks=kind.ranks)
    done.wait()
    ours = target == "train"
    code = kind.train_code if ours and kind.train_code is not None else kind.code
    line = kind.train_line if ours and kind.train_line is not None else kind.line
    says = kind.train_says if ours and kind.train_says is not None else kind.says
    found, left = done.verdict, done.left()
    late_s = done.teardown_s - (HANG_S if kind.hangs else 0)
    place = Path(found["where"] or "").name
    table.append(
        f"{kind.name:<26} {target:<7} {nodes:>5}  {found['rank']}, {found['host']:<11} {place[:16]:<16} "
        f"{found['exit_code']:>4}  {late_s:>6.1f} s  {len(left)}"
    )
    assert says in found["line"], done.output
    assert found["rank"] in kind.ranks, found["line"]
    assert found["host"] == done.hosts[found["rank"]]
    assert set(done.codes) == {found["exit_code"]} == {code}, done.output
    if line:
        assert line in (found["where"] or ""), found["line"]
    if kind.cause and not ours:
        assert kind.cause in found["cause"]["what"]
    assert left == []
    assert late_s < TEARDOWN_S + SLACK_S
    assert " failed too: " not in done.output, "whoever was stopped because of it has not failed"
    assert 'launch/agent.py", line' not in done.output


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["slow_step", "thread_raises"])
def test_what_is_no_failure(launch, kind, target, nodes):
    done = launch(target, kind, nodes)
    done.wait()
    assert set(done.codes) == {0}, done.output
    assert not (done.run / "attempts/0000/verdict.json").exists()
    assert done.left() == []


@pytest.mark.parametrize("nodes", NODES)
def test_a_rank_that_skips_a_collective_until_the_others_give_up(launch, nodes):
    done = launch("script", "deadlock", nodes, timeout_s=4)
    done.wait()
    found = done.verdict
    assert found["line"].startswith("no rank failed by itself; the first to give up was rank "), done.output
    assert found["rank"] != VICTIM
    assert (found["by_itself"], set(done.codes)) == (False, {1})
    assert f"still running, and perhaps what they waited for: rank {VICTIM} on {done.hosts[VICTIM]}" in done.output
    assert "likely cause: the ranks did not come to the same collective in time" in done.output
    assert done.left() == []


def test_a_training_that_fails_at_the_same_step_again_and_again_is_given_up(launch):
    done = launch("train", "exception", 1, "--max-restarts", 5)
    done.wait()
    assert done.codes == [93], done.output
    assert [path.name for path in sorted((done.run / "attempts").iterdir())] == ["0000", "0001", "0002"]
    last = done.output.strip().splitlines()[-1]
    assert last == "rankrun: 3 failures in a row without a new checkpoint; not tried again"
    assert "restart 2 of 5" in done.output
    assert done.left() == []


@pytest.mark.needs("memcg")
@pytest.mark.parametrize("target", ["script", "train"])
def test_the_kernel_kills_a_rank_for_want_of_memory(launch, table, memcg, target):
    done = launch(target, "out_of_memory", 1, limit=lambda words: memcg(MEMORY_BYTES, [*map(str, words)]))
    done.wait()
    found = done.verdict
    table.append(
        f"{'out_of_memory':<26} {target:<7} {1:>5}  {found['rank']}, {found['host']:<11} {'':<16} "
        f"{found['exit_code']:>4}  {done.teardown_s:>6.1f} s  {len(done.left())}"
    )
    assert (found["rank"], found["exit_code"], done.codes) == (VICTIM, 137, [137]), done.output
    assert found["line"].endswith(
        "killed by SIGKILL (by the kernel, because the job reached its memory limit of 2.0 GiB)"
    )
    assert found["cause"]["what"] == "memory ran out"
    assert done.left() == []


# What is killed is not a rank ---------------------------------------------------------------------------------------


@pytest.fixture
def asleep(launch):
    """A launch whose victim sleeps in a step, while the others wait for it."""

    def start(target: str, nodes: int) -> Launched:
        going = launch(target, "deadlock", nodes)
        going.commands[0].until((going.folder / "struck").exists, "a rank is asleep")
        return going

    return start


def agent_of(going: Launched, node: int) -> int:
    """The pid of a node's launcher."""
    return going.commands[node].process.pid


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("node", [0, -1])
def test_an_agent_is_killed(asleep, table, target, nodes, node):
    going = asleep(target, nodes)
    node %= nodes
    killed = time.monotonic()
    os.kill(agent_of(going, node), signal.SIGKILL)
    going.wait()
    late_s, left = going.gone - killed, going.left()
    others = [code for number, code in enumerate(going.codes) if number != node]
    name = f"agent of node {node} killed"
    table.append(
        f"{name:<26} {target:<7} {nodes:>5}  {'':<14} {'':<16} {str(*set(others)):>4}  {late_s:>6.1f} s  {len(left)}"
    )
    assert going.codes[node] == -signal.SIGKILL
    assert left == []
    assert late_s < TEARDOWN_S + SLACK_S
    if nodes > 1:
        assert set(others) == {1}, going.output
        assert f"node {node} ({going.hosts[node]}) can't be reached any more" in going.output


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("target", TARGETS)
def test_a_warm_parent_is_killed(asleep, table, target, nodes):
    going = asleep(target, nodes)
    node = nodes - 1
    (warm_parent,) = children(agent_of(going, node))
    killed = time.monotonic()
    os.kill(warm_parent, signal.SIGKILL)
    going.wait()
    late_s, left, found = going.gone - killed, going.left(), going.verdict
    table.append(
        f"{'warm parent killed':<26} {target:<7} {nodes:>5}  {found['rank']}, {found['host']:<8} {'':<16} "
        f"{found['exit_code']:>4}  {late_s:>6.1f} s  {len(left)}"
    )
    assert found["line"] == f"the warm parent on {going.hosts[-1]} died, and its ranks with it", going.output
    assert (set(going.codes), found["host"]) == ({1}, going.hosts[-1])
    assert left == []
    assert late_s < TEARDOWN_S + SLACK_S


@pytest.mark.parametrize("target", ["script", "train"])
def test_the_terminal_closes(launch, table, target):
    """The launcher has a terminal of its own, and the process that holds the other end of it is killed."""
    holder = "import os, pty, sys\npty.spawn(sys.argv[1:])"
    going = launch(target, "deadlock", 1, "--grace", 1, limit=lambda words: [sys.executable, "-c", holder, *words])
    going.commands[0].until((going.folder / "struck").exists, "a rank is asleep")
    closed = time.monotonic()
    going.commands[0].process.kill()
    going.wait()
    late_s, left = going.gone - closed, going.left()
    code = int((going.run / "attempts/0000/outcome").read_text())
    table.append(
        f"{'terminal closed':<26} {target:<7} {1:>5}  {'':<14} {'':<16} {code:>4}  {late_s:>6.1f} s  {len(left)}"
    )
    assert code == 130
    assert left == []
    assert late_s < TEARDOWN_S + SLACK_S
