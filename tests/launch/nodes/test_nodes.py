"""Head and members over real sockets in one process: who is let in, what is agreed, who is missed."""

from __future__ import annotations

import json
import signal
import socket
import time
from dataclasses import replace

import pytest

from rankrun.errors import RunFolderError, SetupError
from rankrun.launch.nodes.head import send_away
from rankrun.launch.nodes.member import Dismissed
from rankrun.launch.nodes.messages import Decision, Meeting
from rankrun.launch.nodes.team import Abandoned, Refused, Team
from tests.launch.nodes.cluster import HELLO, begin, both, met, report, until


def test_a_team_of_one_agrees_with_itself():
    alone = Team(3, "nodea")
    meeting = alone.meet(begin)
    assert (meeting.node, meeting.nnodes, meeting.world_size, meeting.first_rank) == (0, 1, 3, 0)
    assert alone.conclude({"ends": []}, lambda reports, lost, silent: Decision(True, 1)).restart
    assert alone.meet(begin).restart == 1
    assert alone.finish(True, lambda saved: 75 if saved else 0) == 75
    assert (alone.failed(), alone.told(), alone.all_hang(None, runs=True)) == (False, [], None)


def test_all_nodes_know_the_same_meeting_but_for_their_place(cluster):
    _, _, first, second = met(cluster)
    assert first == Meeting(0, (2, 2), ("nodea", "nodeb"), 7, 0, "nodea.example", 1234)
    assert second == replace(first, node=1)
    assert (second.first_rank, second.world_size) == (2, 4)


def test_an_address_that_is_not_told_is_the_one_that_led_here(cluster):
    head, member = cluster.head(tells_address=False), cluster.member()
    first, second = both(lambda: head.meet(begin), lambda: member.meet(begin))
    assert (first.address, second.address) == ("nodea.example", "127.0.0.1")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"run": "other"}, "node 0 runs 'run' here, not 'other' (--rdzv-id)"),
        ({"nnodes": 3}, "node 0 was started with --nnodes 2, this one with --nnodes 3"),
        ({"program": "else.py"}, "node 0 runs job.py, this one else.py"),
        ({"torch": "1.0"}, "node 0 has torch 2.14, this one 1.0; install the same on all nodes"),
        ({"node": 2}, "--node-rank 2 with --nnodes 2: node ranks are counted from 0"),
        ({"node": 0}, "node rank 0 is taken by nodea"),
    ],
)
def test_a_node_that_does_not_belong_here_hears_why(cluster, change, why):
    head, member = cluster.head(), cluster.member(replace(HELLO, **change))

    def wait_for_nobody():
        with pytest.raises(Abandoned):
            head.meet(begin)

    def come():
        try:
            member.meet(begin)
        finally:
            cluster.interrupted = True

    _, refusal = both(wait_for_nobody, come)
    assert isinstance(refusal, Refused)
    assert str(refusal) == why


def test_a_place_is_given_once(cluster):
    head = cluster.head(replace(HELLO, nnodes=3))
    first, second = (cluster.member(replace(HELLO, nnodes=3, node=1)) for _ in range(2))

    def come(member):
        try:
            member.meet(begin)
        except Refused:
            cluster.interrupted = True
            raise

    outcomes = both(lambda: head.meet(begin), lambda: come(first), lambda: come(second))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Abandoned", "Abandoned", "Refused"]
    (refusal,) = (outcome for outcome in outcomes if isinstance(outcome, Refused))
    assert str(refusal) == "node rank 1 is taken by nodeb"


def test_who_does_not_come_in_time_is_named(cluster):
    head = cluster.head(replace(HELLO, nnodes=3), join_timeout_s=0.2)
    with pytest.raises(SetupError, match=r"2 of 3 nodes did not come to node 0's place within 0.2 s: node 1, 2"):
        head.meet(begin)


def test_a_member_without_node_0_says_where_it_looked(cluster):
    cluster.listener.close()
    member = cluster.member(join_timeout_s=0.2)
    with pytest.raises(SetupError, match=r"node 0 did not answer at node 0's place within 0.2 s .*refused.*is it"):
        member.meet(begin)


def test_what_answers_but_is_no_agent_is_told_from_one(cluster):
    def answer():
        cluster.listener.settimeout(10)
        with cluster.listener.accept()[0] as peer:
            peer.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            peer.recv(100)
        cluster.listener.close()

    member = cluster.member(join_timeout_s=0.5)
    _, error = both(answer, lambda: member.meet(begin))
    assert isinstance(error, SetupError)


def test_a_run_folder_that_a_node_cannot_use_ends_the_launch(cluster):
    head, member = cluster.head(), cluster.member(prepare=lambda welcome: "nodeb does not see the run folder")

    def lead():
        try:
            head.meet(begin)
        except RunFolderError as error:
            head.leave(2)
            return str(error)

    said, sent_away = both(lead, lambda: member.meet(begin))
    assert said == "nodeb does not see the run folder"
    assert isinstance(sent_away, Dismissed)
    assert sent_away.code == 2


@pytest.mark.parametrize("nonsense", [b"GET / HTTP/1.0\r\n\r\n", b"[1]\n", b'{"hello": 3}\n', b"\x80\x04N.\n", b""])
def test_strangers_are_sent_away_and_nobody_else_notices(cluster, nonsense):
    head = cluster.head()
    with socket.create_connection(cluster.address) as stranger:
        stranger.sendall(nonsense)
        stranger.shutdown(socket.SHUT_WR)
        member = cluster.member()
        first, second = both(lambda: head.meet(begin), lambda: member.meet(begin))
        assert (first.node, second.node) == (0, 1)
        stranger.settimeout(10)
        answer = stranger.recv(1000)
        assert answer == b"" or "no hello" in json.loads(answer)["refused"] or "version 1" in answer.decode()


