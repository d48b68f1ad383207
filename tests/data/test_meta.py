from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data import meta as meta_module
from data.errors import ClassesError, DataError, MetaFileError, OptionError, OutsideRootError, RowError
from data.formats.format import Record
from data.meta import MetaFile, check_ends

Write = Callable[..., Path]


def test_paths_may_hold_blanks(write: Write) -> None:
    meta = MetaFile(write("a b/c  d.png 1\ne.png\t0\nf.png \t 12  \n"))
    assert [meta.record(row)[:2] for row in range(3)] == [("a b/c  d.png", 1), ("e.png", 0), ("f.png", 12)]
    assert meta.told.endswith("m.txt: lines 'path label'")
    assert (meta.kind, meta.multi_label, meta.labelled, meta.in_memory) == ("image", False, True, False)
    assert meta.num_classes == 13
    assert meta.classes[:2] == ("0", "1")
    assert meta.line_of(2).endswith("m.txt:3")


def test_labels_by_name(write: Write) -> None:
    meta = MetaFile(write("a.png cat\nb.png dog\nc.png 1\n"), classes=["cat", "dog"])
    assert [meta.record(row).label for row in range(3)] == [0, 1, 1]
    meta.check_all()
    odd = MetaFile(write("a.png 7\nb.png 3\n"), classes=["7", "3"])
    assert [odd.record(row).label for row in range(2)] == [0, 1]
    odd.check_all()


def test_several_files_are_one(write: Write) -> None:
    meta = MetaFile([write("a 0\nb 1\n", "x/1.txt"), write("c 2\n", "y/2.txt")])
    assert meta.n == len(meta) == 3
    assert meta.line(2) == b"c 2"
    assert meta.place(2) == f"{meta.files[1].path}:1  c"
    assert meta.root_of(2).name == "y"
    assert meta.num_classes == 3
    with pytest.raises(IndexError, match="row 3 of 3"):
        meta.line(3)
    assert MetaFile(meta.files[0].path, root="/").root_of(0) == Path("/")
    for root, told in (("/r", "there is no such folder"), (meta.files[0].path, "is no folder")):
        with pytest.raises(OptionError, match=rf"^data\.root=.*: {told}; paths in the meta file are relative to it"):
            MetaFile(meta.files[0].path, root=root)


def test_the_fingerprint_is_the_content(write: Write) -> None:
    one = MetaFile(write("a 0\nb 1\n", "1.txt"))
    assert one.fingerprint == MetaFile(write("a 0\nb 1\n", "2.txt")).fingerprint
    assert one.fingerprint != MetaFile(write("a 0\nb 0\n", "3.txt")).fingerprint
    assert len(one.fingerprint) == 32
    assert one.size_bytes == 8


BAD = [
    ("b.png\n", RowError, r"m\.txt:2  'b\.png' has no label: a line is 'path label'$"),
    ("b.png,1\n", RowError, r"m\.txt:2  'b\.png,1' has no label: a line is 'path label'$"),
    ('{"a":1}\n', RowError, "has no label: a line is 'path label'$"),
    ("b\0.png 1\n", RowError, r"m\.txt:2  holds a NUL byte: a meta file is UTF-8 text"),
    ("\n", RowError, r"m\.txt:2  is blank: every line is 'path label'"),
    ("  \t\n", RowError, r"m\.txt:2  is blank"),
    (" 1\n", RowError, "has no label"),
    ("b.png 3\n", RowError, r"m\.txt:2  label 3 is out of range: there are 3 classes \(0, 1, 2\), labels 0 … 2"),
    ("b.png 99999999999999999999\n", RowError, "is neither a number nor one of the 3 classes"),
    ("b.png -1\n", RowError, "label '-1' is below 0"),
    ("b.png 1.5\n", RowError, "label '1.5' is neither a number nor one of"),
    ("b.png \uff12\n", RowError, "neither a number"),
    ("b.png cat\n", RowError, "label 'cat' is neither a number nor one of the 3 classes"),
    (b"b\xff.png 1\n", RowError, r"m\.txt:2  byte 2 \(0xff\) is not UTF-8"),
    ("../b.png 1\n", OutsideRootError, r"m\.txt:2  '\.\./b\.png' leaves the root"),
    ("x/../../b.png 1\n", OutsideRootError, "leaves the root"),
    (
        "/etc/b.png 1\n",
        OutsideRootError,
        r"'/etc/b\.png' is absolute: paths are relative to the root.*data.allow_outside_root=true",
    ),
]


