from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.training.helpers import ROOT, end_of, start_ranks, write_digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run at runs/tiny."""
    folder = tmp_path_factory.mktemp("digits")
    config = write_digits(folder)
    arguments = [str(ROOT / "train.py"), str(config), "--runs", str(folder / "runs"), "train.epochs=1"]
    ends = end_of(start_ranks(arguments, 1, launcher="single"))
    assert ends[0][0] == 0, ends
    return folder


def predict(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "predict.py"), *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def read(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


def test_a_meta_file_an_image_and_a_folder(digits: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "right", tmp_path / "out.csv"
    folder.mkdir()
    shutil.copy(digits / "val0.png", folder / "a.png")
    (folder / "broken.png").write_bytes((digits / "val1.png").read_bytes()[:40])
    Image.new("RGB", (12, 9)).save(folder / "wide.jpg")
    end = predict(digits / "runs" / "tiny", digits / "val.txt", digits / "val1.png", folder, "--out", out, "--batch", 4)
    assert end.returncode == 0, end.stderr
    header, *rows = read(out)
    assert header == ["path", "label", "name_1", "probability_1", "name_2", "probability_2"]
    assert len(rows) == 13 + 1 + 2
    assert [row[1] for row in rows[:3]] == ["left", "right", "left"]
    assert rows[13][:2] == [str(digits / "val1.png"), ""]
    assert [row[1] for row in rows[14:]] == ["right", "right"]
    assert rows[1][2:] == rows[13][2:]  # the same picture
    for row in rows:
        assert {row[2], row[4]} == {"left", "right"}
        assert float(row[3]) + float(row[5]) == pytest.approx(1, abs=1e-5)
    assert f"not read: {folder / 'broken.png'}" in end.stderr
    assert "16 images" in end.stdout
    assert "1 could not be read" in end.stdout


def test_mistakes_are_one_line_and_leave_nothing(digits: Path, tmp_path: Path) -> None:
    run, out = digits / "runs" / "tiny", tmp_path / "out.csv"
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        ((tmp_path / "none", digits / "val.txt"), "E106 .*there is no such folder"),
        ((run, tmp_path / "none.txt"), "E201 .*none.txt"),
        ((run, empty), "E101 .*holds no images"),
    ]
    for words, message in cases:
        end = predict(*words, "--out", out)
        assert end.returncode == 2
        assert len(end.stderr.splitlines()) == 1, end.stderr
        assert re.search(message, end.stderr), end.stderr
        assert not out.exists()
        assert not list(tmp_path.glob(".out*"))
