"""The options of `launch.py run`, torchrun's under their own names among them. Standard library only, for speed."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from rankrun.errors import OptionError
from rankrun.launch.terminal import Choice
from rankrun.launch.torchrun import (
    MACHINES,
    OUTPUT,
    RANKS,
    ROWS,
    SAME,
    Row,
    folder,
    seconds,
    some_seconds,
    spellings,
    whole,
)

# What `resume` does not give again: it names the folder itself, and the rest was for one launch.
_ONCE = {"help", "name", "runs", "allow_change", "dry_run", "preflight"} | {row.dest for row in ROWS if not row.again}


@dataclass(frozen=True)
class RunOptions:
    """What was typed after `run`, checked one by one. None is what was not given."""

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
    shutdown_timeout_s: float | None = None
    hang_timeout_s: float | None = None
    signals: tuple[str, ...] | None = None
    virtual_local_rank: bool = False
    dist_env: bool = True
    attach: int | None = None
    preflight: bool = False
    # several machines
    nnodes: int | None = None
    standalone: bool = False
    node_rank: int | None = None
    rdzv_endpoint: tuple[str, int] | None = None
    rdzv_id: str | None = None
    rdzv_conf: Mapping[str, Any] = field(default_factory=dict)
    master_addr: str | None = None
    master_port: int | None = None
    local_addr: str | None = None
    # output
    redirects: Choice | None = None
    tee: Choice | None = None
    local_ranks: frozenset[int] | None = None
    template: str | None = None
    role: str | None = None
    dry_run: bool = False
    debug: bool = False
    again: tuple[str, ...] = ()  # the option words that `resume` gives again

    @property
    def is_config(self) -> bool:
        """Whether the target is a config and not a program."""
        return not self.module and not self.no_python and self.target.endswith((".yaml", ".yml"))


class _Help(argparse.RawDescriptionHelpFormatter):
    """One spelling of each option; the one with underscores is only for torchrun's sake."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        whole = super()._format_action_invocation(action)
        names = ", ".join(name for name in action.option_strings if "_" not in name)
        return f"{names} {action.metavar}" if names and action.metavar and action.nargs != 0 else names or whole


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake with one told line instead of its usage text."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **settings)

    def error(self, message: str) -> NoReturn:
        """Turn argparse's sentence into ours: one spelling of the option, and where more is told."""
        message = re.sub(r"\Aargument (?:-\w/)?(--?[\w-]+)[^:]*: ", r"\1: ", message)
        raise OptionError(f"{message}; {self.prog} --help lists what there is")

    def unknown(self, word: str) -> OptionError:
        """The error for an option that is none of ours, with the nearest one that is."""
        name = word.split("=", 1)[0]
        known = [option for action in self._actions for option in action.option_strings]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else f" {self.prog} --help lists what there is."
        return OptionError(f"unknown option {name[:80]}.{hint}")


