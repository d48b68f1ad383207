"""Peers of a head or a member that say whatever a test wants, each over a plain socket."""

from __future__ import annotations

import json
from multiprocessing.connection import wait

from rankrun.launch.nodes.messages import Meeting
from tests.launch.nodes.cluster import begin, until


class Peer:
    """Speaks for itself, over a connection that it has."""

    def __init__(self, connection):
        self.connection = connection
        self.connection.settimeout(20)
        self.lines = connection.makefile("rb")

    def say(self, **message):
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def hear(self, name):
        """What the next message with that name says; None at the end."""
        for line in self.lines:
            message = json.loads(line)
            if name in message:
                return message[name]
        return None

    def close(self):
        self.lines.close()
        self.connection.close()


def joined(cluster, come, **changes):
    """A head that runs an attempt with one plain socket."""
    head, peer = cluster.head(**changes), come(node=1)
    looks(head, lambda: head._is_here(1))
    peer.say(prepared=True)
    assert isinstance(head.meet(begin), Meeting)
    return head, peer


def looks(head, condition):
    until(lambda: head._look() or condition())


def answered(peer):
    return wait([peer.connection], 0)


def serve(cluster, act):
    """Be a node 0 of plain socket: `act` gets whoever comes first."""

    def run():
        cluster.listener.settimeout(20)
        peer = Peer(cluster.listener.accept()[0])
        try:
            assert peer.hear("hello")
            return act(peer)
        finally:
            peer.close()
            cluster.interrupted = True

    return run