@pytest.mark.parametrize(("bad", "kind", "told"), BAD)
def test_bad_rows(write: Write, bad: str | bytes, kind: type[DataError], told: str) -> None:
    line = bad if isinstance(bad, bytes) else bad.encode()
    path = write(b"a.png 0\n" + line + b"c.png 2\n" * 9)
    meta = MetaFile(path, classes=3)
    with pytest.raises(kind, match=told):
        meta.record(1)
    with pytest.raises(kind, match=told):
        meta.check()
    with pytest.raises(kind, match=told):
        meta.check_all()
    with pytest.raises(DataError, match=told):
        check_ends(path, classes=3)


def test_labels_without_classes(write: Write) -> None:
    with pytest.raises(RowError, match=r"m\.txt:2  label 'cat' is no whole number: give data\.classes"):
        MetaFile(write("a 0\nb cat\n"))
    with pytest.raises(ClassesError, match="999999999999 classes"):
        MetaFile(write("a 999999999998\n"))
    names = MetaFile(write("a dog\nb K\u00fc\nc cat\nd dog\n"))
    assert names.classes == ("K\u00fc", "cat", "dog"), "sorted by bytes"
    assert [names.record(row).label for row in range(4)] == [2, 0, 1, 2]
    names.check_all()


def test_numbers_beside_names(write: Write) -> None:
    with pytest.raises(
        ClassesError, match=r"the labels of .*1\.txt are numbers and those of .*2\.txt names: give data\."
    ):
        MetaFile([write("a 0\n", "1.txt"), write("a cat\n", "2.txt")])


def test_names_without_classes_are_one_problem_and_not_forty(write: Write) -> None:
    path = write("a 0\nb cat\nc dog\nd eel\n")
    with pytest.raises(RowError) as caught:
        check_ends(path)
    assert str(caught.value) == (
        f"{path}:2  label 'cat' is no whole number, nor is that of 2 other lines: "
        "give data.classes (names or a file of names) for labels that are names"
    )
    with pytest.raises(RowError, match=r"m\.txt:2  label 'cat' is no whole number: give data\.classes"):
        check_ends(write("a 0\nb cat\n"))
    with pytest.raises(RowError) as caught:
        check_ends(write("a cat\nb\nc 0\nd dog\n"))
    assert len(str(caught.value).splitlines()) == 3, "two causes are told line by line"
    assert check_ends(write("a cat\nb dog\n")) == 2, "names alone are classes"


def test_a_place_is_told_though_the_file_has_changed(write: Write) -> None:
    path = write("a 0\nb 1\n")
    meta = MetaFile(path)
    path.write_text("gone\n")
    assert meta.place(1) == f"{path}:2"


def test_paths_outside_may_be_allowed(write: Write) -> None:
    meta = MetaFile(write("../a.png 0\n/b/c.png 1\n"), allow_outside_root=True)
    meta.check_all()
    assert meta.record(1)[:2] == ("/b/c.png", 1)
    MetaFile(write("a..b.png 0\n"), classes=1).check_all()  # two dots in a name climb nowhere


