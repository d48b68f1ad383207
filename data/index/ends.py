"""Both ends of a meta file: what a launch looks at before it starts anything."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ClassesError, MetaFileError, NamedLabelError, OutsideRootError, RowError, counted
from ..exclusion import Excluded, read_excluded
from ..files import Source, look, paths_of
from ..formats.classes import Classes, Given, read_classes
from ..formats.format import Format
from ..formats.guess import Columns
from ..formats.labels import Labels, label_key, names_unknown
from ..formats.rows import Problem, parse_line
from .census import SMALL_BYTES, open_census
from .lines import ends
from .sidecar import look as census_at
from .sidecar import places

ENDS = 1000


def check_ends(
    source: Source,
    *,
    classes: Given = None,
    allow_outside_root: bool = False,
    format: str | None = None,
    columns: Columns | None = None,
    exclude: Source | None = None,
    cache: str | os.PathLike[str] | None = None,
    most_bytes: int | None = None,
) -> int:
    """The number of rows, once the first and last 1,000 lines of every file of lines have been found good.

    What lies between is counted, not looked at: this is what a launcher asks before it starts anything. Raises all
    problems at once (at most 20 are shown); those that have one cause, labels that are names, as one. With
    `most_bytes` the rows of a larger file that has no index are estimated from so many of its bytes.
    """
    known = read_classes(classes)
    formats: list[tuple[Path, Format]] = []
    lines: list[tuple[int, int, int, bytes]] = []  # (row of the whole, which file, number of the line, text)
    rows = 0
    for path in paths_of(source):
        form = look(path, format=format, columns=columns)
        found, count = ends(path, ENDS, cache=cache, most_bytes=most_bytes)
        if count <= form.skip:
            raise MetaFileError(f"{path} has a header and no row below it: one line per image is wanted")
        lines += [(rows + at - 1 - form.skip, len(formats), at, line) for at, line in found if at > form.skip]
        formats.append((path, form))
        rows += count - form.skip
    excluded = read_excluded([] if exclude is None else paths_of(exclude, "data.exclude"), rows)
    if excluded.size:
        gone = set(excluded.rows.tolist())
        lines = [line for line in lines if line[0] not in gone]
    used = [known if known is not None else _names(path, form, excluded, cache) for path, form in formats]
    problems: list[Problem] = []
    for _, which, number, line in lines:
        path, form = formats[which]
        place = f"{path}:{number}"
        problem = _problem(line.removesuffix(b"\r"), form, used[which], allow_outside_root, place)
        if problem is not None:
            problems.append(problem)
    if len(problems) > 1 and all(isinstance(error, NamedLabelError) for error in problems):
        first, _, cure = str(problems[0]).rpartition(": ")
        raise RowError(f"{first}, nor is that of {counted(len(problems) - 1, 'other line')}: {cure}")
    if problems:
        raise RowError(*map(str, problems))
    return rows - excluded.size


def _problem(line: bytes, form: Format, known: Classes | None, outside: bool, place: str) -> Problem | None:
    try:
        parse_line(line, form, known, outside, False, lambda: place)
    except (RowError, OutsideRootError) as error:
        return error
    return None


def _names(path: Path, form: Format, excluded: Excluded, cache: str | os.PathLike[str] | None) -> Classes | None:
    """The class names that an index holds, where labels are names; None where every label is fine.

    Raises ClassesError for a large file that has no such index yet.
    """
    if not form.named or os.path.getsize(path) < SMALL_BYTES:
        return None
    # a census that says nothing of labels can't help; one that is out of date may still be of these bytes
    sidecars = [census_at(place).header for place in places(path, None if cache is None else Path(cache))]
    kept = open_census(path, cache=cache).labels if any(head and head.labels_bytes for head in sidecars) else None
    labels = Labels.restored((kept or {}).get(label_key(form, excluded.digest)))
    if labels is None or labels.names is None:
        raise ClassesError(names_unknown(path))
    return Classes(labels.names, by_name=True)
