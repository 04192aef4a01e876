"""The choice of the pieces to mask in each instance, and of their replacements.

Words are taken in random order. To shuffle the words of all rows by one sort, each word gets a key
of 32 bits: a zero bit, random bits, and in the low bits the column of its first piece. For example,
with S = 8 (three bits for the column) and words that begin in columns 1, 2 and 5::

    keys    0…0110 001   0…1011 010   0…0010 101     (the other five columns: all ones, no word)
    sorted  0…0010 101   0…0110 001   0…1011 010
    words   column 5,    column 1,    column 2

If most of a row's budget is unused, because the words that are left do not fit, a span of the first
such word uses it up. The random bits of that word's key decide where in the word the span begins.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.draws import Draw, Draws

# The key of a column where no word begins; it sorts last.
NO_WORD = np.uint32(0xFFFFFFFF)
_RANKS_PER_BLOCK = 32


@dataclass(frozen=True)
class Words:
    """The words of N instances of S tokens.

    Attributes:
      keys: uint32 [N, S], the words of each row in random order, see above.
      column_mask: the bit mask of a key's column.
      word_lengths: int16 [N · S], the pieces of the word that begins here; elsewhere whatever.
    """

    keys: np.ndarray
    column_mask: np.uint32
    word_lengths: np.ndarray


Taken = tuple[list[np.ndarray], list[np.ndarray], np.ndarray]
"""Where the spans that are taken begin, row · S + column, and their lengths, both in parts; and
int32 [N], the pieces that are taken in each row."""
Take = Callable[[Words, np.ndarray, Draws], Taken]
"""Takes words within a budget, int64 [N], the largest number of pieces to take in each row."""


@dataclass(frozen=True)
class MaskedPieces:
    """The masked pieces of N instances of S tokens, M in all, in the order of row and column.

    Attributes:
      position: int64 [M], row · S + column.
      column: int64 [M].
      begins: bool [M], whether it is the first of those that were taken together.
      num_of_row: int32 [N], the number of masked pieces of each row.
    """

    position: np.ndarray
    column: np.ndarray
    begins: np.ndarray
    num_of_row: np.ndarray


def num_to_mask(lengths: np.ndarray, masked_lm_prob: float, most: int) -> np.ndarray:
    """int64 [N]: the share of `lengths` rounded half to even, at least 1, at most `most`."""
    return np.rint(lengths * masked_lm_prob).astype(np.int64).clip(1, most)


def take_words(words: Words, budget: np.ndarray, _: Draws) -> Taken:
    """Takes words in order; a word that would exceed the budget is skipped."""
    num_rows, seq_length = words.keys.shape
    used = np.zeros(num_rows, np.int32)
    starts, lengths = [], []
    rows = np.arange(num_rows)
    # All rows take their first word, then their second word, and so on, in blocks of ranks. Between
    # two blocks, rows that have enough words leave.
    for first_rank in range(0, seq_length, _RANKS_PER_BLOCK):
        rows = rows[(used[rows] < budget[rows]) & (words.keys[rows, first_rank] != NO_WORD)]
        if not rows.size:
            break
        ranks = slice(first_rank, first_rank + _RANKS_PER_BLOCK)
        keys_by_rank = np.ascontiguousarray(words.keys[rows, ranks].T)
        is_word = keys_by_rank != NO_WORD
        start = rows * seq_length + np.where(is_word, keys_by_rank & words.column_mask, 0)
        length = is_word * words.word_lengths[start]
        fits, used[rows] = _words_that_fit(length, used[rows], budget[rows])
        starts.append(start[fits])
        lengths.append(length[fits])
    return starts, lengths, used


def choose_masked_pieces(
    is_start: np.ndarray, is_boundary: np.ndarray, budget: np.ndarray, draws: Draws, take: Take
) -> MaskedPieces:
    """Chooses whole words in random order.

    If that leaves more than half of a row's budget unused, the rest goes to a span of neighbouring
    pieces of one of the words that were skipped. (The original would leave it unused.)

    Args:
      is_start: bool [N, S], whether a word begins here.
      is_boundary: bool [N, S], whether a word must have ended before this column: word starts,
        special tokens, padding. Column 0 must be one; the end of a row is one, too.
      budget: int64 [N], the largest number of pieces to mask.
      draws: the source of all random numbers.
      take: takes single words, or n-grams.
    """
    words = Words(*in_random_order(is_start, draws, Draw.ORDER), _word_lengths(is_boundary))
    starts, lengths, used = take(words, budget, draws)
    rows, start = _spans_of_longer_words(words, budget, used)
    starts.append(start)
    lengths.append((budget - used)[rows])
    used[rows] = budget[rows]
    position = _expand(starts, lengths)
    position.sort()
    begins = np.zeros(is_start.size, bool)
    begins[np.concatenate(starts)] = True
    return MaskedPieces(position, position % is_start.shape[1], begins[position], used)


def replace_pieces(
    ids: np.ndarray,
    mask_id: int,
    replacement_ids: np.ndarray,
    draws: Draws,
    position: np.ndarray,
    acts_like: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Replaces pieces: 80 % by `[MASK]`, 10 % by themselves, 10 % by a random piece.

    Args:
      ids: [M], the pieces to replace.
      mask_id: the id of `[MASK]`.
      replacement_ids: the ids that random replacements are drawn from.
      draws: the source of all random numbers.
      position: int64 [M], where they stand.
      acts_like: int64 [M], the number of the piece whose draw decides for this one.

    Returns:
      The new ids [M], and int64 [M]: 0 for `[MASK]`, 1 for kept, 2 for a random piece.
    """
    action = np.maximum(draws(Draw.ACTION, 10, position) - 7, 0)[acts_like]
    random_ids = replacement_ids[draws(Draw.REPLACEMENT, len(replacement_ids), position)]
    return np.select([action == 0, action == 1], [mask_id, ids], random_ids), action


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


