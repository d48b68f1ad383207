"""A rank from its fork to its program: a clean process, then the target run as `python target` would run it."""

from __future__ import annotations

import builtins
import contextlib
import faulthandler
import fcntl
import importlib.machinery
import importlib.util
import os
import random
import re
import resource
import signal
import subprocess
import sys
import types
from pathlib import Path

from rankrun.failure import write_failure
from rankrun.launch.stacks import STACKS_SIGNAL, allow_tracer
from rankrun.launch.target import Target
from rankrun.launch.warm import HELD, RankStart

_PYTHON_IGNORES = {signal.SIGPIPE, signal.SIGXFSZ}
_NAMES_A_WORLD = re.compile(
    r"((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+"
    r"|RANKRUN_(RUN_DIR|ATTEMPT|BEAT|DEBUG))\Z"
)


def settle(start: RankStart) -> None:
    """Turn a fresh fork into the process that a program expects: own session, own logs, default signals, new seeds.

    The signals that the warm parent has blocked stay so: `run` lets them in, where one is the program's own business.
    """
    os.setsid()
    for number in signal.valid_signals() - _PYTHON_IGNORES - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):  # the agent's or the warm parent's
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _open_log(start.log_file, (1, 2) if start.error_log is None else (1,))
        if start.error_log is not None:
            _open_log(start.error_log, (2,))
    except OSError as error:
        raise SystemExit(f"E109 {error.filename}: {error.strerror}; a rank can't begin without its log") from None
    if not start.keeps_stdin:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a kill loses no finished line
    faulthandler.enable()
    if start.stacks is not None:
        # In C and on the signal's own terms, so that a rank answers that holds the GIL or waits in a collective. One
        # that can't open the file is no worse off for it, and the agent says that its stack is missing.
        with contextlib.suppress(OSError):
            place = os.open(start.stacks, os.O_WRONLY | os.O_APPEND)
            faulthandler.register(STACKS_SIGNAL, file=_out_of_reach(place), all_threads=True, chain=False)
    if start.tracer is not None:
        allow_tracer(start.tracer)
    os.environ.update(start.environment)
    if start.strips:
        for name in [name for name in os.environ if _NAMES_A_WORLD.match(name)]:
            del os.environ[name]
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # else all ranks would draw the warm parent's numbers


def _out_of_reach(file: int) -> int:
    """The same file under a high number. A program that closes all that it has not opened would get a low one for a
    file of its own, and the stacks with it."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    high = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, max(most - 8, 64) if most != resource.RLIM_INFINITY else 1 << 16)
    os.close(file)
    return high


def _open_log(name: str, streams: tuple[int, ...]) -> None:
    log = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in streams:
        os.dup2(log, stream)
    os.close(log)


def run(target: Target, *, warm: bool) -> int:
    """Run the target in this process, as `__main__`; returns the exit code of a program that ran to its end or raised.

    SystemExit passes through: the interpreter above ends on it as it always does, atexit and all.
    """
    rank = os.getpid()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        if not warm:
            return _execute(target.command(_python()))
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


def _python() -> list[str]:
    """The interpreter of an executed rank, with this one's options (-O, -X, -W …); fatal signals leave their stacks."""
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    faults = [] if "faulthandler" in sys._xoptions else ["-X", "faulthandler"]
    return [os.environ.get("PYTHON_EXEC") or sys.executable, *options, *faults]


def _execute(argv: list[str]) -> int:
    """Become `argv`; returns, with a shell's codes, only if that can't be."""
    for number in _PYTHON_IGNORES:  # a program may not
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
