"""Node 0 against strangers: who comes to its port and isn't let in, is slow, one of too many, or gone already."""

from __future__ import annotations

import errno

import pytest

from rankrun.launch.nodes import head as heads
from rankrun.launch.nodes.messages import Meeting
from tests.launch.nodes.cluster import begin, both
from tests.launch.nodes.peers import answered, joined, looks


def test_a_stranger_that_never_ends_its_line_is_dropped(cluster, come):
    head, stranger = cluster.head(), come()
    looks(head, lambda: head._strangers)
    stranger.connection.sendall(b"x" * (200 << 10))
    looks(head, lambda: not head._strangers)
    assert isinstance(both(lambda: head.meet(begin), lambda: cluster.member().meet(begin))[0], Meeting)


def test_strangers_are_not_let_in_without_end(cluster, come, monkeypatch):
    monkeypatch.setattr(heads, "_MOST_STRANGERS", 2)
    head = cluster.head()
    strangers = [come() for _ in range(3)]
    looks(head, lambda: len(head._strangers) == 2)
    head._look()
    assert strangers[2].connection.recv(1) == b""
    assert len(head._strangers) == 2


def test_strangers_take_a_share_of_the_descriptors_only(cluster, monkeypatch):
    monkeypatch.setattr(heads.resource, "getrlimit", lambda which: (256, 256))
    assert cluster.head()._most_strangers == 32


def test_who_says_no_hello_in_time_is_sent_away(cluster, come, monkeypatch):
    monkeypatch.setattr(heads, "_HELLO_LIMIT_S", 0.05)
    head, stranger = cluster.head(), come()
    looks(head, lambda: answered(stranger))
    assert stranger.hear("refused") == "that is no hello"


class Scarce:
    """A listener in a process that has no file descriptor left while `is_full` says so."""

    def __init__(self, listener, is_full, problem=errno.EMFILE):
        self.listener, self.is_full, self.problem = listener, is_full, problem
        self.fileno, self.close = listener.fileno, listener.close

    def accept(self):
        if self.is_full():
            raise OSError(self.problem, "full")
        return self.listener.accept()


def test_without_descriptors_the_oldest_stranger_goes(cluster, come):
    head, oldest = cluster.head(), come()
    looks(head, lambda: head._strangers)
    head._listener = Scarce(cluster.listener, lambda: head._strangers)
    newest = come()
    assert oldest.connection.getsockname() != newest.connection.getsockname()
    looks(head, lambda: head._strangers[0][0]._connection.getpeername() == newest.connection.getsockname())
    assert oldest.connection.recv(1) == b""


def test_without_descriptors_and_strangers_node_0_takes_a_rest(cluster, come):
    full = True
    head = cluster.head()
    head._listener = Scarce(cluster.listener, lambda: full)
    come()
    looks(head, lambda: head._full)
    assert cluster.listener.fileno() not in head._around.waiter._selector.get_map()
    full = False
    looks(head, lambda: head._strangers)
    assert cluster.listener.fileno() in head._around.waiter._selector.get_map()


@pytest.mark.parametrize("problem", [errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN])
def test_who_is_gone_before_it_is_taken_in_disturbs_nobody(cluster, come, problem):
    failures = [1]
    head = cluster.head()
    head._listener = Scarce(cluster.listener, lambda: failures and failures.pop(), problem)
    come()
    looks(head, lambda: head._strangers)
    assert not failures


def test_not_everybody_may_wait_for_a_place(cluster, come, monkeypatch):
    monkeypatch.setattr(heads, "_MOST_WAITING", -1)
    head, _ = joined(cluster, come)
    waiting = come(node=None)
    looks(head, lambda: head._queue)
    refused = come(node=None)
    looks(head, lambda: answered(refused))
    assert waiting.hear("wait") == "all 2 nodes are there; waiting for a place"
    assert refused.hear("refused") == "1 nodes wait here already, for a run of 2"
