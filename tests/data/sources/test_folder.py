from __future__ import annotations

import os
from pathlib import Path

import pytest

from data.datasets import FolderDataset, open_dataset
from data.errors import ClassesError, ImageError, OptionError
from data.formats.classes import Classes
from data.meta import MetaFile
from data.sources.folder import any_folder_meta, check_folder, is_image, list_folder
from data.verbs.glance import glance


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def rows(root: Path, **options: object) -> list[tuple[str, int]]:
    meta = MetaFile(root, **options)  # type: ignore[arg-type]
    return [meta.record(row)[:2] for row in range(meta.n)]


def test_names_sorted_by_bytes(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "dog/1.png",
        "Zebra/b c.JPG",
        "ä/x.png",
        "dog/deep/2.png",
        "dog/notes.txt",
        "dog/.hid.png",
        ".git/a.png",
    )
    assert rows(tmp_path) == [("Zebra/b c.JPG", 0), ("dog/1.png", 1), ("dog/deep/2.png", 1), ("ä/x.png", 2)]
    assert MetaFile(tmp_path).classes == ("Zebra", "dog", "ä")
    assert MetaFile(tmp_path).root_of(0) == tmp_path


def test_whole_numbers_are_labels(tmp_path: Path) -> None:
    tree(tmp_path, "10/a.png", "2/b.png", "00/c.png")
    assert rows(tmp_path) == [("00/c.png", 0), ("10/a.png", 10), ("2/b.png", 2)]
    assert MetaFile(tmp_path).num_classes == 11
    # a validation set is given the training set's classes
    assert rows(tmp_path, classes=MetaFile(tmp_path).classes)[1] == ("10/a.png", 10)


def test_given_classes_fix_the_labels(tmp_path: Path) -> None:
    tree(tmp_path, "b/1.png", "c/1.png")
    assert rows(tmp_path, classes=["a", "b", "c"]) == [("b/1.png", 1), ("c/1.png", 2)]
    with pytest.raises(ClassesError, match=r"class folder .*/c is none of the 2 classes \(a, b\).*; .* or remove it$"):
        MetaFile(tmp_path, classes=["a", "b"])


@pytest.mark.parametrize("check", [MetaFile, check_folder])
def test_a_number_of_classes_with_named_folders(tmp_path: Path, check: object) -> None:
    assert callable(check)
    tree(tmp_path, "square/1.png", "circle/1.png")
    check(tmp_path, classes=2)
    assert MetaFile(tmp_path, classes=2).classes == ("circle", "square")
    assert rows(tmp_path, classes=2) == [("circle/1.png", 0), ("square/1.png", 1)]
    told = r"holds 2 class folders \(circle, square\), but data\.classes is 4: remove data\.classes, or list the names"
    with pytest.raises(ClassesError, match=told):
        check(tmp_path, classes=4)
    tree(tmp_path / "digits", "0/1.png", "7/1.png")
    assert MetaFile(tmp_path / "digits", classes=10).num_classes == 10


def test_a_folder_named_by_another_number_keeps_its_own_label(tmp_path: Path) -> None:
    tree(tmp_path, "1/a.png", "cat/b.png")
    assert rows(tmp_path) == [("1/a.png", 0), ("cat/b.png", 1)]
    tree(tmp_path / "turned", "0/a.png", "1/b.png")
    assert rows(tmp_path / "turned", classes=["1", "0"]) == [("0/a.png", 1), ("1/b.png", 0)]


def test_the_list_is_in_memory_and_never_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/1.png", "b/1.png")
    first = MetaFile(tmp_path)
    assert first.fingerprint == MetaFile(write_list(tmp_path.parent / "same.txt", first)).fingerprint
    tree(tmp_path, "a/2.png")
    assert (first.n, MetaFile(tmp_path).n) == (2, 3)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"], "nothing is left in the user's folder"
    assert first.place(1) == str(tmp_path / "b/1.png")
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("../" + tmp_path.name, mode="indexed")
    with pytest.raises(ImageError, match=rf"^\.\./{tmp_path.name}/a/2\.png: no image"):
        dataset[1]


def write_list(path: Path, meta: MetaFile) -> Path:
    path.write_bytes(b"".join(meta.line(row) + b"\n" for row in range(meta.n)))
    return path


@pytest.mark.parametrize("check", [MetaFile, check_folder])
def test_refusals(tmp_path: Path, check: object) -> None:
    assert callable(check)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClassesError, match="holds no class folders: images lie in one folder per class"):
        check(tmp_path / "empty")
    with pytest.raises(ClassesError, match=r"class folder .*none: No such file or directory"):
        (list_folder if check is MetaFile else check)(tmp_path / "none")
    root = tree(tmp_path / "one", "a/1.png", "b/notes.txt")
    with pytest.raises(ClassesError, match=r"class folder .*one/b holds no image \(.*\.png"):
        check(root)
    root = tree(tmp_path / "two", "1/a.png", "01/a.png")
    with pytest.raises(ClassesError, match="two class folders are the same number"):
        check(root)


