from __future__ import annotations

import pytest

from tests.system.doors import Doors, clean_environment


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
