"""The two data scripts: what they write, that they write all of it or nothing, and what they say to bad input."""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

DATASETS = Path(__file__).resolve().parents[1] / "datasets"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DATASETS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def read_meta(path: Path) -> list[tuple[str, int]]:
    lines = (line.rsplit(" ", 1) for line in path.read_text().splitlines())
    return [(image, int(label)) for image, label in lines]


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below `folder` with its inode and the time of its last change."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """fashion_mnist.py as a module, with image_folder.py beside it importable, as when it is run."""
    monkeypatch.syspath_prepend(str(DATASETS))
    spec = importlib.util.spec_from_file_location("fashion_mnist", DATASETS / "fashion_mnist.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("image_folder", None)


# Digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "digits"
    done = run("digits.py", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_digits_are_scikit_learns_images_split_by_class(digits: Path) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    train, val = read_meta(digits / "train.txt"), read_meta(digits / "val.txt")
    assert (len(train), len(val)) == (1442, 355)
    for label in range(10):
        count = int((bunch.target == label).sum())
        assert sum(1 for _, found in val if found == label) == count // 5
        assert sum(1 for _, found in train if found == label) == count - count // 5
    images = [np.asarray(Image.open(digits / path)) for path, _ in train + val]
    assert {(image.shape, image.dtype.str) for image in images} == {((8, 8), "|u1")}
    expected = np.rint(bunch.images * 255 / 16).astype(np.uint8)
    assert sorted(image.tobytes() for image in images) == sorted(image.tobytes() for image in expected)
    assert (digits / "classes.txt").read_text().split() == [str(label) for label in range(10)]


def test_the_held_out_digits_stay_the_same_ones(digits: Path) -> None:
    """Golden: a split that moves would mix training images into the held-out ones of earlier runs."""
    first = [path for path, _ in read_meta(digits / "val.txt")][:4]
    assert first == ["val/0/00000.png", "val/5/00001.png", "val/5/00002.png", "val/0/00003.png"]
    assert np.asarray(Image.open(digits / first[0])).sum() == 5132


def test_a_second_run_changes_nothing(digits: Path) -> None:
    before = state(digits.parent)
    again = run("digits.py", digits)
    assert (again.returncode, again.stdout) == (0, f"{digits}: already there (1442 + 355 images)\n")
    assert state(digits.parent) == before


def test_a_damaged_folder_is_said_and_left_alone(digits: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "digits"
    shutil.copytree(digits, damaged)
    next((damaged / "val" / "3").iterdir()).unlink()
    before = state(damaged)
    stopped = run("digits.py", damaged)
    assert stopped.returncode == 2
    assert "val.txt lists 355 of 355 images and 354 are there; remove it" in stopped.stderr
    assert state(damaged) == before


def test_a_folder_that_is_something_else_is_said_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "mine.txt").touch()
    stopped = run("digits.py", tmp_path / "digits")
    assert stopped.returncode == 2
    assert "is there but incomplete" in stopped.stderr
    assert len(stopped.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*.txt")] == ["mine.txt"]


def test_leftovers_of_a_killed_run_go_and_those_of_a_live_one_stay(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = tmp_path / f".digits.tmp-{socket.gethostname()}-{ended.pid}"
    live = tmp_path / f".digits.tmp-{socket.gethostname()}-{os.getpid()}"
    elsewhere = tmp_path / f".digits.tmp-another-host-{ended.pid}"
    for folder in (dead, live, elsewhere):
        folder.mkdir()
    assert run("digits.py", tmp_path / "digits").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([elsewhere.name, live.name, "digits"])


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stopped = run("digits.py", tmp_path / "file" / "digits")
    assert stopped.returncode == 2
    assert len(stopped.stderr.splitlines()) == 1
    assert "Traceback" not in stopped.stderr


def test_without_scikit_learn_it_says_how_to_get_it(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.modules['sklearn.datasets'] = None; sys.argv = sys.argv[1:]; "
        f"sys.path.insert(0, {str(DATASETS)!r}); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(DATASETS / "digits.py"), str(tmp_path / "digits")]
    stopped = subprocess.run(command, capture_output=True, text=True)
    assert stopped.returncode == 2
    assert stopped.stderr == "digits.py: scikit-learn is not installed; `make setup`, or: pip install scikit-learn\n"
    assert list(tmp_path.iterdir()) == []


# Fashion-MNIST, with its real numbers where Debian's package is there and with small ones elsewhere


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small set of idx files, half of them gzipped: 20 training images and 10 held-out ones."""
    folder = tmp_path / "idx files"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    return folder


