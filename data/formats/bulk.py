"""Many lines at a time: where their fields are and which labels they have, at numpy's speed.

A row is *plain* where this finds it surely good; every other row is parsed by itself, and may well be good too. The
last 8 bytes of a field are handled as one 64-bit word, so that a label of up to 8 digits costs no loop (25 ns for a
row of 35 bytes).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..keys import MULTIPLY_1, MULTIPLY_2
from .classes import Classes
from .format import Format

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

PIECE = 1 << 13  # rows at a time: what is computed of them stays in the second-level cache
LONGEST_NAME = 64  # longer labels are looked at one by one


def _each(byte: int) -> np.uint64:
    return np.uint64(byte * 0x0101010101010101)


# neighbouring digits become numbers below 100, those below 10^4, those below 10^8
_PAIRS = [
    (np.uint64(8), np.uint64(10), np.uint64(0x00FF00FF00FF00FF)),
    (np.uint64(16), np.uint64(100), np.uint64(0x0000FFFF0000FFFF)),
    (np.uint64(32), np.uint64(10_000), np.uint64(0x00000000FFFFFFFF)),
]
_ONE, _ONES, _HIGH, _ZEROS = np.uint64(1), _each(0xFF), _each(0x80), _each(ord("0"))


class Rows:
    """Some rows: `text` behind 8 bytes that belong to none of them, and where in it each row starts and stops."""

    def __init__(self, padded: Bytes, starts: Places, stops: Places) -> None:
        self.text = padded[8:]
        self.starts = starts
        self.stops = stops
        # word k of this view is the 8 bytes before place k
        self._ending = np.ndarray((padded.size - 7,), "<u8", padded.data, 0, (1,))

    @cached_property
    def whole(self) -> bytes:
        """A copy of the text. Slow to make: what can be asked of numpy is not asked of this."""
        return self.text.tobytes()

    def line(self, index: int) -> bytes:
        """One row."""
        return self.text[self.starts[index] : self.stops[index]].tobytes()

    def words(self, stops: Places) -> Words:
        """The 8 bytes before each place as one number, the last byte lowest; what isn't the row's is anything."""
        return self._ending[stops].byteswap()

    def signs(self, *signs: str) -> Places:
        """Where in the text one of these signs is."""
        found = self.text == ord(signs[0])
        for sign in signs[1:]:
            found |= self.text == ord(sign)
        return np.flatnonzero(found)

    def has(self, sign: str) -> bool:
        """Whether a sign is anywhere in the text."""
        return bool((self.text == ord(sign)).any())

    def holding(self, places: Places) -> Flags:
        """Which rows hold one of these places, given in ascending order."""
        return np.searchsorted(places, self.stops) > np.searchsorted(places, self.starts)


def pieces(text: Bytes, starts: Places, stops: Places) -> Iterator[tuple[int, Rows]]:
    """The rows in pieces that suit the cache, each with the index of its first row.

    Where most of the text lies between the rows it is left out.
    """
    for at in range(0, stops.size, PIECE):
        begin, end = starts[at : at + PIECE], stops[at : at + PIECE]
        base = int(begin[0])
        last = int(end[-1])
        padded = text[base - 8 : last] if base >= 8 else _padded(text[base:last])
        rows = Rows(padded, begin - base, end - base)
        if 4 * int((end - begin).sum()) < rows.text.size:
            lines = [rows.line(index) for index in range(begin.size)]
            end = np.cumsum([len(line) + 1 for line in lines], dtype=np.int64) - 1
            begin = np.concatenate((np.zeros(1, np.int64), end[:-1] + 1))
            rows = Rows(_padded(np.frombuffer(b"\n".join(lines), np.uint8)), begin, end)
        yield at, rows


def _padded(text: Bytes) -> Bytes:
    return np.concatenate((np.zeros(8, np.uint8), text))


class Spans(NamedTuple):
    """Where the path and the label of each row are, and whether the row has the shape of its format."""

    plain: Flags
    path_starts: Places
    path_stops: Places
    label_starts: Places
    label_stops: Places


def find_spans(rows: Rows, format: Format) -> Spans | None:
    """The fields of all rows; None for a format whose rows are only parsed one by one."""
    if format.name == "jsonl" or format.start is not None or format.stop is not None or format.label is None:
        return None
    if format.name == "lines":
        return _last_words(rows, short=not format.named and format.separator is None)
    return _columns(rows, format)


def _last_words(rows: Rows, short: bool) -> Spans:
    """`path label`; with `short` only labels of up to 7 bytes are looked for, which is fast."""
    stops, starts = rows.stops, rows.starts
    if short:
        word = rows.words(stops)
        zero = _lowest_zero(word, ord(" ")) | _lowest_zero(word, ord("\t"))
        plain = zero != 0
        # the bits below the lowest mark, in whole bytes: the bytes after the last gap
        gaps = stops - (np.bitwise_count((zero & (~zero + _ONE)) - _ONE) >> 3) - 1
    else:
        places = rows.signs(" ", "\t")
        before = np.searchsorted(places, stops) - 1
        gaps = places[np.maximum(before, 0)] if places.size else np.zeros_like(stops)
        plain = before >= 0
    plain &= gaps > starts
    return Spans(plain, starts, np.where(plain, gaps, stops), np.where(plain, gaps + 1, stops), stops)


def _lowest_zero(word: Words, byte: int) -> Words:
    """The high bit of the lowest byte that equals `byte`, and maybe of bytes above it (Mycroft's test for zero)."""
    word = word ^ _each(byte)
    return (word - _each(1)) & ~word & _HIGH


def _columns(rows: Rows, format: Format) -> Spans:
    """Fields that are parted by one sign; rows with quotes, blanks at both ends or other counts are not plain."""
    assert isinstance(format.path, int)
    assert isinstance(format.label, int)
    count = format.fields - 1
    signs = rows.signs(format.delimiter)
    table = signs.reshape(-1, count) if count and signs.size == rows.stops.size * count else signs[:0].reshape(0, 1)
    if table.shape[0] and bool(((table[:, 0] >= rows.starts) & (table[:, -1] < rows.stops)).all()):
        plain = np.ones(rows.stops.size, np.bool_)
        first = np.arange(rows.stops.size) * count
    else:
        first = np.searchsorted(signs, rows.starts)
        plain = np.searchsorted(signs, rows.stops) - first == count
    signs = np.append(signs, np.zeros(count + 1, np.int64))  # a row that isn't plain may look beyond the end

    def field(column: int) -> tuple[Places, Places]:
        begin = rows.starts if column == 0 else signs[first + column - 1] + 1
        return begin, rows.stops if column == count else signs[first + column]

    path, label = field(format.path), field(format.label)
    if format.name == "frames":
        # blanks part the fields, and a path may hold more of them: only rows with exactly two are plain
        plain &= ~rows.holding(rows.signs("\t")) if rows.has("\t") else True
    elif rows.has('"'):
        plain &= ~rows.holding(rows.signs('"'))
    if isinstance(format.frames, int):
        frames = read_digits(rows, *(np.where(plain, place, 0) for place in field(format.frames)))
        plain &= frames > 0
    return Spans(plain, *(np.where(plain, place, 0) for place in (*path, *label)))


def good_paths(rows: Rows, spans: Spans, confined: bool) -> Flags:
    """Which rows have a path that is there, of whole characters and, if `confined`, surely below the root."""
    text, starts, stops = rows.text, spans.path_starts, spans.path_stops
    good = spans.plain & (stops > starts)
    first = text[np.minimum(starts, text.size - 1)]
    last = text[np.maximum(stops - 1, 0)]
    good &= (last != ord(" ")) & (last != ord("\t")) & (first != ord(" "))
    if confined:
        good &= first != ord("/")
        dots = text == ord(".")
        both = dots[:-1] & dots[1:]
        if both.any():
            good &= ~rows.holding(np.flatnonzero(both))
    if text.size and text.min() == 0:
        good &= ~rows.holding(np.flatnonzero(text == 0))
    if text.size and text.max() >= 128:
        good &= ~_broken(rows)
    return good


def _broken(rows: Rows) -> Flags:
    """Which rows are not UTF-8, or come after more such places than are worth looking for."""
    broken = np.zeros(rows.stops.size, np.bool_)
    at = 0
    for _ in range(64):
        try:
            rows.whole[at:].decode()
        except UnicodeDecodeError as error:
            place = at + error.start
            index = int(np.searchsorted(rows.stops, place, side="right"))
            if index < broken.size and rows.starts[index] <= place:
                broken[index] = True
            # the line's rest may follow from what is broken in it
            at = rows.whole.find(b"\n", place) + 1 or rows.text.size
        else:
            return broken
    broken[np.searchsorted(rows.stops, at) :] = True
    return broken


def read_digits(rows: Rows, starts: Places, stops: Places) -> Places:
    """The number that each span is if it is 1 to 8 digits, else -1."""
    length = stops - starts
    good = (length >= 1) & (length <= 8)
    digits = (rows.words(stops) ^ _ZEROS) & _lowest(length)
    good &= (((digits + _each(0x76)) | digits) & _HIGH) == 0  # no byte above 9
    for shift, weight, lane in _PAIRS:
        digits = (digits & lane) + weight * ((digits >> shift) & lane)
    return np.where(good, digits.view(np.int64), -1)


def _lowest(length: Places) -> Words:
    """Ones in the lowest 1 to 8 bytes."""
    # a shift by 64 would do nothing
    return _ONES >> (np.uint64(64) - (np.clip(length, 1, 8) << 3).view(np.uint64))


def hash_names(rows: Rows, starts: Places, stops: Places) -> Words:
    """A 64-bit hash of each span; 0 for an empty one and for one longer than LONGEST_NAME bytes."""
    length = stops - starts
    found = length.view(np.uint64) * np.uint64(MULTIPLY_2)
    for taken in range(0, min(LONGEST_NAME, int(length.max(initial=0))), 8):
        left = length - taken
        mixed = (found ^ (rows.words(np.maximum(stops - taken, 0)) & _lowest(left))) * np.uint64(MULTIPLY_1)
        found = np.where(left > 0, mixed ^ (mixed >> np.uint64(29)), found)
    return np.where((length >= 1) & (length <= LONGEST_NAME), found, np.uint64(0))


def name_table(classes: Classes) -> tuple[Words, Places]:
    """(the hashes of all class names in ascending order, the label of each)."""
    names = [name.encode("utf-8", "surrogatepass") for name in classes.names]
    stops = np.cumsum([len(name) for name in names])
    rows = Rows(_padded(np.frombuffer(b"".join(names), np.uint8)), stops[:0], stops[:0])
    hashes = hash_names(rows, np.concatenate((np.zeros(1, np.int64), stops[:-1])), stops)
    order = np.argsort(hashes)
    return hashes[order], order


def read_numbers(rows: Rows, spans: Spans, separator: str | None) -> tuple[Flags, Places]:
    """(which rows have labels that are all plain numbers, the largest of each row).

    A row with any label that isn't is not among them.
    """
    if separator is None:
        labels = read_digits(rows, spans.label_starts, spans.label_stops)
        return spans.plain & (labels >= 0), labels
    index = np.flatnonzero(spans.plain)
    starts, stops = spans.label_starts[index], spans.label_stops[index]
    signs = rows.signs(separator)
    owner = np.searchsorted(stops, signs)
    inside = owner < stops.size
    inside &= signs >= starts[np.minimum(owner, max(0, stops.size - 1))] if stops.size else False
    ends = np.sort(np.concatenate((signs[inside], stops)))
    owner = np.searchsorted(stops, ends)
    first = np.searchsorted(owner, np.arange(stops.size))
    begins = np.concatenate((np.zeros(1, np.int64), ends[:-1] + 1))
    begins[first] = starts
    numbers = read_digits(rows, begins, ends)
    plain, largest = np.zeros(rows.stops.size, np.bool_), np.zeros(rows.stops.size, np.int64)
    if index.size:
        plain[index] = np.minimum.reduceat(numbers, first) >= 0
        largest[index] = np.maximum.reduceat(numbers, first)
    return plain, largest
