"""Several hosts on one machine: network namespaces with names and addresses of their own, joined by a switch.

    hosts = Hosts(doors, 3)             nodea 10.77.0.1, nodeb 10.77.0.2, nodec 10.77.0.3
    hosts.launch(1, "run", "--nnodes", 3, "--rdzv-endpoint", "10.77.0.1:29400", "job.py")
    hosts.cut(1)                        the cable of nodeb is out: what is sent is lost without a word
    hosts.mend(1)

    nodea     nodeb     nodec           each a network, host name and mount namespace
     eth0      eth0      eth0
      |         |         |  veth
    port0     port1     port2           in a namespace of the switch's own, on a bridge
    -------- br0 -----------

The hosts share the machine's disk and process numbers; names resolve through an /etc/hosts of theirs, and each has a
boot id of its own, so that a run folder takes them for different machines. Every namespace lives in a `cat` that ends
when this process does, and nothing in them has a name outside: a test that is killed leaves nothing either. The
machine's own interfaces are not touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.system.doors import ROOT, Command, Doors

_LISTENS = "0A"  # in /proc/net/tcp
# Words: host name, the folder of its files, then pairs of what it sees and where that lies for the others.
_HOST = """\
set -e
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/boot_id" /proc/sys/kernel/random/boot_id
shift 2
while [ $# -gt 0 ]; do mount --bind "$2" "$1"; shift 2; done
echo ready
exec cat
"""


class Hosts:
    """`count` hosts, up when this returns; `close` ends them and every process in them.

    `doors` starts the commands and finds their families again. Each path of `private` is a folder that every host has
    for itself; the others see nodea's as `<path>.nodea`, and so on.
    """

    def __init__(self, doors: Doors, count: int, private: Sequence[Path] = ()) -> None:
        self.names = [f"node{letter}" for letter in "abcdefghijklmnop"[:count]]
        self.addresses = [f"10.77.0.{number + 1}" for number in range(count)]
        self._doors = doors
        self._anchors: list[subprocess.Popen[str]] = []
        self._networks: dict[int, str] = {}  # of the anchors that are set up, by pid
        # Not root: the switch makes a user namespace in which we are, and the hosts join it.
        self._as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        try:
            self._switch = self._anchor(["unshare", *self._as_root, "--net"], ["sh", "-c", "echo ready; exec cat"])
            with tempfile.TemporaryDirectory(prefix="rankrun-hosts-") as files:  # what is mounted outlives its name
                self._pids = [self._make_host(Path(files) / name, private) for name in self.names]
            self._join()
        except BaseException:
            self.close()
            raise

    def start(self, host: int, words: Sequence[object], env: Mapping[str, str] | None = None) -> Command:
        """Start a command in a host, in the doors' folder; `process.pid` is the command's own."""
        folder = ["env", f"--chdir={self._doors.folder}"]  # after the mounts: a private folder is the host's
        return self._doors.start([*self._enter(self._pids[host]), *folder, *map(str, words)], env)

    def launch(self, host: int, *words: object, env: Mapping[str, str] | None = None) -> Command:
        """Start `python launch.py WORDS…` in a host."""
        return self.start(host, [sys.executable, ROOT / "launch.py", *words], env)

    def cut(self, host: int) -> None:
        """Take the host's cable out of the switch. Both sides only hear silence, no reset and no error."""
        self._ip(self._switch, f"link set port{host} down")

    def mend(self, host: int) -> None:
        """Put the cable back; what TCP has not given up goes on."""
        self._ip(self._switch, f"link set port{host} up")

    def processes(self, host: int) -> list[int]:
        """The pids of all processes in a host, also of those that have left their command's environment."""
        return self._beside(self._pids[host])

    def listening(self, host: int) -> list[int]:
        """The TCP ports on which anything listens in a host."""
        ports = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self._pids[host]}/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == _LISTENS:
                    ports.add(int(local.rpartition(":")[2], 16))
        return sorted(ports)

    def close(self) -> None:
        """SIGKILL for every process in the hosts until none is left, then the hosts themselves; may be called twice."""
        for anchor in self._anchors:
            # While it lives, so does its namespace, and no other one can have got its number.
            while anchor.poll() is None and (others := self._beside(anchor.pid)):
                for other in others:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(other, signal.SIGKILL)
        for anchor in self._anchors:
            anchor.communicate()  # closes its stdin, at which it ends
        self._anchors.clear()
        self._networks.clear()

    def _make_host(self, folder: Path, private: Sequence[Path]) -> int:
        folder.mkdir()
        lines = [f"{address} {other}" for address, other in zip(self.addresses, self.names, strict=True)]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        (folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
        pairs = []
        for path in private:
            own = path.with_name(f"{path.name}.{folder.name}")
            own.mkdir(exist_ok=True)
            path.mkdir(exist_ok=True)
            pairs += [str(path), str(own)]
        join = ["nsenter", "-t", str(self._switch), "--user", "--preserve-credentials"] if self._as_root else []
        make = [*join, "unshare", "--net", "--uts", "--mount"]
        return self._anchor(make, ["sh", "-c", _HOST, "sh", folder.name, str(folder), *pairs])

    def _anchor(self, make: list[str], words: list[str]) -> int:
        """A process that holds new namespaces for as long as its stdin is open; returns its pid once it is set up."""
        anchor = subprocess.Popen(
            [*make, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._anchors.append(anchor)
        assert anchor.stdout is not None
        if anchor.stdout.readline() != "ready\n":
            raise RuntimeError(f"{' '.join(make)}: {anchor.communicate()[1].strip()}")
        network = os.readlink(f"/proc/{anchor.pid}/ns/net")
        assert network != os.readlink("/proc/self/ns/net"), "a host in our own network: closing it would kill us"
        self._networks[anchor.pid] = network
        return anchor.pid

    def _beside(self, anchor: int) -> list[int]:
        """The living processes in the network that an anchor holds, itself left out."""
        network = self._networks.get(anchor)
        return [pid for pid in _pids() if pid != anchor and network is not None and _network(pid) == network]

    def _join(self) -> None:
        commands = ["link add br0 type bridge", "link set br0 up"]
        for number, pid in enumerate(self._pids):
            commands.append(f"link add port{number} type veth peer name eth0 netns {pid}")
            commands += [f"link set port{number} master br0", f"link set port{number} up"]
        self._ip(self._switch, *commands)
        for address, pid in zip(self.addresses, self._pids, strict=True):
            self._ip(pid, f"address add {address}/24 dev eth0", "link set lo up", "link set eth0 up")

    def _enter(self, pid: int) -> list[str]:
        user = ["--user", "--preserve-credentials"] if self._as_root else []
        kinds = ["--net"] if pid == self._switch else ["--net", "--uts", "--mount"]
        return ["nsenter", "-t", str(pid), *user, *kinds, "--"]

    def _ip(self, pid: int, *commands: str) -> None:
        words = [*self._enter(pid), "ip", "-batch", "-"]
        done = subprocess.run(words, input="\n".join(commands) + "\n", capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise RuntimeError(f"ip {'; '.join(commands)}: {done.stderr.strip()}")


def _pids() -> list[int]:
    return [int(place.name) for place in Path("/proc").iterdir() if place.name.isdecimal()]


def _network(pid: int) -> str | None:
    """What names a process's network namespace; None for one that has ended or is another user's."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return None
