"""What the agent makes of the ends of its ranks; its loop is tried with real processes, in tests/system."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from rankrun.launch.agent import Agent
from rankrun.launch.workers import Exit


@pytest.fixture
def rank_end(tmp_path):
    """The end that an agent reports of rank 0, which left no words."""

    def make(code, *, stopped=False, cause=None):
        agent = SimpleNamespace(
            _workers=SimpleNamespace(exits={0: Exit(0, 7, code, 5, stopped)}, pids={0: 7}),
            _team=SimpleNamespace(node=0, host="nodea"),
            _cause=cause,
        )
        attempt = SimpleNamespace(
            rank=lambda local_rank: local_rank,
            error_file=lambda local_rank: tmp_path / "error.json",
            log_file=lambda local_rank: tmp_path / "0.log",
            error_log=lambda local_rank: None,
        )
        observer = SimpleNamespace(left_early=lambda end: False)
        return Agent._rank_end(agent, attempt, observer, 0)

    return make


@pytest.mark.parametrize("code", [-signal.SIGTERM, -signal.SIGKILL, 143, 1])
def test_who_ends_after_the_stop_was_told_to(rank_end, code):
    assert rank_end(code, stopped=True).obeyed
    assert not rank_end(code).ordered


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_ends_by_the_signal_that_was_passed_on_was_told_to(rank_end, number):
    assert rank_end(-number, cause=number).ordered
    assert rank_end(128 + number, cause=number).ordered
    assert not rank_end(1, cause=number).ordered
    assert not rank_end(-signal.SIGSEGV, cause=number).ordered
