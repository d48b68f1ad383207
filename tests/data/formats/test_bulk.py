"""Bulk and single reading agree: what is passed in bulk is good, and has the label that the slow way finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats.bulk import (
    PIECE,
    Rows,
    find_spans,
    good_paths,
    hash_names,
    name_table,
    pieces,
    read_digits,
    read_numbers,
)
from data.formats.classes import Classes
from data.formats.format import Format
from data.formats.rows import parse_line

FORMATS = {
    "lines": Format(),
    "several": Format(separator=","),
    "names": Format(named=True),
    "csv": Format(name="csv", delimiter=",", fields=2),
    "csv of four": Format(name="csv", delimiter=",", fields=4, path=2, label=1),
    "csv several": Format(name="csv", delimiter=",", fields=2, separator="|"),
    "csv names": Format(name="csv", delimiter=",", fields=2, named=True),
    "frames csv": Format(name="csv", delimiter=",", fields=3, path=0, frames=1, label=2),
    "tsv": Format(name="tsv", delimiter="\t", fields=2),
    "frames": Format(name="frames", frames=1, label=2, fields=3),
}
SIGNS = 'ab .\t,|/"019\0é\ud7ff'
GOOD = {
    "lines": "a/b c.png 12345",
    "several": "a.png 3,7,1234",
    "names": "a.png cat",
    "csv": "a b.png,3",
    "csv of four": "x,3,a.png,y",
    "csv several": "a.png,3|12",
    "csv names": "a.png,a dog that barks",
    "frames csv": "v,9,3",
    "tsv": "a b.png\t3",
    "frames": "v/1 164 80",
}


NAMES = Classes(["cat", "a dog that barks", "b", "é"])


def laid_out(lines: Sequence[str | bytes], lead: bytes = b"") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Text, starts, stops, with something before every row that belongs to none."""
    text, starts, stops = b"", [], []
    for line in lines:
        text += lead
        starts.append(len(text))
        text += line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
        stops.append(len(text))
        text += b"\n"
    return np.frombuffer(text, np.uint8), np.array(starts, np.int64), np.array(stops, np.int64)


def check(format: Format, lines: Sequence[str | bytes], lead: bytes) -> list[bool]:
    text, starts, stops = laid_out(lines, lead)
    seen: list[bool] = []
    for first, rows in pieces(text, starts, stops):
        spans = find_spans(rows, format)
        assert spans is not None
        for confined in (True, False):
            good = good_paths(rows, spans, confined)
            numbers, largest = read_numbers(rows, spans, format.separator)
            if format.named:
                hashes = hash_names(rows, spans.label_starts, spans.label_stops)
                numbers = (hashes != 0) & np.isin(hashes, name_table(NAMES)[0])
            for index in np.flatnonzero(good & numbers).tolist():
                raw = text[starts[first + index] : stops[first + index]].tobytes()
                assert rows.line(index) == raw
                record = parse_line(raw, format, NAMES if format.named else None, not confined, True, lambda: "here")
                begin, end = int(spans.path_starts[index]), int(spans.path_stops[index])
                assert rows.text[begin:end].tobytes().decode() == record.path
                if not format.named:
                    assert max(record.labels or ()) == largest[index]
            if confined:
                seen += (good & numbers).tolist()
    return seen


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.text(SIGNS, max_size=14) | st.binary(max_size=6).filter(lambda b: b"\n" not in b), min_size=1, max_size=6
    ),
    st.sampled_from([b"", b"\n", b"junk, 7\x00\xc3\n", b"a" * 400 + b" 9\n"]),
)
def test_bulk_is_never_wrong(kind: str, lines: list[str | bytes], lead: bytes) -> None:
    check(FORMATS[kind], [*lines, GOOD[kind]], lead)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("lead", [b"", b"junk\n", b"x" * 4096 + b"\n"])
def test_plain_rows_are_seen_as_such(kind: str, lead: bytes) -> None:
    assert all(check(FORMATS[kind], [GOOD[kind], "k\u00fc" + GOOD[kind], GOOD[kind]], lead))


