"""Random numbers that are a pure function of what they are for, with arithmetic of our own.

The generators of torch and numpy may change their streams between releases; a resumed run must not. So everything
that decides *which* sample, *which* replacement and *which* device-side number is hashed here, and VERSION is part of
the hash: a change of the arithmetic is a new version, never a silent change.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import numpy.typing as npt

from .errors import SplitError

VERSION = 1
MASK = 0xFFFFFFFFFFFFFFFF
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: consecutive counters land far apart
MULTIPLY_1 = 0xFF51AFD7ED558CCD  # the two multipliers of murmur3's 64-bit finaliser
MULTIPLY_2 = 0xC4CEB9FE1A85EC53

Words = npt.NDArray[np.uint64]


def make_keys(seed: int, epoch: int, purpose: str, count: int = 1) -> list[int]:
    """`count` 64-bit keys for one purpose in one epoch of one seed.

    A hash of all three and never their sum: with `seed + epoch` run 7 in epoch 1 would repeat run 8 in epoch 0.
    """
    if not 0 <= seed <= MASK:
        raise SplitError(f"seed {seed} is outside 0 … 2^64 - 1")
    if not 0 <= epoch <= MASK:
        raise SplitError(f"epoch {epoch} is outside 0 … 2^64 - 1")
    keys: list[int] = []
    for block in range(-(-count // 8)):
        text = struct.pack("<IQQI", VERSION, seed, epoch, block) + purpose.encode()
        keys += struct.unpack("<8Q", hashlib.blake2b(text, digest_size=64, person=b"rankrun.data").digest())
    return keys[:count]


def mix(word: int) -> int:
    """The 64-bit finaliser of murmur3 (Appleby): every bit of the input reaches every bit of the output."""
    word &= MASK
    word = ((word ^ (word >> 33)) * MULTIPLY_1) & MASK
    word = ((word ^ (word >> 33)) * MULTIPLY_2) & MASK
    return word ^ (word >> 33)


def mix_words(words: Words) -> Words:
    """`mix` of every word, in place; returns its argument."""
    spare = np.empty_like(words)
    for factor in (MULTIPLY_1, MULTIPLY_2):
        np.right_shift(words, np.uint64(33), out=spare)
        np.bitwise_xor(words, spare, out=words)
        np.multiply(words, np.uint64(factor), out=words)
    np.right_shift(words, np.uint64(33), out=spare)
    np.bitwise_xor(words, spare, out=words)
    return words


def row_key(key: int, row: int, k: int = 0) -> int:
    """A 64-bit word for one row (and a k-th try of it) under a key."""
    return mix(mix(key ^ mix(row + GOLDEN)) + k * GOLDEN)


def augmentation_seed(seed: int, epoch: int, row: int) -> int:
    """The seed of everything random that happens to one row in one epoch on the loader's side."""
    return row_key(make_keys(seed, epoch, "augment")[0], row)


def replacement_row(seed: int, epoch: int, row: int, k: int, n: int) -> int:
    """Candidate k for a row that can't be read: hash(seed, epoch, row, k) mod n."""
    return row_key(make_keys(seed, epoch, "replace")[0], row, k) % n


class RowRandom:
    """The random numbers of one row, by default for work on the device: a counter, mixed.

    The stream depends on (seed, epoch, row, purpose) alone, so no number of workers and no order of loading can change
    it.
    """

    def __init__(self, seed: int, epoch: int, row: int, purpose: str = "draw") -> None:
        self._word = row_key(make_keys(seed, epoch, purpose)[0], row)

    def random(self) -> float:
        """The next number, uniform in [0, 1), with 53 random bits."""
        self._word = (self._word + GOLDEN) & MASK
        return (mix(self._word) >> 11) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        """The next number, uniform in [low, high)."""
        return low + (high - low) * self.random()

    def integer(self, stop: int) -> int:
        """The next number, uniform in 0 … stop - 1."""
        return int(self.random() * stop)
