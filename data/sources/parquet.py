"""Parquet files: paths and labels as lines, and images that lie in them, for `data pack`. Needs pyarrow.

pyarrow is used without its threads: who lists a data set forks loader workers later.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ChangedError, MetaFileError, OptionError, RowError, counted
from ..formats.classes import Classes, Given
from ..formats.guess import LABELS, PATHS
from ..index.opening import open_regular
from .listing import Labels, Listing, Parts, stamp_of_file

ROWS_AT_ONCE = 1 << 16
IMAGES_AT_ONCE = 64
MAGIC = b"PAR1"

# What a line of text can't give back: line ends, NUL, a blank at the end, a byte order mark at the start, nothing.
_UNFIT = r"[\n\r\x00]|[ \t]$|^\x{FEFF}|^$"


class Chosen(NamedTuple):
    """The columns of a file: `field` is where in a column of structs the path or the bytes stand."""

    path: str
    label: str
    embedded: bool
    field: str | None


def list_parquet(
    paths: Sequence[Path], *, classes: Given = None, columns: Mapping[str, str | int] | None = None
) -> Listing:
    """The lines `path label` of some Parquet files, one after the other.

    Columns by their usual names, or by `columns`. Labels are whole numbers or names, or lists of them; Hugging Face's
    names of classes are taken. Raises MetaFileError for images that lie in the file (`data pack` is for those).
    """
    stamps = [stamp_of_file(path) for path in paths]
    files, chosen = _opened(paths, columns)
    labels = Labels(_names_of(files[0], chosen[0].label) if classes is None else classes)
    for path, file, found in zip(paths, files, chosen, strict=True):
        _gather(path, file, found.label, labels)
    known, _ = labels.numbered()
    rows = sum(file.metadata.num_rows for file in files)
    if rows == 0:
        raise MetaFileError(f"{paths[0]} has no rows")

    def text() -> Iterator[bytes]:
        for path, file, found, seen in zip(paths, files, chosen, stamps, strict=True):
            yield from _lines(path, file, found, labels)
            if stamp_of_file(path) != seen:
                raise ChangedError(f"{path} changed while it was read: is something still writing it?")

    told = f"Parquet, path from column {chosen[0].path!r}, label from {chosen[0].label!r}, {counted(rows, 'row')}, "
    return Listing(text, known, told + known.told, labels.several, stamps)


def count_rows(paths: Sequence[Path], *, columns: Mapping[str, str | int] | None = None) -> int:
    """The rows of some Parquet files, by their footers; raises what list_parquet says of files and columns."""
    return sum(int(file.metadata.num_rows) for file in _opened(paths, columns)[0])


class ParquetImages:
    """Images that lie in Parquet files, with their labels; what `pack` reads. Raises MetaFileError where they don't."""

    def __init__(
        self, paths: Sequence[Path], *, classes: Given = None, columns: Mapping[str, str | int] | None = None
    ) -> None:
        self.paths = [Path(path) for path in paths]
        self._stamps = [stamp_of_file(path) for path in self.paths]
        self._files = [_open(path) for path in self.paths]
        self._chosen = [_choose(path, file, columns) for path, file in zip(self.paths, self._files, strict=True)]
        if not all(found.embedded for found in self._chosen):
            raise MetaFileError(f"{self.paths[0]}: column {self._chosen[0].path!r} holds no images")
        self._labels = Labels(_names_of(self._files[0], self._chosen[0].label) if classes is None else classes)
        for path, file, found in zip(self.paths, self._files, self._chosen, strict=True):
            _gather(path, file, found.label, self._labels)
        self.classes = self._labels.numbered()[0].names
        self.n: int = sum(file.metadata.num_rows for file in self._files)

    @staticmethod
    def are_in(path: str | os.PathLike[str], columns: Mapping[str, str | int] | None = None) -> bool:
        """Whether a Parquet file holds images and not paths."""
        return _choose(Path(path), _open(Path(path)), columns).embedded

    @property
    def fingerprint(self) -> str:
        """32 hex digits over names, sizes and times of the files."""
        parts = [(path.name, *seen[1:]) for path, seen in zip(self.paths, self._stamps, strict=True)]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def images(self, first: int) -> Iterator[tuple[str, bytes | None, tuple[int, ...]]]:
        """(place, bytes or None, labels) of all rows from `first` on; row groups before it are not read."""
        done = 0
        for path, file, found, seen in zip(self.paths, self._files, self._chosen, self._stamps, strict=True):
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if done + count > first:
                    for row, data, parts in _images(path, file, found, group):
                        if done + row >= first:
                            numbers = self._labels.text(parts).split(b",")
                            yield f"{path}: row {done + row}", data, tuple(map(int, numbers))
                done += count
            if stamp_of_file(path) != seen:
                raise ChangedError(f"{path} changed while it was read: is something still writing it?")


