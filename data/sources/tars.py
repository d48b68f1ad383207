"""Tar files read in place: where every member's bytes lie, and the samples that WebDataset's conventions make of them.

Nothing is ever unpacked. Headers are read here and not by `tarfile`, which ends in silence at a damaged header and
keeps an object for every member; formats: v7, ustar, GNU and pax, without sparse members.

A sample is what neighbours share: the name up to the first dot of its last part. Of it one member is the image
(`.jpg`; of several the one whose name has no second dot) and one the label: `.cls`, else `.json` with a usual key,
else `.txt` of one word.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import ChangedError, MetaFileError, OutsideRootError, RowError, counted
from ..formats.classes import Given
from ..formats.format import IMAGES
from ..index.opening import open_regular, refuse_packed
from .listing import Labels, Listing, Parts, fits_a_line, stamp_of_file

BLOCK = 512
WINDOW_BYTES = 8192
LARGEST_NOTE = 1 << 20  # a long name, a pax header, a label: nobody's is larger
LABEL_KEYS = ("label", "labels", "cls", "class", "class_id", "label_id", "class_name", "target", "category")
ROWS_AT_ONCE = 1 << 14

_LINKS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


class Member(NamedTuple):
    """A regular file in a tar: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


class Sample(NamedTuple):
    """One image of a tar and its labels as they stand there."""

    key: str
    image: Member
    labels: Parts


def members(path: str | os.PathLike[str]) -> Iterator[Member]:
    """The regular files of a tar in their order; their spans lie in the file and never overlap.

    Raises MetaFileError at damage (a truncated or overwritten tar, one without its end mark) and at what a data set
    has no use for (links, devices, pipes, sparse members), OutsideRootError at a name that climbs out.
    """
    with open(open_regular(Path(path)), "rb", buffering=0) as file:
        yield from _Reader(path, file.fileno()).members()


def samples(path: str | os.PathLike[str], passed: Counter[str]) -> Iterator[Sample]:
    """The samples of a tar by WebDataset's conventions, in their order; raises as `members` and RowError.

    `passed` counts what was passed over: members of other kinds, and keys without an image.
    """
    with open(open_regular(Path(path)), "rb", buffering=0) as file:
        reader = _Reader(path, file.fileno())
        group: dict[str, Member] = {}
        last = ""
        for member in reader.members():
            folder, slash, base = member.name.rpartition("/")
            stem, dot, extension = base.partition(".")
            if not stem or not dot or (not slash and base.startswith("__") and base.endswith("__")):
                passed["name without a key"] += 1
                continue
            key = folder + slash + stem
            if key != last and group:
                yield from _sample(reader, last, group, passed)
                group = {}
            last = key
            if (extension := extension.lower()) in group:
                raise RowError(f"{path}: {member.name!r} stands there twice in one sample")
            group[extension] = member
        if group:
            yield from _sample(reader, last, group, passed)


