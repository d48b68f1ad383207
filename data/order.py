"""The order of an epoch: a seeded bijection from positions to rows in O(1) memory.

    Permutation(11, seed=7, epoch=0)      position  0 1 2 …  ->  row p[0] p[1] p[2] …

Two constructions, chosen by n alone. Up to 2^16 rows an exact Fisher-Yates shuffle (every order possible, all alike
likely); above it the network of feistel.py.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from functools import cached_property
from typing import overload

import numpy as np
import numpy.typing as npt

from . import keys
from .errors import SplitError
from .feistel import BITS, CHUNK, ROUNDS, Feistel, bits_of
from .keys import Words

SMALL = 1 << 16

Rows = npt.NDArray[np.int64]


class Order(ABC):
    """What every order of an epoch has: `order[g]` is the row at position g, `order.inverse(row)` the position.

    Both map an int to an int and an array of any shape to int64 of that shape. `order[a:b:step]` costs its result and
    no second array of that size.
    """

    def __init__(self, n: int, *, seed: int, epoch: int) -> None:
        self.n = n
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    @abstractmethod
    def with_seed(self, seed: int) -> Order:
        """The same kind of order, of the same rows and epoch, under another seed."""

    @overload
    def __getitem__(self, positions: int) -> int: ...
    @overload
    def __getitem__(self, positions: slice | npt.ArrayLike) -> Rows: ...
    def __getitem__(self, positions: int | slice | npt.ArrayLike) -> int | Rows:
        """The row, or an int64 array of rows; positions outside 0 … n - 1 raise IndexError."""
        if isinstance(positions, slice):
            rows = np.arange(*positions.indices(self.n), dtype=np.int64)
            self.map_in_place(rows, forward=True)
            return rows
        return self._map(positions, forward=True)

    @overload
    def inverse(self, rows: int) -> int: ...
    @overload
    def inverse(self, rows: npt.ArrayLike) -> Rows: ...
    def inverse(self, rows: int | npt.ArrayLike) -> int | Rows:
        """The position at which a row stands: `order.inverse(order[g]) == g`."""
        return self._map(rows, forward=False)

    def map_in_place(self, values: Rows, *, forward: bool = True) -> None:
        """Overwrites positions (all in 0 … n - 1, one axis) with their rows, or rows with their positions."""
        words = values.view(np.uint64)
        for start in range(0, words.size, CHUNK):
            self._walk(words[start : start + CHUNK], forward)

    def _map(self, values: int | npt.ArrayLike, *, forward: bool) -> int | Rows:
        given = np.asarray(values)
        if given.size == 0:
            return np.empty(given.shape, np.int64)
        if given.dtype.kind not in "iu":
            raise TypeError(f"positions and rows are integers, not {given.dtype}")
        if int(given.min()) < 0 or int(given.max()) >= self.n:
            raise IndexError(f"positions and rows of this order are in 0 … {self.n - 1}")
        found = given.astype(np.int64).reshape(-1)
        self.map_in_place(found, forward=forward)
        return int(found[0]) if given.ndim == 0 else found.reshape(given.shape)

    @abstractmethod
    def _walk(self, words: Words, forward: bool) -> None:
        """Maps a chunk in place."""


class Permutation(Order):
    """`p[g]` is the row at position g; a pure function of (n, seed, epoch, purpose).

    The values are frozen by golden vectors: a checkpoint of today must mean the same rows tomorrow.
    """

    def __init__(self, n: int, *, seed: int, epoch: int = 0, purpose: str = "order") -> None:
        n = operator.index(n)  # numpy's whole numbers too
        if not 1 <= n <= 1 << BITS:
            raise SplitError(f"a permutation of {n} rows: n must be in 1 … 2^{BITS}")
        super().__init__(n, seed=seed, epoch=epoch)
        self.purpose = purpose
        self._keys = keys.make_keys(seed, epoch, purpose, ROUNDS)
        self._network = Feistel(bits_of(n), self._keys)

    def with_seed(self, seed: int) -> Permutation:
        return self if seed == self.seed else Permutation(self.n, seed=seed, epoch=self.epoch, purpose=self.purpose)

    def _walk(self, words: Words, forward: bool) -> None:
        if self.n <= SMALL:
            table = self._table if forward else self._table_inverse
            words[:] = table[words]
        else:
            self._network.walk(words, self.n, forward=forward)

    @cached_property
    def _table(self) -> Words:
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
        return np.array(rows, np.uint64)

    @cached_property
    def _table_inverse(self) -> Words:
        positions = np.empty(self.n, np.uint64)
        positions[self._table] = np.arange(self.n, dtype=np.uint64)
        return positions


def rows_at(positions: npt.ArrayLike | range, n: int, order: Order | None) -> Rows:
    """The rows at positions of an epoch; past the last row the order begins again (`order[g mod n]`).

    Without an order it is the file's own. A `range` costs its result and no second array of that size.
    """
    if isinstance(positions, range):
        rows = np.arange(positions.start, positions.stop, positions.step, dtype=np.int64)
    else:
        rows = np.array(positions, dtype=np.int64)
    if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= n):
        np.remainder(rows, n, out=rows)
    if order is not None:
        order.map_in_place(rows.reshape(-1))
    return rows
