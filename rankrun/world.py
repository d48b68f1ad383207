"""Which rank of how many this process is, read once from an environment mapping into a frozen value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from rankrun.errors import WorldError

__all__ = ["World"]

_TORCHRUN: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_MASTER: Final = ("MASTER_ADDR", "MASTER_PORT")

# Step ids from here on are SLURM's own shells (batch 0xfffffffb, interactive 0xfffffffa, extern 0xfffffffc …): no
# task of a parallel step runs there, so a process in one of them is single.
_SPECIAL_STEP: Final = 0xFFFFFFF0

_INT: Final = re.compile(r"[0-9]{1,10}\Z", re.ASCII)
_TASKS: Final = re.compile(r"([1-9][0-9]{0,6})(?:\(x([1-9][0-9]{0,6})\))?\Z", re.ASCII)


@dataclass(frozen=True)
class World:
    """One process's place among all of a run's.

    `restart` counts the restarts of this launch (torchrun) or of this job (srun). `master_addr` and `master_port` are
    both set or both None; None under srun means that rank 0 has to publish a store itself. `job` names one start of
    one step, `<job id>.<step id>.<restart count>`, under srun only. `note` is a line worth saying, or None.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    nodes: int
    launcher: Literal["torchrun", "srun", "single"]
    master_addr: str | None = None
    master_port: int | None = None
    restart: int = 0
    job: str | None = None
    note: str | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> World:
        """The world that `env` describes: torchrun's variables, else those of a SLURM step, else a single process.

        WorldError names what is missing from a half-set family, what is not a number, and what contradicts. An empty
        value counts as not set.
        """
        env = {name: value for name, value in env.items() if value.strip()}
        if any(name in env for name in _TORCHRUN):
            return _from_torchrun(env)
        master_addr, master_port = _master(env)
        if _in_step(env):
            return _from_srun(env, master_addr, master_port)
        return cls(0, 1, 0, 1, 0, 1, "single", master_addr, master_port)


def _from_torchrun(env: Mapping[str, str]) -> World:
    _need(env, (*_TORCHRUN, *_MASTER))
    rank, world_size = _number(env, "RANK"), _number(env, "WORLD_SIZE", least=1)
    local_rank, local_world_size = _number(env, "LOCAL_RANK"), _number(env, "LOCAL_WORLD_SIZE", least=1)
    if local_world_size > world_size:
        raise WorldError(f"LOCAL_WORLD_SIZE={local_world_size} is more than WORLD_SIZE={world_size}")
    if "GROUP_RANK" in env or "GROUP_WORLD_SIZE" in env:
        _need(env, ("GROUP_RANK", "GROUP_WORLD_SIZE"))
        node_rank, nodes = _number(env, "GROUP_RANK"), _number(env, "GROUP_WORLD_SIZE", least=1)
    elif local_world_size == world_size:
        node_rank, nodes = 0, 1  # all ranks are on this node: what the missing pair would say is certain
    else:
        raise WorldError(
            f"WORLD_SIZE={world_size} and LOCAL_WORLD_SIZE={local_world_size} mean several nodes, but GROUP_RANK and "
            "GROUP_WORLD_SIZE are not set. Set them to this node's rank and the number of nodes"
        )
    _below(("RANK", rank), ("WORLD_SIZE", world_size))
    _below(("LOCAL_RANK", local_rank), ("LOCAL_WORLD_SIZE", local_world_size))
    _below(("GROUP_RANK", node_rank), ("GROUP_WORLD_SIZE", nodes))
    if nodes > world_size or (nodes == 1 and local_world_size != world_size):
        raise WorldError(
            f"GROUP_WORLD_SIZE={nodes} nodes and LOCAL_WORLD_SIZE={local_world_size} contradict WORLD_SIZE={world_size}"
        )
    if nodes == 1 and rank != local_rank:
        raise WorldError(f"RANK={rank} and LOCAL_RANK={local_rank} differ, although there is one node")
    master_addr, master_port = _master(env)
    restart = _number(env, "TORCHELASTIC_RESTART_COUNT") if "TORCHELASTIC_RESTART_COUNT" in env else 0
    note = None
    if "SLURM_PROCID" in env:
        note = (
            f"RANK={rank} and WORLD_SIZE={world_size} are used; SLURM_PROCID={env['SLURM_PROCID'][:20]!r} and SLURM's "
            "other variables are ignored, since a launcher between SLURM and this process has set the former"
        )
    return World(
        rank, world_size, local_rank, local_world_size, node_rank, nodes, "torchrun",
        master_addr, master_port, restart, None, note,
    )  # fmt: skip


def _in_step(env: Mapping[str, str]) -> bool:
    """True for a task of a SLURM step; False outside SLURM and in a batch or interactive shell.

    In those shells SLURM_PROCID is 0 and describes the job, and SLURM_NTASKS is what was asked for, so neither says
    that this process has peers. Only a step has SLURM_STEP_ID.
    """
    return "SLURM_STEP_ID" in env and _number(env, "SLURM_STEP_ID") < _SPECIAL_STEP


