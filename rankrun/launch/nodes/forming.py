"""How a launch becomes one of the nodes of its run: alone, as node 0, or as one of the others."""

from __future__ import annotations

import importlib.metadata
import secrets
import signal
import tempfile
import time
from typing import Any

from rankrun.launch.launching import Launch
from rankrun.launch.nodes.head import Head
from rankrun.launch.nodes.member import Member
from rankrun.launch.nodes.messages import Hello
from rankrun.launch.nodes.place import host_name
from rankrun.launch.nodes.team import Surroundings, Team
from rankrun.launch.plan import check_name
from rankrun.runfolder import RunFolder
from rankrun.runfolder.live import holder_of

_SHARED_LIMIT_S = 10.0


def form(launch: Launch) -> Team:
    """The other nodes, as this one sees them."""
    plan, place, workers, keeper = launch.plan, launch.place, launch.workers, launch.keeper
    host = host_name(launch.env)
    if place is None:
        return Team(plan.nproc, host)
    hello = Hello(
        run=plan.run_id,
        node=plan.node_rank,
        nnodes=plan.nnodes,
        nproc=plan.nproc,
        host=host,
        program=plan.target.path,  # of a config that is train.py; its name may be another one where it goes on
        torch=importlib.metadata.version("torch"),
        token=secrets.token_hex(8),
    )
    around = Surroundings(
        place=place.name,
        join_timeout_s=plan.join_timeout_s,
        stop_grace_s=plan.stop_grace_s,
        waiter=workers.waiter,
        wait=workers.wait,
        interrupted=lambda: workers.interrupted or (keeper is not None and keeper.has_news),
        say=launch.screen.say,
        signals=frozenset(signal.Signals[name] for name in plan.signals),
    )
    if launch.claimed is not None:
        assert place.listener is not None
        run = launch.run
        welcome = {"host": host, "run": run.name, "token": launch.claimed.token, "folder": str(run.path.absolute())}
        return Head(place.listener, hello, around, welcome=welcome, tells_address=place.file is None)
    return Member(hello, around, reach=place.reach, prepare=lambda welcome: _look_around(launch, welcome))


def _look_around(launch: Launch, welcome: dict[str, Any]) -> str | None:
    """What is wrong, on another node than 0, with the run folder that node 0 holds; None if nothing is."""
    plan, host, name = launch.plan, host_name(launch.env), check_name(str(welcome["run"]))
    run = RunFolder(plan.runs / name)
    if plan.settings is not None:
        if name != plan.name:
            return f"the run is called {name} on node 0 and {plan.name} on {host}; give all nodes the same --name"
        if not _sees_holder(run, str(welcome["token"])):
            return (
                f"{host} does not see the run folder of node 0, {welcome['folder']}, at {run.path.absolute()}; put "
                "--runs on a disk that all nodes share"
            )
    try:
        run.attempts.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run.attempts) as file:
            file.write(b"here")
    except OSError as error:
        return f"{host} can't write to {run.path.absolute()}: {error.strerror}"
    return None


def _sees_holder(run: RunFolder, token: str) -> bool:
    """Whether the launch `token` holds this very folder. A network disk may show it a little later."""
    deadline = time.monotonic() + _SHARED_LIMIT_S
    while (holder := holder_of(run)) is None or holder.token != token:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
