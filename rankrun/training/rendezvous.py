"""A store that rank 0 opens on a free port and publishes by a file: for srun without MASTER_ADDR and MASTER_PORT."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from torch._C._distributed_c10d import Store, TCPStore  # torch.distributed's own, where their types stand
from torch.distributed import DistError

from rankrun.errors import SetupError
from rankrun.world import World

_POLL_S = 0.05
_TOKEN_KEY = "rankrun/token"


@contextmanager
def published_store(world: World, folder: Path, limit_s: float) -> Iterator[Store]:
    """The store of this start of this step, on all its ranks; `folder` is one that all nodes see.

    Rank 0 binds port 0 and only then tells the port (a number chosen beforehand may be taken by the time it is
    bound), with a token, under the job's own name, by an atomic rename. The others believe a file only if the store
    it leads to answers with the same token: a file that an earlier, killed run left behind leads to nobody, or to
    somebody else. Rank 0 takes the file away when it leaves. SetupError after `limit_s`.
    """
    path = folder / f"{world.job or 'run'}.json"
    if world.rank != 0:
        yield _join(path, world, limit_s)
        return
    host = "127.0.0.1" if world.nodes == 1 else socket.gethostname()
    # World size None: torch would otherwise wait here for clients that have not been told the port.
    store = TCPStore(host, 0, None, True, timedelta(seconds=limit_s), wait_for_workers=False)
    token = secrets.token_hex(16)
    store.set(_TOKEN_KEY, token)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp-{token}")
        temporary.write_text(json.dumps({"host": host, "port": store.port, "token": token}), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise SetupError(f"rank 0 can't publish its store in {folder}: {error.strerror}") from error
    try:
        yield store
    finally:
        path.unlink(missing_ok=True)


def _join(path: Path, world: World, limit_s: float) -> Store:
    deadline = time.monotonic() + limit_s
    seen = "no such file has appeared"
    while time.monotonic() < deadline:
        found = _read(path)
        if found is not None:
            host, port, token = found
            store = _connect(host, port, token)
            if store is not None:
                store.set_timeout(timedelta(seconds=limit_s))
                return store
            seen = f"it leads to {host}:{port}, where this run's rank 0 does not answer"
        time.sleep(_POLL_S)
    raise SetupError(
        f"rank {world.rank} did not find rank 0 within {limit_s:.0f} s: rank 0 publishes {path}, and {seen}; do all "
        "nodes share that folder?"
    )


def _read(path: Path) -> tuple[str, int, str] | None:
    """What the file says, or None while it is not there or not readable as what it should be."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return str(record["host"]), int(record["port"]), str(record["token"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _connect(host: str, port: int, token: str) -> Store | None:
    try:
        # Asked first by a plain socket: TCPStore itself tries a dead port again until its limit.
        socket.create_connection((host, port), timeout=2).close()
        store = TCPStore(host, port, None, False, timedelta(seconds=5), wait_for_workers=False)
        answer = store.get(_TOKEN_KEY)
    except (OSError, DistError):
        return None
    return store if answer.decode(errors="replace") == token else None