def _from_srun(env: Mapping[str, str], master_addr: str | None, master_port: int | None) -> World:
    # The SLURM_STEP_… twin comes first: its plain one may still describe the job that the step is a part of.
    tasks = _first(env, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    nodes_name = _first(env, "SLURM_STEP_NUM_NODES", "SLURM_NNODES")
    per_node = _first(env, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    _need(env, ("SLURM_JOB_ID", "SLURM_PROCID", tasks, "SLURM_LOCALID", "SLURM_NODEID", nodes_name))
    rank, world_size = _number(env, "SLURM_PROCID"), _number(env, tasks, least=1)
    local_rank, node_rank = _number(env, "SLURM_LOCALID"), _number(env, "SLURM_NODEID")
    nodes = _number(env, nodes_name, least=1)
    _below(("SLURM_PROCID", rank), (tasks, world_size))
    _below(("SLURM_NODEID", node_rank), (nodes_name, nodes))
    if "SLURM_JOB_NUM_NODES" in env and nodes > _number(env, "SLURM_JOB_NUM_NODES", least=1):
        # A job that was submitted from inside another one's step inherits what describes that step.
        raise WorldError(
            f"{nodes_name}={nodes} is more than SLURM_JOB_NUM_NODES={env['SLURM_JOB_NUM_NODES']}, so SLURM_STEP_… are "
            "another job's. Start with srun, or submit with --export=NONE"
        )
    if per_node in env:
        counts = _tasks_per_node(per_node, env[per_node], nodes)
        if len(counts) != nodes or sum(counts) != world_size:
            raise WorldError(
                f"{per_node}={env[per_node]!r} means {sum(counts)} tasks on {len(counts)} nodes, but {tasks}="
                f"{world_size} and {nodes_name}={nodes}. Were variables of another job exported into this one?"
            )
        local_world_size = counts[node_rank]
    elif nodes == 1:
        local_world_size = world_size
    else:
        raise WorldError(
            f"SLURM_STEP_TASKS_PER_NODE is not set, so the number of tasks on each of {nodes} nodes is unknown. Start "
            "with srun, which sets it, or set it, e.g. to 4(x2) for 4 tasks on each of 2 nodes"
        )
    _below(("SLURM_LOCALID", local_rank), (f"the tasks of node {node_rank} in {per_node}", local_world_size))
    restart = _number(env, "SLURM_RESTART_COUNT") if "SLURM_RESTART_COUNT" in env else 0
    job = f"{_number(env, 'SLURM_JOB_ID')}.{_number(env, 'SLURM_STEP_ID')}.{restart}"
    return World(
        rank, world_size, local_rank, local_world_size, node_rank, nodes, "srun",
        master_addr, master_port, restart, job,
    )  # fmt: skip


def _tasks_per_node(name: str, text: str, nodes: int) -> list[int]:
    """Tasks of each node in order: `2(x3),1` is [2, 2, 2, 1]. No longer than needed to see that it is wrong."""
    counts: list[int] = []
    for part in text.split(","):
        match = _TASKS.match(part.strip())
        if match is None:
            raise WorldError(f"{name}={text[:60]!r} is not a list of task counts like 4(x2) or 2(x3),1")
        # A count may claim millions of nodes; what is past `nodes` only has to be seen to be too much.
        counts += [int(match[1])] * min(int(match[2] or 1), nodes + 1)
        if len(counts) > nodes:
            break
    return counts


def _master(env: Mapping[str, str]) -> tuple[str | None, int | None]:
    if "MASTER_ADDR" not in env and "MASTER_PORT" not in env:
        return None, None
    _need(env, _MASTER)
    address = env["MASTER_ADDR"].strip()
    if any(c.isspace() or not c.isprintable() for c in address):
        raise WorldError(f"MASTER_ADDR={env['MASTER_ADDR'][:60]!r} is not a host name or address")
    return address, _number(env, "MASTER_PORT", least=1, most=65535)


def _first(env: Mapping[str, str], preferred: str, other: str) -> str:
    """The name of the two that is set, `preferred` if both or `other` if none (it is the one that people know)."""
    return preferred if preferred in env else other


def _need(env: Mapping[str, str], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in env]
    if missing:
        present = [f"{name}={env[name][:60]!r}" for name in names if name in env]
        hint = "start with srun, which sets all of them" if names[0].startswith("SLURM") else ""
        if not hint:
            hint = "set all of them (torchrun and launch.py do), or unset the rest to run a single process"
            if "SLURM_STEP_ID" in env:
                hint = "unset the rest (under srun SLURM's own variables are enough), or set all of them"
            elif names == _MASTER:
                hint = "set both, or none"
        found = f" although {', '.join(present)} {'is' if len(present) == 1 else 'are'}" if present else ""
        verb = "is" if len(missing) == 1 else "are"
        raise WorldError(f"{', '.join(missing)} {verb} not set{found}: {hint}")


def _number(env: Mapping[str, str], name: str, *, least: int = 0, most: int = 2**32 - 1) -> int:
    text = env[name].strip()
    # int() would also take "1_0", "+1" and digits of other scripts; a launcher never writes those.
    if not _INT.match(text) or not least <= int(text) <= most:
        raise WorldError(f"{name}={env[name][:60]!r} is not a whole number from {least} to {most}")
    return int(text)


def _below(part: tuple[str, int], whole: tuple[str, int]) -> None:
    if part[1] >= whole[1]:
        raise WorldError(f"{part[0]}={part[1]} is not below {whole[0]}={whole[1]}; ranks are counted from 0")
