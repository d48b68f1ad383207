"""The ranks of a run as one group: up when all have arrived, down again on every way out."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # torch.distributed's, with their types
from torch.distributed.rendezvous import rendezvous as torch_rendezvous

from rankrun.errors import ExitCode, RankrunError, SetupError, format_error, is_told, told_by
from rankrun.training.rendezvous import published_store
from rankrun.world import World

T = TypeVar("T")

SETUP_LIMIT_S = 600.0
# How long a take-down may last. After an error it is short: the launcher and the peers learn of the error only when
# this process is gone, and gloo's own take-down waits for peers that will never answer.
_DOWN_LIMIT_S = 30.0
_DOWN_AFTER_ERROR_LIMIT_S = 0.5


class PeerError(RankrunError):
    """Another rank failed; that one speaks. `code` and `exit_code` are those of its error."""

    def __init__(self, message: str, code: str = "E100", exit_code: int = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code


class Group:
    """What the ranks do together, apart from DDP's gradients. Everything here travels on the CPU, as tensors of
    numbers or as JSON (nothing that a peer sends is ever unpickled), and a group of one talks to nobody.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in order of rank, on every rank. JSON carries it: tuples come back as lists."""
        text = json.dumps(value).encode()
        if self.world_size == 1:
            return [json.loads(text)]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(text)]))
        width = int(max(sizes).item())
        mine = torch.zeros(width, dtype=torch.uint8)
        mine[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        theirs = [torch.zeros(width, dtype=torch.uint8) for _ in range(self.world_size)]
        dist.all_gather(theirs, mine)
        return [json.loads(bytes(raw[: int(size)].numpy()).decode()) for raw, size in zip(theirs, sizes, strict=True)]

    def total(self, values: Tensor) -> Tensor:
        """The sum of all ranks' `values` (a CPU tensor, changed in place), on every rank."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def start_max(self, value: int) -> Callable[[], int]:
        """Starts to find the largest of all ranks' `value`; calling the result waits for it and returns it."""
        largest = torch.tensor([value])
        if self.world_size == 1:
            return lambda: value
        work = dist.all_reduce(largest, op=dist.ReduceOp.MAX, async_op=True)

        def finish() -> int:
            if work is not None:
                work.wait()
            return int(largest.item())

        return finish

    def together(self, act: Callable[[], T]) -> T:
        """What `act` returns on this rank, once it has succeeded on all; else an error on all, told by one.

        The lowest rank that failed raises its own error. The others raise a PeerError, so that none of them waits in
        a collective for a rank that will never come.
        """
        error: Exception | None = None
        result: T | None = None
        try:
            result = act()
        except Exception as problem:
            error = problem
        report = None
        if error is not None:
            told = is_told(error)
            report = {
                "text": format_error(error),
                "code": getattr(error, "code", "E100") if told else "E100",
                "exit_code": int(getattr(error, "exit_code", 1)) if told else int(ExitCode.FAILED),
            }
        reports = self.gather(report)
        failed = [rank for rank, each in enumerate(reports) if each is not None]
        if not failed:
            return result  # type: ignore[return-value]  # None only where T allows it
        first = failed[0]
        if error is not None and first == self.rank:
            if is_told(error):
                error.told_by = first  # type: ignore[attr-defined]
            raise error
        peer = PeerError(
            f"stopped because rank {first} failed: {reports[first]['text']}",
            str(reports[first]["code"]),
            int(reports[first]["exit_code"]),
        )
        peer.told_by = first
        raise peer

    def zero_first(self, act: Callable[[], T]) -> T:
        """`together`, with rank 0 before the others: what it leaves on the disk, such as an index, they find."""
        if self.rank == 0:
            result = self.together(act)
            self.together(lambda: None)
            return result
        self.together(lambda: None)
        return self.together(act)

    def on_rank_zero(self, act: Callable[[], Any]) -> Any:
        """Rank 0 alone does `act`; all get its result (builtins, by JSON), or all raise its error, told by rank 0."""
        result = self.together(lambda: act() if self.rank == 0 else None)
        return self.gather(result)[0]


