"""torchrun's options under its own names: each is honoured, or refused with its reason; none is ignored.

Each is also read from `PET_<NAME>` in the environment, as torchrun does; what is typed wins. Standard library only.
"""

from __future__ import annotations

import re
import signal
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rankrun.launch.terminal import Choice

MOST_NODES = 65536
RDZV_PORT, MASTER_PORT = 29400, 29500  # torchrun's defaults
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
_CONF = ("join_timeout", "timeout", "read_timeout", "is_host")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}\Z|[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]+)?\Z", re.ASCII)
# Not to be handled: the kernel keeps two for itself, the agent needs one, and after the rest no program can go on.
_NOT_HANDLED = {"SIGKILL", "SIGSTOP", "SIGCHLD", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP"}

Parse = Callable[[str], Any]


@dataclass(frozen=True)
class Row:
    """One option. `parse` turns a word into a value or raises ArgumentTypeError with what is legal; None: a flag."""

    name: str
    parse: Parse | None
    help: str = ""
    metavar: str = "N"
    group: str | None = None  # of the help; None: not shown there
    aliases: tuple[str, ...] = ()
    pet: bool = True  # read from the environment as well
    again: bool = True  # `resume` gives it again

    @property
    def dest(self) -> str:
        """torchrun's name for the value."""
        return self.name.lstrip("-").replace("-", "_")

    @property
    def names(self) -> tuple[str, ...]:
        """All spellings, torchrun's second one included."""
        return (*self.aliases, *spellings(self.name))


def spellings(name: str) -> tuple[str, ...]:
    """An option in torchrun's two spellings, --max-restarts and --max_restarts."""
    other = "--" + name[2:].replace("-", "_")
    return (name,) if other == name else (name, other)


def whole(word: str) -> int:
    """A whole number from 0."""
    if not (word.isascii() and word.isdigit() and len(word) < 10):
        raise ArgumentTypeError(f"{word[:40]!r} is not a whole number from 0")
    return int(word)


def seconds(word: str) -> float:
    """Seconds from 0."""
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise ArgumentTypeError(f"{word[:40]!r} is not a number of seconds from 0")
    return value


def some_seconds(word: str) -> float:
    """Seconds above 0."""
    value = seconds(word)
    if value == 0:
        raise ArgumentTypeError(f"{word!r}: give a number of seconds above 0")
    return value


def port(word: str) -> int:
    """A port; 0 is a free one."""
    value = whole(word)
    if value > 65535:
        raise ArgumentTypeError(f"{word} is no port; ports end at 65535")
    return value


def nodes(word: str) -> int:
    """A number of machines; MIN:MAX only where both are the same, since nothing here grows or shrinks."""
    least, _, most = word.partition(":")
    if not all(part.isascii() and part.isdigit() and len(part) < 8 for part in (least, most or least)):
        raise ArgumentTypeError(f"{word[:40]!r} is not a number of machines")
    if int(most or least) != int(least):
        raise ArgumentTypeError(
            f"{word}: a run has one number of machines, so that its batches stay the same; give one of them"
        )
    if not 1 <= int(least) <= MOST_NODES:
        raise ArgumentTypeError(f"{word}: give a number of machines from 1 to {MOST_NODES}")
    return int(least)


def host(word: str) -> str:
    """A host's name or address; an IPv6 address may stand in brackets."""
    bare = word.strip()
    if bare.startswith("[") and bare.endswith("]"):
        bare = bare[1:-1]
    if not _HOST.match(bare):
        raise ArgumentTypeError(f"{word[:60]!r} is no host name or address")
    return bare


def endpoint(word: str) -> tuple[str, int] | None:
    """HOST[:PORT], [IPV6]:PORT or a bare IPv6 address; nothing at all is torchrun's way to say none."""
    word = word.strip()
    if not word:
        return None
    bracketed = re.match(r"(\[[^\]]*\])(?::(.*))?\Z", word, re.DOTALL)
    if bracketed:
        place, number = bracketed[1], bracketed[2]
    elif word.count(":") == 1:
        place, number = word.split(":")
    else:
        place, number = word, None
    return host(place), RDZV_PORT if number is None else port(number)


def conf(word: str) -> dict[str, Any]:
    """key=value pairs of the rendezvous."""
    found: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in word.split(","))):
        key, _, value = (part.strip() for part in pair.partition("="))
        if key not in _CONF:
            raise ArgumentTypeError(
                f"{key[:40]!r} is a setting of a rendezvous that rankrun does not use; {', '.join(_CONF)} are honoured"
            )
        if key != "is_host":
            try:
                found[key] = some_seconds(value)
            except ArgumentTypeError as error:
                raise ArgumentTypeError(f"{key}: {error}") from None
        elif value.lower() not in ("1", "0", "true", "false", "t", "f", "yes", "no", "y", "n"):
            raise ArgumentTypeError(f"is_host={value[:40]}: give true or false")
        else:
            found[key] = value.lower() in ("1", "true", "t", "yes", "y")
    both = found.get("join_timeout"), found.get("timeout")
    if None not in both and both[0] != both[1]:
        raise ArgumentTypeError(f"join_timeout={both[0]:g} and timeout={both[1]:g} mean the same here; give one")
    return found


