"""The choice of the pieces to mask in each instance, and of their replacements.

Words are taken in random order. To shuffle the words of all rows by one sort, each word gets a key
of 32 bits: a zero bit, random bits, and in the low bits the column of its first piece. For example,
with S = 8 (three bits for the column) and words that begin in columns 1, 2 and 5::

    keys    0…0110 001   0…1011 010   0…0010 101     (the other five columns: all ones, no word)
    sorted  0…0010 101   0…0110 001   0…1011 010
    words   column 5,    column 1,    column 2
"""

from dataclasses import dataclass

import numpy as np

# The key of a column where no word begins; it sorts last.
_NO_WORD = np.uint32(0xFFFFFFFF)
_RANKS_PER_BLOCK = 32


@dataclass(frozen=True)
class MaskedPieces:
    """The masked pieces of N instances of S tokens, M in all, in the order of row and column.

    Attributes:
      position: int64 [M], row · S + column.
      column: int64 [M].
      num_of_row: int64 [N], the number of masked pieces of each row.
    """

    position: np.ndarray
    column: np.ndarray
    num_of_row: np.ndarray


def num_to_mask(
    lengths: np.ndarray, masked_lm_prob: float, max_predictions_per_seq: int
) -> np.ndarray:
    """int64 [N]: the share of `lengths` rounded half to even, at least 1, at most P."""
    return np.rint(lengths * masked_lm_prob).astype(np.int64).clip(1, max_predictions_per_seq)


def choose_masked_pieces(
    is_word_start: np.ndarray,
    is_boundary: np.ndarray,
    budget: np.ndarray,
    rng: np.random.Generator,
) -> MaskedPieces:
    """Chooses whole words in random order; a word that would exceed the budget is skipped.

    A row may get fewer pieces than its budget, or none, if every word that is left is too long.

    Args:
      is_word_start: bool [N, S], whether a word begins here.
      is_boundary: bool [N, S], whether a word must have ended before this column: word starts,
        special tokens, padding. The end of a row is a boundary too.
      budget: int64 [N], the largest number of pieces to mask.
      rng: the source of all draws.
    """
    num_rows, seq_length = is_word_start.shape
    word_lengths = _distances_to_next_boundary(is_boundary).reshape(-1)
    keys, column_mask = _words_in_random_order(is_word_start, rng)

    used = np.zeros(num_rows, np.int32)
    starts, lengths = [], []
    rows = np.arange(num_rows)
    # All rows take their first word, then their second word, and so on, in blocks of ranks. Between
    # two blocks, rows that have enough words leave.
    for first_rank in range(0, seq_length, _RANKS_PER_BLOCK):
        rows = rows[(used[rows] < budget[rows]) & (keys[rows, first_rank] != _NO_WORD)]
        if not rows.size:
            break
        ranks = slice(first_rank, first_rank + _RANKS_PER_BLOCK)
        keys_by_rank = np.ascontiguousarray(keys[rows, ranks].T)
        is_word = keys_by_rank != _NO_WORD
        start = rows * seq_length + np.where(is_word, keys_by_rank & column_mask, 0)
        length = is_word * word_lengths[start]
        fits, used[rows] = _words_that_fit(length, used[rows], budget[rows])
        starts.append(start[fits])
        lengths.append(length[fits])

    position = _expand(starts, lengths)
    position.sort()
    return MaskedPieces(position, position % seq_length, used.astype(np.int64))


def replace_pieces(
    ids: np.ndarray,
    mask_id: int,
    replacement_ids: np.ndarray,
    rng: np.random.Generator,
    acts_like: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Replaces pieces: 80 % by `[MASK]`, 10 % by themselves, 10 % by a random piece.

    Args:
      ids: [M], the pieces to replace.
      mask_id: the id of `[MASK]`.
      replacement_ids: the ids that random replacements are drawn from.
      rng: the source of all draws.
      acts_like: int64 [M], the number of the piece whose draw decides for this one; None: each
        piece's own draw decides.

    Returns:
      The new ids [M], and int64 [M]: 0 for `[MASK]`, 1 for kept, 2 for a random piece.
    """
    tenth = rng.integers(0, 10, len(ids))
    action = np.maximum(tenth - 7, 0)
    if acts_like is not None:
        action = action[acts_like]
    random_ids = replacement_ids[rng.integers(0, len(replacement_ids), len(ids))]
    return np.select([action == 0, action == 1], [mask_id, ids], random_ids), action


def first_piece_of_word(begins_word: np.ndarray) -> np.ndarray:
    """int64 [M]: for each of M pieces in order, the number of the first piece of its word."""
    return np.maximum.accumulate(np.where(begins_word, np.arange(len(begins_word)), 0))


def _words_that_fit(
    lengths: np.ndarray, used: np.ndarray, budget: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Takes words in order; skips each word that would exceed the budget.

    Args:
      lengths: int16 [ranks, N], pieces of each word.
      used: int32 [N], pieces taken before.
      budget: [N], the largest number of pieces to take.

    Returns:
      bool [ranks, N], whether a word is taken; int32 [N], pieces taken so far.
    """
    fits = np.empty(lengths.shape, bool)
    for rank, length in enumerate(lengths):
        fits[rank] = used + length <= budget
        used = used + length * fits[rank]
    return fits, used


def _distances_to_next_boundary(is_boundary: np.ndarray) -> np.ndarray:
    """int16 [N, S]: the distance from each position to the next boundary or the end of the row."""
    num_rows, seq_length = is_boundary.shape
    column = np.arange(seq_length, dtype=np.int16)
    boundary = np.maximum(column, ~is_boundary * np.int16(seq_length))
    next_boundary = np.full((num_rows, seq_length), seq_length, np.int16)
    np.minimum.accumulate(boundary[:, :0:-1], axis=1, out=next_boundary[:, -2::-1])
    return next_boundary - column


def _words_in_random_order(
    is_word_start: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.uint32]:
    """Sorted keys, uint32 [N, S], with `_NO_WORD` last; and the bit mask of a key's column."""
    seq_length = is_word_start.shape[1]
    column_mask = np.uint32((1 << int(seq_length - 1).bit_length()) - 1)
    random = rng.integers(0, 1 << 32, is_word_start.shape, dtype=np.uint32) >> 1
    keys = (random & ~column_mask) | np.arange(seq_length, dtype=np.uint32)
    keys |= is_word_start - np.uint32(1)  # 0, or all bits, which is _NO_WORD
    keys.sort(axis=1)
    return keys, column_mask


def _expand(starts: list[np.ndarray], lengths: list[np.ndarray]) -> np.ndarray:
    """All positions of the words with these starts and lengths."""
    start = np.concatenate([np.zeros(0, np.int64), *starts])
    length = np.concatenate([np.zeros(0, np.int64), *lengths])
    first = np.cumsum(length) - length
    return np.repeat(start - first, length) + np.arange(length.sum())
