"""The lists of bad meta files and bad images of FAULTS.md, entry by entry: what is told, in one line each.

A meta file meets three looks: `check_ends` at a launch, `MetaFile` and its `check` where a run opens it, and the check
of all rows, which a shard build and `data check` make of those they take.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.datasets import IndexedDataset
from data.errors import DataError, ImageError, MetaFileError, OutsideRootError, RowError, SplitError
from data.meta import MetaFile, check_ends
from data.verbs.glance import glance

MANY = 2500


def rows(bad: bytes, at: int) -> bytes:
    lines = [b"a.png 0"] * MANY
    lines[at] = bad
    return b"\n".join(lines) + b"\n"


def packed(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "gzip":
        return gzip.compress(b"a.png 0\n")
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("m.txt", "a.png 0\n")
    else:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("a.png"))
    return file.getvalue()


UNUSABLE: dict[str, tuple[bytes | str, type[DataError], str]] = {
    "missing": ("missing", MetaFileError, r"meta file .*m\.txt: No such file or directory; is the path right\?"),
    "a FIFO": ("fifo", MetaFileError, r"m\.txt is no regular file .*: a meta file is read more than once"),
    "a device": ("/dev/zero", MetaFileError, "/dev/zero is no regular file"),
    "a loop of links": ("loop", MetaFileError, "Too many levels of symbolic links"),
    "empty": (b"", MetaFileError, r"m\.txt is empty: a meta file has one line 'path label' per image"),
    "blank lines alone": (b"\n \t\r\n\n", MetaFileError, "is empty: a meta file has one line"),
    "a byte order mark alone": (b"\xef\xbb\xbf\n", MetaFileError, "is empty"),
    "a header alone": (b"path,label\n", MetaFileError, r"m\.txt has a header and no row below it: one line per"),
    "gzip": (packed("gzip"), MetaFileError, r"m\.txt is gzip-compressed: unpack it first"),
    "zip": (packed("zip"), MetaFileError, r"m\.txt is zip-compressed: unpack it first"),
    "tar": (packed("tar"), MetaFileError, r"m\.txt is a tar: a tar of images is one whose name ends in \.tar"),
    "Parquet": (b"PAR1\0\0", MetaFileError, "is Parquet: a meta file is UTF-8 text"),
    "UTF-16": ("a.png 0\n".encode("utf-16"), MetaFileError, "is UTF-16 text: a meta file is UTF-8 text"),
    "an image": (b"\x89PNG\r\n\x1a\n", MetaFileError, "is a PNG image"),
    "a line of 10 MB": (b"a" * 10_000_000 + b" 0\n", RowError, r"m\.txt:1 .*more than 65536"),
    "a line of 10 MB, deep": (b"a.png 0\n" * 9000 + b"a" * 10_000_000 + b" 0\n", RowError, r"m\.txt:9001 .* 65536"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_meta_files(case: str, tmp_path: Path) -> None:
    content, kind, told = UNUSABLE[case]
    path = tmp_path / "m.txt"
    if content == "fifo":
        os.mkfifo(path)
    elif content == "loop":
        path.symlink_to(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content != "missing":
        path = Path(content)
    looks: list[Callable[[], object]] = [lambda: MetaFile(path, classes=3), lambda: MetaFile(path)]
    if not case.startswith("a line of 10 MB, deep"):  # a launch doesn't read that far in
        looks.append(lambda: check_ends(path, classes=3))
    for look in looks:
        within_a_second(look, kind, told)


def within_a_second(look: Callable[[], object], kind: type[DataError], told: str) -> None:
    """The look ends by itself, with one line."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            look()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it hangs"
    assert caught, "it was taken"
    assert isinstance(caught[0], kind), repr(caught[0])
    assert caught[0].exit_code == 2
    assert re.search(told, str(caught[0])), str(caught[0])
    assert len(str(caught[0]).splitlines()) == 1


