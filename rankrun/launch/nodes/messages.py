"""What agents say to each other. Everything from a peer is checked here; nothing of it is executed or unpickled."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

from rankrun.errors import printable

PROTOCOL = 1
MOST_NODES = 65536
_MOST_RANKS = 65536  # of one node
_MOST_CHARS = 4096
_MOST_NS = 1 << 62
_MOST_COUNT = 1 << 31


@dataclass(frozen=True)
class Hello:
    """How a node introduces itself. `node` is None for one that takes the place that is free.

    Its texts are printable, whoever wrote them.
    """

    run: str
    node: int | None
    nnodes: int
    nproc: int
    host: str
    program: str  # what its ranks run, to find two commands that don't belong together
    torch: str
    token: str  # of this one process, so that a node which comes back is told from one that is still there

    def __post_init__(self) -> None:
        for name in ("run", "host", "program", "torch", "token"):
            object.__setattr__(self, name, printable(getattr(self, name)))

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
        texts = [word for word in words if isinstance(word, str) and len(word) <= _MOST_CHARS]
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
    def read(cls, fields: object, node: int, nnodes: int, address: str) -> Meeting:
        """The meeting for one of `nnodes` nodes; `address` stands in where node 0 named none. ValueError for none."""
        said = _mapping(fields)
        nprocs, hosts = said.get("nprocs"), said.get("hosts")
        if not isinstance(nprocs, list) or not isinstance(hosts, list) or not len(nprocs) == len(hosts) == nnodes:
            raise ValueError("nprocs, hosts")
        return cls(
            node=node,
            nprocs=tuple(_number(nproc, 1, _MOST_RANKS) for nproc in nprocs),
            hosts=tuple(read_text(host) for host in hosts),
            attempt=_number(said.get("attempt"), 0, _MOST_COUNT),
            restart=_number(said.get("restart"), 0, _MOST_COUNT),
            address=read_text(said.get("address")) or address,
            port=_number(said.get("port"), 1, 65535),
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
    def read(cls, fields: object) -> Decision:
        """The decision that node 0 sent, in one line; ValueError for none."""
        said = _mapping(fields)
        return cls(said.get("restart") is True, _number(said.get("exit_code"), 0, 255), read_text(said.get("line")))


@dataclass(frozen=True)
class Welcome:
    """Node 0's answer to a node that it takes in: its place, and which run folder node 0 holds."""

    node: int
    host: str
    run: str
    token: str
    folder: str

    @classmethod
    def read(cls, fields: object, nnodes: int) -> Welcome:
        """The welcome that node 0 sent; ValueError for none."""
        said = _mapping(fields)
        host, run, token, folder = (read_text(said.get(name)) for name in ("host", "run", "token", "folder"))
        return cls(_number(said.get("node"), 1, nnodes - 1), host, run, token, folder)


def read_report(fields: object, sent_ns: int) -> dict[str, Any] | None:
    """A node's report with all that a judge relies on and nothing else, sent at `sent_ns` here; None for no report.

    The single ends and stacks are checked by those who read them.
    """
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name), list) for name in ("ends", "stacks")):
        return None
    host, oom = fields.get("host"), fields.get("oom")
    return {
        "ends": fields["ends"],
        "stacks": fields["stacks"],
        "host": read_text(host) if isinstance(host, str) else "",
        "oom": read_text(oom) if isinstance(oom, str) else None,
        **{name: fields.get(name) is True for name in ("cooperating", "started", "parent_gone")},
        "now_ns": sent_ns,
        "sent_ns": sent_ns,
    }


def read_text(value: object) -> str:
    """A peer's text as one bearable line that moves no cursor; ValueError for what is no text."""
    if not isinstance(value, str):
        raise ValueError("no text")
    return printable("; ".join(value[:_MOST_CHARS].splitlines()))


def read_time(value: object) -> int | None:
    """A peer's monotonic clock; None if that is no time."""
    return value if is_number(value, 0, _MOST_NS) else None


def is_number(value: object, least: int, most: int) -> TypeGuard[int]:
    """Whether `value` is a whole number (and no bool) from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: object, least: int, most: int) -> int:
    if not is_number(value, least, most):
        raise ValueError("no such number")
    return value


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("no mapping")
    return value
