import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.segment_pairs import (
    _count_heads,
    _draw_random_segments,
    _plan_chunks,
    _tokens_to_remove,
    plan_segment_pairs,
)

SHAPES = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=10), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**32)


def chunks_by_the_original_loop(documents, max_tokens, short_seq_prob, rng):
    """The original's create_instances_from_document, with the draws made as `_plan_chunks` does."""
    num_sentences = sum(map(len, documents))
    is_short = rng.random(len(documents)) < short_seq_prob
    short_targets = rng.integers(2, max_tokens + 1, len(documents))
    wants_random = rng.random(num_sentences) < 0.5
    a_share = rng.random(num_sentences)

    chunks, dropped, base = [], 0, 0
    for number, document in enumerate(documents):
        target = int(short_targets[number]) if is_short[number] else max_tokens
        current = []
        i = 0
        while i < len(document):
            current.append(i)
            if i == len(document) - 1 or sum(document[j] for j in current) >= target:
                start = base + current[0]
                a_end = 1
                if len(current) >= 2:
                    a_end += int(a_share[start] * (len(current) - 1))
                if len(documents) > 1 and (len(current) == 1 or wants_random[start]):
                    chunks.append((number, start, start + a_end, base + i + 1, target, True))
                    i -= len(current) - a_end
                elif len(current) > 1:
                    chunks.append((number, start, start + a_end, base + i + 1, target, False))
                else:
                    dropped += 1
                current = []
            i += 1
        base += len(document)
    return chunks, dropped


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.integers(5, 40), st.sampled_from([0.0, 0.3, 1.0]), SEEDS)
def test_chunks_are_those_of_the_original_loop(batch_of, documents, max_tokens, short, seed):
    chunks = _plan_chunks(batch_of(documents), max_tokens, short, np.random.default_rng(seed))
    expected, dropped = chunks_by_the_original_loop(
        documents, max_tokens, short, np.random.default_rng(seed)
    )
    columns = (
        chunks.document,
        chunks.first_sentence,
        chunks.a_end_sentence,
        chunks.end_sentence,
        chunks.target_length,
        chunks.is_random_next,
    )
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert chunks.dropped == dropped


def test_half_of_the_chunks_want_a_random_next_and_a_takes_any_number_of_sentences(batch_of):
    chunks = _plan_chunks(batch_of([[1] * 5] * 4000), 100, 0.0, np.random.default_rng(1))
    is_first = chunks.first_sentence == chunks.document * 5
    a_sentences = (chunks.a_end_sentence - chunks.first_sentence)[is_first]
    assert np.bincount(a_sentences, minlength=6)[1:5] == pytest.approx([1000] * 4, abs=130)
    assert chunks.is_random_next[is_first].mean() == pytest.approx(0.5, abs=0.03)


def test_short_targets_are_uniform_from_2_to_the_maximum(batch_of):
    chunks = _plan_chunks(batch_of([[20]] * 5000), 11, 1.0, np.random.default_rng(1))
    counts = np.bincount(chunks.target_length, minlength=12)
    assert counts[:2].tolist() == [0, 0]
    assert counts[2:] == pytest.approx([500] * 10, abs=100)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), max_size=20), st.integers(2, 60))
def test_truncation_shortens_the_longer_one_token_at_a_time(lengths, max_tokens):
    expected = []
    for a, b in lengths:
        a_left, b_left = a, b
        while a_left + b_left > max_tokens:
            if a_left > b_left:
                a_left -= 1
            else:
                b_left -= 1
        expected.append((a - a_left, b - b_left))
    a_length, b_length = np.array(lengths, np.int64).reshape(-1, 2).T
    a_removed, b_removed = _tokens_to_remove(a_length, b_length, max_tokens)
    assert list(zip(a_removed.tolist(), b_removed.tolist(), strict=True)) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=12), SEEDS)
def test_heads_are_counted_coin_by_coin(flips, seed):
    heads = _count_heads(np.array(flips, np.int64), np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    expected, left = [0] * len(flips), list(flips)
    while any(left):
        rows = [row for row, coins in enumerate(left) if coins]
        for row, bits in zip(rows, rng.integers(0, 1 << 64, len(rows), np.uint64), strict=True):
            coins = min(left[row], 64)
            expected[row] += f"{int(bits):064b}"[:coins].count("1")
            left[row] -= coins
    assert heads.tolist() == expected


def test_half_of_the_cut_tokens_are_cut_from_the_front():
    heads = _count_heads(np.full(2000, 100, np.int64), np.random.default_rng(1))
    assert heads.mean() == pytest.approx(50, abs=0.6)
    assert heads.std() == pytest.approx(5, abs=0.5)


@settings(max_examples=200, deadline=None)
@given(SHAPES.filter(lambda documents: len(documents) > 1), st.integers(-5, 40), SEEDS)
def test_random_segments_are_whole_sentences_of_other_documents(batch_of, documents, target, seed):
    own = np.arange(len(documents)).repeat(3)
    starts, lengths = _draw_random_segments(
        batch_of(documents), own, np.full(len(own), target), np.random.default_rng(seed)
    )
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(documents) - 1, len(own))
    others = [
        number + (number >= own_number) for number, own_number in zip(drawn, own, strict=True)
    ]
    first_sentences = np.cumsum([0, *map(len, documents)])
    sentences = rng.integers(first_sentences[others], first_sentences[np.array(others) + 1])
    for start, length, other, sentence, own_number in zip(
        starts, lengths, others, sentences, own, strict=True
    ):
        assert other != own_number
        within = sentence - first_sentences[other]
        before = sum(map(sum, documents[:other])) + sum(documents[other][:within])
        taken = 0
        for sentence_length in documents[other][within:]:
            taken += sentence_length
            if taken >= target:
                break
        assert (start, length) == (before, taken)


