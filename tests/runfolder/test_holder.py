from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from rankrun.runfolder import holder
from rankrun.runfolder.holder import Holder, life_of, this_process

linux = pytest.mark.needs("linux")


def me() -> Holder:
    return this_process("t", "2026-01-01T00:00:00Z", {"SLURM_JOB_ID": "42"}, "n1")


def test_a_holder_comes_back_from_json() -> None:
    assert Holder.from_json(me().as_json()) == me()
    assert str(me()) == f"host n1, pid {os.getpid()}, SLURM job 42, since 2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "{}", '{"token": 1}', me().as_json().replace('"pid": ', '"pid": "x')]
)
def test_what_is_no_holder_is_none(text: str) -> None:
    assert Holder.from_json(text) is None


@linux
def test_this_process_lives() -> None:
    assert life_of(me(), me()) == "alive"


@linux
def test_another_start_time_is_another_process() -> None:
    assert life_of(replace(me(), started=1), me()) == "dead"


@linux
def test_a_process_that_ended_is_dead_also_before_it_is_waited_for() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held = replace(me(), pid=child.pid, started=holder._start(child.pid))
    assert life_of(held, me()) == "alive"
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert life_of(held, me()) == "dead"
    child.communicate()
    assert life_of(held, me()) == "dead"


@linux
@pytest.mark.parametrize("pid", [0, -1, 2**40, 10**30])
def test_a_pid_that_can_not_be_is_dead(pid: int) -> None:
    assert life_of(replace(me(), pid=pid), me()) == "dead"


@pytest.mark.parametrize("change", [{"boot_id": "other"}, {"namespace": "pid:[1]"}, {"boot_id": ""}])
def test_another_machine_or_container_says_nothing_about_a_pid(change: dict[str, str]) -> None:
    # pid 2**22 + 1 can't be on this machine, so "dead" would be the answer if it was asked.
    held = replace(me(), boot_id="here", pid=2**22 + 1, **{k: v for k, v in change.items() if k != "boot_id"})
    held = replace(held, boot_id=change.get("boot_id", "here"))
    assert life_of(held, replace(me(), boot_id="here")) == "unknown"


def test_without_boot_ids_the_host_and_a_missing_pid_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder, "_start", lambda pid: None)  # as where there is no /proc
    here = replace(me(), boot_id="", namespace="", started=None)
    assert life_of(here, here) == "unknown"
    assert life_of(replace(here, host="n2"), here) == "unknown"
    assert life_of(replace(here, pid=2**22 + 1), here) == "dead"
