from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rankrun.launch.oom import OomKiller

V2 = "35 24 0:30 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "35 24 0:30 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "36 24 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def events(oom_kill: int) -> str:
    return f"low 0\nhigh 0\nmax 7\noom {oom_kill}\noom_kill {oom_kill}\noom_group_kill 0\n"


def test_cgroup_v2_with_the_limit_of_the_group_above(tmp_path):
    group = "sys/fs/cgroup/jobs/7"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/jobs/7\n",
            "proc/self/mountinfo": V2.format(root="/"),
            f"{group}/memory.events": events(3),
            f"{group}/memory.max": "max\n",
            "sys/fs/cgroup/jobs/memory.events": events(9),
            "sys/fs/cgroup/jobs/memory.max": f"{5 << 29}\n",
        },
    )
    killer = OomKiller(tmp_path)
    assert killer.killed_since() is None
    write(tmp_path, {f"{group}/memory.events": events(4), "sys/fs/cgroup/jobs/memory.events": events(10)})
    assert killer.killed_since() == "by the kernel, because the job reached its memory limit of 2.5 GiB"
    assert OomKiller(tmp_path).killed_since() is None, "what was before it was made does not count"


def test_cgroup_v1_without_a_limit(tmp_path):
    group = "sys/fs/cgroup/memory/job"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu:/elsewhere\n4:memory:/job\n0::/\n",
            "proc/self/mountinfo": V1.format(root="/"),
            f"{group}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
            f"{group}/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    killer = OomKiller(tmp_path)
    write(tmp_path, {f"{group}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"})
    assert killer.killed_since() == "by the kernel, because the job ran out of memory"


@pytest.mark.parametrize(("mounted", "told"), [("/docker/abc", "/docker/abc/x"), ("/docker/abc", "/x"), ("/", "/../x")])
def test_a_container_is_mounted_at_its_own_group(tmp_path, mounted, told):
    """Whichever of the three ways it is told, a counter of the group, or of the one it is mounted at, is found."""
    write(
        tmp_path,
        {
            "proc/self/cgroup": f"0::{told}\n",
            "proc/self/mountinfo": V2.format(root=mounted),
            "sys/fs/cgroup/memory.events": events(0),
        },
    )
    killer = OomKiller(tmp_path)
    write(tmp_path, {"sys/fs/cgroup/memory.events": events(1)})
    assert killer.killed_since() is not None


def test_without_a_counting_group_the_machine_is_asked(tmp_path):
    write(tmp_path, {"proc/vmstat": "pgfault 1\noom_kill 4\n", "proc/self/cgroup": "0::/\n"})
    killer = OomKiller(tmp_path)
    assert killer.killed_since() is None
    write(tmp_path, {"proc/vmstat": "pgfault 9\noom_kill 5\n"})
    assert killer.killed_since() == "by the kernel, because this machine ran out of memory"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "garbage\n::\n0:x:/\n", "proc/self/mountinfo": "short - x\n\n- - -\n", "proc/vmstat": ""},
        {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2.format(root="/"), "proc/vmstat": "oom_kill x\n"},
    ],
)
def test_where_nothing_is_told_nothing_is_claimed(tmp_path, files):
    write(tmp_path, files)
    assert OomKiller(tmp_path).killed_since() is None


def test_groups_that_come_and_go(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a\n",
            "proc/self/mountinfo": V2.format(root="/"),
            "sys/fs/cgroup/a/memory.events": events(1),
        },
    )
    killer = OomKiller(tmp_path)
    (tmp_path / "sys/fs/cgroup/a/memory.events").unlink()
    assert killer.killed_since() is None


@pytest.mark.needs("memcg")
def test_a_real_kill(memcg):
    """A process in a group of 64 MiB sees that the kernel killed its child, and not that somebody else did."""
    script = (
        "import os, signal\nfrom rankrun.launch.oom import OomKiller\nkiller = OomKiller()\n"
        "def child(act):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n        act()\n        os._exit(0)\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "print(child(lambda: os.kill(os.getpid(), signal.SIGKILL)), killer.killed_since())\n"
        "print(child(lambda: [bytearray(1 << 20) for _ in range(300)]), killer.killed_since())\n"
    )
    done = subprocess.run(memcg(64 << 20, [sys.executable, "-c", script]), capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "-9 None",
        "-9 by the kernel, because the job reached its memory limit of 64 MiB",
    ], done.stderr
