"""How a rank ends when something is wrong: told mistakes as lines, everything else as a traceback; never by hanging."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NoReturn

from rankrun.errors import ExitCode, MachineError, format_error, is_told, told_by
from rankrun.failure import PEER_GONE, write_failure

_LEAVE_LIMIT_S = 5.0
_INSTALLED = ("torch", "torchvision", "numpy", "safetensors", "PIL", "matplotlib")


def leave(code: int) -> NoReturn:
    """Ends this process with `code` although a thread may still wait for a rank that is gone.

    gloo has no abort: its threads wait for a dead peer up to 30 minutes, and the interpreter's normal exit waits for
    them. Exit functions run first (they end the loader's workers), for 5 s at most.
    """
    guard = threading.Timer(_LEAVE_LIMIT_S, os._exit, (code,))
    guard.daemon = True
    guard.start()
    with suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@contextmanager
def report_errors(
    environ: Mapping[str, str], *, debug: bool = False, leave: Callable[[int], NoReturn] = leave
) -> Iterator[None]:
    """Around everything a door does: an error that leaves the block ends the process with the right code.

    A *told* error (one with `code` and `exit_code`, see rankrun.errors) is shown as its lines, by the rank that it
    names, or by the first rank of each node where all raise alike; `debug` adds the traceback. Any other exception is
    shown as Python does, exit code 1. Where a launcher gave a TORCHELASTIC_ERROR_FILE the error is put there in
    torch's form, with `told` and `exit_code` beside it.
    """
    try:
        yield
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = ExitCode.FAILED
        if code and (place := environ.get("TORCHELASTIC_ERROR_FILE")):
            write_failure(place, end, int(code))  # an exit code alone does not say which line left
        leave(code or ExitCode.DONE)
    except KeyboardInterrupt:
        print("interrupted; nothing was saved since the last checkpoint", file=sys.stderr)
        leave(ExitCode.INTERRUPTED)
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name in _INSTALLED:
            error = MachineError(
                f"{error.name} is not installed for {sys.executable}; `make setup` makes an environment"
            )
        told = is_told(error)
        exit_code = int(getattr(error, "exit_code", ExitCode.FAILED)) if told else int(ExitCode.FAILED)
        if debug or not (told or _lost_a_peer(error)):
            traceback.print_exception(error)
        elif not told:
            rank = environ.get("RANK") or environ.get("SLURM_PROCID") or "0"
            print(f"rank {rank} lost a peer, whose own log has the cause: {error}", file=sys.stderr)
        elif _speaks(error, environ):
            print(format_error(error), file=sys.stderr)
        if place := environ.get("TORCHELASTIC_ERROR_FILE"):
            write_failure(place, error, exit_code)
        leave(exit_code)


def _lost_a_peer(error: BaseException) -> bool:
    """Whether this rank only noticed that another one is gone: its traceback would hide the other's words."""
    return isinstance(error, RuntimeError) and PEER_GONE.search(format_error(error)) is not None


def _speaks(error: BaseException, environ: Mapping[str, str]) -> bool:
    speaker = told_by(error)
    if speaker is None:
        local_rank = environ.get("LOCAL_RANK") or environ.get("SLURM_LOCALID") or "0"
        return local_rank == "0"
    rank = environ.get("RANK") or environ.get("SLURM_PROCID") or "0"
    return rank == str(speaker)
