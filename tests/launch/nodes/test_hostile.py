"""A head against members that are forged, slow or gone at a bad moment; a peer is a plain socket here."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import pytest

from rankrun.errors import RunFolderError, SetupError
from rankrun.launch.nodes import head as heads
from rankrun.launch.nodes import team as teams
from rankrun.launch.nodes.messages import Decision, Meeting
from tests.launch.nodes.cluster import HELLO, begin, both, met, report, until
from tests.launch.nodes.peers import answered, joined, looks

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
