from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from rankrun.runfolder import AuditLog, RunFolder, audit_positions


def serve(folder: Path, *, attempt: int, world_size: int, epoch: int, start: int, cut: int, batch: int) -> None:
    """One attempt that serves positions start .. cut; the row at position g is 1000 * attempt + g."""
    for rank in range(world_size):
        log = AuditLog(RunFolder(folder), rank, attempt)
        for position in range(start, cut, batch):
            served = [g for g in range(position, position + batch) if g % world_size == rank]
            log.write(epoch, position // batch, position, [1000 * attempt + g for g in served])
        log.close()


def test_a_line_is_as_the_design_has_it(tmp_path: Path) -> None:
    serve(tmp_path, attempt=3, world_size=2, epoch=1, start=4, cut=8, batch=4)
    text = (tmp_path / "audit" / "rank-00001.jsonl").read_text()
    assert text == '{"attempt":3,"epoch":1,"step":1,"position":4,"rows":[3005,3007]}\n'


def test_positions_of_two_ranks(tmp_path: Path) -> None:
    serve(tmp_path, attempt=0, world_size=2, epoch=0, start=0, cut=8, batch=4)
    assert audit_positions(tmp_path, 0) == {g: g for g in range(8)}
    assert list(audit_positions(tmp_path, 0)) == list(range(8))
    assert audit_positions(RunFolder(tmp_path), 1) == {}
    assert audit_positions(tmp_path / "none", 0) == {}


def test_the_highest_attempt_counts_also_with_another_world_size(tmp_path: Path) -> None:
    serve(tmp_path, attempt=0, world_size=3, epoch=0, start=0, cut=15, batch=5)
    serve(tmp_path, attempt=2, world_size=2, epoch=0, start=10, cut=20, batch=5)
    expected = {g: g for g in range(10)} | {g: 2000 + g for g in range(10, 20)}
    assert audit_positions(tmp_path, 0) == expected


def test_a_given_world_size_wins_over_the_files(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, 0, 0)
    log.write(0, 0, 0, [10, 12])
    log.close()
    assert audit_positions(tmp_path, 0) == {0: 10, 1: 12}
    assert audit_positions(tmp_path, 0, {0: 2}) == {0: 10, 2: 12}


def test_an_attempt_killed_in_its_first_line_is_covered_by_the_next(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, 0, 0)
    log.write(0, 0, 0, [0, 2])
    log.close()
    (tmp_path / "audit" / "rank-00001.jsonl").write_text('{"attempt":0,"epoch":0,"st')
    serve(tmp_path, attempt=1, world_size=2, epoch=0, start=0, cut=4, batch=4)
    assert audit_positions(tmp_path, 0) == {g: 1000 + g for g in range(4)}


@settings(deadline=None, max_examples=30)
@given(kills=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5), st.integers(0, 5)), max_size=4))
def test_any_kills_leave_each_position_once(kills: list[tuple[int, int, int]]) -> None:
    batch, steps = 6, 6
    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), 0
        for attempt, (world_size, done, saved) in enumerate(kills):
            end = min(start + done, steps)
            serve(
                folder,
                attempt=attempt,
                world_size=world_size,
                epoch=0,
                start=start * batch,
                cut=end * batch,
                batch=batch,
            )
            start = min(start + saved, end)
        serve(folder, attempt=len(kills), world_size=2, epoch=0, start=start * batch, cut=steps * batch, batch=batch)
        found = audit_positions(folder, 0)
        assert list(found) == list(range(steps * batch))
        assert all(row % 1000 == g for g, row in found.items())


def test_rows_of_other_integer_types_are_written_as_numbers(tmp_path: Path) -> None:
    class Draw(int):
        epoch = 3

    log = AuditLog(tmp_path, 0, 0)
    log.write(0, 0, 0, [Draw(5)])
    log.close()
    assert json.loads((tmp_path / "audit" / "rank-00000.jsonl").read_text())["rows"] == [5]
