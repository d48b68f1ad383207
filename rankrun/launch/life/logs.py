"""`logs`: what a rank has printed, by attempt; with -f as it comes, over restarts, until the launch has ended."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rankrun.errors import ExitCode, OptionError
from rankrun.launch.life.finding import find_run
from rankrun.launch.life.vigil import Vigil
from rankrun.launch.options import Parser
from rankrun.runfolder import RunFolder
from rankrun.runfolder.state import state_of

_POLL_S = 0.2
_LOOK_S = 1.0
_SILENT_S = 60.0  # after so long without a sign of life a launch on another machine counts as gone
_CHUNK_BYTES = 1 << 20


def logs(
    words: list[str],
    env: Mapping[str, str],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """`logs RUN [-f] [--rank N] [--attempt N] [--runs DIR]`: to stdout, byte for byte."""
    parser = Parser(prog="launch.py logs", description="What a rank has printed, stdout and stderr together.")
    parser.add_argument("run", metavar="RUN", help="a name below runs/, or a path")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until the launch has ended")
    parser.add_argument("--rank", metavar="N", default="0", help="which rank's (default: 0)")
    parser.add_argument(
        "--attempt", metavar="N", help="which attempt's (default: the newest; -f goes on with later ones)"
    )
    parser.add_argument("--runs", metavar="DIR", default="runs", help="parent of the run folders (default: runs)")
    found = parser.parse_args(words)
    folder = find_run(found.run, Path(found.runs))
    rank = _number("--rank", found.rank)
    attempt = _number("--attempt", found.attempt) if found.attempt is not None else None
    try:
        if found.follow:
            return _follow(folder, rank, attempt, clock, sleep)
        _print_one(folder, rank, attempt)
        return ExitCode.DONE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def _number(option: str, word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 9):
        raise OptionError(f"{option} {word[:40]}: a whole number from 0")
    return int(word)


class LogReader:
    """Reads on in one log. Each look opens it anew: a network file system shows an open file as it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = (0, 0)  # device and inode
        self._place = 0

    def read(self) -> bytes:
        """What has come since the last call, at most a megabyte; from its beginning if it was cut or replaced."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        try:
            about = os.fstat(descriptor)
            if (about.st_dev, about.st_ino) != self._file or about.st_size < self._place:
                self._file, self._place = (about.st_dev, about.st_ino), 0
            data = os.pread(descriptor, _CHUNK_BYTES, self._place)
        finally:
            os.close(descriptor)
        self._place += len(data)
        return data


def _print_one(folder: RunFolder, rank: int, attempt: int | None) -> None:
    number = _attempt(folder, attempt)
    log = folder.log_file(number, rank)
    if not log.exists():
        raise OptionError(_no_log(folder, number, rank))
    _tell_of_stderr(log)
    reader = LogReader(log)
    left = log.stat().st_size  # a live log may grow faster than a terminal shows it
    while left > 0 and (data := reader.read()):
        _put(data)
        left -= len(data)


def _follow(
    folder: RunFolder, rank: int, attempt: int | None, clock: Callable[[], float], sleep: Callable[[float], None]
) -> int:
    vigil = Vigil(folder, clock)
    number = _attempt(folder, attempt)
    reader = LogReader(folder.log_file(number, rank))
    ended_with = b"\n"
    next_look = clock()
    while True:
        # Looked at before the last bytes are read, so that none can come after them.
        over = vigil.gone or (vigil.silent_s > _SILENT_S and not vigil.is_here)
        newest = max(folder.attempt_numbers(), default=-1)
        while data := reader.read():
            _put(data)
            ended_with = data[-1:]
        if newest > number and attempt is None:
            number, ended_with = newest, _end_line(ended_with)
            _say(f"attempt {number}")
            reader = LogReader(folder.log_file(number, rank))
            continue
        if over or newest > number:
            break
        if clock() >= next_look:
            vigil.look()
            next_look = clock() + _LOOK_S
            if vigil.beats > 2 and _lacks(folder, number, rank):
                raise OptionError(_no_log(folder, number, rank))
        if _reader_left():
            return ExitCode.DONE
        sleep(_POLL_S)
    _end_line(ended_with)
    _tell_of_stderr(reader.path)
    if newest < 0:
        _say(f"{folder.path} is gone: its launch was refused, or somebody removed it")
        return ExitCode.DONE
    if not reader.path.exists():
        raise OptionError(_no_log(folder, number, rank))
    if newest == number:
        state = state_of(folder)
        _say(f"{folder.name}: {state.name}{f' ({state.detail})' if state.detail else ''}")
    return ExitCode.DONE


def _attempt(folder: RunFolder, wanted: int | None) -> int:
    numbers = folder.attempt_numbers()
    if not numbers:
        raise OptionError(f"{folder.path} has no attempt yet")
    if wanted is not None and wanted not in numbers:
        raise OptionError(f"--attempt {wanted}: {folder.path} has attempts {_ranges(numbers)}")
    return numbers[-1] if wanted is None else wanted


def _ranks(folder: RunFolder, attempt: int) -> list[int]:
    """The ranks that have a log."""
    names = (path.stem.removeprefix("rank-") for path in folder.log_file(attempt, 0).parent.glob("rank-*.log"))
    return sorted(int(name) for name in names if name.isdecimal())


def _lacks(folder: RunFolder, attempt: int, rank: int) -> bool:
    """Whether others have their logs and this one hasn't: ranks are started together."""
    ranks = _ranks(folder, attempt)
    return bool(ranks) and rank not in ranks


def _no_log(folder: RunFolder, attempt: int, rank: int) -> str:
    ranks = _ranks(folder, attempt)
    there = f"it has ranks {_ranges(ranks)}" if ranks else "it has none; its ranks never started"
    return f"attempt {attempt} of {folder.path} has no log of rank {rank}: {there}"


def _ranges(numbers: list[int]) -> str:
    """`0-2, 4` for 0, 1, 2 and 4."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _put(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OptionError(f"stdout can't be written: {error.strerror}") from error


def _end_line(ended_with: bytes) -> bytes:
    """A kill leaves a line unfinished, and ours must not be hung on to it."""
    if ended_with != b"\n":
        _put(b"\n")
    return b"\n"


def _say(line: str) -> None:
    print(f"rankrun: {line}", file=sys.stderr, flush=True)


def _tell_of_stderr(log: Path) -> None:
    """With --redirects or --tee of one stream a rank's stderr has a file of its own."""
    apart = log.with_suffix(".err")
    if apart.exists():
        _say(f"its stderr is in {apart}")


def _reader_left() -> bool:
    """Whether whoever read our pipe has gone, which else only the next line would show."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False
