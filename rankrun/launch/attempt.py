"""One start of all ranks on this node: its folder, the memory its ranks beat in, and what each rank is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rankrun.errors import MachineError
from rankrun.launch.nodes.messages import Meeting
from rankrun.launch.plan import RunPlan
from rankrun.launch.stacks import StacksFile
from rankrun.launch.warm import RankStart
from rankrun.launch.workers import BeatMap
from rankrun.runfolder import RunFolder


@dataclass
class Attempt:
    """This node's part of one attempt. Ranks are local here; `first_rank` leads to the global ones."""

    plan: RunPlan
    meeting: Meeting
    run: RunFolder
    env: Mapping[str, str]  # this agent's own
    network: dict[str, str]  # more of the ranks' environment
    beats: dict[int, BeatMap] = field(default_factory=dict)
    stacks: dict[int, StacksFile] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The same on all nodes."""
        return self.meeting.attempt

    @property
    def folder(self) -> Path:
        """attempts/NNNN."""
        return self.run.attempt(self.number)

    def rank(self, local_rank: int) -> int:
        """The global rank."""
        return self.meeting.first_rank + local_rank

    def log_file(self, local_rank: int) -> Path:
        """Both streams of a rank, or stdout where they are apart."""
        return self.run.log_file(self.number, self.rank(local_rank))

    def error_log(self, local_rank: int) -> Path | None:
        """Where stderr goes if the terminal shows one stream only."""
        return self.log_file(local_rank).with_suffix(".err") if self.plan.terminal.splits(local_rank) else None

    def error_file(self, local_rank: int) -> Path:
        """Where a rank says what ended it."""
        return self.folder / "errors" / f"rank-{self.rank(local_rank):05d}.json"

    def prepare(self) -> list[RankStart]:
        """Make the folders (other nodes may have, or may see none of ours) and say how each rank begins."""
        for folder in (self.folder / "logs", self.folder / "stacks", self.folder / "errors"):
            folder.mkdir(parents=True, exist_ok=True)
        return [self._start(local_rank) for local_rank in range(self.plan.nproc)]

    def _start(self, local_rank: int) -> RankStart:
        plan, rank = self.plan, self.rank(local_rank)
        beat = self.beats[local_rank] = BeatMap(self.folder, rank)
        stacks = self.stacks[local_rank] = StacksFile(self.folder, rank)
        environment = {
            "TORCHELASTIC_ERROR_FILE": str(self.error_file(local_rank).absolute()),
            "RANKRUN_RUN_DIR": str(self.run.path.absolute()),
            "RANKRUN_ATTEMPT": str(self.number),
            "RANKRUN_BEAT": beat.path,
        }
        environment |= torchrun_environment(plan, self.meeting, local_rank, self.env) | self.network
        error_log = self.error_log(local_rank)
        return RankStart(
            local_rank,
            environment if plan.dist_env else {},
            str(self.log_file(local_rank)),
            keeps_stdin=rank == plan.terminal.attach,
            holds_notices=plan.settings is not None,
            error_log=str(error_log) if error_log is not None else None,
            stacks=stacks.path,
            strips=not plan.dist_env,
            tracer=os.getpid(),
        )

    def close(self) -> None:
        """Give the ranks' memory back; their last words in it are gone then."""
        for beat in self.beats.values():
            beat.close()
        for file in self.stacks.values():
            file.close()
        self.beats.clear()
        self.stacks.clear()


def torchrun_environment(plan: RunPlan, meeting: Meeting, local_rank: int, env: Mapping[str, str]) -> dict[str, str]:
    """What torchrun sets for this rank, with its values; tests compare them with a real torchrun's."""
    rank, world_size = meeting.first_rank + local_rank, meeting.world_size
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(plan.nproc),
        "GROUP_RANK": str(meeting.node),
        "GROUP_WORLD_SIZE": str(meeting.nnodes),
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(world_size),
        "ROLE_NAME": plan.role,
        "MASTER_ADDR": meeting.address,
        "MASTER_PORT": str(meeting.port),
        "TORCHELASTIC_RESTART_COUNT": str(meeting.restart),
        "TORCHELASTIC_MAX_RESTARTS": str(plan.max_restarts),
        "TORCHELASTIC_RUN_ID": plan.run_id,
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # every attempt has one, on node 0
        "TORCHELASTIC_SIGNALS_TO_HANDLE": ",".join(plan.signals),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": env.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
    }
    if plan.virtual_local_rank:
        environment["LOCAL_RANK"] = "0"
        environment["CUDA_VISIBLE_DEVICES"] = _own_gpu(env.get("CUDA_VISIBLE_DEVICES"), local_rank)
    return environment


def _own_gpu(shown: str | None, local_rank: int) -> str:
    if shown is None:
        return str(local_rank)
    gpus = [gpu.strip() for gpu in shown.split(",")]
    if local_rank >= len(gpus):
        raise MachineError(f"--virtual-local-rank: no GPU for local rank {local_rank}; CUDA_VISIBLE_DEVICES={shown}")
    return gpus[local_rank]
