from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.index import sidecar
from data.index.sidecar import HEADER_BYTES, Header, look, places, publish

Write = Callable[..., Path]

BODY = b"totals__sums____co"
HEADER = Header(
    version=1,
    size_bytes=9,
    mtime_ns=7,
    read_ns=8,
    rows=2,
    first=0,
    end=8,
    fingerprint="f" * 32,
    pages=1,
    labels_bytes=0,
)


def test_the_standard_library_can_read_the_header(tmp_path: Path) -> None:
    assert publish(tmp_path / "a", HEADER, BODY) is not None
    with open(tmp_path / "a", "rb") as file:
        line = file.readline()
    assert len(line) == HEADER_BYTES
    found = json.loads(line)
    assert list(found)[:4] == ["magic", "version", "size_bytes", "mtime_ns"]
    assert found["magic"] == "rankrun-index"
    assert (found["rows"], found["fingerprint"], found["labels_bytes"]) == (2, "f" * 32, 0)
    assert (tmp_path / "a").read_bytes()[HEADER_BYTES:] == BODY


def test_it_is_found_as_it_was_written(tmp_path: Path) -> None:
    place = tmp_path / "new" / "folder" / "a"
    written = publish(place, HEADER, BODY)
    found = look(place)
    assert found.header == written
    assert bytes(found.body) == BODY
    assert found.whole
    assert not found.foreign
    assert os.listdir(place.parent) == ["a"]
    assert publish(place, HEADER, BODY[:-1] + b"x") is not None
    assert bytes(look(place).body)[-1:] == b"x"


def test_the_moment_of_reading_is_by_the_clock_of_the_file_system(tmp_path: Path) -> None:
    written = publish(tmp_path / "a", HEADER, BODY, began=time.monotonic() - 5)
    assert written is not None
    assert 4.9e9 < (tmp_path / "a").stat().st_mtime_ns - written.read_ns < 30e9


def test_damage_of_any_byte_is_noticed(tmp_path: Path) -> None:
    place = tmp_path / "a"
    assert publish(place, HEADER, BODY)
    good = place.read_bytes()
    in_use = len(good[:HEADER_BYTES].rstrip())
    for at in [*range(0, in_use, 7), *range(HEADER_BYTES, len(good))]:
        place.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert not look(place).whole, at
    for length in [0, 1, 20, 100, in_use, HEADER_BYTES - 1, HEADER_BYTES, len(good) - 1]:
        place.write_bytes(good[:length])
        found = look(place)
        assert found.header is None, length
        assert not found.foreign, length  # it is made anew
    place.write_bytes(good + b"x")
    assert look(place).header is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 2},
        {"rows": "2"},
        {"rows": True},
        {"pages": 2},
        {"labels_bytes": -1},
        {"more": 1},
        {"fingerprint": None},
    ],
)
def test_a_header_that_is_not_ours_is_not_used(tmp_path: Path, wrong: dict[str, Any]) -> None:
    place = tmp_path / "a"
    assert publish(place, HEADER, BODY)
    line = json.loads(place.read_bytes()[:HEADER_BYTES]) | wrong
    place.write_bytes(json.dumps(line).encode().ljust(HEADER_BYTES - 1) + b"\n" + BODY)
    assert look(place).header is None


def test_what_is_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("my notes\n")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "json").write_text('{"magic": "other"}')
    for name in ("text", "folder", "pipe", "loop", "json"):
        assert look(tmp_path / name).foreign, name
        assert publish(tmp_path / name, HEADER, BODY) is None, name
    assert (tmp_path / "text").read_text() == "my notes\n"
    assert sorted(os.listdir(tmp_path)) == ["folder", "json", "loop", "pipe", "text"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["open", "pwrite", "fsync", "replace"])
def test_a_place_that_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    place = tmp_path / "a"

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        assert publish(place, HEADER, BODY) is None
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    assert publish(tmp_path / "file" / "a", HEADER, BODY) is None


def test_an_unfinished_draft_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "a"

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # as SIGKILL would have it
        with pytest.raises(Killed):
            publish(place, HEADER, BODY)
    assert look(place).header is None
    assert len(os.listdir(tmp_path)) == 1
    assert publish(place, HEADER, BODY) is not None
    assert look(place).whole


def test_places(tmp_path: Path) -> None:
    assert places(tmp_path / "m.txt", None) == [tmp_path / "m.txt.rankrun-index"]
    beside, cached = places(tmp_path / "m.txt", tmp_path / "cache")
    assert beside == tmp_path / "m.txt.rankrun-index"
    assert cached.parent == tmp_path / "cache"
    assert cached.name.endswith("-m.txt.rankrun-index")
    assert places(tmp_path / "other" / "m.txt", tmp_path / "cache")[1] != cached
    long = places(tmp_path / ("x" * 250), tmp_path / "cache")[1]
    assert len(long.name) < 100
    assert sidecar.SUFFIX == ".rankrun-index"
