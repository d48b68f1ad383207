"""Several hosts joined by hand: one run over all of them, through failures, dead agents and cut cables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.doors import ROOT, children

pytestmark = [pytest.mark.needs("linux", "netns"), pytest.mark.slow]

JOIN = """\
import os, sys, time, signal
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
assert int(total) == dist.get_world_size()
rank, attempt = dist.get_rank(), os.environ.get("RANKRUN_ATTEMPT")
open(f"up-{rank}-{attempt}", "w").close()
"""
WAIT = "while not os.path.exists('go'): time.sleep(0.01)\n"
END = "dist.barrier()\ndist.destroy_process_group()\n"


@pytest.fixture
def small_config(tmp_path) -> Path:
    """A training that takes a few seconds and saves at every fifth step."""
    subprocess.run([sys.executable, ROOT / "datasets/digits.py", tmp_path / "all"], check=True, capture_output=True)
    lines = (tmp_path / "all/train.txt").read_text().splitlines()[:300]
    (tmp_path / "train.txt").write_text("".join(f"all/{line}\n" for line in lines))
    config = tmp_path / "small.yaml"
    config.write_text(
        f"data: {{train: {tmp_path}/train.txt, classes: 10, channels: 1}}\n"
        "model: {args: {width: 8, blocks: [1, 1]}}\n"
        "train: {epochs: 3, global_batch: 12}\ncheckpoint: {every_steps: 5}\n"
    )
    return config


class Launches:
    """The same command on each of `count` hosts; `rank` is where that host's first rank stands, one rank a host."""

    def __init__(self, doors, hosts, count: int, script: str, *options: object) -> None:
        self.hosts, self.folder, self.options, self.count = hosts(count), doors.folder, options, count
        (self.folder / "job.py").write_text(script)
        self.commands = [self.start(host) for host in range(count)]

    def start(self, host: int):
        endpoint = f"{self.hosts.addresses[0]}:29400"
        options = ["--nnodes", self.count, "--node-rank", host, "--rdzv-endpoint", endpoint, "--name", "r"]
        return self.hosts.launch(host, "run", *options, *self.options, "job.py")

    def until_up(self, attempt: int) -> None:
        marks = [self.folder / f"up-{rank}-{attempt}" for rank in range(self.count)]
        self.commands[0].until(lambda: all(mark.exists() for mark in marks), f"all ranks in attempt {attempt}")

    def verdict(self, attempt: int) -> dict:
        return json.loads((self.folder / f"runs/r/attempts/{attempt:04d}/verdict.json").read_text())

    def until_blamed(self, attempt: int, host: str) -> None:
        """Until node 0's verdict is there; a node that has lost it says its own for as long as there is none."""
        file = self.folder / f"runs/r/attempts/{attempt:04d}/verdict.json"
        self.commands[0].until(
            lambda: file.exists() and json.loads(file.read_text())["host"] == host, f"a verdict that names {host}"
        )

    def codes(self) -> list[int]:
        return [command.wait() for command in self.commands]

    @property
    def outputs(self) -> str:
        return "\n".join(command.output for command in self.commands)


def agent_of(command) -> int:
    """The launcher's own pid below the commands that entered the host for it."""
    pid = command.process.pid
    while b"launch.py" not in (words := Path(f"/proc/{pid}/cmdline").read_bytes()) or b"nsenter" in words:
        (pid,) = children(pid)
    return pid


def test_three_hosts_train_as_one_and_say_what_torchrun_says(doors, hosts):
    script = JOIN + "import json; json.dump(dict(os.environ), open(f'{sys.argv[1]}-{rank}.json', 'w'))\n" + END
    (doors.folder / "job.py").write_text(script)
    two = hosts(2)
    common = ["--nnodes", 2, "--rdzv-id", "id", "--master-addr", two.addresses[0], "--master-port", 29500]
    for who, program in (
        ("ours", [sys.executable, ROOT / "launch.py", "run", "--name", "r", "--nproc-per-node", 2]),
        ("theirs", [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2]),
    ):
        gloo = {"GLOO_SOCKET_IFNAME": "eth0"}
        words = [[*program, *common, "--node-rank", host, "job.py", who] for host in range(2)]
        commands = [two.start(host, words[host], gloo) for host in range(2)]
        for command in commands:
            assert command.wait() == 0, command.output
    # torchrun's static rendezvous keeps the asked-for port for the ranks, here it is the agents' own.
    chosen = {"MASTER_PORT", "TORCHELASTIC_ERROR_FILE", "RANKRUN_TEST_MARK"}
    for rank in range(4):
        mine, its = (json.loads((doors.folder / f"{who}-{rank}.json").read_text()) for who in ("ours", "theirs"))
        assert set(its) - set(mine) == set()
        assert set(mine) - set(its) == {"RANKRUN_RUN_DIR", "RANKRUN_ATTEMPT", "RANKRUN_BEAT"}
        assert {k: v for k, v in mine.items() if k in its and k not in chosen} == {
            k: v for k, v in its.items() if k not in chosen
        }


