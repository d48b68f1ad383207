"""Head and member against peers that are forged, slow, many, or gone at a bad moment; a peer is a plain socket here."""

from __future__ import annotations

import errno
import json
import select
import signal
import time
from dataclasses import replace

import pytest

from rankrun.errors import OptionError, RunFolderError, SetupError
from rankrun.launch.nodes import head as heads
from rankrun.launch.nodes import team as teams
from rankrun.launch.nodes.member import Dismissed
from rankrun.launch.nodes.messages import Decision, Meeting
from rankrun.launch.nodes.team import Refused
from tests.launch.nodes.cluster import HELLO, begin, both, met, report, until

WELCOME = {"node": 1, "host": "fake", "run": "r", "token": "t", "folder": "/r"}
START = {"nprocs": [1, 2], "hosts": ["a", "b"], "attempt": 3, "restart": 0, "address": "", "port": 29500}


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
    return select.select([peer.connection], [], [], 0)[0]


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


# strangers -----------------------------------------------------------------------------------------------------------


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
    looks(head, lambda: head._strangers)
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
    assert cluster.listener.fileno() not in head._waiter._selector.get_map()
    full = False
    looks(head, lambda: head._strangers)
    assert cluster.listener.fileno() in head._waiter._selector.get_map()


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


# a second start of a node --------------------------------------------------------------------------------------------


def test_who_waits_for_a_taken_place_is_told_so_and_says_so(cluster, come):
    head, _ = joined(cluster, come)
    second = cluster.member(replace(HELLO, node=1), join_timeout_s=0.3)

    def follow():
        try:
            second.meet(begin)
        finally:
            cluster.interrupted = True

    def lead():
        until(lambda: head._look() or cluster.interrupted)

    _, error = both(lead, follow)
    words = "node rank 1 is taken by fake; waiting for the place"
    assert isinstance(error, SetupError)
    assert str(error) == f"node 0 at node 0's place had no place for this node within 0.3 s: {words}"
    assert cluster.said.count(f"node 0 at node 0's place answers: {words}") == 1


def test_who_comes_between_two_attempts_is_told_to_wait(cluster, come):
    head, peer = joined(cluster, come)
    peer.close()
    looks(head, lambda: head._lost)
    successor = come(node=1)
    looks(head, lambda: answered(successor))
    assert successor.hear("wait") == "an attempt is running; waiting for the next one"


# what members say ----------------------------------------------------------------------------------------------------


def test_a_report_of_nonsense_can_be_judged(cluster, come):
    head, peer = joined(cluster, come)
    peer.say(report={"ends": [], "stacks": [], "host": "\x1b[2J\n", "oom": 3, "now_ns": "x"}, now_ns=1e999)
    looks(head, head.failed)
    judged = []
    head.conclude({}, lambda reports, lost, silent: judged.append(reports[1]) or Decision(False, 1))
    (said,) = judged
    assert isinstance(said["now_ns"], int)
    assert isinstance(said["sent_ns"], int)
    assert (said["host"], said["oom"], said["started"]) == ("\\x1b[2J", None, False)


def test_a_run_folder_is_refused_before_a_run_only_and_in_printable_words(cluster, come):
    head, peer = joined(cluster, come)
    peer.say(prepared="\x1b[31mnope")
    peer.say(failed=True)
    looks(head, head.failed)
    head._running = False
    peer.say(prepared="\x1b[31mnope")
    with pytest.raises(RunFolderError, match=r"\\x1b\[31mnope"):
        looks(head, lambda: False)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGUSR1", "SIGWINCH", "nonsense", 9, None])
def test_no_peer_passes_on_what_the_launch_does_not_handle(cluster, come, name):
    head, peer = joined(cluster, come, signals=frozenset({signal.SIGCONT, signal.SIGUSR1}))
    peer.say(notice=name)
    peer.say(notice="SIGCONT")
    peer.say(notice="SIGQUIT")
    heard = []
    looks(head, lambda: len(heard.extend(head.told()) or heard) >= 2)
    assert heard == [signal.SIGCONT, signal.SIGQUIT]


# what becomes of one attempt in the next -----------------------------------------------------------------------------


def restarted(head, *members):
    """The second attempt, after a failure that all have reported."""

    def judge(reports, lost, silent):
        return Decision(True, 1)

    both(lambda: head.conclude({}, judge), *(lambda one=one: one.conclude(report("nodeb"), judge) for one in members))
    assert all(isinstance(one, Meeting) for one in both(*(lambda one=one: one.meet(begin) for one in (head, *members))))


def test_nobody_is_done_with_an_attempt_because_of_the_one_before(cluster):
    head, member, _, _ = met(cluster)
    member.finish(False, lambda saved: 0)
    until(lambda: head.failed() or head._members[1].done is not None)
    restarted(head, member)
    assert head.finish(False, lambda saved: 0) is None
    member.finish(False, lambda saved: 0)
    until(lambda: head.failed() or head.finish(False, lambda saved: 0) == 0)


def test_who_goes_after_its_report_is_not_missed(cluster, come):
    head, peer = joined(cluster, come)
    peer.say(report=report("fake"))
    peer.close()
    looks(head, lambda: head._members[1].wire is None)
    told = []
    head.conclude({}, lambda reports, lost, silent: told.append((set(reports), lost, silent)) or Decision(False, 1))
    assert told == [({0, 1}, {}, {})]


def test_who_did_not_report_in_time_is_told_from_who_was_gone(cluster, come, monkeypatch):
    monkeypatch.setattr(heads, "ANSWER_S", 0.1)
    head = cluster.head(replace(HELLO, nnodes=3), stop_grace_s=0.0)
    gone, silent = come(node=1, nnodes=3), come(node=2, nnodes=3)
    looks(head, lambda: head._is_here(1) and head._is_here(2))
    for peer in (gone, silent):
        peer.say(prepared=True)
    head.meet(begin)
    gone.close()
    looks(head, head.failed)
    told = []
    head.conclude({}, lambda *said: told.append(said[1:]) or Decision(False, 1))
    assert told == [({1: "fake"}, {2: "fake"})]


# a node 0 that is none -----------------------------------------------------------------------------------------------


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


# beats ---------------------------------------------------------------------------------------------------------------


def test_beats_reach_everybody(cluster, come, monkeypatch):
    monkeypatch.setattr(teams, "BEAT_S", 0.02)
    head = cluster.head(replace(HELLO, nnodes=3))
    peers = [come(node=node, nnodes=3) for node in (1, 2)]
    looks(head, lambda: all(head._is_here(node) for node in (1, 2)))
    assert [peer.hear("beat") for peer in peers] == [1, 1]


@pytest.mark.parametrize(("asleep", "is_lost"), [(False, True), (True, False)])
def test_a_silence_that_this_process_slept_through_is_none(cluster, come, asleep, is_lost):
    head, _ = joined(cluster, come)
    silence_ns = int((teams.SILENT_S + 5) * 1e9)
    head._members[1].wire.heard_ns = time.monotonic_ns() - silence_ns
    if asleep:
        head._looked_ns = time.monotonic_ns() - silence_ns
    assert head.failed() is is_lost
