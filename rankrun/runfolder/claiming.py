"""Claiming a run folder for one launch: is it this run's, does nobody else hold it, and which attempt begins."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankrun.errors import OptionError, RunFolderError, did_you_mean
from rankrun.runfolder.files import TEMPORARY, make_folders, remove_empty, remove_tree, write_atomically
from rankrun.runfolder.holder import this_process
from rankrun.runfolder.live import Live, sweep, take
from rankrun.runfolder.paths import RunFolder
from rankrun.runfolder.recording import record
from rankrun.runfolder.stopping import remove_stop

if TYPE_CHECKING:
    from rankrun.config import Settings

__all__ = ["Claim", "claim"]

STALE_AFTER_S = 60.0
MOST_ATTEMPTS = 1_000_000


@dataclass
class Claim:
    """A run folder that this launch holds. Use it as a context manager, or call `release` on every way out.

    `attempt` is the one that begins, `token` names this launch among all. With `finished` the run has ended before:
    nothing is held, nothing was written, `attempt` is the last one there was. `notes` are lines to say aloud.
    """

    folder: RunFolder
    attempt: int
    token: str
    settings: Settings | None
    finished: bool = False
    notes: list[str] = field(default_factory=list)
    _live: Live | None = None
    _undo: Callable[[], None] | None = None

    def next_attempt(self) -> int:
        """Begin one more attempt (the workers are restarted) and return its number."""
        self.attempt, _ = _make_attempt(self.folder)
        return self.attempt

    def beat(self, status: str = "") -> None:
        """Show that this launch lives, and what it does ("running train step 1200"); call it about every second.

        RunFolderBusy: another launch holds the run now. OSError passes; the next beat serves as well.
        """
        live = self._live
        if live is not None:
            live.beat(status)

    def release(self) -> None:
        """Let go of the folder. A second call does nothing."""
        live, self._live = self._live, None
        if live is not None:
            live.release()

    def withdraw(self) -> None:
        """Let go and leave the folder as this launch found it, for one that was refused before it had begun.

        A folder that the launch has made goes, with its first attempt; an older run gets its config.yaml back.
        """
        undo, self._undo, self._live = self._undo, None, None
        if undo is not None:
            undo()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


@dataclass(frozen=True)
class _Found:
    """What a run folder says about itself, and what this launch changes in it."""

    finished: bool
    write_config: bool
    allowed: list[dict[str, Any]]
    notes: list[str]


def claim(
    path: Path | str,
    *,
    settings: Settings | None,
    command: Sequence[str],
    env: Mapping[str, str],
    allow_change: Sequence[str] = (),
    resume: Sequence[str] = (),
    host: str | None = None,
    now: Callable[[], float] = time.time,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = lambda line: None,
    stale_after_s: float = STALE_AFTER_S,
) -> Claim:
    """Hold the run folder `path` for this launch, made if it isn't there, and begin an attempt.

    `settings` None is a target without a config: no identity is kept. RunFolderError: another run's folder, no run
    folder at all, or one that can't be written. RunFolderBusy: a live launch holds it. OptionError: an `allow_change`
    that is no key. After any error the folder is as it was; after a kill at any point the next claim goes on. `resume`
    are the words after `launch.py` that go on with this run; the record keeps them. `say` gets lines while it waits
    and all of `notes`.
    """
    folder = RunFolder(Path(path))
    if "\0" in str(path) or not folder.name:
        raise RunFolderError(f"{str(path)!r} can't be the name of a run folder")
    _check_allowed(allow_change)
    since = datetime.fromtimestamp(now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    token = f"{since.replace('-', '').replace(':', '')}-{secrets.token_hex(4)}"
    made: list[Path] = []
    live: Live | None = None
    attempt: Path | None = None
    before: dict[Path, str | None] = {}
    try:
        # Refusals that need no lock come before anything is made or changed.
        found = _look(folder, settings, allow_change)
        if found.finished:
            numbers = folder.attempt_numbers()
            return Claim(folder, numbers[-1] if numbers else 0, token, settings, finished=True, notes=found.notes)
        made = make_folders(folder.path)
        me = this_process(token, since, env, host)
        live = take(folder, me, stale_after_s=stale_after_s, clock=clock, sleep=sleep, say=say)
        sweep(live)
        found = _look(folder, settings, allow_change)  # once more: another launch may have been here
        if found.finished:
            live.withdraw()
            numbers = folder.attempt_numbers()
            return Claim(folder, numbers[-1] if numbers else 0, token, settings, finished=True, notes=found.notes)
        before = {file: _text_of(file) for file in (folder.final_file, folder.config_file, folder.record_file)}
        number, attempt = _make_attempt(folder)
        _write(folder, settings, found, command, resume, env, host or socket.gethostname(), since, number)
        notes = [*live.notes, *found.notes]
        for note in found.notes:
            say(note)
        undo = partial(_undo, folder, made, live, attempt, before)
        return Claim(folder, number, token, settings, notes=notes, _live=live, _undo=undo)
    except OSError as error:
        _undo(folder, made, live, attempt, before)
        raise RunFolderError(_cannot(folder, error)) from error
    except BaseException:
        _undo(folder, made, live, attempt, before)
        raise


def _check_allowed(allow_change: Sequence[str]) -> None:
    if not allow_change:
        return
    from rankrun.config.keys import fields

    keys = [*fields(), *{key.partition(".")[0] for key in fields()}]
    for key in allow_change:
        if key not in keys:
            raise OptionError(f"--allow-change {key[:80]!r}: there is no such key.{did_you_mean(key, keys)}")


def _look(folder: RunFolder, settings: Settings | None, allow_change: Sequence[str]) -> _Found:
    """What is in the folder, without changing it; RunFolderError when this launch has no business there."""
    path = folder.path
    if not os.path.lexists(path):
        return _Found(False, settings is not None, [], [])
    if not path.is_dir():
        kind = "a link to nothing" if path.is_symlink() and not path.exists() else "a file"
        raise RunFolderError(f"{path} is {kind}, not a run folder; give another --name or --runs")
    names = os.listdir(path)
    ours = {"live", "launches", "record.json"} & set(names)
    if names and not ours and not all(name.startswith(f"live{TEMPORARY}") or name.startswith(".nfs") for name in names):
        raise RunFolderError(
            f"{path} is there and is not a run folder (it holds {sorted(names)[0]!r}); give another --name or --runs"
        )
    has_config, has_record = folder.config_file.exists(), folder.record_file.exists()
    finished = folder.final_file.exists()
    if settings is None:
        if has_config:
            raise RunFolderError(f"{path} belongs to a run with a config; give another --name")
        return _Found(finished, False, [], [])
    if not has_config:
        if has_record:
            raise RunFolderError(f"{path} belongs to a run without a config; give another --name")
        return _Found(finished, True, [], [])
    return _compare(folder, settings, allow_change, finished)


def _compare(folder: RunFolder, settings: Settings, allow_change: Sequence[str], finished: bool) -> _Found:
    from rankrun.config.keys import changed, flat, is_free
    from rankrun.config.legal import yaml_word
    from rankrun.config.resolving import load_frozen

    frozen = load_frozen(folder.config_file)
    old, new = flat(frozen), flat(settings)
    keys = changed(frozen, settings)
    mine = [key for key in keys if not is_free(key)]
    refused = [key for key in mine if not any(key == word or key.startswith(word + ".") for word in allow_change)]

    def words(key: str) -> str:
        pair = [yaml_word(side[key]) for side in (old, new)]
        return f"{key} ({' -> '.join(word if len(word) <= 40 else word[:39] + '…' for word in pair)})"

    if refused:
        shown = ", ".join(words(key) for key in refused[:10]) + (" …" if len(refused) > 10 else "")
        cure = " ".join(f"--allow-change {key}" for key in refused[:3]) + (" …" if len(refused) > 3 else "")
        raise RunFolderError(
            f"{folder.path} belongs to a run with another config; different: {shown}. Give this run another --name, or "
            f"change that one with {cure}"
        )
    notes = [f"changed within the run: {words(key)}" for key in keys]
    # A finished run stays as it is, unless a change that makes more of it was allowed (more epochs, say).
    allowed = [{"key": key, "old": old[key], "new": new[key]} for key in mine]
    return _Found(finished and not mine, bool(keys), allowed, [] if finished and not mine else notes)


def _make_attempt(folder: RunFolder) -> tuple[int, Path]:
    """Make the folder of the next attempt; numbers only go up, also when two make one at the same time."""
    folder.attempts.mkdir(exist_ok=True)
    numbers = folder.attempt_numbers()
    number = numbers[-1] + 1 if numbers else 0
    while number < MOST_ATTEMPTS:
        place = folder.attempt(number)
        try:
            os.mkdir(place)
        except FileExistsError:
            number += 1
            continue
        try:
            os.mkdir(place / "logs")
            os.mkdir(place / "stacks")
        except BaseException:
            remove_tree(place)
            raise
        return number, place
    raise RunFolderError(f"{folder.path} has {MOST_ATTEMPTS} attempts; give another --name")


def _write(
    folder: RunFolder,
    settings: Settings | None,
    found: _Found,
    command: Sequence[str],
    resume: Sequence[str],
    env: Mapping[str, str],
    host: str,
    since: str,
    attempt: int,
) -> None:
    text = record(command, resume=resume, env=env, host=host, since=since)
    text |= {
        "run": folder.name,
        "path": str(folder.path.absolute()),
        "attempt": attempt,
        "allowed_changes": found.allowed,
    }
    written = json.dumps(text, indent=1, ensure_ascii=True) + "\n"
    # With the launch, so that a later launch's record does not erase this one's.
    write_atomically(folder.live / "record.json", written)
    # A finished run that may go on (more epochs were allowed) is unfinished before its config says more, not after:
    # a kill in between must not leave an old end to a new config.
    folder.final_file.unlink(missing_ok=True)
    if settings is not None and found.write_config:
        from rankrun.config.resolving import dump

        write_atomically(folder.config_file, dump(settings))
    write_atomically(folder.record_file, written)


def _text_of(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.exists() else None


def _undo(
    folder: RunFolder, made: list[Path], live: Live | None, attempt: Path | None, before: dict[Path, str | None]
) -> None:
    """Leave the folder as it was found, as far as the disk lets us."""
    if live is not None:
        if attempt is not None:
            remove_tree(attempt)
        remove_empty([folder.attempts])
        for file, text in before.items():
            with contextlib.suppress(OSError):
                if text is None:
                    file.unlink(missing_ok=True)
                elif _text_of(file) != text:
                    write_atomically(file, text)
        with contextlib.suppress(OSError):
            live.withdraw()
        if made:
            with contextlib.suppress(OSError):
                remove_stop(folder)  # a `stop` that came before the refusal has what it wanted
    remove_empty(made)


def _cannot(folder: RunFolder, error: OSError) -> str:
    place = error.filename if isinstance(error.filename, str) else str(folder.path)
    words = error.strerror or str(error)
    owner = ""
    if isinstance(error, PermissionError):
        here = folder.path
        while not here.exists() and here != here.parent:
            here = here.parent
        owner = f" (the folder {here} belongs to user {here.stat().st_uid}, this is user {os.geteuid()})"
    what = f"{folder.path} can't be written: {words}{owner}, at {place}"
    return f"{what}. Free or open it, or choose another place with --runs"
