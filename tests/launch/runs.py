"""Run folders in every state that a launch can leave them in, made without a launch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankrun.config import Settings
from rankrun.runfolder import Claim, claim
from rankrun.runfolder.holder import this_process

DEAD = {"pid": 2**22 + 1}
ELSEWHERE = {"boot_id": "another", "host": "n7"}
RESUME = ("run", "--nproc", "2", "--name", "a", "script.py", "--its", "own")


def begin(path: Path, *, config: bool = False, resume: Sequence[str] = RESUME, **more: Any) -> Claim:
    """A launch that holds `path` and lives: this process."""
    settings = Settings.model_validate({"data": {"train": "t"}, "train": {"epochs": 5, "global_batch": 8}})
    return claim(
        path,
        settings=settings if config else None,
        command=more.pop("command", ["launch.py", "run", "x"]),
        env={"PATH": "/nonexistent"},
        resume=resume,
        **more,
    )


def end(held: Claim, code: int) -> None:
    """The launch ends with `code` and lets go."""
    held.folder.outcome_file(held.attempt).write_text(f"{code}\n")
    held.release()


def change_holder(held: Claim, **change: Any) -> None:
    """As if another process held the run: DEAD, ELSEWHERE."""
    holder = replace(this_process(held.token, "2026-01-02T03:04:05Z", {}), **change)
    (held.folder.live / "holder.json").write_text(holder.as_json())


@contextmanager
def another_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits until it is killed, which it is at the latest here."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def checkpoint(held: Claim, step: int, *, whole: bool = True) -> None:
    folder = held.folder.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True)
    if whole:
        (folder / "manifest.json").write_text("{}")


def metrics(held: Claim, *lines: dict[str, Any]) -> None:
    with open(held.folder.metrics_file, "a") as file:
        file.writelines(json.dumps({"attempt": held.attempt, **line}) + "\n" for line in lines)


def log(held: Claim, text: str, rank: int = 0, attempt: int | None = None) -> Path:
    file = held.folder.log_file(held.attempt if attempt is None else attempt, rank)
    with open(file, "a") as opened:
        opened.write(text)
    return file
