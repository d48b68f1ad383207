from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rankrun.errors import CheckpointError
from rankrun.runfolder import RunFolder
from rankrun.training.snapshot import (
    begin_attempt,
    newest_snapshot,
    point_at,
    prune_snapshots,
    read_manifest,
    snapshot_path,
    snapshot_steps,
    verify_snapshot,
    write_snapshot,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def writers(text: str = "content") -> dict[str, Callable[[Path], object]]:
    return {"a.bin": lambda path: path.write_text(text), "state.json": lambda path: path.write_text("{}")}


def write(folder: RunFolder, step: int, attempt: int = 0, text: str = "content") -> Path:
    folder.attempt(attempt).mkdir(parents=True, exist_ok=True)
    return write_snapshot(folder, step, attempt, writers(text))  # type: ignore[arg-type]


def newest(folder: RunFolder) -> tuple[int | None, list[str]]:
    said: list[str] = []
    found = newest_snapshot(folder, said.append)
    return (read_manifest(found).step if found else None), said


def test_what_is_written_verifies(folder: RunFolder) -> None:
    assert newest(folder) == (None, [])
    path = write(folder, 1200)
    assert path.name == "step-00001200"
    manifest = verify_snapshot(path)
    assert (manifest.step, manifest.attempt, sorted(manifest.files)) == (1200, 0, ["a.bin", "state.json"])
    assert [entry.name for entry in folder.checkpoints.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: (path / "a.bin").write_text("conTent"), "its hash differs"),
        (lambda path: (path / "a.bin").write_text("conten"), "has 6 bytes, its manifest says 7"),
        (lambda path: (path / "a.bin").unlink(), "a.bin can't be read"),
        (lambda path: (path / "manifest.json").unlink(), "is no checkpoint"),
        (lambda path: (path / "manifest.json").write_text('{"version": 1'), "is not JSON"),
        (lambda path: (path / "manifest.json").write_text('{"version": 1}'), "does not list"),
        (lambda path: (path / "manifest.json").write_text("[]"), "does not list"),
        (
            lambda path: (path / "manifest.json").write_text('{"version": 9}'),
            "has version 9; this program reads up to 1",
        ),
        (
            lambda path: (path / "manifest.json").write_text(
                '{"version": 1, "step": 8, "attempt": 0, "files": {"../../x": {"size_bytes": 1, "sha256": ""}}}'
            ),
            "does not list",
        ),
        (lambda path: path.rename(path.with_name("step-00000009")), "its manifest is of step 8"),
    ],
)
def test_damage_is_passed_over_aloud(folder: RunFolder, spoil: Callable[[Path], object], words: str) -> None:
    write(folder, 4)
    spoil(write(folder, 8))
    step, said = newest(folder)
    assert step == 4
    assert len(said) == 1
    assert words in said[0]
    assert said[0].startswith("passed over: ")


def test_a_failed_write_leaves_nothing(folder: RunFolder) -> None:
    write(folder, 4)

    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_snapshot(folder, 8, 0, {"a.bin": full})
    assert [entry.name for entry in folder.checkpoints.iterdir()] == ["step-00000004"]


def test_a_kill_at_any_call_leaves_the_older_or_the_newer_whole(folder: RunFolder) -> None:
    """In a child that ends itself before its n-th change of the folder, for every n."""
    write(folder, 4)
    for number in range(100):
        child = os.fork()
        if child == 0:
            try:
                end_before_call(number)
                write(folder, 8, text="new")
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        step, _ = newest(folder)
        assert step in (4, 8)
        if code == 0:
            break
        begin_attempt(folder, 0, 4)
        assert set(snapshot_steps(folder)) <= {4, 8}
        assert not [entry for entry in folder.checkpoints.iterdir() if "tmp" in entry.name]
        if step == 8:
            prune_snapshots(folder, 4, 1, None, [4])
    assert number > 8
    assert newest(folder) == (8, [])


