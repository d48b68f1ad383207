"""What every rank is doing right now, also one that is stuck in C code or stopped: asked by a signal, told as text.

    agent ──STACKS_SIGNAL──> each rank: faulthandler, in a C handler, writes all threads into the rank's StacksFile
      └ reads the files and /proc, asks py-spy where there is one, and writes attempts/N/stacks/rank-00003.txt

faulthandler needs neither the GIL nor a program that cooperates. A stopped process does not get to it; /proc tells
that it is stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import linecache
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rankrun.errors import printable
from rankrun.launch.process import LINUX, listens_for, send
from rankrun.launch.watch import Hang
from rankrun.runfolder import write_atomically

# Neither Python nor torch uses a real-time signal, glibc the first two only.
STACKS_SIGNAL: int = signal.SIGRTMAX - 2 if LINUX else getattr(signal, "SIGINFO", signal.SIGXFSZ)

_PR_SET_PTRACER = 0x59616D61
_STILL_S = 0.15  # a dump of 100 threads takes some ms; one that has not grown for this long is whole
_LOOK_S = 0.01
_PY_SPY_LIMIT_S = 5.0
_MOST_BYTES = 1 << 20
_MOST_CHILDREN = 32
_MOST_WORDS = 1000  # of another node's `where`

_Frame = tuple[str, int, str]

# As faulthandler writes them, and as py-spy does. The signal goes to the main thread, faulthandler's current one.
_THREAD = re.compile(r"^(?P<main>Current thread|Thread) 0x.*\(most recent call first\):\s*$")
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<name>.*)$')
_SPIED_THREAD = re.compile(r'^Thread \S+ \(.*\)(: (?P<main>"MainThread")?.*)?$')
_SPIED_FRAME = re.compile(r"^    (?P<name>.+) \((?P<file>.+):(?P<line>\d+)\)$")
_NOT_THEIRS = (sysconfig.get_path("stdlib") + os.sep, str(Path(__file__).resolve().parents[1]) + os.sep, "<frozen ")
# Where a rank waits for others: inside torch.distributed or DDP, in autograd's engine (where DDP waits for its
# buckets), and in a line that asks for their results. A rank that computes in the engine looks like one that waits.
_WAITING_FILES = ("torch/distributed/", "torch/nn/parallel/", "torch/autograd/graph.py", "torch/autograd/__init__.py")
_WAITING_LINE = re.compile(r"\.(wait|item|cpu|tolist|synchronize|backward|barrier|all_reduce|all_gather|broadcast)\(")
_DEBUGGERS = ("pdb.py", "bdb.py", "debugpy/", "pydevd", "IPython/terminal/debugger.py")


class StacksFile:
    """Where one rank's faulthandler writes. Anonymous where the kernel has memfd: a healthy run leaves nothing."""

    def __init__(self, folder: Path, rank: int) -> None:
        if LINUX:
            self._fd = os.memfd_create("rankrun-stacks")
            self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        else:
            self.path = str(folder / f"stacks-{rank:05d}")
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        self._begin = 0

    @property
    def size_bytes(self) -> int:
        """How much was written since the last `forget`."""
        return os.fstat(self._fd).st_size - self._begin

    def forget(self) -> None:
        """Leave out of `read` what stands there now; the rank's own place in the file stays where it is."""
        self._begin += self.size_bytes

    def read(self) -> str:
        """What was written since the last `forget`, at most 1 MiB of it, as text whatever the bytes are."""
        return os.pread(self._fd, min(self.size_bytes, _MOST_BYTES), self._begin).decode("utf-8", "replace")

    def close(self) -> None:
        """Give the memory back."""
        os.close(self._fd)
        if not LINUX:
            os.unlink(self.path)


def allow_tracer(pid: int) -> None:
    """Let `pid` and its descendants trace this process where Yama forbids it to others; py-spy needs that."""
    if LINUX:
        # EINVAL where the kernel has no Yama: then nobody forbids it.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0)


@dataclass(frozen=True)
class Stack:
    """What could be had of one rank.

    `where` is the summary of its stack, or says why there is none. `path` is the file that has all of it, None if
    that could not be written or is another node's. `waits`: the main thread waits for other ranks, as far as its
    innermost frame shows. `attended`: a person is at work in it, with a debugger.
    """

    rank: int
    where: str
    stopped: bool = False
    waits: bool = False
    attended: bool = False
    path: Path | None = None

    def as_message(self) -> dict[str, Any]:
        """Builtins for JSON, for another node's agent."""
        return asdict(self) | {"path": None}

    @classmethod
    def from_message(cls, message: Any) -> Stack | None:
        """The Stack in another node's message; None for anything that is not one."""
        if not isinstance(message, dict):
            return None
        rank, where = message.get("rank"), message.get("where")
        stopped, waits, attended = (message.get(name) is True for name in ("stopped", "waits", "attended"))
        if not isinstance(where, str) or not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
            return None
        return cls(rank, printable(where[:_MOST_WORDS]), stopped, waits, attended)


