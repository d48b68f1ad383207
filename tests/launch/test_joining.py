from __future__ import annotations

from pathlib import Path

import pytest

from rankrun.errors import OptionError, RankrunError, WorldError
from rankrun.launch.joining import Joining, joining
from rankrun.launch.options import parse_run

STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_TASKS_PER_NODE": "1(x2)",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}


def joined(*words: str, env: dict[str, str] | None = None) -> Joining:
    return joining(parse_run([*words, "job.py"], {}), env or {}, Path("runs"))


def test_one_machine_needs_no_place_to_meet():
    assert joined() == Joining()
    assert joined("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--standalone") == Joining()
    assert joined("--node-rank", "0", "--nnodes", "1:1").nnodes == 1


def test_a_port_for_the_store_of_one_machine():
    assert joined("--master-port", "29777").store_port == 29777
    assert joined("--master-port", "0").store_port is None


@pytest.mark.parametrize(
    ("words", "endpoint"),
    [
        (["--rdzv-endpoint", "n0:1"], ("n0", 1)),
        (["--master-addr", "n0"], ("n0", 29500)),
        (["--master-addr", "n0", "--master-port", "1"], ("n0", 1)),
        (["--master-addr", "n0", "--master-port", "1", "--rdzv-endpoint", "n0:1"], ("n0", 1)),
        (["--master-port", "1", "--rdzv-endpoint", "n0:1"], ("n0", 1)),
    ],
)
def test_two_ways_to_one_endpoint(words, endpoint):
    assert joined("--nnodes", "2", *words).endpoint == endpoint


def test_the_rest_is_passed_on():
    how = joined("--nnodes=3", "--rdzv-endpoint=h", "--rdzv-conf=is_host=1,timeout=5", "--local-addr=10.0.0.1")
    assert (how.is_host, how.join_timeout_s, how.local_addr, how.node_rank) == (True, 5.0, "10.0.0.1", None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--nnodes", "2"], "--nnodes 2 needs a place to meet: give --rdzv-endpoint HOST[:PORT]"),
        (["--nnodes", "2", "--master-port", "5"], "needs a place to meet"),
        (["--nnodes", "2", "--rdzv-endpoint", "h:0"], "the other machines could not know it; give a port"),
        (["--nnodes", "2", "--standalone", "--rdzv-endpoint", "h"], "--standalone and --nnodes 2 contradict"),
        (
            ["--nnodes", "2", "--node-rank", "2", "--rdzv-endpoint", "h"],
            "--node-rank 2: with --nnodes 2 it is at most 1",
        ),
        (["--node-rank", "1"], "--node-rank 1: with --nnodes 1 it is at most 0"),
        (
            ["--rdzv-endpoint", "h:1", "--master-addr", "g"],
            "--rdzv-endpoint h:1 and --master-addr g (port 29500) are two",
        ),
        (["--rdzv-endpoint", "h:1", "--master-port", "2"], "--rdzv-endpoint h:1 and --master-port 2 are two ports"),
        (
            ["--nnodes", "2", "--rdzv-endpoint", "h", "--rdzv-conf", "is_host=true", "--node-rank", "1"],
            "--rdzv-conf is_host=true and --node-rank 1 contradict each other",
        ),
        (
            ["--nnodes", "2", "--rdzv-endpoint", "h", "--rdzv-conf", "is_host=0", "--node-rank", "0"],
            "--rdzv-conf is_host=false and --node-rank 0 contradict",
        ),
    ],
)
def test_what_can_never_meet(words, says):
    with pytest.raises(OptionError) as caught:
        joined(*words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_slurm_step_with_one_task_a_node_says_it_all():
    by_file = Path("runs/.rendezvous/7.0.0.json")
    assert joined(env=STEP) == Joining(nnodes=2, node_rank=1, meet_by_file=by_file)
    assert joined("--nnodes", "2", env=STEP).meet_by_file == by_file
    again = joined(env={**STEP, "SLURM_RESTART_COUNT": "4"})
    assert again.meet_by_file == Path("runs/.rendezvous/7.0.4.json")


def test_an_endpoint_in_a_slurm_step_is_taken():
    how = joined("--rdzv-endpoint", "n0", env=STEP)
    assert (how.nnodes, how.node_rank, how.endpoint, how.meet_by_file) == (2, 1, ("n0", 29400), None)


def test_slurm_is_not_asked_by_a_run_on_one_machine_or_out_of_a_step():
    assert joined("--nnodes", "1", env=STEP) == Joining()
    assert joined("--standalone", env=STEP) == Joining()
    batch = {**STEP, "SLURM_STEP_ID": str(0xFFFFFFFB)}
    assert joined(env=batch) == Joining()
    assert joined(env={name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"}) == Joining()


def test_another_number_of_machines_than_the_steps_is_joined_by_hand():
    with pytest.raises(OptionError, match="--nnodes 3 needs a place to meet"):
        joined("--nnodes", "3", env=STEP)


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        (
            {"SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_PROCID": "2"},
            OptionError,
            "4 tasks of this SLURM step run launch.py on 2 nodes, and one a node starts its ranks: use "
            "srun --ntasks-per-node=1; --nnodes 1 starts a run on this machine alone",
        ),
        (
            {"SLURM_NNODES": "1", "SLURM_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"},
            OptionError,
            "2 tasks of this SLURM step run launch.py on 1 node,",
        ),
        ({"SLURM_NODEID": ""}, WorldError, "SLURM_NODEID is not set"),
    ],
)
def test_steps_that_are_no_world(changes, kind, says):
    with pytest.raises(RankrunError) as caught:
        joined(env={**STEP, **changes})
    assert type(caught.value) is kind
    assert says in str(caught.value)
    assert "--nnodes 1 starts a run on this machine alone" in str(caught.value)
