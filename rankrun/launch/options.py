"""The options of `launch.py run`, torchrun's under their own names among them. Standard library only, for speed."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rankrun.errors import OptionError

# torchrun's options that this release refuses: (name, takes a value, why). None is ever ignored.
_REFUSED: tuple[tuple[str, bool, str], ...] = (
    ("--node-rank", True, "several machines are not joined yet; this release launches on one"),
    ("--rdzv-backend", True, "the rendezvous is rankrun's own"),
    ("--rdzv-endpoint", True, "several machines are not joined yet; this release launches on one"),
    ("--rdzv-id", True, "the run folder is the identity; use --name"),
    ("--rdzv-conf", True, "the rendezvous is rankrun's own and has no settings"),
    ("--master-addr", True, "the store is on this machine"),
    ("--master-port", True, "the port is bound first and told then, never chosen ahead"),
    ("--local-addr", True, "several machines are not joined yet; this release launches on one"),
    ("--role", True, "there is one role"),
    ("--monitor-interval", True, "the agent is woken by events and polls nothing"),
    ("--start-method", True, "ranks are forked warm or executed; use --start warm or --start exec"),
    ("--event-log-handler", True, "attempts/NNNN/verdict.json in the run folder says what happened"),
    ("--log-dir", True, "logs are in the run folder; use --runs and --name"),
    ("--redirects", True, "the logs of all ranks are in the run folder"),
    ("--tee", True, "the logs of all ranks are in the run folder, and the terminal shows them"),
    ("--local-ranks-filter", True, "not built yet"),
    ("--logs-specs", True, "the logs of all ranks are in the run folder"),
    ("--numa-binding", True, "not built yet"),
    ("--signals-to-handle", True, "SIGINT, SIGTERM, SIGHUP and SIGUSR2 are always handled"),
    ("--virtual-local-rank", False, "not built yet"),
    ("--duplicate-stdout-filters", True, "not built yet"),
    ("--duplicate-stderr-filters", True, "not built yet"),
    ("--shutdown-timeout", True, "use --grace"),
    ("--run-path", False, "give the script itself"),
    ("--log-line-prefix-template", True, "rank 0 is shown plain, others with their rank in front"),
    ("--print-completion", True, "not built yet"),
)
_SHORT = {"--redirects": ("-r",), "--tee": ("-t",)}


@dataclass(frozen=True)
class RunOptions:
    """What was typed after `run`, checked one by one."""

    target: str
    words: tuple[str, ...]  # key=value for a config; a script's own arguments, untouched
    module: bool = False
    no_python: bool = False
    nproc: str | None = None
    name: str | None = None
    runs: str = "runs"
    allow_change: tuple[str, ...] = ()
    max_restarts: int | None = None
    start: str = "auto"
    grace_s: float | None = None
    dry_run: bool = False
    debug: bool = False

    @property
    def is_config(self) -> bool:
        """Whether the target is a config and not a program."""
        return not self.module and not self.no_python and self.target.endswith((".yaml", ".yml"))


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake with one told line instead of its usage text."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Turn argparse's sentence into ours."""
        raise OptionError(f"{message}; {self.prog} --help lists what there is")

    def unknown(self, word: str) -> OptionError:
        """The error for an option that is none of ours, with the nearest one that is."""
        name = word.split("=", 1)[0]
        known = [option for action in self._actions for option in action.option_strings]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else f" {self.prog} --help lists what there is."
        return OptionError(f"unknown option {name}.{hint}")


