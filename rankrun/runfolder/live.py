"""The live/ folder: made by one rename, so that of all launches that try at once exactly one holds the run.

    live.tmp-…/{holder.json, heartbeat}       made first, then renamed onto
    live/                                     which fails when another launch's is there, and renamed once more, to
    launches/TOKEN/                           when its launch ends, or when another finds its process dead

Two launches that both find X dead both try live/ -> launches/X; the second fails, because launches/X is there, and
looks again: so it can't take away what the first has put in place meanwhile. launches/X is never removed for that
reason. Locks of the kernel (flock, lockf) are not used: on network file systems they hold on one machine only.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from rankrun.errors import RunFolderBusy
from rankrun.runfolder.files import TEMPORARY, remove_tree, sync_folder, write_all, write_atomically
from rankrun.runfolder.holder import Holder, life_of
from rankrun.runfolder.paths import RunFolder

__all__ = ["Live", "heartbeat_of", "holder_of", "status_in", "take"]

HOLDER = "holder.json"
HEARTBEAT = "heartbeat"
HEARTBEAT_BYTES = 128
MOST_TRIES = 50
# What a clock of the file system itself must show before a half-made live.tmp-… of an unknown machine is cleared away.
OLD_S = 600.0


@dataclass
class Live:
    """A run folder that this process holds."""

    folder: RunFolder
    me: Holder
    notes: list[str] = field(default_factory=list)
    _beats: int = 0

    def beat(self, status: str = "") -> None:
        """Show that this launch lives, and what it does. RunFolderBusy when another one has taken the folder over.

        OSError when the file system does not answer; that passes, and the next beat serves as well.
        """
        holder = holder_of(self.folder)
        if holder is not None and holder.token != self.me.token:
            raise RunFolderBusy(
                f"{self.folder.path} was taken over by another launch ({holder}) while this one did not answer; "
                "this one stops and writes nothing more"
            )
        self._beats += 1
        # In place and always as long: a reader who asks for life only compares bytes, so that half a line serves as
        # well, and a full disk has nothing to give.
        try:
            descriptor = os.open(self.folder.live / HEARTBEAT, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise RunFolderBusy(
                f"{self.folder.path} is not held by this launch any more: its live/ folder is gone, since another "
                "launch took it over and has ended, or a person removed it; this one stops and writes nothing more"
            ) from error
        try:
            os.pwrite(descriptor, _heartbeat_line(self._beats, status), 0)
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Let go of the folder; does nothing when it is another launch's by now."""
        holder = holder_of(self.folder)
        if holder is not None and holder.token == self.me.token:
            _retire(self.folder, self.me.token)

    def withdraw(self) -> None:
        """Let go as if it had never been held: the launch was refused before it did anything."""
        holder = holder_of(self.folder)
        if holder is None or holder.token != self.me.token:
            return
        gone = _half_made(self.folder, self.me)
        try:
            os.rename(self.folder.live, gone)
        except OSError:
            gone = self.folder.live  # a disk so full that it can't even rename still lets files go
        remove_tree(gone)


