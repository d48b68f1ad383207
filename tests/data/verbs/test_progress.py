from __future__ import annotations

import io
import os
import pty
import termios
from collections.abc import Callable, Iterator

import pytest

from data.verbs.progress import Progress, rows


class Terminal(io.StringIO):
    """A stream that says it is a terminal; its width is that of no terminal: 80."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Callable[[], float]:
    """Every look at it is a second later."""
    seconds: Iterator[int] = iter(range(1000))
    return lambda: float(next(seconds))


def test_no_terminal_no_bar(clock: Callable[[], float]) -> None:
    stream = io.StringIO()
    with Progress("checking", 100, "rows", stream=stream, clock=clock) as bar:
        bar.to(50)
        bar.wait()
    assert stream.getvalue() == ""
    quiet = Terminal()
    with Progress("checking", 100, "rows", shows=False, stream=quiet, clock=clock) as bar:
        bar.to(50)
    assert quiet.getvalue() == ""


def test_a_bar_and_no_trace_of_it(clock: Callable[[], float]) -> None:
    stream = Terminal()
    with Progress("checking", 1_000_000, "rows", stream=stream, clock=clock) as bar:
        bar.to(620_000)
        drawn = stream.getvalue()
        assert drawn == "\rchecking  ━━━━━━━━━━━━          62%   1 s left   620,000 of 1,000,000 rows"
        bar.to(620_000, "3 bad")
    assert "62%   1 s left   3 bad   " in stream.getvalue()
    assert on_screen(stream.getvalue()).strip() == ""


def on_screen(text: str) -> str:
    """What a terminal shows of one line: a carriage return goes to its start, and what comes then overwrites."""
    shown: list[str] = []
    for part in text.split("\r"):
        shown[: len(part)] = part
    return "".join(shown)


def test_what_is_over_soon_draws_nothing() -> None:
    stream = Terminal()
    now = [0.0]
    with Progress("checking", 10, "rows", stream=stream, clock=lambda: now[0]) as bar:
        now[0] = 0.2
        bar.to(5)
        assert stream.getvalue() == ""
        now[0] = 1.0
        bar.to(6)
        once = stream.getvalue()
        assert "60%" in once
        now[0] = 1.05  # not again so soon
        bar.to(7)
        assert stream.getvalue() == once


def test_a_second_pass_has_a_title_of_its_own(clock: Callable[[], float]) -> None:
    stream = Terminal()
    with Progress("packing", 10, "rows", stream=stream, clock=clock) as bar:
        bar.begin("verifying")
        bar.to(5)
        bar.wait()
    assert "\rverifying  ━" in stream.getvalue()
    assert "\rverifying …" in stream.getvalue()


def test_other_terminals(clock: Callable[[], float]) -> None:
    stream = Terminal()
    stream.encoding = "ascii"
    with Progress("checking", 4, "rows", stream=stream, clock=clock) as bar:
        bar.to(3)
    assert f"checking  {'#' * 15}{'-' * 5}  75%   1 s left" in stream.getvalue()


def test_an_empty_total_and_a_long_wait(clock: Callable[[], float]) -> None:
    stream = Terminal()
    with Progress("checking", 0, "rows", stream=stream, clock=clock) as bar:
        bar.to(0)
    assert "  0%   0 of 0 rows" in stream.getvalue()
    for total, left in ((1_000, "17 min left"), (100_000, "27.8 h left"), (1_000_000, "11.6 days left")):
        stream = Terminal()
        with Progress("checking", total, "rows", stream=stream, clock=clock) as bar:
            bar.to(1)
        assert left in stream.getvalue()


def test_a_narrow_terminal_gets_what_fits(clock: Callable[[], float]) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 50))
    with (
        open(theirs, "w", encoding="utf-8") as stream,
        Progress("checking", 100, "rows", stream=stream, clock=clock) as bar,
    ):
        bar.to(50)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    longest = max(len(line) for line in shown.split("\r"))
    assert longest <= 49
    assert "50%" in shown


def test_a_terminal_that_goes_away_ends_the_bar_only(clock: Callable[[], float]) -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError("gone")

    with Progress("checking", 100, "rows", stream=Gone(), clock=clock) as bar:
        bar.to(50)
        bar.to(60)


def test_rows_in_words() -> None:
    assert (rows(1), rows(0), rows(1_281_167)) == ("1 row", "0 rows", "1,281,167 rows")
