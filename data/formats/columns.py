"""Guesses CSV and TSV: where the fields are parted, whether there is a header, and which column is what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ..errors import MetaFileError
from .format import Format, Malformed, media_of, short, split_columns
from .guess import LABELS, PATHS, ROLES, SEVERAL, Guess, is_digits, kind_of, told_of


def guess_columns(
    lines: Sequence[str],
    told: str,
    delimiter: str,
    wanted: Mapping[str, str | int],
    labelled: bool,
    suffix: str,
) -> Guess:
    rows = list(_split(lines, delimiter))
    counts = Counter(len(row) for row in rows if row is not None)
    least = 2 if labelled or suffix not in (".csv", ".tsv") else 1
    fields = max((count for count in counts if count >= least), key=lambda count: (counts[count], count), default=0)
    name = "tsv" if delimiter == "\t" else "csv"
    if not fields:
        return Guess(0, MetaFileError(f"{told}: format {name}, but its lines hold no {_CALLED[delimiter]}"))
    body = [row for row in rows if row is not None and len(row) == fields]
    first = body[0] if rows and rows[0] is body[0] else None
    header = _header(first, body, wanted)
    body = body[1:] if header is not None else body
    try:
        found = _assign(header, body, fields, wanted, labelled, told)
    except MetaFileError as error:
        # the structure fits: what is missing is told only if no other format fits better
        return Guess(counts[fields] / len(lines), error)
    found = replace(found, name=name, delimiter=delimiter, fields=fields, skip=0 if header is None else 1)
    media = [kind for row in body if (kind := media_of(row[int(found.path)]))]
    values = [row[int(found.label)] for row in body] if found.label is not None else []
    column = None if header is None or found.label is None else header[int(found.label)].lower()
    found = _with_labels(found, values, "labels" in wanted, column)
    if found.frames is not None or found.trimmed:
        kind = "video" if found.trimmed else "frames"
    else:
        kind = kind_of(media, len(body))
    found = replace(found, kind=kind)
    score = counts[fields] / len(lines) + len(media) / max(1, len(body))
    if suffix == f".{name}" or found.trimmed or header is not None:
        score += 0.05  # between two that fit alike
    return Guess(score, replace(found, told=_told_columns(found, header)))


_FLAGS = frozenset({"0", "1", "0.0", "1.0"})
_CALLED = {",": "comma", ";": "semicolon", "\t": "tab"}


def _split(lines: Iterable[str], delimiter: str) -> Iterator[list[str] | None]:
    for line in lines:
        try:
            yield split_columns(line, delimiter)
        except Malformed:
            yield None


def _header(first: list[str] | None, body: Sequence[list[str]], wanted: Mapping[str, str | int]) -> list[str] | None:
    """The first row if it names columns."""
    if first is None or any(media_of(field) or is_digits(field) for field in first):
        return None
    names = {field.lower() for field in first}
    known = names & {*PATHS, *LABELS, "youtube_id", *(str(column).lower() for column in wanted.values())}
    others = body[1:]
    shares = [sum(media_of(row[at]) is not None for row in others) for at in range(len(first))]
    return first if known or (others and max(shares) >= 0.9 * len(others)) else None


def _assign(
    header: list[str] | None,
    body: Sequence[list[str]],
    fields: int,
    wanted: Mapping[str, str | int],
    labelled: bool,
    told: str,
) -> Format:
    """Which column is what; raises MetaFileError where that can't be seen."""
    lower = [] if header is None else [name.lower() for name in header]
    shown = ", ".join(map(repr, header)) if header else f"numbers 0 … {fields - 1}, without a header"

    def given(role: str) -> int | None:
        column = wanted.get(role)
        if column is None:
            return None
        if isinstance(column, int):
            if 0 <= column < fields:
                return column
        elif header is not None and column in header:
            return header.index(column)
        elif header is not None and column.lower() in lower:
            return lower.index(column.lower())
        raise MetaFileError(f"{told} has no column {column!r} for {role} (data.columns); its columns are {shown}")

    def called(role: str) -> int | None:
        return next((lower.index(name) for name in ROLES[role] if name in lower), None)

    path = given("path")
    label = given("labels" if "labels" in wanted else "label")
    media = [at for at in range(fields) if body and sum(bool(media_of(row[at])) for row in body) >= 0.9 * len(body)]
    if path is None and "youtube_id" in lower and not media:
        start, stop = called("start"), called("stop")
        if start is not None and stop is not None:
            label = called("label") if label is None else label
            if label is not None or not labelled:
                return Format(path=lower.index("youtube_id"), label=label, start=start, stop=stop, trimmed=True)
    if path is None:
        path = next((at for name in PATHS if name in lower and (at := lower.index(name)) in media), None)
    if path is None:
        path = media[0] if len(media) == 1 else called("path")
    if path is None and fields == 2:
        path = 0 if label is None else 1 - label
    if label is None:
        label = called("label")
    if label is None and fields == 2 and path is not None and (labelled or header is None):
        label = 1 - path
    if path is None or (label is None and labelled) or path == label:
        missing = "path" if path is None else "label"
        if path is not None and label is None and header is not None:
            flags = [at for at in range(fields) if at != path and body and all(row[at] in _FLAGS for row in body)]
            if len(flags) > 1:
                few = ", ".join(repr(header[at]) for at in flags[:5]) + (", …" if len(flags) > 5 else "")
                raise MetaFileError(
                    f"{told}: {len(flags)} columns hold 0 or 1 alone ({few}), as one-hot labels do, and none is called "
                    "a label: write the classes of a row into one column, as in 'cat' or 'cat|dog', or name the one "
                    "column that is the label (data.columns)"
                )
        example = f"path: {header[0]}, label: {header[-1]}" if header else f"path: 0, label: {fields - 1}"
        raise MetaFileError(
            f"{told}: which column is the {missing}? Its columns are {shown}: name them, data.columns={{{example}}}"
        )
    folders = path not in media
    frames = given("frames")
    if frames is None and folders:
        frames = called("frames")
    start, stop = given("start"), given("stop")
    if all(media_of(row[path]) == "video" for row in body):
        start, stop = called("start") if start is None else start, called("stop") if stop is None else stop
    return Format(path=path, label=label, frames=frames, start=start, stop=stop)


