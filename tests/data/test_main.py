from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.__main__ import main
from data.check import check_head
from data.errors import DataError, OptionError, TransformError
from data.inspection import inspect

Write = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]


def test_check(pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    meta = str(pictures.meta(12))
    assert main(["check", meta]) == 0
    assert "12 rows, 3 classes, fingerprint " in capsys.readouterr().out
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
    (tmp_path / "a" / "1.png").write_bytes(b"")
    assert main(["check", "--head", str(tmp_path)]) == 0
    assert not (tmp_path / ".rankrun").exists(), "a glance leaves nothing behind"
    assert main(["check", str(tmp_path)]) == 0
    assert "1 rows" in capsys.readouterr().out
    assert main(["check", str(tmp_path), str(tmp_path)]) == 2
    assert "E213" in capsys.readouterr().err
    assert check_head(str(tmp_path)) is None


def test_inspect(pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(pictures.meta(30)), "--global-batch", "8", "--world-size", "2", "--channels", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "30 rows, 3 classes (0, 1, 2), decoder torchcodec" in lines[0]
    assert lines[1].startswith("batches: 3 per epoch, global batch 8 on 2 rank(s), 6 rows left out")
    assert "images uint8 [4, 1, 6, 5], labels int64 [4], draws float32 [4, 0]" in lines[2]
    assert "float32 [4, 1, 6, 5]" in lines[3]
    assert main(["inspect", "run.yaml"]) == 2
    assert "E213 a config is inspected by" in capsys.readouterr().err


def test_inspect_with_a_configs_values(pictures: Any) -> None:
    settings = {
        "workers": 2,
        "mode": "indexed",
        "train_transforms": [{"RandomCrop": {"size": 4}}, {"RandomErasing": {"probability": 1.0}}],
        "eval_transforms": ["Nonsense"],
    }
    lines = inspect([str(pictures.meta(10))], settings, global_batch=4, tail="mask")
    assert "images uint8 [4, 3, 4, 4]" in lines[2]
    assert "draws float32 [4, 4]" in lines[2]
    assert "(tail mask)" in lines[1]
    with pytest.raises(TransformError, match="no transform 'Nonsense'"):
        inspect(str(pictures.meta(10)), settings, global_batch=4, transforms="eval_transforms")


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
