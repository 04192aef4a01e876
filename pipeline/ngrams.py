"""N-grams of whole words to mask, for --max_ngram_size, by the rules of the Model Garden's script.

Again and again, a number of words is drawn with the weights 1, 1/2, 1/3, …, and then an n-gram of
so many words, each n-gram once. It is taken if it fits and none of its words is taken yet. Between
the words of an n-gram is no special token. For example, with a budget of 3 and words of 1, 1 and 2
pieces::

    draws   2-gram of words 2 and 3   1-gram of word 3         1-gram of word 1
    budget  3 pieces: used up         is taken already         does not fit
"""

import itertools
from functools import partial

import numpy as np

from pipeline.draws import Draw, Draws
from pipeline.masking import NO_WORD, Take, Taken, Words, in_random_order, take_words
from pipeline.options import InstanceOptions

# Of the numbers from which the size of an n-gram is drawn.
_WEIGHT_OF_ONE_WORD = 1 << 29


def take_of(options: InstanceOptions) -> Take:
    """How words are taken: one by one, or as n-grams."""
    if options.max_ngram_size == 1:
        return take_words
    return partial(take_ngrams, max_ngram_size=options.max_ngram_size)


def take_ngrams(words: Words, budget: np.ndarray, draws: Draws, max_ngram_size: int) -> Taken:
    """Takes n-grams of up to `max_ngram_size` words, at least 2; see above."""
    num_rows, seq_length = words.keys.shape
    lengths_of_words = np.zeros(words.keys.size, np.int64)
    row, rank_of_word = np.nonzero(words.keys != NO_WORD)
    first = row * seq_length + (words.keys[row, rank_of_word] & words.column_mask)
    lengths_of_words[first] = words.word_lengths[first]
    sizes = np.arange(1, max_ngram_size + 1)
    bounds = np.cumsum(_WEIGHT_OF_ONE_WORD // sizes)
    ngram_lengths = _ngram_lengths(lengths_of_words, max_ngram_size)
    # A column more, in which the n-grams of every size have come to an end.
    orders = np.full((max_ngram_size, num_rows, seq_length + 1), NO_WORD)
    orders[0, :, :-1] = words.keys
    for n in range(1, max_ngram_size):
        is_start = ngram_lengths[n].reshape(words.keys.shape) > 0
        orders[n, :, :-1], _ = in_random_order(is_start, draws, Draw.ORDER_OF_NGRAMS + n)

    is_taken = np.zeros(words.keys.size, bool)
    used = np.zeros(num_rows, np.int32)
    rank = np.zeros((max_ngram_size, num_rows), np.int64)
    starts: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    rows = np.arange(num_rows)
    for step in itertools.count():
        is_left = orders[sizes[:, np.newaxis] - 1, rows, rank[:, rows]] != NO_WORD
        is_left &= used[rows] + sizes[:, np.newaxis] <= budget[rows]
        rows = rows[is_left.any(axis=0)]
        if not rows.size:
            break
        draw = draws(Draw.SIZE_OF_NGRAM + step, int(bounds[-1]), rows * seq_length)
        size = np.searchsorted(bounds, draw, side="right")  # less 1
        key = orders[size, rows, rank[size, rows]]
        is_ngram = key != NO_WORD
        rank[size, rows] += is_ngram
        start = rows * seq_length + np.where(is_ngram, key & words.column_mask, 0)
        length = ngram_lengths[size, start]
        members = [start]
        for more in range(1, max_ngram_size):
            last = members[-1]
            members.append(last + np.where(more <= size, lengths_of_words[last], 0))
        words_of_ngram = np.stack(members)
        fits = is_ngram & (used[rows] + length <= budget[rows])
        fits &= ~is_taken[words_of_ngram].any(axis=0)
        is_taken[words_of_ngram[:, fits]] = True
        used[rows[fits]] += length[fits]
        starts.append(start[fits])
        lengths.append(length[fits])
    return starts, lengths, used


def _ngram_lengths(lengths_of_words: np.ndarray, max_ngram_size: int) -> np.ndarray:
    """int64 [n, N · S]: pieces of the n-gram that begins here, of 1, 2, … words; 0 for none.

    Args:
      lengths_of_words: int64 [N · S], where a word begins, elsewhere 0. None begins in column 0.
      max_ngram_size: the largest number of words.
    """
    lengths = [lengths_of_words]
    next_word = np.arange(len(lengths_of_words)) + lengths_of_words
    for _ in range(1, max_ngram_size):
        rest = np.append(lengths[-1], 0)[next_word]
        lengths.append(np.where(rest > 0, lengths_of_words + rest, 0))
    return np.stack(lengths)