def _with_labels(found: Format, values: Sequence[str], several: bool, column: str | None) -> Format:
    """The format with what its labels are like: names or numbers, one or several."""
    values = [value for value in values if value]
    for separator in ",;| ":
        parts = [part.strip() for value in values for part in value.split(separator)]
        if len(parts) > len(values) and all(map(is_digits, parts)):
            return replace(found, separator=separator)
    if any(map(is_digits, values)):
        return replace(found, separator="," if several else None)
    # names may hold commas and blanks themselves; bars and semicolons hardly
    signs = [sign for sign in "|;" if any(sign in value for value in values)]
    plural = several or column in SEVERAL
    signs += [sign for sign in ", " if plural and any(sign in value for value in values)]
    return replace(found, named=bool(values), separator=signs[0] if signs else "," if several else None)


def _told_columns(found: Format, header: Sequence[str] | None) -> str:
    def called(column: int | str | None) -> str:
        return repr(header[int(column or 0)]) if header else str(column)

    roles = {"path": found.path, "label": found.label, "frames": found.frames, "start": found.start, "stop": found.stop}
    used = [
        f"{role} from {'column ' if role == 'path' else ''}{called(at)}" for role, at in roles.items() if at is not None
    ]
    rest = [short(name) for at, name in enumerate(header or ()) if at not in roles.values()]
    unused = f"; not used: {', '.join(rest[:5])}{', …' if len(rest) > 5 else ''}" if rest else ""
    if found.trimmed:
        used[0] = f"path 'id_start_stop.mp4' from column {called(found.path)}"
    sign = " (with semicolons)" if found.delimiter == ";" else ""
    head = f"{found.name.upper()}{sign} {'with' if header else 'without'} a header"
    return f"{head}, {', '.join(used)}{told_of(found)}{unused}"
