"""What a line of a meta file means, once its format is known (sniff.py finds it by looking).

    lines    my dog/0001.jpg 1                    the last field is the label, so paths may hold blanks
             dog/0001.jpg 3,7                     several labels
             shard.tar@1536:20480 1               an image inside a container: its offset and its length
    frames   v_Skiing_g01 164 80                  a folder of frames, how many, label
    csv tsv  dog/0001.jpg,1                       with or without a header, in any columns, quoted where need be
    jsonl    {"file_name": "dog/0001.jpg", "label": "dog"}

One line is one row: a quoted field that goes on in the next line is refused.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..index.lines import LONGEST_LINE

FORMATS = ("lines", "frames", "csv", "tsv", "jsonl")
IMAGES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"})
BLANKS = " \t"

_SPAN = re.compile(r"(.+\.tar)@(\d{1,18}):(\d{1,18})", re.DOTALL | re.ASCII | re.IGNORECASE)
# NUL ends a path for the kernel; line breaks and half characters (from JSON escapes) would break what we write
_CLEAN = re.compile(r"[^\0\n\r\ud800-\udfff]*").fullmatch
_WHOLE = re.compile(r"\d{1,18}", re.ASCII)
_SECONDS = re.compile(r"\d{1,9}(\.\d{0,9})?", re.ASCII)


class Record(NamedTuple):
    """What one row says. `path` is as written, relative to the row's root unless it is absolute.

    label: of several the first, -1 where a row has none; labels: all of them, None in a meta file whose rows have
    one each; offset, length: the bytes of the image in the container `path`; frames: how many images of the folder
    `path` make the clip; start_s, stop_s: the span of the video `path`, None for its whole.
    """

    path: str
    label: int
    labels: tuple[int, ...] | None = None
    offset: int | None = None
    length: int | None = None
    frames: int | None = None
    start_s: float | None = None
    stop_s: float | None = None

    @property
    def written(self) -> str:
        """The path, with the span of a container: `shard.tar@1536:20480`."""
        return self.path if self.offset is None else f"{self.path}@{self.offset}:{self.length}"


class Fields(NamedTuple):
    """One line in parts; labels are still text, as they stand there."""

    path: str
    labels: Sequence[str]
    frames: int | None = None
    start_s: float | None = None
    stop_s: float | None = None


class Malformed(Exception):
    """Why a line is no row; internal: becomes a RowError with its file and line."""


@dataclass(frozen=True)
class Format:
    """How to read the lines of one file.

    path, label, frames, start, stop: columns (from 0) or JSON keys; a label of None: rows have none. `separator` parts
    several labels of a row (None: each row has one). `skip` lines at the top are a header. `named`: labels are names,
    as far as was looked. `trimmed`: path, start and stop name a cut video as Kinetics' tools do. `told` is the guess
    in words.
    """

    name: str = "lines"
    path: int | str = 0
    label: int | str | None = 1
    frames: int | str | None = None
    start: int | str | None = None
    stop: int | str | None = None
    trimmed: bool = False
    delimiter: str = " "
    fields: int = 2
    skip: int = 0
    separator: str | None = None
    named: bool = False
    kind: str = "image"
    told: str = "lines 'path label'"

    @property
    def shape(self) -> str:
        """A good line in words."""
        if self.name == "jsonl":
            return "an object on one line"
        if self.name in ("csv", "tsv"):
            return f"{self.fields} fields parted by {_SIGNS[self.delimiter]}"
        label = "" if self.label is None else " label" if self.separator is None else f" label{self.separator}label…"
        return ("'folder frames" if self.name == "frames" else "'path") + label + "'"

    def parse(self, line: bytes) -> Fields:
        """The parts of a line; raises Malformed."""
        text = decode(line)
        if self.name == "jsonl":
            return self._parse_json(text)
        if self.name in ("csv", "tsv"):
            return self._parse_columns(text)
        return self._parse_words(text)

    def _parse_words(self, text: str) -> Fields:
        # only blanks and tabs part fields: str.split() would also cut at no-break spaces, which stand in file names
        path, labels, count = text.rstrip(BLANKS + "\r"), [""], None
        if not path:
            raise Malformed(f"is blank: every line is {self.shape} (blank lines may stand at the end only)")
        if self.label is not None:
            path, labels = self._cut(path, "label", text)
            labels = self._labels(labels)
        elif media_of(path) is None:
            raise Malformed(
                f"{short(path)} is no image's name, but the first line is: a list is of one kind, 'path label' or "
                "'path'"
            )
        if self.name == "frames":
            path, (number,) = self._cut(path, "number of frames", text)
            count = _count(number)
        return Fields(path, labels, count)

    def _cut(self, text: str, what: str, line: str) -> tuple[str, list[str]]:
        """The text before its last word, and that word."""
        cut = max(text.rfind(" "), text.rfind("\t"))
        if not (path := text[: cut + 1].rstrip(BLANKS)):
            raise Malformed(f"{short(line.strip())} has no {what}: a line is {self.shape}")
        return path, [text[cut + 1 :]]

    def _parse_columns(self, text: str) -> Fields:
        if not text.strip():
            raise Malformed(f"is blank: every line has {self.shape} (blank lines may stand at the end only)")
        fields = split_columns(text, self.delimiter)
        if len(fields) != self.fields:
            told = f"{len(fields)} field{'' if len(fields) == 1 else 's'}"
            raise Malformed(
                f"has {told} parted by {_SIGNS[self.delimiter]}, where {self.fields} are wanted; a field that holds "
                'the sign itself stands in double quotes: "a,b.jpg",1'
            )

        def field(column: int | str | None) -> str | None:
            return None if column is None else fields[int(column)]

        label = field(self.label)
        return self._whole(field(self.path), [""] if label is None else self._labels([label]), field)

    def _parse_json(self, text: str) -> Fields:
        if not text.strip():
            raise Malformed(f"is blank: every line is {self.shape} (blank lines may stand at the end only)")
        try:
            thing = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"is no JSON object on one line: {str(error).splitlines()[0]}") from None
        if not isinstance(thing, dict):
            raise Malformed(f"is JSON, but no object: a line is as {{{self.path!r}: …}}".replace("'", '"'))

        def field(key: int | str | None) -> str | None:
            value = None if key is None else thing.get(key)
            return None if value is None else str(value)

        path = thing.get(self.path)
        if not isinstance(path, str):
            raise Malformed(f"key {self.path!r} is the path and must hold text, not {short(json.dumps(path))}")
        labels = [""] if self.label is None else self._json_labels(thing.get(self.label))
        # by escapes alone can a line of text hold these
        if "\\" in text and not all(map(_CLEAN, [path, *labels])):
            raise Malformed(f"path {short(path)} or its label holds a character that can't stand in a meta file")
        return self._whole(path, labels, field)

    def _whole(self, path: str | None, labels: Sequence[str], field: Any) -> Fields:
        """The parts of a row with columns, of which any may say what the others are."""
        if not path:
            raise Malformed("has no path")
        if self.start is None and self.stop is None and self.frames is None:
            return Fields(path, labels)
        start, stop = field(self.start), field(self.stop)
        if self.trimmed:  # as the crawlers of the Kinetics lists name what they cut
            return Fields(f"{path}_{_count(start, 'second'):06d}_{_count(stop, 'second'):06d}.mp4", labels)
        if self.frames is not None:
            return Fields(path, labels, _count(field(self.frames)))
        if start is None and stop is None:
            return Fields(path, labels)
        span = (_seconds(start) if start else 0.0, _seconds(stop) if stop else None)
        if span[1] is not None and span[1] <= span[0]:
            raise Malformed(f"the span from {start} s to {stop} s is empty")
        return Fields(path, labels, None, *span)

    def _labels(self, labels: list[str]) -> list[str]:
        """Several labels that stand in one field."""
        (text,) = labels
        if self.separator is None:
            if not text:
                raise Malformed("has no label: its field is empty")
            return labels
        parts = [part.strip(BLANKS) for part in text.split(self.separator)] if text else []
        if not all(parts):
            raise Malformed(f"labels {short(text)}: one of them is empty (they are parted by {_SIGNS[self.separator]})")
        return parts

    def _json_labels(self, value: object) -> list[str]:
        if type(value) is int:
            return [str(value)]
        values = value if isinstance(value, list) else [value]
        if isinstance(value, list) and self.separator is None:
            raise Malformed(
                f"label {short(json.dumps(value))} is a list, but the first rows have one label each: name the key "
                f"as one of several labels, columns={{labels: {self.label}}}"
            )
        for label in values:
            if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
                told = "has no label" if label in (None, "") else f"label {short(json.dumps(label))}"
                raise Malformed(f"{told}: key {self.label!r} holds a whole number or the name of a class")
        return [str(label) for label in values]


_SIGNS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "blanks"}


def decode(line: bytes) -> str:
    """The text of a line; raises Malformed for one that can't be text."""
    if len(line) > LONGEST_LINE:
        raise Malformed(f"a line of {len(line)} bytes, more than {LONGEST_LINE}: is this a meta file?")
    if b"\0" in line:
        raise Malformed("holds a NUL byte: a meta file is UTF-8 text")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise Malformed(
            f"byte {error.start + 1} ({line[error.start]:#04x}) is not UTF-8: save the file as UTF-8"
        ) from None


