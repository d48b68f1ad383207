"""Watching a launch from outside, for as long as it holds its run."""

from __future__ import annotations

import time
from collections.abc import Callable

from rankrun.runfolder import RunFolder
from rankrun.runfolder.holder import life_of, this_process
from rankrun.runfolder.live import heartbeat_of, holder_of


class Vigil:
    """Of the launch that holds `folder` now. Call `look` about every second; no clock but ours is read."""

    def __init__(self, folder: RunFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.holder = holder_of(folder)
        self.gone = self.holder is None
        self.is_here = False  # its process lives on this machine, so that silence says nothing of its end
        self.beats = 0  # changes of the heartbeat that were seen
        self._clock = clock
        self._me = this_process("", "", {})
        self._heartbeat = heartbeat_of(folder)
        self._changed = clock()

    def look(self) -> bool:
        """Whether the launch still holds the run; `gone` says the same afterwards."""
        if self.gone:
            return False
        holder = holder_of(self.folder)
        assert self.holder is not None
        if holder is None:
            self.gone = not self.folder.live.exists()  # else a network disk shows it half
        else:
            life = life_of(self.holder, self._me)
            self.gone = holder.token != self.holder.token or life == "dead"
            self.is_here = life == "alive"
        heartbeat = heartbeat_of(self.folder)
        if heartbeat != self._heartbeat:
            self._heartbeat, self._changed = heartbeat, self._clock()
            self.beats += 1
        return not self.gone

    @property
    def silent_s(self) -> float:
        """Seconds since its heart was seen to beat."""
        return self._clock() - self._changed
