"""What people have, as their files begin, and how each is understood."""

from __future__ import annotations

from typing import Any

import pytest

from data.errors import DataError, MetaFileError, OptionError
from data.formats.sniff import sniff


def look(text: str, name: str = "m.txt", **options: Any) -> Any:
    return sniff(text.encode().split(b"\n"), name, **options)


KNOWN = {
    "imagenet": (
        "n01440764/n01440764_10026.JPEG 0\nn01443537/n01443537_2.JPEG 1\n", "train.txt",
        ("lines", "lines 'path label'"), ("n01440764/n01440764_10026.JPEG", ["0"]),
    ),
    "blanks in paths": ("my dog/1.jpg 0\nb.jpg 1", "m.txt", ("lines", "lines 'path label'"), ("my dog/1.jpg", ["0"])),
    "no endings": ("n01/n01_1 0\nn01/n01_2 1", "m.txt", ("lines", "lines 'path label'"), ("n01/n01_1", ["0"])),
    "by name": ("a.png cat\nb.png dog", "m.txt", ("lines", "lines 'path label', labels are names"), ("a.png", ["cat"])),
    "several": (
        "a.png 3\nb.png 3,7\n", "m.txt", ("lines", "lines 'path label,label…', several labels each"), ("a.png", ["3"]),
    ),
    "containers": (
        "s.tar@512:99 0\ns.tar@1536:99 4", "m.txt", ("lines", "lines 'path label'"), ("s.tar@512:99", ["0"]),
    ),
    "kinetics list": (
        "abseiling/x_000001_000011.mp4 0\nair drumming/y_000001_000011.mp4 1", "kinetics_train.csv",
        ("lines", "lines 'path label', videos"), ("abseiling/x_000001_000011.mp4", ["0"]),
    ),
    "kinetics official": (
        "label,youtube_id,time_start,time_end,split\ntesting,-abc,12,22,train\n\"a, b\",xyz,0,10,train", "train.csv",
        ("csv", "CSV with a header, path 'id_start_stop.mp4' from column 'youtube_id', label from 'label', "
                "start from 'time_start', stop from 'time_end', labels are names, videos; not used: 'split'"),
        ("-abc_000012_000022.mp4", ["testing"]),
    ),
    "tsn": ("v_Ski_g01_c01 164 80\nv_Ski_g01_c02 99 80", "split1.txt",
            ("frames", "frame folders 'folder frames label'"), ("v_Ski_g01_c01", ["80"])),
    "csv": ("a.jpg,0\nb c.jpg,1", "m.csv", ("csv", "CSV without a header, path from column 0, label from 1"),
            ("a.jpg", ["0"])),
    "csv named txt": ("my dog/a.jpg,0\nmy dog/b.jpg,1", "m.txt",
                      ("csv", "CSV without a header, path from column 0, label from 1"), ("my dog/a.jpg", ["0"])),
    "label first": ("0,a.jpg\n1,b.jpg", "m.csv", ("csv", "CSV without a header, path from column 1, label from 0"),
                    ("a.jpg", ["0"])),
    "semicolons": ("file;class\na.jpg;cat\nb.jpg;dog", "m.csv",
                   ("csv", "CSV (with semicolons) with a header, path from column 'file', label from 'class', "
                           "labels are names"), ("a.jpg", ["cat"])),
    "metadata.csv": ("file_name,text,label\na.png,\"a, b\",3", "metadata.csv",
                     ("csv", "CSV with a header, path from column 'file_name', label from 'label'; not used: 'text'"),
                     ("a.png", ["3"])),
    "kaggle": ("image_id,label\n1000015.jpg,0\n1000201.jpg,3", "train.csv",
               ("csv", "CSV with a header, path from column 'image_id', label from 'label'"), ("1000015.jpg", ["0"])),
    "kaggle ids": ("id,breed\n000bec,boston_bull\n001513,dingo", "labels.csv",
                   ("csv", "CSV with a header, path from column 'id', label from 'breed', labels are names"),
                   ("000bec", ["boston_bull"])),
    "planet": ("image_name,tags\ntrain_0,haze primary\ntrain_1,clear", "train.csv",
               ("csv", "CSV with a header, path from column 'image_name', label from 'tags', several labels each, "
                       "labels are names"), ("train_0", ["haze", "primary"])),
    "chest": ("Image,Finding,labels\na.png,x,Edema|Mass\nb.png,y,Mass", "m.csv",
              ("csv", "CSV with a header, path from column 'Image', label from 'labels', several labels each, "
                      "labels are names; not used: 'Finding'"), ("a.png", ["Edema", "Mass"])),
    "numbers in one field": ("path,label\na.png,3 7\nb.png,1", "m.csv",
                             ("csv", "CSV with a header, path from column 'path', label from 'label', "
                                     "several labels each"), ("a.png", ["3", "7"])),
    "which path": ("id,image,path,label\n7,x,a/x.png,2\n8,y,a/y.png,1", "m.csv",
                   ("csv", "CSV with a header, path from column 'path', label from 'label'; not used: 'id', 'image'"),
                   ("a/x.png", ["2"])),
    "odd header": ("bild,art\na.png,2\nb.png,1", "m.csv",
                   ("csv", "CSV with a header, path from column 'bild', label from 'art'"), ("a.png", ["2"])),
    "quoted": ('"path","label"\n"a, b.png","x"\n', "m.csv",
               ("csv", "CSV with a header, path from column 'path', label from 'label', labels are names"),
               ("a, b.png", ["x"])),
    "frames csv": ("path,num_frames,label\nclips/1,30,4", "m.csv",
                   ("csv", "CSV with a header, path from column 'path', label from 'label', frames from 'num_frames'"),
                   ("clips/1", ["4"])),
    "spans": ("video,start,end,label\na.mp4,1,2.5,4", "m.csv",
              ("csv", "CSV with a header, path from column 'video', label from 'label', start from 'start', "
                      "stop from 'end', videos"), ("a.mp4", ["4"])),
    "tsv": ("path\tlabel\na b.png\tgolden retriever", "m.tsv",
            ("tsv", "TSV with a header, path from column 'path', label from 'label', labels are names"),
            ("a b.png", ["golden retriever"])),
    "tabs": ("a.png\tgolden retriever\nb.png\tdog", "m.txt",
             ("tsv", "TSV without a header, path from column 0, label from 1, labels are names"),
             ("a.png", ["golden retriever"])),
    "jsonl": ('{"file_name": "a.png", "label": 3}\n', "metadata.jsonl",
              ("jsonl", "JSON lines, path from key 'file_name', label from 'label'"), ("a.png", ["3"])),
    "jsonl by content": ('{"bild": "a.png", "class": ["x", "y"]}\n', "m.txt",
                         ("jsonl", "JSON lines, path from key 'bild', label from 'class', several labels each, "
                                   "labels are names"), ("a.png", ["x", "y"])),
    "jsonl frames": ('{"frame_dir": "v1", "total_frames": 9, "label": 3}\n', "m.jsonl",
                     ("jsonl", "JSON lines, path from key 'frame_dir', label from 'label', frames from "
                               "'total_frames'"), ("v1", ["3"])),
    "jsonl spans": ('{"video": "a.mp4", "start": 0.5, "end": 2, "label": 3}\n', "m.jsonl",
                    ("jsonl", "JSON lines, path from key 'video', label from 'label', start from 'start', "
                              "stop from 'end', videos"), ("a.mp4", ["3"])),
    "bad lines among good": ("a.png 0\nb.png,1\nc.png 2", "m.txt", ("lines", "lines 'path label'"), ("a.png", ["0"])),
    "byte order mark": ("\ufeffpath,label\r\na.png,1\r\n", "m.csv",
                        ("csv", "CSV with a header, path from column 'path', label from 'label'"), ("a.png", ["1"])),
    "ambiguous txt": ("id 1,3\nid 2,4", "m.txt", ("lines", "lines 'path label,label…', several labels each"),
                      ("id", ["1", "3"])),
    "ambiguous csv": ("id 1,3\nid 2,4", "m.csv", ("csv", "CSV without a header, path from column 0, label from 1"),
                      ("id 1", ["3"])),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_what_people_have(case: str) -> None:
    text, name, (format, told), (path, labels) = KNOWN[case]
    found = look(text, name)
    assert (found.name, found.told) == (format, told)
    row = [line for line in text.lstrip("\ufeff").split("\n") if line][found.skip]
    fields = found.parse(row.encode())
    assert (fields.path, list(fields.labels)) == (path, labels)
    kind = "video" if "videos" in told else "frames" if "frames" in told else "image"
    assert found.kind == kind


def test_columns_and_format_overrule() -> None:
    text = "a,b,c\nx.png,y.png,3\n"
    assert look(text, "m.csv", columns={"path": "b", "label": "c"}).path == 1
    assert look(text, "m.csv", columns={"path": 0, "label": 2}).skip == 1
    assert look("x.png,y.png,3\n", columns={"path": 1, "label": 2}).skip == 0
    assert look("P,L\nx,3\n", "m.csv", columns={"path": "p", "label": "l"}).label == 1
    found = look("path,label\na.png,3\n", columns={"labels": "label"})
    assert (found.separator, found.label) == (",", 1)
    assert look("a.png 3\n", columns={"path": 0, "labels": 1}).separator == ","
    assert look('{"a": "x.png", "b": "y.png", "label": 1}', columns={"path": "b"}).path == "b"
    assert look('{"p": "x.png", "l": 1}', columns={"labels": "l"}).separator == ","
    assert look("a.png,3 0\nb.png,4 0", "m.csv", format="lines").name == "lines"
    assert look("v 1 2\nw 3 4", format="lines").name == "lines"
    assert look("v,1 2\nw,3 4", format="csv").delimiter == ","
    assert look("v x.png 9 2", format="frames").name == "frames"


def test_rows_may_lack_labels() -> None:
    bare = look("a b.png\nc.png", labelled=False)
    assert (bare.label, bare.told) == (None, "lines 'path'")
    assert look("a.png 1\nc.png 2", labelled=False).label == 1
    assert look("file_name,text\na.png,x\nb.png,y", "m.csv", labelled=False).label is None
    assert look("file_name\na.png\nb.png", "m.csv", labelled=False).label is None
    assert look('{"file_name": "a.png"}', labelled=False).label is None


REFUSED = [
    ("x,y,z\na.png,1,2\nb.png,3,4", {}, MetaFileError,
     r"m\.csv: which column is the label\? Its columns are 'x', 'y', 'z': name them, data.columns={path: x, label: z}"),
    ("a.png,1,2\nb.png,3,4", {}, MetaFileError,
     "which column is the label. Its columns are numbers 0 … 2, without a header: .*path: 0, label: 2"),
    ("u,v,w\n1,2,3\n", {"format": "csv"}, MetaFileError, "which column is the path"),
    ("path,label\na.png,1", {"columns": {"path": "file"}}, MetaFileError,
     "has no column 'file' for path .data.columns.; its columns are 'path', 'label'"),
    ("path,label\na.png,1", {"columns": {"label": 7}}, MetaFileError, "has no column 7 for label"),
    ("a.png 1\nb.png 2", {"columns": {"path": 3}}, MetaFileError,
     "columns {path: 3}, but its lines are 'path label': legal here are {path: 0, label: 1}"),
    ("a.png 1\nb.png 2", {"format": "csv"}, MetaFileError, "format csv, but its lines hold no (comma|semicolon)"),
    ("a.png 1\nb.png 2", {"format": "tsv"}, MetaFileError, "format tsv, but its lines hold no tab"),
    ("a.png 1\n", {"format": "jsonl"}, MetaFileError, "JSON lines hold one object on each line, as in"),
    ("[\n {\"a\": 1},\n", {}, MetaFileError, "this is other JSON"),
    ('{"a": 1}\n', {}, MetaFileError, "which key is the path. The rows have 'a': name them, data.columns={path: file"),
    ('{"path": "x.png"}\n', {}, MetaFileError, "which key is the label"),
    ('{"path": "x.png", "label": 1}\n', {"columns": {"label": "y"}}, MetaFileError,
     "the rows have no key 'y' for label .data.columns.; they have 'path', 'label'"),
    ("a 1", {"format": "xml"}, OptionError, "format 'xml': legal are lines, frames, csv, tsv, jsonl .data.format"),
    ("a 1", {"columns": {"klass": 1}}, OptionError, "'klass' is no part of a row; legal are path, label"),
    ("a 1", {"columns": {"path": True}}, OptionError, "path is True; legal are a column's name and its number"),
    ("a 1", {"columns": {"label": 1, "labels": 1}}, OptionError, "not both"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options", "kind", "told"), REFUSED)
def test_what_is_refused(text: str, options: dict[str, Any], kind: type[DataError], told: str) -> None:
    with pytest.raises(kind, match=told) as caught:
        look(text, "m.csv" if "," in text else "m.txt", **options)
    assert "\n" not in str(caught.value)


def test_nothing_breaks_it() -> None:
    """Whatever stands there gives a format or one line."""
    pieces = ['"', ",", ";", "\t", " ", "a.png", "1", "{", "}", "[", "path", "label", "\ud7ff", "x" * 300, "\\", ":"]
    seed = 7
    for _ in range(3000):
        words = []
        for _ in range(14):
            seed = (seed * 1103515245 + 12345) % 2**31
            words.append((pieces + ["\n"] * 4)[(seed >> 8) % (len(pieces) + 4)])
        try:
            found = look("".join(words))
            assert found.told
        except MetaFileError as error:
            assert "\n" not in str(error), words  # noqa: PT017


def test_one_hot_columns_are_told_and_none_is_picked() -> None:
    lines = [b"path,cat,dog,eel", *(b"%d.png,1,0,0" % i for i in range(5))]
    with pytest.raises(
        MetaFileError, match=r"^m\.csv: 3 columns hold 0 or 1 alone \('cat', 'dog', 'eel'\), as one-hot labels do, and"
    ):
        sniff(lines, "m.csv")
    assert sniff(lines, "m.csv", columns={"label": "dog"}).label == 2
