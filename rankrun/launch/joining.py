"""How the machines of a run find each other, from options and from the variables of a SLURM step; starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankrun.errors import OptionError, WorldError
from rankrun.launch.torchrun import MASTER_PORT
from rankrun.world import World

if TYPE_CHECKING:
    from rankrun.launch.options import RunOptions

_ALONE = "--nnodes 1 starts a run on this machine alone"


@dataclass(frozen=True)
class Joining:
    """One machine's part in it. With several machines there is an endpoint or a file to meet by, never both."""

    nnodes: int = 1
    node_rank: int | None = None  # None: by arrival
    endpoint: tuple[str, int] | None = None  # host and port of node 0
    is_host: bool | None = None  # whether this machine is the endpoint's; None: found out
    meet_by_file: Path | None = None  # where node 0 says at which endpoint it is
    store_port: int | None = None  # on one machine: the port that was asked for the ranks' store
    join_timeout_s: float = 600.0
    read_timeout_s: float | None = None  # for one operation of the ranks' store
    local_addr: str | None = None


def joining(options: RunOptions, env: Mapping[str, str], runs: Path) -> Joining:
    """What the options and the environment say. OptionError for what contradicts itself or can never meet."""
    endpoint = _endpoint(options)
    step = _step(env) if _asks_slurm(options) else None
    nnodes = options.nnodes or (step.nodes if step is not None else 1)
    if step is not None and step.nodes != nnodes:
        step = None  # a part of the step, or something else: joined by hand
    if step is not None and step.world_size != step.nodes:
        raise OptionError(
            f"{step.world_size} tasks of this SLURM step run launch.py on {step.nodes} "
            f"node{'' if step.nodes == 1 else 's'}, and one a node starts its ranks: use srun --ntasks-per-node=1; "
            + _ALONE
        )
    if options.standalone and nnodes > 1:
        raise OptionError(f"--standalone and --nnodes {nnodes} contradict each other; leave --standalone out")
    node_rank = options.node_rank
    if node_rank is not None and node_rank >= nnodes:
        raise OptionError(f"--node-rank {node_rank}: with --nnodes {nnodes} it is at most {nnodes - 1}")
    is_host = options.rdzv_conf.get("is_host")
    if is_host is not None and node_rank is not None and is_host != (node_rank == 0):
        raise OptionError(
            f"--rdzv-conf is_host={str(is_host).lower()} and --node-rank {node_rank} contradict each other: the "
            "endpoint is node 0's"
        )
    limits = {
        "join_timeout_s": options.rdzv_conf.get("join_timeout", options.rdzv_conf.get("timeout", 600.0)),
        "read_timeout_s": options.rdzv_conf.get("read_timeout"),
    }
    if nnodes == 1:
        return Joining(store_port=options.master_port or None, local_addr=options.local_addr, **limits)
    by_file = None
    if step is not None and step.nodes > 1 and node_rank is None:
        node_rank = step.node_rank
    if endpoint is None:
        if step is None:
            raise OptionError(
                f"--nnodes {nnodes} needs a place to meet: give --rdzv-endpoint HOST[:PORT], a host and a port of the "
                "first machine, the same on all of them"
            )
        by_file = runs / ".rendezvous" / f"{step.job}.json"
    elif endpoint[1] == 0:
        raise OptionError("port 0 is one that is free, and the other machines could not know it; give a port")
    return Joining(nnodes, node_rank, endpoint, is_host, by_file, None, local_addr=options.local_addr, **limits)


def _endpoint(options: RunOptions) -> tuple[str, int] | None:
    """The one endpoint of torchrun's two ways to give it."""
    by_hand = options.rdzv_endpoint
    port = options.master_port if options.master_port is not None else MASTER_PORT
    master = (options.master_addr, port) if options.master_addr is not None else None
    if by_hand is not None and master is not None and by_hand != master:
        raise OptionError(
            f"--rdzv-endpoint {by_hand[0]}:{by_hand[1]} and --master-addr {master[0]} (port {master[1]}) are two "
            "places to meet; give one of them"
        )
    if by_hand is not None and options.master_port not in (None, by_hand[1]):
        raise OptionError(
            f"--rdzv-endpoint {by_hand[0]}:{by_hand[1]} and --master-port {options.master_port} are two ports to meet "
            "at; give one of them"
        )
    return by_hand or master


def _asks_slurm(options: RunOptions) -> bool:
    return options.nnodes != 1 and not options.standalone


def _step(env: Mapping[str, str]) -> World | None:
    """This process's place in the SLURM step it is a task of; None outside of one. WorldError for half of it."""
    try:
        world = World.from_env({name: value for name, value in env.items() if name.startswith("SLURM_")})
    except WorldError as error:
        raise WorldError(f"{error}. {_ALONE}") from None
    return world if world.launcher == "srun" else None
