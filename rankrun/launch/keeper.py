"""The keeper: a thread of the agent that shows once a second that the launch lives, and hears that it is to stop.

It is a thread because it alone touches the disk: a network disk that hangs for a minute delays a sign of life, never
the agent's loop, a rank's end or a signal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from rankrun.errors import RankrunError
from rankrun.runfolder import Claim, RunFolder
from rankrun.runfolder.stopping import is_stop_wanted

_EVERY_S = 1.0
_LAST_LOOK_S = 2.0


class Keeper:
    """Beats for `claim` and watches `folder` for its stop marker, from `start` to `close`.

    `status` is the agent's to set at any time, the first word one of rankrun.runfolder.state.LIVE: "running train
    step 1200". `stop_wanted` becomes True when the marker is there, `error` when another launch holds the folder and
    this one must write nothing more; for each of the two `wake` is called once, from the thread.
    """

    def __init__(self, claim: Claim, folder: RunFolder, wake: Callable[[], None], *, every_s: float = _EVERY_S) -> None:
        self.status = ""
        self.stop_wanted = False
        self.error: RankrunError | None = None
        self._claim = claim
        self._folder = folder
        self._wake = wake
        self._every_s = every_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="keeper", daemon=True)

    @property
    def has_news(self) -> bool:
        """Whether the launch is to end, for either reason."""
        return self.stop_wanted or self.error is not None

    def start(self) -> None:
        """Begin; only after the last fork of this process."""
        self._thread.start()

    def close(self, limit_s: float = _LAST_LOOK_S) -> None:
        """End. A disk that hangs holds the thread, but not its caller for longer than `limit_s`."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(limit_s)

    def _work(self) -> None:
        while self.error is None and not self._closed.is_set():
            self._look()
            self._closed.wait(self._every_s)

    def _look(self) -> None:
        try:
            if not self.stop_wanted and is_stop_wanted(self._folder):
                self.stop_wanted = True
                self._wake()
            # The word "stopping" is the answer that `stop` waits for.
            self._claim.beat(f"stopping {self.status}" if self.stop_wanted else self.status)
        except OSError:
            return  # the disk does not answer; the next look is a second away
        except RankrunError as error:
            if not self._closed.is_set():  # after `close` the folder is let go of, and nothing is lost
                self.error = error
                self._wake()
