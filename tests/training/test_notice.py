from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rankrun.errors import ExitCode
from rankrun.training.notice import Notice

ROOT = Path(__file__).resolve().parents[2]


class Ranks:
    """A fake group: rank 0's values go out, the others' are given beforehand, one per round."""

    def __init__(self, world_size: int, others: list[int]) -> None:
        self.world_size = world_size
        self.others = others

    def start_max(self, value: int) -> Callable[[], int]:
        largest = max(value, self.others.pop(0))
        return lambda: largest


@pytest.fixture(autouse=True)
def _handlers_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_alone_a_notice_counts_at_once() -> None:
    notice = Notice.install(interrupts=True)
    assert notice.agreed(Ranks(1, [])) is None
    os.kill(os.getpid(), signal.SIGUSR2)
    assert notice.agreed(Ranks(1, [])) is ExitCode.SAVED


def test_ranks_read_one_step_later_what_they_started() -> None:
    notice, ranks = Notice.install(interrupts=False), Ranks(2, [0, 1, 1])
    assert notice.agreed(ranks) is None
    assert notice.agreed(ranks) is None
    assert notice.agreed(ranks) is ExitCode.SAVED  # the other rank's, which came in the second round


def test_own_signal_goes_out_with_the_next_round() -> None:
    notice, ranks = Notice.install(interrupts=False), Ranks(2, [0, 0])
    assert notice.agreed(ranks) is None
    os.kill(os.getpid(), signal.SIGUSR2)
    assert notice.agreed(ranks) is None
    assert notice.agreed(ranks) is ExitCode.SAVED


def test_an_interrupt_outranks_a_notice_and_a_second_one_leaves_now() -> None:
    notice = Notice.install(interrupts=True)
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert notice.agreed(Ranks(1, [])) is ExitCode.INTERRUPTED
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_one_that_came_while_it_was_blocked_is_heard() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    signal.signal(signal.SIGUSR2, lambda *_: None)
    # To this thread: in a rank it is the only one, in a test run another one might take the signal.
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
    notice = Notice.install(interrupts=False)
    assert notice.agreed(Ranks(1, [])) is ExitCode.SAVED


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGTERM"])
def test_a_notice_that_comes_while_python_ends_changes_no_exit_code(name):
    program = (
        "import os, signal\n"
        "from rankrun.training.notice import Notice\n"
        "class Late:\n"
        f"    def __del__(self, kill=os.kill, write=os.write, pid=os.getpid(), number=signal.{name}):\n"
        "        kill(pid, number)\n"
        "        write(1, b'sent')\n"
        "late = Late()\n"
        "Notice.install(interrupts=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "sent"), done.stderr
