from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ChangedError, ClassesError, DataError, MetaFileError, OutsideRootError, RowError
from data.meta import MetaFile
from data.sources import tars
from data.sources.listing import Listing
from data.sources.tars import list_tars, members, read_span, samples

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def make(path: Path, files: dict[str, bytes] | list[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def special(path: Path, name: str, kind: bytes, link: str = "") -> Path:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        tar.addfile(info)
    return path


def lines(listing: Listing) -> list[bytes]:
    return b"".join(listing.text()).splitlines()


NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(NAMES.map(lambda name: name.replace("..", "x").strip("/") or "x"), min_size=1, max_size=8),
    depth=st.integers(0, 12),
    form=st.sampled_from(FORMATS),
    window=st.sampled_from([1, 512, 700, 8192]),
    sizes=st.lists(st.integers(0, 2000), min_size=8, max_size=8),
)
def test_members_are_those_of_tarfile(
    names: list[str], depth: int, form: int, window: int, sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = "/".join(["a long folder name"] * depth) + "/" * bool(depth)
    files = [(folder + name, os.urandom(size)) for name, size in zip(names, sizes, strict=False)]
    path = tmp_path_factory.getbasetemp() / "any.tar"
    try:
        make(path, files, form)
    except ValueError:  # too long a name for ustar
        return
    with pytest.MonkeyPatch.context() as patch, tarfile.open(path) as tar:
        patch.setattr(tars, "WINDOW_BYTES", window)
        wanted = [(info.name.removeprefix("./"), info.offset_data, info.size) for info in tar]
        found = list(members(path))
        # tarfile drops slashes at the end of a name
        assert [(name.rstrip("/"), offset, size) for name, offset, size in found] == wanted
        for member, (_, content) in zip(found, files, strict=True):
            assert read_span(path, member.offset, member.size) == content


def test_folders_long_names_and_a_first_dot(tmp_path: Path) -> None:
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "1.jpg").write_bytes(b"x")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "in", arcname=".")
    assert [member.name for member in members(tmp_path / "a.tar")] == ["cat/1.jpg"]


def test_base_256_sizes_are_read(tmp_path: Path) -> None:
    path = make(tmp_path / "a.tar", {"a.jpg": b"12345", "a.cls": b"1"})
    content = bytearray(path.read_bytes())
    content[124:136] = b"\x80" + (5).to_bytes(11, "big")
    path.write_bytes(sealed(content, 0))
    assert [member.size for member in members(path)] == [5, 1]
    content[124:136] = b"\xff" * 12
    path.write_bytes(sealed(content, 0))
    with pytest.raises(MetaFileError, match=r"a\.tar: the header at byte 0 has no legal size$"):
        list(members(path))


def sealed(content: bytearray, at: int) -> bytes:
    """The tar with the right checksum in the header at a byte."""
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    return bytes(content)


def test_signed_checksums_of_old_tars(tmp_path: Path) -> None:
    path = make(tmp_path / "a.tar", {"\xe4\xf6.jpg": b"1"})
    content = bytearray(path.read_bytes())
    content[148:156] = b" " * 8
    signed = sum(byte - 256 * (byte > 127) for byte in content[:512])
    content[148:156] = b"%06o\0 " % signed
    path.write_bytes(content)
    assert [member.name for member in members(path)] == ["\xe4\xf6.jpg"]