BAD_ROWS: dict[str, tuple[bytes, type[DataError], str]] = {
    "blank": (b"", RowError, "is blank: every line is 'path label' .blank lines may stand at the end only"),
    "blanks": (b" \t ", RowError, "is blank"),
    "NUL": (b"a\0.png 0", RowError, "holds a NUL byte: a meta file is UTF-8 text"),
    "invalid UTF-8": (b"\xc3.png 0", RowError, r"byte 1 \(0xc3\) is not UTF-8: save the file as UTF-8"),
    "too few columns": (b"a.png", RowError, "'a.png' has no label: a line is 'path label'"),
    "label too large": (b"a.png 3", RowError, "label 3 is out of range: there are 3 classes .0, 1, 2., labels 0 … 2"),
    "label negative": (b"a.png -1", RowError, "label '-1' is below 0: labels are 0 … number of classes - 1"),
    "label no number": (b"a.png 1e3", RowError, "label '1e3' is neither a number nor one of the 3 classes"),
    "../": (b"../a.png 0", OutsideRootError, r"'\.\./a\.png' leaves the root.*data\.allow_outside_root=true"),
    "a/../../": (b"a/../../b.png 0", OutsideRootError, "leaves the root"),
    "absolute": (b"/etc/passwd 0", OutsideRootError, "'/etc/passwd' is absolute: paths are relative to the root"),
    "a container outside": (b"../s.tar@0:9 0", OutsideRootError, r"'\.\./s\.tar@0:9' leaves the root"),
}
BAD_COLUMNS: dict[str, tuple[bytes, type[DataError], str]] = {
    "too few columns": (b"a.png", RowError, "has 1 field parted by commas, where 2 are wanted"),
    "too many columns": (b"a.png,0,1", RowError, "has 3 fields parted by commas, where 2 are wanted; .*double quotes"),
    "an open quote": (b'"a.png,0', RowError, "a quoted field: it isn't closed on its line"),
    "label too large": (b'"a.png",3', RowError, "label 3 is out of range"),
    "../ in quotes": (b'"../a.png",0', OutsideRootError, "leaves the root"),
    "NUL": (b"a\0.png,0", RowError, "holds a NUL byte"),
}


@pytest.mark.parametrize("case", [*BAD_ROWS, *(f"csv: {case}" for case in BAD_COLUMNS)])
@pytest.mark.parametrize("at", [0, 1, 999, 1250, MANY - 1000, MANY - 1])
def test_bad_rows_at_the_ends_and_deep_inside(case: str, at: int, tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    if case.startswith("csv: "):
        bad, kind, told = BAD_COLUMNS[case[5:]]
        path.write_bytes(rows(bad, at).replace(b"a.png 0", b"a.png,0"))
    else:
        bad, kind, told = BAD_ROWS[case]
        path.write_bytes(rows(bad, at))
    if case in ("blank", "blanks") and at == MANY - 1:  # blank lines at the end are none
        assert check_ends(path, classes=3) == MetaFile(path, classes=3).n == MANY - 1
        return
    place = rf"m\.txt:{at + 1}  .*{told}"
    meta = MetaFile(path, classes=3)
    if 1000 <= at < MANY - 1000:
        assert check_ends(path, classes=3) == MANY
        meta.check()
    else:
        with pytest.raises(DataError, match=place):
            check_ends(path, classes=3)
        with pytest.raises(kind, match=place) as caught:
            meta.check()
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(kind, match=place):
        meta.check_all()
    wanted = np.array([at, *([at + 1] if at + 1 < MANY else [])])
    ((low, high, text, starts, stops),) = meta.gather(wanted)
    with pytest.raises(kind, match=place):  # as a shard build does that takes the row
        meta.check_chunk(wanted[low:high], text, starts, stops)
    with pytest.raises(kind, match=place):
        IndexedDataset(meta, on_error="replace")[at]


def test_what_is_read_though_it_looks_odd(tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    for content in (b"\xef\xbb\xbfa.png 0\r\nb.png 1\r\n", b"a.png 0\nb.png 1", b"a.png 0\nb.png 1\n\n \n\r\n"):
        path.write_bytes(content)
        assert check_ends(path, classes=2) == 2
        meta = MetaFile(path)
        assert [meta.record(row)[:2] for row in range(meta.n)] == [("a.png", 0), ("b.png", 1)]
        meta.check_all()


def test_no_step_in_an_epoch(tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    path.write_bytes(b"a.png 0\n" * 7)
    with pytest.raises(SplitError, match="7 rows"):
        glance(path, classes=1, global_batch=8, world_size=2)


def test_a_folder_without_class_folders(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match="d holds no class folders: images lie in one folder per class"):
        MetaFile(tmp_path / "d")
    with pytest.raises(MetaFileError, match="d is a folder where a meta file is wanted"):
        check_ends(tmp_path / "d")


def test_a_meta_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read anything, so the kernel's answer is played."""

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MetaFileError, match=r"m\.txt: Permission denied; is the path right"):
        MetaFile(tmp_path / "m.txt")


def test_links_out_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(picture(), "PNG"))
    (tmp_path / "root" / "file.png").symlink_to(secret)
    (tmp_path / "root" / "folder").symlink_to(tmp_path)
    (tmp_path / "root" / "s.tar").symlink_to(secret)
    (tmp_path / "root" / "inside.png").write_bytes(secret.read_bytes())
    (tmp_path / "root" / "good.png").symlink_to("inside.png")
    meta = tmp_path / "root" / "m.txt"
    names = ["good.png", "file.png", "folder/secret.png", f"s.tar@0:{secret.stat().st_size}"]
    meta.write_text("".join(f"{name} 0\n" for name in names))
    for policy in ("raise", "replace"):
        dataset = IndexedDataset(meta, classes=1, on_error=policy)
        assert dataset[0][0].shape == (3, 10, 7)
        for row in (1, 2, 3):
            with pytest.raises(OutsideRootError, match=rf"m\.txt:{row + 1}  .* leads out of the root .* by a link"):
                dataset[row]
    allowed = IndexedDataset(meta, classes=1, allow_outside_root=True)
    assert [allowed[row][0].shape for row in range(4)] == [(3, 10, 7)] * 4


def picture(height: int = 10, width: int = 7) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(kind: str) -> bytes:
    """60,000 x 60,000 pixels in a few bytes."""
    if kind == "GIF":
        screen = b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0x80, 0, 0) + b"\0" * 6
        return screen + b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x02\x02\x4c\x01\x00;"
    if kind == "BMP":
        return b"BM" + struct.pack("<IHHIIiiHHIIIIII", 1000, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = b""
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 10)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return b"\x89PNG\r\n\x1a\n" + chunks


