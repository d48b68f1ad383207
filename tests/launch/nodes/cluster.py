"""A head and members over real sockets in one process, for the tests of this folder."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace

from rankrun.launch.nodes.head import Head
from rankrun.launch.nodes.member import Member
from rankrun.launch.nodes.messages import Hello, Meeting
from rankrun.launch.nodes.team import Surroundings, Team
from rankrun.launch.waiting import Waiter

HELLO = Hello("run", None, 2, 2, "nodea", "job.py", "2.14", "token")


class Cluster:
    """Node 0 and its members, each in a thread where it has to wait for another."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.said: list[str] = []
        self.interrupted = False
        self.teams: list[Team] = []

    def _around(self, **changes: object) -> Surroundings:
        waiter = Waiter()
        around = Surroundings(
            place="node 0's place",
            join_timeout_s=20.0,
            stop_grace_s=0.5,
            waiter=waiter,
            wait=waiter.wait,
            interrupted=lambda: self.interrupted,
            say=self.said.append,
        )
        return replace(around, **changes)

    def head(self, hello: Hello = HELLO, *, tells_address: bool = True, **changes: object) -> Head:
        welcome = {"host": "nodea", "run": "r", "token": "t", "folder": "/r"}
        head = Head(self.listener, hello, self._around(**changes), welcome=welcome, tells_address=tells_address)
        self.teams.append(head)
        return head

    def member(self, hello: Hello = HELLO, *, prepare=lambda welcome: None, **changes: object) -> Member:
        around = self._around(**changes)
        member = Member(replace(hello, host="nodeb"), around, reach=self.reach, prepare=prepare)
        self.teams.append(member)
        return member

    def reach(self, limit_s: float) -> socket.socket:
        return socket.create_connection(self.address, timeout=limit_s)


def both(*acts):
    """What acts that wait for each other return, or the error that one raised."""
    results: list = [None] * len(acts)

    def run(number: int) -> None:
        try:
            results[number] = acts[number]()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return results


def begin():
    return 7, "nodea.example", 1234


def report(host):
    return {"host": host, "ends": [], "stacks": []}


def met(cluster):
    head, member = cluster.head(), cluster.member()
    first, second = both(lambda: head.meet(begin), lambda: member.meet(begin))
    assert isinstance(first, Meeting), first
    assert isinstance(second, Meeting), second
    return head, member, first, second


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