def run_parser(env: Mapping[str, str]) -> Parser:
    """The parser of `run`, without its positional words; `PET_…` variables give defaults as under torchrun."""
    parser = Parser(
        prog="launch.py run",
        usage="launch.py run [options] TARGET …",
        description="Start a run on this machine: the ranks, their process group, their logs and their end.",
        epilog=_EPILOG,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help="show this and leave")
    parser.add_argument(
        "--nproc", *_spellings("--nproc-per-node"), dest="nproc", metavar="N", default=env.get("PET_NPROC_PER_NODE"),
        help="ranks on this machine: a number, auto, gpu or cpu (default: the GPUs there are, or 1; scripts 1)",
    )  # fmt: skip
    parser.add_argument("--name", metavar="NAME", help="name of the run folder (default: the target's stem)")
    parser.add_argument("--runs", metavar="DIR", default="runs", help="parent of the run folders (default: runs)")
    parser.add_argument(
        *_spellings("--allow-change"), metavar="KEY", action="append", default=[],
        help="go on although this key of the config has changed; may be given again",
    )  # fmt: skip
    parser.add_argument(
        *_spellings("--max-restarts"), metavar="N", type=_whole, default=env.get("PET_MAX_RESTARTS"),
        help="failures after which the ranks are started again (default: 3 for configs, 0 for scripts)",
    )  # fmt: skip
    parser.add_argument(
        "--start", choices=("auto", "warm", "exec"), default="auto",
        help="warm: fork ranks from one process that has imported torch; exec: a new interpreter each",
    )  # fmt: skip
    parser.add_argument(
        "--grace", metavar="S", type=_seconds, help="seconds from a notice (Ctrl-C, SIGUSR2) to SIGTERM (default: 30)"
    )
    parser.add_argument("-m", "--module", action="store_true", help="TARGET is a module, as in python -m")
    parser.add_argument(
        *_spellings("--no-python"), action="store_true", help="TARGET is a command, not a Python program"
    )
    parser.add_argument("--standalone", action="store_true", help="accepted: a run on one machine always is")
    parser.add_argument("--nnodes", metavar="N", default=env.get("PET_NNODES", "1"), help="1; several come later")
    parser.add_argument(*_spellings("--dry-run"), action="store_true", help="say what would happen and stop")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of mistakes too")
    for name, takes_value, _ in _REFUSED:
        action = "store" if takes_value else "store_true"
        names = (*_spellings(name), *_SHORT.get(name, ()))
        parser.add_argument(*names, dest=_refused_dest(name), help=argparse.SUPPRESS, action=action)
    return parser


_EPILOG = """
TARGET is a config (*.yaml), a Python script, -m MODULE, or with --no-python any command.
After a config come options and key=value overrides; after a script its own arguments, untouched.

  launch.py run configs/digits.yaml --nproc 2 train.epochs=3
  launch.py run --nproc 2 my_script.py --its-own option      (without --nproc a script gets one rank)
"""


def parse_run(words: Sequence[str], env: Mapping[str, str]) -> RunOptions:
    """The options of `run`. OptionError for what is unknown, refused or malformed; nothing is ignored."""
    parser = run_parser(env)
    ahead, rest = _split_at_target(parser, list(words))
    found, unknown = parser.parse_known_args(ahead)
    if unknown:
        raise parser.unknown(unknown[0])
    if not rest:
        raise OptionError("run needs a TARGET: a config (*.yaml), a Python script, -m MODULE, or --no-python COMMAND")
    target, after = rest[0], rest[1:]
    is_config = not found.module and not found.no_python and target.endswith((".yaml", ".yml"))
    if is_config:
        found, after = parser.parse_known_args(after, namespace=found)
        strange = [word for word in after if word.startswith("-")]
        if strange:
            raise parser.unknown(strange[0])
        bare = [word for word in after if "=" not in word]
        if bare:
            raise OptionError(f"{bare[0]!r} after a config: give key=value, as in train.epochs=3")
    _refuse(found)
    if found.module and found.no_python:
        raise OptionError("-m and --no-python contradict each other: a module is run by Python")
    if found.nnodes not in ("1", "1:1"):
        raise OptionError(f"--nnodes {found.nnodes}: several machines are not joined yet; this release launches on one")
    if found.allow_change and not is_config:
        raise OptionError("--allow-change is about keys of a config, and the target is none")
    return RunOptions(
        target=target,
        words=tuple(after),
        module=found.module,
        no_python=found.no_python,
        nproc=found.nproc,
        name=found.name,
        runs=found.runs,
        allow_change=tuple(found.allow_change),
        max_restarts=found.max_restarts,
        start=found.start,
        grace_s=found.grace,
        dry_run=found.dry_run,
        debug=found.debug,
    )


def _split_at_target(parser: Parser, words: list[str]) -> tuple[list[str], list[str]]:
    """The words ahead of the first one that is neither an option nor an option's value, and the words from it on."""
    flags = {option: action.nargs == 0 for action in parser._actions for option in action.option_strings}
    index = 0
    while index < len(words):
        word = words[index]
        if word == "--":
            return words[:index], words[index + 1 :]
        if not word.startswith("-") or word == "-":
            break
        takes_next = "=" not in word and not flags.get(word, True)
        index += 2 if takes_next else 1
    return words[:index], words[index:]


def _refuse(found: argparse.Namespace) -> None:
    for name, _, reason in _REFUSED:
        if getattr(found, _refused_dest(name)) not in (None, False):
            raise OptionError(f"{name}: {reason}")


def _refused_dest(name: str) -> str:
    return "refused_" + name.lstrip("-").replace("-", "_")


def _spellings(name: str) -> tuple[str, ...]:
    """An option in torchrun's two spellings, --max-restarts and --max_restarts."""
    other = "--" + name[2:].replace("-", "_")
    return (name,) if other == name else (name, other)


def _whole(word: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 0")
    return int(word)


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of seconds from 0")
    return seconds
