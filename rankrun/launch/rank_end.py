"""How one rank ended: what the warm parent saw, what the rank itself wrote, and how that travels to node 0."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from rankrun.errors import printable
from rankrun.failure import PEER_GONE, PERHAPS_PEER_GONE
from rankrun.launch.tracebacks import Trace, last_crash, last_exception, last_words, within

_TAIL_BYTES = 16 << 10  # of a log: enough for the last traceback
_TAIL_LINES = 80
_LINE_CHARS = 500
_TEXT_CHARS = 16 << 10
_HOW_CHARS = 400
_ERROR_FILE_BYTES = 4 << 20
_ELSEWHERE = re.compile(r"^.*Caught \w+ in ")
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# The innermost frame of a traceback. torch.distributed.elastic wraps whole programs and connects no ranks.
_RAISED_BY_TORCH = re.compile(r'File "[^"\n]*/torch/distributed/(?!elastic/)[^"\n]*", line \d+(?![\s\S]*File ")')
_RANK_PREFIX = re.compile(r"^\[rank\d+\]: ?")  # torch puts it before each line of a traceback once there is a group


@dataclass(frozen=True)
class RankEnd:
    """How one rank of the attempt ended. `code` is None for one that never started, or of which nothing is known."""

    rank: int
    local_rank: int
    node: int
    host: str
    pid: int
    code: int | None
    ns: int  # monotonic here: its own word where it left one, else when the end was seen or, from afar, had happened
    ordered: bool  # it ended as the launcher had told it to
    early: bool  # it left with 0 although its program had not come to its end
    message: str | None  # the exception's last line, or a told error's lines
    traceback: str | None
    where: str | None  # file:line
    told: bool  # a mistake that the program put into words, and that this rank was the one to say
    told_code: int | None
    log: Path
    tail: list[str]  # the last lines of its log

    @classmethod
    def read(
        cls,
        *,
        rank: int,
        local_rank: int,
        node: int,
        host: str,
        pid: int,
        code: int | None,
        ns: int,
        ordered: bool,
        early: bool,
        error_file: Path,
        log_file: Path,
        error_log: Path | None,
    ) -> RankEnd:
        """The end of a rank of this node, from what was seen of it and what it left in its files.

        `error_log` is where its stderr went, if that is not the log. Missing, torn or strange files say nothing.
        """
        content = _read_error(error_file)
        text, stack = _message_and_stack(content)
        where, own_ns, told_code = content.get("where"), content.get("ns"), content.get("exit_code")
        tail = (_tail(error_log) if error_log is not None else []) or _tail(log_file)
        trace: Trace | None = None
        if text is not None:
            trace = within(text)
            if trace is not None and trace.error is not None:  # an error of a loader worker or a spawned process
                text = f"{trace.error} (in {_ELSEWHERE.sub('', _first_line(text)).rstrip('.')})"
        elif not ordered:
            trace = _in_the_log(code, tail)
            if trace is not None:
                text, stack = trace.error, trace.text
        if trace is not None:
            where = trace.where or where
        return cls(
            rank=rank,
            local_rank=local_rank,
            node=node,
            host=host,
            pid=pid,
            code=code,
            ns=own_ns if _is_int(own_ns) else ns,
            ordered=ordered,
            early=early,
            message=text,
            traceback=stack,
            where=where if isinstance(where, str) else None,
            told=bool(content.get("told")) and content.get("told_by") in (None, rank),
            told_code=told_code if _is_int(told_code) else None,
            log=log_file,
            tail=tail,
        )

    def as_message(self, now_ns: int) -> dict[str, Any]:
        """For JSON over the control connection. Its time becomes an age: clocks of two hosts can't be compared."""
        return {
            "rank": self.rank,
            "local_rank": self.local_rank,
            "node": self.node,
            "host": self.host,
            "pid": self.pid,
            "code": self.code,
            "age_ns": max(0, now_ns - self.ns),
            "ordered": self.ordered,
            "early": self.early,
            "message": self.message[:_TEXT_CHARS] if self.message is not None else None,
            "traceback": self.traceback[-_TEXT_CHARS:] if self.traceback is not None else None,
            "where": self.where[:_TEXT_CHARS] if self.where is not None else None,
            "told": self.told,
            "told_code": self.told_code,
            "log": str(self.log),
            "tail": self.tail,
        }

    @classmethod
    def from_message(cls, message: object, arrived_ns: int) -> RankEnd | None:
        """The end that a peer reports, on this node's monotonic clock; None for what is not the report of one.

        Fields of a wrong type are left out and long ones cut, so that no peer can make the one that judges fail or
        swell, or move the cursor of the terminal that the verdict is shown on.
        """
        if not isinstance(message, dict):
            return None
        rank, local_rank, node = (message.get(name) for name in ("rank", "local_rank", "node"))
        if not (_is_count(rank) and _is_count(local_rank) and _is_count(node)):
            return None
        code, age_ns, pid, told_code = (message.get(name) for name in ("code", "age_ns", "pid", "told_code"))
        tail = message.get("tail")
        return cls(
            rank=rank,
            local_rank=local_rank,
            node=node,
            host=(_text(message.get("host")) or "")[:255],
            pid=pid if _is_count(pid) else 0,
            code=code if _is_int(code) and -255 <= code <= 255 else None,
            ns=arrived_ns - (age_ns if _is_int(age_ns) and 0 <= age_ns < 1 << 62 else 0),
            ordered=message.get("ordered") is True,
            early=message.get("early") is True,
            message=_text(message.get("message")),
            traceback=_text(message.get("traceback")),
            where=_text(message.get("where")),
            told=message.get("told") is True,
            told_code=told_code if _is_int(told_code) and 0 <= told_code <= 255 else None,
            log=Path((_text(message.get("log")) or "").replace("\0", "")),
            tail=_lines([line for line in tail if isinstance(line, str)]) if isinstance(tail, list) else [],
        )

    @property
    def how(self) -> str:
        """The end in one line."""
        if self.message is not None:
            return _first_line(self.message)[:_HOW_CHARS]
        if self.code is None:
            return "was not seen to end" if self.pid else "never started"
        if self.code < 0:
            words = last_words(self.tail) if self.code == -signal.SIGABRT else None
            return f"killed by {_signal_name(-self.code)}{f' ({words[:_HOW_CHARS]})' if words else ''}"
        if self.early:
            return "left with exit code 0 before its program had ended"
        return f"left with exit code {self.code}"

    @property
    def obeyed(self) -> bool:
        """Whether this is what we ordered: death by the signal, or the way out that a handler of it took."""
        ways_out = ("KeyboardInterrupt", "SystemExit")
        return self.ordered and (self.message is None or self.message.startswith(ways_out))

    @property
    def misses_a_peer(self) -> bool:
        """Whether this end only says that somebody else is gone or does not answer."""
        by_torch = self.traceback is not None and _RAISED_BY_TORCH.search(self.traceback) is not None
        words = f"{self._words}\ntorch.distributed" if by_torch else self._words
        return not self.told and PEER_GONE.search(words) is not None

    @property
    def is_doubtful(self) -> bool:
        """Whether this end may be the consequence of another one: a broken connection to whomever."""
        return not self.told and PERHAPS_PEER_GONE.search(self._words) is not None

    @property
    def _words(self) -> str:
        """NCCL's watchdog ends a rank by an abort, and says on stderr why."""
        return self.message if self.message is not None else (self.how if self.code == -signal.SIGABRT else "")


