"""The one place where the agent waits: for ranks, signals, other nodes and the keeper, whichever comes first."""

from __future__ import annotations

import contextlib
import selectors
from typing import Protocol


class HasFileno(Protocol):
    """Whatever a selector can watch."""

    def fileno(self) -> int: ...


class Waiter:
    """Wakes when anything that it watches becomes readable."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, source: HasFileno) -> None:
        """Wake for `source`, too."""
        self._selector.register(source, selectors.EVENT_READ)

    def forget(self, source: HasFileno) -> None:
        """No longer wake for `source`; call it before the source is closed."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def wait(self, timeout_s: float) -> None:
        """Return when something is readable, at the latest after `timeout_s`."""
        self._selector.select(max(0.0, timeout_s))

    def close(self) -> None:
        """Give the selector back; what it watched stays open."""
        self._selector.close()
