from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from rankrun.beat import Phase
from rankrun.launch.rank_end import RankEnd
from rankrun.launch.verdict import judge
from rankrun.launch.watch import Hang

GLOO = "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp"
PEER_GONE = f"{GLOO}/pair.cc:561] Connection closed by peer [127.0.0.1]:7. This is typically caused by a remote worker"
TIMEOUT = f"{GLOO}/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete"


def end(rank, code, ns, message=None, **more):
    """The end of a rank; four ranks a node."""
    node = rank // 4
    fields = {
        "rank": rank,
        "local_rank": rank % 4,
        "node": node,
        "host": f"node{'abc'[node]}",
        "pid": 100 + rank,
        "code": code,
        "ns": ns,
        "ordered": False,
        "early": False,
        "message": message,
        "traceback": None,
        "where": None,
        "told": False,
        "told_code": None,
        "log": Path(f"logs/{rank}.log"),
        "tail": ["last words"],
    }
    return RankEnd(**(fields | more))


def stopped(rank, ns=1000, **more):
    return end(rank, -15, ns, ordered=True, **more)


def verdict(*ends, cooperating=False, **more):
    return judge(ends, attempt=0, cooperating=cooperating, **more)


def lines(found, *, shown=False):
    return found.lines(lambda log: shown)


def test_a_closed_connection_never_outranks_the_rank_that_closed_it():
    found = verdict(
        end(0, 1, 5, PEER_GONE),
        end(1, 1, 9, "ValueError: boom", where="t.py:3"),
        stopped(2),
        traceback_free := stopped(3),
    )
    assert (found.root.rank, found.by_itself) == (1, True)
    assert lines(found) == [
        "rank 1 on nodea failed at t.py:3: ValueError: boom",
        "  last words",
        "stopped because of it: ranks 0, 2, 3",
        "log of rank 1: logs/1.log",
    ]
    assert traceback_free in found.ends


# What healthy ranks said, under torch 2.14, when one was killed, left, was stopped, or never came; the last four are
# NCCL's, from its library.
MET = [
    f"{GLOO}/pair.cc:545] Read error [127.0.0.1]:43159: Connection reset by peer. This is typically caused by a remote",
    PEER_GONE,
    TIMEOUT,
    f"{GLOO}/unbound_buffer.cc:129] Timed out waiting 4000ms for send operation to complete",
    "RuntimeError: Gloo connectFullMesh failed with [/pytorch/gloo/transport/tcp/pair.cc:144] no error",
    "RuntimeError: Rank 2 successfully reached monitoredBarrier, but received errors while waiting for send",
    "DistNetworkError: Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown?",
    "torch.distributed.DistNetworkError: Broken pipe",
    "DistNetworkError: The client socket has timed out after 2000ms while trying to connect to (127.0.0.1, 9).",
    "DistStoreError: wait timeout after 3000ms, keys: /default_pg/0//1//cpu//0/1",
    "DistStoreError: Timed out after 5 seconds waiting for clients. 2/3 clients joined.",
    "DistBackendError: NCCL error: ncclRemoteError: A call failed possibly due to a network error or a remote process",
    "DistBackendError: NCCL error: Last error:\nsocketProgress: Connection closed by remote peer node7<41234>",
    "DistBackendError: [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE)",
    "DistBackendError: NCCL communicator was aborted on rank 0.",
]


@pytest.mark.parametrize("message", MET)
def test_what_a_healthy_rank_says_of_a_lost_peer_is_a_consequence(message):
    found = verdict(end(0, 1, 5, message), end(1, -9, 6))
    assert found.root.rank == 1
    assert found.consequences == {0}


@pytest.mark.parametrize(
    "message",
    [
        "DistNetworkError: The server socket has failed to listen on any local network address. port: 1, EADDRINUSE",
        "DistBackendError: NCCL error: ncclInvalidUsage … Duplicate GPU detected : rank 1 and rank 0",
        "AcceleratorError: CUDA error: an illegal memory access was encountered",
        "ConnectionRefusedError: [Errno 111] Connection refused",
        "ReadTimeout: HTTPSConnectionPool(host='tracker', port=443): Read timed out.",
    ],
)
def test_what_a_rank_says_of_its_own_trouble_is_no_consequence(message):
    found = verdict(end(0, 1, 5, message), stopped(1))
    assert (found.root.rank, found.by_itself) == (0, True)
    assert "failed: " in lines(found)[0]


