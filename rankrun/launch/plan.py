"""What a launch will do, worked out before anything is started: pure functions from options to a frozen plan."""

from __future__ import annotations

import contextlib
import difflib
import importlib.machinery
import importlib.util
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rankrun.errors import OptionError
from rankrun.launch.joining import joining
from rankrun.launch.target import ASKED_FOR, Target, shadowed_by, warmth
from rankrun.launch.terminal import Choice, Terminal
from rankrun.launch.torchrun import SIGNALS

if TYPE_CHECKING:
    from rankrun.config import Settings
    from rankrun.launch.options import RunOptions

__all__ = ["ASKED_FOR", "RunPlan", "Target", "check_name", "default_name", "make_plan", "shadowed_by", "visible_gpus"]

T = TypeVar("T")
_CONFIG_MARK, _NAME_MARK = "\0config", "\0name"  # no word of a command line holds a NUL
_MOST_RANKS = 4096  # on one machine
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,@-]{0,127}\Z")


@dataclass(frozen=True)
class RunPlan:
    """Everything that `launch.py run` decides before it acts."""

    target: Target
    config: str | None  # the config file, for a target that is one
    settings: Settings | None
    name: str
    runs: Path
    new_folder: bool  # a foreign target without --name: the folder's name gets a time stamp
    nproc: int
    warm: bool
    why_not_warm: str | None
    preload: tuple[str, ...]
    environment: dict[str, str]  # set before anything is imported
    max_restarts: int
    grace_s: float
    allow_change: tuple[str, ...]
    debug: bool
    # Several machines. An endpoint or a file to meet by is there exactly if there are several.
    nnodes: int = 1
    node_rank: int | None = None  # None: by arrival
    endpoint: tuple[str, int] | None = None  # host and port of node 0
    is_host: bool | None = None  # --rdzv-conf is_host: whether this machine is the endpoint's; None: found out
    meet_by_file: Path | None = None  # SLURM's steps: node 0 writes here where it listens
    store_port: int | None = None  # on one machine: --master-port, the port asked for the ranks' store; None: any
    read_timeout_s: float | None = None  # --rdzv-conf read_timeout: for one operation of the ranks' store
    run_id: str = ""  # TORCHELASTIC_RUN_ID
    join_timeout_s: float = 600.0
    local_addr: str | None = None  # the address that other machines reach this one by; None: found out
    role: str = "default"
    stop_grace_s: float = 1.0  # from SIGTERM to SIGKILL, after a failure
    signals: tuple[str, ...] = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    terminal: Terminal = field(default_factory=Terminal)
    virtual_local_rank: bool = False
    hang_timeout_s: float | None = None  # None: learnt, for programs that beat; else no limit
    dist_env: bool = True  # False: no variable of torchrun or ours in the one rank's environment
    preflight: bool = False  # the target is our check of the machines, in place of the one that was named
    resume: tuple[str, ...] = ()  # see resume_words

    @property
    def folder(self) -> Path:
        """The run folder; for a new one the time stamp is still missing."""
        return self.runs / self.name

    def resume_words(self, folder_name: str) -> list[str]:
        """The words after `launch.py` that go on with this run in the folder of that name, below `runs`."""
        config = str(self.runs / folder_name / "config.yaml")
        words = {_CONFIG_MARK: config, _NAME_MARK: folder_name}
        return [words.get(word, word) for word in self.resume]

    def lines(self) -> list[str]:
        """The plan in words, for `--dry-run`."""
        start = "warm (torch is imported once)" if self.warm else f"exec ({self.why_not_warm})"
        stamp = "-<date>-<time>" if self.new_folder else ""
        number = "the next free number" if self.node_rank is None else str(self.node_rank)
        where = f"{self.endpoint[0]} port {self.endpoint[1]}" if self.endpoint is not None else str(self.meet_by_file)
        together = (
            [f"machines     {self.nnodes}; this one is {number}; they meet at {where}"] if self.nnodes > 1 else []
        )
        hang = [f"hang         after {self.hang_timeout_s:g} s without a sign of life"] if self.hang_timeout_s else []
        return [
            f"target       {self.config or ' '.join([self.target.path, *self.target.arguments])}",
            f"run folder   {self.folder}{stamp}",
            f"ranks        {self.nproc} on {'each' if together else 'this'} machine",
            *together,
            f"start        {start}",
            f"preloaded    {', '.join(self.preload) or 'nothing'}",
            f"restarts     {self.max_restarts}",
            f"grace        {self.grace_s:g} s from a notice to SIGTERM",
            f"a failure    {self.stop_grace_s:g} s from SIGTERM to SIGKILL for the other ranks",
            *hang,
            *(f"environment  {name}={value}" for name, value in sorted(self.environment.items())),
        ]


