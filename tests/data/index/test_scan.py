from __future__ import annotations

import numpy as np
import pytest

from data.index import scan as scanning
from data.index.scan import BLOCK, GROUP, PAGE, SPAN, Fill, multipliers, scan


def fill_from(content: bytes) -> Fill:
    def fill(buffer: memoryview, at: int) -> int:
        part = content[at : at + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    return fill


def sums_by_definition(content: bytes) -> list[int]:
    """Span by span in plain Python: half words xor-ed with the next one, times the odd numbers, modulo 2^64."""
    found = []
    for at in range(0, len(content), SPAN):
        halves = np.frombuffer(content[at : at + SPAN].ljust(SPAN, b"\0"), "<u4").tolist()
        mixed = [a ^ b for a, b in zip(halves, [*halves[1:], 0], strict=True)]
        words = [low | high << 32 for low, high in zip(mixed[::2], mixed[1::2], strict=True)]
        found.append(sum(a * int(b) for a, b in zip(words, multipliers(), strict=True)) % 2**64)
    return found


@pytest.mark.parametrize("size", [1, PAGE - 1, PAGE, PAGE + 1, SPAN + 5, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("kind", ["any bytes", "line feeds alone", "lines of 8 bytes"])
def test_counts_totals_and_sums_are_those_of_the_definition(size: int, kind: str) -> None:
    content = {
        "any bytes": np.random.default_rng(size).bytes(size),
        "line feeds alone": b"\n" * size,
        # eight lanes are added at once: here one of them gets every line feed
        "lines of 8 bytes": (b"a/b.g 1\n" * size)[:size],
    }[kind]
    found = scan(fill_from(content), size)
    assert found.counts.tolist() == [content[at : at + PAGE].count(b"\n") for at in range(0, size, PAGE)]
    assert found.totals.tolist() == [content[:at].count(b"\n") for at in range(0, size, SPAN)]
    assert found.sums.tolist() == sums_by_definition(content)
    assert found.line_feeds == content.count(b"\n")
    assert found.size_bytes == size


def test_threads_find_the_same() -> None:
    content = b"".join(b"picture-%d.png %d\n" % (row, row % 7) for row in range(1_600_000))
    assert len(content) > 2 * GROUP
    one, three = (scan(fill_from(content), len(content), threads) for threads in (1, 3))
    assert one.fingerprint() == three.fingerprint()
    assert one.line_feeds == three.line_feeds == 1_600_000
    assert one.totals.tolist() == three.totals.tolist()


def test_what_is_missing_is_told() -> None:
    assert scan(fill_from(b"a 0\n"), 10).size_bytes == 4


def fingerprint(content: bytes) -> str:
    return scan(fill_from(content), len(content)).fingerprint()


def test_the_fingerprint_is_frozen() -> None:
    content = b"".join(b"picture-%d.png %d\n" % (row, row % 7) for row in range(10_000))
    assert fingerprint(content) == "477514e796aa1d611453863d578e6643"


def test_any_swap_or_change_shows() -> None:
    rows = [b"n%08d/picture.jpg %03d\n" % (row, row) for row in range(1000)]
    seen = {fingerprint(b"".join(rows))}
    tried = 1
    for first, second in [(0, 1), (0, 8), (7, 999), (100, 356), (512, 513)]:
        swapped = list(rows)
        swapped[first], swapped[second] = rows[second], rows[first]
        labels = list(rows)
        labels[first] = rows[first][:-4] + rows[second][-4:]
        labels[second] = rows[second][:-4] + rows[first][-4:]
        for changed in (swapped, labels):
            seen.add(fingerprint(b"".join(changed)))
            tried += 1
    assert len(seen) == tried
    assert fingerprint(b"a 0") != fingerprint(b"a 0\0")


@pytest.mark.parametrize("byte", range(8))
def test_two_changes_in_the_same_byte_of_words_do_not_cancel(byte: int) -> None:
    # a product carries upwards only: of a word's top byte, sums without the folding would keep 8 bits
    rng = np.random.default_rng(byte)
    spans = np.tile(rng.integers(32, 127, SPAN, dtype=np.uint8), (300, 1))
    for content, (first, second) in zip(spans[1:], 8 * rng.choice(SPAN // 8, (299, 2)) + byte, strict=True):
        content[[first, second]] = content[[second, first]]
    sums = scan(fill_from(spans.tobytes()), spans.size).sums
    assert len(set(sums.tolist())) == len({content.tobytes() for content in spans}) > 280


def test_multipliers_are_odd_and_differ() -> None:
    assert (multipliers() & np.uint64(1)).all()
    assert len(set(multipliers().tolist())) == SPAN // 8
    assert scanning.multipliers() is multipliers()
