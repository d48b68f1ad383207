from __future__ import annotations

import pytest

from tests.launch.nodes.cluster import Cluster


@pytest.fixture
def cluster():
    made = Cluster()
    yield made
    for team in reversed(made.teams):  # members first: node 0 waits a moment for those that it has said goodbye to
        team.leave(1)
    made.listener.close()
