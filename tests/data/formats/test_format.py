from __future__ import annotations

import pytest

from data.formats.format import FORMATS, Fields, Format, Malformed, Record, media_of, short, split_columns, split_span

CSV = Format(name="csv", delimiter=",", fields=2)
WIDE = Format(name="csv", delimiter=";", fields=4, path=2, label=0)
CLIPS = Format(name="csv", delimiter=",", fields=4, label=1, start=2, stop=3)
KINETICS = Format(name="csv", delimiter=",", fields=5, path=1, label=0, start=2, stop=3, trimmed=True)
FOLDERS = Format(name="frames", frames=1, label=2, fields=3)
JSON = Format(name="jsonl", path="file", label="cls", delimiter="", fields=0)

GOOD = [
    (Format(), "a b/c  d.png 1", Fields("a b/c  d.png", ["1"])),
    (Format(), " a\u00a0b.png\tcat  \r", Fields(" a\u00a0b.png", ["cat"])),
    (Format(), "a,b.png 1", Fields("a,b.png", ["1"])),
    (Format(separator=","), "a.png 3,7", Fields("a.png", ["3", "7"])),
    (Format(separator=","), "a.png 3", Fields("a.png", ["3"])),
    (Format(label=None), "my cat.png ", Fields("my cat.png", [""])),
    (FOLDERS, "v_1 164 80", Fields("v_1", ["80"], 164)),
    (FOLDERS, "my clips/v 1\t164 80", Fields("my clips/v 1", ["80"], 164)),
    (CSV, "a.png, 1", Fields("a.png", ["1"])),
    (CSV, '"a ""b"", c.png","x, y"', Fields('a "b", c.png', ["x, y"])),
    (CSV, 'a"b.png,1\r', Fields('a"b.png', ["1"])),
    (WIDE, "3;x;a,b.png;y", Fields("a,b.png", ["3"])),
    (CLIPS, "a.mp4,0,1.5,12", Fields("a.mp4", ["0"], None, 1.5, 12.0)),
    (CLIPS, "a.mp4,0,,2", Fields("a.mp4", ["0"], None, 0.0, 2.0)),
    (CLIPS, "a.mp4,0,1,", Fields("a.mp4", ["0"], None, 1.0, None)),
    (KINETICS, '"petting cat",-x_Yz,12,22,train', Fields("-x_Yz_000012_000022.mp4", ["petting cat"])),
    (JSON, '{"cls": "dog", "file": "a.png", "x": [1]}', Fields("a.png", ["dog"])),
    (JSON, ' {"file": "k\\u00fc.png", "cls": 3}', Fields("kü.png", ["3"])),
    (Format(name="jsonl", path="f", label="l", separator=","), '{"f": "a", "l": [1, "x"]}', Fields("a", ["1", "x"])),
    (Format(name="jsonl", path="f", label="l", separator=","), '{"f": "a", "l": 4}', Fields("a", ["4"])),
    (Format(name="jsonl", path="f", label="l", separator=","), '{"f": "a", "l": []}', Fields("a", [])),
    (Format(name="jsonl", path="f", label=None), '{"f": "a"}', Fields("a", [""])),
    (Format(name="jsonl", path="f", label="l", frames="n"), '{"f": "a", "l": 1, "n": 9}', Fields("a", ["1"], 9)),
    (Format(name="csv", delimiter=",", separator="|"), "a.png,cat| dog", Fields("a.png", ["cat", "dog"])),
    (Format(name="csv", delimiter=",", separator=" "), "a.png,3 7", Fields("a.png", ["3", "7"])),
    (Format(name="csv", delimiter=",", separator=" "), "a.png,", Fields("a.png", [])),
]


@pytest.mark.parametrize(("format", "line", "fields"), GOOD)
def test_good_lines(format: Format, line: str, fields: Fields) -> None:
    assert format.parse(line.encode()) == fields


