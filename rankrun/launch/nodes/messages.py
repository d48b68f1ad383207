"""What agents say to each other. Everything from a peer is checked here; nothing of it is executed or unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

PROTOCOL = 1
MOST_NODES = 65536
_MOST_RANKS = 65536  # of one node


@dataclass(frozen=True)
class Hello:
    """How a node introduces itself. `node` is None for one that takes the place that is free."""

    run: str
    node: int | None
    nnodes: int
    nproc: int
    host: str
    program: str  # what its ranks run, to find two commands that don't belong together
    torch: str
    token: str  # of this one process, so that a node which comes back is told from one that is still there

    def as_message(self) -> dict[str, Any]:
        """As the node sends it."""
        return {"hello": {"protocol": PROTOCOL, **asdict(self)}}

    @classmethod
    def read(cls, fields: object) -> Hello | str:
        """The hello that `fields` hold, or why they hold none."""
        if not isinstance(fields, dict):
            return "that is no hello"
        if fields.get("protocol") != PROTOCOL:
            return f"node 0 speaks version {PROTOCOL} of the agents' protocol; install the same rankrun on all nodes"
        words = [fields.get(name) for name in ("run", "host", "program", "torch", "token")]
        node, nnodes, nproc = fields.get("node"), fields.get("nnodes"), fields.get("nproc")
        texts = [word for word in words if isinstance(word, str) and len(word) <= 4096]
        if len(texts) != len(words) or not is_number(nnodes, 1, MOST_NODES) or not is_number(nproc, 1, _MOST_RANKS):
            return "that is no hello"
        if node is not None and not is_number(node, 0, MOST_NODES - 1):
            return "that is no hello"
        run, host, program, torch, token = texts
        return cls(run, node, nnodes, nproc, host, program, torch, token)


@dataclass(frozen=True)
class Meeting:
    """One attempt as all nodes know it: who is there, and where its ranks find each other."""

    node: int
    nprocs: tuple[int, ...]
    hosts: tuple[str, ...]
    attempt: int
    restart: int  # failures of this launch so far
    address: str  # of node 0
    port: int  # of this attempt's store

    @property
    def nnodes(self) -> int:
        """Nodes of the run."""
        return len(self.nprocs)

    @property
    def world_size(self) -> int:
        """Ranks on all nodes."""
        return sum(self.nprocs)

    @property
    def first_rank(self) -> int:
        """The global rank of this node's local rank 0."""
        return sum(self.nprocs[: self.node])

    def as_message(self, *, tells_address: bool) -> dict[str, Any]:
        """As node 0 sends it to all; each reads it with its own number."""
        fields = asdict(self) | ({} if tells_address else {"address": ""})
        del fields["node"]
        return {"start": fields}

    @classmethod
    def read(cls, fields: Mapping[str, Any], node: int, address: str) -> Meeting:
        """The meeting for one node; `address` stands in where node 0 named none."""
        return cls(
            node=node,
            nprocs=tuple(int(n) for n in fields["nprocs"]),
            hosts=tuple(str(host) for host in fields["hosts"]),
            attempt=int(fields["attempt"]),
            restart=int(fields["restart"]),
            address=str(fields["address"] or address),
            port=int(fields["port"]),
        )


@dataclass(frozen=True)
class Decision:
    """What all agents do after an attempt: restart together, or leave together with one exit code."""

    restart: bool
    exit_code: int
    line: str = ""  # for the terminals of the other nodes

    def as_message(self) -> dict[str, Any]:
        """As node 0 sends it."""
        return {"decision": asdict(self)}

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Decision:
        """The decision that node 0 sent."""
        return cls(bool(fields["restart"]), int(fields["exit_code"]), str(fields["line"]))


def is_number(value: object, least: int, most: int) -> TypeGuard[int]:
    """Whether `value` is a whole number (and no bool) from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
