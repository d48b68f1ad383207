from __future__ import annotations

from dataclasses import replace

import pytest

from tests.launch.nodes.cluster import HELLO, Cluster
from tests.launch.nodes.peers import Peer


@pytest.fixture
def cluster():
    made = Cluster()
    yield made
    for team in reversed(made.teams):  # members first: node 0 waits a moment for those that it has said goodbye to
        team.leave(1)
    made.listener.close()


@pytest.fixture
def come(cluster):
    """Peers that have connected to where node 0 listens."""
    made = []

    def connect(**hello):
        made.append(peer := Peer(cluster.reach(20.0)))
        if hello:
            peer.say(**replace(HELLO, host="fake", **hello).as_message())
        return peer

    yield connect
    for peer in made:
        peer.close()