def test_all_problems_at_once_but_no_more_than_twenty(write: Write) -> None:
    path = write("good 0\n" + "bad\n" * 50)
    for check in (MetaFile(path, classes=2).check, MetaFile(path, classes=2).check_all):
        with pytest.raises(RowError) as caught:
            check()
        assert len(str(caught.value).splitlines()) == 21
    with pytest.raises(RowError) as caught:
        check_ends(path, classes=2)
    assert str(caught.value).splitlines()[20] == "… and 30 more"


def test_deep_rows_are_left_to_the_full_check(write: Write) -> None:
    rows = [f"a{i} 0" for i in range(2_500)]
    rows[1_200:1_202] = ["bad", "b 1,2"]
    path = write("\n".join(rows))
    meta = MetaFile(path, classes=1)
    meta.check()
    assert check_ends(path, classes=1) == 2_500
    with pytest.raises(RowError, match=r":1201  'bad' has no label") as caught:
        meta.check_all()
    assert str(caught.value).endswith("(several labels are read where the first 1000 lines show some)")


def test_no_file_at_all(write: Write) -> None:
    with pytest.raises(MetaFileError, match="no meta file is given"):
        MetaFile([])
    with pytest.raises(MetaFileError, match="no meta file is given"):
        MetaFile("")
    with pytest.raises(MetaFileError, match=r"no meta file is given: data\.exclude name"):
        MetaFile(write("a 0\n"), exclude=[])


def test_formats_of_all_kinds(write: Write) -> None:
    csv = write('file_name,label,split\na b.png,cat,x\n"c,d.png",dog,x\n', "m.csv")
    meta = MetaFile(csv)
    assert meta.told == (
        f"{csv}: CSV with a header, path from column 'file_name', label from 'label', labels are names; "
        "not used: 'split'"
    )
    assert (meta.n, meta.classes) == (2, ("cat", "dog"))
    assert meta.record(1) == Record("c,d.png", 1)
    assert meta.line_of(1) == f"{csv}:3", "the header is line 1"
    assert meta.place(0) == f"{csv}:2  a b.png"
    meta.check()
    meta.check_all()
    frames = MetaFile(write("v 9 0\nw 7 4\n", "f.txt"))
    assert (frames.kind, frames.num_classes) == ("frames", 5)
    assert frames.record(1) == Record("w", 4, frames=7)
    video = MetaFile(write("video,start,end,label\na.mp4,1,2.5,4\n", "v.csv"))
    assert video.kind == "video"
    assert video.record(0) == Record("a.mp4", 4, start_s=1.0, stop_s=2.5)
    packed = MetaFile(write("s.tar@512:99 1\n", "p.txt"))
    assert packed.record(0) == Record("s.tar", 1, offset=512, length=99)
    assert packed.place(0).endswith("p.txt:1  s.tar@512:99")
    lines = MetaFile(write('{"image": "a.png", "label": "x"}\n{"image": "b.png", "label": "y"}\n', "m.jsonl"))
    assert (lines.classes, lines.record(1).path) == (("x", "y"), "b.png")
    chosen = MetaFile(csv, columns={"label": "split"})
    assert chosen.classes == ("x",)


def test_several_labels(write: Write) -> None:
    meta = MetaFile(write("a 3\nb 0,7\n"))
    assert (meta.multi_label, meta.num_classes) == (True, 8)
    assert [meta.record(row).labels for row in range(2)] == [(3,), (0, 7)]
    assert meta.record(1).label == 0
    meta.check_all()
    both = MetaFile([meta.files[0].path, write("c 1\n", "2.txt")])
    assert both.record(2).labels == (1,), "one file with several makes all so"
    named = MetaFile(write("image,tags\na.png,x y\nb.png,\n", "m.csv"))
    assert (named.classes, named.record(0).labels, named.record(1).labels) == (("x", "y"), (0, 1), ())
    assert named.record(1).label == -1
    wrong = MetaFile(write("a 3\nb 0,9\nc 1,x\n"), classes=8)
    with pytest.raises(RowError, match=r":2  label 9 is out of range(.|\n)*:3  label 'x' is neither") as caught:
        wrong.check_all()
    assert len(caught.value.problems) == 2


