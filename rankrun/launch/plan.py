"""What a launch will do, worked out before anything is started: pure functions from options to a frozen plan."""

from __future__ import annotations

import ast
import difflib
import os
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rankrun.errors import OptionError

if TYPE_CHECKING:
    from rankrun.config import Settings
    from rankrun.launch.options import RunOptions

Kind = Literal["config", "script", "module", "command"]

# Read by libraries when they are imported; a script that sets one itself must import them itself.
_READ_AT_IMPORT = re.compile(r"^(OMP|MKL|OPENBLAS|KMP|NUMEXPR|TORCH|PYTORCH|CUDA|NCCL|GLOO|LD)_")
# What the warm parent imports where the target does, torch apart, which it always imports.
_PRELOADABLE = ("torch", "torchvision", "numpy", "PIL")
ASKED_FOR = "asked for"
_MOST_RANKS = 4096  # on one machine
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,@-]{0,127}\Z")


@dataclass(frozen=True)
class Target:
    """The program of every rank. `path` is a script, a module's name or a command; `arguments` follow it."""

    kind: Kind
    path: str
    arguments: tuple[str, ...] = ()

    def command(self, python: list[str]) -> list[str]:
        """The argv that runs it in a process of its own; `python` is the interpreter with its options."""
        if self.kind == "command":
            return [self.path, *self.arguments]
        module = ["-m"] if self.kind == "module" else []
        return [*python, "-u", *module, self.path, *self.arguments]

    @property
    def file(self) -> Path | None:
        """The source file that will be `__main__`, found without importing anything; None if that can't be told."""
        if self.kind == "command":
            return None
        if self.kind != "module":
            return Path(self.path)
        place = Path(*self.path.split("."))
        candidates = (place.with_suffix(".py"), place / "__main__.py")
        return next((path for path in candidates if path.is_file()), None)

    @property
    def folder(self) -> Path:
        """What the program will have as sys.path[0]."""
        return Path.cwd() if self.kind == "module" else Path(self.path).resolve().parent


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

    @property
    def folder(self) -> Path:
        """The run folder; for a new one the time stamp is still missing."""
        return self.runs / self.name

    def lines(self) -> list[str]:
        """The plan in words, for `--dry-run`."""
        start = "warm (torch is imported once)" if self.warm else f"exec ({self.why_not_warm})"
        stamp = "-<date>-<time>" if self.new_folder else ""
        lines = [
            f"target       {self.config or ' '.join([self.target.path, *self.target.arguments])}",
            f"run folder   {self.folder}{stamp}",
            f"ranks        {self.nproc} on this machine",
            f"start        {start}",
            f"preloaded    {', '.join(self.preload) or 'nothing'}",
            f"restarts     {self.max_restarts}",
            f"grace        {self.grace_s:g} s from a notice to SIGTERM",
            *(f"environment  {name}={value}" for name, value in sorted(self.environment.items())),
        ]
        return lines


def make_plan(options: RunOptions, env: Mapping[str, str], settings: Settings | None, *, gpus: int) -> RunPlan:
    """The plan for checked options. `gpus` is what this machine shows; OptionError for what cannot be."""
    target = _target(options, settings)
    nproc = _nproc(options, settings, gpus)
    warm, why_not, preload = _warmth(options.start, target)
    environment = {}
    if settings is not None:
        environment["OMP_NUM_THREADS"] = str(settings.train.threads)  # changes results, so it is the config's
    elif nproc > 1 and "OMP_NUM_THREADS" not in env:
        environment["OMP_NUM_THREADS"] = "1"  # as torchrun does: else each rank starts a thread per core
    if options.debug:
        environment["RANKRUN_DEBUG"] = "1"
    launch = settings.launch if settings is not None else None
    default_restarts = launch.max_restarts if launch is not None else 0
    default_grace = launch.grace_s if launch is not None else 30.0
    return RunPlan(
        target=target,
        config=options.target if settings is not None else None,
        settings=settings,
        name=check_name(options.name) if options.name else default_name(options.target),
        runs=Path(options.runs),
        new_folder=settings is None and not options.name,
        nproc=nproc,
        warm=warm,
        why_not_warm=why_not,
        preload=preload,
        environment=environment,
        max_restarts=options.max_restarts if options.max_restarts is not None else default_restarts,
        grace_s=options.grace_s if options.grace_s is not None else default_grace,
        allow_change=tuple(options.allow_change),
        debug=options.debug,
    )


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


def _target(options: RunOptions, settings: Settings | None) -> Target:
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
        return Target("command", options.target, arguments)
    if options.module:
        return Target("module", options.target, arguments)
    _check_script(options.target)
    return Target("script", options.target, arguments)


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


