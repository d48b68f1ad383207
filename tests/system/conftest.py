from __future__ import annotations

import pytest

from tests.system.doors import Doors, clean_environment
from tests.system.hosts import Hosts


@pytest.fixture
def doors(tmp_path):
    """Commands in an empty folder; the test fails if a process of any of them is left at its end."""
    opened = Doors(tmp_path, clean_environment())
    yield opened
    left = {command.mark: command.family() for command in opened.started if command.process.poll() is not None}
    for command in opened.started:
        command.kill_all()
        command.process.wait()
    assert not any(left.values()), f"processes left: {left}"


@pytest.fixture
def hosts(doors):
    """Makes hosts: `hosts(3)`; the test fails if what runs in one at its end belongs to no command under way."""
    made = []

    def make(count, **options):
        made.append(Hosts(doors, count, **options))
        return made[-1]

    yield make
    # Not the families of ended commands, which the doors look for, but also what has left its command's environment.
    alive = {pid for command in doors.started if command.process.poll() is None for pid in command.family()}
    left = {
        name: pids
        for one in made
        for host, name in enumerate(one.names)
        if (pids := sorted(set(one.processes(host)) - alive))
    }
    for one in made:
        one.close()
    assert not left, f"processes left in hosts: {left}"