def test_kinds_are_not_mixed(write: Write) -> None:
    with pytest.raises(
        MetaFileError, match=r"1\.txt are of kind 'image', those of .*2\.txt of kind 'frames': one kind"
    ):
        MetaFile([write("a 0\n", "1.txt"), write("v 9 0\n", "2.txt")])


def test_globs_and_formats_of_several_files(write: Write) -> None:
    for name in ("b.txt", "a.txt", "c.csv"):
        write(f"{name}.png,0\n" if name == "c.csv" else f"{name}.png 0\n", f"g/{name}")
    folder = write("x", "x").parent / "g"
    meta = MetaFile(f"{folder}/[abc].*")
    assert [meta.record(row).path for row in range(3)] == ["a.txt.png", "b.txt.png", "c.csv.png"]
    assert meta.told == (
        f"{folder}/a.txt and 1 more: lines 'path label'; {folder}/c.csv: CSV without a header, path from column 0, "
        "label from 1"
    )
    meta.check_all()
    assert check_ends(f"{folder}/*.txt") == 2
    with pytest.raises(MetaFileError, match=r"no file is called like .*/\*\.lst"):
        MetaFile(f"{folder}/*.lst")


def test_rows_of_several_files_in_one_check(write: Write) -> None:
    meta = MetaFile([write("a 0\nb 9\n", "1.txt"), write("c,9\nd,0\n", "2.csv")], classes=3)
    text = np.frombuffer(b"a 0\nb 9\nc,9\nd,0\n", np.uint8)
    with pytest.raises(RowError, match=r"1\.txt:2  label 9 is out of range"):
        meta.check_chunk(np.arange(4), text, np.arange(0, 16, 4), np.arange(3, 16, 4))
    with pytest.raises(RowError, match=r"2\.csv:1  label 9 is out of range"):
        meta.check_chunk(np.array([0, 2, 3]), text, np.array([0, 8, 12]), np.array([3, 11, 15]))
    meta.check_chunk(np.array([0, 3]), text, np.array([0, 12]), np.array([3, 15]))
    meta.check_chunk(np.arange(0), text, np.arange(0), np.arange(0))


def test_gather_and_units(write: Write) -> None:
    meta = MetaFile([write("".join(f"{i:04} 0\n" for i in range(3000)), "1.txt"), write("x 0\ny 0\n", "2.txt")])
    rows = np.array([0, 1, 700, 2999, 3001])
    found = [
        (row, text[start:stop].tobytes())
        for lo, hi, text, starts, stops in meta.gather(rows)
        for row, start, stop in zip(rows[lo:hi].tolist(), starts.tolist(), stops.tolist(), strict=True)
    ]
    assert found == [(0, b"0000 0"), (1, b"0001 0"), (700, b"0700 0"), (2999, b"2999 0"), (3001, b"y 0")]
    before = meta.read_bytes
    assert len(list(meta.gather(rows))) == 2
    assert 0 < meta.read_bytes - before <= 21_008
    starts = meta.unit_starts(4096)
    assert (starts[0], starts[-2], starts[-1]) == (0, 3000, 3002)
    assert (np.diff(starts) > 0).all()


def test_it_travels_small(write: Write) -> None:
    names = [f"n{index * 7919 % 10**8:08d}" for index in range(1000)]
    path = write("".join(f"a{i} {i % 1000}\n" for i in range(20_000)))
    for classes in (None, 1000, names):
        meta = MetaFile(path, classes=classes)
        meta.check_all()
        pickled = pickle.dumps(meta)
        assert len(pickled) < 8000
        copy = pickle.loads(pickled)
        assert (copy.record(19_999), copy.classes) == (meta.record(19_999), meta.classes)
        copy.check_all()