def test_a_failure_is_heard_by_all_and_decided_once(cluster):
    head, member, _, _ = met(cluster)
    member.announce()
    until(head.failed)
    judged = []

    def judge(reports, lost, silent):
        judged.append((set(reports), dict(lost), reports[1]["host"]))
        return Decision(True, 1, "rank 3 failed")

    own, told = both(
        lambda: head.conclude({"word": "mine"}, judge), lambda: member.conclude(report("its"), lambda *_: None)
    )
    assert own == told == Decision(True, 1, "rank 3 failed")
    assert judged == [({0, 1}, {}, "its")]
    again = both(lambda: head.meet(begin), lambda: member.meet(begin))
    assert [meeting.restart for meeting in again] == [1, 1]


def test_a_member_that_dies_is_missed_at_once_and_its_place_kept(cluster):
    head, member, _, _ = met(cluster)
    member.leave(1)
    until(head.failed)
    decision = head.conclude({}, lambda reports, lost, silent: Decision(lost == {1: "nodeb"}, 1))
    assert decision.restart
    successor = cluster.member()
    first, second = both(lambda: head.meet(begin), lambda: successor.meet(begin))
    assert (first.hosts, second.node) == (("nodea", "nodeb"), 1)


def test_a_report_is_placed_on_node_0s_clock_when_it_was_sent_not_when_it_was_read(cluster):
    head, member, _, _ = met(cluster)
    until(lambda: head.failed() or head._members[1].behind_ns is not None)
    sent = time.monotonic_ns()
    judged = []

    def judge(reports, lost, silent):
        judged.append(reports[1]["sent_ns"])
        return Decision(False, 1)

    def late():
        until(lambda: time.monotonic_ns() - sent > 1_500_000_000)  # busy with ranks of its own
        head.conclude({"now_ns": 0}, judge)

    both(late, lambda: member.conclude({**report("late"), "now_ns": sent}, judge))
    assert abs(judged[0] - sent) < 1_000_000_000


def test_who_comes_back_too_early_waits_for_the_place(cluster):
    head, member, _, _ = met(cluster)
    successor = cluster.member(replace(HELLO, node=1))

    def lead():
        until(head.failed)
        head.conclude({}, lambda reports, lost, silent: Decision(True, 1))
        return head.meet(begin)

    def follow():
        until(lambda: successor._wire is not None)
        member.leave(1)

    first, second, _ = both(lead, lambda: successor.meet(begin), follow)
    assert (first.restart, second.restart) == (1, 1)


@pytest.mark.parametrize(("says_goodbye", "code", "asked"), [(True, 1, []), (False, 9, [({1}, {0})])])
def test_a_member_without_node_0_judges_by_itself_unless_it_was_told(cluster, says_goodbye, code, asked):
    head, member, _, _ = met(cluster)
    if says_goodbye:
        head.leave(1)
    else:
        head._members[1].wire.close()
    until(member.failed)
    judged = []
    decision = member.conclude(
        {"word": 1}, lambda reports, lost, silent: judged.append((set(reports), set(lost))) or Decision(False, 9)
    )
    assert (decision.exit_code, judged) == (code, asked)


def test_signals_reach_every_node_once(cluster):
    head, member, _, _ = met(cluster)
    member.tell(signal.SIGINT)
    until(lambda: head.failed() or head._heard)
    assert (head.told(), head.told()) == ([signal.SIGINT], [])
    head.tell(signal.SIGTERM)
    until(lambda: member.failed() or member._heard)
    assert member.told() == [signal.SIGTERM]


def test_all_leave_with_one_code_when_all_are_done(cluster):
    head, member, _, _ = met(cluster)
    assert head.finish(False, lambda saved: 0) is None
    assert member.finish(True, lambda saved: 5) is None
    until(lambda: head.failed() or head.finish(False, lambda saved: 75 if saved else 0) == 75)
    until(lambda: member.finish(True, lambda saved: 5) == 75)


def test_a_hang_is_one_only_if_all_nodes_hang(cluster):
    head, member, _, _ = met(cluster)
    assert head.all_hang({"silent_s": 31}, runs=True) is None
    assert member.all_hang({"silent_s": 40}, runs=True) is None
    until(lambda: not head.failed() and head.all_hang({"silent_s": 31}, runs=True) is not None)
    assert head.all_hang({"silent_s": 31}, runs=True) == {0: {"silent_s": 31}, 1: {"silent_s": 40}}
    member.all_hang(None, runs=True)
    until(lambda: not head.failed() and head.all_hang({"silent_s": 31}, runs=True) is None)
    assert head.all_hang(None, runs=True) is None


def test_who_comes_to_a_run_that_is_finished_is_sent_away_at_once(cluster):
    member = cluster.member()
    _, sent_away = both(lambda: send_away(cluster.listener, 1, 0, "nothing to begin", 20.0), lambda: member.meet(begin))
    assert isinstance(sent_away, Dismissed)
    assert (sent_away.code, str(sent_away)) == (0, "nothing to begin")


def test_nobody_is_waited_for_longer_than_that():
    listener = socket.create_server(("127.0.0.1", 0))
    send_away(listener, 1, 0, "", 0.1)
    assert listener.fileno() == -1