def list_tars(paths: Sequence[Path], *, classes: Given = None) -> Listing:
    """The lines `name.tar@offset:length label` of all samples of some tars, one after the other."""
    labels = Labels(classes)
    passed: Counter[str] = Counter()
    folder = paths[0].parent if len({path.parent for path in paths}) == 1 else None
    common = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    tables: list[tuple[str, array[int]]] = []
    stamps = []
    for path in paths:
        name = path.name if folder is not None else os.path.relpath(os.path.abspath(path), common)
        if not fits_a_line(name):
            raise MetaFileError(f"the file name {os.fsencode(name)!r} can't stand in a meta file: rename it")
        seen = stamp_of_file(path)
        table = array("q")  # offset, length, code of the labels: 24 bytes per sample until all labels are known
        for sample in samples(path, passed):
            code = labels.code(sample.labels, f"{path}: {sample.key!r}")
            table.extend((sample.image.offset, sample.image.size, code))
        if stamp_of_file(path) != seen:
            raise ChangedError(f"{path} changed while it was read: is something still writing it?")
        stamps.append(seen)
        tables.append((name, table))
    count = sum(len(table) // 3 for _, table in tables)
    if not count:
        told = ", ".join(f"{number} x {what}" for what, number in passed.most_common(5)) or "it is empty"
        raise MetaFileError(
            f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: no image with a label ({told}); a "
            "sample is an image and a .cls, .json or .txt with the same name"
        )
    known, texts = labels.numbered()

    def text() -> Iterator[bytes]:
        for name, table in tables:
            prefix = f"{name}@".encode()
            for at in range(0, len(table), 3 * ROWS_AT_ONCE):
                part = table[at : at + 3 * ROWS_AT_ONCE]
                rows = zip(part[::3], part[1::3], part[2::3], strict=True)
                yield b"".join(b"%b%d:%d %b\n" % (prefix, offset, length, texts[code]) for offset, length, code in rows)

    told = f"{counted(len(paths), 'tar')}, an image and a label by name, {counted(count, 'row')}, {known.told}"
    if passed:
        told += "; passed over: " + ", ".join(f"{number} x {what}" for what, number in passed.most_common(5))
    return Listing(text, known, told, labels.several, stamps)


def read_span(path: str | os.PathLike[str], offset: int, length: int) -> bytes:
    """`length` bytes of a regular file from `offset` on; raises OSError, or ValueError where the file ends before."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        parts: list[bytes] = []
        left = length
        while left > 0 and (part := os.pread(fd, left, offset + length - left)):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(fd)
    if left:
        raise ValueError(f"the span {offset}:{length} goes {left} bytes past the end of the file")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _sample(reader: _Reader, key: str, group: dict[str, Member], passed: Counter[str]) -> Iterator[Sample]:
    """The one sample of a group of members with one key, or none where it has no image."""
    images = [extension for extension in group if f".{extension.rpartition('.')[2]}" in IMAGES]
    if not images:
        passed["key without an image"] += 1
        return
    plain = [extension for extension in images if "." not in extension]
    if len(images) > 1 and len(plain) != 1:
        raise RowError(
            f"{reader.path}: {key!r} has {len(images)} images ({', '.join(images[:4])}): a key ends at the first dot "
            "of a file's name, and one image per key is read"
        )
    chosen = plain[0] if plain else images[0]
    prefix = chosen.rpartition(".")[0]
    for kind in ("cls", "json", "txt"):
        # beside left.jpg stands left.cls, or else cls
        extension = f"{prefix}.{kind}" if prefix and f"{prefix}.{kind}" in group else kind
        if extension in group and (labels := _labels(reader, key, kind, group[extension])) is not None:
            break
    else:
        have = ", ".join(f".{extension}" for extension in group)
        raise RowError(
            f"{reader.path}: {key!r} has no label: beside the image stands a .cls, a .json with "
            f"{' or '.join(LABEL_KEYS[:3])}, or a .txt of one word (there are {have}; files of one key are neighbours)"
        )
    for other in group:
        if other not in (chosen, extension):
            passed[f".{other}" if len(passed) < 100 and other.isprintable() else "other file"] += 1
    yield Sample(key, group[chosen], labels)


def _labels(reader: _Reader, key: str, kind: str, member: Member) -> Parts | None:
    """What a label file says; None for a .json without a usual key."""
    at = f"{reader.path}: {member.name!r}"
    if member.size > LARGEST_NOTE:
        raise RowError(f"{at} of {member.size} bytes is no label")
    try:
        text = reader.read(member.offset, member.size).decode("utf-8-sig").strip(" \t\r\n\0")
    except UnicodeDecodeError:
        raise RowError(f"{at} is no UTF-8 text, so no label") from None
    if kind == "json":
        return _json_labels(at, text)
    if kind == "txt" and len(text.split()) > 1:
        raise RowError(f"{at} is a text of several words, no label: a label is one word, or stands in a .cls or .json")
    parts = tuple(part.strip() for part in text.split(","))
    return parts if len(parts) > 1 and all(part.isdigit() for part in parts) else (text,)


def _json_labels(at: str, text: str) -> Parts | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise RowError(f"{at} is no JSON") from None
    if isinstance(found, dict):
        usual = [key for key in LABEL_KEYS if key in found]
        if not usual:
            return None
        found = found[usual[0]]
    parts = found if isinstance(found, list) else [found]
    if not parts or not all(isinstance(part, str | int) and not isinstance(part, bool) for part in parts):
        raise RowError(f"{at}: {str(found)[:40]!r} is no label: a whole number, a name, or a list of them is")
    return tuple(str(part).strip() for part in parts)


class _Reader:
    """The headers of one open tar."""

    def __init__(self, path: str | os.PathLike[str], fd: int) -> None:
        self.path = path
        self.fd = fd
        self.size = os.fstat(fd).st_size
        self._window, self._from = b"", 0
        refuse_packed(Path(path), self.read(0, min(16, self.size)))

    def read(self, at: int, count: int) -> bytes:
        """Bytes of the file, fewer only at its end. A small label and the headers around it cost one read."""
        begin = at - self._from
        if begin < 0 or begin + count > len(self._window):
            try:
                self._window, self._from = os.pread(self.fd, max(count, WINDOW_BYTES), at), at
            except OSError as error:
                raise MetaFileError(f"{self.path}: {error.strerror} at byte {at}") from None
            begin = 0
        return self._window[begin : begin + count]

    def members(self) -> Iterator[Member]:
        at = 0
        name: str | None = None  # of the next member, from a long name or pax header before it
        size: int | None = None
        while True:
            header = self.read(at, BLOCK)
            if not header and at >= self.size:
                raise MetaFileError(
                    f"{self.path} ends after {self.size} bytes without a tar's end mark: was it cut off? If it is "
                    f"whole, 'truncate -s +1024 {self.path}' adds the mark"
                )
            if header[:1] == b"\0" and header.count(0) == BLOCK:
                return self._check_end(at)
            kind, own_name, own_size = self._parse(header, at)
            body, taken = at + BLOCK, own_size if size is None else size
            if kind in _LINKS or kind == b"5":  # these have no bytes, whatever some writers put into their size
                taken = 0
            told = name if name is not None else own_name
            if body + taken > self.size:
                raise MetaFileError(
                    f"{self.path}: member {_short(told)} at byte {at} has {taken} bytes, but the file ends before: it "
                    "is truncated, or the header is wrong"
                )
            at = body + -(-taken // BLOCK) * BLOCK
            if kind in (b"L", b"K", b"x", b"X", b"g"):
                note = self._note(kind, own_name, body, own_size)
                if kind == b"L":
                    name = self._text(note.split(b"\0")[0])
                elif kind in (b"x", b"X"):
                    name, size = self._pax(note, name, body)
                continue
            name = size = None
            if kind in _LINKS:
                raise MetaFileError(
                    f"{self.path}: member {_short(told)} is {_LINKS[kind]}: only files are read (tar --dereference "
                    "--hard-dereference packs what links point to)"
                )
            if kind not in (b"0", b"\0", b"7", b"5", b"V"):
                what = "is sparse" if kind == b"S" else f"has the unknown type {kind!r}"
                raise MetaFileError(f"{self.path}: member {_short(told)} {what}: pack plain files")
            if told.startswith("/") or (".." in told and ".." in told.split("/")):
                raise OutsideRootError(f"{self.path}: member {_short(told)} climbs out of the tar: names are relative")
            if kind not in (b"5", b"V") and not (kind == b"\0" and told.endswith("/")):
                yield Member(told.removeprefix("./"), body, taken)

    def _parse(self, header: bytes, at: int) -> tuple[bytes, str, int]:
        """(type, name, size) of a header block whose checksum is right."""
        claimed = _number(header[148:156])
        rest = header[:148] + header[156:]
        total = 256 + sum(rest)
        # old tars summed signed characters
        if len(header) < BLOCK or (claimed != total and claimed != total - 256 * sum(byte > 127 for byte in rest)):
            where = (
                "it is no tar" if at == 0 else f"at byte {at} stands no header: it is damaged, or one lied about size"
            )
            raise MetaFileError(f"{self.path}: {where}")
        size = _number(header[124:136])
        if size is None or size < 0:
            raise MetaFileError(f"{self.path}: the header at byte {at} has no legal size")
        name = header[:100].split(b"\0")[0]
        if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0")[0]):
            name = prefix + b"/" + name
        kind = header[156:157]
        return kind, self._text(name), size

    def _note(self, kind: bytes, name: str, at: int, size: int) -> bytes:
        if size > LARGEST_NOTE:
            raise MetaFileError(f"{self.path}: a header of {size} bytes at byte {at}: the tar is damaged")
        return self.read(at, size)

    def _pax(self, note: bytes, name: str | None, at: int) -> tuple[str | None, int | None]:
        """(name, size) that a pax header gives the next member: records `length key=value\\n`."""
        size: int | None = None
        begin, stop = 0, len(note.rstrip(b"\0"))
        while begin < stop:
            blank = note.find(b" ", begin, begin + 9)
            digits = note[begin:blank]
            end = begin + int(digits) if blank > 0 and digits.isdigit() else 0
            key, equals, value = note[blank + 1 : end - 1].partition(b"=")
            if not (blank < end <= stop and equals and note[end - 1 : end] == b"\n"):
                raise MetaFileError(f"{self.path}: the pax header at byte {at} is damaged")
            begin = end
            if key.startswith(b"GNU.sparse"):
                raise MetaFileError(f"{self.path}: a member at byte {at} is sparse: pack plain files")
            if key == b"path":
                name = self._text(value)
            elif key == b"size":
                if not value.isdigit() or len(value) > 18:
                    raise MetaFileError(f"{self.path}: the pax header at byte {at} has no legal size")
                size = int(value)
        return name, size

    def _text(self, name: bytes) -> str:
        # a name is only a key, and is shown
        return name.decode("utf-8", "surrogateescape")

    def _check_end(self, at: int) -> None:
        """Bytes behind the end mark would be rows that nobody sees."""
        if self.read(at + BLOCK, min(LARGEST_NOTE, self.size - at)).strip(b"\0"):
            raise MetaFileError(
                f"{self.path}: more bytes follow a tar's end mark at byte {at}: were tars joined by 'cat'? "
                "'tar --concatenate' joins them"
            )


def _number(text: bytes) -> int | None:
    """A number of a header: octal digits, or GNU's base 256 (a first byte of 0xff: below 0)."""
    if text[:1] == b"\xff":
        return -1
    if text[:1] >= b"\x80":
        return int.from_bytes(bytes([text[0] & 0x7F]) + text[1:], "big")
    digits = text.strip(b" \0")
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        return None if digits else 0
    return int(digits, 8)


def _short(name: str) -> str:
    shown = ascii(name) if any("\udc80" <= letter <= "\udcff" for letter in name) else repr(name)
    return shown if len(shown) <= 80 else shown[:77] + "…'"