def test_webdataset_as_it_is(tmp_path: Path) -> None:
    files = [
        ("__index__", b"not a sample"),
        ("0001.cls", b"3\n"),
        ("0001.JPG", b"one"),
        ("sub.dir/0002.jpg", b"two"),
        ("sub.dir/0002.json", b'{"label": 12, "note": "x"}'),
        ("0003.png", b"three"),
        ("0003.txt", b" 7 "),
        ("0003.seg.png", b"a mask"),
        ("README", b"no key"),
        (".hidden.jpg", b"no key either"),
        ("words.txt", b"a caption without a picture"),
        ("0004.v2.jpg", b"four"),
        ("0004.v2.cls", b"2"),
        ("0004.cls", b"9"),
    ]
    path = make(tmp_path / "a b.tar", files)
    passed: Counter[str] = Counter()
    found = list(samples(path, passed))
    assert [(sample.key, sample.labels) for sample in found] == [
        ("0001", ("3",)),
        ("sub.dir/0002", ("12",)),
        ("0003", ("7",)),
        ("0004", ("2",)),
    ]
    assert [read_span(path, sample.image.offset, sample.image.size) for sample in found] == [
        b"one",
        b"two",
        b"three",
        b"four",
    ]
    assert passed == {"name without a key": 3, ".seg.png": 1, "key without an image": 1, ".cls": 1}
    listing = list_tars([path])
    assert lines(listing)[0] == b"a b.tar@%d:3 3" % found[0].image.offset
    assert listing.classes.names == tuple(map(str, range(13)))
    assert listing.told == (
        "1 tar, an image and a label by name, 4 rows, 13 classes (0, 1, 2, 3, 4, …); passed over: "
        "3 x name without a key, 1 x .seg.png, 1 x key without an image, 1 x .cls"
    )
    assert listing.text() is not None
    assert lines(listing) == lines(listing), "the text can be read again"


def test_what_was_passed_over_is_told_on_one_line(tmp_path: Path) -> None:
    files = {"a.jpg": b"", "a.cls": b"1", "a.x\n\x1b[31m": b""} | {f"a.{number}": b"" for number in range(200)}
    listing = list_tars([make(tmp_path / "a.tar", files)])
    assert listing.told.isprintable()
    assert "102 x other file" in listing.told, "of endings people can make up any number"


def test_names_are_numbered_over_all_tars(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    one = make(tmp_path / "1.tar", {"a.jpg": b"1", "a.cls": b"golden retriever", "b.jpg": b"2", "b.cls": b"cat"})
    two = make(tmp_path / "x" / "2.tar", {"c.jpg": b"3", "c.json": b'{"class_name": "\xc3\xa4ffin"}'})
    listing = list_tars([one, two])
    assert listing.classes.names == ("cat", "golden retriever", "äffin")
    assert [line.split()[-1] for line in lines(listing)] == [b"1", b"0", b"2"]
    assert lines(listing)[2].startswith(b"x/2.tar@")
    assert not listing.several
    given = list_tars([one], classes=["cat", "dog", "golden retriever"])
    assert [line.split()[-1] for line in lines(given)] == [b"2", b"0"]
    with pytest.raises(RowError, match=r"1\.tar: 'a'  label 'golden retriever' is none of the 2 classes \(cat, dog\)"):
        list_tars([one], classes=["cat", "dog"])
    with pytest.raises(
        ClassesError, match=r"^2 classes by name \(cat, golden retriever\), but data\.classes is 3: rem"
    ):
        list_tars([one], classes=3)
    assert list_tars([one], classes=2).classes.names == ("cat", "golden retriever")


def test_several_labels(tmp_path: Path) -> None:
    files = {
        "a.jpg": b"1",
        "a.json": b'{"labels": [3, 7]}',
        "b.jpg": b"2",
        "b.cls": b"0,5",
        "c.jpg": b"3",
        "c.cls": b"1",
    }
    listing = list_tars([make(tmp_path / "a.tar", files)], classes=10)
    assert [line.split()[-1] for line in lines(listing)] == [b"3,7", b"0,5", b"1"]
    assert listing.several
    with pytest.raises(RowError, match=r"a\.tar: 'a'  label '7' is none of the 5 classes"):
        list_tars([tmp_path / "a.tar"], classes=5)


def test_several_labels_that_come_late(tmp_path: Path) -> None:
    files = [(f"{row}.{kind}", b"1") for row in range(1200) for kind in ("jpg", "cls")]
    meta = MetaFile(make(tmp_path / "a.tar", [*files, ("x.jpg", b""), ("x.cls", b"0,2")]))
    assert meta.multi_label
    assert meta.record(1200).labels == (0, 2)
    assert meta.record(0).labels == (1,)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            {"a.jpg": b"", "b.cls": b"1"},
            r"'a' has no label: beside the image .* \(there are \.jpg; files of one key are n",
        ),
        ({"a.jpg": b"", "a.json": b"{}"}, r"'a' has no label: .* \(there are \.jpg, \.json;"),
        ({"p.1.jpg": b"", "p.2.jpg": b""}, r"'p' has 2 images \(1\.jpg, 2\.jpg\): a key ends at the first dot"),
        ({"p.jpg": b"", "p.png": b"", "p.cls": b""}, r"'p' has 2 images \(jpg, png\)"),
        ([("a.jpg", b""), ("a.JPG", b"")], r"'a\.JPG' stands there twice in one sample"),
        ({"a.jpg": b"", "a.txt": b"a dog in the snow"}, r"'a\.txt' is a text of several words, no label"),
        ({"a.jpg": b"", "a.cls": b"\xff"}, r"'a\.cls' is no UTF-8 text, so no label"),
        ({"a.jpg": b"", "a.cls": b""}, r"'a'  label '' is neither a number nor a name of one line"),
        ({"a.jpg": b"", "a.cls": b"a\nb"}, r"label 'a\\nb' is neither a number nor a name of one line"),
        ({"a.jpg": b"", "a.cls": b"-1"}, r"'a'  label -1 is below 0"),
        ({"a.jpg": b"", "a.cls": b"1" * (2 << 20)}, r"'a\.cls' of 2097152 bytes is no label"),
        ({"a.jpg": b"", "a.json": b"{"}, r"'a\.json' is no JSON$"),
        ({"a.jpg": b"", "a.json": b"[" * 200_000}, r"'a\.json' is no JSON$"),
        ({"a.jpg": b"", "a.json": b'{"label": 1.5}'}, r"'a\.json': '1\.5' is no label: a whole number, a name, or"),
        ({"a.jpg": b"", "a.json": b'{"label": true}'}, r"'True' is no label"),
        ({"a.jpg": b"", "a.json": b'{"label": []}'}, r"'\[\]' is no label"),
    ],
)
def test_samples_that_are_refused(tmp_path: Path, files: dict[str, bytes], told: str) -> None:
    with pytest.raises(RowError, match=told) as caught:
        list_tars([make(tmp_path / "a.tar", files)])
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)


