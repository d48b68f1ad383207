"""Which run this is: said by the launcher through the environment, or claimed here by rank 0 for all."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rankrun.errors import OptionError, RankrunError, WorldError, format_error
from rankrun.runfolder import Claim, RunFolder, claim
from rankrun.training.reporting import leave

if TYPE_CHECKING:
    from rankrun.config import Settings
    from rankrun.training.process_group import Group

_HEARTBEAT_S = 1.0


@dataclass(frozen=True)
class Options:
    """The words after `train.py`."""

    config: Path
    overrides: tuple[str, ...] = ()
    name: str | None = None
    runs: Path = Path("runs")
    allow_change: tuple[str, ...] = ()
    debug: bool = False

    @property
    def run_path(self) -> Path:
        """The run folder that `--runs` and `--name` mean; the name is the config's stem unless it was given."""
        return self.runs / (self.name or self.config.stem)


class _Parser(argparse.ArgumentParser):
    """argparse, except that a mistake is one told line and not a usage text from every rank."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message}; `python {self.prog} --help` lists the options")


def read_options(argv: Sequence[str]) -> Options:
    """The options in `argv` (without the program's name); OptionError for what is not one."""
    parser = _Parser(
        prog="train.py",
        description="Trains what CONFIG says. Start it with launch.py, torchrun, srun, or alone.",
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, e.g. configs/digits.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. optim.lr=0.05")
    parser.add_argument("--name", help="name of the run folder (default: the config's stem)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders lie (default: runs)")
    parser.add_argument(
        "--allow-change", action="append", default=[], metavar="KEY", help="a key that may differ from the run's"
    )
    parser.add_argument("--debug", action="store_true", help="tracebacks of mistakes too")
    given = parser.parse_intermixed_args(list(argv))
    if given.name is not None and (given.name in ("", ".", "..") or "/" in given.name):
        raise OptionError(f"--name {given.name!r}: a name without '/' is needed; --runs says where run folders lie")
    return Options(given.config, tuple(given.overrides), given.name, given.runs, tuple(given.allow_change), given.debug)


def read_settings(options: Options, environ: Mapping[str, str]) -> Settings:
    """The config: frozen in the run folder where a launcher opened one, else resolved from the options.

    Every rank reads it by itself, before torch is imported, so that a mistake in it is told in a fraction of a second.
    """
    from rankrun.config import load_frozen, resolve

    folder = environ.get("RANKRUN_RUN_DIR")
    if folder:
        return load_frozen(RunFolder(Path(folder)).config_file)
    return resolve(options.config, options.overrides)


@dataclass(frozen=True)
class Run:
    """An open run, the same on all ranks. `finished`: its final.json is there, nothing was opened or changed."""

    folder: RunFolder
    attempt: int
    finished: bool = False
    notes: tuple[str, ...] = ()


@contextmanager
def open_run(
    options: Options, settings: Settings, environ: Mapping[str, str], group: Group, command: Sequence[str]
) -> Iterator[Run]:
    """The run on all ranks, for as long as the block lasts.

    Under a launcher of ours it is already open, and the environment names it. Otherwise rank 0 claims the folder,
    tells the others, gives a sign of life every second, and lets go of it at the end. What the claim refuses
    (RunFolderError, RunFolderBusy) is raised on all ranks and told by rank 0.
    """
    folder = environ.get("RANKRUN_RUN_DIR")
    if folder:
        attempt = environ.get("RANKRUN_ATTEMPT", "")
        if not attempt.isdecimal():
            raise WorldError(f"RANKRUN_RUN_DIR is set, but RANKRUN_ATTEMPT={attempt!r} is not the number of an attempt")
        yield Run(RunFolder(Path(folder)), int(attempt))
        return
    held: list[Claim] = []

    def take() -> dict[str, Any]:
        taken = claim(
            options.run_path,
            settings=settings,
            command=list(command),
            allow_change=options.allow_change,
            env=environ,
        )
        held.append(taken)
        return {"attempt": taken.attempt, "finished": taken.finished, "notes": taken.notes}

    try:
        told = group.on_rank_zero(take)
        if told["finished"]:
            final = RunFolder(options.run_path).final_file
            told["notes"].append(f"{options.run_path} is finished: {final}; another --name starts another run")
        with _heartbeat(held[0].beat if held else None):
            yield Run(RunFolder(options.run_path), told["attempt"], told["finished"], tuple(told["notes"]))
    finally:
        for each in held:
            try:
                each.release()
            except OSError as error:  # a full disk, say; whoever comes next finds this process gone
                print(f"warning: {options.run_path} could not be let go of: {error}", file=sys.stderr)


@contextmanager
def _heartbeat(beat: Callable[[], None] | None) -> Iterator[None]:
    """Calls `beat` about every second from a thread, until the block ends.

    An OSError passes (a network disk that does not answer for a while), and the next beat serves as well.
    """
    if beat is None:
        yield
        return
    ended = threading.Event()

    def keep_on() -> None:
        while not ended.wait(_HEARTBEAT_S):
            try:
                beat()
            except OSError:
                continue
            except RankrunError as error:
                # Another launch holds the run now (this one was stopped for a minute): nothing more may be written, so
                # this process ends here, from this thread, whatever the main one is in the middle of.
                print(format_error(error), file=sys.stderr)
                leave(error.exit_code)

    thread = threading.Thread(target=keep_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