def test_labels_are_looked_at_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file's labels are kept in its index; names of a large file need one that was made on purpose."""
    numbers = write("".join(f"{'a' * 200}{i:07} {i % 300}\n" for i in range(45_000)), "numbers.txt")
    names = write("".join(f"{'a' * 200}{i:07} c{i % 300}\n" for i in range(45_000)), "names.txt")
    assert MetaFile(numbers).num_classes == 300
    for opens in (MetaFile, check_ends):
        with pytest.raises(
            ClassesError, match=r"names\.txt: its labels are names, .* 'data index' lists them once, beside the "
        ):
            opens(names)
    assert MetaFile(names, classes=[f"c{i}" for i in range(300)]).num_classes == 300
    indexed = MetaFile(names, index=True)
    assert indexed.classes == tuple(sorted(f"c{i}" for i in range(300)))
    monkeypatch.setattr(meta_module, "find_labels", None)
    assert MetaFile(numbers).num_classes == 300
    assert MetaFile(names).classes == indexed.classes
    assert check_ends(names) == 45_000
    MetaFile(names).check()
    with pytest.raises(TypeError):
        MetaFile(numbers, exclude=write("3", "x.txt"))  # other rows may have other labels


def test_sources_that_are_no_lines(write: Write, tmp_path: Path) -> None:
    (tmp_path / "tree" / "cat").mkdir(parents=True)
    (tmp_path / "tree" / "cat" / "a,b 7.png").write_bytes(b"x")
    meta = MetaFile(tmp_path / "tree")
    assert (meta.n, meta.classes, meta.in_memory) == (1, ("cat",), True)
    assert meta.record(0) == Record("cat/a,b 7.png", 0)
    assert meta.place(0) == str(tmp_path / "tree" / "cat" / "a,b 7.png")
    cached = MetaFile(tmp_path / "tree", cache=tmp_path / "cache")
    assert (cached.n, cached.place(0), cached.in_memory) == (1, meta.place(0), True)
    for options, told in (
        ({"root": "/x"}, r"data\.root=/x with the folder .*tree: a folder of class folders is its own root"),
        ({"format": "csv"}, r"data\.format=csv with the folder .*tree: that is no file of lines"),
        ({"columns": {"path": 0}}, r"data\.columns with the folder .*tree: that has no columns"),
    ):
        with pytest.raises(OptionError, match=told):
            MetaFile(tmp_path / "tree", **options)  # type: ignore[arg-type]
    with pytest.raises(MetaFileError, match=r"tree stands beside .*m\.txt: give meta files alone"):
        MetaFile([tmp_path / "tree", write("a 0\n")])


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_tars_of_several_labels(tmp_path: Path) -> None:
    few = [(f"{i:05}.{end}", content) for i in range(1200) for end, content in (("cls", b"1"), ("png", b"x"))]
    tar_of(tmp_path / "s.tar", [*few, ("x.json", b'{"label": [0, 4]}'), ("x.png", b"x")])
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        meta = MetaFile(tmp_path / "s.tar", cache=cache)
        assert (meta.multi_label, meta.num_classes) == (True, 5)
        assert {meta.record(row).labels for row in (0, 1200)} == {(1,), (0, 4)}
        meta.check_all()


def test_tars_are_read_as_they_are(tmp_path: Path) -> None:
    tar_of(tmp_path / "s.tar", [("1.png", b"12345"), ("1.cls", b"3"), ("2.png", b"67"), ("2.cls", b"0")])
    meta = MetaFile(tmp_path / "s.tar")
    assert (meta.n, meta.num_classes, meta.multi_label) == (2, 4, False)
    path, label, _, offset, length, *_ = meta.record(0)
    assert (path, label, length) == ("s.tar", 3, 5)
    assert offset is not None
    assert (tmp_path / "s.tar").read_bytes()[offset : offset + 5] == b"12345"
    assert meta.place(0) == f"{tmp_path}/s.tar@{offset}:5"
    with pytest.raises(OptionError, match=r"data\.root=x with .*s\.tar: a tar is its own root"):
        MetaFile(tmp_path / "s.tar", root="x")


