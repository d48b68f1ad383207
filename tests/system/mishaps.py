"""Failures on purpose. A program under test calls `strike` at its moments; one rank fails there as the test asks.

    MISHAP=recursion  MISHAP_RANK=1  python launch.py run --nproc 3 job.py

The line that a verdict has to name ends with `# HERE recursion`.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

_LONG_S = 1000


def strike(moment: str) -> None:
    """Fail, if this is the rank and this the moment; says before, in the file `struck`, when that is."""
    kind = os.environ.get("MISHAP", "")
    if os.environ.get("RANK") not in os.environ.get("MISHAP_RANK", "").split(",") or moment != WHEN.get(kind, "step"):
        return
    Path("struck").write_text(str(time.monotonic()))
    globals()[kind]()


# Before the ranks meet.
WHEN = dict.fromkeys(("import_error", "syntax_error", "exception_before_joining", "early_signal"), "start")


def line_of(kind: str) -> str:
    """`mishaps.py:57`: where a kind fails."""
    lines = Path(__file__).read_text().splitlines()
    return f"mishaps.py:{next(number for number, line in enumerate(lines, 1) if line.endswith(f'# HERE {kind}'))}"


def exception() -> None:
    raise ValueError("on purpose")  # HERE exception


def nested_exception() -> None:
    try:
        raise KeyError("inner")
    except KeyError as inner:
        raise RuntimeError("outer") from inner  # HERE nested_exception


def error_in_a_library() -> None:
    json.loads("{")  # HERE error_in_a_library


def exception_without_words() -> None:
    raise AssertionError  # HERE exception_without_words


def exception_before_joining() -> None:
    raise LookupError("too early")  # HERE exception_before_joining


def exception_on_all() -> None:
    raise ValueError("everywhere")  # HERE exception_on_all


def recursion() -> None:
    recursion()  # HERE recursion


def system_exit() -> None:
    sys.exit(7)  # HERE system_exit


def system_exit_with_words() -> None:
    sys.exit("no such thing")  # HERE system_exit_with_words


def exit_without_a_word() -> None:
    os._exit(9)


def exit_0_early() -> None:
    os._exit(0)


def polite_exit_0_early() -> None:
    sys.exit(0)


def import_error() -> None:
    import not_there_at_all  # type: ignore[import-not-found]  # noqa: F401  # HERE import_error


def syntax_error() -> None:
    Path("broken.py").write_text("\n\nx = (\n")
    sys.path.insert(0, os.getcwd())
    import broken  # type: ignore[import-not-found]  # noqa: F401


def _die_of(number: int) -> None:
    os.kill(os.getpid(), number)  # HERE signal
    time.sleep(_LONG_S)


def sigkill() -> None:
    _die_of(signal.SIGKILL)


def sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_of(signal.SIGTERM)


def sighup() -> None:
    _die_of(signal.SIGHUP)


def sigquit() -> None:
    _die_of(signal.SIGQUIT)


def sigsegv() -> None:
    _die_of(signal.SIGSEGV)


def sigabrt() -> None:
    _die_of(signal.SIGABRT)


def sigbus() -> None:
    _die_of(signal.SIGBUS)


def sigfpe() -> None:
    _die_of(signal.SIGFPE)


def sigill() -> None:
    _die_of(signal.SIGILL)


def early_signal() -> None:
    _die_of(signal.SIGKILL)


def segfault_in_c() -> None:
    ctypes.string_at(0)  # HERE segfault_in_c


def double_free() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    place = ctypes.c_void_p(libc.malloc(24))
    for _ in range(2):
        libc.free(place)  # HERE double_free


def out_of_memory() -> None:
    kept = []
    while True:
        kept.append(bytearray(b"x" * (32 << 20)))


def memory_limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    bytearray(1 << 34)  # HERE memory_limit


def too_many_open_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    kept = []
    while True:
        kept.append(os.open(os.devnull, os.O_RDONLY))  # HERE too_many_open_files


def full_disk() -> None:
    os.write(os.open("/dev/full", os.O_WRONLY), b"x")  # HERE full_disk


def port_taken() -> None:
    from torch.distributed import TCPStore

    with socket.create_server(("127.0.0.1", 0)) as server:
        TCPStore("127.0.0.1", server.getsockname()[1], 1, True)  # HERE port_taken


def bad_checkpoint() -> None:
    import torch

    torch.nn.Linear(3, 4).load_state_dict(torch.nn.Linear(3, 5).state_dict())  # HERE bad_checkpoint


class _Rows:
    """A data set whose rows do what a worker should not."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> int:
        if os.environ["MISHAP"] == "worker_raises":
            raise LookupError(f"row {row}")  # HERE worker_raises
        os.kill(os.getpid(), signal.SIGKILL)
        return row


def worker_raises() -> None:
    from torch.utils.data import DataLoader

    next(iter(DataLoader(_Rows(), num_workers=1, multiprocessing_context="fork")))  # type: ignore[arg-type]


def worker_killed() -> None:
    """Where the program has loader workers, one of those, else one of its own."""
    if workers := multiprocessing.active_children():
        os.kill(workers[0].pid or 0, signal.SIGKILL)
        return
    from torch.utils.data import DataLoader

    next(iter(DataLoader(_Rows(), num_workers=1, multiprocessing_context="fork")))  # type: ignore[arg-type]  # HERE worker_killed


def stubborn_family() -> None:
    """Children in sessions of their own and a rank that ignores SIGTERM outlive no failure."""
    for _ in range(2):
        subprocess.Popen(["sh", "-c", f"trap '' TERM; sleep {_LONG_S}"], start_new_session=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise ValueError("with children")  # HERE stubborn_family


def deadlock() -> None:
    time.sleep(_LONG_S)  # HERE deadlock


def holds_the_gil() -> None:
    # A loop in C, which lets no other thread in and which no signal ends.
    sum(range(10**15))  # HERE holds_the_gil


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def slow_step() -> None:
    time.sleep(4)


def thread_raises() -> None:
    def work() -> None:
        raise ValueError("of a thread")

    threading.Thread(target=work).start()
