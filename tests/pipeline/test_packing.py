"""Every sequence is in one row, and no row exceeds its limits."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.options import InstanceOptions
from pipeline.packing import plan_rows
from pipeline.records import RowLimits
from pipeline.rows import sequence_lengths, unpack
from pipeline.shards import make_instances
from pipeline.vocabulary import Vocabulary


def rows_of(lengths, predictions, limits, seed=0):
    """The lengths in each row; checks that every sequence is in one row."""
    rows = plan_rows(
        np.array(lengths, np.int64),
        np.array(predictions, np.int64),
        limits,
        np.random.default_rng(seed),
    )
    assert sorted(rows.order.tolist()) == list(range(len(lengths)))
    packed = np.split(np.array(lengths)[rows.order], np.cumsum(rows.sizes)[:-1])
    return [row.tolist() for row in packed]


def rows_one_by_one(lengths, limits, predictions):
    """How many rows best fit takes if it places one sequence after the other."""
    rows = []
    for length in sorted(lengths, reverse=True):
        fitting = [
            row
            for row in rows
            if sum(row) + length <= limits.tokens
            and len(row) < limits.sequences
            and predictions(length) + sum(map(predictions, row)) <= limits.predictions
        ]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return len(rows)


def test_best_fit_with_the_longest_first():
    limits = RowLimits(tokens=10, predictions=99, sequences=9)
    rows = rows_of([6, 3, 4, 2, 6, 3], [1] * 6, limits)
    assert sorted(rows) == [[3, 2], [6, 3], [6, 4]]


def test_equal_sequences_share_rows():
    limits = RowLimits(tokens=10, predictions=99, sequences=9)
    assert rows_of([5] * 7, [1] * 7, limits).count([5, 5]) == 3
    limits = RowLimits(tokens=10, predictions=99, sequences=2)
    assert sorted(rows_of([2] * 5, [1] * 5, limits)) == [[2], [2, 2], [2, 2]]
    limits = RowLimits(tokens=10, predictions=5, sequences=9)
    assert sorted(rows_of([2] * 5, [2] * 5, limits)) == [[2], [2, 2], [2, 2]]


def test_no_sequence_gives_no_row():
    assert plan_rows(*np.zeros((2, 0), np.int64), RowLimits(8, 2, 2), None).sizes.size == 0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(5, 40), max_size=60),
    st.integers(40, 90),
    st.integers(8, 20),
    st.integers(2, 6),
)
def test_any_lengths_are_packed_within_the_limits(lengths, tokens, predictions, sequences):
    limits = RowLimits(tokens, predictions, sequences)

    def masked(length):
        return max(1, round(length * 0.2))

    rows = rows_of(lengths, [masked(length) for length in lengths], limits) if lengths else []
    assert all(sum(row) <= tokens and len(row) <= sequences for row in rows)
    assert all(sum(map(masked, row)) <= predictions for row in rows)
    assert len(rows) == rows_one_by_one(lengths, limits, masked)


def test_the_seed_decides_the_order_of_the_rows():
    lengths = np.random.default_rng(0).integers(5, 40, 200).tolist()
    limits = RowLimits(40, 20, 4)
    first = rows_of(lengths, [1] * 200, limits, seed=1)
    assert first == rows_of(lengths, [1] * 200, limits, seed=1)
    second = rows_of(lengths, [1] * 200, limits, seed=2)
    assert first != second
    assert sorted(first) == sorted(second)


@pytest.fixture(scope="module")
def vocabulary(write_vocabulary):
    return Vocabulary(write_vocabulary(*(f"t{number}" for number in range(4000))))


def restored(instances):
    """The ids of each sequence without its masks, and its label, in a fixed order."""
    sequences = []
    for row, length in enumerate(sequence_lengths(instances["input_mask"])):
        ids = instances["input_ids"][row].astype(np.int64)
        is_real = instances["masked_lm_weights"][row] > 0
        positions = instances["masked_lm_positions"][row][is_real]
        ids[positions] = instances["masked_lm_ids"][row][is_real]
        label = int(instances["next_sentence_labels"][row, 0])
        sequences.append((ids[:length].tolist(), label, int(is_real.sum())))
    return sorted(sequences)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=8), min_size=1, max_size=20),
    st.integers(16, 48),
    st.integers(0, 48),
    st.integers(0, 2**32),
)
def test_rows_hold_the_sequences_that_there_are_without_packing(
    batch_of, vocabulary, documents, max_seq_length, more, seed
):
    batch = batch_of(documents, first_id=5)
    plain = InstanceOptions(max_seq_length=max_seq_length, short_seq_prob=0.5)
    packed = InstanceOptions(
        max_seq_length=max_seq_length,
        short_seq_prob=0.5,
        packed_row_length=max_seq_length + more,
    )
    alone, counts, rows = [], Counter(), []
    rng = np.random.default_rng(seed)
    for instances in make_instances(batch, vocabulary, plain, rng, Counter()):
        alone += restored(instances)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.packing.INSTANCES_PER_BATCH", 3)
        rng = np.random.default_rng(seed)
        for instances in make_instances(batch, vocabulary, packed, rng, counts):
            limits = packed.limits_of_rows
            assert instances["input_mask"].shape[1] == limits.tokens
            assert instances["masked_lm_ids"].shape[1] == limits.predictions
            assert instances["next_sentence_labels"].shape[1] == limits.sequences
            rows += restored(unpack(instances))
            assert len(instances["input_ids"]) <= 3
    assert sorted(rows) == sorted(alone)
    assert counts["sequences"] == len(alone)
