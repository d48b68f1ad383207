from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from data.errors import ChangedError, DataError, MetaFileError, OptionError, RowError
from data.sources import parquet
from data.sources.cached import open_lines
from data.sources.parquet import ParquetImages, list_parquet

arrow = pytest.importorskip("pyarrow")
files = pytest.importorskip("pyarrow.parquet")


def write(path: Path, columns: dict[str, Any], *, features: dict[str, Any] | None = None, group: int = 1000) -> Path:
    table = arrow.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    files.write_table(table, path, row_group_size=group)
    return path


def lines(*paths: Path, **options: Any) -> list[str]:
    return b"".join(list_parquet(paths, **options).text()).decode().splitlines()


def images(*contents: bytes | None) -> Any:
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    return arrow.array([{"bytes": data, "path": f"{row}.jpg"} for row, data in enumerate(contents)], kind)


def test_usual_columns_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_AT_ONCE", 2)
    path = write(
        tmp_path / "a.parquet",
        {"id": [1, 2, 3], "file_name": ["a b.jpg", "c/ä.jpg", "d.jpg"], "label": [3, 0, 3]},
    )
    assert lines(path) == ["a b.jpg 3", "c/ä.jpg 0", "d.jpg 3"]
    listing = list_parquet([path])
    assert listing.classes.names == ("0", "1", "2", "3")
    assert listing.told == ("Parquet, path from column 'file_name', label from 'label', 3 rows, 4 classes (0, 1, 2, 3)")
    opened = open_lines(path, cache=tmp_path / "cache")
    assert opened.root == tmp_path
    assert opened.file.read(1).decode() == "c/ä.jpg 0"


def test_columns_are_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"x": ["p"], "y": ["q"], "z": [1], "label": [2]})
    assert lines(path, columns={"path": "y", "label": "z"}) == ["q 1"]
    assert lines(path, columns={"path": 0}) == ["p 2"]
    for columns, told in [
        ({"path": "w"}, r"there is no column 'w' for path: it has x, y, z, label$"),
        ({"path": 4}, r"there is no column 4 for path, counted from 0: it has x, y"),
        ({"path": "x", "label": "w"}, r"there is no column 'w' for label"),
        ({"path": "x", "start": "y"}, r"columns: 'start' means nothing for Parquet; legal are path and label"),
    ]:
        with pytest.raises(OptionError, match=told):
            lines(path, columns=columns)
    with pytest.raises(MetaFileError, match=r"which column is the path\? it has x, y, z, label: name it, columns="):
        lines(path)


def test_names_of_several_files(tmp_path: Path) -> None:
    one = write(tmp_path / "1.parquet", {"path": ["a", "b"], "class": ["dog", "golden retriever"]})
    two = write(tmp_path / "2.parquet", {"path": ["c"], "class": arrow.array(["cat"]).dictionary_encode()})
    assert lines(one, two) == ["a 1", "b 2", "c 0"]
    assert list_parquet([one, two]).classes.names == ("cat", "dog", "golden retriever")
    assert lines(one, classes=["golden retriever", "dog"]) == ["a 1", "b 0"]
    with pytest.raises(RowError, match=r"1\.parquet: column 'class'  label 'golden retriever' is none of the 1 class"):
        lines(one, classes=["dog"])


def test_names_that_hugging_face_left(tmp_path: Path) -> None:
    features = {"label": {"names": ["cat", "1"], "_type": "ClassLabel"}}
    path = write(tmp_path / "a.parquet", {"path": ["a", "b"], "label": [1, 0]}, features=features)
    assert list_parquet([path]).classes.names == ("cat", "1")
    assert lines(path) == ["a 1", "b 0"]
    several = {"labels": {"feature": {"names": ["x", "y"], "_type": "ClassLabel"}, "_type": "Sequence"}}
    path = write(tmp_path / "b.parquet", {"path": ["a", "b"], "labels": [[0, 1], [1]]}, features=several)
    assert lines(path) == ["a 0,1", "b 1"]
    assert list_parquet([path]).several
    assert list_parquet([path]).classes.names == ("x", "y")
    for odd in ({}, {"label": None}, {"label": {"names": [1]}}):
        path = write(tmp_path / "c.parquet", {"path": ["a"], "label": [1]}, features=odd)
        assert list_parquet([path]).classes.names == ("0", "1")