def gather(
    pids: Mapping[int, int],
    files: Mapping[int, StacksFile],
    ask: Callable[[], None],
    folder: Path,
    timeout_s: float = 2.0,
    logs: Mapping[int, Path] | None = None,
) -> dict[int, Stack]:
    """The stacks of all ranks in `pids` (by rank), written to `folder`/rank-00000.txt, each whole or not at all.

    `ask` sends STACKS_SIGNAL to those that listen for it. With `logs`, ranks that don't (--start exec) but have
    Python's own faulthandler on get SIGABRT: it ends them, and their stack is the last thing in their log. It takes
    `timeout_s` at most for each of both, and 5 s more where py-spy is installed. Raises nothing for what can't be had
    or written; the Stack says so.
    """
    texts = _dumps(pids, files, ask, timeout_s)
    states = {rank: _state(pid) for rank, pid in pids.items()}
    spied = _py_spy(pids)
    deaf = {rank: pid for rank, pid in pids.items() if rank not in texts and not _frames_of(spied.get(rank, ""))}
    texts |= _last_words(deaf, logs, timeout_s)
    found, families = {}, _families()
    for rank, pid in sorted(pids.items()):
        text, spy, stopped = texts.get(rank, ""), spied.get(rank, ""), _is_stopped(states[rank])
        frames = _frames_of(text) or _frames_of(spy)
        where = _in_words(frames) or _why_not(rank in texts, states[rank])
        children = {child: _state(child) for child in _below(pid, families)}
        if frames and stopped:
            where += ", stopped by a signal"
        elif halted := [child for child, state in children.items() if _is_stopped(state)]:
            where += f"; its child process {halted[0]} is stopped by a signal"
        parts = [f"rank {rank}, process {pid}: {states[rank] or 'is gone'}"]
        parts += [f"  its child {child}: {state or 'is gone'}" for child, state in children.items()][:_MOST_CHILDREN]
        parts += ["", text or where, *(["", "py-spy:", spy] if spy else [])]
        path = _write(folder, rank, "\n".join(parts).rstrip() + "\n")
        found[rank] = Stack(rank, where, stopped, not stopped and _waits(frames), _attended(frames, states[rank]), path)
    return found


def attended(
    pids: Mapping[int, int], files: Mapping[int, StacksFile], ask: Callable[[], None], timeout_s: float = 1.0
) -> bool:
    """Whether a person is at work in one of the ranks with a debugger, so that its silence is none; writes nothing."""
    texts = _dumps(pids, files, ask, timeout_s)
    return any(_attended(_frames_of(texts.get(rank, "")), _state(pid)) for rank, pid in pids.items())


def summary(text: str) -> str:
    """`train.py:130 in main`: where the main thread is in the user's own code, else in whichever; "" without a stack.

    The user's own is what belongs neither to Python, nor to what is installed, nor to rankrun.
    """
    return _in_words(_frames_of(text))


def narrow(hang: Hang, stacks: Mapping[int, Stack]) -> Hang:
    """The same hang with fewer suspects, where the stacks tell those who stand from those who wait for them.

    Who is stopped stands. Else it is whoever of the suspects (if none, of the others) waits for nobody, provided that
    somebody waits. If all wait, it is the few who wait at another place than most: each collective lacks the others.
    """
    running = (*hang.suspects, *hang.waiting)
    waiters = {rank for rank in running if rank in stacks and stacks[rank].waits and not stacks[rank].stopped}
    standing = {rank for rank in running if rank in stacks and stacks[rank].stopped}
    if not standing and waiters:
        standing = set(hang.suspects) - waiters or set(hang.waiting) - waiters
    if not standing and waiters:
        places = Counter(stacks[rank].where for rank in waiters)
        most, count = places.most_common(1)[0]
        others = {rank for rank in waiters if stacks[rank].where != most}
        standing = others if len(others) < count else set()
    if not standing:
        return hang
    return replace(hang, suspects=tuple(sorted(standing)), waiting=tuple(sorted(set(running) - standing)))


def _dumps(
    pids: Mapping[int, int], files: Mapping[int, StacksFile], ask: Callable[[], None], timeout_s: float
) -> dict[int, str]:
    """What faulthandler wrote, of those ranks that listen for STACKS_SIGNAL; "" where no answer came in time."""
    able = [rank for rank, pid in pids.items() if rank in files and listens_for(pid, STACKS_SIGNAL)]
    for rank in able:
        files[rank].forget()
    ask()
    deadline = time.monotonic() + timeout_s
    waited_for = {rank: files[rank] for rank in able if not _is_stopped(_state(pids[rank]))}
    sizes: dict[int, int] = {}
    still_since = time.monotonic()
    while waited_for and (now := time.monotonic()) < deadline:
        before, sizes = sizes, {rank: file.size_bytes for rank, file in waited_for.items()}
        if sizes != before:
            still_since = now
        if all(sizes.values()) and now - still_since >= _STILL_S:
            break
        time.sleep(_LOOK_S)  # a memory file wakes nobody who waits for it
    return {rank: files[rank].read() for rank in able}