def test_tars_without_a_sample(tmp_path: Path) -> None:
    with pytest.raises(
        MetaFileError, match=r"a\.tar: no image with a label \(it is empty\); a sample is an image and a"
    ):
        list_tars([make(tmp_path / "a.tar", {})])
    with pytest.raises(MetaFileError, match=r"b\.tar and 1 more: no image with a label \(2 x key without an image\)"):
        list_tars([make(tmp_path / "b.tar", {"x.cls": b"1"}), make(tmp_path / "c.tar", {"x.wav": b"1"})])


@pytest.mark.parametrize(
    ("name", "kind", "link", "error", "told"),
    [
        (
            "a.jpg",
            tarfile.SYMTYPE,
            "../secret",
            MetaFileError,
            r"member 'a\.jpg' is a symbolic link: only files are read",
        ),
        ("a.jpg", tarfile.LNKTYPE, "/etc/passwd", MetaFileError, "is a hard link"),
        ("a.jpg", tarfile.CHRTYPE, "", MetaFileError, "is a device"),
        ("a.jpg", tarfile.BLKTYPE, "", MetaFileError, "is a device"),
        ("a.jpg", tarfile.FIFOTYPE, "", MetaFileError, "is a pipe"),
        ("a.jpg", tarfile.GNUTYPE_SPARSE, "", MetaFileError, r"member 'a\.jpg' is sparse: pack plain files"),
        ("a.jpg", b"Q", "", MetaFileError, r"has the unknown type b'Q': pack plain files"),
        ("../a.jpg", tarfile.REGTYPE, "", OutsideRootError, r"member '\.\./a\.jpg' climbs out of the tar"),
        ("a/../../b.jpg", tarfile.REGTYPE, "", OutsideRootError, "climbs out of the tar"),
        ("/etc/a.jpg", tarfile.REGTYPE, "", OutsideRootError, "climbs out of the tar"),
        ("../", tarfile.DIRTYPE, "", OutsideRootError, "climbs out of the tar"),
    ],
)
def test_hostile_members(tmp_path: Path, name: str, kind: bytes, link: str, error: type[DataError], told: str) -> None:
    (tmp_path / "secret").write_text("never printed")
    (tmp_path / "in").mkdir()
    path = special(tmp_path / "in" / "a.tar", name, kind, link)
    with pytest.raises(error, match=told) as caught:
        list_tars([path])
    assert "never printed" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["in", "secret"]
    assert os.listdir(tmp_path / "in") == ["a.tar"]


