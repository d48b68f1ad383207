"""A checkpoint as a folder of files that is whole or not there: the protocol, apart from what is in the files.

    checkpoints/step-00001200/  model.safetensors  optimizer.safetensors  state.json  manifest.json
    checkpoints/step-00001300.tmp-5f3a…             being written, or left by a kill: never read, cleared at a start
    attempts/0002/began.json                        {"version": 1, "step": 1200}: where attempt 2 went on from

*Latest* is the highest step whose manifest verifies and which is not fenced off. Fenced off is a checkpoint of
attempt a at step s if a later attempt began below s: at that beginning it was not there, so an old writer that had
only been stopped woke up and wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankrun.errors import CheckpointError
from rankrun.runfolder import RunFolder, write_atomically
from rankrun.runfolder.files import TEMPORARY, remove_tree, sync_folder

VERSION = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-([0-9]{8,})\Z")
_BEGAN = "began.json"


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says: the step, the attempt that wrote it, and size and hash of every other file."""

    step: int
    attempt: int
    files: Mapping[str, tuple[int, str]]


def snapshot_path(folder: RunFolder, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return folder.checkpoints / f"step-{step:08d}"


def write_snapshot(folder: RunFolder, step: int, attempt: int, writers: Mapping[str, Callable[[Path], object]]) -> Path:
    """Writes one checkpoint: each of `writers` its file, the manifest last, and then the name, in one piece.

    Every file and folder is flushed to the disk before the name appears. On an error nothing is left but the older
    checkpoints. A whole checkpoint of this step is never overwritten; one that was passed over as damaged or fenced
    off makes room. CheckpointError if a later attempt has begun meanwhile: then this process is an old writer.
    """
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    target = snapshot_path(folder, step)
    temporary = target.with_name(f"{target.name}{TEMPORARY}{secrets.token_hex(8)}")
    temporary.mkdir()
    try:
        files: dict[str, dict[str, Any]] = {}
        for name, write in writers.items():
            write(temporary / name)
            _flush(temporary / name)
            files[name] = {"size_bytes": (temporary / name).stat().st_size, "sha256": _sha256(temporary / name)}
        manifest = {"version": VERSION, "step": step, "attempt": attempt, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _flush(temporary / MANIFEST)
        sync_folder(temporary)
        refuse_old_writer(folder, attempt)
        if target.exists() and not _usable(folder, target):
            aside = target.with_name(f"{target.name}{TEMPORARY}old-{secrets.token_hex(8)}")
            os.rename(target, aside)
            remove_tree(aside)
        if target.exists():
            remove_tree(temporary)
        else:
            os.rename(temporary, target)
    except BaseException:
        remove_tree(temporary)
        raise
    sync_folder(folder.checkpoints)
    return target


def verify_snapshot(path: Path) -> Manifest:
    """The manifest of the checkpoint at `path` once every file has the size and the hash that it names.

    CheckpointError says in one line what is missing, damaged or too new.
    """
    manifest = read_manifest(path)
    for name, (size_bytes, sha256) in manifest.files.items():
        try:
            found = (path / name).stat().st_size
            if found != size_bytes:
                raise CheckpointError(f"{path}: {name} has {found} bytes, its manifest says {size_bytes}")
            if _sha256(path / name) != sha256:
                raise CheckpointError(f"{path}: the bytes of {name} are not those that were written (its hash differs)")
        except OSError as error:
            raise CheckpointError(f"{path}: {name} can't be read: {error.strerror}") from error
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest alone; nothing is verified but its own form."""
    try:
        raw = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: is no checkpoint: {MANIFEST} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {MANIFEST} is damaged: it is not JSON") from error
    try:
        version = raw["version"]
        if isinstance(version, int) and version > VERSION:
            raise CheckpointError(f"{path}: has version {version}; this program reads up to {VERSION}. Update it")
        files = {str(name): (int(entry["size_bytes"]), str(entry["sha256"])) for name, entry in raw["files"].items()}
        if any("/" in name or name in ("", ".", "..") for name in files):
            raise ValueError
        return Manifest(int(raw["step"]), int(raw["attempt"]), files)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: {MANIFEST} is damaged: it does not list a checkpoint's files") from error


def newest_snapshot(folder: RunFolder, warn: Callable[[str], None]) -> Path | None:
    """The latest checkpoint that is whole, or None; each that is passed over is told to `warn`."""
    for step in sorted(snapshot_steps(folder), reverse=True):
        path = snapshot_path(folder, step)
        try:
            manifest = verify_snapshot(path)
        except CheckpointError as error:
            warn(f"passed over: {error}")
            continue
        if manifest.step != step:
            warn(f"passed over: {path}: its manifest is of step {manifest.step}")
        elif _fenced(folder, manifest):
            warn(
                f"passed over: {path}: written by attempt {manifest.attempt} after a later attempt had begun before it"
            )
        else:
            return path
    return None


def snapshot_steps(folder: RunFolder) -> list[int]:
    """Steps that have a folder, whole or not, in rising order."""
    if not folder.checkpoints.is_dir():
        return []
    matches = (_NAME.match(entry.name) for entry in folder.checkpoints.iterdir())
    return sorted(int(match[1]) for match in matches if match is not None)


def begin_attempt(folder: RunFolder, attempt: int, step: int) -> None:
    """Notes that `attempt` goes on from `step`, before its first step, and clears what a kill left half-written.

    A final.json goes too: the run was finished, has been given more epochs, and is not finished now.
    """
    folder.final_file.unlink(missing_ok=True)
    if folder.checkpoints.is_dir():
        for entry in folder.checkpoints.iterdir():
            if TEMPORARY in entry.name:
                remove_tree(entry)
    folder.attempt(attempt).mkdir(parents=True, exist_ok=True)
    write_atomically(folder.attempt(attempt) / _BEGAN, json.dumps({"version": VERSION, "step": step}) + "\n")


def prune_snapshots(folder: RunFolder, step: int, keep: int, best_step: int | None, good: Collection[int]) -> list[int]:
    """Removes all but the best and the newest `keep` of `good` up to `step`, which was just written; returns what went.

    `good` are the steps that this attempt wrote or went on from. Others above the oldest of them go: they were passed
    over when this attempt began, or an old writer made them since. Others below it stay until `keep` good ones are
    there. `step` is verified first, by reading it back, and nothing goes if that fails (CheckpointError).
    """
    steps = snapshot_steps(folder)
    kept = [each for each in steps if each in good and each <= step][-keep:]
    spared = {best_step, *kept, *(each for each in steps if len(kept) < keep and each < min(kept, default=0))}
    removed = [each for each in steps if each not in spared]
    if removed:
        verify_snapshot(snapshot_path(folder, step))
    for each in removed:
        path = snapshot_path(folder, each)
        aside = path.with_name(f"{path.name}{TEMPORARY}old-{secrets.token_hex(8)}")
        os.rename(path, aside)  # so that a kill in the middle leaves no half checkpoint under its name
        remove_tree(aside)
    return removed


def point_at(link: Path, target: Path) -> None:
    """Makes `link` a symbolic link to `target`, relative to its own folder, in one piece."""
    temporary = link.with_name(f".{link.name}{TEMPORARY}{secrets.token_hex(4)}")
    os.symlink(os.path.relpath(target, link.parent), temporary)
    try:
        os.rename(temporary, link)
    except OSError:
        temporary.unlink()
        raise


def refuse_old_writer(folder: RunFolder, attempt: int) -> None:
    """CheckpointError if an attempt after `attempt` exists: whoever still writes for this one must stop."""
    newest = max(folder.attempt_numbers(), default=attempt)
    if newest > attempt:
        raise CheckpointError(
            f"{folder.path}: attempt {newest} has begun since; attempt {attempt} writes nothing any more"
        )


def _usable(folder: RunFolder, path: Path) -> bool:
    try:
        return not _fenced(folder, verify_snapshot(path))
    except CheckpointError:
        return False


def _fenced(folder: RunFolder, manifest: Manifest) -> bool:
    for later in folder.attempt_numbers():
        if later <= manifest.attempt:
            continue
        try:
            began = json.loads((folder.attempt(later) / _BEGAN).read_text(encoding="utf-8"))
            if int(began["step"]) < manifest.step:
                return True
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it died before it had found where to begin
    return False


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
