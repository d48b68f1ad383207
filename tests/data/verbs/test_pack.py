from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import signal
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError, ImageError, OptionError, OutsideRootError, PackError
from data.meta import MetaFile
from data.sources.tars import read_span, samples
from data.verbs import pack as packing
from data.verbs.pack import WORK, Packed, pack

SMALL = 64 << 10  # the smallest legal shard


def picture(seed: int, width: int = 60, height: int = 50, kind: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves the page cache as it is: nothing here waits for the disk, which took nine tenths of the time."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A meta file of 30 pictures of about 9 KB, which make six small shards."""
    folder = tmp_path_factory.mktemp("source")
    for row in range(30):
        (folder / f"{row} x.png").write_bytes(picture(row))
    path = folder / "train.txt"
    path.write_text("".join(f"{row} x.png {'cat' if row % 3 else 'dog'}\n" for row in range(30)))
    return path


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed pack makes."""
    out = tmp_path_factory.mktemp("packed") / "out"
    pack(MetaFile(source), out, shard_bytes=SMALL)
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_rows_keep_their_order_and_their_bytes(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out, told = tmp_path / "out", list[int]()
    packed = pack(MetaFile(source), out, shard_bytes=SMALL, progress=told.append)
    assert packed == Packed(out / "meta.txt", 30, 6, sum(map(len, tars(whole).values())), 0, 0)
    assert contents(out) == whole
    assert sorted(whole) == ["classes.txt", "meta.txt", "pack.json", *(f"shard-{n:06d}.tar" for n in range(6))]
    assert whole["classes.txt"] == b"cat\ndog\n"
    assert all(len(content) <= SMALL for content in tars(whole).values())
    assert told == [*range(1, 31), 0, 5, 10, 15, 20, 25, 30]

    meta = MetaFile(packed.meta, classes=out / "classes.txt")
    assert meta.classes == ("cat", "dog")
    for row in range(30):
        record = meta.record(row)
        assert record.label == (0 if row % 3 else 1)
        assert record.offset is not None
        assert record.length is not None
        found = read_span(out / record.path, record.offset, record.length)
        assert found == (source.parent / f"{row} x.png").read_bytes()


def tars(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.endswith(".tar")}


def test_others_read_the_shards(whole: dict[str, bytes], source: Path, tmp_path: Path) -> None:
    for name, content in tars(whole).items():
        (tmp_path / name).write_bytes(content)
    with tarfile.open(tmp_path / "shard-000001.tar") as tar:
        infos = tar.getmembers()
        assert [info.name for info in infos[:2]] == ["000000005.png", "000000005.cls"]
        assert {(info.mtime, info.uid, info.mode) for info in infos} == {(0, 0, 0o644)}
        file = tar.extractfile(infos[0])
        assert file is not None
        assert file.read() == (source.parent / "5 x.png").read_bytes()
    meta = MetaFile(str(tmp_path / "*.tar"), classes=["cat", "dog"])
    assert [meta.record(row).label for row in range(30)] == [0 if row % 3 else 1 for row in range(30)]


def test_threads_change_nothing(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    for workers in (1, 7):
        pack(MetaFile(source), tmp_path / str(workers), shard_bytes=SMALL, workers=workers)
        assert contents(tmp_path / str(workers)) == whole


def test_done_is_done(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(MetaFile(source), out, shard_bytes=SMALL)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / WORK).mkdir()  # what a kill in the very last step leaves
    again = pack(MetaFile(source), out, shard_bytes=SMALL)
    assert (again.kept, again.shards, again.rows) == (6, 6, 30)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    (out / "shard-000002.tar").write_bytes(b"x")
    with pytest.raises(
        PackError, match=r"shard-000002\.tar is not the \d+ bytes that were packed: remove .*out and pack"
    ):
        pack(MetaFile(source), out, shard_bytes=SMALL)
    (out / "shard-000002.tar").write_bytes(whole["shard-000002.tar"])
    (out / "meta.txt").unlink()
    with pytest.raises(PackError, match=r"meta\.txt is missing: remove"):
        pack(MetaFile(source), out, shard_bytes=SMALL)


CALLS = ("fsync", "replace", "unlink", "mkdir", "rmdir", "ftruncate", "pwrite")


def killed_at(point: int, act: Callable[[], object]) -> bool:
    """Runs `act` in a child that is killed before its `point`-th change of a file; False if it got through."""
    child = os.fork()
    if child == 0:
        left = point

        def counted(inner: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return inner(*arguments, **options)

            return call

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_kill_at_every_point_costs_one_shard_at_most(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    path.write_text("".join(f"{row} x.png {row}\n" for row in range(8)))
    act = partial(pack, MetaFile(path, root=source.parent), shard_bytes=SMALL, workers=1)
    act(tmp_path / "whole")
    whole, point, kept = contents(tmp_path / "whole"), 1, list[int]()
    while killed_at(point, partial(act, out := tmp_path / str(point))):
        published = {path.name for path in out.glob("shard-*.tar")} if out.exists() else set()
        if (out / "meta.txt").exists():
            assert len(published) == 2, "a meta file names whole shards only"
        kept.append(act(out).kept)
        assert contents(out) == whole
        assert kept[-1] >= len(published) - 1
        point += 1
    assert point > 30
    assert kept == sorted(kept)
    assert {kept[0], kept[-1]} == {0, 2}


def test_a_pack_killed_twice(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    meta = MetaFile(source)
    for point in (40, 45, 30, 50):
        killed_at(point, partial(pack, meta, tmp_path / "out", shard_bytes=SMALL))
    pack(meta, tmp_path / "out", shard_bytes=SMALL)
    assert contents(tmp_path / "out") == whole


def half(meta: MetaFile, out: Path, **options: Any) -> None:
    """Packs until row 20, then is stopped."""

    def stop(done: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(meta, out, shard_bytes=SMALL, progress=stop, **options)


def test_whole_shards_are_kept_when_it_is_stopped(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    half(MetaFile(source), out)
    assert sorted(os.listdir(out)) == [WORK, *(f"shard-{n:06d}.tar" for n in range(3))]
    assert not list((out / WORK).glob("*.tmp-*"))
    seen: list[int] = []
    packed = pack(MetaFile(source), out, shard_bytes=SMALL, progress=seen.append)
    assert packed.kept == 3
    assert seen[0] == 16, "rows of whole shards are not read again"
    assert contents(out) == whole


def test_what_was_torn_is_made_anew(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    meta = MetaFile(source)
    for number, (name, content, kept) in enumerate(
        [
            (f"{WORK}/shard-000001.rows", b"", 1),
            (f"{WORK}/shard-000001.rows", b"{}\n", 1),
            (f"{WORK}/shard-000002.rows", b"[1]\n", 2),
            ("shard-000000.tar", b"short", 0),
            (f"{WORK}/shard-000002.tar.tmp-1-aa", b"torn", 3),
        ]
    ):
        out = tmp_path / str(number)
        half(meta, out)
        (out / name).write_bytes(content)
        assert pack(meta, out, shard_bytes=SMALL).kept == kept
        assert contents(out) == whole


def test_a_flipped_bit_is_found(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for at, told in [
        (1000, r"shard-000001\.tar: row 5 of the source is not what was written"),
        (3, r"shard-000001\.tar can't be read back: .* it is no tar"),
    ]:
        half(MetaFile(source), out)
        spoilt = bytearray(whole["shard-000001.tar"])
        spoilt[at] ^= 1
        (out / "shard-000001.tar").write_bytes(spoilt)
        with pytest.raises(PackError, match=told + r".*: the same command, given again, makes anew what follows"):
            pack(MetaFile(source), out, shard_bytes=SMALL)
        assert not (out / "meta.txt").exists()
        assert pack(MetaFile(source), out, shard_bytes=SMALL).kept == 1
        assert contents(out) == whole
        for path in out.iterdir():
            path.unlink()


def test_a_full_disk(source: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, left = tmp_path / "out", 9
    inner = os.fsync

    def fsync(fd: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        inner(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    told = (
        r"out: No space left on device: what is whole is kept; mend that, give the same command again and it goes on$"
    )
    with pytest.raises(PackError, match=told):
        pack(MetaFile(source), out, shard_bytes=SMALL)
    assert [path.name for path in out.iterdir() if path.name == "meta.txt"] == []
    assert not list((out / WORK).glob("*.tmp-*")), "what can't be finished takes no room"
    monkeypatch.undo()
    assert pack(MetaFile(source), out, shard_bytes=SMALL).kept == 2
    assert contents(out) == whole


def test_two_at_once(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    inside, go = threading.Event(), threading.Event()

    def wait(done: int) -> None:
        inside.set()
        assert go.wait(20)

    first = threading.Thread(target=lambda: pack(MetaFile(source), out, shard_bytes=SMALL, progress=wait))
    first.start()
    assert inside.wait(20)
    with pytest.raises(PackError, match=rf"out is being packed by process {os.getpid()} on .*: wait until it is done"):
        pack(MetaFile(source), out, shard_bytes=SMALL)
    go.set()
    first.join(30)
    assert contents(out) == whole


def test_two_at_once_where_there_are_no_locks(
    source: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(fd: int, how: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    out, barrier = tmp_path / "out", threading.Barrier(3)
    problems: list[DataError] = []

    def act() -> None:
        barrier.wait(20)
        try:
            pack(MetaFile(source), out, shard_bytes=SMALL)
        except DataError as error:
            problems.append(error)

    threads = [threading.Thread(target=act) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(isinstance(problem, PackError) for problem in problems)
    pack(MetaFile(source), out, shard_bytes=SMALL)
    assert contents(out) == whole, "whoever was second disturbed nothing"


def test_a_lock_that_its_holder_just_removed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    inner, removed = fcntl.flock, 0

    def flock(fd: int, how: int) -> None:
        nonlocal removed
        if not removed:
            removed += 1
            (out / WORK / "lock").unlink()
        inner(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert pack(MetaFile(source), out, shard_bytes=SMALL).rows == 30
    assert removed == 1


def test_folders_that_are_something_else(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(PackError, match=r"out holds 'thesis\.txt' and is no pack: give a new or an empty folder"):
        pack(MetaFile(source), out)
    assert contents(out) == {"thesis.txt": b"precious"}
    (out / "thesis.txt").unlink()
    for content in ("{}", "[]", "not json", '{"magic": "rankrun-pack", "version": 99}'):
        (out / "pack.json").write_text(content)
        with pytest.raises(PackError, match=r"pack\.json is no file of this version of 'data pack'"):
            pack(MetaFile(source), out)
    (tmp_path / "file").write_text("")
    with pytest.raises(PackError, match="file: File exists"):
        pack(MetaFile(source), tmp_path / "file")
    folder = tmp_path / "images"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1.png").write_bytes(picture(1))
    with pytest.raises(PackError, match=r"lies among the class folders of .*images and would be one"):
        pack(MetaFile(folder), folder / "packed")
    assert os.listdir(folder) == ["cat"]
    assert pack(MetaFile(folder), tmp_path / "packed").rows == 1


@pytest.mark.parametrize("finished", [False, True])
def test_another_source_or_other_settings(source: Path, tmp_path: Path, finished: bool) -> None:
    out, meta = tmp_path / "out", MetaFile(source)
    if finished:
        pack(meta, out, shard_bytes=SMALL)
    else:
        half(meta, out)
    other = tmp_path / "other.txt"
    other.write_text(source.read_text().replace("29 x", "28 x"))
    for given, options, told in [
        (MetaFile(other, root=source.parent), {}, "is a pack of other rows: give another folder, or remove that one"),
        (MetaFile(source, classes=["dog", "cat"]), {}, "is a pack of other classes"),
        (meta, {"resize": 20}, "is a pack of resize None and not 20"),
        (meta, {"shard_bytes": 1 << 20}, "is a pack of shard_bytes 65536 and not 1048576"),
        *[(meta, {"on_error": "skip"}, "is a pack of on_error raise and not skip")] * finished,
    ]:
        with pytest.raises(PackError, match=told):
            pack(given, out, **{"shard_bytes": SMALL, **options})


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A list of 12 rows of which 0, 1, 5, 6, 7 and 11 can't be read."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for row in range(12):
        (folder / f"{row}.png").write_bytes(picture(row, 90, 80))
    (folder / "0.png").write_bytes(b"")
    (folder / "1.png").unlink()
    (folder / "5.png").write_bytes(b"<!DOCTYPE html>")
    (folder / "6.png").unlink()
    os.mkfifo(folder / "6.png")
    (folder / "7.png").unlink()
    (folder / "7.png").mkdir()
    (folder / "11.png").write_bytes(b"\xff\xd8\xff no")
    path = folder / "meta.txt"
    path.write_text("".join(f"{row}.png {row % 2}\n" for row in range(12)))
    return path


def test_images_that_cannot_be_read_stop_it(broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = r"meta\.txt:1  0\.png: the file has zero bytes \(mend it and give the same command again; on_error 'skip' "
    with pytest.raises(ImageError, match=told):
        pack(MetaFile(broken), out, shard_bytes=SMALL)
    for row in (0, 1):
        (broken.parent / f"{row}.png").write_bytes(picture(row))
    with pytest.raises(ImageError, match=r"meta\.txt:6  5\.png: no image \(it begins with b'<!DOCTYP'\)"):
        pack(MetaFile(broken), out, shard_bytes=SMALL)
    (broken.parent / "5.png").write_bytes(picture(5))
    with pytest.raises(ImageError, match=r"meta\.txt:7  6\.png: no regular file"):
        pack(MetaFile(broken), out, shard_bytes=SMALL)


def test_images_that_cannot_be_read_are_left_out(broken: Path, tmp_path: Path) -> None:
    meta = MetaFile(broken)
    whole = tmp_path / "whole"
    packed = pack(meta, whole, shard_bytes=SMALL, on_error="skip", resize=60)
    assert (packed.rows, packed.skipped) == (6, 6)
    skipped = (whole / "skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in skipped] == ["0", "1", "5", "6", "7", "11"]
    assert skipped[1] == f"1\t{broken}:2  1.png: No such file or directory"
    keys = [sample.key for path in sorted(whole.glob("*.tar")) for sample in samples(path, Counter())]
    assert keys == [f"{row:09d}" for row in (2, 3, 4, 8, 9, 10)], "the numbers are those of the source"
    made = MetaFile(packed.meta, classes=2)
    assert [made.record(row).label for row in range(6)] == [0, 1, 0, 0, 1, 0]
    point = 1
    act = partial(pack, meta, shard_bytes=SMALL, on_error="skip", resize=60)
    while killed_at(point, partial(act, tmp_path / str(point))):
        again = act(tmp_path / str(point))
        assert (again.rows, again.skipped) == (6, 6)
        assert contents(tmp_path / str(point)) == contents(whole)
        point += 5


def test_skipped_rows_between_shards(broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    packed = pack(MetaFile(broken), out, shard_bytes=SMALL, on_error="skip")
    assert (packed.rows, packed.shards, packed.skipped) == (6, 3, 6), "the head of a JPEG is no image"


def test_torn_images_are_left_out_and_found_only_by_decoding(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    for row in range(2):
        (tmp_path / f"{row}.png").write_bytes(picture(row))
    (tmp_path / "1.png").write_bytes(picture(1)[:2000])
    path.write_text("0.png 0\n1.png 0\n")
    packed = pack(MetaFile(path), tmp_path / "skip", on_error="skip")
    assert (packed.rows, packed.skipped) == (1, 1)
    assert "m.txt:2  1.png: " in (tmp_path / "skip" / "skipped.txt").read_text()
    assert read_span(tmp_path / "skip" / "shard-000000.tar", 512, len(picture(0))) == picture(0), (
        "bytes stay as they are"
    )
    assert pack(MetaFile(path), tmp_path / "raise").rows == 2, "copied, and never decoded"


def test_a_failed_pack_goes_on_with_another_policy(broken: Path, tmp_path: Path) -> None:
    meta, out, other = MetaFile(broken), tmp_path / "out", tmp_path / "other"
    (broken.parent / "0.png").write_bytes(picture(0, 90, 80))
    (broken.parent / "1.png").write_bytes(picture(1, 90, 80)[:-100])
    for row in (2, 3, 4):
        (broken.parent / f"{row}.png").write_bytes(picture(row, 120, 100))
    with pytest.raises(ImageError, match="on_error 'skip' leaves such rows out"):
        pack(meta, out, shard_bytes=SMALL)
    assert list((out / WORK).glob("*.rows")), "a whole shard was made, with an image that is torn"
    assert pack(meta, out, shard_bytes=SMALL, on_error="skip").kept == 0
    pack(meta, other, shard_bytes=SMALL, on_error="skip")
    assert contents(out) == contents(other)


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    path.write_text("a.png 0\nb.png 1\n")
    with pytest.raises(PackError, match=r"out: none of 2 images could be read; .*m\.txt:1  a\.png: No such file"):
        pack(MetaFile(path), tmp_path / "out", on_error="skip")
    assert not (tmp_path / "out" / "meta.txt").exists()


def test_links_that_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture(1))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to("../secret.png")
    (tmp_path / "in" / "far").symlink_to("..")
    path = tmp_path / "in" / "m.txt"
    for name in ("a.png", "far/secret.png"):
        path.write_text(f"{name} 0\n")
        for policy in ("raise", "skip"):
            with pytest.raises(OutsideRootError, match=rf"m\.txt:1  {name} leads out of the root .*in by a link"):
                pack(MetaFile(path), tmp_path / f"out-{policy}-{name[0]}", on_error=policy)
        assert pack(MetaFile(path, allow_outside_root=True), tmp_path / f"allowed-{name[0]}").rows == 1


def test_spans_are_packed_again(whole: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    meta = MetaFile(tmp_path / "meta.txt", classes=tmp_path / "classes.txt")
    pack(meta, tmp_path / "again", shard_bytes=SMALL)
    assert tars(contents(tmp_path / "again")) == tars(whole)
    listed = MetaFile(str(tmp_path / "*.tar"), classes=tmp_path / "classes.txt")
    pack(listed, tmp_path / "listed", shard_bytes=SMALL)
    assert tars(contents(tmp_path / "listed")) == tars(whole)
    os.truncate(tmp_path / "shard-000004.tar", 30_000)
    with pytest.raises(ImageError, match=r"the span \d+:\d+ goes \d+ bytes past the end of the file"):
        pack(meta, tmp_path / "cut", shard_bytes=SMALL)


def test_several_labels(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    path.write_text("0 x.png 3,7\n1 x.png 0\n2 x.png 1,2,3\n")
    out = tmp_path / "out"
    packed = pack(MetaFile(path, root=source.parent), out)
    assert [line.rpartition(" ")[2] for line in packed.meta.read_text().splitlines()] == ["3,7", "0", "1,2,3"]
    assert MetaFile(packed.meta, classes=out / "classes.txt").record(0).labels == (3, 7)
    found = [sample.labels for sample in samples(out / "shard-000000.tar", Counter())]
    assert found == [("3", "7"), ("0",), ("1", "2", "3")]


def test_images_of_parquet(tmp_path: Path) -> None:
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from data.sources.parquet import ParquetImages

    data = [picture(row, kind="JPEG") for row in range(20)]
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    column = arrow.array([{"bytes": image, "path": None} for image in data], kind)
    table = arrow.table({"image": column, "label": [row % 4 for row in range(20)]})
    files.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    source = ParquetImages([tmp_path / "a.parquet"])
    packed = pack(source, tmp_path / "out", shard_bytes=SMALL)
    assert packed.rows == 20
    assert packed.shards > 1
    meta = MetaFile(packed.meta, classes=4)
    for row in range(20):
        record = meta.record(row)
        assert record.label == row % 4
        assert read_span(tmp_path / "out" / record.path, record.offset or 0, record.length or 0) == data[row]
    point = 1
    while killed_at(point, partial(pack, source, tmp_path / str(point), shard_bytes=SMALL)):
        pack(source, tmp_path / str(point), shard_bytes=SMALL)
        assert contents(tmp_path / str(point)) == contents(tmp_path / "out")
        point += 9
    empty = arrow.table({"image": arrow.array([{"bytes": data[0]}, {"bytes": None}], kind), "label": [0, 1]})
    files.write_table(empty, tmp_path / "b.parquet")
    with pytest.raises(ImageError, match=r"b\.parquet: row 1: the row has no image"):
        pack(ParquetImages([tmp_path / "b.parquet"]), tmp_path / "none")


def test_an_image_larger_than_a_shard(tmp_path: Path) -> None:
    for row, width in enumerate((60, 400, 60)):
        (tmp_path / f"{row}.png").write_bytes(picture(row, width, 100))
    (tmp_path / "m.txt").write_text("0.png 0\n1.png 0\n2.png 0\n")
    packed = pack(MetaFile(tmp_path / "m.txt"), tmp_path / "out", shard_bytes=SMALL)
    assert (packed.rows, packed.shards) == (3, 3)


def test_resized(tmp_path: Path) -> None:
    for name, content in {
        "large.jpg": picture(1, 300, 200, "JPEG"),
        "small.jpg": picture(2, 50, 40, "JPEG"),
        "large.jpg.png": picture(3, 100, 300),
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "m.txt").write_text("large.jpg 0\nsmall.jpg 0\nlarge.jpg.png 0\n")
    pack(MetaFile(tmp_path / "m.txt"), tmp_path / "out", resize=64)
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        files = {info.name: tar.extractfile(info).read() for info in tar if not info.name.endswith("cls")}  # type: ignore[union-attr]
    assert list(files) == ["000000000.jpg", "000000001.jpg", "000000002.png"]
    assert [Image.open(io.BytesIO(content)).size for content in files.values()] == [(96, 64), (50, 40), (64, 192)]
    assert files["000000001.jpg"] == (tmp_path / "small.jpg").read_bytes()


def test_options(source: Path, tmp_path: Path) -> None:
    meta = MetaFile(source)
    for options, told in [
        ({"shard_bytes": 1000}, "shard_bytes 1000: legal are 65536 and more"),
        ({"resize": 0}, "resize 0: legal are 1 … 65536 pixels"),
        ({"on_error": "replace"}, "on_error 'replace': legal are raise, skip"),
        ({"workers": 0}, "workers 0: legal are 1 and more"),
    ]:
        with pytest.raises(OptionError, match=told):
            pack(meta, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_rows_without_a_label(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    path.write_text("0 x.png\n1 x.png\n")
    with pytest.raises(PackError, match=r"m\.txt:1  0 x\.png: has no label, and every packed image needs one"):
        pack(MetaFile(path, root=source.parent, bare=True), tmp_path / "out")
    path = tmp_path / "m.jsonl"
    path.write_text('{"path": "0 x.png", "labels": [1, 2]}\n{"path": "1 x.png", "labels": []}\n')
    with pytest.raises(PackError, match=r"m\.jsonl:2  1 x\.png: has no label, and every packed image needs one"):
        pack(MetaFile(path, root=source.parent), tmp_path / "out")


def test_clips_are_not_packed(tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    path.write_text("a/video.mp4 0\nb/video.mp4 1\n")
    with pytest.raises(PackError, match=r"rows are of kind 'video', and single images are packed"):
        pack(MetaFile(path), tmp_path / "out")


def test_the_list_changes_meanwhile(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    path.write_text(source.read_text())
    meta = MetaFile(path, root=source.parent)
    path.write_text(source.read_text().replace("\n", " \n"))
    with pytest.raises(DataError, match=r"m\.txt changed"):
        pack(meta, tmp_path / "out")


def test_an_image_that_changes_between_two_tries(source: Path, tmp_path: Path) -> None:
    for row in range(30):
        (tmp_path / f"{row} x.png").write_bytes((source.parent / f"{row} x.png").read_bytes())
    (tmp_path / "m.txt").write_bytes(source.read_bytes())
    meta, out = MetaFile(tmp_path / "m.txt"), tmp_path / "out"
    half(meta, out)
    for row in range(18, 30):
        (tmp_path / f"{row} x.png").write_bytes(picture(row, 6, 5))
    packed = pack(meta, out, shard_bytes=SMALL)
    assert (packed.rows, packed.shards) == (30, 4), "fewer shards than an earlier try might have made"
    assert sorted(path.name for path in out.glob("*.tar")) == [f"shard-{n:06d}.tar" for n in range(4)]


def test_what_it_was_stands_in_pack_json(whole: dict[str, bytes]) -> None:
    about = json.loads(whole["pack.json"])
    assert about["magic"] == packing.MAGIC
    assert (about["rows"], about["packed"], about["skipped"], about["resize"]) == (30, 30, 0, None)
    assert about["sizes_bytes"] == [len(content) for content in tars(whole).values()]
