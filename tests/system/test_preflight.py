"""The preflight on three hosts: what it says where all is well, and that it names the node where it isn't."""

from __future__ import annotations

import sys

import pytest

from tests.system.doors import ROOT

pytestmark = [pytest.mark.needs("linux", "netns"), pytest.mark.slow]


# As the agent of node 0 holds the store of an attempt.
STORE = """\
import time
from torch.distributed import TCPStore
store = TCPStore("nodea", 29500, is_master=True, wait_for_workers=False)
print("listens", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def preflight(doors, hosts):
    """Starts one rank on each of three hosts: `preflight(prepare)` gives rank 0's exit code and table."""
    three = hosts(3)
    (doors.folder / "run/attempts/0000").mkdir(parents=True)

    holder = three.start(0, [sys.executable, "-c", STORE])
    assert any("listens" in line for line in holder.process.stdout)

    def run(*options: str, limit_s: float = 60) -> tuple[int, str]:
        world = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "GROUP_WORLD_SIZE": "3"}
        world |= {"MASTER_ADDR": "nodea", "MASTER_PORT": "29500", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        world |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        world |= {"RANKRUN_RUN_DIR": str(doors.folder / "run"), "RANKRUN_ATTEMPT": "0"}
        words = [sys.executable, "-m", "rankrun.training.preflight", "--megabytes", "2", "--limit", str(limit_s)]
        words += options
        ranks = [
            three.start(rank, words, env=world | {"RANK": str(rank), "GROUP_RANK": str(rank)}) for rank in range(3)
        ]
        code = ranks[0].wait()
        for other in ranks[1:]:
            other.wait()
        # c10d warns of addresses that have no name.
        return code, "\n".join(line for line in ranks[0].output.splitlines() if "[c10d]" not in line)

    run.hosts = three
    return run


def test_three_nodes_that_can_train_together(preflight, doors):
    code, table = preflight()
    lines = table.splitlines()
    assert code == 0, table
    assert lines[0] == "preflight: 3 ranks on 3 nodes (nodea, nodeb, nodec)"
    assert [line.split()[0] for line in lines[1:]] == ["✓"] * 7, table
    assert "✓ run folder  written and read back by all 3 nodes" in lines
    assert "✓ network     every node reaches every other" in lines
    assert "✓ sum         right on all 3 ranks (gloo)" in lines
    assert not list((doors.folder / "run/attempts/0000").iterdir())


def within(preflight, host: int, *words: object) -> None:
    done = preflight.hosts.start(host, words)
    assert done.wait() == 0, done.output


def test_a_node_with_another_run_folder_is_named(preflight, doors):
    (doors.folder / "other/attempts/0000").mkdir(parents=True)
    within(preflight, 2, "mount", "--bind", "other", "run")
    code, table = preflight(limit_s=4)
    assert code == 0, table
    assert "! run folder  nodec: not on a shared disk; a script's logs lie on each node, a config can't be run" in table
    code, table = preflight("--shared", limit_s=4)
    assert code == 1, table
    line = "✗ run folder  nodec: has another folder of that name than the rest; all nodes must share its disk"
    assert line in table.splitlines()
    assert f"E107 {line[2:12]}: nodec" in table


def test_a_node_that_cannot_write_the_run_folder_is_named_at_once(preflight, doors):
    (doors.folder / "empty").mkdir()
    within(preflight, 1, "mount", "--bind", "empty", "run")
    code, table = preflight()
    assert code == 1, table
    place = doors.folder / "run/attempts/0000"
    assert f"✗ run folder  nodeb: {place}: No such file or directory" in table.splitlines()
    assert "· sum         not tried, after what failed" in table.splitlines()


def test_a_node_that_calls_itself_localhost_is_named(preflight, doors):
    (doors.folder / "debian").write_text("127.0.0.1 localhost\n127.0.1.1 nodec\n10.77.0.1 nodea\n")
    within(preflight, 2, "sh", "-c", "cat debian > /etc/hosts")
    code, table = preflight()
    assert code == 1, table
    assert "✗ network     nodec: its host name leads to 127.0.1.1, where no other node reaches it;" in table


def test_two_nodes_that_do_not_hear_each_other_are_named(preflight):
    within(preflight, 2, "ip", "route", "add", "prohibit", "10.77.0.2")
    code, table = preflight()
    assert code == 1, table
    assert "nodec: 10.77.0.3 can't be reached from nodeb" in table
    assert "nodea:" not in table


def test_a_node_that_never_joins_is_named(preflight):
    preflight.hosts.cut(1)
    code, table = preflight(limit_s=5)
    assert code == 1, table
    assert "✗ join        node 1: no answer of rank 1 within 5 s" in table.splitlines()
    assert "· bandwidth   not tried, after what failed" in table.splitlines()


def test_the_launcher_runs_it_in_place_of_a_target(doors, hosts):
    three = hosts(3)
    words = ["run", "--preflight", "--nnodes", 3, "--nproc", 1, "--rdzv-endpoint", "10.77.0.1:29400"]
    launchers = [three.launch(host, *words) for host in range(3)]
    assert [launcher.wait() for launcher in launchers] == [0, 0, 0], [launcher.output for launcher in launchers]
    table = launchers[0].output.splitlines()
    assert "✓ run folder  written and read back by all 3 nodes" in table
    assert "✓ sum         right on all 3 ranks (gloo)" in table
    assert not any("✓" in launcher.output for launcher in launchers[1:])
    assert [three.listening(host) for host in range(3)] == [[], [], []]
