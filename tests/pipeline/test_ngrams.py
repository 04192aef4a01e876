import random
from collections import Counter
from functools import partial
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.draws import Draw, first_key, fold_in, generator_draws, hash_draws
from pipeline.masking import choose_masked_pieces, in_random_order
from pipeline.ngrams import take_ngrams

WORDS = st.lists(st.integers(1, 5), min_size=1, max_size=6)
ROWS = st.lists(st.tuples(WORDS, WORDS, st.integers(1, 12)), min_size=1, max_size=8)


def ngrams_one_by_one(words, budget, size_of_next, keys):
    """The rules of the Model Garden's script for one row, on the same random numbers.

    Args:
      words: the row's words, as lists of columns.
      budget: the most pieces.
      size_of_next: gives the number of words of the n-gram that is drawn after so many, less 1.
      keys: for each number of words, the first columns of its n-grams in random order.
    """
    candidates = []
    for n, of_size in enumerate(keys, 1):
        starts = {
            group[0][0]: [*chain(*group)]
            for group in (words[first : first + n] for first in range(len(words) - n + 1))
            if all(b[0] == a[-1] + 1 for a, b in pairwise(group))
        }
        order = [starts[column] for column in of_size]
        assert len(order) == len(starts)
        candidates.append(order)
    masked, chosen, step = set(), [], 0
    while any(order and len(masked) + n <= budget for n, order in enumerate(candidates, 1)):
        n = size_of_next(step)
        step += 1
        if candidates[n]:
            columns = candidates[n].pop(0)
            if len(masked) + len(columns) <= budget and not masked & set(columns):
                masked |= set(columns)
                chosen.append(columns)
    return chosen


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(0, 5), st.integers(2, 4), st.integers(0, 2**32))
def test_ngrams_are_chosen_as_the_model_garden_does(lay_out, rows, padding, max_ngram_size, seed):
    is_word_start, is_boundary, budget, words = lay_out(rows, padding)
    shape = is_word_start.shape
    drawn_numbers = {}
    draws_of_seed = hash_draws(fold_in(first_key(seed), np.arange(len(rows))), shape[1])

    def draws(draw, limit, position):
        numbers = draws_of_seed(draw, limit, position)
        assert (numbers < limit).all()
        drawn_numbers.setdefault(draw, {}).update(
            zip((position // shape[1]).ravel().tolist(), numbers.ravel().tolist(), strict=False)
        )
        return numbers

    take = partial(take_ngrams, max_ngram_size=max_ngram_size)
    pieces = choose_masked_pieces(is_word_start, is_boundary, budget, draws, take)
    weights = np.cumsum((1 << 29) // np.arange(1, max_ngram_size + 1))

    for row, row_words in enumerate(words):
        keys = []
        for n in range(max_ngram_size):
            starts = np.zeros(shape, bool)
            for first in range(len(row_words) - n):
                group = row_words[first : first + n + 1]
                starts[row, group[0][0]] = all(b[0] == a[-1] + 1 for a, b in pairwise(group))
            draw = Draw.ORDER_OF_NGRAMS + n if n else Draw.ORDER
            order, column_mask = in_random_order(starts, draws_of_seed, draw)
            keys.append([int(key & column_mask) for key in order[row, : starts[row].sum()]])

        def size_of_next(step, row=row):
            number = drawn_numbers[Draw.SIZE_OF_NGRAM + step][row]
            return int(np.searchsorted(weights, number, side="right"))

        chosen = ngrams_one_by_one(row_words, budget[row], size_of_next, keys)
        of_row = pieces.position // shape[1] == row
        columns, begins = pieces.column[of_row].tolist(), pieces.begins[of_row]
        whole = {column for ngram in chosen for column in ngram}
        if 2 * len(whole) >= budget[row]:
            assert set(columns) == whole
            assert np.array(columns)[begins].tolist() == sorted(ngram[0] for ngram in chosen)
        else:  # and a span of a longer word
            assert whole <= set(columns)
            assert len(columns) in (len(whole), budget[row])


def test_the_number_of_words_of_an_ngram_is_drawn_with_falling_weights():
    # So few of so many words, of one piece each, that they rarely overlap.
    is_word_start = np.ones((5000, 500), bool)
    is_word_start[:, [0, -1]] = False
    is_boundary, budget = np.ones_like(is_word_start), np.full(5000, 4)
    draws = generator_draws(np.random.default_rng(1))
    take = partial(take_ngrams, max_ngram_size=3)
    pieces = choose_masked_pieces(is_word_start, is_boundary, budget, draws, take)
    assert (np.bincount(pieces.num_of_row) == [0, 0, 0, 0, 5000]).all()
    first = np.flatnonzero(pieces.begins)
    lengths = np.diff(first, append=len(pieces.begins))
    # The script by itself, for the same budget.
    rng, expected = random.Random(1), Counter()
    for _ in range(20_000):
        used = 0
        while used < 4:
            size = rng.choices((1, 2, 3), (1, 1 / 2, 1 / 3))[0]
            if used + size <= 4:
                expected[size] += 1
                used += size
    shares = np.bincount(lengths, minlength=4)[1:] / len(lengths)
    assert shares == pytest.approx([expected[n] / expected.total() for n in (1, 2, 3)], abs=0.01)
