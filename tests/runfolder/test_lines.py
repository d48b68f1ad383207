from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from rankrun.runfolder import JsonLines, read_json_lines


def test_lines_are_appended_over_attempts(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "m.jsonl"
    for step in range(3):
        with JsonLines(file) as lines:
            lines.write({"step": step, "loss": 0.5})
    assert read_json_lines(file) == [{"step": step, "loss": 0.5} for step in range(3)]
    assert file.read_text().count("\n") == 3


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_torn_last_line_is_passed_over_and_ended(tmp_path: Path, cut: int) -> None:
    file, line = tmp_path / "m.jsonl", b'{"step":1234}\n'
    file.write_bytes(b'{"step":0}\n' + line[:cut])
    # Without its newline alone a line is whole.
    whole = [{"step": 0}] + ([{"step": 1234}] if cut == 13 else [])
    assert read_json_lines(file) == whole
    with JsonLines(file) as lines:
        lines.write({"step": 2})
    assert read_json_lines(file) == [*whole, {"step": 2}]


def test_what_is_no_object_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b'\x00\x00\n[1]\n3\n{"a":1}\n{"a"\n\xff\n\n' + b"[" * 100_000)
    assert read_json_lines(tmp_path / "m") == [{"a": 1}]
    assert read_json_lines(tmp_path / "none") == []


def test_numbers_that_json_lacks_are_refused_and_spoil_nothing(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "m") as lines:
        with pytest.raises(ValueError, match="not JSON compliant"):
            lines.write({"loss": float("nan")})
        lines.write({"loss": 1})
    assert (tmp_path / "m").read_text() == '{"loss":1}\n'


def test_a_disk_that_fills_up_tears_one_line_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with JsonLines(tmp_path / "m") as lines:
        lines.write({"step": 0})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:5]))
            with pytest.raises(OSError, match="only 5 of 11 bytes of a line written"):
                lines.write({"step": 1})
        lines.write({"step": 2})
    assert read_json_lines(tmp_path / "m") == [{"step": 0}, {"step": 2}]


def _append(file: str, who: int) -> None:
    with JsonLines(Path(file)) as lines:
        for i in range(200):
            lines.write({"who": who, "i": i, "fill": "x" * 500})


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    file = str(tmp_path / "m")
    processes = [context.Process(target=_append, args=(file, who)) for who in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    lines = [json.loads(line) for line in Path(file).read_text().splitlines()]
    assert sorted((line["who"], line["i"]) for line in lines) == [(who, i) for who in range(4) for i in range(200)]


def test_a_folder_in_its_place_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        JsonLines(tmp_path)
