"""`python -m data check META…` and `python -m data inspect META…`; in the wheel `python -m rankrun.data …`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from .errors import DataError, OptionError


def main(argv: Sequence[str]) -> int:
    """Runs one verb; returns the exit code: 0, or 2 with one line per problem on stderr."""
    options = _parser().parse_args(argv)
    try:
        lines = _check(options) if options.verb == "check" else _inspect(options)
    except DataError as error:
        for problem in error.problems:
            print(f"{error.code} {problem}", file=sys.stderr)
        return error.exit_code
    for line in lines:
        print(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="data", description="Looks at meta files and class folders.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="check|inspect")
    check = verbs.add_parser("check", help="is every row good?")
    check.add_argument("--head", action="store_true", help="only the first and last 1,000 lines, as a launch does")
    look = verbs.add_parser("inspect", help="number of batches, and their shapes")
    look.add_argument("--channels", type=int, default=3, choices=(1, 3))
    for verb in (check, look):
        verb.add_argument("meta", nargs="+", metavar="META", help="a meta file, several, or a folder of class folders")
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
        return [f"{told}: good at both ends, {rows} rows" if rows is not None else f"{told}: class folders are good"]
    meta = check_whole(source, root=options.root, classes=classes, allow_outside_root=options.allow_outside_root)
    if options.global_batch is not None:
        Split(meta.n, options.global_batch, options.world_size, 0)
    return [f"{told}: good, {meta.n} rows, {meta.num_classes} classes, fingerprint {meta.fingerprint}"]


def _inspect(options: argparse.Namespace) -> list[str]:
    if any(path.endswith((".yaml", ".yml")) for path in options.meta):
        raise OptionError("a config is inspected by 'launch.py data inspect CONFIG'; here stands a meta file")
    from .inspection import inspect

    settings = {
        "root": options.root,
        "classes": _classes(options.classes),
        "channels": options.channels,
        "allow_outside_root": options.allow_outside_root,
    }
    batch = options.global_batch or 8 * options.world_size
    return inspect(_source(options.meta), settings, global_batch=batch, world_size=options.world_size)


def _source(paths: list[str]) -> str | list[str]:
    if len(paths) > 1 and (folder := next((path for path in paths if os.path.isdir(path)), None)):
        raise OptionError(f"{folder} is a folder: give one folder of class folders alone, or meta files")
    return paths[0] if len(paths) == 1 else paths


def _classes(given: str | None) -> int | str | list[str] | None:
    if given is None or (given.isascii() and given.isdigit()):
        return None if given is None else int(given)
    if given.startswith(("[", '"')):  # as JSON, for names that hold commas
        names: str | list[str] = json.loads(given)
        return names
    return given.split(",") if "," in given else given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
