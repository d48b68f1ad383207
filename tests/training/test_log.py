from __future__ import annotations

import io
import re

from rankrun.training.log import Log, Meter, duration, peak_memory_bytes


def test_rank_0_speaks_and_all_warn() -> None:
    for rank, said in ((0, 2), (3, 0)):
        stream = io.StringIO()
        log = Log(rank, stream)
        log.say("a", None, "b")
        log.warn("c")
        lines = stream.getvalue().splitlines()
        assert len(lines) == said + 1
        assert re.fullmatch(rf"\d\d:\d\d:\d\d  warning \(rank {rank}\): c", lines[-1])


def test_meter_shares_out_the_time() -> None:
    now = 100.0
    meter = Meter(steps_left=10, clock=lambda: now)

    def batches():
        nonlocal now
        for _ in range(2):
            now += 3
            yield 1

    for _ in meter.waiting(batches()):
        now += 1
        meter.step(images=16)
    reading = meter.read()
    assert reading["images_per_s"] == 4.0
    assert reading["data_wait"] == 0.75
    assert reading["eta_s"] == 32.0
    now += 50
    meter.pause()
    now += 1
    meter.step(images=5)
    assert meter.read()["images_per_s"] == 5.0


def test_units() -> None:
    assert duration(3723.4) == "1:02:03"
    assert peak_memory_bytes() > 2**20
