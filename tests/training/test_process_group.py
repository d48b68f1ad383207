from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
import torch

from rankrun.errors import ConfigError, SetupError
from rankrun.training.process_group import Group, process_group
from rankrun.world import World
from tests.training.helpers import end_of, start_ranks

CPU = torch.device("cpu")
HEAD = """
import os, sys, threading
from pathlib import Path
import torch, torch.distributed as dist
from rankrun.errors import ConfigError
from rankrun.training.process_group import process_group
from rankrun.training.reporting import report_errors
from rankrun.world import World
world = World.from_env(os.environ)
def opened(limit_s=60.0):
    return process_group(world, torch.device("cpu"), rendezvous=Path(sys.argv[1]), limit_s=limit_s)
"""
TALK = """
with report_errors(os.environ), opened() as group:
    print(group.gather({"rank": group.rank, "text": "é" * (group.rank + 1)}))
    print(group.total(torch.tensor([2**62, group.rank])).tolist())
    print(group.start_max(group.rank * 5)())
    print(group.on_rank_zero(lambda: "from zero"), group.together(lambda: group.rank))
    def picky():
        if group.rank == 1:
            raise ConfigError("only here")
        return 1
    try:
        group.together(picky)
    except Exception as error:
        print(type(error).__name__, error.exit_code, error.told_by)
    def broken():
        raise ZeroDivisionError("zero")
    try:
        group.on_rank_zero(broken)
    except Exception as error:
        print(type(error).__name__, error)
print("down", not dist.is_initialized())
"""
# Rank 1 leaves with an operation in flight that rank 0 never joins: torch's own take-down would wait for it.
LEAVE = """
with report_errors(os.environ), opened() as group:
    if group.rank == 1:
        work = dist.all_reduce(torch.zeros(4), async_op=True)
        raise ConfigError("rank 1 has had enough")
    group.gather(0); group.gather(0); group.gather(0)
"""


def test_a_group_of_one_talks_to_nobody(tmp_path: Path) -> None:
    with process_group(World(0, 1, 0, 1, 0, 1, "single"), CPU, rendezvous=tmp_path) as group:
        assert group.gather((1, 2)) == [[1, 2]]
        assert group.total(torch.tensor([3])).item() == 3
        assert group.start_max(4)() == 4
        assert group.on_rank_zero(lambda: {"a": 1}) == {"a": 1}


def test_what_all_get_when_one_fails() -> None:
    group = Group(0, 1)

    def wrong() -> None:
        raise ConfigError("wrong")

    with pytest.raises(ConfigError, match="wrong") as caught:
        group.together(wrong)
    assert caught.value.told_by == 0


def test_two_ranks_under_srun_find_each_other_by_a_file(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = closed.getsockname()[1]
    # What a killed run of the same job left: it leads to nobody.
    stale = tmp_path / "7.0.0.json"
    stale.write_text(json.dumps({"host": "127.0.0.1", "port": dead, "token": "0"}))
    ends = end_of(start_ranks(["-c", HEAD + TALK, str(tmp_path)], 2, launcher="srun"))
    assert [code for code, _ in ends] == [0, 0], ends
    for rank, (_, output) in enumerate(ends):
        own = ["PeerError 2 1", "ConfigError 2 1"][rank]
        zero = ["ZeroDivisionError zero", "PeerError stopped because rank 0 failed: ZeroDivisionError: zero"][rank]
        assert output.splitlines() == [
            "[{'rank': 0, 'text': 'é'}, {'rank': 1, 'text': 'éé'}]",
            "[-9223372036854775808, 1]",
            "5",
            f"from zero {rank}",
            own,
            zero,
            "down True",
        ]
    assert list(tmp_path.iterdir()) == []


def test_a_failing_rank_does_not_wait_for_the_others(tmp_path: Path) -> None:
    ranks = start_ranks(["-c", HEAD + LEAVE, str(tmp_path)], 2)
    ends = end_of(ranks)
    assert ends[1] == (2, "E102 rank 1 has had enough\n")
    assert ends[0][0] == 1


def test_who_is_missing_is_named(tmp_path: Path) -> None:
    world = World(0, 3, 0, 3, 0, 1, "srun", job="9.0.0")
    began = time.monotonic()
    with (
        pytest.raises(SetupError, match="2 of 3 ranks did not arrive within 1 s: 1, 2"),
        process_group(world, CPU, rendezvous=tmp_path, limit_s=1.0),
    ):
        pass
    assert time.monotonic() - began < 60
    assert list(tmp_path.iterdir()) == []