def test_more_rows_than_a_piece() -> None:
    assert check(FORMATS["csv"], [f"a{i}.png,{i}" if i != PIECE + 7 else "a" for i in range(PIECE + 9)], b"") == [
        i != PIECE + 7 for i in range(PIECE + 9)
    ]


def test_doubtful_rows_are_left_to_the_slow_way() -> None:
    lines = ["../a 1", "/a 1", "a\0 1", "a..b 1", b"a\xff 1", " 1", "a  1", "a 123456789", "a -1", "a", "", "a 1"]
    assert check(Format(), lines, b"") == [False] * 11 + [True]
    outside = check_outside(["../a 1", "/a 1", "a\0 1", "a 1"])
    assert outside == [True, True, False, True]
    quoted = ['"a,b",1', "a,b,1", ",1", " a,1", "a ,1", "a.png,", "a,1 ", "a,1"]
    assert check(FORMATS["csv"], quoted, b"") == [False] * 7 + [True]
    assert check(FORMATS["frames"], ["v 0 1", "v x 1", "my v 9 1", "v\t9 1", "v 9 1"], b"") == [False] * 4 + [True]
    assert (
        check(FORMATS["several"], ["a 1,", "a ,1", "a 1,,2", "a 1,x", "a,2 1", "a 1"], b"") == [False] * 4 + [True] * 2
    )


def check_outside(lines: list[str]) -> list[bool]:
    ((_, rows),) = pieces(*laid_out(lines))
    spans = find_spans(rows, Format())
    assert spans is not None
    found: list[bool] = good_paths(rows, spans, False).tolist()
    return found


def test_many_broken_rows() -> None:
    """More rows than are worth looking for are not UTF-8: the rest is left to the slow way."""
    lines = [b"a\xff 1" if i % 2 else b"a 1" for i in range(300)]
    found = check(Format(), lines, b"")
    assert found[:100] == [True, False] * 50
    assert not any(found[1::2])


def test_digits() -> None:
    words = ["0", "7", "12345678", "00000012", "123456789", "", "1a", "a1", ":", "/", "99999999"]
    ((_, rows),) = pieces(*laid_out(words))
    expected = [0, 7, 12345678, 12, -1, -1, -1, -1, -1, -1, 99999999]
    assert read_digits(rows, rows.starts, rows.stops).tolist() == expected


def test_hashes_of_names() -> None:
    names = [f"{'x' * (k % 63)}{k}" for k in range(400)] + ["a", "b", "aa", "a" * 8, "a" * 9, "a" * 16, "a" * 64]
    names = [name for name in dict.fromkeys(names) if len(name) <= 64]
    ((_, rows),) = pieces(*laid_out([*names, "", "a" * 65]))
    *hashes, empty, long = hash_names(rows, rows.starts, rows.stops).tolist()
    assert (empty, long) == (0, 0)
    assert len(set(hashes)) == len(names)
    table, labels = name_table(Classes(names))
    known = dict(zip(table.tolist(), labels.tolist(), strict=True))
    assert [known[value] for value in hashes] == list(range(len(names)))
    # the same names elsewhere in a text, with other bytes around them
    ((_, again),) = pieces(*laid_out(names, b"zzzzzzzzzzz,"))
    assert hash_names(again, again.starts, again.stops).tolist() == hashes


def test_some_formats_are_only_parsed() -> None:
    ((_, rows),) = pieces(*laid_out(["a 1"]))
    for format in (
        Format(name="jsonl", path="a", label="b"),
        Format(label=None),
        Format(name="csv", delimiter=",", fields=3, start=2),
        Format(name="csv", delimiter=",", fields=3, stop=2),
    ):
        assert find_spans(rows, format) is None


def test_rows_of_a_gather_are_taken_without_what_lies_between() -> None:
    text, starts, stops = laid_out(["a.png 1", "b.png 2"], b"y" * 5000 + b"\n")
    ((first, rows),) = pieces(text, starts, stops)
    assert (first, rows.text.tobytes()) == (0, b"a.png 1\nb.png 2")
    assert isinstance(rows, Rows)
