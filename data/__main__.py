"""`python -m data check META…` and `python -m data inspect META…`; in the wheel `python -m rankrun.data …`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .errors import DataError, OptionError, counted

# as people call it: the launcher hands its verb `data` on to this module
PROG = "rankrun data" if __package__ == "rankrun.data" else "launch.py data"


def main(argv: Sequence[str]) -> int:
    """Runs one verb; returns the exit code: 0, or 2 with one line per problem on stderr."""
    try:
        options = _parser().parse_args(argv)
        lines = _check(options) if options.verb == "check" else _inspect(options)
    except DataError as error:
        for problem in error.problems:
            print(f"{error.code} {problem}", file=sys.stderr)
        return error.exit_code
    for line in lines:
        print(line)
    return 0


class _Parser(argparse.ArgumentParser):
    """argparse, except that a mistake is one line and not a usage text."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message}; '{self.prog} --help' lists the options")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROG, description="Looks at meta files and class folders; writes nothing.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="check|inspect")
    check = verbs.add_parser("check", help="is every row good, and every image there?")
    depth = check.add_mutually_exclusive_group()
    depth.add_argument("--head", action="store_true", help="only the first and last 1,000 lines, as a launch does")
    depth.add_argument("--decode", action="store_true", help="decode every image too")
    look = verbs.add_parser("inspect", help="number of batches, and their shapes")
    look.add_argument("--transforms", metavar="JSON", help="a list as a config has it (default: none)")
    look.add_argument("--channels", type=int, default=3, choices=(1, 3))
    for verb in (check, look):
        verb.add_argument(
            "meta",
            nargs="+",
            metavar="META",
            help=f"a meta file, several, or a folder of class folders ('{PROG}' takes a CONFIG here as well)",
        )
        verb.add_argument("--classes", help="a number, a file of names, or names with commas between them")
        verb.add_argument("--root", help="the folder that paths are relative to (default: the meta file's)")
        verb.add_argument("--allow-outside-root", action="store_true", help="absolute paths and ../ are fine")
        verb.add_argument("--global-batch", type=int, help="samples per step over all ranks")
        verb.add_argument("--world-size", type=int, default=1, help="number of ranks")
    return parser


def _check(options: argparse.Namespace) -> list[str]:
    from .check import check_head, check_whole
    from .split import Split

    source, classes = _source(options.meta), _classes(options.classes)
    told = " ".join(options.meta)
    if options.head:
        rows = check_head(
            source,
            classes=classes,
            allow_outside_root=options.allow_outside_root,
            global_batch=options.global_batch,
            world_size=options.world_size,
        )
        return [f"{told}: class folders are good" if rows is None else f"{told}: good at both ends, {_rows(rows)}"]
    meta = check_whole(
        source,
        root=options.root,
        classes=classes,
        allow_outside_root=options.allow_outside_root,
        decode=options.decode,
    )
    if options.global_batch is not None:
        Split(meta.n, options.global_batch, options.world_size, 0)
    looked = "every image was decoded" if options.decode else "lines and files; --decode opens every image too"
    classes_told = counted(meta.num_classes, "class", "classes")
    return [f"{told}: good, {_rows(meta.n)}, {classes_told}, fingerprint {meta.fingerprint} ({looked})"]


def _rows(number: int) -> str:
    return counted(number, "row")


def _inspect(options: argparse.Namespace) -> list[str]:
    from .inspection import inspect

    settings = {
        "root": options.root,
        "classes": _classes(options.classes),
        "channels": options.channels,
        "allow_outside_root": options.allow_outside_root,
    }
    transforms = [] if options.transforms is None else _json("--transforms", options.transforms)
    if not isinstance(transforms, list):
        raise OptionError(f"--transforms {options.transforms}: is a JSON list, as in '[\"ToTensor\"]'")
    batch = options.global_batch or 8 * options.world_size
    return inspect(
        _source(options.meta), settings, transforms=transforms, global_batch=batch, world_size=options.world_size
    )


def _source(paths: list[str]) -> str | list[str]:
    if config := next((path for path in paths if path.endswith((".yaml", ".yml"))), None):
        raise OptionError(f"{config} is a config: '{PROG}' reads those, here stands a meta file")
    if len(paths) > 1 and (folder := next((path for path in paths if os.path.isdir(path)), None)):
        raise OptionError(f"{folder} is a folder: give one folder of class folders alone, or meta files")
    return paths[0] if len(paths) == 1 else paths


def _classes(given: str | None) -> int | str | list[str] | None:
    if given is None or (given.isascii() and given.isdigit()):
        return None if given is None else int(given)
    if given.startswith(("[", '"')):  # as JSON, for names that hold commas
        names: str | list[str] = _json("--classes", given)
        return names
    return given.split(",") if "," in given else given


def _json(option: str, given: str) -> Any:
    try:
        return json.loads(given)
    except ValueError as error:
        raise OptionError(f"{option} {given}: is no JSON: {error}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
