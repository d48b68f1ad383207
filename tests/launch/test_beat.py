from __future__ import annotations

import mmap
import struct
from contextlib import ExitStack
from itertools import pairwise

import pytest

from rankrun.beat import SIZE_BYTES, Beat, Phase, Reading
from rankrun.launch.workers import BeatMap


class Clock:
    def __init__(self) -> None:
        self.s = 5.0

    def monotonic_ns(self) -> int:
        return int(self.s * 1e9)


class Rank:
    """A beat in a fake time, and what a reader sees of it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.memory = mmap.mmap(-1, SIZE_BYTES)
        self.beat = Beat(self.memory)

    def write(self, phase: Phase, after_s: float, step: int = 0) -> None:
        self.clock.s += after_s
        self.beat.write(step, 0, phase)

    @property
    def usual_s(self) -> list[float]:
        return [round(value, 3) for value in Reading.of(self.memory[:]).usual_s]


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> Rank:
    clock = Clock()
    monkeypatch.setattr("rankrun.beat.time", clock)
    return Rank(clock)


def test_the_agent_reads_what_the_rank_writes(tmp_path):
    beat_map = BeatMap(tmp_path, 0)
    assert not beat_map.read().opened
    beat = Beat.open(beat_map.path)
    assert (beat_map.read().opened, beat_map.read().phase) == (True, Phase.START)
    beat.write(7, 640, Phase.STEP)
    first = beat_map.read()
    assert (first.step, first.position, first.phase, first.stop_step) == (7, 640, Phase.STEP, None)
    beat.agreed(9)
    beat.write(8, 704, Phase.SAVE)
    assert beat_map.read().stop_step == 9
    assert beat_map.read().monotonic_ns > first.monotonic_ns
    beat_map.close()
    assert list(tmp_path.iterdir()) == []


def test_without_an_agent_it_writes_nowhere():
    with Beat.open(None) as beat:
        beat.write(1, 1, Phase.STEP)


def test_garbage_in_the_map_is_an_unopened_beat():
    for raw in (b"\xff" * SIZE_BYTES, bytes(SIZE_BYTES)):
        assert not Reading.of(raw).opened
        assert not Reading.of(raw).started
        assert Reading.of(raw).phase == Phase.START


def test_a_phase_that_nobody_knows_counts_as_a_start(rank: Rank):
    struct.pack_into("=I", rank.memory, 4, 77)
    assert Reading.of(rank.memory[:]).phase == Phase.START


def test_leaving_without_an_exception_says_done(rank: Rank):
    with rank.beat:
        rank.write(Phase.SAVE, 1, step=12)
    reading = Reading.of(rank.memory[:])
    assert (reading.phase, reading.step) == (Phase.DONE, 12)


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(0), SystemExit(3)])
def test_an_exception_does_not_say_done(rank: Rank, error: BaseException):
    rank.write(Phase.STEP, 1)
    with pytest.raises(type(error)), rank.beat:
        raise error
    assert Reading.of(rank.memory[:]).phase == Phase.STEP


def test_as_the_outermost_way_out_it_says_done_last(rank: Rank):
    seen = []
    with rank.beat, ExitStack() as ways_out:
        ways_out.callback(lambda: seen.append(Reading.of(rank.memory[:]).phase))
        rank.write(Phase.STEP, 1)
    assert seen == [Phase.STEP]


def test_started_means_that_the_start_was_left(rank: Rank):
    rank.write(Phase.START, 5)
    assert not Reading.of(rank.memory[:]).started
    rank.write(Phase.STEP, 5)
    rank.write(Phase.START, 5)  # of the next epoch
    assert Reading.of(rank.memory[:]).started


def test_a_phase_is_known_once_it_was_left(rank: Rank):
    assert rank.usual_s == [0, 0, 0, 0]
    rank.write(Phase.START, 7)
    assert rank.usual_s == [0, 0, 0, 0]
    rank.write(Phase.EVALUATE, 3)
    assert rank.usual_s == [7, 0, 0, 0]
    for _ in range(100):
        rank.write(Phase.EVALUATE, 2)
    rank.write(Phase.EVALUATE, 40)
    assert rank.usual_s == [7, 0, 0, 0]
    rank.write(Phase.SAVE, 1)
    assert rank.usual_s == [7, 0, 40, 0]
    rank.write(Phase.STEP, 9)
    assert rank.usual_s == [7, 0, 40, 9]
    rank.write(Phase.EVALUATE, 1)
    rank.write(Phase.EVALUATE, 60)  # known by now, so this counts at once
    assert rank.usual_s == [7, 1, 60, 9]


def test_a_step_is_known_from_the_first_which_the_second_replaces(rank: Rank):
    rank.write(Phase.STEP, 1)
    rank.write(Phase.STEP, 600)
    assert rank.usual_s[Phase.STEP] == 600
    rank.write(Phase.STEP, 2)
    assert rank.usual_s[Phase.STEP] == 2
    rank.write(Phase.STEP, 5)
    assert rank.usual_s[Phase.STEP] == 5


def test_a_stall_fades_step_by_step(rank: Rank):
    for after_s in (1, 1, 1, 20):
        rank.write(Phase.STEP, after_s)
    usual = []
    for _ in range(500):
        rank.write(Phase.STEP, 1)
        usual.append(rank.usual_s[Phase.STEP])
    assert all(later <= earlier for earlier, later in pairwise(usual))
    assert usual[10] > 15
    assert usual[-1] == 1


def test_two_beats_in_one_moment_are_no_unknown_silence(rank: Rank):
    rank.write(Phase.STEP, 0)
    rank.write(Phase.STEP, 0)
    assert Reading.of(rank.memory[:]).usual_s[Phase.STEP] > 0
