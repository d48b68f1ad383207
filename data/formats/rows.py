"""One row: from a line to a Record, or to the one sentence that says what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..errors import MAX_PROBLEMS, OutsideRootError, RowError
from .classes import Classes
from .format import Fields, Format, Malformed, Record, media_of, short, split_span
from .labels import refuse_negative, whole_number
from .sniff import HEAD_LINES

Problem = RowError | OutsideRootError
NO_COMMENTS = "a meta file has no comments: take out lines that begin with #"
LEAVES = "leaves the root: paths are relative to it"


def parse_line(
    line: bytes,
    format: Format,
    classes: Classes | None,
    allow_outside_root: bool,
    multi_label: bool,
    at: Callable[[], str],
) -> Record:
    """What one line says; the one place that knows what a good row is. `at()` is its place.

    Without classes every whole number is a label, or, where the format has names, every name (as 0). Raises RowError,
    OutsideRootError.
    """
    try:
        return _parsed(line, format, classes, allow_outside_root, multi_label, at)
    except RowError as error:
        if line.startswith(b"#"):
            raise RowError(f"{error} ({NO_COMMENTS})") from None
        raise


def is_comment(line: bytes, fields: Fields) -> bool:
    """Whether a row that can be read is hardly meant as one: it begins with # and has neither a number nor an image."""
    return line.startswith(b"#") and media_of(fields.path) is None and not any(map(str.isdigit, fields.labels))


def _parsed(
    line: bytes,
    format: Format,
    classes: Classes | None,
    allow_outside_root: bool,
    multi_label: bool,
    at: Callable[[], str],
) -> Record:
    try:
        path, fields, frames, start_s, stop_s = format.parse(line)
    except Malformed as error:
        raise RowError(f"{at()}  {error}") from None
    if not allow_outside_root and (path.startswith("/") or ".." in path.split("/")):
        why = "is absolute: paths are relative to the root" if path.startswith("/") else LEAVES
        raise OutsideRootError(
            f"{at()}  {short(path)} {why} (data.root=… sets it, data.allow_outside_root=true lifts this)"
        )
    path, offset, length = split_span(path)
    labels = (0,) if format.label is None else tuple(_label(field, format, classes, at) for field in fields)
    return Record(
        path, labels[0] if labels else -1, labels if multi_label else None, offset, length, frames, start_s, stop_s
    )


def _label(field: str, format: Format, classes: Classes | None, at: Callable[[], str]) -> int:
    if classes is not None and (label := classes.label(field)) is not None:
        return label
    refuse_negative(field, at())
    if classes is None:
        if format.named and not field.isdigit():
            return 0
        return whole_number(field, 0, lambda row: at())
    if not (field.isascii() and field.isdigit()) or len(field) > 18:
        hint = ""
        if format.separator is None and "," in field:
            hint = f" (several labels are read where the first {HEAD_LINES} lines show some)"
        legal = f"none of the {classes.told}" if classes.by_name else f"neither a number nor one of the {classes.told}"
        raise RowError(f"{at()}  label {short(field)} is {legal}{hint}")
    if classes.by_name:
        raise RowError(f"{at()}  label {field} is a number, but labels are names here, of {classes.told}")
    raise RowError(f"{at()}  label {field} is out of range: there are {classes.told}, labels 0 … {len(classes) - 1}")


def raise_all(problems: Iterable[Problem]) -> None:
    """Raises up to 21 problems as one error of the first one's class."""
    found = [problem for problem, _ in zip(problems, range(MAX_PROBLEMS + 1), strict=False)]
    if found:
        raise type(found[0])(*(line for error in found for line in error.problems))