def make_plan(options: RunOptions, env: Mapping[str, str], settings: Settings | None, *, gpus: int) -> RunPlan:
    """The plan for checked options. `gpus` is what this machine shows; OptionError for what cannot be."""
    runs = Path(options.runs)
    how = joining(options, env, runs)
    target = _target(options, settings, env)
    nproc = _nproc(options, settings, gpus, how.nnodes)
    _check_world(options, env, nproc, how.nnodes)
    name = check_name(options.name) if options.name else default_name(options.target)
    environment = _environment(options, env, settings, nproc)
    launch = settings.launch if settings is not None else None
    hang_timeout_s = launch.hang_timeout_s if launch is not None else None
    default_restarts = launch.max_restarts if launch is not None else 0
    if options.preflight:
        name = name if name == "preflight" else f"{name[:100]}-preflight"
        settings, default_restarts, hang_timeout_s = None, 0, None
    warm, why_not, preload = warmth(options.start, target, env)
    return RunPlan(
        target=target,
        config=options.target if settings is not None else None,
        settings=settings,
        name=name,
        runs=runs,
        new_folder=settings is None and not (options.name and not options.preflight),
        nproc=nproc,
        warm=warm,
        why_not_warm=why_not,
        preload=preload,
        environment=environment,
        max_restarts=_or(options.max_restarts, default_restarts),
        grace_s=_or(options.grace_s, launch.grace_s if launch is not None else 30.0),
        allow_change=tuple(options.allow_change),
        debug=options.debug,
        **vars(how),
        run_id=options.rdzv_id or name,
        role=options.role or "default",
        stop_grace_s=_or(options.shutdown_timeout_s, 1.0),
        signals=options.signals or SIGNALS,
        terminal=_terminal(options, settings),
        virtual_local_rank=options.virtual_local_rank,
        hang_timeout_s=_or(options.hang_timeout_s, hang_timeout_s),
        dist_env=options.dist_env,
        preflight=options.preflight,
        resume=_resume(options, settings, runs),
    )


def _or(given: T | None, default: T) -> T:
    return default if given is None else given


def _check_world(options: RunOptions, env: Mapping[str, str], nproc: int, nnodes: int) -> None:
    """Refuse what the number of ranks makes impossible."""
    world_size = nproc * nnodes
    if options.attach is not None and options.attach >= world_size:
        raise OptionError(f"--attach {options.attach}: with {_ranks(world_size)} it is at most {world_size - 1}")
    if not options.dist_env and world_size > 1:
        raise OptionError(f"--no-dist-env is for one rank; {world_size} need the variables that tell them apart")
    shown = env.get("CUDA_VISIBLE_DEVICES")
    if options.virtual_local_rank and shown is not None and len(shown.split(",")) < nproc:
        raise OptionError(
            f"--virtual-local-rank gives each of {_ranks(nproc)} a GPU of its own, and "
            f"CUDA_VISIBLE_DEVICES={shown[:80]} names fewer"
        )


