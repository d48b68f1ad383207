"""When a run is restarted and what it leaves with otherwise, decided from reports alone."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rankrun.launch.deciding import Bench, Case
from rankrun.launch.options import RunOptions
from rankrun.launch.plan import make_plan
from rankrun.launch.rank_end import RankEnd
from rankrun.launch.watch import Hang
from rankrun.runfolder import RunFolder

OURS = SimpleNamespace()  # settings: all that is asked of them here is whether there are any


class Heard:
    """A screen that nothing is shown on."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def shows(self, path) -> bool:
        return False

    def say(self, line: str) -> None:
        self.lines.append(line)


def end(rank, code, node=0, **changes):
    values = {
        "rank": rank, "local_rank": rank, "node": node, "host": f"node{'abc'[node]}", "pid": 10 + rank, "code": code,
        "ns": 1000 + rank, "ordered": False, "early": False, "message": None, "traceback": None, "where": None,
        "told": False, "told_code": None, "log": Path("log"), "tail": [],
    }  # fmt: skip
    return RankEnd(**values | changes)


def report(*ends, **changes):
    base = {"host": "nodea", "cooperating": True, "started": True, "parent_gone": False, "oom": None, "stacks": []}
    return base | {"now_ns": 5000, "ends": [one.as_message(5000) for one in ends]} | changes


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """`decide(reports…)` on the bench of a launch with 3 restarts; the run folder is real."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text("import torch\n")
    plan = make_plan(RunOptions(target="job.py", words=(), max_restarts=3), {}, None, gpus=0)
    run = RunFolder(tmp_path / "run")
    run.attempt(0).mkdir(parents=True)
    run.checkpoints.mkdir()
    screen = Heard()
    seat = Bench(plan, screen)

    def decide(*reports, lost=None, silent=None, hang=None, cause=None, restarts=0, node=0):
        by_node = dict(enumerate(reports))
        return seat.decide(Case(run, 0, by_node, lost or {}, silent or {}, hang, cause, restarts, node))

    return SimpleNamespace(decide=decide, run=run, screen=screen, seat=seat, plan=plan)


CRASH = report(end(0, -9))


def test_a_crash_is_tried_again_until_the_restarts_are_used_up(bench):
    crash = report(end(0, -9), cooperating=False)
    decisions = [bench.decide(crash, restarts=count) for count in range(4)]
    assert [decision.restart for decision in decisions] == [True, True, True, False]
    assert {decision.exit_code for decision in decisions} == {137}
    assert bench.screen.lines.count("restart 2 of 3") == 1


def test_three_failures_without_a_checkpoint_end_it_and_one_in_between_does_not(bench):
    assert bench.decide(CRASH).restart
    assert bench.decide(CRASH, restarts=1).restart
    (bench.run.checkpoints / "step-00000010").mkdir()
    assert bench.decide(CRASH, restarts=1).restart
    assert bench.decide(CRASH, restarts=1).restart
    last = bench.decide(CRASH, restarts=1)
    assert (last.restart, last.exit_code) == (False, 93)
    assert bench.screen.lines[-1] == "3 failures in a row without a new checkpoint; not tried again"


def test_a_silent_node_is_named_and_is_the_cause_only_where_no_rank_is(bench):
    silence = "node 1 (nodeb) did not say how its ranks ended"
    assert bench.decide(CRASH, silent={1: "nodeb"}).exit_code == 137
    assert silence in bench.screen.lines
    bench.screen.lines.clear()
    decision = bench.decide(report(end(0, -15, ordered=True)), silent={1: "nodeb"})
    assert (decision.restart, decision.exit_code) == (True, 1)
    assert "node 1 (nodeb) can't be reached any more" in decision.line
    assert silence not in bench.screen.lines


MISTAKE = end(0, 1, message="ValueError: no", where="train.py:1")


@pytest.mark.parametrize(
    ("given", "restart", "code"),
    [
        (report(MISTAKE, started=False), False, 1),
        (report(MISTAKE), True, 1),
        (report(MISTAKE, started=False, cooperating=False), True, 1),
        (report(end(0, -11), started=False), True, 139),
        (report(end(0, 2, message="E102 lr", told=True, told_code=2)), False, 2),
        (report(end(0, 2), cooperating=False), True, 1),
        (report(end(0, 0, early=True)), True, 1),
        (report(end(0, None), parent_gone=True), False, 1),
    ],
)
def test_what_is_the_same_the_second_time_is_not_tried_again(bench, given, restart, code):
    decision = bench.decide(given)
    assert (decision.restart, decision.exit_code) == (restart, code)


def test_who_was_told_to_leave_is_not_started_again(bench):
    ordered = report(end(0, -15, ordered=True), cooperating=False)
    decision = bench.decide(ordered, cause=signal.SIGINT)
    assert (decision.restart, decision.exit_code) == (False, 130)
    assert bench.screen.lines == []
    failed = report(end(0, 1, message="OSError: disk full"), cooperating=False)
    assert bench.decide(failed, cause=signal.SIGINT).exit_code == 1


def test_a_node_speaks_for_its_own_ranks_only(bench):
    forged = report(end(0, 7, node=0, message="ValueError: forged"), host="nodeb")
    decision = bench.decide(report(end(0, -9)), forged)
    assert decision.exit_code == 137
    assert "forged" not in decision.line


def test_a_lost_node_and_a_hang_are_told_and_tried_again(bench):
    lost = bench.decide(report(end(0, -15, ordered=True)), lost={1: "nodeb"})
    assert (lost.restart, lost.exit_code) == (True, 1)
    assert "node 1 (nodeb) can't be reached any more" in lost.line
    hang = Hang((1,), (0,), 31.0, 30.0, None, None)
    hung = bench.decide(report(end(0, -15, ordered=True), end(1, -9, ordered=True)), hang=hang, restarts=3)
    assert (hung.restart, hung.exit_code) == (False, 124)
    assert hung.line.startswith("rank 1 on nodea hung")


def test_the_verdict_is_kept_and_that_of_node_0_counts(bench):
    bench.decide(CRASH)
    file = bench.run.verdict_file(0)
    assert json.loads(file.read_text())["exit_code"] == 137
    bench.decide(report(), report(end(1, -6, node=1)), lost={0: "nodea"}, node=1)
    assert json.loads(file.read_text())["exit_code"] == 137


def test_a_folder_that_is_gone_hides_no_verdict(bench):
    bench.run.attempt(0).rmdir()
    assert bench.decide(CRASH).exit_code == 137
    assert bench.screen.lines[-1].startswith("verdict.json could not be written")


@pytest.mark.parametrize(
    ("ours", "saved", "cause", "final", "code"),
    [
        (False, False, None, False, 0),
        (False, False, signal.SIGINT, False, 130),
        (False, False, signal.SIGTERM, False, 143),
        (True, True, signal.SIGTERM, False, 143),
        (True, True, None, False, 75),
        (True, True, signal.SIGUSR2, False, 75),
        (True, False, signal.SIGINT, True, 0),
        (True, False, None, True, 0),
        (True, False, None, False, 1),
    ],
)
def test_the_exit_code_of_ranks_that_ended_well(bench, ours, saved, cause, final, code):
    if final:
        bench.run.final_file.write_text("{}")
    seat = Bench(replace(bench.plan, settings=OURS if ours else None), bench.screen)
    assert seat.code_of_success(bench.run, saved, cause) == code
