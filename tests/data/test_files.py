from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import MetaFileError
from data.files import HEAD_BYTES, is_listed, look, paths_of, tell
from data.formats.format import Format

Write = Callable[..., Path]


def test_paths_of_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.txt", "a.txt", "d/c.txt", "odd[1].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert paths_of("b.txt") == [Path("b.txt")]
    assert paths_of(["b.txt", Path("a.txt")]) == [Path("b.txt"), Path("a.txt")]
    assert paths_of("[ab].txt") == [Path("a.txt"), Path("b.txt")]
    assert paths_of("**/*.txt") == [Path("a.txt"), Path("b.txt"), Path("d/c.txt"), Path("odd[1].txt")]
    assert paths_of("odd[1].txt") == [Path("odd[1].txt")], "a name that is there is no pattern"
    assert paths_of("none.txt") == [Path("none.txt")], "that it isn't there is told where it is opened"
    for empty in ("", [], [""]):
        with pytest.raises(MetaFileError, match=r"no meta file is given: data\.train and data\.val name a file,"):
            paths_of(empty)
    with pytest.raises(MetaFileError, match=r"no file is called like \*\.csv"):
        paths_of(["a.txt", "*.csv"])


def test_what_must_be_listed(tmp_path: Path) -> None:
    (tmp_path / "m.txt").touch()
    assert is_listed([tmp_path])
    assert is_listed([Path("a.tar"), Path("b.tar")])
    assert not is_listed([tmp_path / "m.txt"])
    with pytest.raises(MetaFileError, match=r"a\.tar stands beside .*m\.txt: give meta files alone, one folder alone"):
        is_listed([Path("a.tar"), tmp_path / "m.txt"])


def test_the_head_is_whole_lines(write: Write) -> None:
    assert look(write("a.png 0\n" * 100_000)).name == "lines"
    # the head ends within a line, which alone would say something else
    line = "d/" + "x" * 1000 + ",y.png 0\n"
    assert look(write(line * (HEAD_BYTES // len(line) + 2))).told == "lines 'path label'"
    assert look(write("a.png,1\n" * 3)).name == "csv"
    assert look(write("")) == Format()
    assert look(write("x" * (2 * HEAD_BYTES))) == Format(), "one endless line: refused where it is opened"


def test_what_is_told_of_several() -> None:
    one, two = Format(), Format(name="csv", told="CSV")
    paths = [Path("a"), Path("b"), Path("c")]
    assert tell(paths[:1], [one]) == "a: lines 'path label'"
    assert tell(paths, [one, two, one]) == "a and 1 more: lines 'path label'; b: CSV"
    assert tell([*paths, Path("d")], [Format(told=told) for told in "wxyz"]) == "a: w; b: x; c: y; …"
