"""What of the ranks' output the terminal shows, and how: torchrun's words for it, as pure answers.

The run folder's logs hold everything in any case; nothing here decides what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Template
from typing import Literal

Streams = Literal["none", "stdout", "stderr", "both"]

# torchrun's numbers for --redirects and --tee; "both" is stdout + stderr.
STREAMS: tuple[Streams, ...] = ("none", "stdout", "stderr", "both")
MACROS = ("role_name", "local_rank", "rank", "hostname")


@dataclass(frozen=True)
class Choice:
    """A number of STREAMS for every local rank: one for all, or one each with 0 for ranks that are not named."""

    all: int = 0
    each: Mapping[int, int] = field(default_factory=dict)

    def of(self, local_rank: int) -> int:
        """The number for one rank."""
        return self.each.get(local_rank, 0) if self.each else self.all


@dataclass(frozen=True)
class Terminal:
    """The terminal of one node. `attach` is the rank that keeps stdin and is shown plain."""

    attach: int = 0
    attached: bool = False  # --attach was given
    template: str | None = None  # of the prefix before each line, with ${rank} and its like
    local_ranks: frozenset[int] | None = None  # only these are shown; None: all
    redirects: Choice = Choice()
    tee: Choice = Choice()
    one_speaks: bool = False  # a config's train.py: rank 0 speaks for all, unless the options ask for more

    def streams(self, local_rank: int) -> Streams:
        """What of this local rank torchrun's options let the terminal show: a redirected stream only if it is tee'd."""
        if self.local_ranks is not None and local_rank not in self.local_ranks:
            return "none"
        return STREAMS[(3 & ~self.redirects.of(local_rank)) | self.tee.of(local_rank)]

    def shown(self, rank: int, local_rank: int) -> Streams:
        """What of this rank the terminal shows, all told: `streams`, where the rank has anything to say."""
        return "none" if self.one_speaks and rank not in (0, self.attach) else self.streams(local_rank)

    def splits(self, local_rank: int) -> bool:
        """Whether stdout and stderr must go to two files, because only one of them is shown."""
        return self.streams(local_rank) in ("stdout", "stderr")

    def prefix(self, role: str, rank: int, local_rank: int, host: str) -> str | None:
        """What stands before every line of this rank; None: it is shown plain."""
        if rank == self.attach and (self.attached or self.template is None):
            return None
        if self.template is None:
            return f"[{rank}] "
        values = {"role_name": role, "local_rank": local_rank, "rank": rank, "hostname": host}
        return Template(self.template).safe_substitute(values)