def make(modules: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(modules, "COUNTS", {"train": 20, "val": 10})
    monkeypatch.setattr(sys, "argv", ["fashion_mnist.py", *map(str, arguments)])
    modules.main()


def test_idx_files_become_pngs(
    modules: ModuleType, monkeypatch: pytest.MonkeyPatch, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "fashion_mnist"
    make(modules, monkeypatch, "--from", source, target)
    images, _ = modules.read_split(source, "val")
    meta = read_meta(target / "val.txt")
    assert [label for _, label in meta] == list(range(10))
    assert np.array_equal(np.stack([np.asarray(Image.open(target / path)) for path, _ in meta]), images)
    assert len(read_meta(target / "train.txt")) == 20
    assert (target / "classes.txt").read_text().splitlines()[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t10k-labels-idx1-ubyte", None, "has neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz"),
        ("t10k-labels-idx1-ubyte", b"<html>", "is not an idx file of unsigned bytes in 1 dimension"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(9, np.uint8)), "says it holds (9,)"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(10, np.uint8))[:-1], "has 9 bytes; Fashion-MNIST has (10,)"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(10, np.uint8)), "not 1 of each"),
        ("t10k-labels-idx1-ubyte", b"\x1f\x8b\x08", "is a damaged gzip file"),
        ("t10k-labels-idx1-ubyte", idx(np.full(10, 200, np.uint8)), "not 1 of each"),
    ],
)
def test_bad_idx_files_are_one_line_and_leave_nothing(
    modules: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: Path,
    tmp_path: Path,
    name: str,
    content: bytes | None,
    said: str,
) -> None:
    (source / name).unlink() if content is None else (source / name).write_bytes(content)
    before = state(tmp_path)
    with pytest.raises(SystemExit) as left:
        make(modules, monkeypatch, "--from", source, tmp_path / "fashion_mnist")
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert state(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_file_that_cannot_be_read_is_said(
    modules: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: Path
) -> None:
    def fail(path: Path, shape: tuple[int, ...]) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(modules, "read_idx", fail)
    with pytest.raises(SystemExit):
        modules.read_split(source, "val")
    assert "t10k-images-idx3-ubyte.gz: [Errno 13] Permission denied" in capsys.readouterr().err


def test_a_source_that_is_not_there_is_said(tmp_path: Path) -> None:
    stopped = run("fashion_mnist.py", "--from", tmp_path / "nothing", tmp_path / "fashion_mnist")
    assert (stopped.returncode, stopped.stderr.count("\n")) == (2, 1)
    assert "is not a folder" in stopped.stderr


def test_without_a_source_it_downloads_and_says_when_that_fails(
    modules: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried 2 mirrors")

    from torchvision import datasets

    monkeypatch.setattr(modules, "DEBIAN", tmp_path / "not here")
    monkeypatch.setattr(datasets, "FashionMNIST", fail)
    with pytest.raises(SystemExit) as left:
        make(modules, monkeypatch, tmp_path / "fashion_mnist")
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "the download failed (Error downloading train-images-idx3-ubyte.gz:)" in error
    assert "dataset-fashion-mnist" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.needs("fashion-mnist")
def test_debians_package_gives_all_of_fashion_mnist(tmp_path: Path) -> None:
    target = tmp_path / "fashion_mnist"
    done = run("fashion_mnist.py", target)
    assert done.returncode == 0, done.stderr
    train, val = read_meta(target / "train.txt"), read_meta(target / "val.txt")
    assert np.bincount([label for _, label in train]).tolist() == [6000] * 10
    assert np.bincount([label for _, label in val]).tolist() == [1000] * 10
    assert all((target / path).is_file() for path, _ in train + val)
    assert "already there" in run("fashion_mnist.py", target).stdout
