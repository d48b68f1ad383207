from __future__ import annotations

import pytest

from rankrun.training.findings import (
    Finding,
    Nodes,
    in_brief,
    judge_clock,
    judge_devices,
    judge_folder,
    judge_network,
    judge_reports,
    judge_speed,
    judge_sum,
)

# Three nodes of two ranks each.
SIX = Nodes({0: "nodea", 1: "nodeb", 2: "nodec"}, {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2}, [0, 2, 4])
ONE = Nodes({0: "nodea"}, {0: 0}, [0])


def introductions(*hosts: str, ranks: int = 1) -> dict[int, dict]:
    return {
        node * ranks + local: {"host": host, "node": node, "leads": local == 0}
        for node, host in enumerate(hosts)
        for local in range(ranks)
    }


def test_nodes_are_known_by_what_ranks_say_of_themselves():
    assert Nodes.of(introductions("nodea", "nodeb", "nodec", ranks=2), 6, 2) == SIX


def test_a_silent_rank_is_where_its_number_puts_it():
    facts = introductions("nodea", "nodeb", "nodec", ranks=2)
    del facts[3], facts[4], facts[5]
    nodes = Nodes.of(facts, 6, 2)
    assert [nodes.name(rank) for rank in range(6)] == ["nodea", "nodea", "nodeb", "nodeb", "node 2", "node 2"]
    assert nodes.leaders == [0, 2]


def test_two_nodes_of_one_name_are_told_apart():
    nodes = Nodes.of(introductions("box", "box", "other"), 3, 1)
    assert list(nodes.names.values()) == ["box (node 0)", "box (node 1)", "other"]


def test_long_lists_are_cut():
    assert in_brief(["a", "a", "b"]) == "a, b"
    assert in_brief(str(n) for n in range(9)) == "0, 1, 2, 3, 4, 5 and 3 more"


@pytest.mark.parametrize(
    ("reports", "said"),
    [
        ({rank: {"fact": 1} for rank in range(6)}, None),
        ({rank: {"fact": 1} for rank in range(4)}, "nodec: no answer of rank 4, 5 within 9 s"),
        ({rank: {"problem": "x"} for rank in range(5)}, "nodec: no answer of rank 5 within 9 s"),
        ({**{r: {"fact": 1} for r in range(6)}, 2: {"problem": "no"}, 3: {"problem": "no"}}, "nodeb: no"),
        ({**{r: {"fact": 1} for r in range(6)}, 0: {"problem": "p"}, 5: {"problem": "q"}}, "nodea: p; nodec: q"),
    ],
)
def test_who_did_not_answer_or_met_a_problem(reports, said):
    found = judge_reports(SIX, reports, range(6), 9)
    assert found == (None if said is None else Finding("✗", said))


