"""What a rank leaves behind when it fails: one JSON file, in the form of torch's own `@record`, for whoever judges.

Beside torch's `message` stand `where` (file:line), `ns` (monotonic, comparable on one machine), and for a told error
`told`, `told_by` and the `exit_code` it means.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from rankrun.errors import format_error, is_told, printable, told_by

_MOST_CHARS = 1 << 16

# Words that any library could use, a client of a data base for one: they tell of a peer only where the text names what
# connects ranks.
_CONNECTS_RANKS = r"\b[Gg]loo\b|NCCL|c10d|TCPStore|torch\.distributed|Dist(Network|Store|Backend)Error"
_ANYBODYS_WORDS = (
    r"Connection closed by (remote )?peer|Timed out waiting \d+ms for (send|recv) operation|[Tt]imed out connecting"
    r"|Connection was likely closed|wait timeout after \d+ms|client socket has (timed out|failed to connect)"
    r"|before timing out"
)

# What a healthy rank says when another one is gone or does not come: never the cause. The words are torch 2.14's;
# tests/launch/test_verdict.py holds them as they were met.
PEER_GONE = re.compile(
    r"gloo/transport.*(Connection (reset|refused|timed out)|Broken pipe|Socket (unexpectedly )?closed|No route)"
    r"|Gloo connectFullMesh failed|monitoredBarrier"
    r"|DistNetworkError: (?!The server socket)|DistStoreError"
    r"|ncclRemoteError|NCCL communicator was aborted|NCCL operation timed out|NCCL timeout"
    r"|NCCL.*Connection (refused|reset|timed out)|Watchdog caught collective operation timeout"
    rf"|\A(?=[\s\S]*({_CONNECTS_RANKS}))[\s\S]*?({_ANYBODYS_WORDS})"
)

# What may come from a peer that is gone or from anywhere else, such as a tracker's server.
PERHAPS_PEER_GONE = re.compile(
    r"Connection (closed|reset|refused|aborted)|Connection\w*Error|Broken ?[Pp]ipe|EOFError|[Tt]imed?[ -]?out"
    r"|ncclSystemError"
)

_LIBRARY = re.compile(r"/(site|dist)-packages/|/lib/python3\.\d+/|^<")


def own_place(frames: Sequence[tuple[str, int]]) -> str | None:
    """file:line of the innermost frame that lies in no installed package; of the innermost where all of them do.

    An error deep in torch is the user's call of torch. `frames` hold file and line, outermost first.
    """
    own = [frame for frame in frames if not _LIBRARY.search(frame[0])]
    if not frames:
        return None
    file, line = (own or frames)[-1]
    return f"{file}:{line}"


def write_failure(path: str, error: BaseException, exit_code: int | None = None) -> None:
    """Write `error` to the file that `TORCHELASTIC_ERROR_FILE` names; what can't be written is said on stderr."""
    told = is_told(error)
    content: dict[str, Any] = {
        "message": {
            "message": (format_error(error) if told else _in_words(error))[:_MOST_CHARS],
            "extraInfo": {"py_callstack": _stack(error)[-_MOST_CHARS:], "timestamp": str(int(time.time()))},
        },
        "where": _place(error),
        "ns": time.monotonic_ns(),
        "told": told,
        "told_by": told_by(error),
        "exit_code": exit_code,
    }
    try:
        _write(path, json.dumps(content))
    except OSError as problem:
        print(f"the error could not be written to {path}: {problem.strerror}", file=sys.stderr)


def _write(path: str, text: str) -> None:
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115  # closed below
    except OSError as problem:
        if problem.errno != errno.EMFILE:
            raise
        os.close(0)  # a process that ends because it has no file number left can spare its stdin
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115
    with file:
        file.write(text)


def _in_words(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # a __str__ of the program's own that fails must not hide the failure that it was to describe
        text = "(its text can't be had)"
    lines = [printable(line.expandtabs()) for line in text.split("\n")]
    name = type(error).__name__
    return f"{name}: {lines[0]}".rstrip(": ") + "".join(f"\n{line}" for line in lines[1:])


def _stack(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return ""


def _place(error: BaseException) -> str | None:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    return own_place([(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)])