def test_a_broken_connection_to_whomever_gives_way_to_a_later_failure_that_needs_no_explanation():
    found = verdict(end(0, 1, 5, "ConnectionResetError: [Errno 104] Connection reset by peer"), end(1, -11, 9))
    assert found.root.rank == 1
    assert "rank 0 on nodea failed too: ConnectionResetError: [Errno 104] Connection reset by peer" in lines(found)


def test_nccls_watchdog_ends_a_rank_by_an_abort_that_is_a_consequence():
    tail = [
        "terminate called after throwing an instance of 'c10::DistBackendError'",
        "  what():  [PG ID 0 PG GUID 0(default_pg) Rank 0] Process group watchdog thread terminated with exception: "
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7) ran for 600029 milliseconds before "
        "timing out.",
    ]
    assert verdict(end(0, -6, 5, tail=tail), end(1, 1, 9, "ValueError: x")).root.rank == 1
    assert verdict(end(0, -6, 5, tail=["free(): invalid pointer"]), end(1, 1, 9, "ValueError: x")).root.rank == 0


def test_only_consequences_are_told_as_such_with_who_was_still_at_work():
    found = verdict(end(0, 1, 5, TIMEOUT), end(2, 1, 4, TIMEOUT, where="t.py:9"), stopped(1), stopped(3))
    assert (found.root.rank, found.by_itself, found.exit_code) == (2, False, 1)
    said = lines(found, shown=True)
    assert said[0].startswith(
        "no rank failed by itself; the first to give up was rank 2 on nodea at t.py:9: RuntimeError"
    )
    assert "rank 0 gave up too" in said
    assert "still running, and perhaps what they waited for: ranks 1, 3 on nodea" in said
    assert any(line.startswith("likely cause: the ranks did not come to the same collective in time") for line in said)


def test_all_were_stopped_and_nobody_says_why():
    found = verdict(stopped(0), stopped(1))
    assert (found.root.rank, found.by_itself) == (0, False)
    lines(found)


def test_leaving_with_0_too_early_is_a_cause():
    found = verdict(end(0, 1, 5, PEER_GONE), end(1, 0, 9, early=True), cooperating=True)
    assert (found.root.rank, found.exit_code) == (1, 1)
    assert lines(found)[0].endswith("rank 1 on nodea failed: left with exit code 0 before its program had ended")


def test_leaving_with_0_is_a_cause_where_others_only_missed_that_rank():
    found = verdict(end(0, 1, 5, PEER_GONE), end(1, 0, 9), end(2, 1, 6, PEER_GONE), stopped(3))
    assert (found.rank, found.exit_code, found.is_exception) == (1, 1, False)
    assert lines(found, shown=True)[:2] == [
        "rank 1 on nodea failed: left with exit code 0 while other ranks still needed it",
        "stopped because of it: ranks 0, 2, 3",
    ]
    assert verdict(end(0, 1, 5, PEER_GONE), end(1, 0, 9, ordered=True)).rank == 0, "it left because it was told to"
    assert verdict(end(0, 1, 5, PEER_GONE), end(1, 0, 9_000_000_000)).rank == 0, "it came to its end long after that"
    assert verdict(end(0, 1, 5, "ValueError: x"), end(1, 0, 1)).rank == 0
    assert verdict(end(0, 1, 5, PEER_GONE), end(5, 0, 2_000_000_000)).rank == 5, "times of two nodes are less exact"
    assert verdict(end(0, 1, 5, PEER_GONE), end(1, 0, 2_000_000_000)).rank == 0


def test_leaving_with_75_is_no_failure_of_a_program_that_cooperates():
    ends = end(0, 75, 1), end(1, -11, 9)
    assert verdict(*ends, cooperating=True).root.rank == 1
    assert verdict(*ends).root.rank == 0


def test_the_same_failure_on_many_ranks_is_one_line():
    ends = [end(rank, 1, 50 + rank, "ModuleNotFoundError: No module named 'x'") for rank in range(9)]
    others = [end(rank, 1, 90 + rank, f"E: {rank}") for rank in range(9, 12)] + [end(8, 7, 99)]
    said = lines(verdict(*ends[:8], *others))
    assert "the same on ranks 1-7" in said
    assert [line for line in said if "failed too" in line] == [
        "rank 8 on nodec failed too: left with exit code 7",
        "rank 9 on nodec failed too: E: 9",
        "rank 10 on nodec failed too: E: 10",
    ]
    assert "and so did rank 11" in said
    assert "likely cause: the module is not installed for this Python, or not where Python looks" in said


