from __future__ import annotations

from rankrun.beat import SIZE_BYTES, Beat, Phase, Reading
from rankrun.launch.workers import BeatMap


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
    Beat.open(None).write(1, 1, Phase.STEP)


def test_garbage_in_the_map_is_an_unopened_beat():
    assert not Reading.of(b"\xff" * SIZE_BYTES).opened
    assert Reading.of(b"\xff" * SIZE_BYTES).phase == Phase.START