def run_parser() -> Parser:
    """The parser of `run`, without its positional words."""
    parser = Parser(
        prog="launch.py run",
        usage="launch.py run [options] TARGET …",
        description="Start a run: the ranks on this machine, alone or with those of others, their process group, their "
        "logs and their end.",
        epilog=_EPILOG,
        add_help=False,
    )
    run = parser.add_argument_group("the run")
    run.add_argument("-h", "--help", action="help", help="show this and leave")
    run.add_argument("--name", metavar="NAME", help="name of the run folder (default: the target's stem)")
    run.add_argument("--runs", metavar="DIR", type=folder, help="parent of the run folders (default: runs)")
    run.add_argument(
        *spellings("--allow-change"), metavar="KEY", action="append", default=[],
        help="go on although this key of the config has changed; may be given again",
    )  # fmt: skip
    run.add_argument(*spellings("--dry-run"), action="store_true", help="say what would happen and stop")
    run.add_argument(
        "--preflight", action="store_true",
        help="check the machines in place of the target: all ranks join, sums, bandwidth, run folder, clocks",
    )  # fmt: skip
    run.add_argument("--debug", action="store_true", help="show tracebacks of mistakes too")
    groups = {name: parser.add_argument_group(name) for name in (RANKS, MACHINES, OUTPUT, SAME)}
    ranks = groups[RANKS]
    ranks.add_argument(
        "--start", choices=("auto", "warm", "exec"), default="auto", metavar="auto|warm|exec",
        help="warm: fork ranks from one process that has imported torch; exec: a new interpreter each",
    )  # fmt: skip
    ranks.add_argument(
        "--grace", metavar="S", type=seconds, help="seconds from a notice (Ctrl-C, SIGUSR2) to SIGTERM (default: 30)"
    )
    ranks.add_argument(
        *spellings("--hang-timeout"), metavar="S", type=some_seconds,
        help="seconds without a sign of life after which a rank hangs (default: learnt for configs, none for others, "
        "whose output is the sign)",
    )  # fmt: skip
    ranks.add_argument(
        *spellings("--no-dist-env"), action="store_true",
        help="with one rank: set none of the variables that name a world",
    )  # fmt: skip
    groups[OUTPUT].add_argument(
        "--attach", metavar="RANK", type=whole,
        help="the rank that reads the terminal and is shown plain, as for breakpoint() (default: 0)",
    )  # fmt: skip
    for row in ROWS:
        shown = {"help": row.help if row.group else argparse.SUPPRESS}
        place = groups[row.group] if row.group else parser
        if row.parse is None:
            place.add_argument(*row.names, dest=row.dest, action="store_true", help=shown["help"])
        else:
            place.add_argument(*row.names, dest=row.dest, metavar=row.metavar, type=row.parse, help=shown["help"])
    return parser


_EPILOG = """
TARGET is a config (*.yaml), a Python script, -m MODULE, or with --no-python any command.
After a config come options and key=value overrides; after a script its own arguments, untouched.
Every option may be written with underscores (--max_restarts); torchrun's are also read from PET_<NAME> in the
environment.

  launch.py run configs/digits.yaml --nproc 2 train.epochs=3
  launch.py run --nproc 2 my_script.py --its-own option      (without --nproc a script gets one rank)
  launch.py run --nnodes 2 --rdzv-endpoint node0:29400 configs/digits.yaml      (the same on both machines)
"""


def parse_run(words: Sequence[str], env: Mapping[str, str]) -> RunOptions:
    """The options of `run`. OptionError for what is unknown, refused or malformed; nothing is ignored."""
    parser = run_parser()
    from_env = _from_environment(env)
    parser.set_defaults(**{row.dest: value for row, _, value in from_env})
    ahead, rest = split_at_target(parser, list(words))
    found, unknown = parser.parse_known_args(ahead)
    if unknown:
        raise parser.unknown(unknown[0])
    if not rest and not found.preflight:
        raise OptionError("run needs a TARGET: a config (*.yaml), a Python script, -m MODULE, or --no-python COMMAND")
    target, after = (rest[0], rest[1:]) if rest else ("preflight", [])
    if found.run_path:
        found.no_python = False  # as under torchrun
    is_config = not found.module and not found.no_python and target.endswith((".yaml", ".yml"))
    given = list(_given(parser, ahead))
    if is_config:
        given += _given(parser, after)
        found, after = parser.parse_known_args(after, namespace=found)
        strange = [word for word in after if word.startswith("-")]
        if strange:
            raise parser.unknown(strange[0])
        bare = [word for word in after if "=" not in word]
        if bare:
            raise OptionError(f"{bare[0][:80]!r} after a config: give key=value, as in train.epochs=3")
    _check_together(found, is_config, typed={dest for dest, _ in given})
    return RunOptions(
        target=target,
        words=tuple(after),
        module=found.module,
        no_python=found.no_python,
        nproc=found.nproc_per_node,
        name=found.name,
        runs=found.runs or found.log_dir or "runs",
        allow_change=tuple(found.allow_change),
        max_restarts=found.max_restarts,
        start=found.start,
        grace_s=found.grace,
        shutdown_timeout_s=_shutdown_timeout(found.shutdown_timeout, env),
        hang_timeout_s=found.hang_timeout,
        signals=found.signals_to_handle,
        virtual_local_rank=found.virtual_local_rank,
        dist_env=not found.no_dist_env,
        attach=found.attach,
        preflight=found.preflight,
        nnodes=found.nnodes,
        standalone=found.standalone,
        node_rank=found.node_rank,
        rdzv_endpoint=found.rdzv_endpoint,
        rdzv_id=found.rdzv_id,
        rdzv_conf=found.rdzv_conf or {},
        master_addr=found.master_addr,
        master_port=found.master_port,
        local_addr=found.local_addr,
        redirects=found.redirects,
        tee=found.tee,
        local_ranks=found.local_ranks_filter,
        template=found.log_line_prefix_template or env.get("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE") or None,
        role=found.role,
        dry_run=found.dry_run,
        debug=found.debug,
        again=tuple(_again(given, from_env)),
    )