def test_sparse_and_damaged_pax_headers(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        tar.addfile(info)
    with pytest.raises(MetaFileError, match="a member at byte 512 is sparse: pack plain files"):
        list(members(tmp_path / "a.tar"))
    for record in (
        b"99 path=x\n",
        b"x path=x\n",
        b"10 pathxx\n",
        b"11 path=xyz",
        b"0 path=x\n",
        b"path",
        b"-9 path=x\n",
    ):
        path = make(tmp_path / "b.tar", {"h": record, "a.jpg": b"1"})
        content = bytearray(path.read_bytes())
        content[156:157] = b"x"
        path.write_bytes(sealed(content, 0))
        with pytest.raises(MetaFileError, match="the pax header at byte 512 is damaged"):
            list(members(path))
    path = make(tmp_path / "b.tar", {"h": b"12 size=-10\n", "a.jpg": b"1"})
    path.write_bytes(
        sealed(bytearray(path.read_bytes().replace(b"h\0", b"h\0", 1)[:156] + b"x" + path.read_bytes()[157:]), 0)
    )
    with pytest.raises(MetaFileError, match="the pax header at byte 512 has no legal size"):
        list(members(path))


def test_a_long_pax_header_is_read_in_one_pass(tmp_path: Path) -> None:
    # 100,000 records: parsing by cutting the rest off each time would copy 100 GB
    path = make(tmp_path / "a.tar", {"h": b"9 a=bcd\n\n"[:8].replace(b"9", b"8") * 100_000, "a.jpg": b"1"})
    content = bytearray(path.read_bytes())
    content[156:157] = b"x"
    path.write_bytes(sealed(content, 0))
    assert [member.name for member in members(path)] == ["a.jpg"]


def test_a_header_that_is_too_long(tmp_path: Path) -> None:
    path = make(tmp_path / "a.tar", {"h": b"1" * (2 << 20)})
    content = bytearray(path.read_bytes())
    content[156:157] = b"L"
    path.write_bytes(sealed(content, 0))
    with pytest.raises(MetaFileError, match=r"a header of 2097152 bytes at byte 512: the tar is damaged"):
        list(members(path))


@pytest.mark.parametrize("size", [4096, 0o77777777777])
def test_a_header_that_claims_too_much(tmp_path: Path, size: int) -> None:
    path = make(tmp_path / "a.tar", {"a.jpg": b"x" * 100, "a.cls": b"1"})
    content = bytearray(path.read_bytes()[: 4 * 512 + 1024])
    content[124:136] = b"%011o\0" % size
    path.write_bytes(sealed(content, 0))
    with pytest.raises(MetaFileError, match=rf"member 'a\.jpg' at byte 0 has {size} bytes, but the file ends before"):
        list_tars([path])


def test_a_header_that_claims_too_little(tmp_path: Path) -> None:
    path = make(tmp_path / "a.tar", {"a.jpg": b"x" * 2000, "a.cls": b"1"})
    content = bytearray(path.read_bytes())
    content[124:136] = b"%011o\0" % 100
    path.write_bytes(sealed(content, 0))
    with pytest.raises(MetaFileError, match="at byte 1024 stands no header: it is damaged, or one lied about size"):
        list_tars([path])


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = make(tmp_path / "a.tar", {"a.jpg": b"x" * 700, "a.cls": b"1", "b.jpg": b"y", "b.cls": b"2"}).read_bytes()
    end = whole.rstrip(b"\0")
    length = -(-len(end) // 512) * 512
    path = tmp_path / "cut.tar"
    for size in [0, 1, 100, 511, 512, 513, 1000, 1536, 2048, 2560, 3000, length - 1, length]:
        path.write_bytes(whole[:size])
        with pytest.raises(MetaFileError, match=r"cut off\?|truncated|damaged|is no tar"):
            list_tars([path])
    path.write_bytes(whole[:length])
    with pytest.raises(
        MetaFileError, match=rf"ends after {length} bytes without .* 'truncate -s \+1024 .*cut\.tar' adds"
    ):
        list_tars([path])
    os.truncate(path, length + 1024)
    assert len(lines(list_tars([path]))) == 2


def test_what_is_no_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for content, told in [
        (b"\x1f\x8b\x08 packed", r"a\.tar is gzip-compressed: unpack it first"),
        (b"a.jpg 1\n" * 200, r"a\.tar: it is no tar$"),
        (os.urandom(5000).replace(b"\x1f\x8b", b"xx").replace(b"BZ", b"xx"), "it is no tar"),
    ]:
        path.write_bytes(content)
        with pytest.raises(MetaFileError, match=told):
            list_tars([path])
    with pytest.raises(MetaFileError, match=r"none\.tar: No such file or directory"):
        list_tars([tmp_path / "none.tar"])
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(MetaFileError, match="no regular file"):
        list_tars([tmp_path / "pipe.tar"])
    with pytest.raises(MetaFileError, match="can't stand in a meta file: rename it"):
        list_tars([make(tmp_path / "a\nb.tar", {"a.jpg": b"1", "a.cls": b"1"})])


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "a.tar", {"a.jpg": b"1" * 20_000, "a.cls": b"1"})
    inner = os.pread

    def pread(fd: int, count: int, at: int) -> bytes:
        if at > 10_000:
            raise OSError(5, "Input/output error")
        return inner(fd, count, at)

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(MetaFileError, match=r"a\.tar: Input/output error at byte 20992$"):
        list_tars([path])


def test_joined_tars_are_not_half_read(tmp_path: Path) -> None:
    one = make(tmp_path / "a.tar", {"a.jpg": b"1", "a.cls": b"1"}).read_bytes()
    (tmp_path / "b.tar").write_bytes(one + one)
    with pytest.raises(
        MetaFileError, match="more bytes follow a tar's end mark at byte 2048: were tars joined by 'cat'"
    ):
        list_tars([tmp_path / "b.tar"])


def test_a_tar_that_is_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "a.tar", {"a.jpg": b"1", "a.cls": b"1"})
    inner = tars.samples

    def slow(path: Path, passed: Counter[str]) -> object:
        yield from inner(path, passed)
        with open(path, "ab") as file:
            file.write(b"\0" * 512)

    monkeypatch.setattr(tars, "samples", slow)
    with pytest.raises(ChangedError, match=r"a\.tar changed while it was read: is something still writing it"):
        list_tars([path])