LARGE = {kind: encoded(picture(64, 64), kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")}
UNREADABLE = {
    "missing.png": (None, "No such file or directory"),
    "folder.png": ("folder", "no regular file|Is a directory"),
    "pipe.png": ("pipe", "no regular file"),
    "zero.png": (b"", "the file has zero bytes"),
    "page.jpg": (b"\n<!DOCTYPE html><html>404</html>", "no image .it looks like an HTML page.; read are JPEG, PNG"),
    "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "it looks like SVG"),
    "eps.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file\n", "it looks like PostScript"),
    "pdf.jpg": (b"%PDF-1.4\n", "it looks like PDF"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "noise.png": (b"\x01\x02\x03\x04 garbage", "no image .it begins with"),
    "bomb.png": (bomb("PNG"), "60000 x 60000 pixels are more than|decompression bomb"),
    "bomb.gif": (bomb("GIF"), "60000 x 60000 pixels are more than|decompression bomb"),
    "bomb.bmp": (bomb("BMP"), "60000 x 60000 pixels are more than|decompression bomb"),
} | {
    f"{percent}.{kind.lower()}": (whole[: len(whole) * percent // 100], "broken or truncated|no image")
    for kind, whole in LARGE.items()
    for percent in (10, 50, 99)
}  # fmt: skip

TURNED = Image.Exif()
TURNED[0x112] = 6
READABLE = {
    "cmyk.jpg": (encoded(picture().convert("CMYK"), "JPEG"), (3, 10, 7)),
    "palette.png": (encoded(picture().convert("P"), "PNG"), (3, 10, 7)),
    "palette alpha.png": (encoded(picture().convert("P"), "PNG", transparency=0), (3, 10, 7)),
    "sixteen.png": (encoded(Image.fromarray(np.full((10, 7), 257, np.uint16)), "PNG"), (3, 10, 7)),
    "alpha.png": (encoded(picture().convert("RGBA"), "PNG"), (3, 10, 7)),
    "turned.jpg": (encoded(picture(), "JPEG", exif=TURNED), (3, 7, 10)),
    "1x1.png": (encoded(picture(1, 1), "PNG"), (3, 1, 1)),
    "animated.gif": (encoded(picture(), "GIF", save_all=True, append_images=[picture()]), (3, 10, 7)),
    "animated.webp": (encoded(picture(), "WEBP", save_all=True, append_images=[picture()]), (3, 10, 7)),
    "wrong ending.jpg": (encoded(picture(), "PNG"), (3, 10, 7)),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them, and the meta file m.txt."""
    folder = tmp_path_factory.mktemp("images")
    for name, (content, _) in {**UNREADABLE, **READABLE}.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        elif content == "folder":
            (folder / name).mkdir()
        elif content == "pipe":
            os.mkfifo(folder / name)
    (folder / "m.txt").write_text("".join(f"{name} 0\n" for name in [*UNREADABLE, *READABLE]))
    return folder


@pytest.mark.parametrize("decoder", ["torchcodec", "pillow"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_images(images: Path, name: str, decoder: str) -> None:
    row = list(UNREADABLE).index(name)
    with pytest.raises(ImageError) as caught:
        IndexedDataset(images / "m.txt", classes=1, decoder=decoder)[row]
    told = str(caught.value)
    assert told.startswith(f"{images}/m.txt:{row + 1}  {name}: "), told
    assert re.search(UNREADABLE[name][1], told), told
    assert len(told.splitlines()) == 1
    assert "data.on_error=replace takes another image in its place" in told


@pytest.mark.parametrize("decoder", ["torchcodec", "pillow"])
@pytest.mark.parametrize("name", READABLE)
def test_readable_images(images: Path, name: str, decoder: str) -> None:
    row = len(UNREADABLE) + list(READABLE).index(name)
    image, label = IndexedDataset(images / "m.txt", classes=1, decoder=decoder)[row]
    assert (tuple(image.shape), str(image.dtype), label) == (READABLE[name][1], "torch.uint8", 0)
