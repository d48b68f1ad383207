"""A keyed bijection of 0 … size - 1 in O(1) memory: a Feistel network with cycle walking.

Six rounds of (L, R) -> (R, L ^ F(R)) on the smallest power of two that holds `size` (Luby and Rackoff 1988: four
rounds with good round functions are already a pseudo-random permutation); values outside 0 … size - 1 are walked on
until they fall inside (Black and Rogaway 2002), on average at most one extra pass.

The round function is the top bits of murmur3's finaliser over half ^ key. Halves have at most 31 bits, so two of its
three `x ^= x >> 33` need no pass over the data: the first moves bits of the key only and is done to the key, the last
moves bits that the round throws away. That leaves 7 passes per round instead of 12.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .keys import MULTIPLY_1, MULTIPLY_2, Words

ROUNDS = 6  # even, so that the two halves have their first widths again at the end
BITS = 62
CHUNK = 1 << 16  # words that callers hand over at a time
# Words of one call of numpy: its passes stay in the second cache. Smaller than CHUNK, since walking on costs some 60
# calls per pass however few words are left: 70 ns a word with chunks of this size at size = 2^26 + 1, 40 ns with these.
CACHED = 1 << 13

_FIRST, _SECOND, _FOLD = np.uint64(MULTIPLY_1), np.uint64(MULTIPLY_2), np.uint64(33)


class Feistel:
    """Maps words of at most `bits` bits in place, forward or back; `keys` has one 64-bit key per round.

    A `tweak` (one 64-bit word per word that is mapped) chooses another bijection for each of its values: it is added
    to the key of every round.
    """

    def __init__(self, bits: int, keys: Sequence[int]) -> None:
        assert 2 <= bits <= BITS
        assert len(keys) % 2 == 0
        self._left, self._right = bits // 2, bits - bits // 2
        self._keys = [np.uint64(key ^ (key >> 33)) for key in keys]

    def walk(self, words: Words, size: int | Words, tweak: Words | None = None, *, forward: bool) -> None:
        """Maps `words`, all below their `size` (one for all, or one each), to words below it again."""
        if tweak is not None:
            tweak = tweak ^ (tweak >> _FOLD)
        limit: Words = np.asarray(size, np.uint64)
        self._pass(words, tweak, forward)
        outside = np.flatnonzero(words >= limit)
        while outside.size:
            again = words[outside]
            self._pass(again, None if tweak is None else tweak[outside], forward)
            words[outside] = again
            outside = outside[again >= (limit[outside] if limit.ndim else limit)]

    def _pass(self, words: Words, tweak: Words | None, forward: bool) -> None:
        """One pass of the network over all words."""
        for start in range(0, words.size, CACHED):
            part = slice(start, start + CACHED)
            self._rounds(words[part], None if tweak is None else tweak[part], forward)

    def _rounds(self, words: Words, tweak: Words | None, forward: bool) -> None:
        """The rounds, the widths of the halves changing places each time."""
        width_l, width_r = self._left, self._right
        left = words >> np.uint64(width_r)
        right = words & np.uint64((1 << width_r) - 1)
        mixed, spare = np.empty_like(words), np.empty_like(words)
        for key in self._keys if forward else reversed(self._keys):
            if not forward:
                left, right = right, left
                width_l, width_r = width_r, width_l
            np.bitwise_xor(right, key, out=mixed)
            if tweak is not None:
                np.bitwise_xor(mixed, tweak, out=mixed)
            np.multiply(mixed, _FIRST, out=mixed)
            np.right_shift(mixed, _FOLD, out=spare)
            np.bitwise_xor(mixed, spare, out=mixed)
            np.multiply(mixed, _SECOND, out=mixed)
            np.right_shift(mixed, np.uint64(64 - width_l), out=mixed)
            np.bitwise_xor(left, mixed, out=left)
            if forward:
                left, right = right, left
                width_l, width_r = width_r, width_l
        np.left_shift(left, np.uint64(width_r), out=words)
        np.bitwise_or(words, right, out=words)


def bits_of(size: int) -> int:
    """The width of the smallest domain that holds 0 … size - 1 and has two halves."""
    return max(2, (size - 1).bit_length())