BAD = [
    (Format(), b"", "is blank: every line is 'path label' .blank lines may stand at the end only"),
    (Format(), b"a.png", "^'a.png' has no label: a line is 'path label'$"),
    (Format(), b" 1", "'1' has no label"),
    (Format(), b"a\0.png 1", "holds a NUL byte: a meta file is UTF-8 text"),
    (Format(), b"a\xff.png 1", r"byte 2 \(0xff\) is not UTF-8: save the file as UTF-8"),
    (Format(), b"x" * 70_000 + b" 1", "a line of 70002 bytes, more than 65536: is this a meta file"),
    (Format(label=None), b"a cat", "'a cat' is no image's name, but the first line is: a list is of one kind"),
    (Format(separator=","), b"a.png 3,,7", "labels '3,,7': one of them is empty .they are parted by commas"),
    (FOLDERS, b"v 80", "'v 80' has no number of frames: a line is 'folder frames label'"),
    (FOLDERS, b"v x 80", "'x' is no number of frames"),
    (FOLDERS, b"v 0 80", "'0' is no number of frames"),
    (CSV, b"", "is blank: every line has 2 fields parted by commas"),
    (CSV, b"a.png", "has 1 field parted by commas, where 2 are wanted"),
    (CSV, b"a.png,1,2", "has 3 fields .*stands in double quotes"),
    (CSV, b",1", "has no path"),
    (CSV, b"a.png,", "has no label: its field is empty"),
    (CSV, b'"a.png,1', "a quoted field: it isn't closed on its line .one line is one row"),
    (CSV, b'"a"b.png,1', "a quoted field: .*a quote inside a field is doubled"),
    (CLIPS, b"a.mp4,0,00:01,2", "'00:01' is no time in seconds"),
    (CLIPS, b"a.mp4,0,2,2", "the span from 2 s to 2 s is empty"),
    (KINETICS, b"run,x,1.5,3,train", "'1.5' is no number of seconds"),
    (JSON, b"", "is blank: every line is an object on one line"),
    (JSON, b'{"file": ', "is no JSON object on one line: Expecting value"),
    (JSON, b"[" * 60_000, "is no JSON object on one line: "),
    (JSON, b'["a"]', 'is JSON, but no object: a line is as {"file": …}'),
    (JSON, b'{"cls": 1}', "key 'file' is the path and must hold text, not 'null'"),
    (JSON, b'{"file": 3, "cls": 1}', "must hold text, not '3'"),
    (JSON, b'{"file": "", "cls": 1}', "has no path"),
    (JSON, b'{"file": "a\\u0000", "cls": 1}', "or its label holds a character that can't stand in a meta file"),
    (JSON, b'{"file": "a\\nb", "cls": 1}', "or its label holds a character"),
    (JSON, b'{"file": "\\ud800", "cls": 1}', "or its label holds a character"),
    (JSON, b'{"file": "a"}', "^has no label: key 'cls' holds a whole number or the name of a class"),
    (JSON, b'{"file": "a", "cls": ""}', "has no label"),
    (JSON, b'{"file": "a", "cls": true}', "label 'true': key 'cls' holds a whole number"),
    (JSON, b'{"file": "a", "cls": 1.5}', "label '1.5': key"),
    (JSON, b'{"file": "a", "cls": "\\ud800"}', "path 'a' or its label holds a character"),
    (JSON, b'{"file": "a", "cls": [1]}', r"label '\[1\]' is a list, .*columns=\{labels: cls\}"),
]


@pytest.mark.parametrize(("format", "line", "told"), BAD)
def test_malformed_lines(format: Format, line: bytes, told: str) -> None:
    with pytest.raises(Malformed, match=told) as caught:
        format.parse(line)
    assert "\n" not in str(caught.value)


def test_spans_of_containers() -> None:
    assert split_span("d/s-01.tar@512:20480") == ("d/s-01.tar", 512, 20480)
    for path in (
        "cam@12:30",
        "a.tar",
        "a.tar@1",
        "a.tar@1:x",
        "a.tar@-1:2",
        "@1:2",
        "a.jpg@1:2",
        "a.tar@1:" + "9" * 19,
    ):
        assert split_span(path) == (path, None, None)
    assert Record("s.tar", 1, offset=512, length=9).written == "s.tar@512:9"
    assert Record("s.png", 1).written == "s.png"


def test_media() -> None:
    assert [media_of(path) for path in ("a.JPEG", "a.tar@1:2", "x/a.mp4", "a", "a.txt")] == [
        "image", "image", "video", None, None,
    ]  # fmt: skip


def test_small_things() -> None:
    assert short("x" * 100) == repr("x" * 57 + "…")
    assert split_columns(' a ,"b", c\r', ",") == ["a", "b", "c"]
    assert Format(separator=",").shape == "'path label,label…'"
    assert FORMATS == ("lines", "frames", "csv", "tsv", "jsonl")
