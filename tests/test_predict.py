from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import time
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


def predict(*words: object, cwd: Path = ROOT, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, str(ROOT / "predict.py"), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def refused(end: subprocess.CompletedProcess[str], message: str) -> None:
    assert end.returncode == 2, end.stderr
    assert len(end.stderr.splitlines()) == 1, end.stderr
    assert re.search(message, end.stderr), end.stderr


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


def test_the_csv_lies_in_the_run_and_leftovers_go(digits: Path, tmp_path: Path) -> None:
    run = digits / "runs" / "tiny"
    left = run / ".predictions.csv.tmp-4194999"
    left.write_text("of a run that was killed")
    for checkpoint, shown in ((run, str(run)), ("runs/tiny/best", "runs/tiny")):
        end = predict(checkpoint, "val1.png", "val0.png", cwd=digits)
        assert end.returncode == 0, end.stderr
        assert end.stdout.startswith(f"{shown}/predictions.csv: 2 images by ")
        assert len(read(run / "predictions.csv")) == 3
        (run / "predictions.csv").unlink()
        assert not left.exists()
    copy = shutil.copytree(run / "best", tmp_path / "copy")
    words = (copy, digits / "val1.png", digits / "val0.png")
    assert predict(*words, cwd=tmp_path).stdout.startswith("predictions.csv: 2 images")


def test_one_picture_is_told_on_the_terminal_alone(digits: Path, tmp_path: Path) -> None:
    run, out = digits / "runs" / "tiny", tmp_path / "out.csv"
    end = predict(run, "val1.png", cwd=digits)
    told, where = end.stdout.splitlines()
    assert re.fullmatch(r"val1\.png: (left|right) \([01]\.\d{3}\)", told)
    assert where.startswith("no CSV written (--out FILE writes one): 1 image by ")
    assert not (run / "predictions.csv").exists()
    assert predict(run, "val1.png", "--out", out, cwd=digits).stdout.splitlines()[0] == told
    assert len(read(out)) == 2


def test_the_root_and_its_fence_are_those_of_training(digits: Path, tmp_path: Path) -> None:
    run, out, meta = digits / "runs" / "tiny", tmp_path / "out.csv", tmp_path / "val.txt"
    shutil.copy(digits / "val.txt", meta)
    end = predict(run, meta, "--root", digits, "--out", out)
    assert end.returncode == 0, end.stderr
    assert [row[0] for row in read(out)[1:3]] == [str(digits / "val0.png"), str(digits / "val1.png")]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.png").symlink_to(digits / "val0.png")
    meta.write_text(f"{digits}/val0.png\n")
    refused(predict(run, folder, "--out", out), r"E207 .*link\.png leads out of the root")
    refused(predict(run, meta, "--out", out), r"E207 .*val\.txt:1  .* is absolute: paths are relative to the root")
    end = predict(run, folder, meta, "--allow-outside-root", "--out", out)
    assert (end.returncode, len(read(out))) == (0, 3), end.stderr


def test_a_checkpoint_runs_no_code_that_was_not_allowed(digits: Path, tmp_path: Path) -> None:
    canary, hostile = tmp_path / "canary", tmp_path / "hostile"
    code = f"open({str(canary)!r}, 'w').close()\n"
    (tmp_path / "mine_p.py").write_text(
        f"{code}from models import build\n\nclass Same:\n    def __call__(self, image):\n        return image\n\n"
        "def net(num_classes, in_channels, **args):\n"
        "    return build('small_resnet', num_classes, in_channels, **args)\n"
    )
    python = ("-c", f"import runpy, sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]; sys.argv = sys.argv[1:]; "
                    "runpy.run_path(sys.argv[0], run_name='__main__')")  # fmt: skip
    picture, mine = digits / "val0.png", ["--allow-code", "mine_p.Same"]
    system = [{"os.system": {"command": f"touch {canary}"}}]
    for changes, named in (({"eval_transforms": system}, "os.system"), ({"model": "mine_p.net"}, "mine_p.net")):
        change(digits, hostile, changes)
        end = predict(hostile, picture, "--allow-code", "mine_p", python=python)
        refused(end, f"E106 {hostile}: would run code .*, add --allow-code {named}$")
    change(digits, hostile, {"model": "mine_p.net", "eval_transforms": ["mine_p.Same"]})
    refused(predict(hostile, picture, *mine, python=python), "add --allow-code mine_p.net$")
    assert not canary.exists()
    end = predict(hostile, picture, *mine, "--allow-code", "mine_p.net", python=python)
    assert end.returncode == 0, end.stderr
    assert canary.exists()


def change(digits: Path, hostile: Path, changes: dict[str, object]) -> None:
    """A whole checkpoint at `hostile` that says something else about prediction."""
    shutil.rmtree(hostile, ignore_errors=True)
    shutil.copytree(digits / "runs" / "tiny" / "best", hostile)
    state = json.loads((hostile / "state.json").read_text())
    state["prediction"] |= changes
    text = json.dumps(state).encode()
    (hostile / "state.json").write_bytes(text)
    manifest = json.loads((hostile / "manifest.json").read_text())
    manifest["files"]["state.json"] |= {"size_bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (hostile / "manifest.json").write_text(json.dumps(manifest))


def test_a_notice_to_end_leaves_nothing(digits: Path, tmp_path: Path) -> None:
    run, out, meta = digits / "runs" / "tiny", tmp_path / "out.csv", digits / "long.txt"
    meta.write_text("val0.png left\n" * 200_000)
    command = [sys.executable, str(ROOT / "predict.py"), str(run), str(meta), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 60
        while not list(tmp_path.glob(".out.csv*")) and time.monotonic() < until:
            time.sleep(0.05)
        assert list(tmp_path.iterdir()), "it never began to write"
        process.terminate()
        assert process.wait(30) == 128 + 15
    finally:
        process.kill()
        process.communicate()
        meta.unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_list_without_labels(digits: Path, tmp_path: Path) -> None:
    bare, out = tmp_path / "bare.txt", tmp_path / "out.csv"
    shutil.copy(digits / "val0.png", tmp_path / "my pic.PNG")
    shutil.copy(digits / "val1.png", tmp_path / "b.png")
    bare.write_text("my pic.PNG\nb.png\nnone.png\n\n")
    end = predict(digits / "runs" / "tiny", bare, "--out", out)
    assert end.returncode == 0, end.stderr
    assert [row[:2] for row in read(out)[1:]] == [[str(tmp_path / "my pic.PNG"), ""], [str(tmp_path / "b.png"), ""]]
    assert f"not read: {bare}:3  none.png: No such file or directory\n" in end.stderr
    assert end.stdout.splitlines()[-1].startswith(f"{out}: 2 images by ")
    out.unlink()
    for text, told in (
        ("a.png\nb.png left\n", r"bare\.txt:2  'b\.png left' is no image's name, but the first line is"),
        ("a.png left\nb.png\n", r"bare\.txt:2  'b\.png' has no label"),
    ):
        bare.write_text(text)
        refused(predict(digits / "runs" / "tiny", bare, "--out", out), f"E202 .*{told}")
        assert not out.exists()


def test_without_torch(digits: Path) -> None:
    refused(predict(digits, digits / "val0.png", python=("-S",)), "E110 torch is not installed for ")


def test_mistakes_are_one_line_and_leave_nothing(digits: Path, tmp_path: Path) -> None:
    run, out = digits / "runs" / "tiny", tmp_path / "out.csv"
    empty = tmp_path / "empty"
    empty.mkdir()
    young = tmp_path / "young"
    young.mkdir()
    (young / "config.yaml").write_text("")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"x")
    cases = [
        ((tmp_path / "none", digits / "val.txt"), "E106 .*there is no such folder"),
        ((young, digits / "val.txt"), f"E106 {young}: this run has no checkpoint yet$"),
        (
            (run, digits / "val.txt", tmp_path / "none.txt"),
            r"E101 .*none\.txt: there is no such image, folder or list$",
        ),
        ((run, tmp_path / "none.png"), r"E101 .*none\.png: there is no such"),
        ((run, broken), r"E101 none of the images \(1\) could be read; the first: .*broken\.png: no image"),
        ((run, empty), "E203 .*holds no image"),
    ]
    for words, message in cases:
        refused(predict(*words, "--out", out), message)
        assert not out.exists()
        assert not list(tmp_path.glob(".out*"))
    refused(predict(run, digits / "val0.png", "--out", empty), "E101 --out .*empty: is a folder")


def test_tables_and_tars(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    table = tmp_path / "list.csv"
    table.write_text(f"file_name,label\n{digits}/val0.png,left\n{digits}/val1.png,1\n")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(digits / "val1.png", "0.png")
        label = tarfile.TarInfo("0.cls")
        label.size = 1
        tar.addfile(label, io.BytesIO(b"1"))
    lists = tmp_path / "several.txt"
    lists.write_text(f"{digits}/val0.png 0,1\n")
    words = (digits / "runs" / "tiny", table, tmp_path / "s.tar", lists, "--out", out)
    refused(
        predict(digits / "runs" / "tiny", lists, "--out", out),
        r"E207 .*several\.txt:1  .* is absolute: paths are relative to the root",
    )
    end = predict(*words, "--allow-outside-root")
    assert end.returncode == 0, end.stderr
    rows = read(out)[1:]
    assert [row[1] for row in (rows[0], rows[1], rows[-1])] == ["left", "right", ""], "of several none is compared with"
    assert rows[2][0].startswith(f"{tmp_path}/s.tar@")
    assert rows[2][2:] == rows[1][2:], "the same picture"
    clips = tmp_path / "clips.txt"
    clips.write_text("v 9 0\n")
    refused(predict(digits / "runs" / "tiny", clips), r"E213 .*clips\.txt: frame folders .*: what is looked at")


def test_numbers_are_no_labels_of_a_model_that_learnt_names(digits: Path, tmp_path: Path) -> None:
    """Its classes are what names the training data happened to hold: number 1 of another list may be any of them."""
    out, named = tmp_path / "out.csv", tmp_path / "named.txt"
    change(digits, tmp_path / "named", {"by_name": True})
    refused(
        predict(tmp_path / "named", digits / "val.txt", "--out", out), r"E203 .*val\.txt: its labels are numbers, but"
    )
    named.write_text(f"{digits}/val0.png left\n{digits}/val1.png right\n")
    end = predict(tmp_path / "named", named, "--allow-outside-root", "--out", out)
    assert end.returncode == 0, end.stderr
    assert [row[1] for row in read(out)[1:]] == ["left", "right"]
