"""What a launch on this node consists of, once its processes stand: handed on as one thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rankrun.launch.keeper import Keeper
from rankrun.launch.nodes.place import Place
from rankrun.launch.plan import RunPlan
from rankrun.launch.screen import Screen
from rankrun.launch.workers import Workers
from rankrun.runfolder import Claim, RunFolder


@dataclass(frozen=True)
class Launch:
    """This node's part. `claimed` and `keeper` are node 0's: one node holds the run folder for all."""

    plan: RunPlan
    env: Mapping[str, str]  # this agent's own
    run: RunFolder
    claimed: Claim | None
    place: Place | None  # None where there is one node
    workers: Workers
    screen: Screen
    keeper: Keeper | None