def _images(path: Path, file: Any, found: Chosen, group: int) -> Iterator[tuple[int, bytes | None, Parts]]:
    row = 0
    for batch in _batches(path, file, [found.path, found.label], IMAGES_AT_ONCE, [group]):
        images = batch.column(found.path)
        if found.field is not None:
            images = images.field(found.field)
        for data, label in zip(images.to_pylist(), batch.column(found.label).to_pylist(), strict=True):
            yield row, data, _parts(label)
            row += 1


def _opened(paths: Sequence[Path], columns: Mapping[str, str | int] | None) -> tuple[list[Any], list[Chosen]]:
    files = [_open(path) for path in paths]
    chosen = [_choose(path, file, columns) for path, file in zip(paths, files, strict=True)]
    for path, found in zip(paths, chosen, strict=True):
        if found.embedded:
            raise MetaFileError(
                f"{path}: column {found.path!r} holds images, not paths: 'data pack {path} --out FOLDER' makes tar "
                'shards of them (columns={"path": …} names another column)'
            )
    return files, chosen


def _arrow() -> Any:
    """pyarrow, with its parts `compute` and `parquet` loaded."""
    try:
        importlib.import_module("pyarrow.compute")
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError:
        raise OptionError("Parquet needs pyarrow: pip install 'rankrun[parquet]', or pip install pyarrow") from None


def _open(path: Path) -> Any:
    with open(open_regular(path), "rb") as file:
        if file.read(4) != MAGIC:
            raise MetaFileError(f"{path} is no Parquet file: it doesn't begin with {MAGIC.decode()}")
    arrow = _arrow()
    try:
        return arrow.parquet.ParquetFile(path, pre_buffer=False)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> MetaFileError:
    return MetaFileError(f"{path} can't be read as Parquet: {(str(error).splitlines() or ['?'])[0][:200]}")


def _batches(path: Path, file: Any, columns: list[str], rows: int, groups: list[int] | None = None) -> Iterator[Any]:
    try:
        yield from file.iter_batches(rows, row_groups=groups, columns=columns, use_threads=False)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _choose(path: Path, file: Any, columns: Mapping[str, str | int] | None) -> Chosen:
    """The columns of paths or images, and of labels."""
    types = _arrow().types
    schema = file.schema_arrow
    wanted = dict(columns or {})
    if strange := wanted.keys() - {"path", "label", "labels"}:
        raise OptionError(f"columns: {sorted(strange)[0]!r} means nothing for Parquet; legal are path and label")
    label = _column(path, schema, wanted.get("label", wanted.get("labels")), LABELS, "label")
    given = wanted.get("path")
    pictures = [name for name in schema.names if _holds_bytes(types, schema.field(name).type)] if given is None else []
    usual = [name for name in pictures if name.lower() in PATHS]
    column = usual[0] if usual else _column(path, schema, given, PATHS, "path")
    kind = schema.field(column).type
    if not types.is_struct(kind):
        if types.is_dictionary(kind):
            kind = kind.value_type
        embedded = types.is_binary(kind) or types.is_large_binary(kind)
        if not embedded and not (types.is_string(kind) or types.is_large_string(kind)):
            raise MetaFileError(f"{path}: column {column!r} holds {kind}; a path is text")
        return Chosen(column, label, embedded, None)
    fields = {kind.field(place).name for place in range(kind.num_fields)}
    if "bytes" in fields:
        first = next(_batches(path, file, [column], 1), None)
        if first is not None and first.column(column).field("bytes")[0].is_valid:
            return Chosen(column, label, True, "bytes")
    if "path" not in fields:
        raise MetaFileError(f"{path}: column {column!r} holds neither paths nor images but {kind}")
    return Chosen(column, label, False, "path")