def test_a_dead_agent_and_a_cut_cable_are_survived(doors, hosts):
    launches = Launches(doors, hosts, 3, JOIN + WAIT + END, "--max-restarts", 3)
    launches.until_up(0)
    victim = launches.commands[1]
    os.kill(agent_of(victim), signal.SIGKILL)
    victim.process.wait()
    launches.until_blamed(0, "nodeb")
    launches.commands[1] = launches.start(1)
    launches.until_up(1)
    launches.hosts.cut(2)
    launches.until_blamed(1, "nodec")
    launches.hosts.mend(2)  # nodec's agent comes back by itself
    launches.until_up(2)
    (doors.folder / "go").touch()
    assert launches.codes() == [0, 0, 0], launches.outputs
    assert victim.family() == []


def test_when_node_0_dies_the_others_meet_again_at_its_successor(doors, hosts):
    launches = Launches(doors, hosts, 2, JOIN + WAIT + END, "--max-restarts", 1)
    launches.until_up(0)
    victim = launches.commands[0]
    os.kill(agent_of(victim), signal.SIGKILL)
    victim.process.wait()
    launches.commands[0] = launches.start(0)
    launches.until_up(1)
    (doors.folder / "go").touch()
    assert launches.codes() == [0, 0], launches.outputs
    assert "can't be reached any more" in launches.commands[1].output


def test_the_root_cause_is_named_on_all_hosts_wherever_it_was(doors, hosts):
    failing = "if rank == 2: raise ValueError('far away')\ndist.barrier()\n"
    launches = Launches(doors, hosts, 3, JOIN + failing + END)
    assert launches.codes() == [1, 1, 1], launches.outputs
    found = launches.verdict(0)
    assert (found["rank"], found["host"], found["exit_code"]) == (2, "nodec", 1)
    assert found["where"].endswith("job.py:10")
    for command in launches.commands:
        assert "rank 2 on nodec failed at" in command.output
        assert command.family() == []


def test_ctrl_c_on_one_host_ends_all_with_one_code(doors, hosts):
    launches = Launches(doors, hosts, 3, JOIN + WAIT + END)
    launches.until_up(0)
    os.kill(agent_of(launches.commands[1]), signal.SIGINT)
    assert launches.codes() == [130, 130, 130], launches.outputs


def test_a_host_that_never_comes_is_named(doors, hosts):
    three = hosts(3)
    (doors.folder / "job.py").write_text(JOIN + END)
    options = ["--nnodes", 3, "--rdzv-endpoint", f"{three.addresses[0]}:29400", "--rdzv-conf", "join_timeout=4"]
    commands = [three.launch(host, "run", *options, "--node-rank", host, "job.py") for host in (0, 2)]
    assert [command.wait() for command in commands] == [1, 1]
    assert "1 of 3 nodes did not come to 10.77.0.1:29400 within 4 s: node 1" in commands[0].output


def test_stop_is_heard_while_nodes_are_waited_for(doors, hosts):
    one = hosts(1)
    (doors.folder / "job.py").write_text(JOIN + END)
    waiting = one.launch(
        0, "run", "--nnodes", 2, "--rdzv-endpoint", f"{one.addresses[0]}:29400", "--name", "r", "job.py"
    )
    waiting.until((doors.folder / "runs/r/live").exists, "the folder is held")
    stop = one.launch(0, "stop", "r")
    assert stop.wait() == 0, stop.output
    assert waiting.wait() == 143, waiting.output


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (["--nnodes", 2, "--node-rank", 0], "can't listen at"),
        (["--nnodes", 3, "--node-rank", 1], "node 0 was started with --nnodes 2, this one with --nnodes 3"),
        (["--nnodes", 2, "--rdzv-id", "else"], "node 0 runs 'r' here, not 'else'"),
    ],
)
def test_commands_that_do_not_belong_together_are_refused(doors, hosts, other, says):
    one = hosts(1)
    (doors.folder / "job.py").write_text(JOIN + END)
    endpoint = ["--rdzv-endpoint", f"{one.addresses[0]}:29400", "--name", "r"]
    first = one.launch(0, "run", "--nnodes", 2, "--node-rank", 0, *endpoint, "job.py")
    first.until(lambda: bool(one.listening(0)), "node 0 listens")
    second = one.launch(0, "run", *endpoint, *other, "--runs", "elsewhere", "job.py")
    assert second.wait() == 2, second.output
    assert says in second.output
    os.kill(agent_of(first), signal.SIGTERM)
    assert first.wait() == 143, first.output


