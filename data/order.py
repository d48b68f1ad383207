"""The order of an epoch: a seeded bijection from positions to rows in O(1) memory.

    Permutation(11, seed=7, epoch=0)      position  0 1 2 …  ->  row p[0] p[1] p[2] …

Two constructions, chosen by n alone. Up to 2^16 rows an exact Fisher-Yates shuffle (every order possible, all alike
likely). Above it a Feistel network (Luby and Rackoff 1988: four rounds with good round functions are already a
pseudo-random permutation; we take six) on the smallest power of two that holds n; values outside 0 … n - 1 are walked
on until they fall inside (cycle walking, Black and Rogaway 2002), on average at most one extra pass.
"""

from __future__ import annotations

from functools import cached_property
from typing import overload

import numpy as np
import numpy.typing as npt

from . import keys
from .errors import SplitError
from .keys import Words

SMALL = 1 << 16
ROUNDS = 6  # even, so that the two halves have their first widths again at the end
CHUNK = 1 << 13  # 64 KiB of words: the dozen passes of a round stay in the first two caches

Rows = npt.NDArray[np.int64]


class Permutation:
    """`p[g]` is the row at position g; a pure function of (n, seed, epoch, purpose).

    `p[array]` maps an array of any shape to int64 of that shape, `p.inverse(rows)` maps back. The values are frozen
    by golden vectors: a checkpoint of today must mean the same rows tomorrow.
    """

    def __init__(self, n: int, *, seed: int, epoch: int = 0, purpose: str = "order") -> None:
        if not 1 <= n <= 1 << 62:
            raise SplitError(f"a permutation of {n} rows: n must be in 1 … 2^62")
        self.n = n
        self.seed = seed
        self.epoch = epoch
        self._keys = keys.make_keys(seed, epoch, purpose, ROUNDS)
        bits = max(2, (n - 1).bit_length())
        self._left, self._right = bits // 2, bits - bits // 2

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, positions: int) -> int: ...
    @overload
    def __getitem__(self, positions: slice | npt.ArrayLike) -> Rows: ...
    def __getitem__(self, positions: int | slice | npt.ArrayLike) -> int | Rows:
        """The row, or an int64 array of rows; positions outside 0 … n - 1 raise IndexError."""
        if isinstance(positions, slice):
            positions = np.arange(*positions.indices(self.n), dtype=np.int64)
        return self._map(positions, forward=True)

    def inverse(self, rows: int | npt.ArrayLike) -> int | Rows:
        """The position at which a row stands: `p.inverse(p[g]) == g`."""
        return self._map(rows, forward=False)

    def _map(self, values: int | npt.ArrayLike, *, forward: bool) -> int | Rows:
        given = np.asarray(values)
        if given.size == 0:
            return np.empty(given.shape, np.int64)
        if given.dtype.kind not in "iu":
            raise TypeError(f"positions and rows are integers, not {given.dtype}")
        if int(given.min()) < 0 or int(given.max()) >= self.n:
            raise IndexError(f"positions and rows of this order are in 0 … {self.n - 1}")
        if self.n <= SMALL:
            table = self._table if forward else self._table_inverse
            found = table[given].astype(np.int64)
        else:
            words = given.astype(np.uint64).reshape(-1)
            for start in range(0, words.size, CHUNK):
                self._walk(words[start : start + CHUNK], forward)
            found = words.view(np.int64).reshape(given.shape)
        return int(found) if found.ndim == 0 else found

    # -- up to 2^16 rows

    @cached_property
    def _table(self) -> Rows:
        """Fisher-Yates from the end: place i is swapped with a uniform j in 0 … i."""
        places = np.arange(1, self.n + 1, dtype=np.uint64)
        words = keys.mix_words(places * np.uint64(keys.GOLDEN) + np.uint64(self._keys[0]))
        # 2^64 is no multiple of i + 1: words in the last, incomplete run are drawn again, which makes j exactly
        # uniform (it happens about once in 2^48 words).
        last = np.uint64(keys.MASK) - (np.uint64(keys.MASK) % places + np.uint64(1)) % places
        while (redo := words > last).any():
            words[redo] = keys.mix_words(words[redo] + np.uint64(self._keys[1]))
        partners = (words % places).tolist()
        rows = list(range(self.n))
        for place in range(self.n - 1, 0, -1):
            partner = partners[place]
            rows[place], rows[partner] = rows[partner], rows[place]
        return np.array(rows, np.int64)

    @cached_property
    def _table_inverse(self) -> Rows:
        positions = np.empty(self.n, np.int64)
        positions[self._table] = np.arange(self.n)
        return positions

    # -- above

    def _walk(self, words: Words, forward: bool) -> None:
        """Maps `words` in place, again and again where the result lies outside 0 … n - 1."""
        step = self._encrypt if forward else self._decrypt
        step(words)
        outside = np.flatnonzero(words >= np.uint64(self.n))
        while outside.size:
            again = words[outside]
            step(again)
            words[outside] = again
            outside = outside[again >= np.uint64(self.n)]

    def _encrypt(self, words: Words) -> None:
        """One pass of the network: (L, R) -> (R, L ^ F(R)), the widths of the halves changing places each round."""
        width_l, width_r = self._left, self._right
        left = words >> np.uint64(width_r)
        right = words & np.uint64((1 << width_r) - 1)
        for key in self._keys:
            left ^= _round(right, key, width_l)
            left, right = right, left
            width_l, width_r = width_r, width_l
        np.left_shift(left, np.uint64(width_r), out=words)
        np.bitwise_or(words, right, out=words)

    def _decrypt(self, words: Words) -> None:
        width_l, width_r = self._left, self._right
        left = words >> np.uint64(width_r)
        right = words & np.uint64((1 << width_r) - 1)
        for key in reversed(self._keys):
            left, right = right, left
            width_l, width_r = width_r, width_l
            left ^= _round(right, key, width_l)
        np.left_shift(left, np.uint64(width_r), out=words)
        np.bitwise_or(words, right, out=words)


def _round(half: Words, key: int, width: int) -> Words:
    """The round function: `width` bits that depend on every bit of the half and of the key."""
    mixed = keys.mix_words(half ^ np.uint64(key))
    np.right_shift(mixed, np.uint64(64 - width), out=mixed)
    return mixed


def rows_at(positions: npt.ArrayLike, n: int, permutation: Permutation | None) -> Rows:
    """The rows at positions of an epoch; past the last row the order begins again (`order[g mod n]`).

    Without a permutation the order is the file's own.
    """
    wrapped = np.asarray(positions, dtype=np.int64) % n
    return wrapped if permutation is None else permutation[wrapped]