def _spans_of_longer_words(
    words: Words, budget: np.ndarray, used: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A span that uses up the budget, in the first word that is longer, for each row that wants it.

    Args:
      words: the words of N rows.
      budget: int64 [N], the largest number of pieces to take.
      used: int32 [N], the pieces taken; a row wants a span if these are less than half of it.

    Returns:
      int64 [R], the rows that have such a word; int64 [R], where the spans begin, row · S + column.
    """
    row = np.flatnonzero(2 * used < budget)
    keys, rest = words.keys[row], (budget - used)[row]
    columns = np.where(keys == NO_WORD, 0, keys & words.column_mask).astype(np.int64)
    positions = row[:, np.newaxis] * keys.shape[1] + columns
    surplus = words.word_lengths[positions] - rest[:, np.newaxis]
    first = np.arange(len(row)), (surplus > 0).argmax(axis=1)
    # The low random bits, because a key that comes first has small high ones.
    random = keys[first] >> int(words.column_mask).bit_length()
    start = positions[first] + random % (surplus[first].clip(0) + 1)
    return row[surplus[first] > 0], start[surplus[first] > 0]


def _word_lengths(is_boundary: np.ndarray) -> np.ndarray:
    """int16 [N · S]: from each boundary to the next one or the end of the row; elsewhere 0."""
    boundary = np.flatnonzero(is_boundary).astype(np.int32)
    lengths = np.zeros(is_boundary.size, np.int16)
    lengths[boundary] = np.diff(boundary, append=np.int32(is_boundary.size))
    return lengths


def in_random_order(is_start: np.ndarray, draws: Draws, draw: int) -> tuple[np.ndarray, np.uint32]:
    """Sorted keys, uint32 [N, S], with `NO_WORD` last; and the bit mask of a key's column."""
    seq_length = is_start.shape[1]
    column_mask = np.uint32((1 << int(seq_length - 1).bit_length()) - 1)
    random = draws(draw, 1 << 32, np.arange(is_start.size, dtype=np.uint32)) >> 1
    keys = random.reshape(is_start.shape) & ~column_mask
    keys |= np.arange(seq_length, dtype=np.uint32)
    keys |= is_start - np.uint32(1)  # 0, or all bits, which is NO_WORD
    keys.sort(axis=1)
    return keys, column_mask


def _expand(starts: list[np.ndarray], lengths: list[np.ndarray]) -> np.ndarray:
    """All positions of the words with these starts and lengths."""
    start = np.concatenate([np.zeros(0, np.int64), *starts])
    length = np.concatenate([np.zeros(0, np.int64), *lengths])
    first = np.cumsum(length) - length
    return np.repeat(start - first, length) + np.arange(length.sum())