def test_a_hang_is_told_with_the_stacks_of_all_hosts(doors, hosts):
    standing = "def stand():\n    while True: time.sleep(0.01)\nif rank == 1: stand()\ndist.barrier()\n"
    launches = Launches(doors, hosts, 3, JOIN + standing, "--hang-timeout", 20)
    assert launches.codes() == [124, 124, 124], launches.outputs
    found = launches.verdict(0)
    assert (found["rank"], found["host"]) == (1, "nodeb"), found
    stacks = [(doors.folder / f"runs/r/attempts/0000/stacks/rank-0000{rank}.txt").read_text() for rank in range(3)]
    assert "in stand" in stacks[1]
    assert "in barrier" in stacks[0]
    assert "in barrier" in stacks[2]


def test_our_own_training_runs_over_three_hosts_stops_and_goes_on(doors, hosts, small_config):
    config, runs = small_config, doors.folder / "runs"
    three, doors.folder = hosts(3), ROOT
    endpoint = ["--nnodes", 3, "--rdzv-endpoint", f"{three.addresses[0]}:29400", "--runs", runs]
    long = "train.epochs=8"  # so that `stop` finds it at work on a quick machine, too
    one = doors.launch("run", config, long, "--nproc", 3, "--runs", runs, "--name", "one")
    assert one.wait() == 0, one.output

    words = ["run", config, long, *endpoint, "--name", "three", "--nproc", 1]
    commands = [three.launch(host, *words, "--node-rank", host) for host in range(3)]
    commands[0].until(lambda: any((runs / "three/checkpoints").glob("step-*")), "a checkpoint")
    stop = three.launch(2, "stop", "three", "--runs", runs)
    assert stop.wait() == 0, stop.output
    assert [command.wait() for command in commands] == [143, 143, 143], commands[0].output
    commands = [three.launch(0, "resume", "three", "--runs", runs)]
    commands += [three.launch(host, *words, "--node-rank", host) for host in (1, 2)]
    assert [command.wait() for command in commands] == [0, 0, 0], [command.output for command in commands]

    first, second = (json.loads((runs / name / "final.json").read_text()) for name in ("one", "three"))
    assert first["weights_sha256"] == second["weights_sha256"]
    commands = [three.launch(0, "resume", "three", "--runs", runs)]
    commands += [three.launch(host, *words, "--node-rank", host) for host in (1, 2)]
    assert [command.wait() for command in commands] == [0, 0, 0], [command.output for command in commands]
    assert "this run is finished" in commands[0].output


def test_garbage_at_the_endpoint_is_ignored(doors, hosts):
    two = hosts(2)
    (doors.folder / "job.py").write_text(JOIN + END)
    options = ["--nnodes", 2, "--rdzv-endpoint", f"{two.addresses[0]}:29400", "--name", "r"]
    first = two.launch(0, "run", *options, "job.py")
    first.until(lambda: bool(two.listening(0)), "node 0 listens")
    garbage = (
        "import socket, sys\n"
        "pickled = b'\\x80\\x04N.\\n'\n"
        "for data in (b'', b'GET / HTTP/1.0\\r\\n\\r\\n', pickled, b'[1]\\n', b'{\"hello\": 1}\\n', b'x' * 99):\n"
        "    with socket.create_connection((sys.argv[1], 29400)) as peer: peer.sendall(data)\n"
    )
    assert two.start(1, [sys.executable, "-c", garbage, two.addresses[0]]).wait() == 0
    second = two.launch(1, "run", *options, "job.py")
    assert [first.wait(), second.wait()] == [0, 0], first.output + second.output
