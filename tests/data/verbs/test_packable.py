from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from data.errors import OutsideRootError, PackError
from data.meta import MetaFile
from data.verbs.packable import LARGEST_IMAGE, Item, extension_of, packable, tasks


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (9, 8, 7)).save(file, kind)
    return file.getvalue()


def items(meta: MetaFile, first: int = 0, resize: int | None = None) -> list[Item]:
    return [task() for task in tasks(packable(meta), first, resize)]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_endings_are_found_by_looking(kind: str) -> None:
    assert extension_of(picture(kind)) == {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
    assert extension_of(b"P5 1 1 255 x") == "pgm"
    for other in (b"", b"<svg", b"RIFF\0\0\0\0WAVE"):
        with pytest.raises(ValueError, match=r"zero bytes|no image"):
            extension_of(other)


def test_rows_from_any_on(tmp_path: Path) -> None:
    for row in range(5):
        (tmp_path / f"{row}.png").write_bytes(picture("JPEG"))
    (tmp_path / "m.txt").write_text("".join(f"{row}.png {row % 2}\n" for row in range(5)))
    (tmp_path / "without.txt").write_text("1\n")
    meta = MetaFile(tmp_path / "m.txt")
    assert items(meta, 3) == [
        Item(3, "", (1,), picture("JPEG"), "jpg", None),
        Item(4, "", (0,), picture("JPEG"), "jpg", None),
    ]
    assert items(meta, 5) == []
    left = MetaFile(tmp_path / "m.txt", exclude=tmp_path / "without.txt")
    assert [item.labels[0] for item in items(left)] == [0, 0, 1, 0]
    assert packable(meta).fingerprint != packable(left).fingerprint
    assert packable(meta).fingerprint != packable(MetaFile(tmp_path / "m.txt", root=tmp_path.parent)).fingerprint


def test_what_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "zero.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(LARGEST_IMAGE + 1)
    (tmp_path / "half.jpg").write_bytes(picture("JPEG")[:200])
    names = ["none.png", "zero.png", "pipe.png", "folder.png", "huge.png", "half.jpg"]
    (tmp_path / "m.txt").write_text("".join(f"{name} 0\n" for name in names))
    found = items(MetaFile(tmp_path / "m.txt"), resize=3)
    assert [item.place for item in found] == [f"{tmp_path}/m.txt:{row}  {name}" for row, name in enumerate(names, 1)]
    assert [item.reason for item in found[:5]] == [
        "No such file or directory",
        "the file has zero bytes",
        "no regular file",
        "no regular file",
        f"{LARGEST_IMAGE + 1} bytes, more than {LARGEST_IMAGE}",
    ]
    assert found[5].reason
    assert items(MetaFile(tmp_path / "m.txt"))[5].reason is None, "without resize nothing is decoded"


def test_spans_past_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(picture("JPEG"))
    (tmp_path / "m.txt").write_text(f"a.tar@0:50 0\na.tar@90000:10 0\na.tar@0:{LARGEST_IMAGE + 1} 0\n")
    found = items(MetaFile(tmp_path / "m.txt"))
    assert found[0].data == picture("JPEG")[:50]
    assert str(found[1].reason) == "the span 90000:10 goes 10 bytes past the end of the file"
    assert str(found[2].reason) == f"{LARGEST_IMAGE + 1} bytes, more than {LARGEST_IMAGE}"


def test_links_that_lead_out_are_never_passed_over(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture("PNG"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to("../secret.png")
    (tmp_path / "in" / "m.txt").write_text("a.png 0\n")
    with pytest.raises(OutsideRootError, match=r"m\.txt:1  a\.png leads out of the root .*in by a link"):
        items(MetaFile(tmp_path / "in" / "m.txt"))


def test_what_is_not_packed(tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    path.write_text("a/video.mp4 0\nb/video.mp4 1\n")
    with pytest.raises(PackError, match=r"rows are of kind 'video', and single images are packed"):
        packable(MetaFile(path))
    path.write_text("a.png\nb.png\n")
    with pytest.raises(PackError, match=r"m\.txt:1  a\.png: has no label, and every packed image needs one"):
        packable(MetaFile(path, bare=True))
