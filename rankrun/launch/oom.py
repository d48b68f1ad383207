"""Whether the kernel has killed somebody for want of memory: SIGKILL itself does not say who sent it.

    cgroup v2    memory.events        oom_kill    counted in the victim's group and all above it
    cgroup v1    memory.oom_control   oom_kill    counted in the victim's group alone
    no cgroup    /proc/vmstat         oom_kill    counted for the whole machine

Killers in user space (earlyoom, systemd-oomd, a kubelet) send a SIGKILL that no counter shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_LIMITS = ("memory.max", "memory.limit_in_bytes")
_NO_LIMIT_BYTES = 1 << 60  # cgroup v1 writes a number near 2^63 for none


class OomKiller:
    """Remembers the kernel's counters as they are when it is made, at the beginning of an attempt."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._groups = list(_groups(root))
        self._before = self._counts()

    def killed_since(self) -> str | None:
        """A sentence if the kernel has killed a process of this job's group, or where there is none of this machine,
        since this object was made; None if it has not, or does not tell.
        """
        before, now = self._before, self._counts()
        grown = [place for place in now if place in before and now[place] > before[place]]
        if not grown:
            return None
        if self._vmstat in grown:
            return "by the kernel, because this machine ran out of memory"
        limit = self._limit()
        why = f"reached its memory limit of {_size(limit)}" if limit is not None else "ran out of memory"
        return f"by the kernel, because the job {why}"

    @property
    def _vmstat(self) -> Path:
        return self._root / "proc/vmstat"

    def _counts(self) -> dict[Path, int]:
        """oom_kill of the groups that this process is in; of the machine only if no group counts."""
        events = [group / name for group in self._groups for name in ("memory.events", "memory.oom_control")]
        found = {place: count for place in events if (count := _count(place)) is not None}
        if not found and (count := _count(self._vmstat)) is not None:
            found[self._vmstat] = count
        return found

    def _limit(self) -> int | None:
        """The lowest limit in bytes on the way up, None without one."""
        texts = [_read(group / name) for group in self._groups for name in _LIMITS]
        limits = [int(text) for text in texts if text is not None and text.strip().isdecimal()]
        return min((limit for limit in limits if limit < _NO_LIMIT_BYTES), default=None)


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's memory cgroups, its own first and then each above it, as they are mounted here."""
    own = dict(_own_paths(_read(root / "proc/self/cgroup") or ""))
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        fields, _, kind = line.partition(" - ")
        words, types = fields.split(), kind.split()
        if len(words) < 5 or len(types) < 3:
            continue
        version = 2 if types[0] == "cgroup2" else 1 if types[0] == "cgroup" and "memory" in types[2].split(",") else 0
        if version not in own:
            continue
        # A container may be mounted at its own group while the path is still told from the host's root.
        mounted, place = words[3].rstrip("/"), root / words[4].lstrip("/")
        path = own[version]
        below = path.removeprefix(mounted) if path == mounted or path.startswith(f"{mounted}/") else "/"
        yield from _upwards(place, below)


def _own_paths(text: str) -> Iterator[tuple[int, str]]:
    """(version, path) of each line like `0::/job` (v2) or `4:memory:/job` (v1)."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield 2, path
        elif "memory" in controllers.split(","):
            yield 1, path


def _upwards(mount: Path, below: str) -> Iterator[Path]:
    parts = [part for part in below.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _size(size_bytes: int) -> str:
    gib = size_bytes / (1 << 30)
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.0f} MiB"


def _count(place: Path) -> int | None:
    found = _COUNT.search(_read(place) or "")
    return int(found[1]) if found else None


def _read(place: Path) -> str | None:
    try:
        return place.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
