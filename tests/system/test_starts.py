"""Crowds of launches do not collide, and a launch that is killed at any moment of its start leaves nothing."""

from __future__ import annotations

import time

import pytest

from tests.system.starts import Place, kill_many, start_many

pytestmark = [pytest.mark.needs("linux", "netns"), pytest.mark.slow]

SEED = 4


@pytest.fixture
def place(doors, hosts):
    return Place(doors, hosts(1))


def test_twenty_starts_in_groups_of_ten(place):
    tally = start_many(place, 20, at_once=10)
    assert (tally.done, tally.failed, tally.left, place.unfinished()) == (20, [], [], [])


def test_twelve_kills_at_random_moments_of_the_start(place):
    began = time.monotonic()
    start_many(place, 1, at_once=1)
    start_up_s = time.monotonic() - began
    tally = kill_many(place, 12, at_once=4, seed=SEED, within_s=3 * start_up_s)
    assert (tally.done, tally.failed, tally.left, tally.tracebacks) == (12, [], [], [])
    assert tally.hits > 0
