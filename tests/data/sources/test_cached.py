from __future__ import annotations

import json
import logging
import os
import shutil
import tarfile
import threading
import time
from pathlib import Path

import pytest

from data.errors import ClassesError, MetaFileError
from data.formats.classes import Classes
from data.index.lines import LineText
from data.sources import cached as sources
from data.sources.cached import is_source, open_lines
from data.sources.listing import Listing


def tree(root: Path, *paths: str, old: bool = True) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    if old:
        age(root)
    return root


def age(root: Path) -> None:
    """Makes a tree ten seconds old, so that its times are trusted."""
    then = time.time() - 10
    for here, _, files in os.walk(root, topdown=False):
        for file in files:
            os.utime(os.path.join(here, file), (then, then))
        os.utime(here, (then, then))


def rows(opened: sources.Opened) -> list[str]:
    return [opened.file.read(row).decode() for row in range(opened.file.rows)]


def listings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every listing that is made from now on is noted."""
    made: list[object] = []
    inner = sources._list

    def noted(*arguments: object) -> Listing:
        made.append(arguments)
        return inner(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sources, "_list", noted)
    return made


def test_without_a_cache_it_stays_in_memory(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", "cat/1.png", "dog/2.png")
    opened = open_lines(root)
    assert isinstance(opened.file, LineText)
    assert rows(opened) == ["cat/1.png 0", "dog/2.png 1"]
    assert (opened.root, opened.classes.names, opened.several) == (root, ("cat", "dog"), False)
    assert opened.told == f"{root}: class folders, 2 classes (cat, dog)"
    assert sorted(os.listdir(tmp_path)) == ["images"]


def test_a_cached_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = tree(tmp_path / "images", "cat/1.png", "cat/deep/3.png", "dog/2.png"), tmp_path / "a" / "cache"
    made = listings(monkeypatch)
    cold, warm = open_lines(root, cache=cache), open_lines(root, cache=cache)
    assert len(made) == 1
    assert rows(cold) == rows(warm) == ["cat/1.png 0", "cat/deep/3.png 0", "dog/2.png 1"]
    assert cold.file.path == warm.file.path
    assert cold.file.path.parent == cache
    assert (warm.root, warm.classes.names, warm.told) == (root, ("cat", "dog"), cold.told)
    assert cold.file.digest == open_lines(root).file.digest, "the same list as in memory"
    assert len(os.listdir(cache)) == 2, "a list and what it is about"


def test_any_change_of_a_folder_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = tree(tmp_path / "images", "cat/1.png", "cat/deep/3.png"), tmp_path / "cache"
    made = listings(monkeypatch)
    first = open_lines(root, cache=cache)
    for change, count in [("cat/deep/4.png", 3), ("dog/1.png", 4), ("cat/2.png", 5)]:
        tree(root, change, old=False)
        assert open_lines(root, cache=cache).file.rows == count
    shutil.rmtree(root / "cat" / "deep")
    assert open_lines(root, cache=cache).file.rows == 3
    assert len(made) == 5
    assert rows(first) == ["cat/1.png 0", "cat/deep/3.png 0"], "who opened the old list still has it"


def test_times_that_are_too_young_are_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = tree(tmp_path / "images", "cat/1.png", old=False), tmp_path / "cache"
    made = listings(monkeypatch)
    first = open_lines(root, cache=cache)
    second = open_lines(root, cache=cache)
    assert len(made) == 2, "a file may come within the same tick of the clock"
    assert first.file.path == second.file.path, "an equal list keeps its file, and with it its index"
    age(root)
    open_lines(root, cache=cache)
    open_lines(root, cache=cache)
    assert len(made) == 3


def test_other_questions_have_other_lists(tmp_path: Path) -> None:
    root, cache = tree(tmp_path / "images", "b/1.png", "c/2.png"), tmp_path / "cache"
    assert rows(open_lines(root, cache=cache)) == ["b/1.png 0", "c/2.png 1"]
    assert rows(open_lines(root, cache=cache, classes=["a", "b", "c"])) == ["b/1.png 1", "c/2.png 2"]
    assert rows(open_lines(root, cache=cache, classes=["c", "b"])) == ["b/1.png 1", "c/2.png 0"]
    warm = open_lines(root, cache=cache, classes=["c", "b"])
    assert warm.classes.names == ("c", "b")
    assert open_lines(root, cache=cache, classes=2).classes.names == ("b", "c")
    with pytest.raises(ClassesError, match=r"none of the 1 class \(b\)"):
        open_lines(root, cache=cache, classes=["b"])


def test_names_are_not_taken_for_numbers(tmp_path: Path) -> None:
    root, cache = tree(tmp_path / "images", "0/1.png", "1/2.png"), tmp_path / "cache"
    for given, wanted in [
        (Classes(["1", "0"]), ["0/1.png 1", "1/2.png 0"]),
        (Classes(["1", "0"], by_number=True), ["0/1.png 0", "1/2.png 1"]),
        (Classes.numbered(2), ["0/1.png 0", "1/2.png 1"]),
    ]:
        assert rows(open_lines(root, cache=cache, classes=given)) == wanted
        assert rows(open_lines(root, cache=cache, classes=given)) == wanted


def test_numbered_classes_are_kept_as_a_number(tmp_path: Path) -> None:
    root, cache = tree(tmp_path / "images", "0/1.png", "7/2.png"), tmp_path / "cache"
    open_lines(root, cache=cache)
    (about,) = cache.glob("*.json")
    assert json.loads(about.read_text())["classes"] == 8
    assert open_lines(root, cache=cache).classes.names == tuple("01234567")


@pytest.mark.parametrize(
    "harm", ["torn", "no list", "garbage", "other version", "no class", "elsewhere", "a list", "half"]
)
def test_a_spoilt_cache_is_made_anew(tmp_path: Path, harm: str) -> None:
    root, cache = tree(tmp_path / "images", "cat/1.png"), tmp_path / "cache"
    opened = open_lines(root, cache=cache)
    (about,) = cache.glob("*.json")
    if harm == "torn":
        opened.file.path.write_bytes(b"cat/1.p")
    elif harm == "no list":
        opened.file.path.unlink()
    elif harm == "elsewhere":
        (tmp_path / "secret.txt").write_text("secret 0\n")
        text = json.loads(about.read_text())
        about.write_text(json.dumps(text | {"list": "../secret.txt", "size_bytes": 9}))
    else:
        text = json.loads(about.read_text())
        content = {
            "garbage": "\0\1",
            "other version": json.dumps(text | {"version": 99}),
            "no class": json.dumps(text | {"classes": 0}),
            "a list": "[1, 2]",
            "half": about.read_text()[:50],
        }
        about.write_text(content[harm])
    assert rows(open_lines(root, cache=cache)) == ["cat/1.png 0"]
    assert rows(open_lines(root, cache=cache)) == ["cat/1.png 0"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tree(tmp_path / "images", "cat/1.png")
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, "rankrun.data"):
        opened = open_lines(root, cache=tmp_path / "file" / "cache")
    assert isinstance(opened.file, LineText)
    assert rows(opened) == ["cat/1.png 0"]
    assert "Not a directory: the list of" in caplog.text
    assert "stays in memory" in caplog.text


def test_a_disk_that_fills_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, cache = tree(tmp_path / "images", "cat/1.png"), tmp_path / "cache"

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert rows(open_lines(root, cache=cache)) == ["cat/1.png 0"]
    assert "No space left on device" in caplog.text
    assert os.listdir(cache) == [], "nothing torn is left"


def test_two_makers_at_once(tmp_path: Path) -> None:
    root, cache = tree(tmp_path / "images", *(f"{label}/{n}.png" for label in "abc" for n in range(30))), tmp_path / "c"
    results: list[list[str]] = []
    barrier = threading.Barrier(6)

    def make() -> None:
        barrier.wait(20)
        results.append(rows(open_lines(root, cache=cache)))

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 6
    assert all(result == results[0] for result in results)
    assert len(os.listdir(cache)) == 2


def test_what_was_left_behind_goes_in_time(tmp_path: Path) -> None:
    root, cache = tree(tmp_path / "images", "cat/1.png"), tmp_path / "cache"
    old = open_lines(root, cache=cache).file.path
    index = old.with_name(old.name + ".rankrun-index")
    index.write_bytes(b"its index")
    key = next(cache.glob("*.json")).stem
    torn, foreign = cache / f"{key}.tmp-1-00", cache / "foreign.txt"
    torn.write_bytes(b"")
    foreign.write_bytes(b"")
    tree(root, "cat/2.png")
    open_lines(root, cache=cache)
    assert old.exists()
    assert torn.exists()
    for path in (old, index, torn, foreign):
        os.utime(path, (time.time() - 40 * 86_400,) * 2)
    tree(root, "cat/3.png")
    newest = open_lines(root, cache=cache).file.path
    assert not old.exists()
    assert not index.exists()
    assert not torn.exists()
    assert foreign.exists()
    assert newest.exists()


def test_a_linked_folder_that_leads_elsewhere(tmp_path: Path) -> None:
    one, two = tree(tmp_path / "v1", "cat/1.png"), tree(tmp_path / "v2", "cat/2.png")
    for folder in (one, one / "cat", two, two / "cat"):
        os.utime(folder, (1_000_000, 1_000_000))
    (tmp_path / "now").symlink_to("v1")
    assert rows(open_lines(tmp_path / "now", cache=tmp_path / "cache")) == ["cat/1.png 0"]
    (tmp_path / "now").unlink()
    (tmp_path / "now").symlink_to("v2")
    assert rows(open_lines(tmp_path / "now", cache=tmp_path / "cache")) == ["cat/2.png 0"]


def test_tars_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            tree(tmp_path, f"x{number}.jpg", "label")
            tar.add(tmp_path / f"x{number}.jpg", f"x{number}.jpg")
            (tmp_path / "label").write_text("dog" if number else "cat")
            tar.add(tmp_path / "label", f"x{number}.cls")
    age(tmp_path)
    paths = [tmp_path / "0.tar", tmp_path / "1.tar"]
    made = listings(monkeypatch)
    for _ in range(2):
        opened = open_lines(paths, cache=tmp_path / "cache")
        assert [row.rpartition(" ")[2] for row in rows(opened)] == ["0", "1"]
        assert (opened.root, opened.classes.names) == (tmp_path, ("cat", "dog"))
    assert len(made) == 1
    os.utime(paths[1], (5, 5))
    open_lines(paths, cache=tmp_path / "cache")
    assert len(made) == 2


def test_what_is_a_source(tmp_path: Path) -> None:
    assert is_source(tmp_path)
    assert is_source("a/b.TAR")
    assert is_source("a.parquet")
    assert not is_source("a.txt")
    assert not is_source("a.tar.gz")


def test_kinds_are_not_mixed(tmp_path: Path) -> None:
    tree(tmp_path / "a", "cat/1.png")
    for given in ([tmp_path / "a", tmp_path / "a"], [tmp_path / "a", "b.tar"], ["b.tar", "c.parquet"]):
        with pytest.raises(
            MetaFileError, match="give one folder of class folders, or tars alone, or Parquet files alone"
        ):
            open_lines(given)
    with pytest.raises(MetaFileError, match="no folder, tar or Parquet file is given"):
        open_lines([], cache=tmp_path)
