from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import keys
from data.errors import SplitError

WORD = st.integers(0, keys.MASK)


def test_golden_values() -> None:
    """A checkpoint of today means these numbers; a change here is a new keys.VERSION."""
    assert keys.VERSION == 1
    assert keys.make_keys(7, 3, "order", 2) == [0xA9B282D59C2F10C1, 0xBC40EC6DE7594FAB]
    assert keys.mix(1) == 0xB456BCFC34C2CB2C
    assert keys.augmentation_seed(7, 3, 5) == 0x72C107112A210F61
    assert [keys.replacement_row(7, 3, 5, k, 1000) for k in range(3)] == [363, 158, 315]
    rng = keys.RowRandom(7, 3, 5)
    assert [rng.random() for _ in range(3)] == [0.023749412159865813, 0.9470641462076336, 0.22183574046675336]
    assert keys.RowRandom(7, 3, 5, purpose="clip").random() != 0.023749412159865813


@given(st.lists(WORD, min_size=1, max_size=20))
def test_words_are_mixed_as_single_numbers_are(words: list[int]) -> None:
    assert keys.mix_words(np.array(words, np.uint64)).tolist() == [keys.mix(word) for word in words]


@given(WORD, WORD)
def test_seed_and_epoch_are_not_added(seed: int, epoch: int) -> None:
    a, b = keys.make_keys(seed, epoch, "order"), keys.make_keys(seed ^ 1, epoch ^ 1, "order")
    assert a != b
    assert keys.make_keys(seed, epoch, "order") != keys.make_keys(seed, epoch, "augment")


def test_more_keys_begin_like_fewer() -> None:
    assert keys.make_keys(1, 2, "x", 20)[:3] == keys.make_keys(1, 2, "x", 3)
    assert len(set(keys.make_keys(1, 2, "x", 20))) == 20


def test_a_seed_out_of_range_is_refused() -> None:
    with pytest.raises(SplitError, match="seed -1 is outside"):
        keys.make_keys(-1, 0, "order")
    with pytest.raises(SplitError, match="epoch 18446744073709551616 is outside"):
        keys.make_keys(0, 1 << 64, "order")


def test_numbers_of_a_row_are_uniform() -> None:
    values = np.array([keys.RowRandom(1, 0, row).random() for row in range(4000)])
    assert abs(values.mean() - 0.5) < 4 * (1 / 12 / 4000) ** 0.5
    assert 0 <= values.min() < values.max() < 1
    whole = np.bincount([keys.RowRandom(2, 0, row).integer(5) for row in range(4000)], minlength=5)
    assert whole.size == 5
    assert ((whole - 800) ** 2 / 800).sum() < 25  # chi square, 4 degrees of freedom
    assert 2 <= keys.RowRandom(0, 0, 0).uniform(2, 3) < 3