def test_spans(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    assert read_span(path, 2, 3) == b"234"
    assert read_span(path, 2, 0) == b""
    with pytest.raises(ValueError, match="the span 8:5 goes 3 bytes past the end of the file"):
        read_span(path, 8, 5)
    with pytest.raises(OSError, match="No such file"):
        read_span(tmp_path / "y", 0, 1)


def test_json_keys_in_their_order(tmp_path: Path) -> None:
    both = json.dumps({"category": "late", "label": 4}).encode()
    found = list(
        samples(make(tmp_path / "a.tar", {"a.jpg": b"", "a.json": both, "b.jpg": b"", "b.json": b"5"}), Counter())
    )
    assert [sample.labels for sample in found] == [("4",), ("5",)]


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4),
    seals=st.booleans(),
    cut=st.integers(0, 20_000),
)
def test_any_damage_is_told_or_harmless(
    form: int, changes: list[tuple[int, bytes]], seals: bool, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    long = "folder/" * 20
    make(path, {f"{long}a.jpg": b"x" * 600, f"{long}a.cls": b"1", "ä.jpg": b"y", "ä.json": b'{"label": 2}'}, form)
    content = bytearray(path.read_bytes())
    for at, change in changes:
        at %= len(content)
        content[at : at + len(change)] = change
        if seals:  # a liar signs what he wrote
            sealed(content, at // 512 * 512)
    path.write_bytes(content[: len(content) - cut % len(content)])
    size = path.stat().st_size
    found, told, ends = [], "", 0
    try:
        found = [sample.image for sample in samples(path, Counter())]
    except DataError as error:
        told = str(error)
    assert "\n" not in told
    for _, offset, length in found:
        assert ends <= offset
        ends = offset + length
        assert 512 <= offset <= ends <= size