@contextmanager
def process_group(
    world: World, device: torch.device, *, rendezvous: Path, limit_s: float = SETUP_LIMIT_S
) -> Iterator[Group]:
    """The group of `world`'s ranks: gloo for CPU tensors, nccl beside it where `device` is a GPU.

    Ranks find each other at MASTER_ADDR:MASTER_PORT, or at torchrun's own store, or, under srun without those two,
    at a store that rank 0 opens on a free port and publishes in the folder `rendezvous`, which all nodes share.
    SetupError after `limit_s`, naming the ranks that did not arrive.

    On the way out all ranks wait for each other and take the group down. On the way out with an error nobody waits:
    gloo's take-down can block for as long as a peer lives, so it gets half a second in a thread of its own.
    """
    if world.world_size == 1:
        yield Group(0, 1)
        return
    limit = timedelta(seconds=limit_s)
    with open_store(world, rendezvous, limit_s) as store:
        _wait_for_all(store, world, limit)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=PrefixStore("rankrun/group", store), rank=world.rank, world_size=world.world_size
        )
        group = Group(world.rank, world.world_size)
        try:
            yield group
            group.total(torch.zeros(1))  # the last to arrive here closes: no store vanishes under a peer
        except BaseException as error:
            if is_told(error) and told_by(error) is None:
                error.told_by = world.rank  # type: ignore[attr-defined]
            with suppress(Exception):  # without memory or open files the way out fails as well, and must not hide why
                take_down(_DOWN_AFTER_ERROR_LIMIT_S)
            raise
        if not take_down(_DOWN_LIMIT_S):
            raise SetupError(f"the process group of rank {world.rank} did not go down within {_DOWN_LIMIT_S:.0f} s")


def take_down(limit_s: float) -> bool:
    """True if the group is gone; False if its take-down still blocks (in a daemon thread) after `limit_s`."""
    thread = threading.Thread(target=dist.destroy_process_group, daemon=True)
    thread.start()
    thread.join(limit_s)
    return not thread.is_alive()


@contextmanager
def open_store(world: World, rendezvous: Path, limit_s: float) -> Iterator[Store]:
    """The store at which the ranks of `world` find each other, fresh for every attempt; SetupError after `limit_s`."""
    if world.launcher == "srun" and world.master_addr is None:
        with published_store(world, rendezvous, limit_s) as store:
            yield store
    else:
        # torchrun gives restarted ranks the store of those that died, in which their addresses still stand.
        yield PrefixStore(f"attempt-{world.restart}", _known_store(world, timedelta(seconds=limit_s)))


def _known_store(world: World, limit: timedelta) -> Store:
    try:
        if world.launcher == "srun":
            assert world.master_addr is not None
            assert world.master_port is not None
            host, port = world.master_addr, world.master_port
            return TCPStore(host, port, None, world.rank == 0, limit, wait_for_workers=False)
        # torch's own way, because it knows whether the agent already holds the store (torchrun's does).
        store: Store = next(torch_rendezvous("env://", world.rank, world.world_size, timeout=limit))[0]
        return store
    except dist.DistError as error:
        place = f"{world.master_addr}:{world.master_port}"
        problem = SetupError(f"rank {world.rank} found no store at {place}: {str(error).splitlines()[0]}")
        problem.told_by = world.rank
        raise problem from error


def _wait_for_all(store: Store, world: World, limit: timedelta) -> None:
    """Returns once every rank has said that it is here. Rank 0 counts, so that W ranks ask W and not W² questions."""
    keys = [f"rankrun/here/{rank}" for rank in range(world.world_size)]
    store.set(keys[world.rank], socket.gethostname())
    try:
        if world.rank == 0:
            store.wait(keys, limit)
            store.set("rankrun/all", "here")
        else:
            store.wait(["rankrun/all"], limit)
    except dist.DistStoreError as error:
        missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
        names = ", ".join(missing[:20]) + (" …" if len(missing) > 20 else "")
        problem = SetupError(
            f"{len(missing)} of {world.world_size} ranks did not arrive within {limit.total_seconds():.0f} s: {names}"
        )
        problem.told_by = 0
        raise problem from error