def test_the_host_of_the_rank_that_failed_is_named():
    found = verdict(stopped(0), end(5, 1, 9, "ValueError: far away"))
    assert (found.rank, found.host) == (5, "nodeb")
    assert lines(found)[0] == "rank 5 on nodeb failed: ValueError: far away"
    assert lines(found)[-1] == "log of rank 5 on nodeb: logs/5.log"


# A node, a warm parent, a hang -------------------------------------------------------------------------------------


def test_a_lost_node_outranks_what_others_say_of_it():
    found = verdict(end(0, 1, 5, PEER_GONE), stopped(1), end(2, 1, 6, "ConnectionError: weird"), lost={1: "nodeb"})
    assert (found.root, found.rank, found.host, found.exit_code, found.by_itself) == (None, None, "nodeb", 1, True)
    said = lines(found)
    assert said[0].startswith("node 1 (nodeb) can't be reached any more")
    assert "stopped because of it: ranks 0, 1" in said
    assert "rank 2 on nodea failed too: ConnectionError: weird" in said


def test_what_a_rank_of_the_lost_node_had_said_came_first():
    found = verdict(end(0, 1, 5, PEER_GONE), end(4, 1, 4, "ValueError: boom"), lost={1: "nodeb"})
    assert found.root.rank == 4


def test_a_dead_warm_parent_has_its_own_words():
    ends = [end(rank, None, 1, ordered=True) for rank in range(2)]
    found = verdict(*ends, end(4, 1, 2, PEER_GONE), parent_gone={0: "nodea"})
    assert lines(found) == ["the warm parent on nodea died, and its ranks with it", "stopped because of it: rank 4"]
    assert (found.exit_code, found.parent_gone, found.host) == (1, True, "nodea")


def test_a_hang_names_who_stands_where_and_who_waits():
    hang = Hang((5,), (0, 1, 2, 4), 31.4, 30.0, Phase.STEP, 7)
    found = verdict(*map(stopped, (0, 1, 2, 4, 5)), hang=hang, stood={5: "job.py:8 in step", 0: "x"})
    assert (found.exit_code, found.rank, found.host, found.root) == (124, 5, "nodeb", None)
    assert found.what.startswith("rank 5 on nodeb at job.py:8 in step hung in the step after step 7: ")
    assert found.what.endswith("; ranks 0-2, 4 waited for it")
    assert not found.is_exception


def test_nothing_is_known_at_all():
    found = judge([], attempt=0, cooperating=True)
    assert (found.exit_code, found.by_itself) == (1, False)
    assert lines(found) == ["no rank has said how it ended"]


# Ranks that were told to leave --------------------------------------------------------------------------------------

SECOND = 1_000_000_000


@pytest.mark.parametrize("way_out", ["SystemExit: 143", "KeyboardInterrupt"])
def test_a_handler_that_leaves_when_it_is_told_to_is_a_consequence(way_out):
    found = verdict(end(0, 143, 5, way_out, ordered=True), end(1, 143, 6, way_out, ordered=True))
    assert (found.by_itself, found.cause, found.consequences) == (False, None, {0, 1})


@pytest.mark.parametrize("words", ["SystemExit: 143", "RuntimeError: terminated", "E212 a worker died"])
@pytest.mark.parametrize("failure", ["TimeoutError: dataset server timed out", "ValueError: boom", None])
def test_what_is_said_after_the_order_never_outranks_what_came_before_it(words, failure):
    told = words.startswith("E212")
    found = verdict(end(0, 1, SECOND, failure), end(1, 1, 2 * SECOND, words, ordered=True, told=told, told_code=1))
    assert (found.rank, found.by_itself) == (0, True)
    assert "stopped because of it: rank 1" in lines(found)


def test_an_ordered_end_does_not_outrank_a_doubtful_one_that_came_a_moment_later():
    found = verdict(end(0, 1, 6, "TimeoutError: timed out"), end(1, 1, 5, "ValueError: x", ordered=True))
    assert found.rank == 0