def test_structs_of_paths(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": images(None, None), "label": [0, 1]})
    assert lines(path) == ["0.jpg 0", "1.jpg 1"]
    path = write(tmp_path / "b.parquet", {"image": images(None, b"x"), "label": [0, 1]})
    with pytest.raises(MetaFileError, match="column 'image' holds images in some rows and paths in others"):
        lines(path)


def test_images_in_the_file_are_for_pack(tmp_path: Path) -> None:
    for number, column in enumerate([images(b"x", b"y"), arrow.array([b"x", b"y"])]):
        path = write(tmp_path / f"{number}.parquet", {"file_name": ["a", "b"], "image": column, "label": [0, 1]})
        told = r"column 'image' holds images, not paths: 'data pack .*\.parquet --out FOLDER' makes tar shards"
        with pytest.raises(MetaFileError, match=told):
            lines(path)
        assert lines(path, columns={"path": "file_name"}) == ["a 0", "b 1"]
        assert ParquetImages.are_in(path)
        assert not ParquetImages.are_in(path, {"path": "file_name"})
        with pytest.raises(MetaFileError, match="column 'file_name' holds no images"):
            ParquetImages([path], columns={"path": "file_name"})


def test_images_from_any_row_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "IMAGES_AT_ONCE", 3)
    data = [b"%d" % row for row in range(20)]
    paths = [
        write(tmp_path / "1.parquet", {"image": images(*data[:11]), "label": ["b"] * 11}, group=4),
        write(tmp_path / "2.parquet", {"image": images(*data[11:19], None), "label": ["a"] * 9}, group=4),
    ]
    source = ParquetImages(paths)
    assert (source.n, source.classes) == (20, ("a", "b"))
    for first in (0, 3, 4, 10, 11, 19, 20):
        found = list(source.images(first))
        assert [content for _, content, _ in found] == [*data[:19], None][first:]
        assert [labels for *_, labels in found] == [(1,)] * max(0, 11 - first) + [(0,)] * (20 - max(11, first))
    assert [place for place, *_ in source.images(18)] == [f"{paths[1]}: row 18", f"{paths[1]}: row 19"]
    assert len(source.fingerprint) == 32
    assert source.fingerprint == ParquetImages(paths).fingerprint
    os.utime(paths[1], (1, 1))
    assert source.fingerprint != ParquetImages(paths).fingerprint
    with pytest.raises(ChangedError, match=r"2\.parquet changed while it was read"):
        list(source.images(0))


BAD: list[tuple[dict[str, Any], type[DataError], str]] = [
    ({"path": ["a", None], "label": [0, 1]}, RowError, r"a\.parquet: row 1 has the path None, which can't stand in a"),
    ({"path": ["a", "b\nc 1"], "label": [0, 1]}, RowError, r"row 1 has the path 'b\\nc 1', which can't stand"),
    ({"path": ["a ", "b"], "label": [0, 1]}, RowError, r"row 0 has the path 'a '"),
    ({"path": ["", "b"], "label": [0, 1]}, RowError, r"row 0 has the path ''"),
    ({"path": ["a", "b"], "label": [0, None]}, RowError, r"row 1 has no label in column 'label'"),
    ({"path": ["a", "b"], "label": [0, -1]}, RowError, r"column 'label'  label -1 is below 0"),
    (
        {"path": ["a", "b"], "label": [0.5, 1.0]},
        MetaFileError,
        r"column 'label' holds double; a label is a whole number",
    ),
    ({"path": ["a", "b"], "label": [True, False]}, MetaFileError, r"column 'label' holds bool; a label is"),
    ({"path": ["a", "b"], "label": [[0], []]}, RowError, r"a row has no label in column 'label'"),
    ({"path": [1, 2], "label": [0, 1]}, MetaFileError, r"column 'path' holds int64; a path is text"),
    ({"image": [{"x": 1}], "label": [0]}, MetaFileError, r"column 'image' holds neither paths nor images but struct<x"),
    ({"path": arrow.array([], arrow.string()), "label": arrow.array([], arrow.int64())}, MetaFileError, "has no rows$"),
    ({"path": ["a"], "label": ["a\tb"]}, RowError, r"label 'a\\tb' is neither a number nor a name of one line"),
]


@pytest.mark.parametrize(("columns", "error", "told"), BAD)
def test_refusals(tmp_path: Path, columns: dict[str, Any], error: type[DataError], told: str) -> None:
    with pytest.raises(error, match=told) as caught:
        lines(write(tmp_path / "a.parquet", columns))
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)


def test_what_is_no_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"path label\n" * 100)
    with pytest.raises(MetaFileError, match=r"a\.parquet is no Parquet file: it doesn't begin with PAR1"):
        lines(path)
    whole = write(path, {"path": ["a"] * 1000, "label": [1] * 1000}).read_bytes()
    for size in (4, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(MetaFileError, match=r"a\.parquet can't be read as Parquet: "):
            lines(path)
    spoilt = bytearray(whole)
    spoilt[4:200] = b"\xff" * 196
    path.write_bytes(spoilt)
    with pytest.raises(MetaFileError, match=r"a\.parquet can't be read as Parquet: ") as caught:
        lines(path)
    assert len(caught.value.problems) == 1
    with pytest.raises(MetaFileError, match=r"No such file or directory"):
        lines(tmp_path / "none.parquet")
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(MetaFileError, match="no regular file"):
        lines(tmp_path / "pipe.parquet")


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"path": ["a"], "label": [1]})
    listing = list_parquet([path])
    os.utime(path, (1, 1))
    with pytest.raises(ChangedError, match=r"a\.parquet changed while it was read: is something still writing it"):
        list(listing.text())


def test_rows_are_counted_from_the_footers(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{rows}.parquet", {"path": ["a"] * rows, "label": [1] * rows}) for rows in (3, 2000)]
    assert parquet.count_rows(paths) == 2003


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"path": ["a"], "label": [1]})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(OptionError, match=r"^Parquet needs pyarrow: pip install 'rankrun\[parquet\]'"):
        lines(path)