def _last_words(pids: Mapping[int, int], logs: Mapping[int, Path] | None, timeout_s: float) -> dict[int, str]:
    """What SIGABRT makes those ranks add to their logs that have Python's faulthandler on."""
    begins = {}
    for rank, pid in pids.items():
        if logs is not None and rank in logs and listens_for(pid, signal.SIGABRT):
            with contextlib.suppress(OSError):
                begins[rank] = logs[rank].stat().st_size
                send([pid], signal.SIGABRT)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and any(_lives(pids[rank]) for rank in begins):
        time.sleep(_LOOK_S)
    texts = {}
    for rank, begin in begins.items():
        with contextlib.suppress(OSError), open((logs or {})[rank], "rb") as log:
            log.seek(begin)
            texts[rank] = log.read(_MOST_BYTES).decode("utf-8", "replace")
    return texts


def _frames_of(text: str) -> list[_Frame]:
    """(file, line, function) of the main thread, innermost first.

    Where faulthandler does not know which it is (another thread has the GIL), it is the oldest, which stands last.
    """
    threads: list[tuple[bool, list[_Frame]]] = []
    for line in text.splitlines():
        if thread := _THREAD.match(line) or _SPIED_THREAD.match(line):
            threads.append((thread["main"] not in (None, "Thread"), []))
        elif (frame := _FRAME.match(line) or _SPIED_FRAME.match(line)) and threads:
            number = int(frame["line"]) if frame["line"].isdecimal() else 0
            threads[-1][1].append((frame["file"], number, frame["name"]))
    main = [frames for is_main, frames in threads if is_main]
    return main[0] if main else threads[-1][1] if threads else []


def _in_words(frames: list[_Frame]) -> str:
    own = [frame for frame in frames if not (frame[0].startswith(_NOT_THEIRS) or "-packages/" in frame[0])]
    for file, line, name in (own or frames)[:1]:
        with contextlib.suppress(ValueError, OSError):
            file = str(Path(file).relative_to(Path.cwd()))
        return f"{file}:{line} in {name}"
    return ""


def _waits(frames: list[_Frame]) -> bool:
    if not frames:
        return False
    file, line, _ = frames[0]
    if any(part in file for part in _WAITING_FILES):
        return True
    # A program may call its code what it likes, a FIFO or /dev/stdin too, and that must not be waited for.
    source = linecache.getline(file, line) if os.path.isfile(file) else ""
    return _WAITING_LINE.search(source) is not None


def _attended(frames: list[_Frame], state: str) -> bool:
    return state.startswith("t") or any(part in file for file, _, _ in frames for part in _DEBUGGERS)


def _state(pid: int) -> str:
    """`S (sleeping), in futex_wait_queue`, from /proc; "" where that can't be read."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return ""
    state = next((line.partition(":")[2].strip() for line in status.splitlines() if line.startswith("State:")), "")
    with contextlib.suppress(OSError):
        place = Path(f"/proc/{pid}/wchan").read_text(errors="replace").strip()
        if place not in ("", "0"):
            state += f", in {place}"
    return state


def _is_stopped(state: str) -> bool:
    return state.startswith("T")


def _lives(pid: int) -> bool:
    return _state(pid)[:1] not in ("", "Z", "X")


def _why_not(listens: bool, state: str) -> str:
    if state[:1] in ("", "Z", "X"):
        return "it is gone"
    if _is_stopped(state):
        return "stopped by a signal (SIGSTOP, or a debugger): no Python stack"
    if not listens:
        return "it has no handler that would show its Python stack (--start exec, or no Python); py-spy can"
    return f"no answer, so no Python stack: {state}"


def _families() -> dict[int, list[int]]:
    """The children of every process here, by pid, in one pass: 64 ranks would make 64."""
    import psutil

    children: dict[int, list[int]] = {}
    for process in psutil.process_iter(["ppid"]):
        children.setdefault(process.info["ppid"], []).append(process.pid)
    return children


def _below(pid: int, families: Mapping[int, list[int]]) -> list[int]:
    found = [pid]
    for one in found:
        found += families.get(one, [])
    return found[1:]


def _py_spy(pids: Mapping[int, int]) -> dict[int, str]:
    """What py-spy shows of each rank, all asked at once; {} where it is not installed."""
    program = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        return {}
    asked = {}
    for rank, pid in pids.items():
        # Not blocking: it then reads a process that is stopped too, and can't leave one stopped.
        command = [program, "dump", "--nonblocking", "--full-filenames", "--pid", str(pid)]
        with contextlib.suppress(OSError):
            asked[rank] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
    deadline = time.monotonic() + _PY_SPY_LIMIT_S
    told = {}
    for rank, process in asked.items():
        try:
            output = process.communicate(timeout=max(0.0, deadline - time.monotonic()))[0]
            told[rank] = output[:_MOST_BYTES].decode("utf-8", "replace").rstrip()
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            told[rank] = f"did not answer within {_PY_SPY_LIMIT_S:.0f} s"
    return told


def _write(folder: Path, rank: int, content: str) -> Path | None:
    path = folder / f"rank-{rank:05d}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError:
        return None  # a full disk; the verdict has the summary
    return path
