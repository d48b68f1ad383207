"""Hours of runs in a fake time: what is slow stays alone, what hangs is named."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from dataclasses import replace

import pytest

from rankrun.beat import SIZE_BYTES, Beat, Phase, Reading
from rankrun.launch.watch import LEAST_S, LEAVE_S, UNSEEN_S, Hang, Watch, merge, ranks_in_words

START, STEP, EVALUATE, SAVE, DONE = Phase

MINUTE = 60.0


class Clock:
    def __init__(self) -> None:
        self.ns = 5_000_000_000

    def monotonic_ns(self) -> int:
        return self.ns


class Run:
    """Ranks with real beats, and a watch that looks at them every second."""

    def __init__(self, clock: Clock, world: int = 3, *, limit_s: float | None = None, cooperates: bool = True) -> None:
        self.clock = clock
        self.maps = {rank: mmap.mmap(-1, SIZE_BYTES) for rank in range(world)}
        self.beats: dict[int, Beat] = {}
        self.outputs = dict.fromkeys(range(world), 0)
        self.running = set(range(world))
        self.watch = Watch(limit_s=limit_s, cooperates=cooperates)
        self.hang: Hang | None = None
        self.look()

    def open(self, *ranks: int) -> None:
        for rank in ranks or self.running:
            self.beats[rank] = Beat(self.maps[rank])

    def beat(self, phase: Phase, step: int, *ranks: int, at: int = 0) -> None:
        for rank in ranks or self.running:
            self.beats[rank].write(step, at, phase)

    def look(self) -> None:
        readings = {rank: Reading.of(self.maps[rank][:]) for rank in self.running}
        self.hang = self.watch.look(readings, {rank: self.outputs[rank] for rank in self.running}, self.clock.ns)

    def wait(self, seconds: float) -> float:
        """Let time pass until there is a hang; returns how long that took."""
        passed = 0.0
        while passed < seconds and self.hang is None:
            self.clock.ns += int(1e9)
            passed += 1.0
            self.look()
        return passed

    def steps(self, first: int, count: int, seconds: float = 1.0, *, at: int = 0) -> None:
        for step in range(first, first + count):
            self.beat(STEP, step, at=at)
            self.wait(seconds)

    def begin(self) -> None:
        """Steps 0, 1 and 2 of one second each are done, or under way."""
        self.open()
        self.wait(5)
        self.steps(0, 3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("rankrun.beat.time", clock)
    return clock


# slow, but healthy --------------------------------------------------------------------------------------------------


def import_and_index(run: Run) -> None:
    run.wait(29 * MINUTE)
    run.open()
    run.wait(29 * MINUTE)  # an index of a billion rows
    run.beat(START, 0)
    run.wait(29 * MINUTE)
    run.beat(STEP, 0)


def first_step_compiles(run: Run) -> None:
    run.open()
    run.beat(STEP, 0)
    run.wait(29 * MINUTE)
    run.steps(1, 100)


def long_steps(run: Run) -> None:
    run.open()
    run.steps(0, 5, 90.0)
    run.steps(5, 3, 400.0)  # and now and then one of more than four times that


def micro_batches(run: Run) -> None:
    run.begin()
    for part in range(100):  # of one step
        run.beat(STEP, 3, at=part)
        run.wait(20)


def one_rank_has_all_the_work(run: Run) -> None:
    run.begin()
    run.beat(STEP, 3)
    for part in range(100):
        run.beat(STEP, 3, 2, at=part)
        run.wait(20)


def first_save(run: Run) -> None:
    run.begin()
    run.beat(SAVE, 3)
    run.wait(29 * MINUTE)
    run.steps(3, 3)


def rank_zero_saves_and_all_wait(run: Run) -> None:
    run.begin()
    for step in (3, 4, 5):
        run.beat(SAVE, step)
        run.beat(STEP, step, 1, 2)
        run.wait(3 * MINUTE)
        run.beat(STEP, step, 0)


def saves_grow(run: Run) -> None:
    run.begin()
    for step, seconds in enumerate((20, 90, 400, 1500), start=3):
        run.beat(SAVE, step)
        run.wait(seconds)
        run.steps(step, 1)


def quick_saves_were_never_seen_by_the_watch(run: Run) -> None:
    run.begin()
    for step in range(3, 20):
        run.beat(SAVE, step)
        run.clock.ns += 300_000_000
        run.steps(step, 1)
    run.beat(SAVE, 20)
    run.wait(29)
    run.steps(20, 1)


def first_evaluation(run: Run) -> None:
    run.begin()
    run.beat(EVALUATE, 3)
    run.wait(20 * MINUTE)  # workers start, the disk is cold
    for at in range(300):
        run.beat(EVALUATE, 3, at=at)
        run.wait(1)
    run.wait(2 * MINUTE)  # the slowest node
    run.beat(START, 3)


def epochs_begin_slowly(run: Run) -> None:
    run.open()
    run.wait(2 * MINUTE)
    for epoch in range(4):
        run.beat(START, 100 * epoch)
        run.wait(3 * MINUTE)
        run.steps(100 * epoch, 100)
        run.beat(SAVE, 100 * epoch + 100)
        run.wait(2)
        run.beat(EVALUATE, 100 * epoch + 100)
        run.wait(40 + 10 * epoch)
        for at in range(50):
            run.beat(EVALUATE, 100 * epoch + 100, at=at)
            run.wait(1)


def evaluation_ends_apart(run: Run) -> None:
    run.begin()
    for at in range(100):
        run.beat(EVALUATE, 3, at=at)
        run.wait(1)
    for at in range(100, 200):  # one rank reads from a slow disk
        run.beat(EVALUATE, 3, 1, at=at)
        run.wait(25)


def disk_stalls(run: Run) -> None:
    run.begin()
    for step in range(3, 60):
        run.steps(step, 1, 28.0 if step % 10 == 0 else 1.0)


def suspended_laptop(run: Run) -> None:
    run.begin()
    for step in range(3, 20):
        run.clock.ns += int(8 * 3600e9)
        run.look()
        run.beat(STEP, step)
        run.wait(2)


def stopped_agent_and_slow_step(run: Run) -> None:
    run.begin()
    for _ in range(10):
        run.clock.ns += int(60e9)
        run.look()


def ranks_end_apart(run: Run) -> None:
    run.begin()
    run.beat(DONE, 3)
    for rank in (1, 2):
        run.wait(25)
        run.running.discard(rank)
    run.wait(9)


def resumed_far_on(run: Run) -> None:
    run.open()
    run.wait(MINUTE)
    run.beat(START, 50_000)
    run.wait(20 * MINUTE)
    run.beat(STEP, 50_000)
    run.wait(20 * MINUTE)
    run.steps(50_001, 10)


def person_in_a_debugger(run: Run) -> None:
    run.begin()
    for _ in range(10):
        run.wait(LEAST_S + 1)
        run.watch.excuse()
        run.look()


HEALTHY = [
    import_and_index, first_step_compiles, long_steps, micro_batches, one_rank_has_all_the_work, first_save,
    rank_zero_saves_and_all_wait, saves_grow, quick_saves_were_never_seen_by_the_watch, first_evaluation,
    epochs_begin_slowly, evaluation_ends_apart, disk_stalls, suspended_laptop, stopped_agent_and_slow_step,
    ranks_end_apart, resumed_far_on, person_in_a_debugger,
]  # fmt: skip


@pytest.mark.parametrize("healthy", HEALTHY, ids=lambda case: case.__name__)
def test_slow_but_healthy_is_no_hang(clock: Clock, healthy: Callable[[Run], None]) -> None:
    run = Run(clock)
    healthy(run)
    assert run.hang is None


@pytest.mark.parametrize("who_prints", [[0], [0, 1, 2], []])
def test_a_script_that_knows_nothing_of_us_is_watched_only_if_asked(clock: Clock, who_prints: list[int]) -> None:
    run = Run(clock, limit_s=100.0 if who_prints else None, cooperates=False)
    for _ in range(200):
        run.wait(99)
        for rank in who_prints:
            run.outputs[rank] += 1
        run.look()
    assert run.hang is None


# hangs --------------------------------------------------------------------------------------------------------------


def import_never_ends(run: Run) -> Hang:
    run.open(0, 2)
    run.beat(START, 7, 0, 2)
    return Hang((1,), (0, 2), 0, UNSEEN_S, START, 0)


def first_step_never_ends(run: Run) -> Hang:
    run.open()
    run.wait(5)
    run.beat(STEP, 0)
    return Hang((0, 1, 2), (), 0, UNSEEN_S, STEP, 0)


def stopped_rank(run: Run) -> Hang:
    run.begin()
    run.beat(STEP, 3, 0, 1)
    return Hang((2,), (0, 1), 0, LEAST_S, STEP, 2)


def all_in_one_collective(run: Run) -> Hang:
    run.begin()
    return Hang((0, 1, 2), (), 0, LEAST_S, STEP, 2)


def second_step(run: Run) -> Hang:
    run.open()
    run.beat(STEP, 0)
    run.wait(20 * MINUTE)
    run.steps(1, 2, 2.0)
    run.beat(STEP, 3, 1)
    return Hang((0, 2), (1,), 0, LEAST_S, STEP, 2)


def long_steps_are_known(run: Run) -> Hang:
    run.open()
    run.steps(0, 5, 20.0)
    run.beat(STEP, 5)
    return Hang((0, 1, 2), (), 0, 100.0, STEP, 5)


def one_stall_long_ago(run: Run) -> Hang:
    run.begin()
    run.steps(3, 1, 29.0)
    run.steps(4, 300)
    return Hang((0, 1, 2), (), 0, LEAST_S, STEP, 303)


def rank_zero_in_a_save(run: Run) -> Hang:
    run.begin()
    run.beat(SAVE, 3)
    run.wait(10)
    run.steps(3, 2)
    run.beat(SAVE, 5)
    run.beat(STEP, 5, 1, 2)
    return Hang((0,), (1, 2), 0, 50.0, SAVE, 5)


def one_rank_in_a_later_evaluation(run: Run) -> Hang:
    run.begin()
    for step in (3, 4):
        for at in range(5):
            run.beat(EVALUATE, step, at=at)
            run.wait(1)
        if step == 3:
            run.steps(3, 1)
    run.beat(EVALUATE, 4, 0, 2, at=5)
    run.wait(1)
    run.beat(EVALUATE, 4, 0, 2, at=6)
    return Hang((1,), (0, 2), 0, LEAST_S, EVALUATE, 4)


def beginning_of_a_later_epoch(run: Run) -> Hang:
    run.begin()
    run.beat(SAVE, 3)
    run.wait(1)
    run.beat(START, 3)
    return Hang((0, 1, 2), (), 0, LEAST_S, START, 3)


def epoch_after_a_long_start(run: Run) -> Hang:
    run.open()
    run.wait(20 * MINUTE)
    run.steps(0, 3)
    run.beat(SAVE, 3)
    run.wait(1)
    run.beat(START, 3)
    return Hang((0, 1, 2), (), 0, UNSEEN_S, START, 3)


def first_batch_of_an_epoch_on_one_rank(run: Run) -> Hang:
    run.begin()
    run.beat(SAVE, 3)
    run.beat(START, 3)
    run.clock.ns += 1000
    run.beat(STEP, 3, 0, 2)
    return Hang((1,), (0, 2), 0, LEAST_S, START, 3)


def micro_batch_of_one_rank(run: Run) -> Hang:
    run.begin()
    for at in range(4):
        run.beat(STEP, 3, *((0, 1, 2) if at < 2 else (0, 2)), at=at)
        run.wait(1)
    return Hang((1,), (0, 2), 0, LEAST_S, STEP, 3)


def end_of_the_process(run: Run) -> Hang:
    run.begin()
    run.beat(DONE, 3)
    run.running.discard(0)
    return Hang((1, 2), (), 0, LEAVE_S, DONE, 3)


HANGS = [
    import_never_ends, first_step_never_ends, stopped_rank, all_in_one_collective, second_step, long_steps_are_known,
    one_stall_long_ago, rank_zero_in_a_save, one_rank_in_a_later_evaluation, beginning_of_a_later_epoch,
    epoch_after_a_long_start, first_batch_of_an_epoch_on_one_rank, micro_batch_of_one_rank, end_of_the_process,
]  # fmt: skip


@pytest.mark.parametrize("hangs", HANGS, ids=lambda case: case.__name__)
def test_a_hang_is_named_within_its_limit(clock: Clock, hangs: Callable[[Run], Hang]) -> None:
    run = Run(clock)
    expected = hangs(run)
    assert run.hang is None
    waited = run.wait(2 * UNSEEN_S)
    assert run.hang is not None
    assert waited <= expected.limit_s + 3
    assert run.hang.limit_s == pytest.approx(expected.limit_s, rel=0.1)
    assert replace(run.hang, silent_s=0, limit_s=expected.limit_s) == expected
    assert run.hang.silent_s > run.hang.limit_s
    run.look()
    assert run.hang is not None, "it is said again until a rank goes on"
    for rank in run.running & run.beats.keys():
        run.beats[rank].write(10**6, 0, STEP)
    if not run.running - run.beats.keys():
        run.look()
        assert run.hang is None


@pytest.mark.parametrize("phase", [START, STEP, SAVE, EVALUATE])
def test_a_limit_that_was_given_holds_in_every_phase(clock: Clock, phase: Phase) -> None:
    run = Run(clock, limit_s=10.0)
    run.open()
    run.beat(phase, 0)
    run.look()
    assert run.wait(100) == 11
    assert run.hang is not None
    assert (run.hang.limit_s, run.hang.phase, run.hang.suspects) == (10.0, phase, (0, 1, 2))


def test_a_limit_that_was_given_also_allows_more(clock: Clock) -> None:
    run = Run(clock, limit_s=4000.0)
    run.begin()
    assert run.wait(5000) == pytest.approx(4000, abs=2)


def test_a_script_that_knows_nothing_of_us_and_prints_nothing_for_too_long(clock: Clock) -> None:
    run = Run(clock, limit_s=100.0, cooperates=False)
    run.wait(90)
    run.outputs[1] += 10
    run.look()
    assert run.wait(200) == 101
    assert run.hang == Hang((0, 1, 2), (), 101.0, 100.0, None, None)


def test_a_script_that_opens_its_beat_is_watched_by_it_whatever_it_prints(clock: Clock) -> None:
    run = Run(clock, cooperates=False)
    run.open(1)
    run.beat(STEP, 0, 1)
    run.wait(1)
    run.beat(STEP, 1, 1)
    for _ in range(32):
        run.outputs[0] += 1
        run.wait(1)
    assert run.hang is not None
    assert (run.hang.suspects, run.hang.waiting) == ((1,), ())


def test_nobody_runs_nobody_hangs(clock: Clock) -> None:
    run = Run(clock, world=0, limit_s=1.0)
    assert run.wait(100) == 100
    assert run.hang is None


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        (START, "hung while it got ready: no sign of life for 31 s, at most 30 s are allowed"),
        (STEP, "hung in the step after step 9: no"),
        (EVALUATE, "hung in the evaluation at step 9: no"),
        (SAVE, "hung while saving step 9: no"),
        (DONE, "hung after it had said that it was done: no"),
    ],
)
def test_a_hang_in_words(phase: Phase, words: str) -> None:
    assert Hang((1,), (), 31.2, 30.0, phase, 9).how.startswith(words)


def test_a_hang_in_words_of_one_that_does_not_say() -> None:
    assert Hang((1,), (), 31.2, 30.0, None, None).how == "hung: no sign of life for 31 s, at most 30 s are allowed"


# several nodes ------------------------------------------------------------------------------------------------------


def test_the_node_that_is_behind_has_the_suspects() -> None:
    ahead = Hang((0, 1), (), 40.0, 30.0, STEP, 101)
    behind = Hang((3,), (2,), 39.0, 30.0, STEP, 100)
    assert merge({0: ahead, 1: behind}) == Hang((3,), (0, 1, 2), 39.0, 30.0, STEP, 100)
    starting = Hang((4, 5), (), 1900.0, 1800.0, START, 0)
    assert merge({0: ahead, 1: behind, 2: starting}).suspects == (4, 5)
    assert merge({0: ahead}) == ahead


def test_of_nodes_at_one_step_the_phase_that_is_silent_for_longest_is_behind() -> None:
    saves = Hang((0,), (1,), 300.0, 250.0, SAVE, 100)
    waits = Hang((2, 3), (), 290.0, 30.0, STEP, 100)
    assert merge({0: saves, 1: waits}) == Hang((0,), (1, 2, 3), 300.0, 250.0, SAVE, 100)
    assert merge({0: waits, 1: replace(waits, suspects=(4,), silent_s=280.0)}).suspects == (2, 3, 4)


def test_a_hang_travels_as_json() -> None:
    for hang in (Hang((1, 2), (0,), 31.5, 30.0, SAVE, 7), Hang((0,), (), 5.0, 4.0, None, None)):
        assert Hang.from_message(json.loads(json.dumps(hang.as_message()))) == hang


@pytest.mark.parametrize(
    "change",
    [
        {"suspects": []},
        {"suspects": [-1]},
        {"suspects": [True]},
        {"suspects": "01"},
        {"suspects": 1},
        {"waiting": [[0]]},
        {"silent_s": "nan"},
        {"silent_s": None},
        {"limit_s": 1e400},
        {"phase": 77},
        {"phase": "SAVE"},
        {"phase": None},
        {"step": None},
        {"step": 2**64},
        {"step": 1.5},
    ],
)
def test_what_is_no_hang_is_none(change: dict[str, object]) -> None:
    message = Hang((1, 2), (0,), 31.5, 30.0, SAVE, 7).as_message()
    assert Hang.from_message(message | change) is None


@pytest.mark.parametrize("message", [None, 3, "hang", [], {}, {"suspects": [0]}])
def test_garbage_is_no_hang(message: object) -> None:
    assert Hang.from_message(message) is None


@pytest.mark.parametrize(
    ("ranks", "words"),
    [([3], "rank 3"), ([1, 0], "ranks 0, 1"), ([0, 1, 2, 4], "ranks 0-2, 4"), ([7, 8, 9], "ranks 7-9")],
)
def test_ranks_in_words(ranks: list[int], words: str) -> None:
    assert ranks_in_words(ranks) == words