def _nproc(options: RunOptions, settings: Settings | None, gpus: int) -> int:
    word = options.nproc
    if word is None:
        configured = settings.launch.nproc if settings is not None else None
        word = str(configured) if configured is not None else ("auto" if settings is not None else "1")
    if word == "cpu":
        nproc = os.cpu_count() or 1
    elif word == "gpu":
        if gpus == 0:
            raise OptionError("--nproc gpu: this machine shows no GPU; use --nproc N or --nproc cpu")
        nproc = gpus
    elif word == "auto":
        nproc = gpus or 1
    elif word.isascii() and word.isdigit() and 1 <= int(word) <= _MOST_RANKS:
        nproc = int(word)
    else:
        raise OptionError(f"--nproc {word}: give a number of ranks from 1 to {_MOST_RANKS}, or auto, gpu, cpu")
    if settings is not None and settings.train.device == "cuda" and nproc > gpus:
        cure = f"use --nproc {gpus}" if gpus else "use train.device=cpu"
        ranks = f"{nproc} rank{'' if nproc == 1 else 's'}"
        raise OptionError(f"{ranks} with train.device=cuda, but this machine shows {gpus} GPUs; {cure}")
    if settings is not None and settings.train.global_batch < nproc:
        raise OptionError(
            f"train.global_batch={settings.train.global_batch} is less than {nproc} ranks: some would have no sample; "
            f"use train.global_batch={nproc} or --nproc {settings.train.global_batch}"
        )
    return nproc


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


def _warmth(wanted: str, target: Target) -> tuple[bool, str | None, tuple[str, ...]]:
    """Whether ranks are forked from a process that has torch, if not why, and what that process imports."""
    reason = _why_exec(target)
    if wanted == "exec":
        return False, ASKED_FOR, ()
    if wanted == "warm" and reason is not None:
        raise OptionError(f"--start warm: {reason}; use --start exec")
    if reason is not None:
        return False, reason, ()
    if target.kind == "config":
        # torchvision brings torch._dynamo, which the first optimiser would else import in every rank (0.9 s).
        return True, None, ("torch", "torchvision")
    return True, None, _imports_to_share(target)


def _why_exec(target: Target) -> str | None:
    if target.kind == "command":
        return "the target is no Python program"
    if sys.platform != "linux":
        return f"forking after imports is not safe on {sys.platform}"
    shadowing = next((name for name in _PRELOADABLE if _beside(target.folder, name) is not None), None)
    if shadowing is not None:
        return f"{shadowing} beside {target.path} shadows the installed one"
    early = _sets_before_torch(target.file, target.folder, set()) if target.file is not None else None
    if early is not None:
        return f"{early} before torch is imported"
    return None


def shadowed_by(target: Target, loaded: Mapping[str, types.ModuleType]) -> str | None:
    """The first loaded module that the program would find in its own folder instead; `loaded` is `sys.modules`.

    A forked rank has what its warm parent has loaded, so such a program needs an interpreter of its own.
    """
    folder = target.folder
    for name, module in sorted(loaded.items()):
        if "." in name or name == "__main__":
            continue
        own = _beside(folder, name)
        origin = getattr(module, "__file__", None)
        if own is not None and (origin is None or Path(origin).resolve() != own.resolve()):
            return name
    return None


def _beside(folder: Path, module: str) -> Path | None:
    """The file that `import module` would take from `folder`."""
    candidates = (folder / module / "__init__.py", folder / f"{module}.py")
    return next((path for path in candidates if path.is_file()), None)


def _sets_before_torch(file: Path, folder: Path, seen: set[Path]) -> str | None:
    """`file:line sets NAME` for the first variable read at import that a program sets at its top level ahead of torch.

    Local modules that it imports by then are looked into as well.
    """
    seen.add(file)
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    for statement in tree.body:
        if "environ" in ast.dump(statement):
            for node in ast.walk(statement):
                name = node.value if isinstance(node, ast.Constant) else getattr(node, "arg", None)
                if isinstance(name, str) and _READ_AT_IMPORT.match(name):
                    return f"{file}:{getattr(node, 'lineno', statement.lineno)} sets {name}"
        for name in _imported(statement):
            top = name.split(".")[0]
            if top in _PRELOADABLE:
                return None
            local = _beside(folder, top)
            found = _sets_before_torch(local, folder, seen) if local is not None and local not in seen else None
            if found is not None:
                return found
    return None


def _imported(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    if isinstance(statement, ast.ImportFrom) and statement.level == 0 and statement.module:
        return [statement.module]
    return []


def _imports_to_share(target: Target) -> tuple[str, ...]:
    """torch, and what else of the preloadable packages a program imports at its top level, as it names them."""
    names = {"torch"}
    if target.file is not None:
        for statement in ast.parse(target.file.read_bytes()).body:
            names.update(name for name in _imported(statement) if name.split(".")[0] in _PRELOADABLE)
    return tuple(sorted(names))