def streams(word: str) -> Choice:
    """0 to 3 for all local ranks, or 0:1,1:2 by local rank: none, stdout, stderr, both."""
    if re.match(r"[0-3]\Z", word, re.ASCII):
        return Choice(int(word))
    if re.match(r"[0-9]{1,4}:[0-3](,[0-9]{1,4}:[0-3])*\Z", word, re.ASCII):
        pairs = (pair.split(":") for pair in word.split(","))
        return Choice(each={int(rank): int(which) for rank, which in pairs})
    raise ArgumentTypeError(
        f"{word[:40]!r}: give 0 (none), 1 (stdout), 2 (stderr) or 3 (both), or one for each local rank as in 0:1,1:2"
    )


def local_ranks(word: str) -> frozenset[int] | None:
    """Local ranks with commas between them; none at all is torchrun's way to say all."""
    if not word.strip():
        return None
    if not re.match(r"\s*[0-9]{1,4}\s*(,\s*[0-9]{1,4}\s*)*\Z", word, re.ASCII):
        raise ArgumentTypeError(f"{word[:40]!r}: give local ranks with commas between them, as in 0,1")
    return frozenset(map(int, word.split(",")))


def signal_names(word: str) -> tuple[str, ...]:
    """Names of signals with commas between them."""
    names = tuple(name.strip() for name in word.split(","))
    for name in names:
        if name in _NOT_HANDLED:
            raise ArgumentTypeError(f"{name} can't be handled by a launcher")
        if not name.startswith("SIG") or name not in signal.Signals.__members__:
            raise ArgumentTypeError(f"{name[:40]!r} is no signal here; names are SIGTERM, SIGINT, SIGUSR1, …")
    return names


def text(word: str) -> str | None:
    """One line of words; nothing at all is torchrun's way to say none."""
    if not word.isprintable():
        raise ArgumentTypeError(f"{word[:40]!r} holds a control character")
    return word or None


def folder(word: str) -> str:
    """A folder's path."""
    if not word or "\0" in word:
        raise ArgumentTypeError(f"{word!r} is no folder")
    return word


def only(legal: str, reason: str) -> Parse:
    """Takes torchrun's default, which asks for nothing, and refuses everything else."""

    def parse(word: str) -> None:
        if word != legal:
            raise ArgumentTypeError(f"{word[:40]}: {reason}")

    return parse


def _backend(word: str) -> str:
    if word not in ("static", "c10d"):
        raise ArgumentTypeError(
            f"{word[:40]}: machines meet at node 0, as under static and c10d, and at no other service; leave it out"
        )
    return word


def _refused(reason: str) -> Parse:
    def parse(word: str) -> None:
        raise ArgumentTypeError(reason)

    return parse


RANKS, MACHINES, OUTPUT, SAME = "ranks", "several machines", "output", "torchrun's, for which nothing has to be done"

