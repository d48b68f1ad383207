from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.__main__ import main
from data.check import check_head
from data.errors import DataError, OptionError, TransformError
from data.inspection import inspect

Write = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]


def test_check(pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    meta = str(pictures.meta(12))
    assert main(["check", meta]) == 0
    out = capsys.readouterr().out
    assert "12 rows, 3 classes, fingerprint " in out
    assert "(lines and files; --decode opens every image too)" in out
    assert main(["check", meta, meta, "--head", "--classes", "a,b,c"]) == 0
    assert "good at both ends, 24 rows" in capsys.readouterr().out
    assert main(["check", meta, "--classes", "2"]) == 2
    problems = capsys.readouterr().err.splitlines()
    assert len(problems) == 4
    assert problems[0].startswith("E202 ")
    assert "meta-12.txt:3  label 2 is out of range: there are 2 classes" in problems[0]
    assert main(["check", "--head", meta, "--global-batch", "13"]) == 2
    assert "E205 an epoch without a single step: 12 rows" in capsys.readouterr().err
    assert main(["check", meta, "--global-batch", "2", "--world-size", "3"]) == 2
    assert "smaller than the 3 ranks" in capsys.readouterr().err


def test_check_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    assert main(["check", "--head", str(tmp_path)]) == 2
    assert "E203 class folder" in capsys.readouterr().err
    (tmp_path / "a" / "1.png").write_bytes(b"x")
    assert main(["check", "--head", str(tmp_path)]) == 0
    assert main(["check", str(tmp_path)]) == 0
    assert "good, 1 row, 1 class, " in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["a"], "a check leaves nothing behind"
    assert main(["check", str(tmp_path), "--decode"]) == 2
    assert f"E206 {tmp_path}/a/1.png: no image" in capsys.readouterr().err
    assert main(["check", str(tmp_path), str(tmp_path)]) == 2
    assert "E213" in capsys.readouterr().err
    assert check_head(str(tmp_path)) is None


def test_check_of_images(pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder: Path = pictures.folder
    meta = folder / "check.txt"
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.png").write_bytes(b"<html>")
    meta.write_text("p/000 x.png 0\nempty.png 0\nnone.png 0\np 0\npage.png 0\n")
    assert main(["check", str(meta)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"E206 {meta}:2  empty.png: the file has zero bytes",
        f"E206 {meta}:3  none.png: No such file or directory",
        f"E206 {meta}:4  p: no regular file",
    ]
    assert main(["check", str(meta), "--decode"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"E206 {meta}:5  page.png: no image (it looks like an")
    meta.write_text("p/000 x.png 0\n" + "none.png 0\n" * 150)
    assert main(["check", str(meta)]) == 2
    problems = capsys.readouterr().err.splitlines()
    assert (len(problems), problems[0], problems[-1]) == (
        21,
        f"E206 {meta}:2  none.png: No such file or directory",
        "E206 … and 130 more",
    )
    assert main(["check", str(pictures.meta(60)), "--decode"]) == 0
    assert "60 rows, 3 classes, fingerprint" in (out := capsys.readouterr().out)
    assert "(every image was decoded)" in out


def test_the_help_is_the_launchers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", "--help"])
    assert caught.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("usage: launch.py data check ")
    assert "('launch.py data' takes a CONFIG here as well)" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check"], "E213 the following arguments are required: META; 'launch.py data check --help' lists the options"),
        (["look", "x"], "E213 argument check|inspect: invalid choice: 'look'"),
        (["check", "--head", "--decode", "x"], "E213 argument --decode: not allowed with argument --head"),
        (["check", "run.yaml"], "E213 run.yaml is a config"),
        (["check", "x", "--classes", "[a"], "E213 --classes [a: is no JSON: "),
        (["inspect", "x", "--transforms", "[Resize]"], "E213 --transforms [Resize]: is no JSON: "),
        (["inspect", "x", "--transforms", "{}"], "E213 --transforms {}: is a JSON list"),
    ],
)
def test_mistakes_are_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(told)


def test_inspect_of_pictures_of_different_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        Image.new("RGB", (4 + number, 9 - number)).save(tmp_path / f"{number}.png")
    meta = tmp_path / "m.txt"
    meta.write_text("0.png 0\n1.png 0\n2.png 0\n")
    words = ["inspect", str(meta), "--global-batch", "3"]
    assert main(words) == 0
    told = capsys.readouterr().out.splitlines()[2]
    assert told.startswith("3 images of different sizes: the smallest is [3, 9, 4], the largest [3, 7, 6]; ")
    assert main([*words, "--transforms", '[{"Resize": {"size": [5, 5]}}, "RandomErasing"]']) == 0
    assert "images uint8 [3, 3, 5, 5], labels int64 [3], draws float32 [3, 4]" in capsys.readouterr().out
    assert main([*words, "--transforms", '[{"Resize": {"size": 5}}]']) == 2
    assert "E204 images of different shapes in one batch" in capsys.readouterr().err
    assert main([*words, "--transforms", '["Resizee"]']) == 2
    assert "E204 --transforms[0]: there is no transform 'Resizee'. Did you mean Resize?" in capsys.readouterr().err


def test_inspect(pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(pictures.meta(30)), "--global-batch", "8", "--world-size", "2", "--channels", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "30 rows, 3 classes (0, 1, 2), decoder torchcodec" in lines[0]
    assert lines[1].startswith("batches: 3 per epoch, global batch 8 on 2 ranks, 6 rows left out")
    assert "images uint8 [4, 1, 6, 5], labels int64 [4], draws float32 [4, 0]" in lines[2]
    assert "float32 [4, 1, 6, 5]" in lines[3]


def test_inspect_with_a_configs_values(pictures: Any) -> None:
    settings = {
        "workers": 2,
        "mode": "indexed",
    }
    recipe = [{"RandomCrop": {"size": 4}}, {"RandomErasing": {"probability": 1.0}}]
    lines = inspect([str(pictures.meta(10))], settings, transforms=recipe, global_batch=4, tail="mask")
    assert "images uint8 [4, 3, 4, 4]" in lines[2]
    assert "draws float32 [4, 4]" in lines[2]
    assert "(tail mask)" in lines[1]
    with pytest.raises(TransformError, match="no transform 'Nonsense'"):
        inspect(str(pictures.meta(10)), settings, global_batch=4, transforms=["Nonsense"])


def test_the_glance_imports_neither_torch_nor_pillow(pictures: Any) -> None:
    code = (
        "import sys; from data.__main__ import main; import data; "
        f"assert main(['check', '--head', {str(pictures.meta(12))!r}]) == 0; "
        "from data import Permutation, MetaFile; "
        "print(sorted({'torch', 'torchvision', 'PIL', 'pydantic'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, env={**os.environ}
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "[]"


def test_errors_of_options(pictures: Any) -> None:
    with pytest.raises(DataError, match="smaller than the 3 ranks"):
        check_head(str(pictures.meta(12)), global_batch=2, world_size=3)
    with pytest.raises(OptionError, match="mode 'x'"):
        inspect(str(pictures.meta(12)), {"mode": "x"}, global_batch=2)
