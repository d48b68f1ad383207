"""What the reports of all ranks mean: pure judgements of the preflight, each naming the nodes that it is about."""

from __future__ import annotations

import ipaddress
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_SHOWN = 6  # names in one line; more are counted
_CLOCKS_APART_S = 1.0
_SLOW = 0.5  # of the median link


@dataclass(frozen=True)
class Finding:
    """✓ right, ! worth knowing, ✗ failed, · not checked; and why."""

    mark: Literal["✓", "!", "✗", "·"]
    words: str


@dataclass(frozen=True)
class Nodes:
    """Who is where. `leaders` are the ranks that speak for their nodes, in the order of the nodes."""

    names: dict[int, str]
    node_of: dict[int, int]
    leaders: list[int]

    @classmethod
    def of(cls, facts: Mapping[int, Mapping[str, Any]], world_size: int, local_world_size: int) -> Nodes:
        """From what ranks say of themselves; a rank that says nothing is where its number puts it."""
        node_of = {rank: rank // local_world_size for rank in range(world_size)}
        node_of |= {rank: int(fact["node"]) for rank, fact in facts.items()}
        hosts = {int(fact["node"]): str(fact["host"]) for fact in facts.values()}
        twice = {host for host, count in Counter(hosts.values()).items() if count > 1}
        names = {}
        for node in sorted(set(node_of.values())):
            host = hosts.get(node)
            names[node] = f"node {node}" if host is None else f"{host} (node {node})" if host in twice else host
        leaders = sorted((node, rank) for rank, node in node_of.items() if facts.get(rank, {}).get("leads"))
        return cls(names, node_of, [rank for _, rank in leaders])

    def name(self, rank: int) -> str:
        """The name of the node on which a rank is."""
        return self.names[self.node_of[rank]]


def in_brief(words: Iterable[str]) -> str:
    """The first few of them, and how many more there are."""
    listed = list(dict.fromkeys(words))
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def judge_reports(
    nodes: Nodes, reports: Mapping[int, Mapping[str, Any]], ranks: Iterable[int], limit_s: float
) -> Finding | None:
    """✗ for ranks that gave no report, else for those that report a problem; None if there is nothing of the kind."""
    silent = [rank for rank in ranks if rank not in reports]
    if silent:
        missing = in_brief(str(rank) for rank in silent)
        return Finding("✗", f"{_names(nodes, silent)}: no answer of rank {missing} within {limit_s:g} s")
    troubled: dict[str, list[int]] = {}
    for rank, report in reports.items():
        if "problem" in report:
            troubled.setdefault(str(report["problem"]), []).append(rank)
    told = [f"{_names(nodes, those)}: {problem}" for problem, those in troubled.items()]
    return Finding("✗", "; ".join(told[:_SHOWN])) if told else None


def judge_devices(nodes: Nodes, facts: Mapping[int, Mapping[str, int]]) -> Finding:
    """Whether every node shows a GPU for each of its ranks, or none does."""
    shown = {nodes.node_of[rank]: fact["gpus"] for rank, fact in facts.items()}
    ranks = {nodes.node_of[rank]: fact["ranks"] for rank, fact in facts.items()}
    if not any(shown.values()):
        return Finding("✓", "no GPU in use: gloo on the CPU")
    few = [f"{nodes.names[node]} shows {shown[node]} for {ranks[node]}" for node in shown if shown[node] < ranks[node]]
    if few:
        return Finding("✗", f"fewer GPUs than ranks: {in_brief(few)}")
    many = [f"{nodes.names[node]} shows {shown[node]} for {ranks[node]}" for node in shown if shown[node] > ranks[node]]
    if many:
        return Finding("!", f"more GPUs than ranks, the others stay idle: {in_brief(many)}")
    return Finding("✓", f"a GPU for each of {len(facts)} ranks")


def judge_clock(nodes: Nodes, facts: Mapping[int, Mapping[str, float]]) -> Finding:
    """How far the nodes' clocks are from that of node 0; a warning past a second beyond what the network explains."""
    ahead = {rank: fact["ahead_s"] for rank, fact in facts.items() if nodes.node_of[rank]}
    if not ahead:
        return Finding("✓", "one node, one clock")
    far = [rank for rank in ahead if abs(ahead[rank]) > _CLOCKS_APART_S + facts[rank]["trip_s"] / 2]
    if far:
        told = in_brief(f"{nodes.name(rank)} is {ahead[rank]:+.1f} s" for rank in far)
        return Finding("!", f"{told} from {nodes.names[0]}: logs of different nodes do not line up; is NTP running?")
    furthest = sorted(ahead, key=lambda rank: -abs(ahead[rank]))
    told = in_brief(f"{nodes.name(rank)} {1e3 * ahead[rank]:+.1f} ms" for rank in furthest)
    return Finding("✓", f"{told} from {nodes.names[0]}")


def judge_folder(nodes: Nodes, facts: Mapping[int, list[int] | None], *, must_share: bool) -> Finding:
    """Whether every node sees what every other one has written; `facts` has the nodes that each does not see.

    Only a config's run must share its folder.
    """
    unseen = {nodes.node_of[rank]: others for rank, others in facts.items() if others is not None}
    if len(unseen) < len(facts):
        return Finding("·", "not checked: no launcher of ours has named one (RANKRUN_RUN_DIR)")
    pairs = [(node, other) for node, others in unseen.items() for other in others]
    if pairs:
        bad = in_brief(nodes.names[node] for node in _most_named(pairs))
        if not must_share:
            return Finding("!", f"{bad}: not on a shared disk; a script's logs lie on each node, a config can't be run")
        return Finding("✗", f"{bad}: has another folder of that name than the rest; all nodes must share its disk")
    return Finding("✓", "written and read back" + (f" by all {len(facts)} nodes" if len(facts) > 1 else ""))


def judge_network(nodes: Nodes, facts: Mapping[int, Mapping[str, Any]]) -> Finding:
    """Whether every node reaches every other one; else the nodes that most failures have in common."""
    by_node = {nodes.node_of[rank]: fact for rank, fact in facts.items()}
    pairs = [(node, int(other)) for node, fact in by_node.items() for other in fact["unreached"]]
    if not pairs:
        return Finding("✓", "every node reaches every other" if len(facts) > 1 else "one node")
    told = []
    for bad in _most_named(pairs):
        fact, name = by_node[bad], nodes.names[bad]
        if _is_loopback(fact["address"]):
            told.append(
                f"{name}: its host name leads to {fact['address']}, where no other node reaches it; mend its "
                "/etc/hosts, or set GLOO_SOCKET_IFNAME"
            )
            continue
        deaf_to = [node for node, other in pairs if other == bad]
        cut_from = [other for node, other in pairs if node == bad]
        if deaf_to:
            why = in_brief(by_node[node]["unreached"][str(bad)] for node in deaf_to)
            told.append(f"{name}: {fact['address']} can't be reached from {_named(nodes, deaf_to)} ({why})")
        if cut_from:
            why = in_brief(fact["unreached"][str(other)] for other in cut_from)
            told.append(f"{name} can't reach {_named(nodes, cut_from)} ({why})")
    return Finding("✗", "; ".join(told[:_SHOWN]))


def judge_sum(nodes: Nodes, facts: Mapping[int, Mapping[str, Any]]) -> Finding:
    """Whether the sum over all ranks was right on each of them."""
    wrong = [rank for rank, fact in facts.items() if fact["wrong"]]
    if wrong:
        return Finding("✗", f"{_names(nodes, wrong)}: wrong on rank {in_brief(map(str, wrong))}")
    return Finding("✓", f"right on all {len(facts)} ranks ({facts[0]['backend']})" if len(facts) > 1 else "right")


def judge_speed(nodes: Nodes, facts: Mapping[int, Mapping[str, Any]]) -> Finding:
    """Gigabytes a second, of all ranks together and from node 0 to each other one; a slow link is a warning."""
    if len(facts) == 1:
        return Finding("·", "one rank sends nothing")
    total = f"all-reduce {min(fact['speed'] for fact in facts.values()) / 1e9:.2f} GB/s on every link"
    links = {int(node): speed for node, speed in facts[0]["links"].items()}
    if not links:
        return Finding("✓", total)
    slowest = sorted(links, key=lambda node: links[node])
    told = in_brief(f"{nodes.names[node]} {links[node] / 1e9:.2f}" for node in slowest)
    # With two links nobody can say which of them is the odd one.
    usual = statistics.median(links.values())
    slow = [nodes.names[node] for node in links if links[node] < _SLOW * usual] if len(links) > 2 else []
    if slow:
        return Finding(
            "!", f"{in_brief(slow)}: less than half as fast as the others; {total}, from {nodes.names[0]} to {told}"
        )
    return Finding("✓", f"{total}; from {nodes.names[0]} to {told} GB/s")


def _names(nodes: Nodes, ranks: Iterable[int]) -> str:
    return in_brief(nodes.name(rank) for rank in ranks)


def _named(nodes: Nodes, numbers: Iterable[int]) -> str:
    return in_brief(nodes.names[number] for number in numbers)


def _most_named(pairs: list[tuple[int, int]]) -> list[int]:
    """The nodes of which most of these failed pairs have one: whoever is cut off stands in all of its own."""
    counts = Counter(node for pair in pairs for node in set(pair))
    most = max(counts.values())
    return sorted(node for node, count in counts.items() if count == most)


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