def test_numbers_mean_nothing_beside_names_that_nobody_gave(write: Write, tmp_path: Path) -> None:
    train = MetaFile(write("path,label\na.png,cat\nb.png,dog\nc.png,eel\n", "train.csv"))
    known = train.shared_classes
    assert (known.names, known.by_name) == (("cat", "dog", "eel"), True)
    numbers = write("a.png 0\nb.png 1\n", "val.txt")
    with pytest.raises(
        ClassesError,
        match=r"val\.txt: its labels are numbers, but those of the training data are names, of 3 classes \(cat, dog, "
        r"eel\): which number means which name\? Give data\.classes",
    ):
        MetaFile(numbers, classes=known)
    assert MetaFile(numbers, classes=["cat", "dog", "eel"]).record(1).label == 1, "who names them means it"
    names = MetaFile(write("b.png eel\nc.png dog\n", "names.txt"), classes=known)
    assert [names.record(row).label for row in range(2)] == [2, 1]
    names.check_all()
    mixed = MetaFile(write("".join(f"{i}.png dog\n" for i in range(1000)) + "b.png 1\n", "mixed.txt"), classes=known)
    with pytest.raises(
        RowError, match=r"mixed\.txt:1001  label 1 is a number, but labels are names here, of 3 classes"
    ):
        mixed.check_all()
    # class folders give names as well, and a number of classes doesn't say which is which
    for name in ("cat", "dog"):
        write("x", f"tree/{name}/1.png")
    for source in (MetaFile(tmp_path / "tree"), MetaFile(tmp_path / "tree", classes=2)):
        with pytest.raises(ClassesError, match="its labels are numbers"):
            MetaFile(numbers, classes=source.shared_classes)
        assert MetaFile(tmp_path / "tree", classes=source.shared_classes, cache=tmp_path / "c").n == 2
    assert not MetaFile(tmp_path / "tree", classes=["cat", "dog"]).shared_classes.by_name


def test_names_mean_nothing_beside_numbers(write: Write) -> None:
    known = MetaFile(write("a.png 0\nb.png 2\n", "train.txt")).shared_classes
    assert (known.names, known.by_name) == (("0", "1", "2"), False)
    with pytest.raises(
        ClassesError, match=r"val\.txt: its labels are names, but there are 3 classes \(0, 1, 2\): give"
    ):
        MetaFile(write("a.png cat\nb.png dog\n", "val.txt"), classes=known)


def test_comments_are_no_rows(write: Write) -> None:
    for text in ("# made by hand\na.png 0\n", "# made by hand\na.png cat\n"):
        with pytest.raises(
            RowError, match=r"m\.txt:1  begins with #: a meta file has no comments: take out lines that"
        ):
            MetaFile(write(text))
    assert MetaFile(write("#1.png cat\n#2.png dog\n")).classes == ("cat", "dog")
    with pytest.raises(RowError, match=r"label 'hand' is neither .*\(a meta file has no comments"):
        MetaFile(write("# made by hand\na.png 0\n"), classes=3).check()


def test_labels_below_zero(write: Write) -> None:
    for text in ("a.png 0\nb.png -1\n", "a.png cat\nb.png -1\n"):
        for classes in (None, ["cat"]):
            with pytest.raises(
                RowError, match=r"m\.txt:2  label '-1' is below 0: labels are 0 … number of classes - 1"
            ):
                MetaFile(write(text), classes=classes).check()


def test_a_large_file_of_names_can_be_checked_without_an_index(write: Write) -> None:
    names = write("".join(f"{'a' * 200}{i:07} c{i % 300}\n" for i in range(45_000)))
    assert MetaFile(names, checking=True).num_classes == 300