def test_names_that_no_line_can_hold(tmp_path: Path) -> None:
    for bad in ("a\nb.png", "a\rb.png"):
        root = tree(tmp_path / str(len(os.listdir(tmp_path))), f"c/{bad}")
        with pytest.raises(ClassesError, match="can't stand in a meta file: rename it"):
            MetaFile(root)
    root = tree(tmp_path / "bytes", "c/ok.png")
    (root / "c" / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    with pytest.raises(ClassesError, match="can't stand in a meta file"):
        MetaFile(root)


def test_datasets_over_folders(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "b/1.png", "b/2.png")
    assert len(FolderDataset(tmp_path, seed=1)) == 3
    assert FolderDataset(tmp_path).classes == ("a", "b")
    opened = open_dataset(str(tmp_path), mode="rank", rank=1, world_size=2, tail="pad")
    assert len(opened) == 2
    with pytest.raises(OptionError, match=r"data\.root=x with the folder"):
        open_dataset(str(tmp_path), root="x")


def test_images_by_their_ending() -> None:
    assert is_image("a.JPG")
    assert is_image("a/b.c/d.tiff")
    assert not is_image("jpg")
    assert not is_image("a.txt")


def test_what_cannot_be_looked_into_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/1.png", "b/deep/1.png")
    inner = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return inner(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ClassesError, match=r"^class folder .*b/deep: Permission denied$"):
        MetaFile(tmp_path)


def test_links_to_folders_are_followed_for_classes_alone(tmp_path: Path) -> None:
    tree(tmp_path / "far", "1.png", "in/2.png")
    tree(tmp_path / "root", "a/1.png")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "far")
    (tmp_path / "root" / "a" / "loop").symlink_to("..")
    assert rows(tmp_path / "root") == [("a/1.png", 0), ("b/1.png", 1), ("b/in/2.png", 1)]


def test_any_folder_of_images(tmp_path: Path) -> None:
    tree(tmp_path, "train/cat/1.png", "train/dog/2.png", "mixed/x.png", "mixed/cat/3.png")
    meta, known = any_folder_meta(tmp_path / "train", classes=Classes(["dog", "cat"]))
    assert known
    assert [tuple(meta.record(row)[:2]) for row in range(2)] == [("cat/1.png", 1), ("dog/2.png", 0)]
    meta, known = any_folder_meta(tmp_path / "train" / "cat", classes=Classes(["dog", "cat"]))
    assert known
    assert tuple(meta.record(0)[:2]) == ("1.png", 1)
    meta, known = any_folder_meta(tmp_path / "mixed", classes=Classes(["dog", "cat"]))
    assert not known
    assert [tuple(meta.record(row)[:2]) for row in range(2)] == [("cat/3.png", 0), ("x.png", 0)]
    (tmp_path / "none").mkdir()
    with pytest.raises(ClassesError, match=r"none holds no image \(\.bmp \.gif"):
        any_folder_meta(tmp_path / "none", classes=Classes(["dog"]))


def test_a_folder_of_tars_is_a_glob(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar", "x.txt"):
        (tmp_path / name).touch()
    for look in (MetaFile, check_folder):
        with pytest.raises(
            ClassesError, match=rf"^{tmp_path} holds no class folders, but 2 tar files: give '.*/\*\.tar'$"
        ):
            look(tmp_path)


@pytest.mark.parametrize("check", [MetaFile, check_folder])
def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, check: object) -> None:
    assert callable(check)
    root = tree(tmp_path / "set", "train/cat/1.png", "train/dog/1.png", "val/cat/2.png")
    told = (
        rf"^{root} holds train and val, which are parts of a data set and no classes: give one of them, as data\.train"
    )
    for classes in (None, 2):
        with pytest.raises(ClassesError, match=told + rf": {root}/train \(data\.classes"):
            check(root, classes=classes)
    with pytest.raises(ClassesError, match="holds test, which are parts"):
        check(tree(tmp_path / "one", "test/cat/1.png"))
    check(root, classes=["train", "val"])
    check(root / "train")
    check(tree(tmp_path / "vehicles", "train/1.png", "bus/1.png"))
    check(tree(tmp_path / "alone", "test/1.png"))


def test_class_folders_that_hold_only_folders_are_doubted(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", "a/cat/1.png", "b/dog/1.png", "b/cat/1.png")
    doubt = f"; CAREFUL: they hold no images but folders of images: are those of {root}/b the classes?"
    assert MetaFile(root).told.endswith(f"2 classes (a, b){doubt}")
    assert glance(root).told == f"{root}: 2 class folders{doubt}"
    assert MetaFile(tree(tmp_path / "deep", "a/images/1.png", "b/images/1.png")).told.endswith("2 classes (a, b)")
    tree(root, "b/2.png")
    assert not MetaFile(root).told.endswith("?")
    assert glance(root).told == f"{root}: 2 class folders"