def test_of_consequences_one_that_nobody_ordered_comes_first():
    found = verdict(end(0, 1, SECOND, TIMEOUT), end(1, 1, 2 * SECOND, "RuntimeError: terminated", ordered=True))
    assert (found.rank, found.by_itself) == (0, False)
    found = verdict(end(0, 1, 9, TIMEOUT), end(1, 1, 5, PEER_GONE, ordered=True))
    assert found.rank == 0
    assert "rank 1 gave up too" in lines(found)
    aborted = end(1, -6, 11, tail=["  what():  [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(7)"])
    said = lines(verdict(end(0, 1, 9, TIMEOUT), aborted, stopped(2)))
    assert "rank 1 gave up too" in said
    assert "still running, and perhaps what they waited for: rank 2 on nodea" in said


def test_a_rank_that_is_slow_to_die_and_said_before_why_is_the_cause():
    found = verdict(end(0, 1, 9, PEER_GONE), end(1, 1, 5, "ValueError: boom", ordered=True))
    assert (found.rank, found.by_itself) == (1, True)


# Nodes that say nothing ---------------------------------------------------------------------------------------------


HUNG = Hang((0,), (), 31.4, 30.0, Phase.STEP, 7)


@pytest.mark.parametrize("more", [{}, {"hang": HUNG}, {"parent_gone": {0: "nodea"}}, {"lost": {2: "nodec"}}])
def test_a_node_that_fell_silent_after_a_failure_stands_beside_it(more):
    failure = end(0, 1, 5, "ValueError: boom") if not more else stopped(0)
    found = verdict(failure, silent={1: "nodeb"}, **more)
    assert "nodeb" not in found.what
    assert "node 1 (nodeb) did not say how its ranks ended" in lines(found)
    assert found.as_dict()["silent"] == {1: "nodeb"}


@pytest.mark.parametrize("ends", [[], [stopped(0)], [end(0, 1, 5, PEER_GONE)]])
def test_a_silent_node_is_the_cause_where_nothing_else_is_known(ends):
    found = verdict(*ends, silent={1: "nodeb"})
    assert (found.root, found.host, found.exit_code, found.by_itself) == (None, "nodeb", 1, True)
    assert found.what.startswith("node 1 (nodeb) can't be reached any more")
    assert not any("did not say" in line for line in lines(found))


# A rank alone -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", MET)
def test_who_has_no_peers_misses_none(message):
    found = verdict(end(0, 1, 5, message))
    assert (found.by_itself, found.consequences) == (True, frozenset())
    assert not any("joined the group" in line for line in lines(found))
    assert not verdict(end(0, 1, 5, message), lost={1: "nodeb"}).consequences.isdisjoint({0})


def test_a_timeout_of_a_data_base_is_a_failure_beside_healthy_ranks():
    found = verdict(end(0, 1, 5, "RuntimeError: timed out connecting to the database"), stopped(1))
    assert (found.rank, found.by_itself, found.cause) == (0, True, None)


# What stands in a log ------------------------------------------------------------------------------------------------


def test_an_older_traceback_is_advice_at_most():
    tail = ["Traceback (most recent call last):", '  File "/me/a.py", line 2, in f', "ValueError: old", "went on"]
    found = verdict(end(0, 3, 5, tail=tail))
    assert found.what == "rank 0 on nodea failed: left with exit code 3"
    assert lines(found)[-1] == "the last traceback in its log was ValueError: old at /me/a.py:2"
    assert verdict(end(0, 3, 5, "ValueError: x", tail=tail)).advice is None
    assert verdict(stopped(0, tail=tail)).advice is None


def test_whatever_a_verdict_holds_its_lines_are_printable():
    bad = "E: \udcff\x1b[2J\t\u2028x"
    fields = {"host": bad, "where": bad, "tail": [bad], "log": Path(bad)}
    found = [
        verdict(end(0, 1, 5, bad, **fields), end(1, 1, 6, bad + "y", **fields), stopped(5, **fields)),
        verdict(end(0, 2, 5, bad, told=True, told_code=2)),
        verdict(stopped(0), lost={1: bad}),
        verdict(end(0, 1, 5, "E"), silent={1: bad}),
        verdict(end(0, 1, 5, "E", traceback=bad)),
    ]
    for one in found:
        assert all(line.isprintable() for line in [one.what, *lines(one)])


