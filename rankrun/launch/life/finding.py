"""From what a person types to a run folder."""

from __future__ import annotations

import os
from pathlib import Path

from rankrun.errors import OptionError, did_you_mean, printable
from rankrun.runfolder import RunFolder
from rankrun.runfolder.state import is_run_folder


def runs_in(parent: Path) -> list[RunFolder]:
    """The run folders below `parent`, by name; none when it isn't there. OptionError when it can't be read."""
    try:
        names = sorted(entry.name for entry in os.scandir(parent) if entry.is_dir() and not entry.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OptionError(f"--runs {parent}: {error.strerror}") from None
    return [RunFolder(parent / name) for name in names if is_run_folder(parent / name)]


def find_run(word: str, parent: Path) -> RunFolder:
    """The run that `word` means: a name below `parent`, else a run folder's path; OptionError when there is none."""
    given = Path(word)
    candidates = [given] if given.is_absolute() else [parent / given, given]
    for path in candidates:
        if word and path.name and is_run_folder(path):
            return RunFolder(path)
    names = [folder.name for folder in runs_in(parent)]
    hint = did_you_mean(word, names) or (
        " `launch.py list` shows what there is." if names else f" {parent} holds none; --runs DIR names another place."
    )
    raise OptionError(f"there is no run {printable(word[:80])!r}.{hint}")
