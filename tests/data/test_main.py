from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.__main__ import as_options, drawable, main, size_of
from data.verbs.acts import columns_of

arrow: Any = pytest.importorskip("pyarrow")
parquet: Any = pytest.importorskip("pyarrow.parquet")

Write = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]


def test_check(pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    meta = str(pictures.meta(12))
    assert main(["check", meta]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == [
        f"{meta}: good, 12 rows, 3 classes",
        "read as: lines 'path label'",
        "looked at: lines and files; --decode opens every image too",
    ]
    assert out[3].startswith("fingerprint: ")
    assert out[4:] == ["labels: 4 rows in each class"]
    assert main(["check", meta, meta, "--head", "--classes", "a,b,c"]) == 0
    assert "good at both ends, 24 rows" in capsys.readouterr().out
    assert main(["check", meta, "--classes", "2"]) == 2
    done = capsys.readouterr()
    problems = done.err.splitlines()
    assert len(problems) == 4
    assert problems[0].startswith("E202 ")
    assert "meta-12.txt:3  label 2 is out of range: there are 2 classes" in problems[0]
    assert done.out.startswith(f"{meta}: 4 of 12 rows are bad (4 malformed), 2 classes\n")
    assert main(["check", "--head", meta, "--global-batch", "13"]) == 2
    assert "E205 an epoch without a single step: 12 rows" in capsys.readouterr().err
    assert main(["check", meta, "--global-batch", "2", "--world-size", "3"]) == 2
    assert "smaller than the 3 ranks" in capsys.readouterr().err
    assert main(["check", "--head", meta, "--order", "block"]) == 2
    assert "take order=row" in capsys.readouterr().err


def test_check_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    assert main(["check", "--head", str(tmp_path)]) == 2
    assert "E203 class folder" in capsys.readouterr().err
    (tmp_path / "a" / "1.png").write_bytes(b"x")
    assert main(["check", "--head", str(tmp_path)]) == 0
    assert main(["check", str(tmp_path)]) == 0
    assert "good, 1 row, 1 class\n" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["a"], "a check leaves nothing behind"
    assert main(["check", str(tmp_path), "--decode"]) == 2
    assert f"E206 {tmp_path}/a/1.png: no image" in capsys.readouterr().err
    assert main(["check", str(tmp_path), str(tmp_path)]) == 2
    assert "E213" in capsys.readouterr().err


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
    assert "60 rows, 3 classes\n" in (text := capsys.readouterr().out)
    assert "looked at: lines, and every image decoded\n" in text


def test_check_against_another_set_and_a_clean_list(pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train, val, out = pictures.meta(12), pictures.folder / "val.txt", pictures.folder / "clean.txt"
    val.write_text("p/011 x.png 0\np/012 x.png 1\np/012 x.png 1\nnone.png 2\n")
    words = ["check", str(val), "--against", str(train), "--processes", "1"]
    assert main(words) == 2
    done = capsys.readouterr()
    assert done.err.splitlines() == [
        f"E206 {val}:4  none.png: No such file or directory",
        f"E202 {val}:1  p/011 x.png: also is {train}:12  p/011 x.png",
    ]
    assert "repeats: 1 row of what an earlier row names already" in done.out
    assert done.out.splitlines()[-1] == "overlap: 1 row of this set is in the other, too"
    # what was found is in the list no more: the command did what it was asked
    assert main([*words, "--clean", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"clean list: {out}, 1 row of 4"
    assert out.read_text() == "p/012 x.png 1\n"
    assert main([*words, "--clean", str(out)]) == 2
    assert "E213 --clean" in capsys.readouterr().err


def test_a_check_goes_on_behind_malformed_rows(pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    meta, out = pictures.folder / "rough.txt", pictures.folder / "rough-clean.txt"
    meta.write_bytes(
        b"p/000 x.png 0\np/001\n\np/002 x.png 1\np/\xff.png 1\np/003 x.png dog\nnone.png 2\n" + b"bad\n" * 30
    )
    assert main(["check", str(meta)]) == 2
    done = capsys.readouterr()
    assert done.out.startswith(f"{meta}: 35 of 37 rows are bad (34 malformed, 1 missing), 3 classes\n")
    problems = done.err.splitlines()
    assert len(problems) == 21
    assert [problem.split(f"{meta}:")[1].partition("  ")[0] for problem in problems[:6]] == list("235678")
    assert "label 'dog' is neither a number nor one of the 3 classes" in problems[3]
    assert main(["check", str(meta), "--clean", str(out)]) == 0
    assert "looked at: lines, and every image decoded\n" in capsys.readouterr().out
    assert out.read_text() == "p/000 x.png 0\np/002 x.png 1\n"
    table = pictures.folder / "rough.csv"
    table.write_text("file,label\np/000 x.png,cat\np/001 x.png\n\np/002 x.png,dog,3\np/003 x.png,dog\n")
    assert main(["check", str(table)]) == 2
    assert "3 of 5 rows are bad (3 malformed), 2 classes\n" in capsys.readouterr().out


def test_a_clean_list_decodes(pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    meta, folder = pictures.folder / "torn.txt", pictures.folder
    (folder / "torn.png").write_bytes((folder / "p" / "000 x.png").read_bytes()[:60])
    meta.write_text("p/000 x.png 0\ntorn.png 0\n")
    assert main(["check", str(meta), "--clean", str(folder / "whole.txt")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"clean list: {folder}/whole.txt, 1 row of 2"
    assert main(["check", str(meta), "--no-decode", "--root", str(folder), "--clean", str(folder / "all.txt")]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"clean list: {folder}/all.txt, 2 rows of 2",
        f"use it with the same root, {folder}",
    ]


def test_messages_speak_of_options_unless_a_config_was_given(pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    meta = pictures.folder / "out.txt"
    meta.write_text("../x.png 0\n")
    assert main(["check", str(meta)]) == 2
    told = capsys.readouterr().err
    assert "--allow-outside-root lifts this" in told
    assert "--root FOLDER sets it" in told
    assert "data." not in told
    for option in ("--of-config", "--facts"):
        assert main(["check", str(meta), option]) == 2
        assert "data.root=… sets it, data.allow_outside_root=true lifts this" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name them, data.columns={path: file, label: 3}", "name them, --columns path=file,label=3"),
        ("one of several labels, columns={labels: tags}", "one of several labels, --columns labels=tags"),
        ("data.root=/x: there is no such folder", "--root /x: there is no such folder"),
        ("on_error 'skip' leaves such rows out", "--on-error skip leaves such rows out"),
        ("give data.classes (names)", "give --classes (names)"),
        ("(data.format)", "(--format)"),
        ("/data.root/a data.root.txt:3 data.columns:3  x", "/data.root/a data.root.txt:3 data.columns:3  x"),
    ],
)
def test_keys_as_options(text: str, told: str) -> None:
    assert as_options(text) == told


def test_facts_are_one_line_of_json(pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    meta = str(pictures.meta(12))
    assert main(["check", "--facts", meta, "--world-size", "4"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    facts = json.loads(line)
    assert facts | {"costs": None} == {
        **{"told": f"{meta}: lines 'path label'", "rows": 12, "exact": True, "indexed": True, "costs": None},
        "size_bytes": os.path.getsize(meta),
    }
    assert facts["costs"]["row shard"][0] == 3


def test_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = tmp_path / "m.csv"
    meta.write_text("file_name,label\na.png,cat\nb.png,dog\n")
    os.utime(meta, (1, 1))
    assert main(["index", str(meta)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{meta}: CSV with a header, path from column 'file_name', label from 'label'")
    assert lines[1] == "2 rows, 2 classes"
    assert lines[2].startswith("fingerprint: ")
    assert lines[3].startswith(f"index: {meta}.rankrun-index, 4.1 KiB, ")
    assert ", 11,600 % of 36 bytes, made in " in lines[3]
    assert main(["index", str(meta)]) == 0
    assert capsys.readouterr().out.splitlines()[3].endswith(", was there already")


def test_index_of_what_is_no_file_of_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "cat" / "1.png").write_bytes(b"x")
    folder, cache = str(tmp_path / "set"), tmp_path / "cache"
    assert main(["index", folder]) == 2
    told = capsys.readouterr().err
    assert told == f"E213 {folder}: what is in it is listed into a file, and that needs a place: --cache FOLDER\n"
    assert main(["index", folder, "--cache", str(cache)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}: class folders, 1 class (cat)"
    assert lines[3].startswith(f"list: {cache}/set-")


def test_an_index_that_can_not_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = tmp_path / "m.txt"
    meta.write_text("a.png 0\n")
    (tmp_path / "m.txt.rankrun-index").write_text("somebody else's")
    assert main(["index", str(meta)]) == 2
    assert capsys.readouterr().err == (
        f"E201 {meta}: its index can't be written beside it: --cache FOLDER names another place\n"
    )
    assert (tmp_path / "m.txt.rankrun-index").read_text() == "somebody else's"
    assert main(["index", str(meta), "--cache", str(tmp_path / "cache")]) == 0
    assert f"index: {tmp_path}/cache/" in capsys.readouterr().out


def test_pack(pictures: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "packed"
    words = ["pack", str(pictures.meta(12)), "--out", str(out), "--shard-bytes", "64KiB", "--processes", "2"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"packed: {out}/meta.txt, 12 rows in 1 shard, ")
    assert lines[-1] == f"use it as data.train: {out}/meta.txt, with data.classes: {out}/classes.txt"
    assert main(words) == 0
    assert "there already: 1 shard" in capsys.readouterr().out
    assert main(["pack", str(pictures.meta(12)), str(tmp_path / "behind")]) == 0
    assert f"packed: {tmp_path}/behind/meta.txt, 12 rows" in capsys.readouterr().out
    assert main(["check", "--decode", f"{out}/meta.txt", "--classes", f"{out}/classes.txt"]) == 0
    assert "good, 12 rows, 3 classes" in capsys.readouterr().out
    bad = pictures.folder / "bad-pack.txt"
    bad.write_text("p/000 x.png 0\nnone.png 0\n")
    other = ["pack", str(bad), "--out", str(tmp_path / "other")]
    assert main(other) == 2
    assert "none.png: No such file or directory" in capsys.readouterr().err
    assert main([*other[:-1], str(tmp_path / "third"), "--on-error", "skip"]) == 0
    assert f"left out: 1 row, listed in {tmp_path}/third/skipped.txt" in capsys.readouterr().out


def test_pack_of_images_in_parquet(pictures: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = (pictures.folder / "p" / "000 x.png").read_bytes()
    table = arrow.table({"image": [image, image], "label": [1, 0]})
    parquet.write_table(table, tmp_path / "m.parquet")
    assert main(["pack", str(tmp_path / "m.parquet"), "--out", str(tmp_path / "out")]) == 0
    assert "packed: " in capsys.readouterr().out
    assert (tmp_path / "out" / "meta.txt").read_text().count("\n") == 2


def test_where(pictures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    meta = str(pictures.meta(12))
    words = ["where", meta, "--global-batch", "4", "--world-size", "2", "--seed", "3"]
    assert main([*words, "--row", "5", "--epoch", "1"]) == 0
    place, told = capsys.readouterr().out.splitlines()
    assert place == f"{meta}:6  p/005 x.png"
    step = int(told.partition(" step ")[2].split()[0])
    assert 3 <= step < 6
    assert main([*words, "--step", str(step)]) == 0
    assert " 5" in "".join(f" {line.partition(': ')[2]}" for line in capsys.readouterr().out.splitlines()[1:])
    assert main([*words, "--row", "12"]) == 2
    assert "E213 row 12: there are 12 rows, 0 … 11" in capsys.readouterr().err
    assert main([*words, "--row", "-1"]) == 2
    assert "E213 row -1: there are 12 rows" in capsys.readouterr().err
    assert main([*words, "--step", "3", "--epoch", "0"]) == 2
    assert "E213 step 3: an epoch has 3 steps" in capsys.readouterr().err
    assert main([*words, "--step", "6", "--epochs", "2"]) == 2
    assert capsys.readouterr().err == "E213 step 6: the run has 6 steps in 2 epochs, 0 … 5\n"


def test_the_help_is_the_launchers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", "--help"])
    assert caught.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("usage: launch.py data check ")
    assert "('launch.py data' takes a CONFIG here as well)" in out
    assert "--facts" not in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check"], "E213 the following arguments are required: META; 'launch.py data check --help' lists the options"),
        (["look", "x"], "E213 argument index|check|inspect|pack|where: invalid choice: 'look'"),
        (["check", "--head", "--decode", "x"], "E213 argument --decode: not allowed with argument --head"),
        (["check", "--head", "x", "--clean", "y"], "E213 --clean wants a look at all rows: leave --head out"),
        (["check", "x", "--no-decode"], "E213 --no-decode is for --clean: a check alone decodes only with --decode"),
        (["check", "--head", "x", "--processes", "2"], "E213 --processes wants a look at all rows: leave --head out"),
        (["check", "--head", "x", "--against", "y"], "E213 --against wants a look at all rows: leave --head out"),
        (["check", "x", "--order", "block"], "E205 order=block with 8 bytes of meta file"),
        (["check", "run.yaml"], "E213 run.yaml is a config"),
        (["check", "x", "--classes", "[a"], "E213 --classes [a: is no JSON: "),
        (["check", "x", "--columns", "path"], "E213 --columns path: is path=NAME,label=NAME, with names or numbers"),
        (["check", "x", "--columns", "{"], "E213 --columns {: is no JSON: "),
        (["check", "x", "--columns", "way=a"], "E213 columns: 'way' is no part of a row"),
        (["check", "x", "--format", "xml"], "E213 format 'xml': legal are lines, frames, csv, tsv, jsonl"),
        (["check", "m.txt", "--processes", "0"], "E213 --processes 0: legal are 1, 2, 3, …"),
        (["inspect", "x", "--transforms", "[Resize]"], "E213 --transforms [Resize]: is no JSON: "),
        (["inspect", "x", "--transforms", "{}"], "E213 --transforms {}: is a JSON list"),
        (["pack", "x"], "E213 x is packed into which folder? --out FOLDER, or 'pack META FOLDER'"),
        (["pack", "x", "m.txt"], "E214 m.txt: File exists"),
        (
            ["pack", "x", "--out", "y", "--shard-bytes", "10XB"],
            "E213 argument --shard-bytes: '10XB' is no size, as in 2",
        ),
        (["where", "x", "--global-batch", "4"], "E213 one of the arguments --row --step is required"),
        (["where", "x", "--row", "1"], "E213 the following arguments are required: --global-batch"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text("a.png 0\n")
    (tmp_path / "m.txt").write_text("a.png 0\n")
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(told)


def test_what_a_file_is_called_can_not_forge_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = tmp_path / "m.txt"
    meta.write_text("\x1b[2Jx\rE206 all is well.png 0\n")
    assert main(["check", str(meta)]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\\x1b[2Jx\\rE206 all is well.png" in err


def test_ctrl_c_is_an_end_and_no_traceback(
    pictures: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("data.verbs.acts.check", interrupted)
    assert main(["check", str(pictures.meta(12))]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_terminal_without_blocks_gets_plain_bars() -> None:
    assert drawable("0 … 9  ██▋", "ascii") == "0 ... 9  ##"
    assert drawable("0 … 9  ██▋", "utf-8") == "0 … 9  ██▋"
    assert drawable("x", None) == "x"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BrokenPipeError()])
def test_nobody_takes_the_output(pictures: Any, error: OSError) -> None:
    code = (
        "import builtins, sys\n"
        "from data import __main__ as door\n"
        "def refuses(*words, file=None):\n"
        "    if file is None: raise error\n"
        "    real(*words, file=file)\n"
        f"real, error = print, {error!r}\n"
        "builtins.print = refuses\n"
        f"sys.exit(door.main(['check', '--head', {str(pictures.meta(12))!r}]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 1
    assert run.stderr == (
        "" if isinstance(error, BrokenPipeError) else "can't write to stdout: No space left on device\n"
    )


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("256MiB", 256 << 20), ("1GB", 10**9), ("2k", 2000), ("3 kib", 3072), ("5b", 5)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5GB", "10XB", "MiB", "1 0"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no size, as in 256MiB"):
        size_of(text)


@pytest.mark.parametrize(
    ("given", "columns"),
    [
        ("path=file,label=2", {"path": "file", "label": 2}),
        (" path = a b , labels=tags", {"path": "a b", "labels": "tags"}),
        ('{"path": "a,b", "label": 0}', {"path": "a,b", "label": 0}),
        (None, None),
    ],
)
def test_columns(given: str | None, columns: object) -> None:
    assert columns_of(given) == columns


def test_inspect_of_pictures_of_different_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        Image.new("RGB", (4 + number, 9 - number)).save(tmp_path / f"{number}.png")
    meta = tmp_path / "m.txt"
    meta.write_text("0.png 0\n1.png 0\n2.png 0\n")
    words = ["inspect", str(meta), "--global-batch", "3"]
    assert main(words) == 0
    told = capsys.readouterr().out.splitlines()[3]
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
    assert lines[2].startswith("batches: 3 per epoch, global batch 8 on 2 ranks, 6 rows left out")
    assert "images uint8 [4, 1, 6, 5], labels int64 [4], draws float32 [4, 0]" in lines[3]
    assert "float32 [4, 1, 6, 5]" in lines[4]


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