# SIGKILL: who sent it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("oom", "who"),
    [
        (None, "(by the kernel when memory ran out, or by a person)"),
        ({1: None}, "(by the kernel when memory ran out, or by a person)"),
        ({0: None}, "(by a person or a program: the kernel counted no kill for want of memory)"),
        ({0: "by the kernel, because x"}, "(by the kernel, because x)"),
        ({0: "\x1b[2J"}, "(\\x1b[2J)"),
        ({0: 3}, "(by a person or a program: the kernel counted no kill for want of memory)"),
    ],
)
def test_who_sent_sigkill(oom, who):
    found = verdict(end(0, -9, 1), oom=oom)
    assert found.what == f"rank 0 on nodea failed: killed by SIGKILL {who}"
    assert (found.cause is not None) == (oom is not None and isinstance(oom.get(0), str))


# Exit codes ---------------------------------------------------------------------------------------------------------


def test_the_earlier_of_two_real_failures_by_their_own_clock():
    assert verdict(end(0, 1, 9, "A: a"), end(1, 1, 7, "B: b")).root.rank == 1


def test_a_signal_is_the_cause_of_a_peers_exception():
    found = verdict(end(0, 1, 5, PEER_GONE), end(1, -signal.SIGSEGV, 6))
    assert (found.root.rank, found.exit_code) == (1, 139)
    assert "killed by SIGSEGV" in lines(found)[0]


@pytest.mark.parametrize(("code", "foreign", "ours"), [(7, 7, 7), (2, 1, 2), (75, 1, 75), (143, 1, 143), (1, 1, 1)])
def test_codes_of_ours_mean_nothing_from_a_foreign_program(code, foreign, ours):
    assert verdict(end(0, code, 1)).exit_code == foreign
    assert verdict(end(0, code, 1), cooperating=True).exit_code == ours


def test_a_told_error_is_its_lines_and_no_traceback_or_advice():
    told = end(1, 2, 1, "E201 a.txt:3  no label\nE201 a.txt:9  Permission denied", told=True, told_code=2)
    copy = end(0, 2, 1, "E201 stopped because rank 1 failed", told_code=2)
    found = verdict(copy, told, end(2, 2, 0), cooperating=True)
    assert (found.exit_code, found.cause) == (2, None)
    assert lines(found) == ["E201 a.txt:3  no label", "E201 a.txt:9  Permission denied"]
    assert lines(found, shown=True) == []


# What it keeps ------------------------------------------------------------------------------------------------------


def test_what_is_on_the_screen_is_not_said_again():
    found = verdict(end(0, 3, 1, traceback="Traceback …\nE: \x1b[2J"))
    assert "  E: \\x1b[2J" in lines(found)
    assert not any("Traceback" in line for line in lines(found, shown=True))


def test_advice_is_the_last_line():
    found = verdict(end(0, 3, 1))
    found.advice = "not tried again"
    assert lines(found)[-1] == "not tried again"


def test_what_an_error_was_raised_from_explains_it_and_what_was_being_handled_does_not():
    before = "Traceback …\nModuleNotFoundError: No module named 'fast'\n\n"
    during = "During handling of the above exception, another exception occurred:\n"
    direct = "The above exception was the direct cause of the following exception:\n"
    message, last = "ValueError: x", "Traceback …\nValueError: x"
    assert verdict(end(0, 1, 1, message, traceback=f"{before}{during}\n{last}")).cause is None
    assert verdict(end(0, 1, 1, message, traceback=f"{before}{direct}\n{last}")).cause is not None


def test_verdict_json():
    found = verdict(end(0, 1, 5, PEER_GONE), end(1, 1, 9, "ModuleNotFoundError: x", where="t.py:3"), notice="SIGTERM")
    kept = json.loads(json.dumps(found.as_dict()))
    assert kept["line"] == "rank 1 on nodea failed at t.py:3: ModuleNotFoundError: x"
    assert (kept["rank"], kept["host"], kept["how"]) == (1, "nodea", "ModuleNotFoundError: x")
    assert (kept["notice"], kept["by_itself"], kept["exit_code"]) == ("SIGTERM", True, 1)
    assert set(kept["cause"]) == {"what", "cure"}
    assert [rank["consequence"] for rank in kept["ranks"]] == [True, False]
    json.dumps(verdict(lost={0: "h"}).as_dict())
