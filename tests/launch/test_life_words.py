from __future__ import annotations

import time

import pytest

from rankrun.launch.life.words import clock_time, date_time, span, table


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


NOON = 1_795_435_200.0  # 2026-11-23 12:00:00


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (NOON - 60, "11:59"),
        (NOON - 12 * 3600, "00:00"),
        (NOON - 12 * 3600 - 1, "Nov 22"),
        (NOON - 20 * 86400, "Nov  3"),
        (NOON - 200 * 86400, "2026-05"),
        (NOON + 3 * 86400, "Nov 26"),
        (0.0, "1970-01"),
        (None, ""),
    ],
)
def test_a_time_is_as_short_as_it_can_be_without_doubt(seconds: float | None, said: str) -> None:
    assert clock_time(seconds, NOON) == said


def test_a_whole_time() -> None:
    assert date_time(NOON + 5) == "2026-11-23 12:00:05"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-3, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (12_000, "3 h 20 min"), (400_000, "4 days")],
)
def test_spans(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_a_table_leaves_out_empty_columns_and_gives_a_long_name_its_own_line() -> None:
    rows = [("a", "running", "", "12"), ("n" * 30, "dead", "", "")]
    assert table(("RUN", "STATE", "TOP1", "STEP"), rows, right=(3,), width=24) == [
        "RUN        STATE    STEP",
        "a          running    12",
        "n" * 30,
        "           dead",
    ]
    assert table(("RUN",), [("a",)], right=(), width=80) == ["RUN", "a"]