def holder_of(folder: RunFolder) -> Holder | None:
    """Who holds `folder`, or None when nobody does or the file says nothing."""
    try:
        return Holder.from_json((folder.live / HOLDER).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def take(
    folder: RunFolder,
    me: Holder,
    *,
    stale_after_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    say: Callable[[str], None],
) -> Live:
    """Hold `folder` as `me`, taking over from a dead holder aloud; RunFolderBusy when a live one holds it."""
    live = Live(folder, me)
    for _ in range(MOST_TRIES):
        if not folder.live.exists():
            _put_in_place(folder, me)
        holder = holder_of(folder)
        if holder is not None and holder.token == me.token:
            # Looked up rather than believed: a network file system may do a rename and report an error.
            try:
                sync_folder(folder.path)
            except BaseException:
                live.withdraw()
                raise
            return live
        if holder is None:
            _settle_unreadable(folder, stale_after_s, clock, sleep)
            continue
        life = life_of(holder, me)
        if life == "unknown":
            say(f"{folder.path} is held by {holder}; watching its heartbeat for up to {stale_after_s:.0f} s")
            life = "alive" if _heart_beats(folder, holder, stale_after_s, clock, sleep) else "dead"
            why = f"its heartbeat did not change for {stale_after_s:.0f} s"
        else:
            why = "its process is gone"
        if life == "alive":
            if holder_of(folder) != holder:
                continue  # it let go meanwhile
            raise RunFolderBusy(
                f"{folder.path} has a live launch ({holder}). Wait for it, stop it, or give this one another --name"
            )
        if _retire(folder, holder.token):
            note = f"took {folder.path} over from a dead launch ({holder}): {why}"
            live.notes.append(note)
            say(note)
    raise RunFolderBusy(f"{folder.path}: {MOST_TRIES} tries to hold it failed, since other launches come and go")


def _half_made(folder: RunFolder, me: Holder) -> Path:
    """Where `me` builds its live/. The name says whose it is, since a kill may leave it empty."""
    namespace = "".join(c for c in me.namespace if c.isdecimal())
    return folder.path / f"live{TEMPORARY}{me.boot_id}.{namespace}.{me.pid}.{me.started or 0}.{me.token}"


def _put_in_place(folder: RunFolder, me: Holder) -> None:
    """Make live/ ours, or change nothing when another launch was first."""
    made = _half_made(folder, me)
    try:
        os.mkdir(made)
        write_atomically(made / HOLDER, me.as_json())
        descriptor = os.open(made / HEARTBEAT, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            write_all(descriptor, _heartbeat_line(0, ""))
        finally:
            os.close(descriptor)
        os.rename(made, folder.live)
    except BaseException as error:
        remove_tree(made)
        taken = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
        if not (isinstance(error, OSError) and error.errno in taken and folder.path.is_dir()):
            raise


def _retire(folder: RunFolder, token: str) -> bool:
    """Move live/ of the launch `token` to launches/; False when that has happened already."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder.launches)
    try:
        os.rename(folder.live, folder.launches / token)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            return False
        raise
    _remove_unfinished(folder.launches / token)
    sync_folder(folder.path)
    return True


def _heart_beats(
    folder: RunFolder, holder: Holder, stale_after_s: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> bool:
    """True when the heartbeat changes, or the holder does, before `stale_after_s` have passed on *our* clock.

    Times in the file are never compared with ours: clocks of two hosts may be minutes apart. The file is opened anew
    at every look, since a network file system shows an open file as it was.
    """
    first = heartbeat_of(folder)
    begin = clock()
    while clock() - begin < stale_after_s:
        sleep(min(1.0, stale_after_s))
        if heartbeat_of(folder) != first or holder_of(folder) != holder:
            return True
    return False


def heartbeat_of(folder: RunFolder) -> bytes:
    """The last sign of life, to be compared with a later one; empty when there is none."""
    try:
        with open(folder.live / HEARTBEAT, "rb") as file:
            return file.read(HEARTBEAT_BYTES)
    except OSError:
        return b""


def status_in(heartbeat: bytes) -> str:
    """What the launch said of itself in a sign of life, in printable ASCII; empty when it said nothing."""
    text = heartbeat.decode("ascii", "replace").partition("\n")[0]
    return "".join(c for c in text.partition(" ")[2] if " " <= c <= "~").strip()


def _heartbeat_line(beats: int, status: str) -> bytes:
    """`beats` in 20 digits, a blank, the status (cut where it is too long), blanks, newline: HEARTBEAT_BYTES."""
    room = HEARTBEAT_BYTES - 22
    text = "".join(c if " " <= c <= "~" else "?" for c in status)[:room]
    return f"{beats:020d} {text:{room}}\n".encode("ascii")


def _settle_unreadable(
    folder: RunFolder, stale_after_s: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> None:
    """Wait until live/ names a holder or is gone; one that never does (a disk lost it) is moved out of the way."""
    begin = clock()
    while clock() - begin < stale_after_s:
        if holder_of(folder) is not None or not os.path.lexists(folder.live):
            return
        sleep(min(1.0, stale_after_s))
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder.launches)
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder.live, folder.launches / f"unreadable-{os.stat(folder.live).st_ino}")


def sweep(live: Live) -> None:
    """Clear away what launches that were killed half-way have left in the run folder; only while holding it."""
    folder = live.folder
    with contextlib.suppress(OSError):
        now = os.stat(folder.live / HEARTBEAT).st_mtime
        for entry in list(os.scandir(folder.path)):
            # It may be of a launch that is trying right now, and then it is that launch's to remove.
            if entry.name.startswith(f"live{TEMPORARY}") and (
                _is_of_a_dead_process(entry.name, live.me) or now - entry.stat(follow_symlinks=False).st_mtime > OLD_S
            ):
                remove_tree(Path(entry.path))
        _remove_unfinished(folder.path)


def _remove_unfinished(folder: Path) -> None:
    """Remove files that `write_atomically` had not finished in `folder` when it was killed."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(".") and TEMPORARY in entry.name and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)


def _is_of_a_dead_process(name: str, me: Holder) -> bool:
    """True if the maker of a half-made live/ of this `name` (see `_half_made`) is known to be dead."""
    parts = name.removeprefix(f"live{TEMPORARY}").split(".")
    mine = _half_made(RunFolder(Path(".")), me).name.removeprefix(f"live{TEMPORARY}").split(".")
    if len(parts) != 5 or parts[:2] != mine[:2] or not (parts[2].isdecimal() and parts[3].isdecimal()):
        return False
    return life_of(replace(me, pid=int(parts[2]), started=int(parts[3]) or None), me) == "dead"