def _holds_bytes(types: Any, kind: Any) -> bool:
    """Whether a column may hold images: bytes, or Hugging Face's struct of bytes and path."""
    if types.is_struct(kind):
        return any(kind.field(place).name == "bytes" for place in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _column(path: Path, schema: Any, given: str | int | None, usual: Sequence[str], what: str) -> str:
    names: list[str] = schema.names
    told = f"it has {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
    if isinstance(given, int) and not 0 <= given < len(names):
        raise OptionError(f"{path}: there is no column {given} for {what}, counted from 0: {told}")
    if isinstance(given, int):
        return names[given]
    if given is not None:
        if given not in names:
            raise OptionError(f"{path}: there is no column {given!r} for {what}: {told}")
        return given
    lower = {name.lower(): name for name in reversed(names)}
    for name in usual:
        if name in lower:
            return lower[name]
    raise MetaFileError(f'{path}: which column is the {what}? {told}: name it, columns={{"{what}": …}} (data.columns)')


def _names_of(file: Any, label: str) -> Classes | None:
    """The names of the classes that Hugging Face's writer left beside a column of numbers."""
    try:
        features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        feature = features[label]
        names = feature.get("names") or feature["feature"]["names"]
        if all(isinstance(name, str) for name in names) and len(set(names)) == len(names) > 0:
            # numbers are what stands in the column, whatever the classes are called
            return Classes(names, by_number=True)
    except (TypeError, KeyError, ValueError, AttributeError):
        pass
    return None


def _parts(label: Any) -> Parts:
    return tuple(map(str, label)) if isinstance(label, list) else (str(label),)


def _gather(path: Path, file: Any, column: str, labels: Labels) -> None:
    """Makes all labels of a file known; refuses rows without one."""
    arrow = _arrow()
    compute, types, kind = arrow.compute, arrow.types, file.schema_arrow.field(column).type
    several = types.is_list(kind) or types.is_large_list(kind)
    inner = kind.value_type if several or types.is_dictionary(kind) else kind
    if not (types.is_integer(inner) or types.is_string(inner) or types.is_large_string(inner)):
        raise MetaFileError(
            f"{path}: column {column!r} holds {kind}; a label is a whole number, a name, or a list of them"
        )
    done = 0
    for batch in _batches(path, file, [column], ROWS_AT_ONCE):
        found = batch.column(column)
        if found.null_count:
            row = done + int(compute.index(compute.is_null(found), True).as_py())
            raise RowError(f"{path}: row {row} has no label in column {column!r}")
        for label in found.to_pylist() if several else compute.unique(found).to_pylist():
            if several and (not label or None in label):
                raise RowError(f"{path}: a row has no label in column {column!r}, or an empty one among several")
            labels.code(_parts(label), f"{path}: column {column!r}")
        done += len(batch)


def _lines(path: Path, file: Any, found: Chosen, labels: Labels) -> Iterator[bytes]:
    arrow = _arrow()
    compute = arrow.compute
    done = 0
    for batch in _batches(path, file, [found.path, found.label], ROWS_AT_ONCE):
        names = batch.column(found.path)
        if found.field is not None:
            if "bytes" in [field.name for field in names.type] and names.field("bytes").null_count < len(names):
                raise MetaFileError(f"{path}: column {found.path!r} holds images in some rows and paths in others")
            names = names.field(found.field)
        names = names.cast(arrow.large_string())
        unfit = compute.fill_null(compute.match_substring_regex(names, _UNFIT), True)
        if (row := int(compute.index(unfit, True).as_py())) >= 0:
            shown = names[row].as_py()
            raise RowError(f"{path}: row {done + row} has the path {shown!r}, which can't stand in a line of text")
        texts = [labels.text(_parts(label)) for label in batch.column(found.label).to_pylist()]
        rows = zip(names.cast(arrow.large_binary()).to_pylist(), texts, strict=True)
        yield b"".join(b"%b %b\n" % row for row in rows)
        done += len(batch)
