"""What a log's last lines say of a failure: Python's tracebacks, faulthandler's dumps, what C and C++ die with.

A program that was started by exec, or that crashed in C code, leaves no exception to look at, only this text. Nothing
in here raises for any input.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rankrun.failure import own_place

_FRAME = re.compile(r'^\s*File "(?P<file>[^"\n]+)", line (?P<line>\d+)(( in|, in) .*)?$')
_HEADER = re.compile(r"^\s*(\w+: )?(Original )?Traceback \(most recent call last\):$")
_FAULT = re.compile(r"^(Current t|T)hread 0x[0-9a-f]+.*\(most recent call first\):$")
_SYNTAX = re.compile(r"^(SyntaxError|IndentationError|TabError): ")
_UNCAUGHT = 1  # what Python leaves with after an exception that nobody caught
_AFTER = 6  # lines that may follow it then: the rest of its message, what handlers of the exit print
_IGNORED = "Exception ignored in"
# What the interpreter, torch and its kin print on the way out, the quoted line of a warning included.
_PARTING = re.compile(r"^\s|^$|^.*\.py:\d+: \w*Warning: |^\[[WIE]\d* .*\]|^wandb: |.*resource_tracker: ")

# From the most to the least telling.
_LAST_WORDS = (
    re.compile(r"^\s*what\(\): +(?P<words>.+)"),
    re.compile(r"^(?P<words>(malloc|free|realloc|corrupted|munmap_chunk|double free)\b.*)"),
    re.compile(r"(?P<words>Assertion [`'].*failed\.?)"),
    re.compile(r"(?P<words>\*\*\* .* \*\*\*)"),
    re.compile(r"^(?P<words>terminate called .*)"),
)


@dataclass(frozen=True)
class Trace:
    """One traceback. `where` is file:line of the innermost frame of the user's own, `error` what stands below it."""

    where: str | None
    error: str | None
    text: str


def last_exception(lines: Sequence[str], code: int) -> Trace | None:
    """The Python traceback that a program ended with, of a chain the last; None if its output goes on after one.

    With an exit code other than Python's own for an exception nothing of the program's may follow: it has chosen that
    code, and a traceback further up is one that it has handled.
    """
    headers = _headers(lines)
    if not headers:
        return _bare_syntax_error(lines) if code == _UNCAUGHT else None
    trace, end = _exception(lines, headers[-1])
    few = code == _UNCAUGHT and len(lines) - end <= _AFTER
    return trace if few or _only_parting(lines[end:]) else None


def any_exception(lines: Sequence[str]) -> Trace | None:
    """The last traceback that a program printed, whether it ended with it or not."""
    headers = _headers(lines)
    return _exception(lines, headers[-1])[0] if headers else None


def within(message: str) -> Trace | None:
    """The traceback of another process that a message carries, as those of DataLoader and spawned processes do."""
    lines = message.splitlines()
    headers = [number for number, line in enumerate(lines) if _HEADER.match(line)]
    return _exception(lines, headers[-1])[0] if headers else None


def last_crash(lines: Sequence[str]) -> Trace | None:
    """Where Python stood when a signal ended it: faulthandler's dump, whose innermost frame comes first."""
    headers = [number for number, line in enumerate(lines) if _FAULT.match(line)]
    if not headers:
        return None
    header = next((number for number in headers if lines[number].startswith("Current")), headers[0])
    frames = []
    for line in lines[header + 1 :]:
        frame = _FRAME.match(line)
        if frame is None:
            break
        frames.append((frame["file"], int(frame["line"])))
    return Trace(own_place(frames[::-1]), None, "\n".join(lines[header : header + 1 + len(frames)]))


def last_words(lines: Sequence[str]) -> str | None:
    """What the C or C++ library printed as it ended the process."""
    for pattern in _LAST_WORDS:
        for line in reversed(lines):
            if found := pattern.search(line):
                return found["words"].strip()
    return None


def _headers(lines: Sequence[str]) -> list[int]:
    """Where tracebacks begin, apart from those of exceptions that the interpreter passed over."""
    return [
        number
        for number, line in enumerate(lines)
        if _HEADER.match(line) and not (number > 0 and lines[number - 1].startswith(_IGNORED))
    ]


def _only_parting(lines: Sequence[str]) -> bool:
    number = 0
    while number < len(lines):
        if lines[number].startswith(_IGNORED) and number + 1 < len(lines) and _HEADER.match(lines[number + 1]):
            _, number = _exception(lines, number + 1)
        elif lines[number].startswith(_IGNORED) or _PARTING.match(lines[number]):
            number += 1
        else:
            return False
    return True


def _exception(lines: Sequence[str], header: int) -> tuple[Trace, int]:
    """The traceback that begins at `header`, and the number of the line after it."""
    margin = len(lines[header]) - len(lines[header].lstrip())
    frames, error, end = [], None, header + 1
    while end < len(lines):
        line = lines[end]
        end += 1
        if frame := _FRAME.match(line):
            frames.append((frame["file"], int(frame["line"])))
        elif line.strip() and len(line) - len(line.lstrip()) <= margin:
            error = line.strip()
            break
    # The rest of a message of several lines is told by its indent; torch's are.
    while end < len(lines) and lines[end][margin : margin + 1].isspace() and not _HEADER.match(lines[end]):
        end += 1
    where = own_place(frames)
    if error is not None and _SYNTAX.match(error) and frames:
        where = f"{frames[-1][0]}:{frames[-1][1]}"
    return Trace(where, error, "\n".join(lines[header:end])), end


def _bare_syntax_error(lines: Sequence[str]) -> Trace | None:
    """A script that does not compile is told without the header."""
    errors = [number for number, line in enumerate(lines) if _SYNTAX.match(line)]
    if not errors or len(lines) - errors[-1] > _AFTER:
        return None
    for number in range(errors[-1] - 1, -1, -1):
        if frame := _FRAME.match(lines[number]):
            place = f"{frame['file']}:{frame['line']}"
            return Trace(place, lines[errors[-1]], "\n".join(lines[number : errors[-1] + 1]))
    return None
