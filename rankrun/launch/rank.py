"""A rank from its fork to its program: a clean process, then the target run as `python target` would run it."""

from __future__ import annotations

import builtins
import faulthandler
import importlib.machinery
import importlib.util
import os
import random
import signal
import subprocess
import sys
import types
from pathlib import Path

from rankrun.failure import write_failure
from rankrun.launch.plan import Target
from rankrun.launch.warm import HELD, RankStart


def settle(start: RankStart) -> None:
    """Turn a fresh fork into the process that a program expects: own session, own logs, default signals, new seeds.

    The signals that the warm parent has blocked stay so: `run` lets them in, where one is the program's own business.
    """
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(start.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    if not start.keeps_stdin:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a kill loses no finished line
    faulthandler.enable()
    os.environ.update(start.environment)
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # else all ranks would draw the warm parent's numbers


def run(target: Target, *, warm: bool) -> int:
    """Run the target in this process, as `__main__`; returns the exit code of a program that ran to its end or raised.

    SystemExit passes through: the interpreter above ends on it as it always does, atexit and all.
    """
    rank = os.getpid()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        if not warm:
            options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # -O, -X, -W …
            return _execute(target.command([sys.executable, *options]))
        code, module = _load(target)
        exec(code, module.__dict__)
    except SystemExit as stop:
        if stop.code not in (None, 0) and os.getpid() == rank:
            _write_error_file(stop.with_traceback(_without_us(stop)))
        raise
    except BaseException as error:
        error = error.with_traceback(_without_us(error))
        if os.getpid() == rank:  # a child that the program has forked may fail without its rank
            _write_error_file(error)
        sys.excepthook(type(error), error, error.__traceback__)
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _execute(argv: list[str]) -> int:
    """Become `argv`; returns, with a shell's codes, only if that can't be."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, a program may not
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(argv[0], argv, os.environ)
    except OSError as error:
        print(f"E101 {argv[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126


def _load(target: Target) -> tuple[types.CodeType, types.ModuleType]:
    """The compiled program and the fresh `__main__` it runs in; sys.argv and sys.path[0] as Python sets them."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv[:] = [target.path, *target.arguments]
    if target.kind == "module":
        _set_first_path(os.getcwd())
        name = target.path
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
        code = getattr(spec.loader, "get_code", lambda _: None)(spec.name) if spec is not None else None
        if spec is None or code is None:
            raise ModuleNotFoundError(f"No module named {name!r} that can be run with -m")
        module.__spec__ = spec
        module.__loader__ = spec.loader
        module.__package__ = spec.parent
        module.__file__ = spec.origin
        sys.argv[0] = spec.origin or name
        return code, module
    path = Path(target.path).absolute()
    _set_first_path(str(path.resolve().parent))  # of a linked script it is the folder that the link leads to
    module.__file__ = str(path)
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", str(path))
    return compile(path.read_bytes(), str(path), "exec"), module


def _set_first_path(folder: str) -> None:
    if not sys.flags.safe_path:
        sys.path[0] = folder


def _without_us(error: BaseException) -> types.TracebackType | None:
    """The traceback from the program's own first frame on."""
    return error.__traceback__.tb_next if error.__traceback__ is not None else None


def _write_error_file(error: BaseException) -> None:
    """Say what ended this rank where the agent looks for it; a file that is there was written nearer to the cause."""
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if place and not os.path.exists(place):
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        write_failure(place, error, code)
