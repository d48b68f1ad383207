"""Which format a meta file has, found by looking at its first lines.

Every format is tried on them and gets one point for the share of lines that fit, and one for the share whose path
ends like an image or a video. The best one is taken and told in words; `format` and `columns` overrule the guess.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import MetaFileError, OptionError
from ..index.opening import BYTE_ORDER_MARK
from .columns import guess_columns
from .format import FORMATS, Format, media_of, short
from .guess import ROLES, Columns, Guess, is_digits, kind_of, told_of

HEAD_LINES = 1000


def sniff(
    head: Sequence[bytes],
    name: str | os.PathLike[str],
    *,
    format: str | None = None,
    columns: Columns | None = None,
    labelled: bool = True,
) -> Format:
    """The format of a file that begins with the lines `head`; `name` is what messages call it.

    `format` is one of FORMATS; `columns` says which column (a name of the header, a number from 0, or a JSON key) is
    "path", "label" (or "labels", where rows have several), "frames", "start", "stop"; what it leaves out is guessed.
    With `labelled` false rows may lack labels. Raises MetaFileError where no guess is possible, OptionError.
    """
    wanted = _checked(columns)
    if format is not None and format not in FORMATS:
        raise OptionError(f"format {format!r}: legal are {', '.join(FORMATS)} (data.format)")
    lines = [line.removeprefix(BYTE_ORDER_MARK).decode(errors="replace").rstrip("\r\n") for line in head]
    lines = [line for line in lines if line.strip()]
    told = os.fspath(name)
    suffix = os.path.splitext(told)[1].lower()
    if format == "jsonl" or (format is None and _looks_json(lines, suffix)):
        return _json(lines, told, wanted, labelled)
    guesses: list[Guess] = []
    if format in (None, "lines", "frames"):
        guesses.append(_words(lines, told, wanted, format, labelled))
    for delimiter in "\t,;":
        if format in (None, "tsv" if delimiter == "\t" else "csv"):
            guesses.append(guess_columns(lines, told, delimiter, wanted, labelled, suffix))
    best = max(guesses, key=lambda guess: guess.score)
    return best.format()


def _checked(columns: Columns | None) -> dict[str, str | int]:
    """The columns as they were given; raises OptionError for what can't be one."""
    wanted = dict(columns or {})
    legal = (*ROLES, "labels")
    for role, column in wanted.items():
        if role not in legal:
            raise OptionError(f"columns: {role!r} is no part of a row; legal are {', '.join(legal)} (data.columns)")
        if isinstance(column, bool) or not isinstance(column, str | int) or column == "":
            raise OptionError(f"columns: {role} is {column!r}; legal are a column's name and its number from 0")
    if "label" in wanted and "labels" in wanted:
        raise OptionError("columns: give label (one of each row) or labels (several), not both (data.columns)")
    return wanted


def _looks_json(lines: Sequence[str], suffix: str) -> bool:
    return suffix in (".jsonl", ".ndjson", ".json") or (bool(lines) and lines[0].lstrip()[:1] in ("{", "["))


# --- lines and frames


