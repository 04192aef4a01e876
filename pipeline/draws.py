"""Random numbers for the positions of N rows of S, from a generator or from a hash.

A hash gives each position of each row a number that depends on the row's key alone. So nothing
changes if the rows are drawn in another order, beside others, or by another process.

The hash is Chris Wellons's lowbias32 (https://nullprogram.com/blog/2018/07/31/), as in
`modeling.dropout`.
"""

from collections.abc import Callable
from enum import IntEnum

import numpy as np


class Draw(IntEnum):
    """What a random number decides."""

    ORDER = 0
    """Which of the row's words comes first."""
    ACTION = 1
    """Whether a piece becomes `[MASK]`, is kept, or becomes a random piece."""
    REPLACEMENT = 2
    """Which random piece."""
    ORDER_OF_NGRAMS = 16
    """Which of the row's n-grams of n words comes first; n - 1 is added."""
    SIZE_OF_NGRAM = 32
    """How many words the next n-gram has; the number of those before it is added."""


Draws = Callable[[int, int, np.ndarray], np.ndarray]
"""Gives a whole number from 0 to a limit - 1, at most 2^32 - 1, for each of some positions.

A position is row · S + column. The numbers have the positions' shape and dtype.
"""


def generator_draws(rng: np.random.Generator) -> Draws:
    """Numbers that follow from the state of a generator, which they change."""
    return lambda _, limit, position: rng.integers(0, limit, position.shape, position.dtype)


def hash_draws(keys: np.ndarray, row_length: int) -> Draws:
    """Numbers that follow from the key of the row, the column, and what they decide.

    Args:
      keys: uint32 [N], from `fold_in`.
      row_length: S.
    """

    def draws(draw: int, limit: int, position: np.ndarray) -> np.ndarray:
        row = position // row_length
        column = (position - row * row_length).astype(np.uint32)
        key = fold_in(keys, draw)[row]
        # Hashed twice, because one hash would give all rows windows of the same sequence.
        bits = _hash(_hash(column + key) ^ key)
        return (bits.astype(np.uint64) * np.uint64(limit) >> np.uint64(32)).astype(position.dtype)

    return draws


def fold_in(keys: np.ndarray, numbers: np.ndarray | int) -> np.ndarray:
    """Derives other keys, uint32 [N], for numbers modulo 2^32: one each, or one for all."""
    return _hash(_hash(keys) ^ np.asarray(numbers).astype(np.uint32))


def first_key(seed: int) -> np.ndarray:
    """The first key of a seed, uint32 [1]; `fold_in` derives all others from it."""
    # Not that of dropout, which is of the same seed.
    return np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(1)


def _hash(x: np.ndarray) -> np.ndarray:
    """Mixes the bits of uint32 numbers."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
