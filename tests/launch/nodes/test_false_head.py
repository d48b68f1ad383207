"""A member against a node 0 that is none: it talks nonsense, contradicts itself, or goes in the middle."""

from __future__ import annotations

import pytest

from rankrun.errors import OptionError, SetupError
from rankrun.launch.nodes.member import Dismissed
from rankrun.launch.nodes.messages import Decision
from rankrun.launch.nodes.team import Refused
from tests.launch.nodes.cluster import begin, both, met, until
from tests.launch.nodes.peers import serve

WELCOME = {"node": 1, "host": "fake", "run": "r", "token": "t", "folder": "/r"}
START = {"nprocs": [1, 2], "hosts": ["a", "b"], "attempt": 3, "restart": 0, "address": "", "port": 29500}


@pytest.mark.parametrize(
    "message",
    [
        {"start": START},
        {"welcome": WELCOME | {"node": 2}},
        {"welcome": WELCOME | {"node": 1e999}},
        {"welcome": WELCOME | {"run": "../../etc"}},
        {"welcome": None},
        {"decision": {"restart": False, "exit_code": 256, "line": ""}},
        {"decision": {"restart": False, "exit_code": 1e999, "line": ""}},
        {"refused": 3},
        {"wait": []},
    ],
)
def test_a_member_turns_from_a_node_0_that_talks_nonsense(cluster, message):
    def prepare(welcome):
        if "/" in welcome["run"]:
            raise OptionError("a run's name is no path")

    member = cluster.member(prepare=prepare)

    def act(peer):
        peer.say(**message)
        return peer.hear("prepared")

    said, end = both(serve(cluster, act), lambda: member.meet(begin))
    assert said is None
    assert type(end).__name__ == "Abandoned"


def test_a_start_that_can_not_be_is_none(cluster):
    member = cluster.member()

    def act(peer):
        peer.say(welcome=WELCOME)
        assert peer.hear("prepared")
        peer.say(start=START | {"attempt": -5})
        return peer.hear("nothing")

    said, end = both(serve(cluster, act), lambda: member.meet(begin))
    assert said is None
    assert type(end).__name__ == "Abandoned"


@pytest.mark.parametrize(
    ("message", "kind", "words"),
    [
        ({"refused": "\x1b[2Jno\ud800"}, Refused, r"\x1b[2Jno\ud800"),
        ({"decision": {"restart": False, "exit_code": 3, "line": "\x1b[2J\nyes"}}, Dismissed, r"\x1b[2J; yes"),
    ],
)
def test_the_words_of_node_0_are_printable(cluster, message, kind, words):
    member = cluster.member()

    def act(peer):
        peer.say(**message)

    _, end = both(serve(cluster, act), lambda: member.meet(begin))
    assert isinstance(end, kind)
    assert str(end) == words


def test_a_member_stops_when_node_0_has_decided_on_a_bad_end(cluster):
    head, member, _, _ = met(cluster)
    head._members[1].wire.send(Decision(False, 0).as_message())
    until(lambda: member.failed() or member._decision is not None)
    assert not member.failed()
    head._members[1].wire.send(Decision(False, 3).as_message())
    until(member.failed)
    assert member._wire is not None


def test_a_node_0_that_has_gone_does_not_count_as_found(cluster):
    def act(peer):
        peer.say(welcome=WELCOME)
        assert peer.hear("prepared")
        cluster.listener.close()

    member = cluster.member(join_timeout_s=0.5)
    server = serve(cluster, act)

    def stay():
        server()
        cluster.interrupted = False

    _, end = both(stay, lambda: member.meet(begin))
    assert isinstance(end, SetupError), end
    assert "node 0 did not answer" in str(end)