def _in_the_log(code: int | None, tail: list[str]) -> Trace | None:
    """What a program of another interpreter, or one that crashed in C code, printed as it ended."""
    if code is None or code == 0:
        return None
    return last_exception(tail, code) if code > 0 else last_crash(tail)


def _message_and_stack(content: dict[str, Any]) -> tuple[str | None, str | None]:
    """From torch's form of an error file: `message` is a text, or a mapping of a text and more."""
    message = content.get("message")
    if not isinstance(message, dict):
        return (message if isinstance(message, str) else None), None
    more = message.get("extraInfo")
    stack = more.get("py_callstack") if isinstance(more, dict) else None
    text = message.get("message")
    return (text if isinstance(text, str) else None), (stack if isinstance(stack, str) else None)


def _read_error(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(_ERROR_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _tail(log: Path) -> list[str]:
    """The last lines of a log, as text whatever the bytes are."""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return _lines(re.split(r"[\r\n]+", text))


def _lines(lines: list[str]) -> list[str]:
    """The last ones that are not empty, without colours and other control characters, each of a bearable length."""
    kept = [line for line in lines if line.strip()][-_TAIL_LINES:]
    return [printable(_RANK_PREFIX.sub("", _COLOUR.sub("", line)).expandtabs())[:_LINE_CHARS] for line in kept]


def _text(value: object) -> str | None:
    """A peer's text of at most 16 KiB, with its line breaks and without other control characters."""
    if not isinstance(value, str):
        return None
    return "\n".join(printable(line) for line in value[:_TEXT_CHARS].split("\n"))


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0] or "an exception without words"


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: object) -> TypeGuard[int]:
    return _is_int(value) and 0 <= value < 1 << 31


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