def _environment(options: RunOptions, env: Mapping[str, str], settings: Settings | None, nproc: int) -> dict[str, str]:
    """What the launcher sets for itself, its ranks included, before a library reads it."""
    environment = {}
    if settings is not None:
        environment["OMP_NUM_THREADS"] = str(settings.train.threads)  # changes results, so it is the config's
    elif nproc > 1 and "OMP_NUM_THREADS" not in env:
        environment["OMP_NUM_THREADS"] = "1"  # as torchrun does: else each rank starts a thread per core
    if options.debug:
        environment["RANKRUN_DEBUG"] = "1"
    if options.preflight:  # a module of ours, which an interpreter of its own must find from any folder
        paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [env.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def _terminal(options: RunOptions, settings: Settings | None) -> Terminal:
    asked = (options.tee, options.local_ranks, options.template)
    return Terminal(
        attach=options.attach or 0,
        attached=options.attach is not None,
        template=options.template,
        local_ranks=options.local_ranks,
        redirects=options.redirects or Choice(),
        tee=options.tee or Choice(),
        one_speaks=settings is not None and all(value is None for value in asked),
    )


def _resume(options: RunOptions, settings: Settings | None, runs: Path) -> tuple[str, ...]:
    """The words of `resume_words`, with marks where the folder's name stands; none where nothing can go on."""
    if options.preflight:
        return ()
    place = ("--name", _NAME_MARK, "--runs", str(runs))
    if settings is not None:
        return ("run", _CONFIG_MARK, *place, *options.again)
    dashes = ("--",) if options.target.startswith("-") else ()
    return ("run", *options.again, *place, *dashes, options.target, *options.words)


def check_name(name: str) -> str:
    """The run's name itself, if it can be a folder's; OptionError else."""
    if not _NAME.match(name):
        shown = name if len(name) <= 40 else f"{name[:40]}…"
        raise OptionError(
            f"--name {shown!r}: a run's name is 1 to 128 letters, digits or . _ + = , @ - "
            "and begins with a letter or digit"
        )
    return name


def default_name(target: str) -> str:
    """The name of a run that got none: the stem of its target, with what a folder's name can't hold replaced."""
    stem = Path(target).stem or "run"
    return check_name(re.sub(r"[^A-Za-z0-9._+=,@-]", "-", stem).lstrip("._+=,@-")[:100] or "run")


def _target(options: RunOptions, settings: Settings | None, env: Mapping[str, str]) -> Target:
    if options.preflight:
        words = ["--shared"] if settings is not None else []
        if settings is not None and settings.train.device == "cpu":
            words += ["--device", "cpu"]
        return Target("module", "rankrun.training.preflight", tuple(words))
    if settings is not None:
        program = Path("train.py")
        if not program.is_file():
            raise OptionError(
                f"{options.target} is run by the train.py of the current folder, and there is none in {Path.cwd()}; "
                f"go to the folder that holds it{_home()}"
            )
        return Target("config", str(program))
    arguments = tuple(options.words)
    if options.no_python:
        if "PATH" in env and shutil.which(options.target, path=env["PATH"]) is None:
            raise OptionError(f"{options.target}: no such command on PATH, or it may not be executed")
        return Target("command", options.target, arguments)
    if options.module:
        _check_module(options.target)
        return Target("module", options.target, arguments)
    _check_script(options.target)
    return Target("script", options.target, arguments)


def _check_module(name: str) -> None:
    """Refuse a module whose package is nowhere; what lies below it can't be told without importing it."""
    top = name.partition(".")[0]
    with contextlib.suppress(ImportError, ValueError):
        if importlib.machinery.PathFinder.find_spec(top, [""]) or importlib.util.find_spec(top):
            return
    raise OptionError(f"-m {name}: there is no module {top!r} here or among the installed ones")


def _home() -> str:
    """Where the train.py of this clone is, if this is one."""
    clone = Path(__file__).resolve().parents[2]
    return f" (cd {clone})" if (clone / "train.py").is_file() else ""


def _check_script(name: str) -> None:
    """Refuse what Python could not even begin to run, before torch is imported for it."""
    path = Path(name)
    if path.is_dir():
        raise OptionError(f"{name} is a folder; give a config (*.yaml), a Python script, or -m MODULE")
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*") if p.suffix in (".py", ".yaml", ".yml")]
        close = difflib.get_close_matches(path.name, near, n=1)
        hint = f"; did you mean {path.parent / close[0]}?" if close else ""
        raise OptionError(f"{name}: no such file{hint}")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise OptionError(f"{name} can't be read: {error.strerror}") from None
    try:
        compile(source, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        if isinstance(error, SyntaxError) and error.lineno is not None:
            raise OptionError(f"{name}:{error.lineno}  {error.msg}") from None
        # NUL bytes have no line; which of the two errors they are depends on the Python.
        raise OptionError(f"{name} is no Python script ({error}); use --no-python for another program") from None


def _nproc(options: RunOptions, settings: Settings | None, gpus: int, nnodes: int = 1) -> int:
    word = options.nproc
    if word is None:
        configured = settings.launch.nproc if settings is not None else None
        default = "1" if settings is None and not options.preflight else "auto"
        word = str(configured) if configured is not None else default
    if word == "cpu":
        nproc = os.cpu_count() or 1
    elif word == "gpu":
        if gpus == 0:
            raise OptionError("--nproc gpu: this machine shows no GPU; use --nproc N or --nproc cpu")
        nproc = gpus
    elif word == "auto":
        nproc = gpus or 1
    elif word.isascii() and word.isdigit() and len(word) <= 6 and 1 <= int(word) <= _MOST_RANKS:
        nproc = int(word)
    else:
        raise OptionError(f"--nproc {word}: give a number of ranks from 1 to {_MOST_RANKS}, or auto, gpu, cpu")
    if settings is not None and settings.train.device == "cuda" and nproc > gpus:
        cure = f"use --nproc {gpus}" if gpus else "use train.device=cpu"
        raise OptionError(f"{_ranks(nproc)} with train.device=cuda, but this machine shows {gpus} GPUs; {cure}")
    world_size = nproc * nnodes
    if settings is not None and settings.train.global_batch < world_size:
        fewer = settings.train.global_batch // nnodes
        cure = f" or --nproc {fewer}" if fewer else ""
        raise OptionError(
            f"train.global_batch={settings.train.global_batch} is less than {_ranks(world_size)}: some would have no "
            f"sample; use train.global_batch={world_size}{cure}"
        )
    return nproc


def _ranks(count: int) -> str:
    return f"{count} rank{'' if count == 1 else 's'}"


def visible_gpus(env: Mapping[str, str]) -> int:
    """GPUs that a rank could use, told without importing torch."""
    shown = env.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        named = [part.strip() for part in shown.split(",") if part.strip()]
        # CUDA stops at the first index it cannot use; -1 is the usual way to say none.
        return named.index("-1") if "-1" in named else len(named)
    driver = Path("/proc/driver/nvidia/gpus")
    if driver.is_dir():
        return sum(1 for _ in driver.iterdir())
    return sum(1 for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit())