def _words(
    lines: Sequence[str], told: str, wanted: Mapping[str, str | int], format: str | None, labelled: bool
) -> Guess:
    legal = ({"path": 0, "label": 1}, {"path": 0, "labels": 1})
    fixed = not wanted or any(wanted.items() <= allowed.items() for allowed in legal)
    parts = [_last_word(line) for line in lines]
    if not labelled and format != "frames" and lines and media_of(lines[0].strip()):
        return Guess(2, Format(label=None, fields=1, told="lines 'path'"))
    digits = [(path, label) for path, label in parts if path and is_digits(label)]
    named = not digits
    fitting = digits or [(path, label) for path, label in parts if path]
    media = [kind for path, _ in fitting if (kind := media_of(path))]
    count = max(1, len(lines))
    # names are taken for labels only if nothing explains the lines better
    score = (len(fitting) + len(media)) / count * (0.9 if named else 1)
    labels = [label for _, label in fitting]
    separator = "," if "labels" in wanted or any("," in label for label in labels) else None
    found = Format(separator=separator, named=named, kind=kind_of(media, len(fitting)))
    folders = [path for path, _ in fitting if not media and is_digits(_last_word(path)[1]) and _last_word(path)[0]]
    if format == "frames" or (format is None and folders and len(folders) >= 0.9 * len(fitting)):
        found = replace(found, name="frames", path=0, frames=1, label=2, fields=3, kind="frames")
    if not fixed:
        told_columns = ", ".join(f"{role}: {column}" for role, column in wanted.items())
        return Guess(
            min(score, 0.5),
            MetaFileError(
                f"{told}: columns {{{told_columns}}}, but its lines are {found.shape}: legal here are "
                "{path: 0, label: 1} and {path: 0, labels: 1}, or name another format"
            ),
        )
    words = "frame folders" if found.name == "frames" else "lines"
    return Guess(score, replace(found, told=f"{words} {found.shape}{told_of(found)}"))


def _last_word(line: str) -> tuple[str, str]:
    line = line.rstrip(" \t")
    cut = max(line.rfind(" "), line.rfind("\t"))
    return line[: cut + 1].rstrip(" \t"), line[cut + 1 :]


# --- JSON lines


def _json(lines: Sequence[str], told: str, wanted: Mapping[str, str | int], labelled: bool) -> Format:
    things: list[dict[str, Any]] = []
    for line in lines:
        try:
            thing = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(thing, dict):
            things.append(thing)
    if not things:
        raise MetaFileError(
            f'{told}: JSON lines hold one object on each line, as in {{"path": "a.jpg", "label": 0}}; this is other '
            "JSON: write it so ('jq -c .[]' does it for an array)"
        )
    first = things[0]
    lower = {key.lower(): key for key in reversed(first)}

    def find(role: str) -> str | None:
        key = wanted.get(role)
        if key is None:
            return next(
                (lower[name] for name in ROLES[role.removesuffix("s") if role == "labels" else role] if name in lower),
                None,
            )
        if str(key) not in first and not any(key in thing for thing in things):
            raise MetaFileError(
                f"{told}: the rows have no key {key!r} for {role} (data.columns); they have {_keys(first)}"
            )
        return str(key)

    path, label = find("path"), find("labels" if "labels" in wanted else "label")
    if path is None:
        path = next((key for key, value in first.items() if isinstance(value, str) and media_of(value)), None)
    if path is None or (label is None and labelled):
        missing = "path" if path is None else "label"
        raise MetaFileError(
            f"{told}: which key is the {missing}? The rows have {_keys(first)}: name them, "
            "data.columns={path: file, label: class}"
        )
    rows = [thing for thing in things if isinstance(thing.get(path), str)]
    media = [kind for thing in rows if (kind := media_of(thing[path]))]
    kind = kind_of(media, len(rows))
    frames = find("frames") if not media else None
    start, stop = (find("start"), find("stop")) if kind == "video" else (None, None)
    values = [thing.get(label) for thing in rows] if label is not None else []
    several = "labels" in wanted or any(isinstance(value, list) for value in values)
    flat = [str(one) for value in values for one in (value if isinstance(value, list) else [value])]
    found = Format(
        name="jsonl", path=path, label=label, frames=frames, start=start, stop=stop, delimiter="", fields=0,
        separator="," if several else None, named=bool(flat) and not any(map(is_digits, flat)),
        kind="frames" if frames is not None else kind,
    )  # fmt: skip
    roles = {"label": label, "frames": frames, "start": start, "stop": stop}
    used = "".join(f", {role} from {key!r}" for role, key in roles.items() if key is not None)
    return replace(found, told=f"JSON lines, path from key {path!r}{used}{told_of(found)}")


def _keys(thing: Mapping[str, Any]) -> str:
    return ", ".join(map(short, list(thing)[:12])) or "no keys"