def end_before_call(number: int) -> None:
    left = [number]

    def wrap(call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **named: object) -> object:
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
            return call(*arguments, **named)

        return counted

    for name in ("mkdir", "rename", "fsync", "unlink", "rmdir", "replace"):
        setattr(os, name, wrap(getattr(os, name)))
    Path.write_text = wrap(Path.write_text)  # type: ignore[method-assign]


def test_never_overwritten_but_a_damaged_one_makes_room(folder: RunFolder) -> None:
    write(folder, 8, text="first")
    write(folder, 8, text="second")
    assert (snapshot_path(folder, 8) / "a.bin").read_text() == "first"
    (snapshot_path(folder, 8) / "a.bin").write_text("spoilt")
    write(folder, 8, text="third")
    assert (snapshot_path(folder, 8) / "a.bin").read_text() == "third"


def test_an_old_writer_that_wakes_up_spoils_nothing(folder: RunFolder) -> None:
    write(folder, 4, attempt=0)
    path = write(folder, 8, attempt=0)
    manifest = json.loads((path / "manifest.json").read_text())
    begin_attempt(folder, 1, 4)  # 8 was not there when attempt 1 looked
    step, said = newest(folder)
    assert step == 4
    assert "written by attempt 0 after a later attempt had begun before it" in said[0]
    with pytest.raises(CheckpointError, match="attempt 1 has begun since; attempt 0 writes nothing any more"):
        write(folder, 12, attempt=0)
    write(folder, 8, attempt=1)
    assert newest(folder) == (8, [])
    assert read_manifest(path).attempt == 1
    assert manifest["attempt"] == 0


def test_begin_clears_leftovers_and_a_final_file(folder: RunFolder) -> None:
    write(folder, 4)
    (folder.checkpoints / "step-00000008.tmp-abc").mkdir()
    (folder.checkpoints / "step-00000008.tmp-abc" / "x").write_text("x")
    folder.final_file.write_text("{}")
    begin_attempt(folder, 1, 4)
    assert snapshot_steps(folder) == [4]
    assert not folder.final_file.exists()
    assert json.loads((folder.attempt(1) / "began.json").read_text()) == {"version": 1, "step": 4}
    assert len(list(folder.checkpoints.iterdir())) == 1


def test_the_newest_and_the_best_are_kept(folder: RunFolder) -> None:
    for step in (4, 8, 12, 16):
        write(folder, step)
    assert prune_snapshots(folder, 16, 2, best_step=4, good=[4, 8, 12, 16]) == [8]
    assert snapshot_steps(folder) == [4, 12, 16]
    (snapshot_path(folder, 16) / "a.bin").unlink()
    with pytest.raises(CheckpointError, match=r"a\.bin can't be read"):
        prune_snapshots(folder, 16, 1, best_step=None, good=[12, 16])
    assert snapshot_steps(folder) == [4, 12, 16]


def test_what_lies_beyond_goes(folder: RunFolder) -> None:
    for step in (4, 8, 12):
        write(folder, step)
    (snapshot_path(folder, 12) / "a.bin").unlink()
    assert prune_snapshots(folder, 8, 2, best_step=None, good=[4, 8]) == [12]


def test_only_what_is_known_to_be_good_counts_as_kept(folder: RunFolder) -> None:
    for step in (30, 40, 50, 57):
        write(folder, step)
    (snapshot_path(folder, 57) / "a.bin").write_text("damaged")
    write(folder, 60)  # by an attempt that passed 57 over and went on from 50
    assert prune_snapshots(folder, 60, 3, best_step=None, good=[50, 60]) == [57]  # 30 or 40 may still be needed
    assert prune_snapshots(folder, 60, 2, best_step=None, good=[50, 60]) == [30, 40]
    assert snapshot_steps(folder) == [50, 60]


def test_link_is_replaced_in_one_piece_and_is_relative(folder: RunFolder) -> None:
    for step in (4, 8):
        point_at(folder.best, write(folder, step))
        assert os.readlink(folder.best) == f"checkpoints/step-{step:08d}"
    assert sorted(entry.name for entry in folder.path.iterdir()) == ["attempts", "best", "checkpoints"]