def gpus(*shown: int, ranks: int = 2) -> dict[int, dict]:
    return {rank: {"gpus": shown[rank // 2], "ranks": ranks} for rank in range(6)}


@pytest.mark.parametrize(
    ("shown", "mark", "said"),
    [
        ((0, 0, 0), "✓", "no GPU in use: gloo on the CPU"),
        ((2, 2, 2), "✓", "a GPU for each of 6 ranks"),
        ((2, 1, 2), "✗", "fewer GPUs than ranks: nodeb shows 1 for 2"),
        ((2, 0, 0), "✗", "fewer GPUs than ranks: nodeb shows 0 for 2, nodec shows 0 for 2"),
        ((2, 8, 2), "!", "more GPUs than ranks, the others stay idle: nodeb shows 8 for 2"),
    ],
)
def test_gpus_are_held_against_ranks(shown, mark, said):
    assert judge_devices(SIX, gpus(*shown)) == Finding(mark, said)


@pytest.mark.parametrize(
    ("b", "c", "mark", "said"),
    [
        ((0.0002, 1e-4), (-0.001, 1e-4), "✓", "nodec -1.0 ms, nodeb +0.2 ms from nodea"),
        ((0.9, 1e-4), (0.0, 1e-4), "✓", "nodeb +900.0 ms, nodec +0.0 ms from nodea"),
        ((-3.2, 1e-4), (0.0, 1e-4), "!", "nodeb is -3.2 s from nodea: logs of different nodes do not line up; is NTP "),
        ((1.5, 2.0), (0.0, 1e-4), "✓", "nodeb +1500.0 ms"),  # no more than the slow answer explains
    ],
)
def test_clocks_are_held_against_that_of_node_0(b, c, mark, said):
    facts = {
        0: {"ahead_s": 0.0, "trip_s": 0.0},
        2: {"ahead_s": b[0], "trip_s": b[1]},
        4: {"ahead_s": c[0], "trip_s": c[1]},
    }
    found = judge_clock(SIX, facts)
    assert found.mark == mark
    assert found.words.startswith(said)


@pytest.mark.parametrize(
    ("unseen", "mark", "said"),
    [
        (([], [], []), "✓", "written and read back by all 3 nodes"),
        (([2], [2], [0, 1]), "✗", "nodec: has another folder"),
        (([1, 2], [0, 2], [0, 1]), "✗", "nodea, nodeb, nodec: has another folder"),
        (([1], [], []), "✗", "nodea, nodeb: has another folder"),
        ((None, None, None), "·", "not checked: no launcher"),
        (([], None, []), "·", "not checked: no launcher"),
    ],
)
def test_the_run_folder_is_one(unseen, mark, said):
    found = judge_folder(SIX, dict(zip((0, 2, 4), unseen, strict=True)), must_share=True)
    assert found.mark == mark
    assert found.words.startswith(said)


def reached(a: dict, b: dict, c: dict, c_address: str = "10.77.0.3") -> dict[int, dict]:
    addresses = ("10.77.0.1", "10.77.0.2", c_address)
    return {
        rank: {"address": address, "unreached": unreached}
        for rank, address, unreached in zip((0, 2, 4), addresses, (a, b, c), strict=True)
    }


@pytest.mark.parametrize(
    ("facts", "mark", "said"),
    [
        (reached({}, {}, {}), "✓", "every node reaches every other"),
        (
            reached({"2": "no answer"}, {"2": "no answer"}, {}),
            "✗",
            "nodec: 10.77.0.3 can't be reached from nodea, nodeb (no answer)",
        ),
        (
            reached({}, {"0": "network is down", "2": "refused"}, {}),
            "✗",
            "nodeb can't reach nodea, nodec (network is do",
        ),
        (
            reached({"2": "refused"}, {"2": "somebody else answers"}, {}, "127.0.1.1"),
            "✗",
            "nodec: its host name leads to 127.0.1.1, where no other node reaches it",
        ),
        (reached({"2": "refused"}, {}, {}, "::1"), "✗", "nodea can't reach nodec (refused); nodec: its host name lea"),
    ],
)
def test_the_node_that_most_failures_share_is_named(facts, mark, said):
    found = judge_network(SIX, facts)
    assert found.mark == mark
    assert found.words.startswith(said)


def test_wrong_sums_are_named():
    facts = {rank: {"wrong": 0, "backend": "gloo"} for rank in range(6)}
    assert judge_sum(SIX, facts) == Finding("✓", "right on all 6 ranks (gloo)")
    facts[3]["wrong"] = 1
    assert judge_sum(SIX, facts) == Finding("✗", "nodeb: wrong on rank 3")


@pytest.mark.parametrize(
    ("links", "mark", "said"),
    [
        ({}, "✓", "all-reduce 1.00 GB/s on every link"),
        ({"1": 4e9, "2": 2e9}, "✓", "all-reduce 1.00 GB/s on every link; from nodea to nodec 2.00, nodeb 4.00 GB/s"),
        ({"1": 4e9, "2": 4e8, "3": 4e9}, "!", "nodec: less than half as fast as the others; all-reduce 1.00"),
    ],
)
def test_speeds_and_the_slow_link(links, mark, said):
    nodes = Nodes({**SIX.names, 3: "noded"}, SIX.node_of, SIX.leaders)
    facts = {rank: {"speed": 1e9 + rank, "links": links if rank == 0 else {}} for rank in range(6)}
    found = judge_speed(nodes, facts)
    assert found.mark == mark
    assert found.words.startswith(said)


def test_one_rank_alone():
    assert judge_speed(ONE, {0: {"speed": 0.0, "links": {}}}).mark == "·"
    assert judge_network(ONE, {0: {"address": "127.0.0.1", "unreached": {}}}) == Finding("✓", "one node")
    assert judge_clock(ONE, {0: {"ahead_s": 0.0, "trip_s": 0.0}}) == Finding("✓", "one node, one clock")
    assert judge_folder(ONE, {0: []}, must_share=False) == Finding("✓", "written and read back")
    assert judge_sum(ONE, {0: {"wrong": 0, "backend": "gloo"}}) == Finding("✓", "right")


def test_a_script_needs_no_shared_folder() -> None:
    found = judge_folder(SIX, {0: [1], 2: [0], 4: []}, must_share=False)
    assert found.mark == "!"
    assert "a script's logs lie on each node" in found.words
