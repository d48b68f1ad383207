"""Can these nodes train together? Every rank joins, and every check that fails names its node.

    python launch.py run --nproc 2 -m rankrun.training.preflight          (or under torchrun, or srun)

    preflight: 6 ranks on 3 nodes (nodea, nodeb, nodec)
    ✓ join        all after 0.1 s
    ✓ devices     no GPU in use: gloo on the CPU
    ✓ clock       nodeb +0.1 ms, nodec -0.0 ms from nodea
    ✗ run folder  nodec: /scratch/runs/a: No such file or directory
    ✓ network     every node reaches every other
    · sum         not tried, after what failed
    · bandwidth   not tried, after what failed

Exit code 0, or 1 with an error that names the nodes; ! is worth knowing and no failure. What ranks tell each other
travels through the store as JSON, so that a node whose collectives would hang can still be named.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store  # torch.distributed's own, with their types

from rankrun.errors import SetupError
from rankrun.training.findings import (
    Finding,
    Nodes,
    in_brief,
    judge_clock,
    judge_devices,
    judge_folder,
    judge_network,
    judge_reports,
    judge_speed,
    judge_sum,
)
from rankrun.training.process_group import open_store, take_down
from rankrun.training.reach import answering, gloo_address, unreachable
from rankrun.training.reporting import report_errors
from rankrun.world import World

_SOON_S = 5.0  # the same where nothing hangs on it
LIMIT_S = 60.0  # what NFS may take to show a file of another node
_PINGS = 10
_ROUNDS = 3
_POLL_S = 0.1
_DOWN_LIMIT_S = 5.0
_LONGEST_S = 86_400.0


class Preflight:
    """The checks of one rank, in an order in which all ranks do them. `problems` fills on rank 0."""

    def __init__(self, world: World, store: Store, environ: Mapping[str, str], options: argparse.Namespace) -> None:
        self.problems: list[str] = []
        self._world = world
        self._store = PrefixStore("preflight", store)
        self._limit = timedelta(seconds=options.limit)
        self._must_share: bool = options.shared
        self._environ = environ
        self._options = options
        self._nodes = Nodes({}, {}, [])  # known to rank 0, after the join
        self._silent: set[int] = set()
        self._cuda = False
        self._device = torch.device("cpu")
        self._stack = ExitStack()

    def run(self) -> None:
        """All checks, each reported by rank 0 as it ends."""
        with self._stack:
            self._check("join", self._introduce, self._judge_join)
            self._check("devices", self._gpus, self._judge_devices)
            self._check("clock", self._compare_clocks, judge_clock, leaders=True)
            judge = partial(judge_folder, must_share=self._must_share)
            self._check("run folder", self._share_folder, judge, leaders=True)
            self._check("network", self._reach_others, judge_network, leaders=True)
            # A collective hangs where the network does, and says less about it.
            self._check("sum", self._sum, judge_sum, only_if_right=True)
            self._check("bandwidth", self._measure, judge_speed, only_if_right=True)
            self._part()

    # the frame of every check ------------------------------------------------------------------------------------

    def _check(
        self,
        name: str,
        act: Callable[[], Any],
        judge: Callable[[Nodes, dict[int, Any]], Finding],
        *,
        leaders: bool = False,
        only_if_right: bool = False,
    ) -> None:
        """Every rank acts (or the first of every node), then rank 0 judges what they found and says it."""
        if self._world.rank == 0:
            go = not self._silent and not (only_if_right and self.problems)
            self._store.set(f"go/{name}", json.dumps({"go": go, "cuda": self._cuda}))
        order = self._hear(f"go/{name}", 4)
        self._take_device(order["cuda"])
        if order["go"] and (self._world.local_rank == 0 or not leaders):
            try:
                report = {"fact": act()}
            except (OSError, RuntimeError, SetupError) as error:
                report = {"problem": _in_words(error)}
            self._store.set(f"{name}/{self._world.rank}", json.dumps(report))
        if self._world.rank == 0:
            finding = self._judge(name, judge, leaders) if order["go"] else Finding("·", "not tried, after what failed")
            print(f"{finding.mark} {name:11} {finding.words}", flush=True)
            if finding.mark == "✗":
                self.problems.append(f"{name}: {finding.words}")

    def _judge(self, name: str, judge: Callable[[Nodes, dict[int, Any]], Finding], leaders: bool) -> Finding:
        ranks = self._nodes.leaders if leaders else list(range(self._world.world_size))
        reports = self._collect(name, ranks)
        facts = {rank: report["fact"] for rank, report in reports.items() if "fact" in report}
        if not self._nodes.names:
            self._nodes = Nodes.of(facts, self._world.world_size, self._world.local_world_size)
        self._silent = set(ranks) - set(reports)
        failed = judge_reports(self._nodes, reports, ranks, self._limit.total_seconds())
        return failed or judge(self._nodes, facts)

    def _collect(self, name: str, ranks: list[int]) -> dict[int, dict[str, Any]]:
        """The reports of the ranks that give one before the limit."""
        keys = {rank: f"{name}/{rank}" for rank in ranks}
        try:
            self._store.wait(list(keys.values()), self._limit)
        except dist.DistError:
            keys = {rank: key for rank, key in keys.items() if self._store.check([key])}
        return {rank: json.loads(self._store.get(key)) for rank, key in keys.items()}

    def _hear(self, key: str, limits: int = 1) -> Any:
        """What another rank writes under `key`; SetupError after so many limits."""
        try:
            self._store.wait([key], limits * self._limit)
            return json.loads(self._store.get(key))
        except dist.DistError as error:
            waited_s = limits * self._limit.total_seconds()
            raise SetupError(f"rank {self._world.rank} heard nothing of {key!r} within {waited_s:g} s") from error

    def _part(self) -> None:
        """Take the group down at the same time, and leave after all have heard all: rank 0 may hold the store."""
        if self._world.rank == 0:
            self._store.set("part", "{}")
        self._hear("part", 4)
        if dist.is_initialized():
            take_down(_DOWN_LIMIT_S)
        self._store.set(f"over/{self._world.rank}", "{}")
        if self._world.rank == 0:
            self._collect("over", sorted(set(range(self._world.world_size)) - self._silent))

    def _take_device(self, cuda: bool) -> None:
        if cuda and self._device.type == "cpu":
            index = 0 if torch.cuda.device_count() == 1 else self._world.local_rank
            self._device = torch.device("cuda", index)
            torch.cuda.set_device(self._device)

    # the checks --------------------------------------------------------------------------------------------------

    def _introduce(self) -> dict[str, Any]:
        self._began = time.monotonic()
        return {"host": os.uname().nodename, "node": self._world.node_rank, "leads": self._world.local_rank == 0}

    def _judge_join(self, nodes: Nodes, facts: dict[int, Any]) -> Finding:
        ranks = "1 rank" if len(facts) == 1 else f"{len(facts)} ranks"
        many = f"{len(nodes.names)} nodes ({in_brief(nodes.names.values())})"
        print(f"preflight: {ranks} on {many if len(nodes.names) > 1 else nodes.names[0]}")
        return Finding("✓", f"all after {time.monotonic() - self._began:.1f} s")

    def _gpus(self) -> dict[str, Any]:
        seen = torch.cuda.device_count() if self._options.device == "auto" and torch.cuda.is_available() else 0
        one_each = self._world.launcher == "srun" and seen == 1  # SLURM has shown every task its own
        return {"gpus": self._world.local_world_size if one_each else seen, "ranks": self._world.local_world_size}

    def _judge_devices(self, nodes: Nodes, facts: dict[int, Any]) -> Finding:
        finding = judge_devices(nodes, facts)
        self._cuda = finding.mark != "✗" and any(fact["gpus"] for fact in facts.values())
        return finding

    def _compare_clocks(self) -> dict[str, float]:
        """Seconds that this node is ahead of rank 0, and the round trip (of the shortest of ten) that bounds it."""
        if self._world.rank == 0:
            for node in range(1, self._world.nodes):
                for ping in range(_PINGS):
                    self._hear(f"ask/{node}/{ping}")
                    self._store.set(f"answer/{node}/{ping}", str(time.time_ns()))
            return {"ahead_s": 0.0, "trip_s": 0.0}
        node, tries = self._world.node_rank, []
        for ping in range(_PINGS):
            asked = time.time_ns()
            self._store.set(f"ask/{node}/{ping}", "0")
            answer = self._hear(f"answer/{node}/{ping}")
            heard = time.time_ns()
            tries.append((heard - asked, (asked + heard) / 2 - answer))
        trip, ahead = min(tries)
        return {"ahead_s": ahead / 1e9, "trip_s": trip / 1e9}

    def _share_folder(self) -> list[int] | None:
        """The nodes whose file in the run folder this one does not see; None where there is no run folder."""
        run, attempt = self._environ.get("RANKRUN_RUN_DIR"), self._environ.get("RANKRUN_ATTEMPT")
        if not run or not attempt:
            return None
        node, token = self._world.node_rank, secrets.token_hex(8)
        folder = Path(run) / "attempts" / f"{int(attempt):04d}"
        own = folder / f"preflight-{node:05d}"
        try:
            own.write_text(token)
            self._stack.callback(own.unlink, missing_ok=True)
        except OSError as error:
            token = ""  # nobody needs to wait for it
            raise OSError(f"{folder}: {error.strerror}") from error
        finally:
            self._store.set(f"token/{node}", json.dumps(token))
        unseen = []
        limit_s = self._limit.total_seconds()
        deadline = time.monotonic() + (limit_s if self._must_share else min(_SOON_S, limit_s))
        for other in range(self._world.nodes):
            expected = self._hear(f"token/{other}")
            if expected and not _appears(folder / f"preflight-{other:05d}", expected, deadline):
                unseen.append(other)
        return unseen

    def _reach_others(self) -> dict[str, Any]:
        """The nodes that this one can't reach, with why, and its own address."""
        node, word = self._world.node_rank, secrets.token_hex(8)
        place: list[Any] = []
        try:
            address = gloo_address(self._environ.get("GLOO_SOCKET_IFNAME")) if self._world.nodes > 1 else "127.0.0.1"
            place = [address, self._stack.enter_context(answering(address, word)), word]
        finally:
            self._store.set(f"place/{node}", json.dumps(place))
        others = {other: self._hear(f"place/{other}") for other in range(self._world.nodes) if other != node}
        return {"address": address, "unreached": unreachable({other: p for other, p in others.items() if p})}

    def _sum(self) -> dict[str, Any]:
        """How many of a thousand sums over all ranks are wrong here."""
        world = self._world
        backend = "cpu:gloo,cuda:nccl" if self._device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=PrefixStore("group", self._store),
            rank=world.rank,
            world_size=world.world_size,
            timeout=self._limit,
        )
        factors = torch.arange(1, 1001, device=self._device)
        sums = (world.rank + 1) * factors
        dist.all_reduce(sums)
        expected = world.world_size * (world.world_size + 1) // 2 * factors
        return {"wrong": int((sums != expected).sum()), "backend": dist.get_backend()}

    def _measure(self) -> dict[str, Any]:
        """Bytes per second of an all-reduce over all ranks, and on rank 0 of its way to every other node."""
        world = self._world
        block = torch.ones(self._options.megabytes * 250_000, device=self._device)
        size = block.numel() * block.element_size()
        seconds = []
        for _ in range(1 + _ROUNDS):
            dist.barrier()
            seconds.append(self._timed(lambda: dist.all_reduce(block)))
        # What every link has to carry, whatever the algorithm: the usual measure, comparable between world sizes.
        carried = 2 * (world.world_size - 1) / world.world_size * size
        links = {}
        part = block[: max(1, block.numel() // world.nodes)]  # the nodes have their turns one after the other
        done = torch.zeros(1, device=self._device)
        leaders = self._hear_leaders()
        for node, leader in leaders.items():
            if world.rank == 0:
                self._timed(functools.partial(_send, done, done, leader))  # the first one makes the connection
                seconds_there = self._timed(functools.partial(_send, part, done, leader))
                links[node] = part.numel() * part.element_size() / seconds_there
            elif world.rank == leader:
                _answer(done, done)
                _answer(part, done)
        return {"speed": carried / statistics.median(seconds[1:]), "links": links}

    def _hear_leaders(self) -> dict[int, int]:
        if self._world.rank == 0:
            self._store.set("leaders", json.dumps(self._nodes.leaders[1:]))
        return dict(enumerate(self._hear("leaders"), start=1))

    def _timed(self, act: Callable[[], Any]) -> float:
        began = time.perf_counter()
        act()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def _send(block: torch.Tensor, done: torch.Tensor, leader: int) -> None:
    dist.send(block, leader)
    dist.recv(done, leader)


def _answer(block: torch.Tensor, done: torch.Tensor) -> None:
    dist.recv(block, 0)
    dist.send(done, 0)


def _appears(file: Path, text: str, deadline: float) -> bool:
    """Whether `file` comes to hold `text`; asked again, because network disks show what others wrote late."""
    while True:
        try:
            os.listdir(file.parent)  # makes NFS forget that there was no such file
            if file.read_text() == text:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)


def _in_words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _positive(word: str) -> float:
    if not 0 < float(word) < _LONGEST_S:
        raise argparse.ArgumentTypeError(f"{word} is not a number of seconds up to a day")
    return float(word)


def _at_least_one(word: str) -> int:
    if int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is less than 1")
    return int(word)


def main() -> NoReturn:
    """Run all checks on this rank."""
    parser = argparse.ArgumentParser(prog="preflight", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shared", action="store_true", help="the run folder has to be one that all nodes share")
    parser.add_argument(
        "--limit", type=_positive, default=LIMIT_S, help="seconds to wait for any rank or file (default 60)"
    )
    parser.add_argument(
        "--megabytes", type=_at_least_one, default=64, help="of the tensor that is summed for the bandwidth"
    )
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu leaves the GPUs alone")
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without ✓ gets a ?
    with report_errors(os.environ):
        world = World.from_env(os.environ)
        with ExitStack() as stack:
            if world.world_size == 1:
                store: Store = HashStore()
            else:
                store = stack.enter_context(open_store(world, Path("runs/.rendezvous"), options.limit))
            preflight = Preflight(world, store, os.environ, options)
            preflight.run()
        # SystemExit as well: gloo's threads may wait for a peer that is gone, and so would the interpreter's own end.
        if preflight.problems:
            error = SetupError("\n".join(preflight.problems))
            error.told_by = 0
            raise error
        sys.exit(0)


if __name__ == "__main__":
    main()
