"""Where node 0 listens and how the others find it: at an endpoint that people typed, or by a file that all see."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankrun.errors import OptionError, SetupError
from rankrun.runfolder.files import write_atomically

if TYPE_CHECKING:
    from rankrun.launch.plan import RunPlan

_BACKLOG = 1024
_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EINVAL)


@dataclass
class Place:
    """Node 0's address as this node knows it. `listener` is open on node 0 and None on all others."""

    name: str  # for people
    address: str  # for node 0's own ranks, and for those of other nodes where all type the same; "" if that differs
    listener: socket.socket | None = None
    endpoint: tuple[str, int] | None = None
    file: Path | None = None

    @property
    def is_head(self) -> bool:
        """Whether this node is node 0."""
        return self.listener is not None

    def reach(self, limit_s: float) -> socket.socket:
        """A connection to node 0; OSError when there is none yet."""
        if self.endpoint is not None:
            return socket.create_connection(self.endpoint, timeout=limit_s)
        assert self.file is not None
        error: OSError = FileNotFoundError(f"{self.file} is not there yet")
        for host, port in _published(self.file):
            try:
                return socket.create_connection((host, port), timeout=limit_s)
            except OSError as problem:
                error = problem
        raise error

    def store_listener(self) -> socket.socket:
        """A socket on a free port, on the interface where node 0 listens: for one attempt's store."""
        assert self.listener is not None
        host = self.listener.getsockname()[0]
        found = socket.socket(self.listener.family, socket.SOCK_STREAM)
        try:
            found.bind((host, 0))
            found.listen(_BACKLOG)
        except OSError:
            found.close()
            raise
        return found

    def close_in_child(self) -> None:
        """Give the listener up in a forked process; node 0 keeps it."""
        if self.listener is not None:
            self.listener.close()

    def withdraw(self) -> None:
        """Take the published file away."""
        if self.file is not None and self.is_head:
            with contextlib.suppress(OSError):
                self.file.unlink()


def take_place(plan: RunPlan) -> Place | None:
    """This node's place among several, None when there is one node. Node 0 listens from here on.

    OptionError for an endpoint that node 0 can't listen at.
    """
    if plan.meet_by_file is not None:
        return _by_file(plan.meet_by_file, is_head=plan.node_rank == 0, local_addr=plan.local_addr)
    if plan.nnodes == 1 or plan.endpoint is None:
        return None
    host, port = plan.endpoint
    name = f"{host}:{port}"
    wants = plan.node_rank == 0 if plan.node_rank is not None else plan.is_host
    listener = None if wants is False else _listen(host, port, must=wants is True)
    if listener is None:
        return Place(name, "", endpoint=plan.endpoint)
    return Place(name, plan.local_addr or host, listener, plan.endpoint)


def _listen(host: str, port: int, *, must: bool) -> socket.socket | None:
    """A listening socket at the endpoint; None if it is another machine's, or another process is there first."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        if not must:
            return None  # the member's tries will say so for as long as it lasts
        raise OptionError(f"the endpoint's host {host!r} is unknown on this machine: {error}") from None
    family, _, _, _, address = found[0]
    here = str(address[0])
    if ipaddress.ip_address(here.partition("%")[0]).is_loopback and not _is_loopback_name(host):
        # Debian gives a machine's own name 127.0.1.1, where no other machine could come.
        here = "::" if family == socket.AF_INET6 else "0.0.0.0"
    for candidate in (here, *(("",) if must else ())):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((candidate, port))
            listener.listen(_BACKLOG)
            return listener
        except OSError as error:
            listener.close()
            if error.errno in _NOT_OURS:
                continue
            if error.errno == errno.EADDRINUSE and not must:
                return None
            raise OptionError(f"node 0 can't listen at {host}:{port}: {error.strerror}; give another port") from None
    return None


def _is_loopback_name(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _by_file(path: Path, *, is_head: bool, local_addr: str | None) -> Place:
    """Node 0 binds a free port and only then tells it, by a rename; the others look for the file."""
    if not is_head:
        return Place(str(path), "", file=path)
    listener = socket.create_server(("", 0), backlog=_BACKLOG)
    addresses = [local_addr] if local_addr else own_addresses()
    text = json.dumps({
        "version": 1,
        "boot_id": boot_id(),
        "addresses": addresses,
        "port": listener.getsockname()[1],
        "token": secrets.token_hex(8),
    })  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text + "\n")
    except OSError as error:
        listener.close()
        raise SetupError(f"node 0 can't publish its address in {path.parent}: {error.strerror}") from error
    return Place(str(path), addresses[0] if addresses else "127.0.0.1", listener, file=path)


def _published(path: Path) -> list[tuple[str, int]]:
    """The addresses in node 0's file, nearest first; none while it is not there or not whole."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        port, addresses = int(said["port"]), [str(address) for address in said["addresses"]]
        same_machine = said["boot_id"] and said["boot_id"] == boot_id()
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [(address, port) for address in (*(["127.0.0.1"] if same_machine else []), *addresses)]


def boot_id() -> str:
    """What tells this start of this machine from all others; '' where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def own_addresses() -> list[str]:
    """This machine's IPv4 addresses that others may reach: up, not loopback, in the order of the interfaces."""
    import psutil

    up = {name for name, facts in psutil.net_if_stats().items() if facts.isup}
    return [
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if name in up and entry.family == socket.AF_INET and not entry.address.startswith("127.")
    ]


def gloo_interface(here: str, env: Mapping[str, str]) -> str | None:
    """The interface that gloo should be told, because it would take loopback by itself; None if it needs no help.

    gloo listens where this machine's own name leads to. Where that is nowhere, or 127.0.1.1 as on Debian, ranks of
    other nodes wait for this one until their time is up.
    """
    if "GLOO_SOCKET_IFNAME" in env or not here or ipaddress.ip_address(here.partition("%")[0]).is_loopback:
        return None
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
        if not all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found):
            return None
    import psutil

    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == here for entry in entries):
            return name
    return None


def host_name(env: Mapping[str, str]) -> str:
    """What this machine is called: by SLURM where it started us, else by itself."""
    return env.get("SLURMD_NODENAME") or os.uname().nodename
