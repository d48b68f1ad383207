"""What the verbs do: each takes its options and returns lines to print and problems to tell."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DataError, MetaFileError, OptionError, counted, sized
from .progress import Progress, rows

if TYPE_CHECKING:
    from ..meta import MetaFile
    from ..sources.parquet import ParquetImages

# as people call it: the launcher hands its verb `data` on to this package
PROG = "rankrun data" if __package__ == "rankrun.data" else "launch.py data"


class Outcome(NamedTuple):
    """What a verb has to say: lines for stdout, problems for stderr, and the exit code if it isn't the problems'."""

    lines: list[str]
    problems: Sequence[DataError] = ()
    code: int | None = None

    @property
    def exit_code(self) -> int:
        if self.code is not None:
            return self.code
        return self.problems[0].exit_code if self.problems else 0


def check(options: argparse.Namespace) -> Outcome:
    if options.head or options.facts:
        for option in ("against", "clean", "processes"):
            if getattr(options, option) is not None:
                raise OptionError(f"--{option} wants a look at all rows: leave --head out")
        return _glance(options)
    from ..blocks import choose_blocks
    from ..split import Split
    from .check import check_rows
    from .clean import CleanList
    from .telling import describe_report

    if options.no_decode and options.clean is None:
        raise OptionError("--no-decode is for --clean: a check alone decodes only with --decode")
    decode = options.decode or (options.clean is not None and not options.no_decode)
    meta = open_meta(options, checking=True)
    clean = None if options.clean is None else CleanList(meta, options.clean)  # which refuses now, and not after hours
    if options.order == "block":
        choose_blocks(meta.size_bytes)
    if options.global_batch is not None:
        Split(meta.n, options.global_batch, options.world_size, 0)
    against = open_meta(options, options.against, checking=True) if options.against else None
    report = check_rows(meta, decode=decode, against=against, processes=_processes(options), shows=True)
    lines = describe_report(report, _named(options.meta), decode=decode)
    errors = report.errors()
    if clean is not None:
        kept = clean.write(~report.left_out)
        lines.append(f"clean list: {options.clean}, {rows(kept)} of {meta.n:,}")
        if clean.needs:
            lines.append(f"use it with {' and '.join(clean.needs)}")
        return Outcome(lines, errors, 0)  # what was found is told, and dealt with
    return Outcome(lines, errors)


def _glance(options: argparse.Namespace) -> Outcome:
    from .glance import glance

    found = glance(
        source_of(options.meta),
        cache=options.cache,
        global_batch=options.global_batch,
        world_size=options.world_size,
        order=options.order,
        **_reading(options),
    )
    if options.facts:
        return Outcome([json.dumps(found._asdict())])
    about = "" if found.exact else "about "
    named = _named(options.meta)
    guess = found.told.removeprefix(f"{named}: ")
    return Outcome([f"{named}: good at both ends, {about}{rows(found.rows)}", f"read as: {guess}"])


def index(options: argparse.Namespace) -> Outcome:
    from ..files import is_listed, paths_of
    from ..meta import MetaFile

    paths = paths_of(source_of(options.meta))
    listed = is_listed(paths)
    if listed and options.cache is None:
        raise OptionError(f"{paths[0]}: what is in it is listed into a file, and that needs a place: --cache FOLDER")
    begun = time.monotonic()
    before = {path: _made_at(path, options.cache) for path in paths}
    with Progress(f"reading {_named(options.meta)}", 0, "") as note:
        note.wait()
        meta = MetaFile(source_of(options.meta), cache=options.cache, index=True, **_reading(options))
    passed = f"in {_seconds(time.monotonic() - begun)}"
    classes = counted(meta.num_classes, "class", "classes")
    lines = [meta.told, f"{rows(meta.n)}, {classes}", f"fingerprint: {meta.fingerprint}"]
    if listed:
        lines.append(f"list: {meta.files[0].path}, {sized(meta.size_bytes)}, made or found {passed}")
    errors = []
    for file in meta.files:
        place = file.census.sidecar
        if place is None and listed:
            continue  # a short list is read at every start
        if place is None:
            errors.append(
                MetaFileError(f"{file.path}: its index can't be written beside it: --cache FOLDER names another place")
            )
            continue
        size = place.stat().st_size
        how = "was there already" if _made_at(file.path, options.cache) == before.get(file.path) else f"made {passed}"
        share = 100 * size / file.size_bytes
        lines.append(f"index: {place}, {sized(size)}, {_percent(share)} of {sized(file.size_bytes)}, {how}")
    return Outcome(lines, errors)


def _made_at(path: Path, cache: str | None) -> int | None:
    """When the index that serves a file now was written."""
    from ..index.sidecar import places

    found = [place.stat().st_mtime_ns for place in places(path, Path(cache) if cache else None) if place.is_file()]
    return found[0] if found else None


def inspect(options: argparse.Namespace) -> Outcome:
    from .inspection import inspect as look

    transforms = [] if options.transforms is None else as_json("--transforms", options.transforms)
    if not isinstance(transforms, list):
        raise OptionError(f"--transforms {options.transforms}: is a JSON list, as in '[\"ToTensor\"]'")
    settings = {
        **_reading(options),
        **{key: getattr(options, key) for key in ("channels", "cache", "order", "clip_frames")},
    }
    lines = look(
        source_of(options.meta),
        settings,
        transforms=transforms,
        global_batch=options.global_batch or 8 * options.world_size,
        world_size=options.world_size,
        seed=options.seed,
        tail=options.tail,
        grid=options.grid,
    )
    return Outcome(lines)


def pack(options: argparse.Namespace) -> Outcome:
    from ..files import paths_of
    from ..sources.parquet import ParquetImages
    from .pack import pack as pack_all

    if options.out is None:
        *options.meta, options.out = options.meta
        if not options.meta:
            raise OptionError(f"{options.out} is packed into which folder? --out FOLDER, or 'pack META FOLDER'")
    reading = _reading(options)
    paths = paths_of(source_of(options.meta))
    if all(path.suffix.lower() == ".parquet" for path in paths) and ParquetImages.are_in(paths[0], reading["columns"]):
        source: MetaFile | ParquetImages = ParquetImages(paths, classes=reading["classes"], columns=reading["columns"])
    else:
        source = open_meta(options)
    last = 0
    with Progress("packing", source.n, "rows") as bar:

        def told(done: int) -> None:
            nonlocal last
            if done < last:
                bar.begin("verifying")
            last = done
            bar.to(done)

        packed = pack_all(
            source,
            options.out,
            shard_bytes=options.shard_bytes,
            resize=options.resize,
            on_error=options.on_error,
            workers=_processes(options),
            progress=told,
        )
    shards = counted(packed.shards, "shard")
    lines = [f"packed: {packed.meta}, {rows(packed.rows)} in {shards}, {sized(packed.size_bytes)}"]
    if packed.kept:
        lines.append(f"there already: {counted(packed.kept, 'shard')}")
    if packed.skipped:
        lines.append(f"left out: {rows(packed.skipped)}, listed in {Path(options.out) / 'skipped.txt'}")
    lines.append(f"use it as data.train: {packed.meta}, with data.classes: {Path(options.out) / 'classes.txt'}")
    return Outcome(lines)


def where(options: argparse.Namespace) -> Outcome:
    from .where import course_of, describe_row, describe_step

    meta = open_meta(options)
    course = course_of(
        meta,
        seed=options.seed,
        global_batch=options.global_batch,
        world_size=options.world_size,
        order=options.order,
        tail=options.tail,
        micro_batch=options.micro_batch,
        epochs=options.epochs,
    )
    if options.step is not None:
        return Outcome(describe_step(options.step, course, epoch=options.epoch))
    told = describe_row(options.row, course, epoch=options.epoch or 0)
    return Outcome([meta.place(options.row), *told])


def open_meta(options: argparse.Namespace, meta: list[str] | None = None, *, checking: bool = False) -> MetaFile:
    """The rows that the options speak of; or those of another source that is read alike, none of them left out.

    `checking`: see MetaFile.
    """
    from ..meta import MetaFile

    reading = _reading(options)
    if meta is not None:
        reading["exclude"] = None
    source = source_of(options.meta if meta is None else meta)
    return MetaFile(source, cache=options.cache, checking=checking, **reading)


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "root": options.root,
        "classes": classes_of(options.classes),
        "allow_outside_root": options.allow_outside_root,
        "format": options.format,
        "columns": columns_of(options.columns),
        "exclude": options.exclude,
    }


def _processes(options: argparse.Namespace) -> int | None:
    if options.processes is not None and options.processes < 1:
        raise OptionError(f"--processes {options.processes}: legal are 1, 2, 3, …")
    return int(options.processes) if options.processes is not None else None


def _named(meta: list[str]) -> str:
    return " ".join(meta) if len(meta) <= 3 else f"{meta[0]} … {meta[-1]} ({len(meta)} files)"


def source_of(paths: list[str]) -> str | list[str]:
    """One path, or several that make one set."""
    if config := next((path for path in paths if path.endswith((".yaml", ".yml"))), None):
        raise OptionError(f"{config} is a config: '{PROG}' reads those, here stands a meta file")
    if len(paths) > 1 and (folder := next((path for path in paths if os.path.isdir(path)), None)):
        raise OptionError(f"{folder} is a folder: give one folder of class folders alone, or meta files")
    return paths[0] if len(paths) == 1 else paths


def classes_of(given: str | None) -> int | str | list[str] | None:
    """A number, names (with commas between them or as JSON), or the file that holds them."""
    if given is None or (given.isascii() and given.isdigit()):
        return None if given is None else int(given)
    if given.startswith(("[", '"')):  # as JSON, for names that hold commas
        names: str | list[str] = as_json("--classes", given)
        return names
    return given.split(",") if "," in given else given


def columns_of(given: str | None) -> dict[str, str | int] | None:
    """`path=file,label=2` or the same as JSON."""
    if given is None:
        return None
    if given.startswith("{"):
        columns: dict[str, str | int] = as_json("--columns", given)
        return columns
    pairs = [part.partition("=") for part in given.split(",")]
    if not all(role.strip() and equals and column.strip() for role, equals, column in pairs):
        raise OptionError(f"--columns {given}: is path=NAME,label=NAME, with names or numbers (from 0) of columns")
    return {
        role.strip(): int(column) if column.strip().isascii() and column.strip().isdigit() else column.strip()
        for role, _, column in pairs
    }


def as_json(option: str, given: str) -> Any:
    """The value of an option that is JSON."""
    try:
        return json.loads(given)
    except ValueError as error:
        raise OptionError(f"{option} {given}: is no JSON: {error}") from None


def _percent(share: float) -> str:
    return f"{share:,.0f} %" if share >= 10 else f"{share:.2g} %"


def _seconds(passed: float) -> str:
    return f"{passed:.1f} s" if passed >= 0.1 else f"{1000 * passed:.0f} ms"