def split_columns(text: str, delimiter: str) -> list[str]:
    """The fields of a CSV line without the blanks around them; raises Malformed."""
    if '"' not in text:
        return [field.strip(" \r") for field in text.split(delimiter)]
    try:
        (fields,) = csv.reader([text], delimiter=delimiter, skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        why = "it isn't closed on its line" if "end of data" in str(error) else str(error)
        raise Malformed(f"a quoted field: {why} (one line is one row; a quote inside a field is doubled)") from None
    return [field.strip(" \r") for field in fields]


def split_span(path: str) -> tuple[str, int | None, int | None]:
    """`shard.tar@1536:20480` -> (container, offset, length); any other path as it is, with None twice."""
    if "@" in path and (found := _SPAN.fullmatch(path)):
        return found[1], int(found[2]), int(found[3])
    return path, None, None


def media_of(path: str) -> str | None:
    """ "image", "video" or None, by the ending of a path; a span of a container is an image."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in IMAGES or split_span(path)[1] is not None:
        return "image"
    return "video" if suffix in VIDEOS else None


def short(text: str) -> str:
    """Text of a user in quotes, cut where it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "…")


def _count(field: str | None, what: str = "frame") -> int:
    if field is None or not _WHOLE.fullmatch(field) or (what == "frame" and int(field) == 0):
        raise Malformed(f"{short(field or '')} is no number of {what}s")
    return int(field)


def _seconds(field: str) -> float:
    if not _SECONDS.fullmatch(field):
        raise Malformed(f"{short(field)} is no time in seconds")
    return float(field)
