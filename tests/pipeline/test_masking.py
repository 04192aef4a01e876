import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.draws import Draw, generator_draws
from pipeline.masking import (
    choose_masked_pieces,
    in_random_order,
    num_to_mask,
    replace_pieces,
    take_words,
)

EACH = np.arange(100_000)


def drawn(seed):
    return generator_draws(np.random.default_rng(seed))


@st.composite
def rows_of_words(draw):
    """Rows `[CLS] words [SEP] words [SEP] padding`: word lengths of A and of B, and a budget."""
    words = st.lists(st.integers(1, 5), min_size=1, max_size=6)
    return draw(st.lists(st.tuples(words, words, st.integers(1, 12)), min_size=1, max_size=8))


def per_row(pieces):
    ends = np.cumsum(pieces.num_of_row)
    return [columns.tolist() for columns in np.split(pieces.column, ends[:-1])]


@pytest.mark.parametrize(
    ("length", "expected"), [(3, 1), (10, 2), (30, 4), (50, 8), (128, 19), (512, 77)]
)
def test_number_to_mask_is_the_share_rounded_half_to_even_and_at_least_1(length, expected):
    assert num_to_mask(np.array([length]), 0.15, 100).tolist() == [expected]


@given(st.floats(0.01, 0.99), st.integers(1, 80))
def test_number_to_mask_is_what_pythons_round_gives(masked_lm_prob, most):
    lengths = np.arange(3, 513)
    assert num_to_mask(lengths, masked_lm_prob, most).tolist() == [
        min(most, max(1, round(length * masked_lm_prob))) for length in range(3, 513)
    ]


