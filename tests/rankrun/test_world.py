from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankrun.errors import WorldError
from rankrun.world import World

TORCHRUN = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "TORCHELASTIC_RESTART_COUNT": "0",
}  # fmt: skip
TWO_NODES = TORCHRUN | {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "n1", "TORCHELASTIC_RESTART_COUNT": "3",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "42", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_TASKS_PER_NODE": "2",
}  # fmt: skip
MIXED = SRUN | {
    "SLURM_PROCID": "6", "SLURM_NTASKS": "7", "SLURM_LOCALID": "0", "SLURM_NODEID": "3", "SLURM_NNODES": "4",
    "SLURM_TASKS_PER_NODE": "2(x3),1", "SLURM_RESTART_COUNT": "5",
}  # fmt: skip
# What a batch script sees: the numbers describe the job, and there is no step.
BATCH = {
    "SLURM_JOB_ID": "42", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "8",
    "SLURM_NNODES": "2", "SLURM_TASKS_PER_NODE": "4(x2)", "ENVIRONMENT": "BATCH",
}  # fmt: skip

WORLDS = [
    ("nothing", {}, World(0, 1, 0, 1, 0, 1, "single")),
    ("empty values are not set", {"RANK": "", "WORLD_SIZE": " ", "MASTER_ADDR": ""}, World(0, 1, 0, 1, 0, 1, "single")),
    ("a master alone", {"MASTER_ADDR": "n1", "MASTER_PORT": "1"}, World(0, 1, 0, 1, 0, 1, "single", "n1", 1)),
    ("torchrun", TORCHRUN, World(1, 2, 1, 2, 0, 1, "torchrun", "localhost", 29500)),
    ("torchrun, two nodes", TWO_NODES, World(5, 8, 1, 4, 1, 2, "torchrun", "n1", 29500, 3)),
    (
        "torchrun's family by hand, without the group",
        {k: v for k, v in TORCHRUN.items() if not k.startswith(("GROUP", "TORCHELASTIC"))},
        World(1, 2, 1, 2, 0, 1, "torchrun", "localhost", 29500),
    ),
    (
        "torchrun, 3 + 1 ranks",
        TWO_NODES | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        World(3, 4, 0, 1, 1, 2, "torchrun", "n1", 29500, 3),
    ),
    ("srun", SRUN, World(1, 2, 1, 2, 0, 1, "srun", job="42.0.0")),
    ("srun with a master", SRUN | {"MASTER_ADDR": "n1", "MASTER_PORT": "77"},
     World(1, 2, 1, 2, 0, 1, "srun", "n1", 77, job="42.0.0")),
    ("srun, mixed counts", MIXED, World(6, 7, 0, 1, 3, 4, "srun", restart=5, job="42.0.5")),
    ("srun, mixed counts, another node", MIXED | {"SLURM_PROCID": "3", "SLURM_NODEID": "1", "SLURM_LOCALID": "1"},
     World(3, 7, 1, 2, 1, 4, "srun", restart=5, job="42.0.5")),
    ("a step of two tasks in a job of eight",
     BATCH | {"SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1",
              "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
     World(1, 2, 1, 2, 0, 1, "srun", job="42.3.0")),
    ("srun on one node needs no list of counts", {k: v for k, v in SRUN.items() if "TASKS_PER" not in k},
     World(1, 2, 1, 2, 0, 1, "srun", job="42.0.0")),
    ("a batch script", BATCH, World(0, 1, 0, 1, 0, 1, "single")),
    ("an interactive shell of SLURM", BATCH | {"SLURM_STEP_ID": "4294967290"}, World(0, 1, 0, 1, 0, 1, "single")),
    ("a batch step", BATCH | {"SLURM_STEP_ID": "4294967291"}, World(0, 1, 0, 1, 0, 1, "single")),
]  # fmt: skip


@pytest.mark.parametrize(("env", "world"), [row[1:] for row in WORLDS], ids=[row[0] for row in WORLDS])
def test_world(env: dict[str, str], world: World) -> None:
    assert World.from_env(env) == world


def test_torchrun_wins_over_slurm_and_says_so() -> None:
    world = World.from_env(MIXED | TORCHRUN)
    assert (world.launcher, world.rank, world.world_size, world.job) == ("torchrun", 1, 2, None)
    assert world.note is not None
    assert "RANK=1 and WORLD_SIZE=2 are used; SLURM_PROCID='6'" in world.note


REFUSED = [
    ({"RANK": "0"}, "WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set although RANK"),
    ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, .* or unset the rest to run a single process"),
    (SRUN | {"WORLD_SIZE": "2"}, r"unset the rest \(under srun SLURM's own variables are enough\)"),
    ({"MASTER_ADDR": "n1"}, "MASTER_PORT is not set although MASTER_ADDR='n1' is: set both, or none"),
    (SRUN | {"MASTER_PORT": "1"}, "MASTER_ADDR is not set although MASTER_PORT='1' is"),
    (TORCHRUN | {"MASTER_PORT": ""}, "MASTER_PORT is not set"),
    (TORCHRUN | {"MASTER_PORT": "0"}, "MASTER_PORT='0' is not a whole number from 1 to 65535"),
    (TORCHRUN | {"MASTER_PORT": "65536"}, "MASTER_PORT='65536' is not a whole number from 1 to 65535"),
    (TORCHRUN | {"MASTER_ADDR": "n1\nn2"}, r"MASTER_ADDR='n1\\nn2' is not a host name or address"),
    (TORCHRUN | {"RANK": "one"}, "RANK='one' is not a whole number"),
    (TORCHRUN | {"RANK": "-1"}, "RANK='-1' is not a whole number"),
    (TORCHRUN | {"RANK": "1_0"}, "RANK='1_0' is not a whole number"),
    (TORCHRUN | {"RANK": "\u0661"}, "is not a whole number"),
    (TORCHRUN | {"RANK": "9" * 5000}, "RANK='9{60}' is not a whole number"),
    (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE='0' is not a whole number from 1"),
    (TORCHRUN | {"RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
    (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2 is not below LOCAL_WORLD_SIZE=2"),
    (TORCHRUN | {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3 is more than WORLD_SIZE=2"),
    (TORCHRUN | {"LOCAL_RANK": "0"}, "RANK=1 and LOCAL_RANK=0 differ, although there is one node"),
    (TORCHRUN | {"GROUP_RANK": ""}, "GROUP_RANK is not set although GROUP_WORLD_SIZE='1' is"),
    (TORCHRUN | {"GROUP_RANK": "1"}, "GROUP_RANK=1 is not below GROUP_WORLD_SIZE=1"),
    (TORCHRUN | {"GROUP_WORLD_SIZE": "3"}, "GROUP_WORLD_SIZE=3 nodes .* contradict WORLD_SIZE=2"),
    (TORCHRUN | {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "GROUP_WORLD_SIZE=1 nodes .* contradict WORLD_SIZE=2"),
    ({k: v for k, v in TWO_NODES.items() if "GROUP" not in k}, "mean several nodes, but GROUP_RANK"),
    (TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT='x'"),
    ({"SLURM_STEP_ID": "0"}, "SLURM_JOB_ID, SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID, SLURM_NODEID, SLURM_NNODES"),
    ({"SLURM_STEP_ID": "x"}, "SLURM_STEP_ID='x' is not a whole number"),
    (SRUN | {"SLURM_LOCALID": ""}, "SLURM_LOCALID is not set although .*: start with srun"),
    (SRUN | {"SLURM_PROCID": "2"}, "SLURM_PROCID=2 is not below SLURM_NTASKS=2"),
    (SRUN | {"SLURM_NODEID": "1"}, "SLURM_NODEID=1 is not below SLURM_NNODES=1"),
    (MIXED | {"SLURM_LOCALID": "1"}, "SLURM_LOCALID=1 is not below the tasks of node 3 in SLURM_TASKS_PER_NODE=1"),
    (MIXED | {"SLURM_TASKS_PER_NODE": "2(x4)"}, r"PER_NODE='2\(x4\)' means 8 tasks on 4 nodes, but SLURM_NTASKS=7"),
    (MIXED | {"SLURM_JOB_NUM_NODES": "1"}, "SLURM_NNODES=4 is more than SLURM_JOB_NUM_NODES=1, so SLURM_STEP_"),
    (MIXED | {"SLURM_TASKS_PER_NODE": "7(x9999999)"}, "means .* tasks on 5 nodes"),
    (MIXED | {"SLURM_TASKS_PER_NODE": "2(x3"}, r"SLURM_TASKS_PER_NODE='2\(x3' is not a list of task counts"),
    (MIXED | {"SLURM_TASKS_PER_NODE": "0(x3),7"}, "is not a list of task counts"),
    ({k: v for k, v in MIXED.items() if "TASKS_PER" not in k}, "SLURM_STEP_TASKS_PER_NODE is not set, so"),
]  # fmt: skip


@pytest.mark.parametrize(("env", "message"), REFUSED)
def test_half_set_and_contradictory_worlds_are_refused(env: dict[str, str], message: str) -> None:
    with pytest.raises(WorldError, match=message) as caught:
        World.from_env(env)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


VALUES = ["", " ", "0", "1", "2", "3", "7", "8", "-1", "x", "2(x3),1", "4(x2)", "1e3", "\n", "4294967290", "65535"]


@settings(deadline=None)
@given(
    st.sampled_from([TORCHRUN, TWO_NODES, SRUN, MIXED, BATCH, {}]),
    st.dictionaries(st.sampled_from(sorted(TORCHRUN | MIXED)), st.sampled_from(VALUES), max_size=4),
)
def test_any_environment_gives_a_world_or_one_line(env: dict[str, str], change: dict[str, str]) -> None:
    message = "one line"
    world = World(0, 1, 0, 1, 0, 1, "single")
    try:
        world = World.from_env(env | change)
    except WorldError as error:
        message = str(error)
    assert len(message.splitlines()) == 1
    assert 0 <= world.rank < world.world_size
    assert 0 <= world.local_rank < world.local_world_size <= world.world_size
    assert 0 <= world.node_rank < world.nodes <= world.world_size
    assert (world.master_addr is None) == (world.master_port is None)
