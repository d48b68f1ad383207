from __future__ import annotations

import os
import signal
from multiprocessing.connection import wait

import pytest

from rankrun.launch.signals import CODE_OF, HANDLED, NOTICES, Signals


@pytest.fixture
def kept():
    """Takes every handler back."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    for number, handler in before.items():
        if handler is not None and number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, handler)


def readable(signals: Signals) -> bool:
    return bool(wait([signals], 0))


def test_signals_are_noted_in_order_and_wake_a_selector(kept):
    signals = Signals(["SIGALRM"])
    assert signals.told_to_leave is None
    for number in (signal.SIGUSR1, signal.SIGALRM, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    assert signals.seen == [signal.SIGUSR1, signal.SIGALRM, signal.SIGTERM, signal.SIGUSR1]
    assert signals.told_to_leave is signal.SIGALRM
    assert readable(signals)
    signals.drain()
    assert not readable(signals)
    signals.close()


def test_what_is_handled(kept):
    def handled() -> set[int]:
        return {n for n in signal.valid_signals() if getattr(signal.getsignal(n), "__func__", None) is Signals._note}

    Signals().close()
    assert handled() == set(NOTICES)
    Signals(["SIGCONT"]).close()
    assert handled() == {*HANDLED, signal.SIGCONT}


def test_an_ignored_signal_stays_ignored(kept):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = Signals(["SIGHUP"])
    os.kill(os.getpid(), signal.SIGHUP)
    assert signals.seen == []
    signals.close()


def test_every_signal_has_an_exit_code():
    told = [CODE_OF[getattr(signal, name)] for name in ("SIGINT", "SIGHUP", "SIGTERM", "SIGUSR2", "SIGQUIT", "SIGALRM")]
    assert told == [130, 130, 143, 75, 131, 142]
    assert set(CODE_OF) == set(signal.Signals)