@settings(max_examples=200, deadline=None)
@given(rows_of_words(), st.integers(0, 9), st.integers(0, 2**32), st.integers(1, 20))
def test_words_are_takenin_random_order_while_they_fit(
    lay_out, rows, padding, seed, ranks_per_block
):
    is_word_start, is_boundary, budget, words = lay_out(rows, padding)
    draws = drawn(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.masking._RANKS_PER_BLOCK", ranks_per_block)
        pieces = choose_masked_pieces(is_word_start, is_boundary, budget, draws, take_words)

    keys, column_mask = in_random_order(is_word_start, drawn(seed), Draw.ORDER)
    expected = []
    for row, row_words in enumerate(words):
        by_first_column = {columns[0]: columns for columns in row_words}
        order = [int(key & column_mask) for key in keys[row, : len(row_words)]]
        assert sorted(order) == sorted(by_first_column)
        masked, skipped = [], []
        for first_column in order:
            columns = by_first_column[first_column]
            if len(masked) + len(columns) <= budget[row]:
                masked += columns
            else:
                skipped.append(columns)
        rest = budget[row] - len(masked)
        if skipped and 2 * len(masked) < budget[row]:
            columns = skipped[0]
            bits = int(keys[row, order.index(columns[0])]) >> int(column_mask).bit_length()
            start = bits % (len(columns) - rest + 1)
            masked += columns[start : start + rest]
        expected.append(sorted(masked))
    assert per_row(pieces) == expected
    seq_length = is_word_start.shape[1]
    assert pieces.position.tolist() == [
        row * seq_length + column for row, columns in enumerate(expected) for column in columns
    ]


def test_a_word_that_would_exceed_the_budget_is_skipped_and_not_a_stop(lay_out):
    is_word_start, is_boundary, budget, _ = lay_out([([5], [2], 4)] * 100, padding=0)
    pieces = choose_masked_pieces(is_word_start, is_boundary, budget, drawn(1), take_words)
    assert per_row(pieces) == [[7, 8]] * 100


def test_a_span_of_a_longer_word_uses_a_budget_that_is_mostly_unused(lay_out):
    rows = [([9], [40], 4), ([1, 9], [40], 4), ([2, 9], [40], 4), ([2], [1], 8)]
    is_word_start, is_boundary, budget, words = lay_out(rows, padding=2)
    pieces = [
        choose_masked_pieces(is_word_start, is_boundary, budget, drawn(seed), take_words)
        for seed in range(200)
    ]
    found = list(zip(*map(per_row, pieces), strict=True))
    for row, whole in ((0, []), (1, [1])):
        spans = [columns[len(whole) :] for columns in found[row]]
        assert all(columns[: len(whole)] == whole for columns in found[row])
        assert {len(span) for span in spans} == {4 - len(whole)}
        assert all(span == list(range(span[0], span[0] + len(span))) for span in spans)
        assert all(any(set(span) <= set(word) for word in words[row]) for span in spans)
    # A half is not most; and words that are all masked leave nothing to mask.
    assert set(map(tuple, found[2])) == {(1, 2)}
    assert set(map(tuple, found[3])) == {(1, 2, 4)}


def test_the_word_of_a_span_and_its_place_are_equally_likely(lay_out):
    is_word_start, is_boundary, budget, _ = lay_out([([10] * 3, [10] * 3, 4)] * 20_000, padding=3)
    pieces = choose_masked_pieces(is_word_start, is_boundary, budget, drawn(1), take_words)
    starts = np.bincount(pieces.column[::4], minlength=63)
    allowed = [column + place for column in (1, 11, 21, 32, 42, 52) for place in range(7)]
    assert starts.sum() == starts[allowed].sum() == 20_000
    assert starts[allowed] == pytest.approx([20_000 / len(allowed)] * len(allowed), rel=0.25)


def test_a_word_may_end_at_the_last_column():
    is_word_start = np.array([[False, True, False, False]] * 2)
    pieces = choose_masked_pieces(
        is_word_start,
        is_word_start | np.array([True, False, False, False]),
        np.array([3, 3]),
        drawn(1),
        take_words,
    )
    assert per_row(pieces) == [[1, 2, 3]] * 2


def test_every_word_is_equally_likely(lay_out):
    is_word_start, is_boundary, budget, _ = lay_out([([1] * 5, [1] * 5, 3)] * 10_000, padding=3)
    pieces = choose_masked_pieces(is_word_start, is_boundary, budget, drawn(1), take_words)
    counts = np.bincount(pieces.column, minlength=16)
    assert counts[[0, 6, 12, 13, 14, 15]].tolist() == [0] * 6
    assert counts[[*range(1, 6), *range(7, 12)]] == pytest.approx([3000] * 10, abs=250)


def test_pieces_become_mask_stay_or_turn_random_in_the_shares_of_the_original():
    ids = np.arange(100_000) % 50 + 100
    replacements = np.arange(200, 210)
    new_ids, action = replace_pieces(ids, 4, replacements, drawn(1), EACH, EACH)
    assert np.bincount(action) / len(ids) == pytest.approx([0.8, 0.1, 0.1], abs=0.005)
    assert (new_ids[action == 0] == 4).all()
    assert (new_ids[action == 1] == ids[action == 1]).all()
    random_counts = np.bincount(new_ids[action == 2] - 200, minlength=10)
    assert len(random_counts) == 10
    assert random_counts == pytest.approx([1000] * 10, abs=150)


def test_pieces_of_one_word_draw_independently():
    _, action = replace_pieces(EACH, 4, np.arange(9), drawn(1), EACH, EACH)
    both_masked = (action[::2] == 0) & (action[1::2] == 0)
    assert both_masked.mean() == pytest.approx(0.64, abs=0.02)


def test_pieces_of_one_word_may_share_a_draw():
    acts_like = EACH[:60_000] // 2 * 2
    ids = np.arange(60_000) + 100
    new_ids, action = replace_pieces(ids, 4, np.arange(9), drawn(1), EACH[:60_000], acts_like)
    assert (action[::2] == action[1::2]).all()
    assert np.bincount(action) / 60_000 == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    random_pairs = new_ids[action == 2].reshape(-1, 2)
    assert (random_pairs[:, 0] != random_pairs[:, 1]).mean() > 0.8


def test_words_and_spans_of_words_begin_where_they_were_chosen(lay_out):
    # Words that touch, and a span within a word that follows a word.
    rows = [([1, 2, 1], [2, 2], 8), ([2, 9], [40], 5), ([9], [40], 4)]
    is_word_start, is_boundary, budget, words = lay_out(rows, padding=1)
    for seed in range(50):
        pieces = choose_masked_pieces(is_word_start, is_boundary, budget, drawn(seed), take_words)
        row = pieces.position // is_word_start.shape[1]
        for number, row_words in enumerate(words):
            columns, begins = pieces.column[row == number], pieces.begins[row == number]
            firsts = {min(set(word) & set(columns.tolist()), default=None) for word in row_words}
            assert set(columns[begins].tolist()) == firsts - {None}


def test_nothing_to_replace_is_fine():
    new_ids, action = replace_pieces(
        np.zeros(0, np.uint16), 4, np.arange(9), drawn(1), *np.zeros((2, 0), int)
    )
    assert new_ids.shape == action.shape == (0,)