def _from_environment(env: Mapping[str, str]) -> list[tuple[Row, str, Any]]:
    """(option, word, value) of every `PET_…` variable that is set. OptionError names the variable."""
    found = []
    for row in ROWS:
        variable = f"PET_{row.dest.upper()}"
        word = env.get(variable, "") if row.pet else ""
        if not word:
            continue
        if row.parse is None:
            if word not in ("0", "1"):
                raise OptionError(f"{variable}={word[:40]!r} in the environment: give 1 (as {row.name}) or 0")
            found.append((row, word, word == "1"))
            continue
        try:
            found.append((row, word, row.parse(word)))
        except argparse.ArgumentTypeError as error:
            raise OptionError(f"{variable} in the environment, which means {row.name}: {error}") from None
    return found


def _shutdown_timeout(given: float | None, env: Mapping[str, str]) -> float | None:
    """What was given, else torchrun's own variable for it."""
    word = env.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    if given is not None or not word:
        return given
    try:
        return seconds(word)
    except argparse.ArgumentTypeError as error:
        raise OptionError(f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT in the environment: {error}") from None


def _check_together(found: argparse.Namespace, is_config: bool, typed: set[str]) -> None:
    """Refuse options that are legal one by one and not together."""
    if found.module and found.no_python:
        raise OptionError("-m and --no-python contradict each other: a module is run by Python")
    if found.module and found.run_path:
        raise OptionError("-m and --run-path contradict each other: a module has a name, not a path")
    if {"runs", "log_dir"} <= typed and found.runs != found.log_dir:
        raise OptionError(f"--runs {found.runs} and --log-dir {found.log_dir} mean the same folder; give one of them")
    if found.allow_change and not is_config:
        raise OptionError("--allow-change is about keys of a config, and the target is none")
    if is_config and found.no_dist_env:
        raise OptionError("--no-dist-env is for programs of your own: train.py finds its run folder in the environment")
    if is_config and found.virtual_local_rank:
        raise OptionError("--virtual-local-rank is for programs of your own: train.py takes the GPU of its local rank")


def split_at_target(parser: Parser, words: list[str]) -> tuple[list[str], list[str]]:
    """The words ahead of the first one that is neither an option nor an option's value, and the words from it on."""
    index = 0
    while index < len(words):
        word = words[index]
        if word == "--":
            return words[:index], words[index + 1 :]
        if not word.startswith("-") or word == "-":
            break
        index += _length(parser, word)
    return words[:index], words[index:]


def _length(parser: Parser, word: str) -> int:
    """How many words an option is: 2 where its value is the next one."""
    action = None if "=" in word else parser._option_string_actions.get(word)
    return 1 if action is None or action.nargs == 0 else 2


def _given(parser: Parser, words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(name, words) of every option that was typed, in order."""
    index = 0
    while index < len(words):
        word = words[index]
        length = _length(parser, word)
        known = parser._option_string_actions
        action = known.get(word.split("=", 1)[0]) or (None if word.startswith("--") else known.get(word[:2]))
        if action is not None and word.startswith("-"):
            yield action.dest, words[index : index + length]
        index += length


def _again(given: list[tuple[str, list[str]]], from_env: list[tuple[Row, str, Any]]) -> Iterator[str]:
    """The words of all options that still hold in a later launch from another shell, whose environment differs."""
    typed = {dest for dest, _ in given}
    for row, word, value in from_env:
        if row.dest not in typed | _ONCE and value not in (None, False):
            yield from [row.name] if row.parse is None else [row.name, word]
    for dest, words in given:
        if dest not in _ONCE:
            yield from words
