"""The verbs `index`, `check`, `inspect`, `pack` and `where`: `python -m data VERB META…`, in the wheel
`python -m rankrun.data VERB META…`, and through the launcher `launch.py data VERB META…|CONFIG`."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from .errors import DataError, OptionError
from .verbs import acts as verbs
from .verbs.acts import PROG

INTERRUPTED = 130

_PLAIN = str.maketrans({"█": "#", "…": "..."} | dict.fromkeys("▏▎▍▌▋▊▉"))
_OPTIONS = [
    (re.compile(pattern), option)
    for pattern, option in (
        (r"data\.columns=\{path: ([^,{}]+), label: ([^,{}]+)\}", r"--columns path=\1,label=\2"),
        (r"(?<![\w./-])columns=\{labels: ([^{}]+)\}", r"--columns labels=\1"),
        (r"data\.allow_outside_root=true", "--allow-outside-root"),
        (r"data\.root=…", "--root FOLDER"),
        (r"(?<![\w./-])data\.root=", "--root "),
        (r"on_error 'skip'", "--on-error skip"),
        (r"(?<![\w./-])data\.(root|classes|columns|format|exclude|order)(?![\w./]|:[0-9])", r"--\1"),
    )
]
_SIZE = re.compile(r"([0-9]+)\s*([kmgt]?)(i?b)?", re.ASCII | re.IGNORECASE)


def main(argv: Sequence[str]) -> int:
    """Runs one verb; returns the exit code: 0, 2 with one line per problem on stderr, 130 after Ctrl-C."""
    of_config = True
    try:
        options = _parser().parse_args(argv)
        of_config = options.of_config or (options.verb == "check" and options.facts)
        return _run(options, of_config)
    except DataError as error:
        complain(error, of_config)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()  # whoever read our output has left
        return 1


def complain(error: DataError, of_config: bool = True) -> None:
    """One line per problem on stderr, whatever it quotes: a file's name may hold codes that move the cursor.

    Unless the data was that of a config, its keys are called by the options that mean the same.
    """
    for problem in error.problems:
        print(f"{error.code} {printable(problem if of_config else as_options(problem))}", file=sys.stderr)


def as_options(text: str) -> str:
    """A message with this command line's options in place of a config's keys."""
    for pattern, option in _OPTIONS:
        text = pattern.sub(option, text)
    return text


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def drawable(text: str, encoding: str | None) -> str:
    """Text with bars that a terminal of this encoding can show."""
    try:
        text.encode(encoding or "ascii")
    except UnicodeEncodeError:
        return text.translate(_PLAIN)
    return text


def _forget_stdout() -> None:
    """Python would complain once more when it flushes at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(options: argparse.Namespace, of_config: bool) -> int:
    outcome: verbs.Outcome = getattr(verbs, options.verb)(options)
    for problem in outcome.problems:
        complain(problem, of_config)
    try:
        for line in outcome.lines:
            print(drawable(printable(line), sys.stdout.encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk behind `> file`
        print(f"can't write to stdout: {error.strerror}", file=sys.stderr)
        _forget_stdout()
        return 1
    return outcome.exit_code


class _Parser(argparse.ArgumentParser):
    """argparse, except that a mistake is one line and not a usage text."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message}; '{self.prog} --help' lists the options")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROG, description="About meta files, class folders, tars and Parquet files.")
    named = parser.add_subparsers(dest="verb", required=True, metavar="index|check|inspect|pack|where")
    index = named.add_parser("index", help="read it once, ahead of a run; says what it holds")
    check = named.add_parser("check", help="is every row good, and what it names there?")
    look = named.add_parser("inspect", help="number of batches, their shapes, a picture of samples")
    pack = named.add_parser("pack", help="copy images into tar shards, with a meta file of where each is")
    where = named.add_parser("where", help="which step and rank sees a row; which rows were in a step")

    depth = check.add_mutually_exclusive_group()
    depth.add_argument("--head", action="store_true", help="only the first and last 1,000 lines, as a launch does")
    depth.add_argument("--decode", action="store_true", help="decode every image too")
    depth.add_argument("--no-decode", action="store_true", help="with --clean: trust that what is there decodes")
    check.add_argument("--facts", action="store_true", help=argparse.SUPPRESS)  # --head for `plan`: one line of JSON
    check.add_argument(
        "--against", metavar="META", action="append", help="another set, as that of training: which files are in both?"
    )
    check.add_argument(
        "--clean", metavar="OUT", help="decode every image and write the good rows, each once, to this new file"
    )

    look.add_argument("--transforms", metavar="JSON", help="a list as a config has it (default: none)")
    look.add_argument("--channels", type=int, default=3, choices=(1, 3))
    look.add_argument("--clip-frames", type=int, metavar="T", help="frames of a sample, where rows are clips")
    look.add_argument("--grid", metavar="FILE.png", help="draw the first samples as training would see them")

    pack.add_argument(
        "--out", metavar="FOLDER", help="folder of the shards (or name it last, behind META); given again it goes on"
    )
    pack.add_argument("--shard-bytes", metavar="SIZE", type=size_of, default=256 << 20, help="default: 256MiB")
    pack.add_argument("--resize", metavar="PIXELS", type=int, help="shrink images to this length of their shorter side")

    pack.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="skip leaves out what can't be read"
    )

    asked = where.add_mutually_exclusive_group(required=True)
    asked.add_argument("--row", type=int, metavar="N", help="when is this row served, and to whom?")
    asked.add_argument("--step", type=int, metavar="S", help="which rows are in this step of the run (or of --epoch)?")
    where.add_argument("--epoch", type=int, metavar="E", help="default: for --row 0, for --step the step's own")
    where.add_argument("--epochs", type=int, metavar="N", help="of the run: a step or epoch beyond them is refused")
    where.add_argument("--micro-batch", type=int, metavar="M", help="samples that one rank computes at once")

    for verb in (check, pack):
        verb.add_argument("--processes", type=int, metavar="N", help="default: one per processor")
    for verb in (check, look, where):
        verb.add_argument(
            "--global-batch", type=int, required=verb is where, metavar="G", help="samples per step over all ranks"
        )
        verb.add_argument("--world-size", type=int, default=1, metavar="W", help="number of ranks")
        verb.add_argument("--order", choices=("row", "block"), default="row", help="as data.order")
    for verb in (look, where):
        verb.add_argument("--seed", type=int, default=0)
        verb.add_argument("--tail", choices=("drop", "pad", "mask"), default="drop", help="the end of an epoch")
    for verb in (index, check, look, pack, where):
        _add_source(verb)
    return parser


def _add_source(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "meta",
        nargs="+",
        metavar="META",
        help="a meta file, several, a glob, a folder of class folders, tars, or a Parquet file "
        f"('{PROG}' takes a CONFIG here as well)",
    )
    group = verb.add_argument_group("how META is read; by default each is found by looking")
    group.add_argument("--classes", help="a number, a file of names, or names with commas between them")
    group.add_argument("--of-config", action="store_true", help=argparse.SUPPRESS)  # the launcher says so
    group.add_argument("--root", help="the folder that paths are relative to (default: the meta file's)")
    group.add_argument("--allow-outside-root", action="store_true", help="absolute paths and ../ are fine")
    group.add_argument("--format", metavar="NAME", help="lines, frames, csv, tsv or jsonl")
    group.add_argument("--columns", metavar="path=A,label=B", help="columns by name or number (from 0)")
    group.add_argument("--exclude", metavar="FILE", action="append", help="row numbers to leave out")
    group.add_argument("--cache", metavar="FOLDER", help="for indexes that can't lie beside their file, and lists")


def size_of(text: str) -> int:
    """Bytes of "256MiB", "1GB", "1000"; a letter without an i counts in thousands."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, as in 256MiB, 1GB or 5000000")
    base = 1024 if (found[3] or "").lower() == "ib" else 1000
    power = " kmgt".index(found[2].lower() or " ")
    return int(found[1]) * int(base**power)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no "…" is no reason to fail
    sys.exit(main(sys.argv[1:]))
