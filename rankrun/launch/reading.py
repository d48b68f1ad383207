"""The data lines of `plan`: what reading costs, in memory and in bytes, as the data package told it."""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass

_INDEX_SHARE = 0.0008  # of a meta file; what is smaller than 8 MiB is read when it is opened
_INDEXED_FROM_BYTES = 8 << 20
_LANES = 720  # of order=block
_SMALL_BYTES = 64 << 20
_MUCH_OF_MEMORY = 0.25


@dataclass(frozen=True)
class Cost:
    """Of one epoch for one rank: its rows, the bytes of its shard (0: it holds none), the bytes that it reads."""

    rows: int
    shard_bytes: int
    read_bytes: int


@dataclass(frozen=True)
class Facts:
    """What the data package tells of a source.

    told: how it reads the lines, in words. rows: estimated where not `exact`. size_bytes: of the lines. indexed: an
    index of them lies ready, or isn't wanted. costs: by order and read, "row shard" and its like; "block …" is there
    where the file is large enough for that order.
    """

    told: str
    rows: int
    exact: bool
    size_bytes: int
    indexed: bool
    costs: dict[str, Cost]

    @classmethod
    def of(cls, told: dict[str, object]) -> Facts:
        """From what the data package printed as JSON."""
        costs = told.pop("costs")
        assert isinstance(costs, dict)
        return cls(costs={name: Cost(*cost) for name, cost in costs.items()}, **told)  # type: ignore[arg-type]

    @property
    def named(self) -> bool:
        """Whether labels of a meta file are names, which its `told` says."""
        return ", labels are names" in self.told

    @property
    def counted(self) -> str:
        return f"{'' if self.exact else '~'}{self.rows:,}"


def describe_reading(facts: Facts, world_size: int, nproc: int, mode: str, order: str, read: str) -> list[str]:
    """The data lines of a plan: what the config asks for, what each way of reading costs, which is better, and why."""
    direct = mode == "indexed" or read == "direct"
    about = "" if facts.exact else "about "
    rows = facts.costs["row shard"].rows
    lines = [
        f"data             mode {mode}, order {order}" + (f", read {read}" if mode == "rank" else ""),
        f"                 {_MEANING[mode, 'direct' if direct else 'shard']}",
        f"rows per rank    {about}{rows:,} per epoch, of {facts.counted} in {size(facts.size_bytes)}",
        "",
        f"  {'':{_WIDTH}}{'memory':>10}{'memory':>13}{'read per rank':>15}",
        f"  {'':{_WIDTH}}{'per rank':>10}{'per machine':>13}{'and epoch':>15}",
    ]
    for name, cost in facts.costs.items():
        of_order, how = name.split()
        if how == "direct" and of_order != order:
            continue  # alike in both orders
        both = 2 * cost.shard_bytes
        label = f"rank, order {of_order}: two shards" if how == "shard" else "indexed, or rank with read direct"
        chosen = (how == "direct") == direct and of_order == order
        shared = size(_INDEX_SHARE * facts.size_bytes) if facts.size_bytes >= _INDEXED_FROM_BYTES else "none"
        held = (size(both), size(both * nproc)) if both else ("none", shared)
        lines.append(f"{'*' if chosen else ' '} {label:{_WIDTH}}{held[0]:>10}{held[1]:>13}{size(cost.read_bytes):>15}")
    lines += ["", *_wrapped("recommended", _better(facts, nproc))]
    if order == "block" and _LANES % world_size:
        lines += _wrapped(
            "lanes", f"{world_size} ranks don't divide the {_LANES} lanes of order block; a number that does reads 1/W"
        )
    if not facts.indexed:
        lines += _wrapped(
            "index",
            f"none yet: the first launch reads all {size(facts.size_bytes)} once, or `launch.py data index` does",
        )
    return lines


def _better(facts: Facts, nproc: int) -> str:
    held, memory = 2 * nproc * facts.costs["row shard"].shard_bytes, memory_bytes()
    if held > _MUCH_OF_MEMORY * memory:
        return f"mode indexed: shards would take {size(held)} of this machine's {size(memory)}"
    if facts.size_bytes < _SMALL_BYTES:
        return f"mode rank; at {size(facts.size_bytes)} indexed costs no more"
    return "mode rank: once its shard is read, an epoch asks the disk for images alone"


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, 79, initial_indent=f"{name:17}", subsequent_indent=" " * 17)


_WIDTH = 34
_MEANING = {
    ("rank", "shard"): "each rank holds only its own rows of an epoch",
    ("rank", "direct"): "each rank reads only its own rows, each when it is due",
    ("indexed", "direct"): "each rank reaches all rows, a sampler deals the positions",
}


def size(bytes_: float) -> str:
    """`812 bytes`, `7.2 KiB`, `115 MiB`, `2.1 GiB`."""
    amount, unit = float(bytes_), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1023.5:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 99.95 else f"{amount:.1f} {unit}"


def memory_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