ROWS: tuple[Row, ...] = (
    Row("--nproc-per-node", str, "ranks on this machine: a number, auto, gpu or cpu (default: the GPUs there are, "
        "or 1; scripts 1)", group=RANKS, aliases=("--nproc",)),
    Row("--max-restarts", whole, "failures after which the ranks are started again (default: 3 for configs, 0 for "
        "scripts)", group=RANKS),
    Row("--shutdown-timeout", seconds, "seconds from SIGTERM to SIGKILL for the others when a rank has failed "
        "(default: 1; a notice has --grace)", "S", RANKS),
    Row("--signals-to-handle", signal_names, "signals that mean save and leave, besides SIGINT, SIGTERM, SIGHUP and "
        "SIGUSR2, which always do; SIGUSR1 is passed on to ranks that listen for it, SIGQUIT dumps all stacks and "
        "stops", "SIG,…", RANKS),
    Row("--virtual-local-rank", None, "every rank sees its own GPU as device 0, with LOCAL_RANK=0", group=RANKS),
    Row("--module", None, "TARGET is a module, as in python -m", group=RANKS, aliases=("-m",)),
    Row("--no-python", None, "TARGET is a command, not a Python program", group=RANKS),

    Row("--nnodes", nodes, "machines of the run (default: 1; in a SLURM step the step's nodes)", group=MACHINES),
    Row("--rdzv-endpoint", endpoint, "where they meet: a host and port of node 0, the same on all of them (default "
        f"port: {RDZV_PORT})", "HOST[:PORT]", MACHINES),
    Row("--node-rank", whole, "this machine's place among them, from 0 (default: 0 for the endpoint's host, others "
        "by arrival)", group=MACHINES),
    Row("--master-addr", host, f"the endpoint's host, in two options (default port: {MASTER_PORT})", "HOST", MACHINES),
    Row("--master-port", port, "the endpoint's port; on one machine its ranks' MASTER_PORT (default: a free one)",
        "PORT", MACHINES),
    Row("--rdzv-backend", _backend, "static or c10d: both mean the same here", "NAME", MACHINES),
    Row("--rdzv-id", text, "TORCHELASTIC_RUN_ID, the same on all machines (default: the run's name)", "ID", MACHINES),
    Row("--rdzv-conf", conf, "join_timeout or timeout (seconds to wait for all machines, default 600), read_timeout "
        "(seconds for one store operation), is_host (true: this machine is the endpoint's)", "KEY=VALUE,…", MACHINES),
    Row("--local-addr", host, "the address by which other machines reach this one", "HOST", MACHINES),

    Row("--log-dir", folder, "the same as --runs DIR: all logs are below it", "DIR", OUTPUT, again=False),
    Row("--redirects", streams, "streams that the terminal does not show: 0 none, 1 stdout, 2 stderr, 3 both, or by "
        "local rank 0:1,1:2; the logs hold everything", "N", OUTPUT, aliases=("-r",)),
    Row("--tee", streams, "streams that the terminal does show, with --redirects or after a config", "N", OUTPUT,
        aliases=("-t",)),
    Row("--local-ranks-filter", local_ranks, "only these local ranks are shown on the terminal", "N,…", OUTPUT),
    Row("--log-line-prefix-template", text, "what stands before each shown line: ${role_name}, ${local_rank}, ${rank}, "
        "${hostname} (default: rank 0 plain, [${rank}] before others)", "TEXT", OUTPUT),
    Row("--role", text, "ROLE_NAME", "NAME", OUTPUT),

    Row("--standalone", None, "a run on one machine always is", group=SAME),
    Row("--run-path", None, "a script always runs in the interpreter that has imported torch", group=SAME),
    Row("--monitor-interval", some_seconds, "the end of a rank wakes its agent at once", "S", SAME),
    Row("--start-method", only("spawn", "ranks are forked warm or executed; use --start warm or --start exec"),
        "spawn; see --start", "spawn", SAME),
    Row("--event-log-handler", only("null", "attempts/NNNN/verdict.json in the run folder says what happened"),
        "null; the run folder says what happened", "null", SAME),
    Row("--logs-specs", only("default", "logs are written by rankrun itself, into the run folder"),
        "default; logs are in the run folder", "default", SAME, pet=False),

    Row("--numa-binding", _refused("ranks are not bound to processors; start the launcher under numactl for that"),
        pet=False),
    Row("--duplicate-stdout-filters", _refused("the logs in the run folder are whole; filter them with grep")),
    Row("--duplicate-stderr-filters", _refused("the logs in the run folder are whole; filter them with grep")),
    Row("--print-completion", _refused("there is no completion script"), pet=False),
)  # fmt: skip
