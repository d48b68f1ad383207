"""The hosts that other tests use: they are apart, joined, cut and mended, and nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.doors import ROOT, children, ended
from tests.system.hosts import Hosts

pytestmark = [pytest.mark.needs("linux", "netns"), pytest.mark.slow]

# Answers every connection with its own host name.
SERVER = """\
import socket
with socket.create_server(("", 4242)) as listener:
    print("listens", flush=True)
    while True:
        with listener.accept()[0] as peer:
            peer.sendall(socket.gethostname().encode())
"""
CLIENT = """\
import socket, sys
try:
    with socket.create_connection((sys.argv[1], 4242), timeout=float(sys.argv[2])) as peer:
        print(socket.gethostname(), "hears", peer.recv(64).decode(), "from", peer.getsockname()[0])
except OSError as error:
    print(type(error).__name__)
"""


def interfaces() -> str:
    return subprocess.run(["ip", "-brief", "address"], capture_output=True, text=True, check=True).stdout


def ask(hosts: Hosts, asks: int, whom: str, limit_s: float = 60) -> str:
    client = hosts.start(asks, [sys.executable, "-c", CLIENT, whom, str(limit_s)])
    assert client.wait() == 0, client.output
    return client.output.strip()


def serve(hosts: Hosts, host: int) -> None:
    server = hosts.start(host, [sys.executable, "-c", SERVER])
    assert server.process.stdout is not None
    assert server.process.stdout.readline() == "listens\n"


def test_hosts_hear_each_other_by_name_unless_the_cable_is_out(hosts):
    before = interfaces()
    three = hosts(3)
    assert (three.names, three.addresses[2]) == (["nodea", "nodeb", "nodec"], "10.77.0.3")
    serve(three, 1)
    assert ask(three, 0, "nodeb") == "nodea hears nodeb from 10.77.0.1"
    assert ask(three, 2, "10.77.0.2") == "nodec hears nodeb from 10.77.0.3"
    assert ask(three, 0, "nodec") == "ConnectionRefusedError"
    assert [three.listening(host) for host in range(3)] == [[], [4242], []]
    three.cut(1)
    assert ask(three, 0, "nodeb", limit_s=0.3) == "TimeoutError"
    assert ask(three, 1, "nodeb") == "nodeb hears nodeb from 10.77.0.2"
    assert ask(three, 0, "nodec") == "ConnectionRefusedError"
    three.mend(1)
    assert ask(three, 0, "nodeb") == "nodea hears nodeb from 10.77.0.1"
    assert interfaces() == before


def test_hosts_have_boot_ids_and_private_folders_and_share_the_rest(hosts, doors):
    two = hosts(2, private=[doors.folder / "local"])
    for number, name in enumerate(two.names):
        script = f"cat /proc/sys/kernel/random/boot_id; hostname > local/who; echo {name} > shared-{name}"
        done = two.start(number, ["sh", "-c", script])
        assert done.wait() == 0, done.output
        assert done.output != Path("/proc/sys/kernel/random/boot_id").read_text()
        assert (doors.folder / f"local.{name}/who").read_text() == f"{name}\n"
        assert (doors.folder / f"shared-{name}").exists()
    assert list((doors.folder / "local").iterdir()) == []


def test_closing_ends_every_process_in_the_hosts(doors):
    before = interfaces()
    two = Hosts(doors, 2)
    serve(two, 0)
    # It has left its command: another session, another parent, and no environment by which it could be found.
    escaped = two.start(1, ["sh", "-c", "env -i setsid sleep 1000 > /dev/null 2>&1 & echo $!"])
    assert escaped.wait() == 0
    (server,), (sleeper,) = two.processes(0), two.processes(1)
    two.close()
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in (server, sleeper))
    assert interfaces() == before
    two.close()


def test_nothing_is_left_of_hosts_whose_test_was_killed(doors):
    code = (
        "import sys, time; from pathlib import Path; from tests.system.doors import Doors, children\n"
        "from tests.system.hosts import Hosts; import os\n"
        "hosts = Hosts(Doors(Path.cwd()), 2); print(children(os.getpid()), flush=True); time.sleep(1000)\n"
    )
    test = doors.start([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)})
    assert test.process.stdout is not None
    anchors = [int(word) for word in test.process.stdout.readline().strip("[]\n").split(",")]
    assert len(anchors) == 3
    waits = [os.pidfd_open(pid) for pid in anchors]
    test.process.send_signal(signal.SIGKILL)
    for wait in waits:
        assert ended(wait), "a host outlives its test"
        os.close(wait)


def test_a_host_that_cannot_be_made_says_why_and_leaves_nothing(doors, monkeypatch):
    monkeypatch.setattr("tests.system.hosts._HOST", "echo no such thing >&2; exit 1")
    before = children(os.getpid())
    with pytest.raises(RuntimeError, match="unshare --net --uts --mount: no such thing"):
        Hosts(doors, 1)
    assert children(os.getpid()) == before
