from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import feistel, keys
from data.feistel import ROUNDS, Feistel, bits_of


def plainly(word: int, size: int, round_keys: list[int], tweak: int = 0) -> int:
    """The definition, one word at a time: what the passes over arrays must come to."""
    bits = bits_of(size)
    while True:
        width_l, width_r = bits // 2, bits - bits // 2
        left, right = word >> width_r, word & ((1 << width_r) - 1)
        for key in round_keys:
            left ^= keys.mix(right ^ key ^ tweak) >> (64 - width_l)
            left, right, width_l, width_r = right, left, width_r, width_l
        word = (left << width_r) | right
        if word < size:
            return word


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 2**62), seed=st.integers(0, 2**32), rounds=st.sampled_from([6, 24]), data=st.data())
def test_arrays_are_mapped_as_defined_and_back(size: int, seed: int, rounds: int, data: st.DataObject) -> None:
    round_keys = keys.make_keys(seed, 0, "test", rounds)
    words = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
    tweaks = data.draw(st.lists(st.integers(0, keys.MASK), min_size=len(words), max_size=len(words)))
    network = Feistel(bits_of(size), round_keys)
    for tweak in (None, np.array(tweaks, np.uint64)):
        mapped = np.array(words, np.uint64)
        network.walk(mapped, size, tweak, forward=True)
        assert mapped.tolist() == [
            plainly(word, size, round_keys, 0 if tweak is None else t) for word, t in zip(words, tweaks, strict=True)
        ]
        network.walk(mapped, size, tweak, forward=False)
        assert mapped.tolist() == words


def test_every_word_may_have_a_size_and_a_bijection_of_its_own() -> None:
    """100 bijections at once, of 3, 4, …, 102 words, with words that lie further apart than one call of numpy holds."""
    sizes = np.arange(3, 103)
    network = Feistel(bits_of(102), keys.make_keys(1, 0, "test", ROUNDS))
    which = np.repeat(np.arange(100), sizes)
    words = np.concatenate([np.arange(size, dtype=np.uint64) for size in sizes])
    mapped = words.copy()
    tweak = np.arange(100, dtype=np.uint64) << np.uint64(20)
    network.walk(mapped, sizes[which].astype(np.uint64), tweak[which], forward=True)
    parts = np.split(mapped, np.cumsum(sizes)[:-1])
    assert all(sorted(part.tolist()) == list(range(size)) for part, size in zip(parts, sizes, strict=True))
    assert len({tuple(part[:3].tolist()) for part in parts}) > 90, "the tweak is not used"
    network.walk(mapped, sizes[which].astype(np.uint64), tweak[which], forward=False)
    assert np.array_equal(mapped, words)


@pytest.mark.parametrize("cached", [1, 7, 1000])
def test_the_size_of_a_call_changes_nothing(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def mapped() -> list[int]:
        words = np.arange(3000, dtype=np.uint64)
        Feistel(12, keys.make_keys(1, 0, "test", ROUNDS)).walk(words, 3000, forward=True)
        return words.tolist()

    before = mapped()
    monkeypatch.setattr(feistel, "CACHED", cached)
    assert mapped() == before
    assert sorted(before) == list(range(3000))


def test_the_width_of_a_domain() -> None:
    assert [bits_of(size) for size in (1, 2, 4, 5, 8, 9, 2**40, 2**40 + 1, 2**62)] == [2, 2, 2, 3, 3, 4, 40, 41, 62]