def test_random_segments_begin_at_every_sentence_of_every_other_document(batch_of):
    starts, _ = _draw_random_segments(
        batch_of([[1, 1], [1, 1, 1, 1], [1]]),
        np.zeros(8000, np.int64),
        np.ones(8000, np.int64),
        np.random.default_rng(1),
    )
    expected = [0, 0, 1000, 1000, 1000, 1000, 4000]
    assert np.bincount(starts, minlength=7) == pytest.approx(expected, abs=200)
    assert set(starts) == {2, 3, 4, 5, 6}


def boundaries_of(documents):
    """Each document's start, end and sentence boundaries, in tokens."""
    boundaries, start = [], 0
    for document in documents:
        boundaries.append([start, *(np.cumsum(document) + start).tolist()])
        start = boundaries[-1][-1]
    return boundaries


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.integers(8, 60), st.sampled_from([0.0, 0.5, 1.0]), SEEDS)
def test_pairs_lie_in_documents_and_are_labelled_truly(
    batch_of, documents, seq_length, short, seed
):
    rng = np.random.default_rng(seed)
    pairs = plan_segment_pairs(batch_of(documents), seq_length, short, rng)
    boundaries = boundaries_of(documents)

    def document_of(start, length):
        (number,) = (
            number
            for number, ends in enumerate(boundaries)
            if ends[0] <= start and start + length <= ends[-1]
        )
        return number

    columns = (pairs.a_start, pairs.a_length, pairs.b_start, pairs.b_length, pairs.labels)
    for a_start, a_length, b_start, b_length, is_random in zip(*columns, strict=True):
        assert a_length >= 1
        assert b_length >= 1
        assert a_length + b_length <= seq_length - 3
        own, other = document_of(a_start, a_length), document_of(b_start, b_length)
        assert (own != other) == is_random
        is_whole = a_length + b_length < seq_length - 3
        if is_whole:
            assert {a_start, a_start + a_length} <= set(boundaries[own])
            assert {b_start, b_start + b_length} <= set(boundaries[other])
        if not is_random:
            between = [end for end in boundaries[own] if a_start + a_length <= end <= b_start]
            assert between
            assert not is_whole or b_start == a_start + a_length


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=10), st.integers(8, 40), SEEDS)
def test_a_single_document_gives_true_continuations_only(batch_of, document, seq_length, seed):
    rng = np.random.default_rng(seed)
    pairs = plan_segment_pairs(batch_of([document]), seq_length, 0.5, rng)
    assert not pairs.labels.any()
    _, dropped = chunks_by_the_original_loop(
        [document], seq_length - 3, 0.5, np.random.default_rng(seed)
    )
    assert pairs.chunks_without_next == dropped


@pytest.mark.parametrize(
    ("documents", "num_pairs", "dropped"), [([], 0, 0), ([[3]], 0, 1), ([[9, 9, 9]], 0, 3)]
)
def test_chunks_that_have_no_next_sentence_anywhere_are_dropped_and_counted(
    batch_of, documents, num_pairs, dropped
):
    pairs = plan_segment_pairs(batch_of(documents), 12, 0.0, np.random.default_rng(1))
    assert (len(pairs), pairs.chunks_without_next) == (num_pairs, dropped)


def test_truncation_takes_from_the_front_and_the_back_alike(batch_of):
    pairs = plan_segment_pairs(batch_of([[30]] * 500), 23, 0.0, np.random.default_rng(1))
    assert (pairs.a_length == 10).all()
    assert (pairs.b_length == 10).all()
    for start in (pairs.a_start, pairs.b_start):
        cut_from_front = start % 30
        assert cut_from_front.mean() == pytest.approx(10, abs=0.6)
        assert cut_from_front.std() == pytest.approx(5**0.5, abs=0.4)
    assert abs(np.corrcoef(pairs.a_start % 30, pairs.b_start % 30)[0, 1]) < 0.2


def test_one_sentence_documents_are_paired_with_others(batch_of):
    pairs = plan_segment_pairs(batch_of([[3], [2], [4]]), 12, 0.0, np.random.default_rng(1))
    assert pairs.labels.tolist() == [True] * 3
    assert sorted(pairs.a_start) == [0, 3, 5]


def test_pairs_are_shuffled(batch_of):
    pairs = plan_segment_pairs(batch_of([[4, 4]] * 200), 12, 0.0, np.random.default_rng(1))
    position = np.arange(len(pairs))
    assert abs(np.corrcoef(position, pairs.a_start)[0, 1]) < 0.25
    assert abs(np.corrcoef(position, pairs.labels)[0, 1]) < 0.25


def test_tokens_that_do_not_fit_are_counted(batch_of):
    pairs = plan_segment_pairs(batch_of([[50], [50]]), 16, 0.0, np.random.default_rng(1))
    assert len(pairs) == 2
    assert (pairs.a_length + pairs.b_length).tolist() == [13, 13]
    assert pairs.tokens_truncated == 2 * (100 - 13)
