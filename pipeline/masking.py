"""Which pieces of each instance are masked, and by what."""

from dataclasses import dataclass

import numpy as np

# A sort key holds one flag, random bits, and the column of the word's first piece.
_KEY_BITS = 31
_NO_WORD = np.uint32(0xFFFFFFFF)


@dataclass(frozen=True)
class MaskedPieces:
    """The masked pieces of N instances, M in all, in the order of row and column.

    Attributes:
      row, column: int64 [M], instance and position.
      slot: int64 [M], number of the piece among those of its instance.
    """

    row: np.ndarray
    column: np.ndarray
    slot: np.ndarray


def num_to_mask(
    lengths: np.ndarray, masked_lm_prob: float, max_predictions_per_seq: int
) -> np.ndarray:
    """int64 [N]: the share of `lengths` rounded half to even, at least 1, at most P."""
    wanted = np.rint(lengths * masked_lm_prob).astype(np.int64)
    return np.minimum(np.maximum(wanted, 1), max_predictions_per_seq)


def choose_masked_pieces(
    is_word_start: np.ndarray,
    is_boundary: np.ndarray,
    budget: np.ndarray,
    rng: np.random.Generator,
) -> MaskedPieces:
    """Chooses whole words in random order; a word that would exceed the budget is skipped.

    A row may end with fewer pieces than its budget, even with none, when every word left is too long.

    Args:
      is_word_start: bool [N, S], where a word begins.
      is_boundary: bool [N, S], where a word must have ended: word starts, special tokens, padding. A
        row's last column is a boundary or its last word ends there.
      budget: int64 [N], the most pieces to mask.
      rng: the source of all draws.
    """
    num_rows, seq_length = is_word_start.shape
    word_lengths = _lengths_to_next_boundary(is_boundary)
    keys, column_mask = _words_in_random_order(is_word_start, rng)

    used = np.zeros(num_rows, np.int64)
    starts, lengths = [], []
    rows = np.arange(num_rows)
    # The words of all rows at once, one rank of the random order after the other.
    for rank in range(seq_length):
        rows = rows[(used[rows] < budget[rows]) & (keys[rows, rank] != _NO_WORD)]
        if not rows.size:
            break
        start = rows * seq_length + (keys[rows, rank] & column_mask)
        length = word_lengths[start]
        fits = used[rows] + length <= budget[rows]
        used[rows[fits]] += length[fits]
        starts.append(start[fits])
        lengths.append(length[fits])

    pieces = _expand(starts, lengths)
    pieces.sort()
    row, column = np.divmod(pieces, seq_length)
    slot = np.arange(len(pieces)) - np.repeat(np.cumsum(used) - used, used)
    return MaskedPieces(row, column, slot)


def replace_pieces(
    ids: np.ndarray,
    mask_id: int,
    replacement_ids: np.ndarray,
    rng: np.random.Generator,
    acts_like: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Each piece becomes `[MASK]` in 80 % of cases, stays in 10 %, is drawn at random in 10 %.

    Args:
      ids: [M], the pieces to replace.
      mask_id: id of `[MASK]`.
      replacement_ids: ids that random replacements are drawn from.
      rng: the source of all draws.
      acts_like: int64 [M], the number of the piece whose draw decides for this one; None: its own.

    Returns:
      The new ids [M], and int64 [M] which says 0 masked, 1 kept, 2 random.
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


def _lengths_to_next_boundary(is_boundary: np.ndarray) -> np.ndarray:
    """int64 [N·S]: at each boundary, how far the next one is (a row's end counts as one)."""
    num_rows, seq_length = is_boundary.shape
    ends_row = np.zeros((num_rows, seq_length), bool)
    ends_row[:, 0] = True
    boundaries = np.flatnonzero(is_boundary | ends_row)
    lengths = np.zeros(is_boundary.size, np.int64)
    lengths[boundaries] = np.diff(boundaries, append=is_boundary.size)
    return lengths


def _words_in_random_order(
    is_word_start: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.uint32]:
    """Sorted keys, uint32 [N, S], `_NO_WORD` last; and the mask that gives a key's column."""
    seq_length = is_word_start.shape[1]
    column_bits = int(seq_length - 1).bit_length()
    random = rng.integers(
        0, 1 << (_KEY_BITS - column_bits), is_word_start.shape, dtype=np.uint32
    ) << np.uint32(column_bits)
    keys = np.where(is_word_start, random | np.arange(seq_length, dtype=np.uint32), _NO_WORD)
    keys.sort(axis=1)
    return keys, np.uint32((1 << column_bits) - 1)


def _expand(starts: list[np.ndarray], lengths: list[np.ndarray]) -> np.ndarray:
    """All positions of the words that begin at `starts`."""
    start = np.concatenate([np.zeros(0, np.int64), *starts])
    length = np.concatenate([np.zeros(0, np.int64), *lengths])
    first = np.cumsum(length) - length
    return np.repeat(start - first, length) + np.arange(length.sum())
